"""Ids of tasks as people give them: a part of one is enough, and a step's stands for its task."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.progress.task_rows import root_of
from protocol.errors import PantheonError

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh

# Ids are made of the time: their beginnings are alike, so a part must be long enough to tell them apart.
ID_PART_MIN_CHARS = 4
ID_PART_AMONG = 1000

_HELP = "A task's id, or a beginning or end of it that is unique."
TaskId = Annotated[str, typer.Argument(metavar="ID", help=_HELP)]
TaskIds = Annotated[list[str], typer.Argument(metavar="ID", help=_HELP)]


async def resolve(mesh: "Mesh", part: str) -> str:
    """A task's whole id from the beginning or end of one of the newest tasks'. Raises CommandError."""
    wanted = part.strip().lower()
    try:
        return str(UUID(wanted))
    except ValueError:
        pass
    if not wanted or set(wanted) - set("0123456789abcdef-"):
        raise CommandError(f"'{part}' is no task's id, nor a part of one", ExitCode.USAGE)
    if len(wanted) < ID_PART_MIN_CHARS:
        raise CommandError(f"'{part}' is too short: give {ID_PART_MIN_CHARS} characters or more", ExitCode.USAGE)
    rows = (await mesh.query("tasks", {"limit": ID_PART_AMONG}))["tasks"]
    found = [row["task_id"] for row in rows if row["task_id"].startswith(wanted) or row["task_id"].endswith(wanted)]
    return one_of(found, part, "tasks", f"none of the newest {len(rows)} tasks has an id like '{part}'")


def one_of(found: list[str], part: str, what: str, nobody: str) -> str:
    """The only id that fits. Raises CommandError with `nobody`, or with those that fit."""
    if not found:
        raise CommandError(nobody, ExitCode.NOT_FOUND)
    if len(found) > 1:
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise CommandError(f"'{part}' fits {len(found)} {what}: {some}", ExitCode.USAGE)
    return str(found[0])


async def resolve_root(mesh: "Mesh", part: str) -> UUID:
    """The id of the root task that an id, or a part of one, belongs to: operations are on root tasks.

    Raises CommandError, or PantheonError (`unknown_task`) before anything is made of an id that is nobody's.
    """
    task_id = await resolve(mesh, part)
    try:
        await mesh.query("response", {"task_id": task_id})
    except PantheonError as error:
        # A root's response that is too large for a message is a root's all the same.
        if error.code == "unknown_task":
            return UUID(root_of((await mesh.query("task", {"task_id": task_id, "brief": True}))["tasks"])["task_id"])
        if error.code != "too_large":
            raise
    return UUID(task_id)
