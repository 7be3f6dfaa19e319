"""Peers: the same 5-step chain on other engines, each in an environment of its own."""

from benchmarks.peers.measure import Contest
from benchmarks.peers.peer import PEERS

__all__ = ["PEERS", "Contest"]
