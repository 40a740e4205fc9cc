-- recs:also_bought:<version>:<product id>
CREATE SINK also_bought_sink AS
SELECT 'recs:also_bought:${version}:' || product_id AS key,
  product_id,
  jsonb_agg(jsonb_build_object('product_id', other_product_id, 'shoppers', shoppers) ORDER BY rank) AS products,
  MAX(last_purchase) AS as_of
FROM also_bought GROUP BY product_id
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
