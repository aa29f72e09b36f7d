"""Receipts: a command that waits for the signed log gets the proof, and no command fails because of the wait."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from api.http import receipts
from domain.merkle import leaf_hash, verify_inclusion
from infra.errors import Unavailable
from infra.proof.proofs import ProofFailed, Proofs
from infra.proof.sealed_sizes import SealedSize, SealedSizes
from tests.api.streaming import following
from tests.api.world import TERMS, World, refused, told
from tests.infra.proof.auditing import verified
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("unkept")

WAIT = {"wait": "checkpoint"}


@contextmanager
def sealing(world: World) -> Iterator[None]:
    """Seal all the time, as the sealer does."""
    stop = threading.Event()

    def seal() -> None:
        while not stop.is_set():
            world.server.serving.seal()
            stop.wait(0.05)

    thread = threading.Thread(target=seal)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def check(world: World, receipt: dict[str, Any]) -> None:
    """Verify a receipt as its holder does, who kept the keys of the log."""
    head, _, note = receipt["tlog_proof"].partition("\n\n")
    version, extra, index, *hashes = head.split("\n")
    assert version == "c2sp.org/tlog-proof@v1"
    assert index == f"index {receipt['position'] - 1}"
    signed = verified(note, told(world.client.get("/v1/log"), 200)["vkeys"])
    entry = base64.b64decode(extra.removeprefix("extra "))
    proof = [base64.b64decode(one) for one in hashes]
    verify_inclusion(receipt["position"] - 1, signed.size, leaf_hash(entry), proof, signed.root)


def test_commands_that_wait_answer_with_a_receipt_that_verifies(world: World) -> None:
    with sealing(world):
        permitted = told(
            world.client.put("/v1/creators/c/permission", params=WAIT, json={"enabled": True}),
            200,
        )
        asked = {"creator_id": "c", "video_id": "video-1", "terms_version": TERMS}
        code = told(world.client.post("/v1/codes", params=WAIT, json=asked), 201)
        revoked = told(
            world.client.post(f"/v1/codes/{code['code_id']}/revocation", params=WAIT, json={"reason": "over"}), 200
        )
    for answer in (permitted, code, revoked):
        receipt = answer["receipt"]
        assert (receipt["position"], receipt["state"], receipt["detail"]) == (answer["position"], "sealed", None)
        check(world, receipt)
    assert world.read(code)["state"] == "revoked"


def test_a_replay_gets_a_receipt_of_the_first_result(world: World) -> None:
    headers = {"Idempotency-Key": "one"}
    first = told(world.client.put("/v1/creators/c/permission", headers=headers, json={"enabled": True}), 200)
    assert "receipt" not in first
    world.server.serving.seal()
    again = world.client.put("/v1/creators/c/permission", params=WAIT, headers=headers, json={"enabled": True})
    receipt = told(again, 200).pop("receipt")
    assert again.headers["idempotent-replayed"] == "true"
    assert receipt["position"] == first["position"]
    check(world, receipt)


def test_a_command_that_waited_in_vain_is_recorded_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_WAIT_S", 0.0)
    answer = told(world.client.put("/v1/creators/c/permission", params=WAIT, json={"enabled": True}), 200)
    receipt = answer.pop("receipt")
    assert "recorded" in receipt.pop("detail")
    assert receipt == {"position": answer["position"], "state": "pending", "tlog_proof": None}
    assert world.head() == answer["position"]
    monkeypatch.setattr(receipts, "MAX_WAITING", 0)
    world.server.serving.seal()
    assert told(world.client.put("/v1/creators/c/permission", params=WAIT, json={"enabled": False}), 200)["receipt"][
        "state"
    ] == ("pending")


@pytest.mark.parametrize("error", [ProofFailed("the row was changed"), Unavailable("The database is away.")])
def test_no_command_fails_because_its_proof_does(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Proofs, "of_event", fails)
    with sealing(world):
        answer = told(world.client.put("/v1/creators/c/permission", params=WAIT, json={"enabled": True}), 200)
    assert (answer["receipt"]["state"], answer["receipt"]["tlog_proof"]) == ("pending", None)
    assert "recorded" in answer["receipt"]["detail"]


def test_what_a_command_can_not_wait_for_is_refused_before_it_is_recorded(world: World) -> None:
    for query in ({"wait": "forever"}, [("wait", "checkpoint"), ("wait", "checkpoint")]):
        answer = world.client.put("/v1/creators/c/permission", params=query, json={"enabled": True})  # type: ignore[arg-type] # httpx takes pairs
        assert refused(answer) == (400, "malformed_query")
    assert world.head() == 0


def test_a_refused_command_does_not_wait(world: World) -> None:
    asked = {"creator_id": "nobody", "video_id": "video-1", "terms_version": TERMS}
    assert refused(world.client.post("/v1/codes", params=WAIT, json=asked))[0] == 409


def test_a_command_that_does_not_wait_never_looks_at_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(SealedSizes, "of", asked)
    world.running()


# -- What reads of events say


PENDING: dict[str, Any] = {"state": "pending", "size": None, "witnesses": []}
SEALED = {"state": "sealed", "size": 1, "witnesses": []}


def of_the_log(world: World) -> dict[str, Any]:
    """Return how far the log goes, as every list of events says it."""
    return dict(told(world.client.get("/v1/events"), 200)["sealed"])


def statuses(world: World, *, created: str) -> dict[str, list[Any]]:
    """Return the proof status of the first two events, wherever they are read."""
    trail = world.client.get("/v1/events", params={"limit": 2})
    lines = world.client.get("/v1/events", params={"limit": 2}, headers={"Accept": "application/x-ndjson"})
    export = world.client.get("/v1/exports/events").text.splitlines()
    history = world.client.get(f"/v1/creators/{created}/permission/history")
    table = csv.DictReader(io.StringIO(world.client.get("/v1/exports/events", params={"format": "csv"}).text))
    with following(world.client, after=0) as stream:
        streamed = stream.take(2)
    return {
        "trail": [event["proof"] for event in told(trail, 200)["events"]],
        "lines": [json.loads(line)["proof"] for line in lines.text.splitlines()],
        "export": [json.loads(line)["proof"] for line in export[:2]],
        "history": [event["proof"] for event in told(history, 200)["events"]],
        "single": [told(world.client.get(f"/v1/events/{n}"), 200)["proof"] for n in (1, 2)],
        "stream": [event["proof"] for event in streamed],
        "table": [
            {
                "state": row["proof_state"],
                "size": int(row["proof_size"]) if row["proof_size"] else None,
                "witnesses": row["proof_witnesses"].split(),
            }
            for row in list(table)[:2]
        ],
    }


def test_every_read_of_an_event_says_whether_it_is_sealed(world: World) -> None:
    world.permit("one")
    world.server.serving.seal()
    told(world.client.put("/v1/creators/one/permission", json={"enabled": False}), 200)
    until(lambda: of_the_log(world)["size"] == 1)
    reads = statuses(world, created="one")
    assert {read: proofs for read, proofs in reads.items() if proofs != [SEALED, PENDING]} == {}


def test_lists_say_how_late_sealing_is(world: World) -> None:
    world.permit("one")
    [first] = told(world.client.get("/v1/events"), 200)["events"]
    until(lambda: of_the_log(world)["pending_since"] == first["recorded_at"])
    late = of_the_log(world)
    assert (late["size"], late["witnessed_size"], late["sealed_at"], late["stopped"]) == (0, 0, None, False)
    world.server.serving.seal()
    until(lambda: of_the_log(world)["size"] == 1)
    sealed = of_the_log(world)
    assert (sealed["pending_since"], sealed["sealed_at"] > first["recorded_at"]) == (None, True)
    history = told(world.client.get("/v1/creators/one/permission/history"), 200)["sealed"]
    trailer = json.loads(world.client.get("/v1/exports/events").text.splitlines()[-1])["trailer"]
    assert history == trailer["sealed"] == sealed


def test_an_event_is_witnessed_by_those_that_have_cosigned_a_checkpoint_that_covers_it() -> None:
    known = SealedSize(4, 3, (("w1", 3), ("w2", 2), ("w3", 0)))
    assert [known.status(position) for position in (2, 3, 4, 5)] == [
        {"state": "witnessed", "size": 3, "witnesses": ["w1", "w2"]},
        {"state": "witnessed", "size": 3, "witnesses": ["w1"]},
        {"state": "sealed", "size": 4, "witnesses": []},
        PENDING,
    ]


def test_the_proof_of_an_event_is_also_a_file(world: World) -> None:
    world.permit("one")
    path = "/v1/events/1/proof"
    assert refused(world.client.get(path, params={"format": "tlog-proof"})) == (404, "log_unknown")
    world.server.serving.seal()
    expected = told(world.client.get(path), 200)["tlog_proof"]
    for asked in (
        world.client.get(path, params={"format": "tlog-proof"}),
        world.client.get(path, headers={"Accept": "text/plain"}),
    ):
        assert asked.text == expected
        assert asked.headers["content-type"] == "text/plain; charset=utf-8"
        assert asked.headers["content-disposition"].endswith('-1.tlog-proof"')
    check(world, {"position": 1, "tlog_proof": expected})
    assert told(world.client.get(path, params={"format": "json"}, headers={"Accept": "text/plain"}), 200)
