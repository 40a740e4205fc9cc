-- The shop's PostgreSQL database, read through logical replication.
CREATE SOURCE shop WITH (
  connector = 'postgres-cdc',
  hostname = '${postgres_host}',
  port = '${postgres_port}',
  username = '${postgres_user}',
  password = '${postgres_password}',
  database.name = '${postgres_database}',
  schema.name = 'public',
  slot.name = '${replication_slot}',
  publication.name = '${publication}'
);
