-- recs:trending_products:<version>:<window start>
CREATE SINK trending_products_sink AS
SELECT 'recs:trending_products:${version}:' || to_char(window_start AT TIME ZONE 'UTC', 'YYYY-MM-DD') || 'T'
    || to_char(window_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || 'Z' AS key,
  window_start,
  jsonb_agg(jsonb_build_object('product_id', product_id, 'view_count', view_count) ORDER BY rank) AS products,
  MAX(last_view) AS as_of
FROM trending_products GROUP BY window_start
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
