"""Ids of tasks on the command line: a unique part is enough, and a step's id stands for its root task."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.progress.task_rows import root_of
from protocol.errors import PantheonError

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh

# Ids begin with the time: their beginnings are alike, so a part must be long enough to be unique.
ID_PART_MIN_CHARS = 4
ID_PART_AMONG = 1000

_HELP = "A task's id, or a beginning or end of it that is unique."
TaskId = Annotated[str, typer.Argument(metavar="ID", help=_HELP)]
TaskIds = Annotated[list[str], typer.Argument(metavar="ID", help=_HELP)]


async def resolve(mesh: "Mesh", part: str) -> str:
    """A task's whole id from its beginning or end, searched among the newest tasks. Raises CommandError."""
    text = part.strip().lower()
    try:
        return str(UUID(text))
    except ValueError:
        pass
    if not text or set(text) - set("0123456789abcdef-"):
        raise CommandError(f"'{part}' is no task's id, nor a part of one", ExitCode.USAGE)
    if len(text) < ID_PART_MIN_CHARS:
        raise CommandError(f"'{part}' is too short: give {ID_PART_MIN_CHARS} characters or more", ExitCode.USAGE)
    rows = (await mesh.query("tasks", {"limit": ID_PART_AMONG}))["tasks"]
    found = [row["task_id"] for row in rows if row["task_id"].startswith(text) or row["task_id"].endswith(text)]
    return only_match(found, part, "tasks", f"none of the newest {len(rows)} tasks has an id like '{part}'")


def only_match(found: list[str], part: str, kind: str, none_found: str) -> str:
    """The only id that fits. Raises CommandError with `none_found`, or with the ids that fit."""
    if not found:
        raise CommandError(none_found, ExitCode.NOT_FOUND)
    if len(found) > 1:
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise CommandError(f"'{part}' fits {len(found)} {kind}: {some}", ExitCode.USAGE)
    return str(found[0])


async def resolve_root(mesh: "Mesh", part: str) -> UUID:
    """The id of the root task of an id, or of a part of an id: operations are on root tasks.

    Raises CommandError, or PantheonError (`unknown_task`) where no task has the id.
    """
    task_id = await resolve(mesh, part)
    try:
        await mesh.query("response", {"task_id": task_id})
    except PantheonError as error:
        # `too_large` means a root too: its response exists, and only a message cannot carry it.
        if error.code == "unknown_task":
            return UUID(root_of((await mesh.query("task", {"task_id": task_id, "brief": True}))["tasks"])["task_id"])
        if error.code != "too_large":
            raise
    return UUID(task_id)
