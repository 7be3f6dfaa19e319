"""Choosing ports: free ones, away from those that the kernel gives to outgoing connections."""

import socket
from pathlib import Path

import pytest

from pantheon.stack.servers import ports
from pantheon.stack.servers.ports import is_free, pick_free


def test_a_picked_port_is_free_and_below_the_range_of_outgoing_connections() -> None:
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    picked = [pick_free() for _ in range(20)]
    assert all(is_free(port) and port < first_ephemeral for port in picked)


def test_a_port_is_taken_while_somebody_listens_or_has_bound_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not is_free(int(server.getsockname()[1]))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not is_free(int(bound.getsockname()[1]))


def test_ports_given_out_just_now_are_not_picked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FIRST_PORT", 20_000)
    monkeypatch.setattr(ports, "_first_ephemeral_port", lambda: 21_001)
    taken = set(range(20_000, 21_000))
    # The one port that is left is picked, or, with bad luck in all draws, one that the kernel names.
    assert pick_free(taken) not in taken


@pytest.mark.parametrize("text", [None, "", "many"])
def test_an_unreadable_range_is_taken_as_the_usual_one(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def read_text(path: Path) -> str:
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert pick_free() < 32_768


def test_a_machine_without_room_below_the_range_gets_a_port_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_first_ephemeral_port", lambda: 1_024)
    assert is_free(pick_free())
    monkeypatch.setattr(ports, "_PICK_ATTEMPTS", 0)
    assert is_free(pick_free())
