-- What shoppers bought, as raw bytes (see user_activity_raw).
CREATE SOURCE purchases_raw (payload BYTEA)
INCLUDE partition AS kafka_partition INCLUDE offset AS kafka_offset INCLUDE timestamp AS received_at
WITH (
  connector = 'kafka',
  topic = 'purchases',
  properties.bootstrap.server = '${kafka_bootstrap_servers}',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE BYTES;
