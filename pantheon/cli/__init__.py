"""The command line: `pantheon up | run | tasks | task | agents | workflows | replay | dead-letters | demo | …`.

`main` is the console script's entry point, and `python -m pantheon` the same. `app` puts the commands together and
prints every error as one line on stderr and an exit status of `exit_codes.ExitCode`; no command exits by itself.

A command is a plain function in `commands/`, whose parameters declare its options. It reads its input (`input/`),
finds the mesh (`connection`), calls `pantheon.Mesh`, and prints (`render/`): the result to stdout, everything else to
stderr. So with `--json`, stdout holds one JSON document and nothing else. Commands do not import one another: what
several of them need is a module here.

    connection, running   which mesh a command connects to; its coroutine, Ctrl-C and SIGTERM
    operations, outcome   operations of the mesh with their refusals; the error and status of a task that failed
    local_mesh            what `up` and `demo` share to start a mesh on this machine (`pantheon.stack` does it)
    workflow_check        workflow files checked by the orchestrator's own reader, in a process of its own
    input/                payload arguments, request folders, ids of tasks
    progress/             the tree of a task: kept from events and rows, drawn live, written as lines, explained
    render/               listings, units, the files of results, the two streams

Start-up time is part of the interface. NATS, the orchestrator, migrations and the embedded stack are imported inside
the functions that need them: `pantheon --help` imports none of these.

Nothing outside of this package imports it. It imports `protocol` and the rest of `pantheon`, never `orchestrator_agent`
or `agents`, which run as processes of their own.
"""

import sys


def main() -> int:
    """Run the command line of this process; returns the exit status."""
    try:
        from pantheon.cli.app import main as run
    except KeyboardInterrupt:
        # The imports take half a second, in which Ctrl-C may come already.
        sys.stderr.write("pantheon: interrupted\n")
        return 130
    return run()
