-- The catalog: the products of the file. One of which it is not said whether it is in stock is.
CREATE MATERIALIZED VIEW product_catalog AS
SELECT product_id, name, category, price, description, image_url, COALESCE(in_stock, true) AS in_stock
FROM product_catalog_file;
