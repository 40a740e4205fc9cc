-- Trending and recommendations with the meaning of sql/views/, as one would write them in PostgreSQL.
-- Each is one row a document; `recommendations` reads a popularity of its own, so that neither waits for the other.

CREATE TABLE events (event_type text NOT NULL, user_id bigint NOT NULL, product_id text, event_time timestamptz NOT NULL);
CREATE INDEX events_viewed ON events (event_time) WHERE event_type = 'page_view';

CREATE TABLE product_catalog (product_id text PRIMARY KEY, category text, in_stock boolean NOT NULL DEFAULT true);
CREATE INDEX product_catalog_category ON product_catalog (category);

CREATE TABLE published (name text, key text, document text NOT NULL, PRIMARY KEY (name, key));

CREATE MATERIALIZED VIEW trending_products AS
SELECT to_char(window_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS key,
  json_build_object(
    'window_start', window_start,
    'products', json_agg(json_build_object('product_id', product_id, 'view_count', views) ORDER BY rank),
    'as_of', to_char(max(last_view) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text AS document
FROM (
  SELECT *, row_number() OVER (PARTITION BY window_start ORDER BY views DESC, product_id) AS rank
  FROM (
    SELECT date_trunc('hour', event_time) AS window_start, product_id, count(*) AS views, max(event_time) AS last_view
    FROM events
    WHERE event_type = 'page_view' AND event_time >= date_trunc('hour', now()) - interval '47 hours'
    GROUP BY 1, 2) AS counted) AS ranked
WHERE rank <= 10
GROUP BY window_start;
CREATE UNIQUE INDEX ON trending_products (key);

CREATE MATERIALIZED VIEW candidates AS
SELECT category, product_id, rank
FROM (
  SELECT p.category, p.product_id,
    row_number() OVER (PARTITION BY p.category ORDER BY coalesce(v.views, 0) DESC, p.product_id) AS rank
  FROM product_catalog AS p
  LEFT JOIN (
    SELECT product_id, count(*) AS views FROM events
    WHERE event_type = 'page_view' AND event_time < date_trunc('hour', now())
      AND event_time >= date_trunc('hour', now()) - interval '24 hours'
    GROUP BY product_id) AS v USING (product_id)
  WHERE p.in_stock AND p.category IS NOT NULL) AS ranked
WHERE rank <= 50;
CREATE UNIQUE INDEX ON candidates (category, rank);

CREATE MATERIALIZED VIEW user_recommendations AS
WITH recent AS MATERIALIZED (
  SELECT user_id, product_id, count(*) AS views, max(event_time) AS last_view FROM events
  WHERE event_type = 'page_view' AND event_time > now() - interval '24 hours'
  GROUP BY user_id, product_id),
top AS (
  SELECT user_id, category, rank FROM (
    SELECT r.user_id, p.category,
      row_number() OVER (PARTITION BY r.user_id ORDER BY sum(r.views) DESC, p.category) AS rank
    FROM recent AS r JOIN product_catalog AS p USING (product_id)
    WHERE p.category IS NOT NULL
    GROUP BY r.user_id, p.category) AS ranked
  WHERE rank <= 3),
unseen AS (
  SELECT t.user_id, t.rank, c.product_id, row_number() OVER (PARTITION BY t.user_id, t.rank ORDER BY c.rank) AS place
  FROM top AS t
  JOIN candidates AS c USING (category)
  LEFT JOIN recent AS r ON r.user_id = t.user_id AND r.product_id = c.product_id
  WHERE r.product_id IS NULL),
listed AS (
  SELECT user_id, product_id,
    row_number() OVER (PARTITION BY user_id ORDER BY place > (ARRAY[10, 6, 4])[rank], rank, place) AS place
  FROM unseen WHERE place <= 20)
SELECT l.user_id::text AS key,
  json_build_object(
    'user_id', l.user_id,
    'recommended_products', json_agg(l.product_id ORDER BY l.place),
    'as_of', to_char(n.last_view AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text AS document
FROM listed AS l
JOIN (SELECT user_id, max(last_view) AS last_view FROM recent GROUP BY user_id) AS n USING (user_id)
WHERE l.place <= 20
GROUP BY l.user_id, n.last_view;
CREATE UNIQUE INDEX ON user_recommendations (key);
