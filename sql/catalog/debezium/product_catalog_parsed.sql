-- Every change of product_catalog with the row it makes (NULL where it takes one away), whose row that is, and what is wrong with it
-- (NULL where nothing is). With Debezium's schemas or without; a message without a value has the id in its key.
CREATE VIEW product_catalog_parsed AS
SELECT kafka_partition, kafka_offset, received_at, payload, row_now, id AS product_id,
  CASE
    WHEN payload IS NOT NULL AND op IS NULL THEN 'not a change as Debezium writes them'
    WHEN payload IS NOT NULL AND op NOT IN ('c', 'r', 'u', 'd') THEN 'a change of another kind'
    WHEN op IN ('c', 'r', 'u') AND row_now IS NULL THEN 'no row after the change'
    WHEN row_now->>'description' = '__debezium_unavailable_value'
      THEN 'description was not sent: the table needs REPLICA IDENTITY FULL'
    WHEN id IS NULL OR id = '' THEN 'product_id missing'
    WHEN row_now->>'price' IS NOT NULL AND (row_now->>'price')::double precision IS NULL THEN 'price is not a number'
    WHEN row_now->>'in_stock' IS NOT NULL AND (row_now->>'in_stock')::boolean IS NULL THEN 'in_stock is neither true nor false'
    WHEN kafka_key IS NULL THEN 'no key: the newest message of each key is what is kept'
  END AS reason
FROM (
  SELECT kafka_partition, kafka_offset, received_at, kafka_key, payload, op,
    CASE WHEN jsonb_typeof(row_after) = 'object' THEN row_after END AS row_now,
    COALESCE(row_after->>'product_id', row_before->>'product_id', key_object->>'product_id')::varchar AS id
  FROM (
    SELECT kafka_partition, kafka_offset, received_at, kafka_key, payload, change->>'op' AS op,
      change->'before' AS row_before, change->'after' AS row_after, COALESCE((key_object->'payload'), key_object) AS key_object
    FROM (
      SELECT kafka_partition, kafka_offset, received_at, kafka_key, payload, key_object, COALESCE((body->'payload'), body) AS change
      FROM (
        SELECT kafka_partition, kafka_offset, received_at, kafka_key, payload,
          CASE WHEN convert_from(payload, 'UTF8') IS JSON OBJECT THEN convert_from(payload, 'UTF8')::jsonb END AS body,
          CASE WHEN convert_from(kafka_key, 'UTF8') IS JSON OBJECT THEN convert_from(kafka_key, 'UTF8')::jsonb END AS key_object
        FROM product_catalog_changes
      ) AS messages
    ) AS opened
  ) AS read
) AS changes;
