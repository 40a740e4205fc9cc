-- Who the shoppers are, for trends by segment: the newest version of each, without those that were taken away.
CREATE MATERIALIZED VIEW customers AS
SELECT user_id, age_band, country
FROM (
  SELECT user_id, row_now IS NULL AS is_gone, row_now->>'age_band' AS age_band, row_now->>'country' AS country,
    ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY received_at DESC, kafka_offset::bigint DESC) AS nth
  FROM customers_parsed WHERE reason IS NULL
) AS versions
WHERE nth <= 1 AND NOT is_gone;
