"""The engine: a run, which is the tree of one root task as values, and the transitions that move it on.

`advance(run, run_events, …)` is a pure function: it applies run events (`events`) to a run and returns Decisions: rows
made and changed, attempts to publish and to stop, events, outcomes of operations. `start` begins a new run. The engine
does no I/O, asks no clock and no global source of chance: time, Random, Rules and the Directory (which agent gets a
task now) are arguments. It imports `protocol` and `workflows`, and nothing else of the orchestrator.

A row is a task: of a step, an item of a fan-out, a fallback, a compensation, a signal, or delegated by an agent. Its
statuses and the transitions between them are declared once, in `state`; the SQL of the store mirrors them. A Scope is a
workflow at work; a step whose task is a workflow has a scope below it.

Invariants:
- Attempts fence: an event of an attempt that is not the current one changes nothing. Any event may come at any time,
  and any number of times.
- What has ended does not change. A step begins once for each iteration and item: its row's id is derived.
- The deadline comes before any other timer. Compensations are bound neither by it nor by the budget.
- A run that was read back from its rows (`store.run_builder`) goes on as the one in memory would have.
- A transition changes the run itself. When its decisions are not written, the run is dropped and read again.

Modules depend on those to their right only:
advance > attempts, signals, delegation > roots > progress > scope_end > step_start > assignment, waits, compensation,
cancellation > step_rows > transition, failures, budget, consequences > decisions > state. `progress` alone acts on what
follows from the end of a step or of a workflow: there the engine's recursion is, and its work list (`Transition.soon`).
Decisions beside transitions: `retry`, `concurrency` (which roots of a key run) and `due` (what time alone brings).

Callers: `runtime.transitions` and `intake.planner` make transitions; the store writes decisions and builds runs;
dispatch, maintenance and operations read runs and post run events; the test kit does all of this around rows in memory.
"""
