"""Keys and what is done with them, without a database."""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from uuid import UUID

import pytest
from cryptography.exceptions import InvalidTag

from domain.values import Sealed
from infra.crypto.envelope import ApiKeyHashing, CreatorKey, LedgerKeys, MasterKeyError, associated_data, fresh_key
from infra.crypto.master_keys import MasterKey

MASTER = MasterKey(b"\x01" * 32)
KEY = CreatorKey(UUID(int=7), b"\x02" * 32)
WHERE: dict[str, Any] = {
    "ledger_id": 1,
    "stream_id": UUID(int=3),
    "version": 4,
    "event_id": UUID(int=5),
    "type_": "Shared",
}
FIELDS = {"note": "for #summer/+campaign="}


def test_what_is_sealed_opens_in_its_place() -> None:
    part = KEY.seal(FIELDS, associated_data(**WHERE))
    assert KEY.unseal(part.sealed, associated_data(**WHERE)) == FIELDS


def test_what_is_unsealed_does_not_show_itself() -> None:
    part = KEY.seal(FIELDS, associated_data(**WHERE))
    assert repr(KEY.unseal(part.sealed, associated_data(**WHERE))) == "{'note': Sealed('…')}"


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"ledger_id": 2},
        {"stream_id": UUID(int=4)},
        {"version": 5},
        {"event_id": UUID(int=6)},
        {"type_": "NoteAdded"},
        # The same digits, divided otherwise.
        {"ledger_id": 11, "version": 4},
    ],
    ids=str,
)
def test_what_is_sealed_does_not_open_in_another_place(elsewhere: dict[str, Any]) -> None:
    part = KEY.seal(FIELDS, associated_data(**WHERE))
    with pytest.raises(InvalidTag):
        KEY.unseal(part.sealed, associated_data(**(WHERE | elsewhere)))


@pytest.mark.parametrize("other", [CreatorKey(UUID(int=7), b"\x03" * 32), CreatorKey(UUID(int=8), b"\x02" * 32)])
def test_what_is_sealed_does_not_open_with_another_key_or_under_another_keys_name(other: CreatorKey) -> None:
    part = KEY.seal(FIELDS, associated_data(**WHERE))
    with pytest.raises(InvalidTag):
        other.unseal(part.sealed, associated_data(**WHERE))


@pytest.mark.parametrize("byte", [0, 11, 12, 40, -1])
def test_a_sealed_part_of_which_a_bit_was_turned_does_not_open(byte: int) -> None:
    sealed = bytearray(KEY.seal(FIELDS, associated_data(**WHERE)).sealed)
    sealed[byte] ^= 1
    with pytest.raises(InvalidTag):
        KEY.unseal(bytes(sealed), associated_data(**WHERE))


def test_the_same_fields_are_never_sealed_alike() -> None:
    parts = [KEY.seal(FIELDS, associated_data(**WHERE)) for _ in range(50)]
    assert len({part.sealed for part in parts}) == len({part.commitment for part in parts}) == 50


def test_the_commitment_is_over_the_salt_and_the_plaintext() -> None:
    part = KEY.seal({"b": "2", "a": "1"}, associated_data(**WHERE))
    plaintext = KEY._sealing.unseal(part.sealed, associated_data(**WHERE) + KEY.key_id.bytes)
    assert plaintext[32:] == b'{"a":"1","b":"2"}'
    assert hashlib.sha256(plaintext).digest() == part.commitment


async def test_a_wrapped_key_is_unwrapped_for_its_own_purpose_alone() -> None:
    key, (master,) = fresh_key(), MASTER.key_ids
    wrapped = await MASTER.wrap(master, key, "creator key 1 of ledger 1")
    assert await MASTER.unwrap(master, wrapped, "creator key 1 of ledger 1") == key
    with pytest.raises(MasterKeyError, match="creator key 1 of ledger 2 cannot be unwrapped"):
        await MASTER.unwrap(master, wrapped, "creator key 1 of ledger 2")


@pytest.mark.parametrize("wrapped", [b"", b"short", bytes(60)])
async def test_what_was_never_wrapped_is_not_unwrapped(wrapped: bytes) -> None:
    with pytest.raises(MasterKeyError, match="The purpose cannot be unwrapped"):
        await MASTER.unwrap(MASTER.key_ids[0], wrapped, "purpose")


async def test_a_wrapped_key_is_not_unwrapped_by_another_master_key() -> None:
    wrapped = await MASTER.wrap(MASTER.key_ids[0], fresh_key(), "purpose")
    with pytest.raises(MasterKeyError, match=f"are wrapped with master key {MASTER.key_ids[0]}, "):
        await MasterKey(b"\x09" * 32).unwrap(MASTER.key_ids[0], wrapped, "purpose")


async def test_a_master_key_that_takes_anothers_place_unwraps_for_both() -> None:
    both = MasterKey(b"\x09" * 32, b"\x01" * 32)
    wrapped = await MASTER.wrap(MASTER.key_ids[0], b"k" * 32, "purpose")
    assert both.key_ids == (*MasterKey(b"\x09" * 32).key_ids, *MASTER.key_ids)
    assert await both.unwrap(MASTER.key_ids[0], wrapped, "purpose") == b"k" * 32


def test_the_id_of_a_master_key_is_short_and_its_own() -> None:
    ids = [MasterKey(bytes([number]) * 32).key_ids[0] for number in range(1, 51)]
    assert len(set(ids)) == 50
    assert {len(bytes.fromhex(id_)) for id_ in ids} == {8}


ZEROS = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text", ["", "short", base64.b64encode(b"x" * 31).decode(), "é" * 44, "!" * 44, "A" * 45, ZEROS]
)
def test_what_is_no_master_key_is_refused(text: str) -> None:
    with pytest.raises(MasterKeyError, match="32 random bytes in base64"):
        MasterKey.from_text(text)


def test_a_master_key_is_read_from_its_text() -> None:
    texts = [base64.b64encode(key).decode() for key in (b"\x01" * 32, b"\x09" * 32)]
    assert MasterKey.from_text(*texts).key_ids == (*MASTER.key_ids, *MasterKey(b"\x09" * 32).key_ids)


def test_api_keys_are_hashed_with_a_key() -> None:
    hashing = ApiKeyHashing(b"\x01" * 32)
    hashed = hashing.hash("slk_1")
    assert hashed == ApiKeyHashing(b"\x01" * 32).hash("slk_1")
    assert hashed not in {
        hashing.hash("slk_2"),
        ApiKeyHashing(b"\x09" * 32).hash("slk_1"),
        hashlib.sha256(b"slk_1").digest(),
    }


def test_a_presented_key_that_is_no_text_can_still_be_hashed() -> None:
    assert len(ApiKeyHashing(b"\x01" * 32).hash("\udcff")) == 32


def test_a_note_is_known_again_by_its_creators_key_alone() -> None:
    other = CreatorKey(UUID(int=7), b"\x03" * 32)
    marks = [
        KEY.mark("for Ana"),
        other.mark("for Ana"),
        KEY.mark("for Ben"),
        LedgerKeys(b"\x02" * 32).fingerprint("for Ana"),
    ]
    assert KEY.mark("for Ana") == marks[0]
    assert len(set(marks)) == 4


def test_claims_of_different_kinds_ledgers_and_names_differ() -> None:
    one, two = LedgerKeys(b"\x01" * 32), LedgerKeys(b"\x02" * 32)
    claims = [one.claim("video", "x"), one.claim("secret", "x"), one.claim("video", "y"), two.claim("video", "x")]
    assert len(set(claims)) == 4
    assert {len(claim) for claim in claims} == {16}


def test_a_fingerprint_is_known_again_and_is_no_claim() -> None:
    keys = LedgerKeys(b"\x01" * 32)
    assert keys.fingerprint("s") == keys.fingerprint("s")
    assert bytes.fromhex(keys.fingerprint("s")) != keys.claim("secret", "s")


def test_special_characters_of_a_secret_survive_the_sealed_json() -> None:
    secret = Sealed('#/+="\\\n\x7f\u2028ß🎬')
    part = KEY.seal({"secret": str(secret)}, associated_data(**WHERE))
    assert KEY.unseal(part.sealed, associated_data(**WHERE)) == {"secret": secret}
