"""The store: Postgres, which holds the truth. All SQL of the orchestrator, and the only use of its client, asyncpg.

A module for each thing that is kept; each statement is a constant, with what it does and the index that it uses:

- `tasks` writes what transitions decide, a batch in one statement (`batch_statements`); `task_reader` reads what they
  decide on, `sweeps` what no message announces, `task_queries` what people ask.
- `columns` declares what a row of `tasks` is made of, once; `records` maps rows to the engine's values and back, and
  `run_builder` makes a run of all rows of a tree.
- `ready_queue`, `concurrency`, `workflows` (and schedules), `pauses`, `processes` and `process_lock`, `broker_marks`,
  `history`, `schema` keep what they are named for.
- `pool` has the connections and maps errors; `availability` tries again while Postgres is away.

What is always true:

- Accepted means committed here. What is published was committed before.
- A tree is written at the version it was decided on, which its root's row holds, or not at all. Of two processes that
  move on the same tree one finds its decision refused, reads the tree and decides again.
- A row changes status along `engine.state.TRANSITIONS`, which the statements mirror, and never once it has ended.
- A row names the process that has to publish it (`dispatched_by`); a root's final response was acknowledged when its
  `answered_at` is set.
- A tree is in `tasks`, in `tasks_history`, or for a moment in both, never in neither.
- The updates of a step's row are heap-only on its usual way from insert to end: no index's predicate names a column
  that changes on that way.
- Statements keep their plans on an empty, a fresh and a full table (`pool.SESSION_SETTINGS`, laterals with a limit).

Methods raise StoreError for what passes (Postgres is away or busy), PoisonedBatch for content that Postgres refuses;
any other error is a bug. Every part of the orchestrator may call the store. The store calls none of them: it takes and
makes values of the engine. A task's rows are written through `tasks.TaskStore` alone, after the engine has decided.
"""
