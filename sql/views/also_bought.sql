-- Who bought this also bought: the twenty products that most of its buyers bought too, at least two of them.
CREATE MATERIALIZED VIEW also_bought AS
SELECT product_id, other_product_id, shoppers, last_purchase, rank FROM (
  SELECT product_id, other_product_id, shoppers, last_purchase,
    ROW_NUMBER() OVER (PARTITION BY product_id ORDER BY shoppers DESC, other_product_id) AS rank
  FROM (
    SELECT a.product_id, b.product_id AS other_product_id, COUNT(*) AS shoppers,
      MAX(b.last_purchase) AS last_purchase
    FROM purchases_by_shopper a
    JOIN purchases_by_shopper b ON a.user_id = b.user_id AND a.product_id <> b.product_id
    GROUP BY a.product_id, b.product_id) AS pairs
  WHERE shoppers >= 2) AS ranked
WHERE rank <= 20;
