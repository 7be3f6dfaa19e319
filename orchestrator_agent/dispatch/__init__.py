"""Dispatch: which agent gets a task, and whether it may go there now.

Flow control is a window per agent: about twice what its live instances work on at once is in the broker, the rest is in
Postgres as `ready`, where priority, fairness between requesters and rate limits order it.

- `router` chooses an agent for a task: by load, response time and failures (`agent_health`), within what the step
  requires. It is the engine's Directory, asked in the middle of a transition: in memory, without I/O.
- `admission` is what the router asks about flow control: whether the agent's window has a slot (`window`, sized by
  `capacity`), whether the limits have a token (`rate_limits`), whether other rows are queued before this one.
- A row that gets no slot joins a queue (`queues` names it) when it is written; `store.ready_queue` has its position.
- `queue_dispatcher` takes rows from the queues when slots are free, and has the message loops dispatch them.
- `redis_state` shares what several orchestrators should agree on: tokens of rate limits, and circuits that opened
  (`shared_circuits`).
- `wait_reasons` explains to people why a row is still ready.

A row that is ready is dispatched at once; or it is queued (it has a `position`); or it is parked (it has a queue and no
position) while its task or workflow is paused; or no agent serves it, and `expires_at` is when the wait is over.

What is always true:

- A queued row is overtaken by no row that would join its queue behind it: while a queue has rows, only rows that were
  taken from it pass.
- Windows, health and circuits are each process's own, in memory, and soft: what goes astray is corrected by what the
  broker holds for the agent. Nothing that must be right depends on them: attempts fence.
- Without Redis every process has its share of each limit and its own circuits.

The engine calls the router through its Directory, the store calls admission when a batch is written, the reconciler and
the composition root call the rest. Dispatch itself writes no task: it posts events, and a transition dispatches.
"""
