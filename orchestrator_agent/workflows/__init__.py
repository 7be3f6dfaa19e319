"""Workflows: from the text of a definition to a Plan that the engine runs.

A definition (`protocol/workflow.py`) comes from a file, from the database, or inline in a request. Each is read and
checked once per version:

    files      reads a file; reports every mistake with its line and column
    compiler   checks the graph (names, needs, cycles, schedules) and makes a Plan
    template   JSON values with `${…}` in their strings
    expression CEL, the language between the braces; evaluated by the package `cel`
    evaluation where an evaluation that takes long is made: not on the event loop
    plan       the compiled workflow: what the engine, the planner and the router read
    library    the plans that this process knows: the newest of each name, every version in use, inline graphs

Invariants:

- A Plan is immutable, and so is a version: a running task keeps the version that it began with, and the version's name
  is a hash of its definition.
- All that can be found wrong without running is found here, before the first step begins, as InvalidWorkflow with the
  step's name. What only the values can show is an ExpressionError when a template is rendered.
- Rendering depends on nothing but the variables: no clock, no randomness, no I/O. The engine may render again after a
  crash and gets the same value.
- A rendered value is JSON: the next process reads from the database what this one has in memory.

The planner (`intake`), the engine, the router and `store` read plans; the run cache fills the library from the
database; `check` and the test kit read files. Nothing here imports them: only `protocol` is below.
"""
