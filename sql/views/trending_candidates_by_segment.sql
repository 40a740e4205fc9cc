-- The thirty most viewed products of each hour and segment: the first ten are trending_by_segment, the others
-- stand in for what sells out.
CREATE MATERIALIZED VIEW trending_candidates_by_segment AS
SELECT window_start, segment, product_id, view_count, last_view, rank FROM (
  SELECT window_start, segment, product_id, view_count, last_view,
    ROW_NUMBER() OVER (PARTITION BY window_start, segment ORDER BY view_count DESC, product_id) AS rank
  FROM product_views_by_segment) AS ranked
WHERE rank <= 30;
