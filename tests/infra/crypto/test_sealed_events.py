"""What is secret in the log: bound to its place, provable without a key, and nowhere in clear."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from typing import Any
from uuid import UUID

import orjson
import pytest
from cryptography.exceptions import InvalidTag

from domain.values import Sealed
from infra.crypto.envelope import CreatorKey, MasterKeyError, associated_data
from infra.crypto.keyring import Keyring
from infra.postgres.embedded.cluster import binary
from tests import given
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.keys import master_key

CANARY_SECRET = "#canary/secret+of=the#code"
CANARY_NOTE = "canary note to the brand"
CANARIES = ("canary/secret", "canary note")


async def canaries(opened: Opened) -> Tenant:
    """Record a secret and two notes, each of which must never be found in clear."""
    tenant = await opened.begin()
    for command in (
        given.permission(),
        given.generate(secret=Sealed(CANARY_SECRET)),
        given.share(note=CANARY_NOTE),
        given.note(text=CANARY_NOTE),
        given.redeem(Sealed(CANARY_SECRET)),
        given.reveal(),
    ):
        await opened.when(tenant, command, f"key-{id(command)}")
    return tenant


async def sealed_row(opened: Opened, tenant: Tenant, position: int) -> tuple[Any, ...]:
    """Return key id, sealed part, commitment and place of an event."""
    columns = "key_id, sealed, commitment, stream_id, version, event_id, type"
    key_id, sealed, commitment, *where = opened.sql(f"SELECT {columns} FROM events WHERE position = %s", position)[0]
    return key_id, bytes(sealed), bytes(commitment), associated_data(tenant.ledger_id, *where)


async def opened_key(opened: Opened, keyring: Keyring, tenant: Tenant, key_id: UUID) -> CreatorKey:
    """Unwrap a creator's key as it is stored."""
    ((wrapped,),) = opened.sql("SELECT wrapped FROM creator_keys WHERE key_id = %s", key_id)
    return await keyring.opened(tenant.ledger_id, key_id, wrapped)


async def test_a_secret_comes_back_as_it_was(opened: Opened) -> None:
    secrets = [
        "#1a2b/3c+4d=",
        "abc\"'\\`$(;--",
        "ünïcödé-日本語-🎬-\u200b-\u0301",
        " leading and trailing ",
        "tab\tand\nnewline",
        "x",
        "#" * 4_096,
    ]
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    told = []
    for number, secret in enumerate(secrets):
        code = UUID(int=number + 1)
        await opened.when(tenant, given.generate(code, video_id=f"video-{number}", secret=Sealed(secret)))
        told.append(str(await opened.aggregates.secret(tenant.ledger_id, code)))
    assert told == secrets


async def test_a_note_comes_back_as_it_was(opened: Opened) -> None:
    tenant = await canaries(opened)
    stream = await opened.aggregates.code_stream(tenant.ledger_id, given.CODE)
    notes = await opened.aggregates.unsealed(tenant.ledger_id, stream)
    assert notes == {2: {"secret": CANARY_SECRET}, 3: {"note": CANARY_NOTE}, 4: {"text": CANARY_NOTE}}


async def test_a_sealed_part_that_was_moved_to_another_row_does_not_open(opened: Opened) -> None:
    tenant = await canaries(opened)
    keyring = Keyring(opened.api.database, MASTER_KEY)
    key_id, sealed, _, own = await sealed_row(opened, tenant, 3)
    _, _, _, other = await sealed_row(opened, tenant, 4)
    key = await opened_key(opened, keyring, tenant, key_id)
    assert key.unseal(sealed, own) == {"note": CANARY_NOTE}
    with pytest.raises(InvalidTag):
        key.unseal(sealed, other)


async def test_a_sealed_part_does_not_open_with_another_creators_key(opened: Opened) -> None:
    tenant = await canaries(opened)
    keyring = Keyring(opened.api.database, MASTER_KEY)
    _, sealed, _, own = await sealed_row(opened, tenant, 3)
    with pytest.raises(InvalidTag):
        (await keyring.creator(tenant.ledger_id, "creator-2")).unseal(sealed, own)


async def test_two_creators_are_sealed_under_two_keys(opened: Opened) -> None:
    tenant = await canaries(opened)
    await opened.when(tenant, given.permission(creator_id="creator-2"))
    other = given.generate(given.OTHER_CODE, creator_id="creator-2", video_id="video-2", secret=given.OTHER_SECRET)
    await opened.when(tenant, other)
    assert opened.sql("SELECT count(DISTINCT key_id) FROM events") == [(2,)]


async def test_the_commitment_is_verified_from_salt_and_plaintext_without_a_key(opened: Opened) -> None:
    tenant = await canaries(opened)
    key_id, sealed, commitment, own = await sealed_row(opened, tenant, 2)
    key = await opened_key(opened, Keyring(opened.api.database, MASTER_KEY), tenant, key_id)
    # What the holder of the key hands to a verifier: all that follows needs none.
    plaintext = key._sealing.unseal(sealed, own + key_id.bytes)
    salt, fields = plaintext[:32], plaintext[32:]
    assert hashlib.sha256(salt + fields).digest() == commitment
    assert orjson.loads(fields) == {"secret": CANARY_SECRET}


async def test_the_same_note_twice_has_two_commitments(opened: Opened) -> None:
    """Without a salt, a guess of a note could be confirmed."""
    tenant = await canaries(opened)
    assert (await sealed_row(opened, tenant, 3))[2] != (await sealed_row(opened, tenant, 4))[2]


async def test_another_master_key_opens_nothing(opened: Opened) -> None:
    tenant = await canaries(opened)
    wrong = Keyring(opened.api.database, master_key(b"\xff" * 32))
    with pytest.raises(MasterKeyError, match="are wrapped with master key"):
        await wrong.ledger(tenant.ledger_id)
    with pytest.raises(MasterKeyError, match="are wrapped with master key"):
        await opened_key(opened, wrong, tenant, (await sealed_row(opened, tenant, 2))[0])


async def test_two_processes_that_seal_for_a_new_creator_at_once_use_one_key(opened: Opened) -> None:
    tenant = await opened.begin()
    rings = [Keyring(opened.api.database, MASTER_KEY) for _ in range(8)]
    keys = {(await ring.creator(tenant.ledger_id, "creator-9")).key_id for ring in rings}
    assert len(keys) == 1


async def test_no_table_holds_a_secret_or_a_note_in_clear(opened: Opened) -> None:
    await canaries(opened)
    await opened.apply()
    found, scanned = in_clear(opened)
    assert found == []
    assert scanned > 100


def in_clear(opened: Opened) -> tuple[list[str], int]:
    """Look for the canaries in every column of every table, as text and as bytes; return where, and in how many."""
    columns = opened.sql(
        "SELECT c.oid::regclass::text, a.attname FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relkind IN ('r', 'p', 'm') AND c.relnamespace::regnamespace::text NOT IN"
        " ('pg_catalog', 'information_schema', 'pg_toast')"
    )
    found = []
    for table, column in columns:
        for canary in CANARIES:
            shapes = [canary, canary.encode().hex(), canary.encode("utf-16-le").hex()]
            where = " OR ".join(f'position(%s IN "{column}"::text) > 0' for _ in shapes)
            if opened.sql(f"SELECT 1 FROM {table} WHERE {where} LIMIT 1", *shapes):
                found.append(f"{table}.{column}")
    return found, len(columns)


async def test_the_search_for_secrets_in_clear_can_find_one(opened: Opened) -> None:
    opened.sql("CREATE TABLE leak (as_text text, as_bytes bytea)")
    opened.sql("INSERT INTO leak VALUES (%s, %s)", CANARY_NOTE, CANARY_SECRET.encode())
    assert in_clear(opened)[0] == ["leak.as_text", "leak.as_bytes"]


async def test_a_dump_of_the_database_holds_no_secret_and_no_note_in_clear(opened: Opened) -> None:
    await canaries(opened)
    await opened.apply()
    dump = await asyncio.to_thread(dumped, opened.database.dsn())
    assert given.VIDEO.encode() in dump
    shapes = [shape for canary in CANARIES for shape in (canary.encode(), canary.encode().hex().encode())]
    assert [shape for shape in shapes if shape in dump] == []


def dumped(dsn: str) -> bytes:
    return subprocess.run([str(binary("pg_dump")), "--dbname", dsn], check=True, capture_output=True, timeout=60).stdout


async def test_what_is_sealed_is_in_no_clear_body_and_in_no_fingerprint(opened: Opened) -> None:
    await canaries(opened)
    bodies = [bytes(body) for (body,) in opened.sql("SELECT body FROM events ORDER BY position")]
    assert [body for body in bodies if b"canary" in body] == []
    unkeyed = [hashlib.sha256(text.encode()).hexdigest().encode() for text in (CANARY_SECRET, CANARY_NOTE)]
    assert [body for body in bodies for digest in unkeyed if digest[:32] in body] == []


async def test_two_ledgers_know_one_secret_by_two_fingerprints(opened: Opened) -> None:
    for name in ("one", "two"):
        tenant = await opened.begin(name)
        await opened.when(tenant, given.permission())
        await opened.when(tenant, given.generate())
    marks = opened.sql(
        "SELECT convert_from(body, 'UTF8')::jsonb ->> 'fingerprint' FROM events WHERE type = 'CodeGenerated'"
    )
    assert len({mark for (mark,) in marks}) == 2
    assert opened.sql("SELECT count(*), count(DISTINCT claim) FROM claims") == [(6, 6)]
