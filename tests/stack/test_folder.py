"""The data folder: one holder at a time, leftovers of a killed one, and what makes a folder unusable."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pantheon.stack import DataFolderBusyError, DataFolderError, folder
from pantheon.stack.folder import DataFolder, write_atomically
from pantheon.stack.processes.process import process_birth


@pytest.fixture
async def sleeper() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "data"), DataFolder(tmp_path / "data")
    first.open()
    with pytest.raises(DataFolderBusyError) as caught:
        second.open()
    assert caught.value.holder_pid == os.getpid()
    assert str(caught.value) == (
        f"{tmp_path}/data is in use by a running `pantheon up` (pid {os.getpid()}): stop it, or choose another --data"
    )
    first.close()
    first.close()
    second.open()
    second.close()


def test_the_folder_is_private_and_stays_out_of_the_repository(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    data.open()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / ".gitignore").read_text() == "*\n"
    data.close()


def test_a_file_in_the_place_of_the_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    for path in (tmp_path / "data", tmp_path / "data" / "below"):
        with pytest.raises(DataFolderError, match="is not a folder: choose another --data"):
            DataFolder(path).open()


def test_a_place_where_no_folder_can_be_made_is_one_clear_line() -> None:
    with pytest.raises(DataFolderError, match="cannot write in /proc/none"):
        DataFolder(Path("/proc/none")).open()


async def test_leftovers_are_ended_and_strangers_are_not(tmp_path: Path, sleeper: asyncio.subprocess.Process) -> None:
    data = DataFolder(tmp_path / "data")
    data.open()
    data.record_processes([("stranger", sleeper.pid, "another boot:1")])
    assert await data.end_leftovers() == []
    assert sleeper.returncode is None
    data.record_processes([("nats", sleeper.pid, process_birth(sleeper.pid))])
    assert await data.end_leftovers() == ["nats"]
    assert await sleeper.wait() < 0
    assert await data.end_leftovers() == []
    data.close()


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"pid": "x"}]', json.dumps([{"name": "nats"}])])
async def test_a_damaged_record_of_processes_is_no_obstacle(tmp_path: Path, text: str) -> None:
    data = DataFolder(tmp_path / "data")
    data.open()
    (data.path / "processes.json").write_text(text)
    assert await data.end_leftovers() == []
    data.close()


async def test_a_leftover_that_cannot_be_ended_is_told(
    tmp_path: Path, sleeper: asyncio.subprocess.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def in_vain(*_: object) -> bool:
        return False

    monkeypatch.setattr(folder, "end_process", in_vain)
    data = DataFolder(tmp_path / "data")
    data.open()
    data.record_processes([("nats", sleeper.pid, process_birth(sleeper.pid))])
    with pytest.raises(DataFolderError, match=rf"an earlier nats \(pid {sleeper.pid}\) of .* cannot be ended"):
        await data.end_leftovers()
    data.close()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
