-- A row that the platform itself writes, followed until Redis has it.
CREATE TABLE heartbeat (
  name VARCHAR PRIMARY KEY,
  canary VARCHAR
) FROM shop TABLE 'public.recs_heartbeat';
