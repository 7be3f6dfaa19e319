#!/bin/sh
# Runs once, when the first primary's data is made: a role for the standby, which makes its slot itself.
set -eu
password=$(cat /run/secrets/replication_password)
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set "password=$password" <<'SQL'
create role replicator with replication login password :'password';
SQL
echo 'host replication replicator all scram-sha-256' >>"$PGDATA/pg_hba.conf"
