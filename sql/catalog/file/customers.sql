-- Who the shoppers are, for trends by segment: the rows of customers.csv (or .tsv, .jsonl) in RECS_CATALOG_DIR.
CREATE TABLE customers (
  user_id BIGINT PRIMARY KEY,
  age_band VARCHAR,
  country VARCHAR
);
