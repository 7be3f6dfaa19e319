"""Worker: what an agent declares, and the loop that runs its handlers.

- `declaration`, `handler`, `context`: an agent as data, its functions, and what a function gets. They import no NATS:
  declaring an agent takes a fraction of a second.
- `worker`: the loop: pull, run, respond, acknowledge. `slots` bounds the attempts at once; `runner` runs one within its
  time (`attempt_timeout`); `attempt` is its state.
- `response_form`, `responses`: a TaskResponse as bytes; how it is sent, and remembered for a second delivery.
- `delegation`: what `ctx.run` does.

States of an attempt: delivered, running, responding (its handler has ended: nothing interrupts it), responded,
acknowledged. A cancel ends it `cancelled`; a drain returns it to the queue; a process that dies leaves it there.

Invariants:

- The task is acknowledged after the broker has acknowledged its response, never before.
- Every task that was taken gets a response, or is returned to the queue, whatever its handler raises or returns.
- An attempt that is delivered again while it runs, or after its response, is not run a second time by this instance.
- A delegating attempt has no slot while it waits, so that an agent can serve the tasks that it delegates.

Who may call it: `pantheon.agent` and `pantheon.process`; authors meet `Agent` and `TaskContext`; the test kit runs the
same handlers. It imports `pantheon.client`, `pantheon.config`, `pantheon.bus`, `pantheon.runtime` and `protocol`.
"""
