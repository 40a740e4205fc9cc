-- recs:canary:<version>:<canary>: each canary of the last five minutes that came through.
CREATE SINK canary_sink AS
SELECT 'recs:canary:${version}:' || canary AS key, canary, COUNT(*) AS seen
FROM (
  SELECT convert_from(payload, 'UTF8') AS canary FROM canary_raw WHERE received_at > NOW() - INTERVAL '5 minutes'
) AS flights
WHERE LENGTH(canary) = 32
GROUP BY canary
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
