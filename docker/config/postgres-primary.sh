#!/bin/sh
# Runs once, when the primary's data is made: a role for the standby, and a slot that keeps what it has not had yet.
set -eu
password=$(cat /run/secrets/replication_password)
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set "password=$password" <<'SQL'
create role replicator with replication login password :'password';
select pg_create_physical_replication_slot('standby');
SQL
echo 'host replication replicator all scram-sha-256' >>"$PGDATA/pg_hba.conf"
