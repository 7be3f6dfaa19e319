"""Agent: what an author declares, and runs as a process."""

from pantheon.worker.declaration import Declaration


class Agent(Declaration):
    """An agent of the mesh, class-free: decorate functions, then `agent.run()`.

    `metadata` (free keys such as `model`, or a function that makes them at start) goes into discovery.
    `max_concurrency` bounds the attempts that one process works on at once; the environment's MAX_CONCURRENCY wins.
    Raises TypeError for a name the wire cannot carry.
    """

    def run(self) -> None:
        """Run this agent as this process, until SIGTERM or Ctrl-C; ends the interpreter with its exit code."""
        # Late: a declaration must be importable without NATS and the rest.
        from pantheon.process.run import run_agent

        raise SystemExit(run_agent(self))
