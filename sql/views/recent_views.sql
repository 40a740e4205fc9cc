-- What each shopper viewed in the last 24 hours, and how often. COUNT alone: a MAX over rows that expire is dear.
CREATE MATERIALIZED VIEW recent_views AS
SELECT user_id, product_id, COUNT(*) AS view_count FROM user_activity
WHERE event_type = 'page_view' AND event_time > NOW() - INTERVAL '24 hours'
GROUP BY user_id, product_id;
