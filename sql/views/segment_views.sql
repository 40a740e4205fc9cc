-- Page views of the last 48 hours with the segment their shopper was in when they were seen: a lookup join,
-- so a customer who moves does not rewrite what was counted.
CREATE MATERIALIZED VIEW segment_views AS
SELECT a.kafka_partition, a.kafka_offset, a.received_at, a.event_time, a.product_id,
  COALESCE(c.age_band, 'unknown') || '/' || COALESCE(c.country, 'unknown') AS segment
FROM (
  SELECT kafka_partition, kafka_offset, received_at, event_time, product_id, user_id FROM user_activity
  WHERE event_type = 'page_view' AND event_time > NOW() - INTERVAL '49 hours') AS a
JOIN customers FOR SYSTEM_TIME AS OF PROCTIME() AS c ON a.user_id = c.user_id;
