"""DBOS on Postgres: a workflow of five steps."""
