"""The command line put together: commands, their help, and how every error becomes one line and an exit status."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pantheon import __version__
from pantheon.cli import exit_codes
from pantheon.cli.commands import (
    agents,
    control,
    dead_letters,
    demo,
    pauses,
    replay,
    run,
    schema,
    tasks,
    up,
    workflows,
)
from pantheon.cli.exit_codes import ExitCode, exit_code_of
from pantheon.cli.render.output import ReaderGone, flush_output, print_json, print_line, problem
from protocol.errors import PantheonError

DEBUG_FLAG = "--debug"
DEBUG_VARIABLE = "PANTHEON_DEBUG"

EPILOG = "Exit status:\n\n\b\n" + exit_codes.table()

app = typer.Typer(
    name="pantheon",
    help="A durable mesh of agents on NATS: start one, give it tasks, look at them.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
agent_app = typer.Typer(help="Run an agent, or begin one.", no_args_is_help=True, rich_markup_mode=None)
agents_app = typer.Typer(rich_markup_mode=None)
task_app = typer.Typer(help="Look at a task, and do something to it.", no_args_is_help=True, rich_markup_mode=None)
workflows_app = typer.Typer(rich_markup_mode=None)
letters_app = typer.Typer(
    help="Messages that nobody could use: list, show, send again.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _root(
    debug: Annotated[
        bool,
        typer.Option(DEBUG_FLAG, help=f"Tracebacks and debug logs; anywhere on the line, or {DEBUG_VARIABLE}=1."),
    ] = False,
) -> None:
    """Options that stand before every command."""


def _version(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    if as_json:
        print_json({"version": __version__, "python": sys.version.split()[0]})
    else:
        print_line(__version__)


app.command("up", help="Start a mesh on this machine: servers, orchestrator, agents. Ctrl-C ends it.")(up.up)
app.command("run", help=run.HELP, short_help="Run a workflow or a task, print its result.")(run.run)
app.command("tasks", help="List tasks, newest first.")(tasks.tasks)
app.add_typer(task_app, name="task")
task_app.command("show", help="A task and its steps: times, attempts, errors, and why which agent.")(tasks.show)
task_app.command("cancel", help="End tasks: agents are stopped, what was done is undone.")(control.cancel)
task_app.command("pause", help="Let what runs go on, begin nothing new.")(control.pause)
task_app.command("resume", help="Let paused tasks go on.")(control.resume)
task_app.command("signal", help="Give a task a signal, kept until a step waits for it.")(control.signal)
task_app.command("approve", help="Give a task the approval that it waits for, or refuse it.")(control.approve)
task_app.command("retry", help=replay.RETRY_HELP, short_help="Run failed tasks again from what failed.")(replay.retry)
app.command("replay", help=replay.REPLAY_HELP, short_help="Run a task again, as a new one.")(replay.replay)
app.add_typer(
    agents_app, name="agents", invoke_without_command=True, help="List the instances of agents; pause, resume agents."
)
agents_app.callback(invoke_without_command=True)(agents.agents)
agents_app.command("pause", help="Give agents nothing new; what they have at work goes on.")(control.pause_agents)
agents_app.command("resume", help="Let paused agents have tasks again.")(control.resume_agents)
app.add_typer(agent_app, name="agent")
agent_app.command("run", help="Run an agent of yours as this process, on the mesh that is found.")(agents.run_agent)
agent_app.command("new", help="Write a first agent into NAME.py.")(agents.new_agent)
app.add_typer(
    workflows_app, name="workflows", invoke_without_command=True, help="List, check, put, pause, resume workflows."
)
workflows_app.callback(invoke_without_command=True)(workflows.workflows)
workflows_app.command("check", help="Check workflow files; each mistake with its line and column.")(workflows.check)
workflows_app.command("put", help="Put workflow files into the mesh's database, as the newest version.")(workflows.put)
workflows_app.command("pause", help="Begin no new steps of these workflows' tasks.")(control.pause_workflows)
workflows_app.command("resume", help="Let paused workflows go on.")(control.resume_workflows)
app.command("pauses", help="What is paused: tasks, workflows, agents; since when, by whom, what waits.")(pauses.pauses)
app.add_typer(letters_app, name="dead-letters")
letters_app.command("list", help="List dead letters, oldest first.")(dead_letters.list_letters)
letters_app.command("show", help="One dead letter, with its whole message.")(dead_letters.show)
letters_app.command("redrive", help="Send dead letters again; they are none any more.")(dead_letters.redrive)
app.command("demo", help="Start a mesh, write and publish an article, stop everything.")(demo.demo)
app.command("orchestrator", help="Run one orchestrator as this process.")(up.run_orchestrator)
app.command("migrate", help="Bring the database to the newest schema.")(up.migrate_database)
app.command("schema", help="The wire contract as JSON Schemas and an AsyncAPI document.")(schema.schema)
app.command("version", help="The version of this installation.")(_version)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG_FLAG in words or bool(os.environ.get(DEBUG_VARIABLE))
    words = [word for word in words if word != DEBUG_FLAG]
    _prepare(debug)
    try:
        status = app(words, prog_name="pantheon", standalone_mode=False)
        flush_output()
        return status if isinstance(status, int) else ExitCode.OK
    except (ReaderGone, BrokenPipeError, SystemExit) as error:
        # Typer and rich notice a closed pipe too, and end with status 1.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError | ReaderGone):
            raise
        # The reader of the pipe has closed it (`| head`). What is still buffered must not raise at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        problem("interrupted")
        return ExitCode.INTERRUPTED
    except (typer.TyperException, typer.Abort) as error:
        return _usage_problem(error)
    except PantheonError as error:
        if debug:
            raise
        problem(error.message)
        return exit_code_of(error)
    except ModuleNotFoundError as error:
        if debug:
            raise
        problem(f"{error.name} is not installed, and this needs it: pip install 'pantheon-mesh[all]'")
        return ExitCode.USAGE
    except Exception as error:
        if debug:
            raise
        text = str(error) or "no message"
        problem(f"{type(error).__name__}: {text} (a mistake of pantheon's own; {DEBUG_FLAG} shows where)")
        return ExitCode.INTERNAL


def _prepare(debug: bool) -> None:
    from pantheon.runtime.logs import configure_logging

    configure_logging("debug" if debug else "warning", "console")


def _usage_problem(error: Exception) -> int:
    """Report a wrong command line, with the `--help` that explains it."""
    if isinstance(error, typer.Abort):
        problem("interrupted")
        return ExitCode.INTERRUPTED
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pantheon"
    message = getattr(error, "format_message", lambda: str(error))()
    if context is not None and message == context.get_help():
        # A group without a command: print its help as it is.
        sys.stderr.write(message.rstrip("\n") + "\n")
        return ExitCode.USAGE
    problem(f"{message.rstrip('.')} (see {command} --help)", command=command)
    return ExitCode.USAGE
