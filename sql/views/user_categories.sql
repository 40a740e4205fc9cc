-- Each shopper's three most viewed categories of the last 24 hours; ties settled by name.
CREATE MATERIALIZED VIEW user_categories AS
SELECT user_id, category, view_count, rank FROM (
  SELECT user_id, category, view_count,
    ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY view_count DESC, category) AS rank
  FROM (
    SELECT r.user_id, p.category, SUM(r.view_count)::bigint AS view_count
    FROM recent_views r JOIN product_catalog p ON r.product_id = p.product_id
    WHERE p.category IS NOT NULL
    GROUP BY r.user_id, p.category) AS counted) AS ranked
WHERE rank <= 3;
