"""The orchestrator: plans requests into graphs of steps, delegates them to agents, keeps every state in Postgres.

It runs as an agent of the mesh, `orchestrator_agent`, in any number of processes. Each process is the same, none leads.

- `service` opens the connections of a process, starts its parts, and drains them. `composition` wires the parts, which
  `parts` groups; nothing else makes them.
- `message_loops` takes what the broker delivers: requests go to `intake`, which makes them rows; responses go to
  `runtime`, which decides on each task's tree, writes, and publishes.
- `inbox` holds the run events that come from no message: timers, operators, the ready queue, agents that delegate.
- `operations` does what people ask for (cancel, pause, queries); `maintenance` does what no message wakes.
- `dispatch` chooses an agent for each attempt, and when; `store` is all of the SQL; `engine` decides, as a function of
  values; `workflows` reads definitions.
- `check` reads workflow files for the command line, without a mesh.

A message is worked on in a batch: all that has arrived, or it alone. The batch is decided on in memory, written in one
statement, published, and acknowledged, in this order; while it is written the next one gathers.

What is always true:

- Accepted means committed, and so does ended. What is lost after a commit (a publish, an acknowledgement) is found in
  the rows, by this process or, if it died, by another one.
- The version in a root's row decides who may write a tree. Everything that a process has in memory is a cache, a hint
  or a soft bound, and may be wrong or gone.
- An attempt's number fences: a response to an attempt that is not the current one changes nothing.
- No part has a callback that is set later. What passes between two parts that need each other is an object made before
  both: the inbox, the signals of sweep and dispatch, the list of active processes.
- Imports go down this list: service, message_loops, maintenance, intake and operations, runtime, dispatch, inbox and
  store, engine, workflows.
"""
