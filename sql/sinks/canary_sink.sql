-- recs:canary:<version>:<canary>: each canary of the last five minutes that came through.
CREATE SINK canary_sink AS
SELECT 'recs:canary:${version}:' || canary AS key, canary, COUNT(*) AS seen
FROM canaries
WHERE LENGTH(canary) = 32
GROUP BY canary
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
