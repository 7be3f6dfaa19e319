"""`pantheon schema`: the wire contract's JSON Schemas and AsyncAPI document, printed or written."""

from pathlib import Path
from typing import Annotated

import typer

from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.render.output import print_json, print_line


def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One document alone, such as task-request or asyncapi.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write a file each here, instead of printing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Accepted as everywhere; the documents are JSON.")] = False,
) -> None:
    from protocol.documents import documents, write

    if out is not None:
        try:
            paths = write(out)
        except OSError as error:
            raise CommandError(f"cannot write {error.filename or out}: {error.strerror}", ExitCode.USAGE) from None
        if as_json:
            print_json([str(path) for path in paths])
        else:
            for path in paths:
                print_line(str(path))
        return
    made = documents()
    if name is None:
        print_json(made)
        return
    by_stem = {key.split(".")[0]: document for key, document in made.items()} | dict(made)
    if name not in by_stem:
        known = ", ".join(sorted(key.split(".")[0] for key in made))
        raise CommandError(f"there is no document '{name}'; there is {known}", ExitCode.NOT_FOUND)
    print_json(by_stem[name])
