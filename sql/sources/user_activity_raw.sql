-- What shoppers do, as raw bytes: parsing is SQL of our own, so that a message that does not parse
-- becomes a dead letter instead of an error in a log.
CREATE SOURCE user_activity_raw (payload BYTEA)
INCLUDE partition AS kafka_partition INCLUDE offset AS kafka_offset INCLUDE timestamp AS received_at
WITH (
  connector = 'kafka',
  topic = 'user_activity',
  properties.bootstrap.server = '${kafka_bootstrap_servers}',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE BYTES;
