-- The thirty most viewed products of each hour; ties settled by product id. The first ten are trending_products,
-- the others stand in for what sells out.
CREATE MATERIALIZED VIEW trending_candidates AS
SELECT window_start, product_id, view_count, last_view, rank FROM (
  SELECT window_start, product_id, view_count, last_view,
    ROW_NUMBER() OVER (PARTITION BY window_start ORDER BY view_count DESC, product_id) AS rank
  FROM product_views_by_window) AS ranked
WHERE rank <= 30;
