"""An auditor of signed logs, who trusts nothing but the verifier keys: signatures, tiles and entries, checked again."""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from domain.merkle import complete_subtrees, consistency_parts, join, leaf_hash, node_hash, root_of, verify_consistency
from infra.proof.checkpoints import ED25519, ML_DSA_44, Checkpoint, cosigned
from tests.conftest import TestDatabase
from tests.infra.opened import Opened, Tenant

RECORD = """
    INSERT INTO events (ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at,
                        effective_at, creator_stream, actor_role, source, command_id, format, body)
    SELECT %s, n, gen_random_uuid(), 1, gen_random_uuid(), 'Tested', 1, now(), now(), gen_random_uuid(), 'operator',
           'operator', gen_random_uuid(), 1, convert_to('{"number":' || n || '}', 'UTF8')
    FROM generate_series(%s::bigint, %s::bigint) n
"""
SERVED = "SELECT checkpoint, verifier_keys FROM log_trees WHERE ledger_id = %s AND generation = %s"
TILES = "SELECT level, index, hashes FROM log_tiles WHERE ledger_id = %s AND generation = %s"


def sql(database: TestDatabase, query: str, *parameters: Any) -> list[Any]:
    """Ask a database itself, as its superuser."""
    return database.sql(query, parameters or None)


def record(opened: Opened, tenant: Tenant, upto: int) -> None:
    """Let the ledger end at a position; by SQL, because it is quick."""
    [(head,)] = opened.sql("SELECT coalesce(max(position), 0) FROM events WHERE ledger_id = %s", tenant.ledger_id)
    opened.sql(RECORD, tenant.ledger_id, head + 1, upto)


def tamper(opened: Opened, statement: str) -> None:
    """Change the log as a superuser who knows about the trigger."""
    opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    opened.sql(statement)


def stopped(opened: Opened, tenant: Tenant) -> str | None:
    """Return why a ledger's log is not sealed."""
    [(reason,)] = opened.sql("SELECT stopped FROM log_trees WHERE ledger_id = %s", tenant.ledger_id)
    return str(reason) if reason is not None else None


def entries(opened: Opened, tenant: Tenant, first: int, last: int, generation: int = 1) -> tuple[int, bytes]:
    """Return how many entries of a ledger the database computes, and their bundle."""
    with psycopg.connect(opened.database.dsn(), autocommit=True) as connection:
        connection.execute("SELECT set_config('sparkledger.ledger', %s, false)", (f"{tenant.ledger_id}:",))
        place = (tenant.ledger_id, generation, first, last)
        row = connection.execute("SELECT * FROM log_entries(%s, %s, %s, %s)", place).fetchone()
    assert row is not None
    return row[0], row[1]


@dataclass
class Auditor:
    """Keeps every checkpoint of a log that was served, and checks each against those before it."""

    opened: Opened
    tenant: Tenant
    generation: int = 1
    seen: list[Checkpoint] = field(default_factory=list)

    def check(self) -> int:
        """Check what is served: signatures, tiles, entries, and that it continues what was served; return the size."""
        [(note, keys)] = self.opened.sql(SERVED, self.tenant.ledger_id, self.generation)
        checkpoint = verified(note, keys)
        leaves = self.leaves(checkpoint.size)
        assert root_of(leaves) == checkpoint.root
        self._check_tiles(leaves)
        for before in self.seen:
            assert before.size <= checkpoint.size, "the served checkpoint became smaller"
            if before.size == checkpoint.size:
                assert before == checkpoint
            elif before.size:
                proof = [_root(leaves, part) for part in consistency_parts(before.size, checkpoint.size)]
                verify_consistency(before.size, checkpoint.size, before.root, checkpoint.root, proof)
        self.seen.append(checkpoint)
        return checkpoint.size

    def leaves(self, size: int) -> list[bytes]:
        """Return the hashes of the entries as they are served."""
        found: list[bytes] = []
        for first in range(1, size + 1, 256):
            last = min(first + 255, size)
            count, bundle = entries(self.opened, self.tenant, first, last, self.generation)
            assert count == last - first + 1
            assert len(bundle) == 67 * count
            found += [leaf_hash(bundle[at + 2 : at + 67]) for at in range(0, len(bundle), 67)]
        return found

    def tile_hashes(self) -> list[bytes]:
        """Return the leaf hashes that the tiles hold."""
        tiles = self.opened.sql(f"{TILES} AND level = 0 ORDER BY index", self.tenant.ledger_id, self.generation)
        return [hashes[at : at + 32] for _, _, hashes in tiles for at in range(0, len(hashes), 32)]

    def _check_tiles(self, leaves: list[bytes]) -> None:
        rows = self.opened.sql(TILES, self.tenant.ledger_id, self.generation)
        tiles = {(level, index): hashes for level, index, hashes in rows}
        level, hashes = 0, leaves
        while hashes:
            for at in range(0, len(hashes), 256):
                assert tiles[level, at // 256].startswith(b"".join(hashes[at : at + 256]))
            full = [hashes[at : at + 256] for at in range(0, len(hashes) - 255, 256)]
            level, hashes = level + 1, [root_of(tile) for tile in full]


def verified(note: str, keys: list[str]) -> Checkpoint:
    """Return the checkpoint of a note, both of whose signatures are valid, by the bytes of the specifications."""
    text, _, signatures = note.partition("\n\n")
    checkpoint = Checkpoint.parse(f"{text}\n".encode())
    lines = signatures.splitlines()
    assert len(lines) == len(keys) == 2
    kinds = []
    for line, key in zip(lines, keys, strict=True):
        name, id_, encoded = key.split("+", 2)
        kind, public = base64.b64decode(encoded)[0], base64.b64decode(encoded)[1:]
        kinds.append(kind)
        assert name == checkpoint.origin
        assert id_ == hashlib.sha256(f"{name}\n".encode() + bytes([kind]) + public).digest()[:4].hex()
        dash, signer, signature = line.split(" ")
        assert (dash, signer) == ("—", name)
        raw = base64.b64decode(signature)
        assert raw[:4].hex() == id_
        if kind == ED25519:
            Ed25519PublicKey.from_public_bytes(public).verify(raw[4:], f"{text}\n".encode())
        else:
            [at] = struct.unpack(">Q", raw[4:12])
            MLDSA44PublicKey.from_public_bytes(public).verify(raw[12:], cosigned(name, checkpoint, at))
    assert kinds == [ED25519, ML_DSA_44]
    return checkpoint


def _root(leaves: list[bytes], part: range) -> bytes:
    """Return the hash of a part from the leaves alone."""
    hashes = []
    for subtree in complete_subtrees(part):
        row = leaves[subtree.index << subtree.level : (subtree.index + 1) << subtree.level]
        while len(row) > 1:
            row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row), 2)]
        hashes.append(row[0])
    return join(hashes)
