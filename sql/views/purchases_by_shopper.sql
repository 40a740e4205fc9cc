-- What each shopper bought in ninety days, each product once, the latest hundred: pairs are counted within
-- a shopper, so a shopper's list must be bounded.
CREATE MATERIALIZED VIEW purchases_by_shopper AS
SELECT user_id, product_id, last_purchase FROM (
  SELECT user_id, product_id, last_purchase,
    ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY last_purchase DESC, product_id) AS rank
  FROM (
    SELECT user_id, product_id, MAX(event_time) AS last_purchase FROM purchases
    WHERE event_time > NOW() - INTERVAL '90 days'
    GROUP BY user_id, product_id) AS bought) AS ranked
WHERE rank <= 100;
