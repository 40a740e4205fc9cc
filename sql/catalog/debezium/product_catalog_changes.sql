-- Changes of product_catalog, as Debezium writes them: as raw bytes (see user_activity_raw).
CREATE SOURCE product_catalog_changes (payload BYTEA)
INCLUDE key AS kafka_key
INCLUDE partition AS kafka_partition INCLUDE offset AS kafka_offset INCLUDE timestamp AS received_at
WITH (
  connector = 'kafka',
  topic = 'shop.public.product_catalog',
  properties.bootstrap.server = '${kafka_bootstrap_servers}',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE BYTES;
