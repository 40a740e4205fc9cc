-- How far the changes of customers are read, partition by partition: a RisingWave does not say so by itself.
CREATE MATERIALIZED VIEW customers_changes_progress AS
SELECT kafka_partition, MAX(kafka_offset::bigint) AS last_offset, MAX(received_at) AS newest
FROM customers_changes
GROUP BY kafka_partition;
