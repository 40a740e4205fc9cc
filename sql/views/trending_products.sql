-- The ten most viewed products of each hour; ties settled by product id.
CREATE MATERIALIZED VIEW trending_products AS
SELECT window_start, product_id, view_count, last_view, rank
FROM trending_candidates
WHERE rank <= 10;
