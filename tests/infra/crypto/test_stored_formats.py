"""Sealed values as databases hold them: bytes from before the sealing was one class open as they did."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from infra.auth.denied_attempts import unsealed_origin
from infra.auth.token_identities import unsealed_subject
from infra.crypto.envelope import CreatorKey, LedgerKeys, associated_data
from infra.crypto.master_keys import MasterKey
from infra.crypto.sealed_terms import seal_search_terms, unseal_search_terms
from infra.delivery.webhooks.signing import WebhookSealer

MASTER: Final = MasterKey(b"\x01" * 32)
CREATOR: Final = CreatorKey(UUID(int=7), b"\x02" * 32)
LEDGER: Final = LedgerKeys(b"\x04" * 32)
ROW: Final = UUID(int=9)


async def test_a_wrapped_key_of_old_opens() -> None:
    wrapped = bytes.fromhex(
        "74bf181060faa9126b3381fe8fec0833cba72893d551c8b2558462a0978b7c67be97515b6f932900c50033038fbdff142cdd5a5879318bbc"
        "19fda9f8"
    )
    assert MASTER.key_ids == ("6b4cdd7ef55f5467",)
    assert await MASTER.unwrap("6b4cdd7ef55f5467", wrapped, "creator key") == b"\x05" * 32


def test_a_sealed_part_of_old_opens() -> None:
    sealed = bytes.fromhex(
        "ae5799443ff34d6d7f8184e39f02b486a54814c9096d57350d57cf51520f2f47da5f89dba4ee96b74ba832fb6801265d9947791c690461c1"
        "b33b04fb197819b66d4e6e214de4bb27bd5e3b062aab7ce684a3"
    )
    place = associated_data(1, UUID(int=3), 4, UUID(int=5), "Shared")
    assert CREATOR.unseal(sealed, place) == {"note": "for #summer"}


def test_a_sealed_subject_of_old_opens() -> None:
    sealed = bytes.fromhex("5e9a18ed9d50ee4e08d4d0323104639f26ee1653a1cfdee9cb3efc8a7582e7")
    assert unsealed_subject(LEDGER, sealed, ROW) == "ana"


def test_a_sealed_origin_of_old_opens() -> None:
    sealed = bytes.fromhex(
        "390609e4d155cb127abe7276c603de50247431d6ea9b849026805f7f159e7b65d72222e4ce261e19053a425dda31e2740b94ea"
    )
    assert unsealed_origin(LEDGER, sealed, 1, ROW) == {"address": "192.0.2.1"}


def test_a_sealed_field_of_a_webhook_of_old_opens() -> None:
    sealed = bytes.fromhex(
        "ca9c60fb63816a95c7e5d4e7ad07e30bcb8e1a139342b94f3bec1e204ad59c332b55dd44e9978b643c470f72fbe2e8c25d410d83"
    )
    assert WebhookSealer(LEDGER).unseal("url", sealed, ROW) == b"https://example.com/hook"


def test_search_terms_are_sealed_to_the_bytes_of_old_and_open() -> None:
    query = {"q": "Ana Lopes", "type": "Shared"}
    sealed = {"q": {"sealed": "X2v2pvRX2tOwyu6jzc1zamLpUuujcH60bps+V8elCZb1/sN+CA=="}, "type": "Shared"}
    assert seal_search_terms(LEDGER, query) == sealed
    assert unseal_search_terms(LEDGER, sealed) == query
