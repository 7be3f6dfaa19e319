"""Outages, as one process sees them: by a clock that a test moves."""

from datetime import UTC, datetime, timedelta

from orchestrator_agent.maintenance.broker_outages import SETTLING, SILENCE, BrokerOutages

START = datetime(2026, 1, 1, tzinfo=UTC)


class Mesh:
    def __init__(self) -> None:
        self.now = START
        self.connected = True
        self.connection = 1
        self.outages = BrokerOutages(lambda: (self.connected, self.connection), lambda: self.now)

    def settled(self) -> bool:
        return self.outages.settled

    def later(self, seconds: float, *, received: bool = True) -> None:
        self.now += timedelta(seconds=seconds)
        if received:
            self.outages.broker_responded()


def test_the_first_seconds_are_for_earlier_messages() -> None:
    mesh = Mesh()
    mesh.later(0.1)
    assert not mesh.settled()
    mesh.later(SETTLING.total_seconds())
    assert mesh.settled()
    assert not mesh.outages.touched(START - timedelta(days=1), mesh.now)


def test_a_connection_that_ended_is_an_outage_however_short() -> None:
    mesh = Mesh()
    for _ in range(5):
        mesh.later(2)
    assert mesh.settled()
    mesh.connected = False
    mesh.later(0.5, received=False)
    assert not mesh.settled()
    mesh.connected, mesh.connection = True, 2
    # There again, and no message has come yet.
    assert not mesh.settled()
    mesh.later(0.5)
    back = mesh.now
    assert not mesh.settled()
    mesh.later(SETTLING.total_seconds())
    assert mesh.settled()
    assert mesh.outages.touched(START, mesh.now)
    assert mesh.outages.touched(back - timedelta(seconds=1), back)
    assert not mesh.outages.touched(back + timedelta(seconds=1), mesh.now)
    assert not mesh.outages.touched(START, START + timedelta(seconds=9))


def test_a_silent_broker_is_away_though_the_connection_stands() -> None:
    mesh = Mesh()
    for _ in range(5):
        mesh.later(2)
    silent_since = mesh.now
    mesh.later(SILENCE.total_seconds() + 1, received=False)
    assert not mesh.settled()
    mesh.later(1)
    assert mesh.outages.touched(silent_since + timedelta(seconds=1), silent_since + timedelta(seconds=2))
    mesh.later(SETTLING.total_seconds())
    assert mesh.settled()
