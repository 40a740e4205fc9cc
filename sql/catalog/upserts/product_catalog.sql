-- The catalog: the newest version of each product, without those that were taken away.
CREATE MATERIALIZED VIEW product_catalog AS
SELECT product_id, name, category, price, description, image_url, in_stock
FROM (
  SELECT product_id, row_now IS NULL AS is_gone,
    row_now->>'name' AS name, row_now->>'category' AS category, (row_now->>'price')::double precision AS price,
    row_now->>'description' AS description, row_now->>'image_url' AS image_url,
    COALESCE((row_now->>'in_stock')::boolean, true) AS in_stock,
    ROW_NUMBER() OVER (PARTITION BY product_id ORDER BY received_at DESC, kafka_offset::bigint DESC) AS nth
  FROM product_catalog_parsed WHERE reason IS NULL
) AS versions
WHERE nth <= 1 AND NOT is_gone;
