#!/bin/sh
# A standby that follows `postgres`: copies the primary's data the first time, then streams. To make it the primary:
#   docker compose -f docker/compose.cluster.yml exec postgres_standby pg_ctl promote
set -eu
umask 077
PGPASSFILE=/tmp/pgpass
export PGPASSFILE
printf '*:*:*:replicator:%s\n' "$(cat /run/secrets/replication_password)" >"$PGPASSFILE"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # Beside, then renamed: an unfinished copy of a start that was interrupted is no data.
    rm -rf "$PGDATA" "$PGDATA.copy"
    mkdir -p "$(dirname "$PGDATA")"
    # --write-recovery-conf: standby.signal, and where the primary is.
    pg_basebackup --dbname='host=postgres user=replicator application_name=postgres_standby connect_timeout=10' \
        --pgdata="$PGDATA.copy" --wal-method=stream --checkpoint=fast --slot=standby --write-recovery-conf
    mv "$PGDATA.copy" "$PGDATA"
fi
exec postgres "$@"
