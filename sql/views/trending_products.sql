-- The ten most viewed products of each hour; ties settled by product id.
CREATE MATERIALIZED VIEW trending_products AS
SELECT window_start, product_id, view_count, last_view, rank FROM (
  SELECT window_start, product_id, view_count, last_view,
    ROW_NUMBER() OVER (PARTITION BY window_start ORDER BY view_count DESC, product_id) AS rank
  FROM product_views_by_window) AS ranked
WHERE rank <= 10;
