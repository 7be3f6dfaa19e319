"""Maintenance: what no message will wake. Time that has passed, processes that died, messages that the broker lost.

The same code recovers at start and all the time after. Every orchestrator runs all of it; where one at a time is
enough, an advisory lock in Postgres chooses which, for one round (there is no leader).

- `reconciler` sweeps for rows that are due (`due_rows`) and posts them as events to the message loops: at known moments
  (a retry, a deadline), when the registry changed, and in a slow jittered sweep. Pauses and workflows that people
  changed through another orchestrator (`operator_changes`) it learns too.
- `concurrency_keys` admits roots that share a key, and starts the tasks of schedules.
- `adoption` keeps this process's lock, publishes what a dead process may not have published, and takes over its rows.
- `broker_watch` notices that the broker lost messages or a stream, `purges` that an operator purged one; what was lost
  is published again, the same attempts. `broker_outages` remembers when the broker was away: no agent is blamed for it.
- `history_archiver` moves trees that ended into the history and drops what is too old; `object_cleaner` removes large
  values whose task is gone.

What is always true:

- Nothing here decides about a task: it posts what it found, and the versions of trees settle races. So a sweep may find
  what another has found too, and do no harm.
- Whatever a sweep misses because a server is away, the next one finds: each round starts from what Postgres holds, and
  no error ends a loop.
- To publish again is harmless: an attempt keeps its number, and the broker and the agents drop what they have seen.
- Rows of a dead process are published before they are taken over: if the adopter dies in between, the next one adopts.

The composition root makes and starts these parts; operators reach the reconciler through `operations`. No other part of
the orchestrator depends on them.
"""
