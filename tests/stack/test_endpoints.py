"""endpoints.json: what it says, what a client is told when it does not help, and which mesh a folder finds."""

import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pantheon.stack import Endpoints, NoMeshError, find_newest, read_endpoints
from pantheon.stack.endpoints import register, remove_endpoints
from pantheon.stack.folder import write_atomically
from pantheon.stack.processes.process import process_birth

_NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the notes of this test apart from those of meshes that run on this machine."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary" / f"pantheon-{os.geteuid()}"


def up(data: Path, folder: Path, *, started_at: datetime = _NOON, pid: int | None = None) -> Endpoints:
    data.mkdir(parents=True)
    endpoints = Endpoints(
        nats_url="nats://127.0.0.1:20001",
        database_url="postgresql://pantheon:secret@127.0.0.1:20002/pantheon",
        redis_url="redis://127.0.0.1:20003/0",
        processes={"nats": [17], "llm_agent": [18, 19]},
        data=data,
        folder=folder,
        started_at=started_at,
        supervisor_pid=pid or os.getpid(),
        supervisor_birth=process_birth(os.getpid()),
    )
    endpoints.write()
    register(data)
    return endpoints


def test_what_is_written_is_read_back_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    written = up(tmp_path / "data", tmp_path)
    assert read_endpoints(tmp_path / "data") == written
    assert (tmp_path / "data" / "endpoints.json").stat().st_mode & 0o777 == 0o600
    assert "consul_http_addr" not in (tmp_path / "data" / "endpoints.json").read_text()


def test_the_environment_names_a_consul_only_where_there_is_one(tmp_path: Path) -> None:
    without = up(tmp_path / "data", tmp_path)
    assert set(without.environment()) == {"NATS_URL", "DATABASE_URL", "REDIS_URL"}
    with_consul = without.model_copy(update={"consul_http_addr": "http://127.0.0.1:20004"})
    assert with_consul.environment()["CONSUL_HTTP_ADDR"] == "http://127.0.0.1:20004"


def test_a_folder_without_a_mesh_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NoMeshError, match=rf"no mesh runs on .*: start one with `pantheon up --data {tmp_path}`"):
        read_endpoints(tmp_path)
    with pytest.raises(NoMeshError, match="start one with `pantheon up`, or set NATS_URL and DATABASE_URL"):
        find_newest(tmp_path)


def test_the_file_of_a_killed_mesh_does_not_mislead(tmp_path: Path) -> None:
    up(tmp_path / ".pantheon", tmp_path, pid=2**22 + 1)
    expected = r"its process is gone\): start one with `pantheon up`$"
    with pytest.raises(NoMeshError, match=expected):
        read_endpoints(tmp_path / ".pantheon")
    with pytest.raises(NoMeshError, match=expected):
        find_newest(tmp_path)


def test_a_file_that_is_no_endpoints_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text("{}")
    with pytest.raises(NoMeshError, match="was not written by this version"):
        read_endpoints(tmp_path)
    (tmp_path / "endpoints.json").unlink()
    (tmp_path / "endpoints.json").mkdir()
    with pytest.raises(NoMeshError, match=r"cannot read .*: use the account that runs the mesh"):
        read_endpoints(tmp_path)


def test_the_newest_mesh_started_from_a_folder_is_found_wherever_its_data_is(tmp_path: Path) -> None:
    here, other_shell = tmp_path / "here", tmp_path / "elsewhere"
    old = up(here / ".pantheon", here)
    assert find_newest(here) == old
    new = up(tmp_path / "other-data", here, started_at=_NOON + timedelta(minutes=1))
    up(tmp_path / "foreign-data", other_shell, started_at=_NOON + timedelta(minutes=2))
    assert find_newest(here) == new
    remove_endpoints(new.data)
    assert find_newest(here) == old


def test_the_notes_go_with_the_last_mesh(tmp_path: Path, notes: Path) -> None:
    first, second = up(tmp_path / "first", tmp_path), up(tmp_path / "second", tmp_path)
    remove_endpoints(first.data)
    assert len(list(notes.iterdir())) == 1
    remove_endpoints(second.data)
    remove_endpoints(second.data)
    assert not notes.exists()


def test_a_note_is_made_while_another_mesh_takes_the_empty_folder_away(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_away: list[Path] = []

    def write(path: Path, text: str) -> None:
        if path.parent == notes and not taken_away:
            taken_away.append(path.parent)
            path.parent.rmdir()
        write_atomically(path, text)

    monkeypatch.setattr("pantheon.stack.endpoints.write_atomically", write)
    written = up(tmp_path / "other-data", tmp_path)
    assert taken_away
    assert find_newest(tmp_path) == written


def test_notes_that_others_could_have_written_are_not_believed(tmp_path: Path, notes: Path) -> None:
    up(tmp_path / "data", tmp_path)
    assert find_newest(tmp_path).data == tmp_path / "data"
    notes.chmod(0o777)
    with pytest.raises(NoMeshError):
        find_newest(tmp_path)
