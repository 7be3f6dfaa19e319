"""Intake: requests become tasks, once each, in a fair order.

- `request_loop` takes requests in batches. `fair_intake` orders them: as they came, and in fair rounds of their
  requesters where many are pending (`backlog`), reading ahead in the stream.
- `acceptance` leads a request through its stages: parse, deduplicate, fetch (a large payload), attach, plan; then, for
  the batch, commit and announce.
- `planner` makes a run of a request: of a workflow, an inline graph, or one step for an agent. `replay` makes what a
  retry, a replay or a fork goes by. `delegation` makes the run event of a request that an agent delegated, and
  `delegations` attaches it to its tree. These three are functions of values; the test kit calls the same.
- `new_roots` follows a commit: the announcement, the first attempts, an operation's begin. `repeated_requests` is for
  requests whose task is known already.

A request is unread, then planned (a run in memory), then accepted (a row), or it is a dead letter. One that cannot be
read, fetched or planned is accepted as a task that has failed, if it has an id.

What is always true:

- Nothing is announced, published or acknowledged before the row is committed; what is not acknowledged is delivered
  again.
- A task id makes one task, however often the request comes and to whichever process: the database inserts it once.
  A request that comes again is announced again, or its response is published again.
- A second request with an idempotency key is a task of its own that ends as the first one does.
- A request that names a tree which is known becomes a child in it, or no task: never a root beside it.

The composition root makes the loop; `maintenance` starts scheduled tasks through `Acceptance.accept_own`. Nothing in
`runtime` or below calls the intake.
"""
