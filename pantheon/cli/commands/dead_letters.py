"""`pantheon dead-letters list | show | redrive`: messages that no process could use, and their redelivery."""

import base64
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.input.task_ids import ID_PART_MIN_CHARS, only_match
from pantheon.cli.operations import each, operation
from pantheon.cli.render.listing import Column, print_listing
from pantheon.cli.render.output import note, print_json, print_line, stdout
from pantheon.cli.render.result_files import shortened
from pantheon.cli.render.units import clock, parse_time
from pantheon.cli.running import run_async
from pantheon.runtime.settings import one_line

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh

# A query returns no more.
MAX_LETTERS = 1000

Name = Annotated[str | None, typer.Option("--name", help="Only those of this agent.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only those whose reason holds this text.")]

_COLUMNS = (
    Column("id"),
    Column("agent", weight=6),
    Column("at", weight=5),
    Column("reason", weight=7),
    Column("deliveries", weight=2, right=True),
    Column("task", weight=3),
    Column("error", weight=4, flexible=True, style="bright_black"),
)


def list_letters(
    name: Name = None,
    reason: Reason = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=MAX_LETTERS, help="How many, oldest first.")] = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    async def run() -> list[dict[str, Any]]:
        async with open_mesh(url) as mesh:
            return await mesh.dead_letters(name=name, reason=reason, limit=limit)

    letters = run_async(run())
    if as_json:
        print_json(letters)
        return
    if not letters:
        note("no dead letters" + (" match" if name or reason else ""))
        return
    now = datetime.now(UTC)
    rows = [
        [
            str(letter["id"]),
            _agent(letter),
            clock(parse_time(letter.get("at")), today=now),
            str(letter.get("reason") or ""),
            str(letter.get("deliveries") or ""),
            str(letter.get("task_id") or ""),
            one_line(str(letter.get("error") or "")),
        ]
        for letter in letters
    ]
    print_listing(stdout(), _COLUMNS, rows)


def _agent(letter: dict[str, Any]) -> str:
    """The agent in whose queue it was, from `agent.<name>.task`."""
    parts = str(letter.get("subject") or "").split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "agent" else ""


def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, or a beginning or end of it.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    async def run() -> dict[str, Any]:
        async with open_mesh(url) as mesh:
            full_id = await _resolve(mesh, letter_id)
            found = await mesh.dead_letters(letter_id=full_id)
            if not found:
                raise CommandError(f"there is no dead letter {full_id}", ExitCode.NOT_FOUND)
            return found[0]

    letter = run_async(run())
    if as_json:
        print_json(letter)
        return
    console = stdout()
    facts = [
        ("id", letter["id"]),
        ("subject", letter.get("subject")),
        ("at", clock(parse_time(letter.get("at")))),
        ("reason", letter.get("reason")),
        ("error", letter.get("error")),
        ("task", letter.get("task_id")),
        ("deliveries", letter.get("deliveries")),
        *((f"{key}", value) for key, value in (letter.get("headers") or {}).items()),
    ]
    for key, value in facts:
        if value not in (None, ""):
            console.print(Text.assemble((f"{key:>12}  ", "bright_black"), one_line(str(value))), soft_wrap=True)
    console.print(Text(_body(letter)), soft_wrap=True)


def _body(letter: dict[str, Any]) -> str:
    """The message as it was: JSON for reading, other text as it is, bytes that are no text as base64."""
    encoded = str(letter.get("body_base64") or "")
    body = base64.b64decode(encoded)
    try:
        return json.dumps(shortened(json.loads(body)), indent=2, ensure_ascii=False)
    except ValueError:
        pass
    text = body.decode("utf-8", "replace")
    return text if "\ufffd" not in text and (text.isprintable() or "\n" in text) else encoded


async def _resolve(mesh: "Mesh", part: str) -> str:
    """A letter's whole id from a beginning or end of it. Raises CommandError."""
    text = part.strip().lower()
    if len(text) >= 36:
        return text
    if len(text) < ID_PART_MIN_CHARS:
        raise CommandError(f"'{part}' is too short: give {ID_PART_MIN_CHARS} characters or more", ExitCode.USAGE)
    ids = [str(letter["id"]) for letter in await mesh.dead_letters(limit=MAX_LETTERS)]
    found = [letter_id for letter_id in ids if letter_id.startswith(text) or letter_id.endswith(text)]
    return only_match(found, part, "dead letters", f"none of {len(ids)} dead letters has an id like '{part}'")


def redrive(
    letter_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Their ids, or a beginning or end of each.")
    ] = None,
    name: Name = None,
    reason: Reason = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    ids = letter_ids or []
    if sum((bool(ids), bool(name or reason), everything)) != 1:
        raise CommandError("say which: ids, or --name and --reason, or --all", ExitCode.USAGE)

    async def run() -> tuple[list[str], ExitCode]:
        async with open_mesh(url) as mesh:

            async def redrive_one(part: str) -> list[str]:
                letter_id = await _resolve(mesh, part)
                sent = await operation(mesh.redrive(letter_id))
                if not sent:
                    # An earlier command may have sent it: that is no failure.
                    note(f"there is no dead letter {letter_id} (any more)")
                return sent

            if not ids:
                return await operation(mesh.redrive(name=name, reason=reason, everything=everything)), ExitCode.OK
            sent, status = await each(ids, redrive_one)
            return [letter_id for some in sent for letter_id in some], status

    redriven, status = run_async(run())
    if as_json:
        print_json({"redriven": redriven})
    else:
        for letter_id in redriven:
            print_line(letter_id)
        note(f"{len(redriven)} sent again")
    if status:
        raise typer.Exit(status)
