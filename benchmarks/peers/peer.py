"""Peers: what each of them is installed from and which processes it runs in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """An engine that is measured beside ours. Commands are arguments of its own environment's Python."""

    name: str
    title: str
    requirements: tuple[str, ...]
    # One process each; they are up when they take the first workflow.
    workers: tuple[tuple[str, ...], ...]
    # Packages of npm, beside its Python's, in `node_modules` of its environment.
    packages: tuple[str, ...] = ()
    # Servers of its own, started before everything else, with free ports (BENCH_PORTS) and a folder (BENCH_FOLDER).
    servers: tuple[tuple[str, ...], ...] = ()
    # Load is divided among them, one at a time is measured at the first.
    drivers: tuple[tuple[str, ...], ...] = ((),)
    # Of our load's workflows it gets one in so many: a round then takes as long as ours or a little more.
    load_divisor: int = 5
    # Where its program is, in a folder of its name, or of the engine's where it is measured in several ways.
    programs: Path = PROGRAMS
    engine: str = ""

    @property
    def folder(self) -> str:
        return self.engine or self.name

    @property
    def program(self) -> Path:
        return self.programs / self.folder / "program.py"


_CELERY_WORKER = (
    *("-m", "celery", "-A", "program", "worker", "--concurrency", "2", "--loglevel", "WARNING"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)
_TASKIQ_WORKER = ("-m", "taskiq", "worker", "program:broker", "--workers", "2", "--log-level", "WARNING")
_PROCRASTINATE_WORKER = ("-m", "procrastinate", "--app", "program.app", "worker", "--concurrency", "10")


def _restate(name: str, title: str, workflow: str) -> Peer:
    """In one process for each core, as the others; the server has its own."""
    return Peer(
        name,
        title,
        ("restate-sdk==1.2.0", "granian==2.8.9", "uvloop==0.23.0", "aiohttp==3.14.3"),
        workers=(),
        packages=("@restatedev/restate-server@1.7.12",),
        servers=(("server",), ("service",)),
        drivers=(("drive", workflow),),
        load_divisor=10,
        engine="restate",
    )


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("celery", "Celery (Valkey)", ("celery[redis]==5.7.0", "redis==8.1.0"), (_CELERY_WORKER,)),
        Peer(
            "dbos",
            "DBOS (Postgres)",
            ("dbos==3.4.0", "psycopg-binary==3.3.9"),
            workers=(),
            drivers=(("bench-1",), ("bench-2",)),
            load_divisor=10,
        ),
        Peer(
            "taskiq",
            "taskiq (JetStream)",
            (
                "taskiq==0.13.0",
                "taskiq-nats==0.7.0",
                "taskiq-pipelines==0.1.4",
                "taskiq-redis==1.2.4",
                "uvloop==0.23.0",
            ),
            (_TASKIQ_WORKER,),
        ),
        Peer(
            "procrastinate",
            "procrastinate (Postgres)",
            ("procrastinate==3.10.0", "psycopg[binary]==3.3.9"),
            (_PROCRASTINATE_WORKER, _PROCRASTINATE_WORKER),
            load_divisor=10,
        ),
        _restate("restate_calls", "Restate, five calls", "calls"),
        _restate("restate_runs", "Restate, five ctx.run", "runs"),
    )
}
