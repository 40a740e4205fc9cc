-- How far user_activity is read, partition by partition: a RisingWave does not say so by itself.
CREATE MATERIALIZED VIEW user_activity_raw_progress AS
SELECT kafka_partition, MAX(kafka_offset::bigint) AS last_offset, MAX(received_at) AS newest
FROM user_activity_raw
GROUP BY kafka_partition;
