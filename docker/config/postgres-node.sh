#!/bin/sh
# Starts one of the cluster's two Postgres servers; OTHER is the other's host. A server with data is what its data makes it,
# the primary or a standby. A server without data copies a primary and follows it; FIRST makes the first primary, where
# there is none. To make a standby the primary: pg_ctl promote, see docs/containers.md.
set -eu
PGPASSFILE=/tmp/pgpass
export PGPASSFILE
(umask 077 && printf '*:*:*:replicator:%s\n' "$(cat /run/secrets/replication_password)" >"$PGPASSFILE")
other="host=$OTHER user=replicator application_name=$(hostname) connect_timeout=5"

sql() { psql --no-psqlrc --no-align --tuples-only --dbname="$other dbname=postgres" --command="$1"; }
other_is_primary() { [ "$(sql 'select pg_is_in_recovery()' 2>/dev/null)" = f ]; }

if [ -s "$PGDATA/PG_VERSION" ]; then
    # Two primaries are two truths. A former primary that comes back after the other has been promoted stays away; also
    # while the other is being restarted.
    if [ ! -e "$PGDATA/standby.signal" ] && other_is_primary; then
        touch "$PGDATA/superseded"
    fi
    if [ -e "$PGDATA/superseded" ]; then
        echo "$OTHER has become the primary: remove this server's volume, and it follows as a standby" >&2
        exit 1
    fi
elif [ -z "${FIRST:-}" ] || other_is_primary; then
    slot=follows_$OTHER
    sql "select pg_create_physical_replication_slot('$slot')
         where not exists (select from pg_replication_slots where slot_name = '$slot')" >/dev/null
    # Beside, then renamed: an unfinished copy of a start that was interrupted is no data.
    rm -rf "$PGDATA" "$PGDATA.copy"
    mkdir -p "$(dirname "$PGDATA")"
    # --write-recovery-conf: standby.signal, and where the primary is.
    pg_basebackup --dbname="$other" --pgdata="$PGDATA.copy" \
        --wal-method=stream --checkpoint=fast --slot="$slot" --write-recovery-conf
    mv "$PGDATA.copy" "$PGDATA"
fi
# The image's own entry point makes the first primary's data.
exec docker-entrypoint.sh postgres "$@"
