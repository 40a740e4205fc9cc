-- The candidates as JSON: what the lookup join of user_recommendations reads.
CREATE MATERIALIZED VIEW category_lists AS
SELECT category, to_jsonb(products) AS products FROM category_candidates;
