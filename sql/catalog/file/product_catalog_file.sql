-- The rows of product_catalog.csv (or .tsv, .jsonl) in RECS_CATALOG_DIR.
CREATE TABLE product_catalog_file (
  product_id VARCHAR PRIMARY KEY,
  name VARCHAR,
  category VARCHAR,
  price DOUBLE PRECISION,
  description VARCHAR,
  image_url VARCHAR,
  in_stock BOOLEAN
);
