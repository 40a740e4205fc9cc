-- Runs once, when PostgreSQL's volume is empty: Dagster's storage beside the shop.
CREATE DATABASE dagster;
