"""Runtime: what happens to runs is decided, written and published.

- `response_loop` takes responses off the wire, and entries of the inbox, in batches. `responses` settles a batch:
  `response_reader` makes run events of messages, `transitions` has the engine decide on each run and writes all
  decisions in one statement, `outbox` publishes them; then the batch is acknowledged.
- `run_cache` has the trees of open roots in memory. `root_ownership` says which process a root's messages are forwarded
  to, so that one has the tree; `peer_exchange` finds the other processes and takes in what they forward.
- `outbox` publishes attempts, final responses, cancels and events (`wire` is their bytes); `republisher` publishes
  what rows show as unpublished; `attempt_cancellation` resends cancels until heartbeats stop listing the attempt.
- `duplicates` ends tasks that share an idempotency key; `sweep_signal` wakes the reconciler.
- `held_deliveries` and `large_messages` are what both message loops share; `broker` groups the ways to NATS.

A run event is posted, then decided on, then committed; its sender may wait for that (`Inbox.perform`). A run is read
from its rows when something happens to it, and dropped when it ends or another process has moved it on.

What is always true:

- A run is in one batch's hands at a time, and batches have it in the order in which they came.
- A decision is written only where the root's version is the one that it was made on. A run that lost is read again and
  decided on again; nothing of a lost decision is published.
- Publishing follows the commit and never fails it. A commit that was not confirmed is published as if it had been.
- A transition that raises ends its own run with `internal_error`; a row that Postgres refuses fails its own root.
- Large values travel by reference, and hold up no other message.

The composition root makes these parts. `intake` and `operations` post to the inbox and publish through the outbox,
`maintenance` republishes; agents and other orchestrators reach them through the broker alone.
"""
