-- How far the changes of product_catalog are read, partition by partition: a RisingWave does not say so by itself.
CREATE MATERIALIZED VIEW product_catalog_changes_progress AS
SELECT kafka_partition, MAX(kafka_offset::bigint) AS last_offset, MAX(received_at) AS newest
FROM product_catalog_changes
GROUP BY kafka_partition;
