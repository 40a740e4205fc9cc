-- recs:heartbeat:<version>:<name>: the newest canary that came through from PostgreSQL.
CREATE SINK heartbeat_sink AS
SELECT 'recs:heartbeat:${version}:' || name AS key, name, canary
FROM heartbeat
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
