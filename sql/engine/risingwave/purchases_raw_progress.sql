-- How far purchases is read, partition by partition: a RisingWave does not say so by itself.
CREATE MATERIALIZED VIEW purchases_raw_progress AS
SELECT kafka_partition, MAX(kafka_offset::bigint) AS last_offset, MAX(received_at) AS newest
FROM purchases_raw
GROUP BY kafka_partition;
