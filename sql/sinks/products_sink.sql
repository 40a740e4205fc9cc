-- recs:products:<version>:<product id>: what a page needs to show a product, and whether it can be bought.
CREATE SINK products_sink AS
SELECT 'recs:products:${version}:' || product_id AS key, product_id, name, category, price, image_url, in_stock
FROM product_catalog
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
