-- Every change of the catalog that could not be used, with the reason and its raw bytes, for thirty days.
CREATE MATERIALIZED VIEW catalog_dead_letters AS
SELECT 'product_catalog' AS relation, kafka_partition, kafka_offset, received_at, reason, payload
FROM product_catalog_parsed
WHERE reason IS NOT NULL AND received_at > NOW() - INTERVAL '30 days'
UNION ALL
SELECT 'customers' AS relation, kafka_partition, kafka_offset, received_at, reason, payload
FROM customers_parsed
WHERE reason IS NOT NULL AND received_at > NOW() - INTERVAL '30 days';
