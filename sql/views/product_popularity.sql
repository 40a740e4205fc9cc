-- Page views of each product over the last 24 closed hours. Closed windows only: the running hour would
-- move every candidate list with every click.
CREATE MATERIALIZED VIEW product_popularity AS
SELECT product_id, SUM(view_count)::bigint AS view_count FROM product_views_by_window
WHERE window_start <= NOW() - INTERVAL '1 hour' AND window_start > NOW() - INTERVAL '25 hours'
GROUP BY product_id;
