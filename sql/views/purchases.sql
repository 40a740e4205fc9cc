-- Typed, valid purchases of the last ninety days (by receipt).
CREATE MATERIALIZED VIEW purchases AS
SELECT
  (event->>'user_id')::bigint AS user_id,
  event->>'product_id' AS product_id,
  COALESCE((event->>'quantity')::bigint, 1) AS quantity,
  (event->>'price')::double precision AS price,
  (event->>'timestamp')::timestamptz AS event_time,
  kafka_partition, kafka_offset, received_at
FROM purchases_parsed
WHERE reason IS NULL AND received_at > NOW() - INTERVAL '90 days';
