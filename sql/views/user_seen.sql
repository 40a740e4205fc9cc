-- The products each shopper viewed in the last 24 hours as one array. Bounded: beyond 2,000 different
-- products a day the shopper is a robot.
CREATE MATERIALIZED VIEW user_seen AS
SELECT user_id, array_agg(product_id ORDER BY product_id) AS seen FROM (
  SELECT user_id, product_id,
    ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY view_count DESC, product_id) AS rank
  FROM recent_views) AS ranked
WHERE rank <= 2000
GROUP BY user_id;
