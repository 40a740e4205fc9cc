-- The canaries of the last five minutes.
CREATE MATERIALIZED VIEW canaries AS
SELECT convert_from(payload, 'UTF8') AS canary, kafka_partition, kafka_offset, received_at
FROM canary_raw
WHERE received_at > NOW() - INTERVAL '5 minutes';
