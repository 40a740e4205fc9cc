-- recs:trending_by_segment:<version>:<window start>/<age band>/<country>
-- `products` and `candidates` as in trending_products.
CREATE SINK trending_by_segment_sink AS
SELECT 'recs:trending_by_segment:${version}:' || to_char(t.window_start AT TIME ZONE 'UTC', 'YYYY-MM-DD') || 'T'
    || to_char(t.window_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || 'Z/' || t.segment AS key,
  t.window_start,
  t.segment,
  t.products,
  c.candidates,
  c.as_of
FROM (
  SELECT window_start, segment,
    jsonb_agg(jsonb_build_object('product_id', product_id, 'view_count', view_count) ORDER BY rank) AS products
  FROM trending_by_segment GROUP BY window_start, segment) AS t
JOIN (
  SELECT window_start, segment,
    jsonb_agg(jsonb_build_object('product_id', product_id, 'view_count', view_count) ORDER BY rank) AS candidates,
    MAX(last_view) AS as_of
  FROM trending_candidates_by_segment GROUP BY window_start, segment) AS c
ON t.window_start = c.window_start AND t.segment = c.segment
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
