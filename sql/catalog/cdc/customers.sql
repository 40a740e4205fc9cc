-- Who the shoppers are, for trends by segment.
CREATE TABLE customers (
  user_id BIGINT PRIMARY KEY,
  age_band VARCHAR,
  country VARCHAR
) FROM shop TABLE 'public.customers';
