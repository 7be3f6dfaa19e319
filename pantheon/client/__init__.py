"""Client: sends tasks to the orchestrator and waits for their outcome, over NATS alone.

- `mesh`: `Mesh`, the public client: `submit`, `wait`, `run`, `watch`, `query`.
- `operations`: cancel, pause, signal, approve, retry, replay and more: each is a task of the orchestrator.
- `watch`: the events and the progress of one task's tree.

States of a task that a client submitted: sent (and sent again until it is accepted), accepted (committed in Postgres),
ended. A client that asks for a task of another process reads its row instead.

Invariants:

- The same task_id is sent again until its acceptance, or its response, has come; that never runs a task twice.
- `submit` returns only after acceptance; NotAccepted means that it is unknown whether the task will run.
- A `wait` that timed out may be called again: the task goes on.
- A client loses the oldest events of a watch before it loses memory.

Who may call it: applications (`from pantheon import Mesh`), the command line, and `pantheon.worker.delegation`, which
uses one over the agent's own connection. It imports `pantheon.bus`, `pantheon.runtime` and `protocol`.
"""
