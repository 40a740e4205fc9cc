-- The three categories side by side: one row a shopper.
CREATE MATERIALIZED VIEW user_top_categories AS
SELECT user_id,
  MAX(category) FILTER (WHERE rank = 1) AS first,
  MAX(category) FILTER (WHERE rank = 2) AS second,
  MAX(category) FILTER (WHERE rank = 3) AS third
FROM user_categories GROUP BY user_id;
