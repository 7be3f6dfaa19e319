"""A task's tree while it runs and afterwards: read, kept, drawn, explained.

    task_rows   rows of a query's result: the root, the path of each, what a step waits for
    tree        TaskTree, the state of a task and its steps, from events, progress messages and rows
    view        a TaskTree drawn with rich, or its changes as plain lines
    follow      a task followed live: events and rows fed to a tree, drawn on a terminal or written to a pipe
    why         why each step's agent was chosen, and why a ready step has none yet

States of a step are those of the mesh (docs/protocol.md). A tree only moves forward: an event that is late, or comes
twice, changes nothing, and rows from the database correct what was lost. Only `follow` knows of the network and of a
terminal; `tree` is pure, so that each state can be tested without one.

What is shown is shown twice: as a tree for a terminal, and as lines, one for each change, for a pipe or a log.

Called by `pantheon.cli.commands` (`run`, `demo`, `task show`). It imports `pantheon.client` and `protocol`, and the
units of `pantheon.cli.render`.
"""
