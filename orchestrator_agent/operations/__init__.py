"""Operations: what people do to tasks and ask of the orchestrator.

- `runner` does the mesh's own task types: cancel, pause, resume, signal, approve, redrive, put_workflow. (`mesh.retry`
  and `mesh.replay` are planned as workflows are, in `intake`.)
- `queries` replies to reads of the orchestrator's state, by NATS request-reply.
- `dead_letters` reads the messages that could not be worked on, sends them again, and makes one of each attempt that
  agents died on.

An operation is a root task: it is accepted, it begins, it is applied (to a task by a run event, to a workflow or an
agent by a note in the database), and its outcome becomes its response. One that a dead process had begun is begun
again by a sweep.

What is always true:

- An operation is idempotent by its task id: done twice, it changes something once, and its outcome is the same.
- It changes another task only by a run event, through the inbox, so that it is decided on in the order of all events.
- A refusal of the engine is the operation's error, not that of the task which it is about.
- While Postgres or the broker is away an operation waits and begins again; it never ends because of that.
- Queries change nothing, and any orchestrator may reply.

`intake` begins operations when their tasks are committed, `maintenance` begins them again; people and other programs
reach them by requests and queries on the broker alone.
"""
