-- Every change of customers with the row it makes (NULL where it takes one away), whose row that is, and what is wrong with it
-- (NULL where nothing is). The id is the row's own, or where it has none that of the message's key: text, or an object.
CREATE VIEW customers_parsed AS
SELECT kafka_partition, kafka_offset, received_at, payload, row_now, id::bigint AS user_id,
  CASE
    WHEN payload IS NOT NULL AND row_now IS NULL THEN 'not a JSON object'
    WHEN id::bigint IS NULL THEN 'user_id missing or not an integer'
    WHEN kafka_key IS NULL THEN 'no key: the newest message of each key is what is kept'
  END AS reason
FROM (
  SELECT kafka_partition, kafka_offset, received_at, kafka_key, payload, body AS row_now,
    COALESCE(body->>'user_id', key_object->>'user_id',
      CASE WHEN key_object IS NULL THEN REPLACE(key_text, '"', '') END)::varchar AS id
  FROM (
    SELECT kafka_partition, kafka_offset, received_at, kafka_key, payload, key_text,
      CASE WHEN convert_from(payload, 'UTF8') IS JSON OBJECT THEN convert_from(payload, 'UTF8')::jsonb END AS body,
      CASE WHEN key_text IS JSON OBJECT THEN key_text::jsonb END AS key_object
    FROM (
      SELECT kafka_partition, kafka_offset, received_at, kafka_key, payload, convert_from(kafka_key, 'UTF8') AS key_text
      FROM customers_changes
    ) AS messages
  ) AS read
) AS changes;
