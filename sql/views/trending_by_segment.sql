-- The ten most viewed products of each hour and segment (age band and country).
CREATE MATERIALIZED VIEW trending_by_segment AS
SELECT window_start, segment, product_id, view_count, last_view, rank
FROM trending_candidates_by_segment
WHERE rank <= 10;
