-- Typed, valid events of the last eight days (by receipt; each view below has its own event-time window).
CREATE MATERIALIZED VIEW user_activity AS
SELECT
  event->>'event_type' AS event_type,
  (event->>'user_id')::bigint AS user_id,
  event->>'product_id' AS product_id,
  (event->>'timestamp')::timestamptz AS event_time,
  event->>'query' AS query,
  event->>'session_id' AS session_id,
  kafka_partition, kafka_offset, received_at
FROM user_activity_parsed
WHERE reason IS NULL AND received_at > NOW() - INTERVAL '8 days';
