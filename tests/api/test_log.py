"""The signed log over HTTP: what verifiers fetch, who may, and that nothing else can be had at these addresses."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

import httpx
import pytest

from api.http import single_flight
from api.log import Strangers
from domain.log_tiles import TreeEdge, split_hashes
from domain.merkle import EMPTY_ROOT, leaf_hash, root_of, verify_consistency, verify_inclusion
from infra.errors import Unavailable
from infra.postgres.pool import Database
from infra.proof.checkpoints import Checkpoint
from tests.api.world import World, refused, told
from tests.conftest import TestDatabase
from tests.infra.proof.auditing import sql, verified
from tests.serving import Serving, new_ledger

pytestmark = pytest.mark.usefixtures("unkept")


def address(world: World, path: str, generation: str = "1") -> str:
    return f"/log/{world.server.ledger}/{generation}/{path}"


def sealed(world: World, *public_logs: str) -> Checkpoint:
    """Seal what is recorded, and return the checkpoint that is served, verified."""
    world.server.serving.seal(*public_logs)
    log = told(world.client.get("/v1/log"), 200)
    return verified(log["checkpoint"], log["vkeys"])


def entries_in(bundle: bytes) -> list[bytes]:
    """Return the entries of a bundle, each of which has its length before it."""
    found = []
    while bundle:
        length = int.from_bytes(bundle[:2], "big")
        found.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    return found


def test_before_the_sealer_has_begun_a_log_there_is_nothing_but_its_identity(world: World) -> None:
    log = told(world.client.get("/v1/log"), 200)
    assert {name: log[name] for name in ("origin", "vkeys", "size", "checkpoint", "state", "generation")} == {
        "origin": None,
        "vkeys": [],
        "size": 0,
        "checkpoint": None,
        "state": "not_begun",
        "generation": 1,
    }
    assert refused(world.client.get(address(world, "checkpoint"))) == (404, "log_unknown")


def test_the_log_of_an_empty_ledger_is_signed(world: World) -> None:
    checkpoint = sealed(world)
    assert checkpoint == Checkpoint(f"ledger.example/log/{world.server.ledger}/1", 0, EMPTY_ROOT)
    assert refused(world.client.get(address(world, "tile/0/000.p/1"))) == (404, "log_unknown")
    assert refused(world.client.get(address(world, "tile/entries/000.p/1"))) == (404, "log_unknown")


def test_tiles_and_entries_lead_to_the_root_that_is_signed(world: World) -> None:
    world.running()
    checkpoint = sealed(world)
    size = world.head()
    assert checkpoint.size == size
    bundle = world.client.get(address(world, f"tile/entries/000.p/{size}"))
    leaves = [leaf_hash(entry) for entry in entries_in(bundle.content)]
    tile = world.client.get(address(world, f"tile/0/000.p/{size}"))
    assert split_hashes(tile.content) == leaves
    assert root_of(leaves) == checkpoint.root
    edge = TreeEdge()
    edge.grow(leaves)
    assert edge.root == checkpoint.root
    note = world.client.get(address(world, "checkpoint"))
    assert note.text == told(world.client.get("/v1/log"), 200)["checkpoint"]
    assert {answer.headers["content-type"] for answer in (bundle, tile)} == {"application/octet-stream"}
    assert note.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_private_log_is_kept_by_nobody_but_the_caller(world: World) -> None:
    world.permit()
    sealed(world)
    cached = {path: world.client.get(address(world, path)).headers["cache-control"] for path in PATHS}
    assert cached == {
        "checkpoint": "private, no-cache",
        "tile/0/000.p/1": "private, max-age=31536000, immutable",
        "tile/entries/000.p/1": "private, max-age=31536000, immutable",
    }


PATHS = ("checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1")


def test_a_private_log_is_for_keys_of_its_ledger_alone(world: World) -> None:
    world.permit()
    sealed(world)
    other = world.another()
    told(other.client.put("/v1/creators/creator/permission", json={"enabled": True}), 200)
    other.server.serving.seal()
    with httpx.Client(base_url=world.server.url, trust_env=False) as stranger:
        for path in PATHS:
            assert refused(other.client.get(address(world, path))) == (404, "log_unknown")
            assert refused(stranger.get(address(world, path))) == (401, "unauthenticated")
            assert refused(stranger.get(f"/log/no-such-ledger/1/{path}")) == (401, "unauthenticated")
            assert refused(world.brand().get(address(world, path))) == (403, "not_allowed")


def test_what_is_not_public_costs_the_database_nothing_for_each_stranger(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_flight, "KEEP_S", 3600)
    read: list[int | None] = []
    database_read = Database.read

    async def counted(self: Database, ledger_id: int | None, query: Any) -> Any:
        if self is serving.api.database:
            read.append(ledger_id)
        return await database_read(self, ledger_id, query)

    # A server of its own: it remembers for an hour what is public.
    with Serving(database) as serving:
        ledger = new_ledger(serving).ledger
        with httpx.Client(base_url=serving.url, trust_env=False) as stranger:
            # What is public is looked up once for all who ask.
            assert refused(stranger.get(f"/log/{ledger}/1/checkpoint")) == (401, "unauthenticated")
            monkeypatch.setattr(Database, "read", counted)
            for name in (ledger, "no-such-ledger"):
                for generation in ("1", "2", "x"):
                    for path in PATHS:
                        answer = stranger.get(f"/log/{name}/{generation}/{path}")
                        assert refused(answer) == (401, "unauthenticated")
            assert read == []


def test_a_public_log_is_for_everyone_and_no_other_log_becomes_public(world: World) -> None:
    world.permit()
    other = world.another()
    told(other.client.put("/v1/creators/creator/permission", json={"enabled": True}), 200)
    sealed(world, world.server.ledger)
    with httpx.Client(base_url=world.server.url, trust_env=False) as stranger:
        for path in PATHS:
            answer = stranger.get(address(world, path))
            assert answer.status_code == 200
            assert answer.content == world.client.get(address(world, path)).content
            assert answer.headers["cache-control"].startswith("public, ")
            assert refused(stranger.get(address(other, path))) == (401, "unauthenticated")
            assert other.client.get(address(world, path)).status_code == 200
            for shown in ("Bearer slk_nobody", "Basic", ""):
                answer = stranger.get(address(world, path), headers={"Authorization": shown})
                assert refused(answer) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "tile/0/000",
            "tile/0/000.p/3",
            "tile/0/001.p/1",
            "tile/1/000.p/1",
            "tile/entries/000",
            "tile/entries/000.p/3",
        ),
        *("tile/0/0", "tile/8/000.p/1", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/x000/000.p/1", "tile/", "tile/x"),
        *("tile/0/000.p/1/", "tile/0/x999/x999/x999/x999/x999/x999/999"),
    ],
)
def test_what_is_no_part_of_the_log_is_not_found(world: World, path: str) -> None:
    world.permit("one")
    world.permit("two")
    sealed(world)
    assert world.client.get(address(world, "tile/0/000.p/2")).status_code == 200
    assert world.client.get(address(world, path)).status_code == 404


@pytest.mark.parametrize("generation", ["0", "2", "01", "+1", "1.0", "-1", "9999999999", "\u0661", "x"])
def test_a_generation_that_there_is_not_is_not_found(world: World, generation: str) -> None:
    sealed(world)
    assert refused(world.client.get(address(world, "checkpoint", generation))) == (404, "log_unknown")


def test_a_tile_is_served_at_every_width_that_it_has_had(world: World) -> None:
    for creator in ("one", "two", "three"):
        world.permit(creator)
    sealed(world)
    whole = world.client.get(address(world, "tile/0/000.p/3")).content
    for width in (1, 2):
        part = world.client.get(address(world, f"tile/0/000.p/{width}")).content
        assert part == whole[: 32 * width]


def test_every_role_can_read_the_state_of_its_ledgers_log(world: World) -> None:
    world.permit()
    sealed(world)
    expected = told(world.client.get("/v1/log"), 200)
    assert (expected["size"], expected["state"]) == (1, "sealing")
    assert base64.b64decode(expected["vkeys"][0].split("+", 2)[2])[0] == 1
    for client in (world.creator(), world.brand(), world.as_role("subscriber"), world.as_role("auditor")):
        assert told(client.get("/v1/log"), 200) == expected


async def test_strangers_take_turns_and_are_turned_away_when_too_many_wait() -> None:
    strangers = Strangers(most=2, most_waiting=3)
    inside, entered, leave = 0, asyncio.Event(), asyncio.Event()
    most = 0

    async def read() -> None:
        nonlocal inside, most
        async with strangers.turn():
            inside += 1
            most = max(most, inside)
            entered.set()
            await leave.wait()
            inside -= 1

    reads = [asyncio.create_task(read()) for _ in range(6)]
    await entered.wait()
    turned_away, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_EXCEPTION)
    assert [type(task.exception()) for task in turned_away] == [Unavailable]
    leave.set()
    done = await asyncio.gather(*reads, return_exceptions=True)
    assert [type(outcome) for outcome in done].count(Unavailable) == 1
    assert (most, inside) == (2, 0)


# -- Proofs


def hashes_of(proof: dict[str, Any]) -> tuple[int, list[bytes], Checkpoint]:
    """Read a proof as a verifier of C2SP's tlog-proof does: the index, the hashes and the checkpoint."""
    text, _, note = proof["tlog_proof"].partition("\n\n")
    head, extra, index, *hashes = text.split("\n")
    assert head == "c2sp.org/tlog-proof@v1"
    assert extra == f"extra {proof['entry']}"
    assert index.startswith("index ")
    keys = proof["keys"]
    checkpoint = verified(note, keys)
    return int(index.removeprefix("index ")), [base64.b64decode(one) for one in hashes], checkpoint


def prove(world: World, position: int) -> dict[str, Any]:
    """Return the proof of an event, with the keys that an auditor kept."""
    proof = told(world.client.get(f"/v1/events/{position}/proof"), 200)
    return proof | {"keys": told(world.client.get("/v1/log"), 200)["vkeys"]}


def test_an_event_is_proven_from_its_content_up_to_the_signed_root(world: World) -> None:
    world.running()
    checkpoint = sealed(world)
    for position in range(1, world.head() + 1):
        proof = prove(world, position)
        content, envelope, entry = (base64.b64decode(proof[name]) for name in ("content", "envelope", "entry"))
        assert hashlib.sha256(content).digest() == envelope[-32:]
        assert hashlib.sha256(envelope).digest() == entry[-32:]
        index, hashes, signed = hashes_of(proof)
        assert (proof["state"], index, signed) == ("sealed", position - 1, checkpoint)
        verify_inclusion(index, signed.size, leaf_hash(entry), hashes, signed.root)


def test_an_event_that_no_checkpoint_covers_yet_is_pending(world: World) -> None:
    world.permit("one")
    before = prove(world, 1)
    assert (before["state"], before["size"], before["tlog_proof"], before["entry"]) == ("pending", 0, None, None)
    sealed(world)
    world.permit("two")
    after = prove(world, 2)
    assert (after["state"], after["size"]) == ("pending", 0)
    assert refused(world.client.get("/v1/events/3/proof")) == (404, "event_unknown")
    assert refused(world.client.get("/v1/events/x/proof")) == (404, "event_unknown")


def test_a_creator_proves_own_events_without_what_is_for_auditors(world: World) -> None:
    world.permit()
    world.permit("creator-other")
    sealed(world)
    creator = world.creator()
    own = told(creator.get("/v1/events/1/proof"), 200)
    assert (own["content"], own["state"]) == (None, "sealed")
    assert own["tlog_proof"] == prove(world, 1)["tlog_proof"]
    assert refused(creator.get("/v1/events/2/proof")) == (403, "not_allowed")


def test_a_log_is_proven_to_continue_what_was_signed(world: World) -> None:
    signed = []
    for number in range(5):
        world.permit(f"creator-{number}")
        signed.append(sealed(world))
    for old in signed:
        for new in signed:
            asked = {"old": old.size, "new": new.size}
            answer = world.client.get("/v1/log/consistency", params=asked)
            if old.size > new.size:
                assert refused(answer) == (400, "malformed_query")
                continue
            proof = told(answer, 200)
            hashes = [base64.b64decode(one) for one in proof["hashes"]]
            verify_consistency(old.size, new.size, old.root, new.root, hashes)
            assert (proof["old_root"], proof["new_root"]) == tuple(
                base64.b64encode(one.root).decode() for one in (old, new)
            )
    newest = told(world.client.get("/v1/log/consistency", params={"old": 1}), 200)
    assert newest["new"] == signed[-1].size


@pytest.mark.parametrize("query", [{}, {"old": 0}, {"old": "x"}, {"old": 1, "new": 0}])
def test_a_size_that_is_none_is_refused(world: World, query: dict[str, Any]) -> None:
    assert refused(world.client.get("/v1/log/consistency", params=query)) == (400, "malformed_query")


def test_an_older_size_above_the_newer_one_is_refused_whatever_is_sealed(world: World) -> None:
    answer = world.client.get("/v1/log/consistency", params={"old": 5, "new": 3})
    assert refused(answer) == (400, "malformed_query")
    assert answer.json()["errors"] == [
        {"pointer": "/new", "problem": "The newer size must not be smaller than the older one, `old`."}
    ]


@pytest.mark.parametrize("query", [{"old": 2}, {"old": 1, "new": 2}])
def test_what_no_checkpoint_covers_is_not_proven(world: World, query: dict[str, Any]) -> None:
    assert refused(world.client.get("/v1/log/consistency", params={"old": 1})) == (404, "log_unknown")
    world.permit()
    sealed(world)
    assert refused(world.client.get("/v1/log/consistency", params=query)) == (404, "log_unknown")


def test_what_does_not_fit_the_signed_log_is_never_sent_as_a_proof(database: TestDatabase) -> None:
    # A server of its own: what is changed here would stop the sealer for others.
    with Serving(database) as serving:
        server = new_ledger(serving)
        with server.client() as client:
            world = World(server, client)
            world.permit("one")
            world.permit("two")
            sealed(world)
            sql(database, "ALTER TABLE events DISABLE TRIGGER ALL")
            sql(database, "UPDATE events SET source = 'brand' WHERE position = 1")
            assert refused(client.get("/v1/events/1/proof")) == (500, "proof_failed")
            assert prove(world, 2)["state"] == "sealed"
            sql(database, "UPDATE log_tiles SET hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1)")
            assert refused(client.get("/v1/events/2/proof")) == (500, "proof_failed")
            assert refused(client.get("/v1/log/consistency", params={"old": 1})) == (500, "proof_failed")
            sql(database, "DELETE FROM log_tiles")
            assert refused(client.get("/v1/log/consistency", params={"old": 1})) == (500, "proof_failed")


def test_the_newest_checkpoint_that_witnesses_have_signed_is_served(world: World) -> None:
    sealed(world)
    params = {"witnessed": "true"}
    assert refused(world.client.get(address(world, "checkpoint"), params=params)) == (404, "log_unknown")
    statement = """
        INSERT INTO witnessed_checkpoints
        SELECT t.ledger_id, 1, x.size, 'signed at ' || x.size, 1, now()
        FROM log_trees t CROSS JOIN (VALUES (1), (2)) x (size)
        WHERE t.ledger = %s
    """
    sql(world.server.database, statement, world.server.ledger)
    assert world.client.get(address(world, "checkpoint"), params=params).text == "signed at 2"
