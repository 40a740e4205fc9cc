-- recs:user_recommendations:<version>:<user id>
CREATE SINK user_recommendations_sink AS
SELECT 'recs:user_recommendations:${version}:' || user_id::varchar AS key, user_id, recommended_products, as_of
FROM user_recommendations
WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}')
FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;
