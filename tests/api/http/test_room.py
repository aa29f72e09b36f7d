"""Connections beyond the limits: those that are idle make room, and those in use keep it."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.http import protocol
from api.http.protocol import MAX_CONNECTIONS, BoundedProtocol, bounded_by_address

CLIENT, OTHER, ATTACKER, PROXY = "192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1"
USED = SimpleNamespace(response_complete=True)
IN_USE = SimpleNamespace(response_complete=False)


class Transport:
    """What is looked at of a transport."""

    def __init__(self) -> None:
        self.aborted = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Listening:
    """A server whose connections are made one after another."""

    def __init__(self, of_an_address: int) -> None:
        self._kind = bounded_by_address(of_an_address, [f"{PROXY}/32"])
        self.connections: set[BoundedProtocol] = set()
        self._made = 0

    def made(self, address: str, cycle: Any = None) -> tuple[Any, bytes | None]:
        """Make a connection; return it, and what it is answered if there is no room."""
        self._made += 1
        one = cast("Any", object.__new__(self._kind))
        one.connections, one.client, one.made_at = self.connections, (address, 1), float(self._made)
        one.transport, one.cycle, one.pipeline = Transport(), cycle, deque()
        self.connections.add(one)
        refusal: bytes | None = one._counted()
        return one, refusal

    def several(self, number: int, address: str, cycle: Any = None) -> list[Any]:
        return [self.made(address, cycle)[0] for _ in range(number)]

    def settle(self) -> None:
        """Let the loop tell connections that they have ended."""
        for one in [one for one in self.connections if one.transport.is_closing()]:
            self.connections.discard(one)
            if one.address is not None:
                self._kind._of_addresses[one.address] -= 1


def aborted(connections: list[Any]) -> int:
    return sum(one.transport.aborted for one in connections)


def test_three_thousand_silent_connections_keep_nobody_out() -> None:
    """Those of the address that has most are closed, the oldest first, and not those of others."""
    listening = Listening(of_an_address=MAX_CONNECTIONS)
    kept_alive, in_use = listening.several(10, CLIENT, USED), listening.several(5, OTHER, IN_USE)
    silent = listening.several(MAX_CONNECTIONS - 15, ATTACKER)
    assert len(listening.connections) == MAX_CONNECTIONS

    refusals = [listening.made(OTHER)[1] for _ in range(150)]
    listening.settle()

    assert refusals == [None] * 150
    assert (aborted(kept_alive), aborted(in_use)) == (0, 0)
    assert aborted(silent) == aborted(silent[: aborted(silent)]) == 2 * protocol.CLOSED_AT_ONCE
    assert len(listening.connections) <= MAX_CONNECTIONS


def test_an_address_with_its_share_gets_another_connection_for_its_oldest_silent_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that one client cannot keep out those that share its address."""
    monkeypatch.setattr(protocol, "CLOSED_AT_ONCE", 1)
    listening = Listening(of_an_address=4)
    elsewhere, (used,) = listening.several(3, OTHER), listening.several(1, CLIENT, USED)
    oldest, *younger = listening.several(3, CLIENT)

    _, refusal = listening.made(CLIENT)

    assert refusal is None
    assert oldest.transport.aborted
    assert aborted([used, *younger, *elsewhere]) == 0


def test_an_address_that_connects_without_end_never_has_more_than_its_share() -> None:
    listening = Listening(of_an_address=1_500)
    for _ in range(3_005):
        assert listening.made(ATTACKER)[1] is None
        listening.settle()
        assert len(listening.connections) <= 1_500


@pytest.mark.parametrize("cycle", [IN_USE, SimpleNamespace(response_complete=True)])
def test_a_connection_with_a_request_to_answer_makes_no_room(cycle: Any) -> None:
    listening = Listening(of_an_address=2)
    busy = listening.several(2, CLIENT, cycle)
    for one in busy:
        if cycle is not IN_USE:
            one.pipeline.append("a request that waits for its turn")

    _, refusal = listening.made(CLIENT)

    assert b"429 Too Many Requests" in (refusal or b"")
    assert aborted(busy) == 0


def test_a_process_full_of_connections_in_use_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 20)
    listening = Listening(of_an_address=1_000)
    busy = listening.several(20, CLIENT, IN_USE)

    assert b"503 Service Unavailable" in (listening.made(OTHER)[1] or b"")
    assert aborted(busy) == 0


def test_connections_of_a_trusted_proxy_close_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 20)
    listening = Listening(of_an_address=1_000)
    proxied, silent = listening.several(17, PROXY, USED), listening.several(3, ATTACKER)

    assert listening.made(OTHER)[1] is None
    assert (aborted(proxied), aborted(silent)) == (0, 3)


def test_an_evicted_connection_counts_once_however_many_come_before_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(protocol, "CLOSED_AT_ONCE", 3)
    listening = Listening(of_an_address=1_000)
    silent = listening.several(20, ATTACKER)

    assert [listening.made(OTHER)[1] for _ in range(3)] == [None] * 3
    assert aborted(silent) == 3
    assert listening.made(OTHER)[1] is None
    assert aborted(silent) == 6
