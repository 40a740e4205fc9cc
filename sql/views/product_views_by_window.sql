-- Page views of each product in each hour. A window is kept 48 hours and goes whole.
CREATE MATERIALIZED VIEW product_views_by_window AS
SELECT window_start, product_id, COUNT(*) AS view_count, MAX(event_time) AS last_view
FROM TUMBLE(user_activity, event_time, INTERVAL '1 hour')
WHERE event_type = 'page_view' AND window_start > NOW() - INTERVAL '48 hours'
GROUP BY window_start, product_id;
