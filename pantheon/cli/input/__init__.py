"""Reads the input of commands: payload arguments, request folders, ids of tasks.

Everything that a person types or keeps in files becomes a value of JSON here, or one line that names the argument, the
file and the position of the mistake (CommandError, exit status 2). Nothing is sent before all input has been read.

    arguments        `key=value`, `key:=json`, `key=@file`, `--input FILE`
    request_folder   a request kept as `request.yaml`, with texts in files beside it
    task_ids         a part of an id that is unique; a step's id stands for its root task

Invariants: a value of JSON stays what it is, and a text is never taken for a number; a file is read at most once, and
standard input too; a password is never repeated in a message.

Called by `pantheon.cli.commands`. `task_ids` asks the mesh, by a client that it is handed; the others do no network
I/O. It imports `pantheon.runtime` for the reader of YAML, and nothing of the other parts of the command line but exit
codes.
"""
