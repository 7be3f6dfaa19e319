"""`pantheon demo`: starts a mesh, runs `create_blog_post`, writes an article and a site, and stops everything."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import pantheon
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.input.request_folder import read_request
from pantheon.cli.local_mesh import check_agent_count, migrate, settled, stack_environment
from pantheon.cli.outcome import raise_failure
from pantheon.cli.progress.follow import wait_with_progress
from pantheon.cli.render.output import is_live, print_json, stderr, stdout
from pantheon.cli.render.result_files import is_file, write_files
from pantheon.cli.render.units import duration, size
from pantheon.cli.running import run_async

if TYPE_CHECKING:
    from pantheon.stack import Endpoints, Stack, StackEvent
    from protocol.messages import TaskResponse

WORKFLOW = "create_blog_post"
ARTICLE = "article"
EXAMPLE = Path("examples") / "blog"
FORMATS = ("html", "docx", "pdf")
MESH_FOLDER = ".mesh"
# No agent works on a task any more when the demo ends its agents.
DRAIN_SECONDS = 5.0


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where the article and the site are written.")
    ] = Path("out/demo"),
    input_folder: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="DIR", help="A folder with a request.yaml; else examples/blog."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="What was made, on stdout at the end; all else on stderr.")
    ] = False,
) -> None:
    payload = demo_payload(read_request(find_example(input_folder)))
    run = Demo(out, payload, console=stderr() if as_json else stdout())
    run_async(run.run(), on_interrupt=lambda: "interrupted; everything was stopped", on_second=run.hurry)
    if as_json:
        print_json(run.made)
    else:
        run.report()


def find_example(folder: Path | None) -> Path:
    """The folder of the request: `folder`, else the repository's, found from here or from this package."""
    if folder is not None:
        return folder
    for base in (Path.cwd(), Path(pantheon.__file__).parent.parent):
        if (base / EXAMPLE).is_dir():
            return base / EXAMPLE
    raise CommandError(
        f"there is no {EXAMPLE} here: run this in the repository, or give --input DIR with a request.yaml",
        ExitCode.NOT_FOUND,
    )


def demo_payload(payload: dict[str, Any]) -> dict[str, Any]:
    """The request with the demo's three formats and its site added."""
    formats, channels = list(payload.get("formats") or ()), list(payload.get("channels") or ())
    kinds = [channel.get("type") if isinstance(channel, dict) else channel for channel in channels]
    return payload | {
        "formats": formats + [name for name in FORMATS if name not in formats],
        "channels": channels if "site" in kinds else [*channels, "site"],
    }


@dataclass
class Demo:
    """A run of the demo. `made` holds the paths of what it wrote, and the review's verdict and score."""

    out: Path
    payload: dict[str, Any]
    console: Console
    made: dict[str, Any] = field(default_factory=dict)
    _stack: "Stack | None" = None

    def hurry(self) -> None:
        """A second Ctrl-C: end what is left at once."""
        if self._stack is not None:
            self._stack.hurry.set()

    async def run(self) -> None:
        """Start the mesh, request the article, write it, stop. After a failure the logs stay; the error names them."""
        from pantheon.stack import Stack, StackPlan, built_in_agents

        began = asyncio.get_running_loop().time()
        agents = built_in_agents()
        check_agent_count([spec.name for spec in agents])
        site = (self.out / "site").absolute()
        mesh_folder = await self._fresh_mesh_folder()
        extra = {"SITE_DIR": str(site), "STATE_DIR": str(mesh_folder / "communication")}
        plan = StackPlan(agents=agents, environment=stack_environment(extra=extra), drain_seconds=DRAIN_SECONDS)
        stack = self._stack = Stack(mesh_folder, plan, migrate=migrate, settled=settled, on_event=self._on_event)
        keep_logs = False
        try:
            with self._phase("starting NATS, Postgres, Valkey, the orchestrator and five agents", "the mesh is up"):
                await stack.start()
            try:
                response = await self._request_article(stack.endpoints)
                raise_failure(response)
                self._write(response)
            finally:
                with self._phase("stopping the mesh", "everything is stopped"):
                    await stack.stop()
        except CommandError as error:
            keep_logs = True
            message = f"{error.message.partition('; more: ')[0]}; logs: {mesh_folder / 'logs'}"
            raise CommandError(message, error.exit_code) from error
        except Exception:
            keep_logs = True
            raise
        finally:
            if not keep_logs:
                shutil.rmtree(mesh_folder, ignore_errors=True)
        self.made["seconds"] = round(asyncio.get_running_loop().time() - began, 1)

    async def _fresh_mesh_folder(self) -> Path:
        """An empty folder for the mesh: each demo begins anew, and finishes no task of an interrupted demo.

        Raises StackError when another demo runs there.
        """
        from pantheon.stack.folder import DataFolder

        folder = DataFolder((self.out / MESH_FOLDER).absolute())
        folder.open()
        try:
            await folder.end_leftovers()
            for inner in folder.path.iterdir():
                if inner.is_dir():
                    shutil.rmtree(inner)
        except OSError as error:
            raise CommandError(f"cannot empty {error.filename}: {error.strerror}", ExitCode.USAGE) from None
        finally:
            folder.close()
        return folder.path

    async def _request_article(self, endpoints: "Endpoints") -> "TaskResponse":
        from pantheon.client.mesh import Mesh

        async with Mesh(endpoints.nats_url, requester="demo") as mesh:
            workflows = (await mesh.query("workflows"))["workflows"]
            steps = next((list(workflow["steps"]) for workflow in workflows if workflow["name"] == WORKFLOW), [])
            request = mesh.request(WORKFLOW, self.payload)
            await mesh.submit(request)
            return await wait_with_progress(mesh, request, steps=steps, console=self.console)

    def _write(self, response: "TaskResponse") -> None:
        result = response.result if isinstance(response.result, dict) else {}
        article = self.out / f"{ARTICLE}.md"
        try:
            article.write_text(str(result.get("markdown", "")), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"cannot write {article}: {error.strerror}", ExitCode.USAGE) from None
        named = [
            file | {"filename": f"{ARTICLE}{Path(file['filename']).suffix}"}
            for file in result.get("files") or ()
            if is_file(file)
        ]
        _, paths = write_files(named, self.out)
        missing = [name for name in self.payload["formats"] if self.out / f"{ARTICLE}.{name}" not in paths]
        if missing:
            verdict = result.get("verdict")
            raise CommandError(
                f"the article has no {', '.join(missing)} (the review says '{verdict}', score {result.get('score')})",
                ExitCode.FAILED,
            )
        self.made = {
            "task_id": str(response.task_id),
            "title": result.get("title"),
            "summary": result.get("summary"),
            "verdict": result.get("verdict"),
            "score": result.get("score"),
            "offline": result.get("offline"),
            "model": result.get("model"),
            "files": [str(path) for path in (article, *paths)],
            "site": str(self.out / "site"),
            "publications": result.get("publications") or [],
        }

    def report(self) -> None:
        """Print what was written, for a person."""
        made = self.made
        rows = [(Path(name), "") for name in made["files"]]
        rows += [(path, _description(path, made["publications"])) for path in _pages(Path(made["site"]))]
        self.console.print()
        self.console.print(Text.assemble((str(made["title"]), "bold"), f"   {_judgement(made)}"))
        for path, what in rows:
            line = Text.assemble(f"  {size(path.stat().st_size):>7}  ", (str(path), "bold cyan"))
            # Paths are there to be copied, so they never wrap; a description is left out where it does not fit.
            if what and (not self.console.is_terminal or line.cell_len + 2 + len(what) <= self.console.width):
                line.append(f"  {what}", style="bright_black")
            self.console.print(line, soft_wrap=True)
        by = f"written by {made['model']}" if not made["offline"] else (
            "written without a model, from the sources alone; with LLM_MODEL set, a model writes it"
        )  # fmt: skip
        self.console.print(Text(by, style="bright_black"))
        self.console.print(Text(f"done in {duration(made['seconds'])}", style="green"))

    @contextlib.contextmanager
    def _phase(self, doing: str, done: str) -> Iterator[None]:
        """Print what is being done, with a spinner on a terminal, and how long it took."""
        start = asyncio.get_running_loop().time()
        if not is_live(self.console):
            self.console.print(Text(doing))
            yield
        else:
            with self.console.status(doing, spinner="dots"):
                yield
        took = duration(asyncio.get_running_loop().time() - start)
        self.console.print(Text.assemble(("✔", "green"), f" {done}", (f"  {took}", "bright_black")))

    def _on_event(self, event: "StackEvent") -> None:
        """Print an event of the stack that is out of the ordinary."""
        from pantheon.stack import EventKind

        if event.kind in (EventKind.DIED, EventKind.RESTARTED, EventKind.RESTART_FAILED, EventKind.NOTE):
            self.console.print(Text(str(event), style="yellow"), soft_wrap=True)


def _pages(site: Path) -> list[Path]:
    """The site's own pages and its feed, the newest post among them; not the files that a post carries."""
    found = [path for path in (site / "index.html", *site.glob("*.xml")) if path.is_file()]
    return found + sorted(path for path in site.rglob("index.html") if path.parent != site)


def _description(path: Path, publications: list[Any]) -> str:
    if path.suffix == ".xml":
        return "RSS feed"
    if path.name == "index.html" and path.parent.name == "site":
        return "index"
    for publication in publications:
        if not isinstance(publication, dict):
            continue
        location = str(publication.get("location") or publication.get("url") or "")
        if path.parent.name and path.parent.name in location:
            return f"post, {publication.get('status')}"
    return ""


def _judgement(made: dict[str, Any]) -> str:
    return f"review: {made['verdict']}, score {made['score']}"
