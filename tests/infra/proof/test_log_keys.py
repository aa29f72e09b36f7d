"""The files of signing keys while one pair takes over from another, and which keys sign by what is recorded."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from infra.proof.checkpoints import Checkpoint
from infra.proof.errors import SealingStopped
from infra.proof.log_keys import KeyChange, active_keys, retired_keys
from infra.proof.notes import SignedNote, VerifierKey
from infra.proof.sealer import SealerSettings
from infra.proof.signing_keys import add_pair, create_signer, destroy_pairs, key_path, load_signer, replace_pairs
from tests.infra.opened import Opened
from tests.infra.proof.auditing import record, stopped
from tests.infra.proof.sealing import sealing

ORIGIN = "ledger.example/log/main/1"


def change(type_: str, number: int, generation: int = 1) -> KeyChange:
    return KeyChange(type_, {"generation": generation, "vkey": f"a{number}", "ml_dsa_vkey": f"b{number}"})


def test_a_key_is_added_and_retired_by_what_is_recorded_and_twice_is_once() -> None:
    first, second, third = (["a1", "b1"], ["a2", "b2"], ["a3", "b3"])
    changes = [change("LogKeyAdded", 2), change("LogKeyRetired", 1), change("LogKeyAdded", 3)]
    assert active_keys(first, changes[:1], 1) == [*first, *second]
    assert active_keys(first, changes[:2], 1) == second
    assert active_keys(second, changes[:2], 1) == second
    assert active_keys(second, changes, 1) == [*second, *third]
    assert active_keys(third, [*changes, change("LogKeyRetired", 2)], 1) == third
    assert active_keys(first, [change("LogKeyRetired", 1, generation=2)], 1) == first
    assert retired_keys([*changes, change("LogKeyRetired", 2, generation=2)], 1) == ["a1", "b1"]


def test_both_pairs_sign_while_one_takes_over(tmp_path: Path) -> None:
    log_id = uuid4()
    first = create_signer(tmp_path, log_id, ORIGIN)
    second = add_pair(tmp_path, log_id, ORIGIN)
    both = load_signer(tmp_path, log_id, ORIGIN)
    assert both.verifier_keys == [*first.verifier_keys, *second.verifier_keys]
    note = SignedNote.parse(both.sign(Checkpoint(ORIGIN, 3, bytes(32)), 7).encode())
    assert len(note.signatures) == 4
    for key in map(VerifierKey.parse, both.verifier_keys):
        [signature] = note.by(key)
        key.signed_at(note.checkpoint, signature)
    assert both.only(second.verifier_keys).verifier_keys == second.verifier_keys
    for wrong in ([], ["another"], [*second.verifier_keys, "another"], second.verifier_keys[:1]):
        with pytest.raises(LookupError):
            both.only(wrong)
    destroy_pairs(tmp_path, log_id, ORIGIN, first.verifier_keys)
    assert load_signer(tmp_path, log_id, ORIGIN).verifier_keys == second.verifier_keys
    # The last pair stays, whatever is asked.
    destroy_pairs(tmp_path, log_id, ORIGIN, second.verifier_keys)
    assert load_signer(tmp_path, log_id, ORIGIN).verifier_keys == second.verifier_keys
    third = replace_pairs(tmp_path, log_id, ORIGIN)
    assert load_signer(tmp_path, log_id, ORIGIN).verifier_keys == third.verifier_keys
    assert key_path(tmp_path, log_id).stat().st_mode & 0o777 == 0o600


def test_a_file_with_more_than_two_pairs_is_refused(tmp_path: Path) -> None:
    log_id = uuid4()
    create_signer(tmp_path, log_id, ORIGIN)
    content = key_path(tmp_path, log_id).read_bytes()
    key_path(tmp_path, log_id).write_bytes(content * 3)
    with pytest.raises(SealingStopped, match="does not contain signing keys"):
        load_signer(tmp_path, log_id, ORIGIN)


ADDED_BY_SQL = """
    INSERT INTO events (ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at,
                        effective_at, creator_stream, actor_role, source, command_id, format, body)
    SELECT l.ledger_id, 4, l.log_id, 1, gen_random_uuid(), 'LogKeyAdded', 1, now(), now(), l.log_id, 'admin',
           'operator', gen_random_uuid(), 1,
           convert_to('{"generation":1,"vkey":"x+00000000+AA==","ml_dsa_vkey":"y+00000000+BB=="}', 'UTF8')
    FROM ledgers l
"""


async def test_a_key_that_somebody_adds_by_sql_signs_nothing_and_stops_the_sealer(
    opened: Opened, tmp_path: Path
) -> None:
    tenant = await opened.begin()
    settings = SealerSettings(tmp_path / "signing", "ledger.example/log")
    record(opened, tenant, 3)
    with sealing(opened, settings) as running:
        running.step()
        opened.sql(ADDED_BY_SQL)
        running.step()
        assert "is not the one" in (stopped(opened, tenant) or "")
    [(keys, size)] = opened.sql("SELECT verifier_keys, checkpoint_size FROM log_trees")
    assert (len(keys), size) == (2, 4)
