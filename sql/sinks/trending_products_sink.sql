-- recs:trending_products:<version>:<window start>
-- `products` are the ten; from the `candidates` a reader takes as many as it shows when some of the ten are sold out.
CREATE SINK trending_products_sink AS
SELECT 'recs:trending_products:${version}:' || to_char(t.window_start AT TIME ZONE 'UTC', 'YYYY-MM-DD') || 'T'
    || to_char(t.window_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || 'Z' AS key,
  t.window_start,
  t.products,
  c.candidates,
  c.as_of
FROM (
  SELECT window_start,
    jsonb_agg(jsonb_build_object('product_id', product_id, 'view_count', view_count) ORDER BY rank) AS products
  FROM trending_products GROUP BY window_start) AS t
JOIN (
  SELECT window_start,
    jsonb_agg(jsonb_build_object('product_id', product_id, 'view_count', view_count) ORDER BY rank) AS candidates,
    MAX(last_view) AS as_of
  FROM trending_candidates GROUP BY window_start) AS c
ON t.window_start = c.window_start
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
