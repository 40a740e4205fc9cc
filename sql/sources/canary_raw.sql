-- Canaries: messages of the platform's own, in a topic of their own, each followed until Redis has it.
CREATE SOURCE canary_raw (payload BYTEA)
INCLUDE partition AS kafka_partition INCLUDE offset AS kafka_offset INCLUDE timestamp AS received_at
WITH (
  connector = 'kafka',
  topic = 'recs_canary',
  properties.bootstrap.server = '${kafka_bootstrap_servers}',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE BYTES;
