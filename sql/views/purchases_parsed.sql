-- Every message of purchases with its JSON object and what is wrong with it (see user_activity_parsed).
CREATE VIEW purchases_parsed AS
SELECT kafka_partition, kafka_offset, received_at, payload, event,
  CASE
    WHEN event IS NULL THEN 'not a JSON object'
    WHEN LENGTH(body) > 65536 THEN 'larger than 64 KiB'
    WHEN event->>'event_type' IS NULL THEN 'event_type missing'
    WHEN (event->>'event_type') <> 'purchase' THEN 'event_type is not purchase'
    WHEN (event->>'user_id')::bigint IS NULL THEN 'user_id missing or not an integer'
    WHEN (event->>'timestamp')::timestamptz IS NULL THEN 'timestamp missing or unreadable'
    WHEN (event->>'timestamp')::timestamptz > received_at + INTERVAL '5 minutes' THEN 'timestamp in the future'
    WHEN event->>'product_id' IS NULL THEN 'product_id missing'
    WHEN jsonb_typeof((event->'product_id')) IN ('object', 'array', 'boolean') THEN 'product_id is not text'
    WHEN event->>'quantity' IS NOT NULL AND (event->>'quantity')::bigint IS NULL THEN 'quantity is not an integer'
    WHEN event->>'price' IS NOT NULL AND (event->>'price')::double precision IS NULL THEN 'price is not a number'
  END AS reason
FROM (
  SELECT kafka_partition, kafka_offset, received_at, payload, convert_from(payload, 'UTF8') AS body,
    CASE WHEN convert_from(payload, 'UTF8') IS JSON OBJECT THEN convert_from(payload, 'UTF8')::jsonb END AS event
  FROM purchases_raw
) AS messages;
