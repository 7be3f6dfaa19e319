"""The commands, a module for each or for each few that belong together.

A command is a plain function whose parameters declare its options and whose docstring is its help. It returns a value
of `exit_codes.ExitCode` or raises CommandError; it prints by `render.output` alone and never ends the process.

    run, up, demo                      send a task and follow it; a mesh on this machine; the two in one
    tasks, replay, control             list and show tasks; run one again; cancel, pause, signal, approve
    agents, pauses, workflows          the instances of agents; what is paused; definitions and their check
    dead_letters                       messages that no process could use
    schema                             the wire contract as JSON Schemas and AsyncAPI

States: none. A command reads its input, connects, calls `pantheon.Mesh`, prints, disconnects; what it began on the mesh
goes on without it. Ctrl-C ends the command, and the task only where its help says so.

`pantheon.cli.app` alone imports these modules, each when its command is called. They import the rest of `pantheon.cli`
and `pantheon.client`, and not one another.
"""
