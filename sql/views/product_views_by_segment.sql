-- Page views of each product in each hour and segment.
CREATE MATERIALIZED VIEW product_views_by_segment AS
SELECT window_start, segment, product_id, COUNT(*) AS view_count, MAX(event_time) AS last_view
FROM TUMBLE(segment_views, event_time, INTERVAL '1 hour')
WHERE window_start > NOW() - INTERVAL '48 hours'
GROUP BY window_start, segment, product_id;
