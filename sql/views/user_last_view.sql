-- When each shopper last viewed a product, within the last 24 hours. Every view moves it, so every view
-- makes the shopper's list be looked up afresh.
CREATE MATERIALIZED VIEW user_last_view AS
SELECT user_id, MAX(event_time) AS last_view FROM user_activity
WHERE event_type = 'page_view' AND event_time > NOW() - INTERVAL '24 hours'
GROUP BY user_id;
