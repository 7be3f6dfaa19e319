"""Process: one running instance of an agent: its parts made, started and stopped in order.

- `agent_process`: `AgentProcess`, the composition root. It starts the parts in order (health, connection, publisher,
  discovery, configuration, worker, control orders, micro service, presence) and stops them in the reverse order.
- `workload`: what a process does with tasks: a Worker's, or the orchestrator's message loops instead.
- `presence`: the registry entry, the heartbeats, the events that an instance came and left.
- `loop_watchdog`: a thread that represents the instance while its event loop is blocked.
- `run`: signals, garbage collection, exit code. `loading`: the Agent in a module that a person named.

States of a process: connecting (for as long as NATS is away), starting, ready, ending. `/readyz` reports them.

Invariants:

- An instance is registered only when it can take tasks, and marked as draining before it stops taking them.
- Heartbeats and control orders go on while it drains: what it finishes must not seem lost, and can be cancelled.
- What was started is closed, also when a later part fails to start; a second signal ends the process at once.
- No part gets a callback after it was made, and none closes what another one made.

Who may call it: `Agent.run` (late, so that a declaration needs none of this), the command line, and the orchestrator,
which is an agent with a workload of its own. It imports everything else of the kit but `cli` and `stack`.
"""
