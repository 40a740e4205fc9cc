-- The fifty most popular products in stock of each category: the bounded lists that recommendations are cut from.
CREATE MATERIALIZED VIEW category_candidates AS
SELECT category, array_agg(product_id ORDER BY rank) AS products FROM (
  SELECT category, product_id, rank FROM (
    SELECT p.category, p.product_id,
      ROW_NUMBER() OVER (PARTITION BY p.category ORDER BY COALESCE(v.view_count, 0) DESC, p.product_id) AS rank
    FROM product_catalog p LEFT JOIN product_popularity v ON p.product_id = v.product_id
    WHERE p.in_stock AND p.category IS NOT NULL) AS ranked
  WHERE rank <= 50) AS bounded
GROUP BY category;
