-- Every message of user_activity with its JSON object (NULL where it is none) and what is wrong with it
-- (NULL where nothing is): one judgement for both the typed view and the dead letters.
-- A cast that fails gives NULL. `->>` gives text, so "user_id": "7" is as good as 7.
CREATE VIEW user_activity_parsed AS
SELECT kafka_partition, kafka_offset, received_at, payload, event,
  CASE
    WHEN event IS NULL THEN 'not a JSON object'
    WHEN LENGTH(body) > 65536 THEN 'larger than 64 KiB'
    WHEN event->>'event_type' IS NULL THEN 'event_type missing'
    WHEN jsonb_typeof((event->'event_type')) <> 'string' THEN 'event_type is not text'
    WHEN (event->>'user_id')::bigint IS NULL THEN 'user_id missing or not an integer'
    WHEN (event->>'timestamp')::timestamptz IS NULL THEN 'timestamp missing or unreadable'
    WHEN (event->>'timestamp')::timestamptz > received_at + INTERVAL '5 minutes' THEN 'timestamp in the future'
    WHEN (event->>'event_type') IN ('page_view', 'click', 'add_to_cart') AND (event->>'product_id') IS NULL
      THEN 'product_id missing'
    WHEN jsonb_typeof((event->'product_id')) IN ('object', 'array', 'boolean') THEN 'product_id is not text'
  END AS reason
FROM (
  SELECT kafka_partition, kafka_offset, received_at, payload, convert_from(payload, 'UTF8') AS body,
    CASE WHEN convert_from(payload, 'UTF8') IS JSON OBJECT THEN convert_from(payload, 'UTF8')::jsonb END AS event
  FROM user_activity_raw
) AS messages;
