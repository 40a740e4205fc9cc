-- The catalog as it is in PostgreSQL this moment.
CREATE TABLE product_catalog (
  product_id VARCHAR PRIMARY KEY,
  name VARCHAR,
  category VARCHAR,
  price DOUBLE PRECISION,
  description VARCHAR,
  image_url VARCHAR,
  in_stock BOOLEAN
) FROM shop TABLE 'public.product_catalog';
