-- Every message that could not be used, with the reason and its raw bytes, for thirty days.
CREATE MATERIALIZED VIEW dead_letters AS
SELECT 'user_activity' AS topic, kafka_partition, kafka_offset, received_at, reason, payload
FROM user_activity_parsed
WHERE reason IS NOT NULL AND received_at > NOW() - INTERVAL '30 days'
UNION ALL
SELECT 'purchases' AS topic, kafka_partition, kafka_offset, received_at, reason, payload
FROM purchases_parsed
WHERE reason IS NOT NULL AND received_at > NOW() - INTERVAL '30 days';
