"""The keys of an issuer: fetched, remembered, fetched again, and never more than they should be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.auth.jwks import KEEP_S, MAX_BYTES, MIN_FETCH_INTERVAL_S, REFRESH_AFTER_S, RETRY_AFTER_S, signing_key
from infra.auth.oidc import Grant, Tokens
from infra.auth.oidc_issuers import advertised_address_problem
from infra.errors import TokenRefused, Unavailable
from tests.infra.auth.issuing import DISCOVERY, KEYS, Signer, TestIssuer, in_json, issuing, signer
from tests.waiting import WITHIN_S


def now() -> datetime:
    return datetime.now(UTC)


class Clock:
    """The clock by which keys of issuers grow old."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def issuer() -> Iterator[TestIssuer]:
    with issuing() as running:
        yield running


async def verified(issuer: TestIssuer, token: str, **fields: Any) -> Grant:
    tokens = Tokens([issuer.configured(**fields)])
    try:
        return await tokens.verified(token, now())
    finally:
        await tokens.stop()


async def test_a_new_key_of_the_issuer_is_found_when_the_first_token_names_it(issuer: TestIssuer) -> None:
    clock = Clock()
    tokens = Tokens([issuer.configured()], clock)
    await tokens.verified(issuer.token(), now())
    fresh = signer("EdDSA", "fresh")
    issuer.signers.append(fresh)
    clock.seconds += MIN_FETCH_INTERVAL_S
    assert (await tokens.verified(issuer.token(by=fresh), now())).role == "auditor"
    assert issuer.asked == [DISCOVERY, KEYS] * 2
    await tokens.stop()


async def test_a_flood_of_unknown_keys_asks_the_issuer_once_in_a_while(issuer: TestIssuer) -> None:
    clock = Clock()
    tokens = Tokens([issuer.configured()], clock)
    await tokens.verified(issuer.token(), now())

    async def flood() -> None:
        forgeries = [issuer.token(headers={"kid": f"unknown-{n}"}) for n in range(50)]
        refused = await asyncio.gather(*(tokens.verified(token, now()) for token in forgeries), return_exceptions=True)
        assert {type(one) for one in refused} == {TokenRefused}

    for _ in range(4):
        await flood()
    assert len(issuer.asked) == 2
    clock.seconds += MIN_FETCH_INTERVAL_S
    for _ in range(4):
        await flood()
    assert len(issuer.asked) == 4
    await tokens.stop()


async def test_an_issuer_that_does_not_answer_keeps_nobody_waiting_whose_key_is_known(issuer: TestIssuer) -> None:
    clock = Clock()
    tokens = Tokens([issuer.configured()], clock)
    await tokens.verified(issuer.token(), now())
    issuer.open.clear()
    clock.seconds += REFRESH_AFTER_S + 1
    waiting = asyncio.create_task(tokens.verified(issuer.token(headers={"kid": "unknown"}), now()))
    while len(issuer.asked) < 3:  # noqa: ASYNC110 - what is waited for
        await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        assert (await tokens.verified(issuer.token(), now())).role == "auditor"
    assert not waiting.done()
    issuer.open.set()
    with pytest.raises(TokenRefused):
        await waiting
    await tokens.stop()


async def test_many_that_come_first_together_ask_once(issuer: TestIssuer) -> None:
    tokens = Tokens([issuer.configured()])
    grants = await asyncio.gather(*(tokens.verified(issuer.token(sub=f"s-{n}"), now()) for n in range(50)))
    assert len(grants) == 50
    assert issuer.asked == [DISCOVERY, KEYS]
    await tokens.stop()


async def test_keys_are_used_for_an_hour_while_the_issuer_is_away(issuer: TestIssuer) -> None:
    clock = Clock()
    tokens = Tokens([issuer.configured()], clock)
    await tokens.verified(issuer.token(), now())
    issuer.answers[DISCOVERY] = (503, {}, b"")
    for _ in range(5):
        clock.seconds += KEEP_S / 6
        assert (await tokens.verified(issuer.token(), now())).role == "auditor"
    clock.seconds += KEEP_S / 6
    with pytest.raises(Unavailable):
        await tokens.verified(issuer.token(), now())
    del issuer.answers[DISCOVERY]
    clock.seconds += RETRY_AFTER_S
    assert (await tokens.verified(issuer.token(), now())).role == "auditor"
    await tokens.stop()


async def test_a_key_that_the_issuer_withdrew_is_trusted_no_longer(issuer: TestIssuer) -> None:
    clock = Clock()
    tokens = Tokens([issuer.configured()], clock)
    withdrawn = issuer.signers[0]
    token = issuer.token()
    await tokens.verified(token, now())
    changes = tokens.changes
    issuer.signers = [signer("ES256", "another")]
    clock.seconds += REFRESH_AFTER_S + 1
    assert tokens.trusts(issuer.url)
    async with asyncio.timeout(WITHIN_S):
        while tokens.changes == changes:  # noqa: ASYNC110 - what is waited for
            await asyncio.sleep(0.01)
    with pytest.raises(TokenRefused):
        await tokens.verified(issuer.token(by=withdrawn), now())
    await tokens.stop()


def elsewhere(url: str) -> Callable[[TestIssuer], None]:
    def change(issuer: TestIssuer) -> None:
        issuer.answers[DISCOVERY] = in_json({"issuer": issuer.url, "jwks_uri": url})

    return change


def answering(path: str, answer: Callable[[TestIssuer], Any]) -> Callable[[TestIssuer], None]:
    def change(issuer: TestIssuer) -> None:
        issuer.answers[path] = answer(issuer)

    return change


@pytest.mark.parametrize(
    "misbehave",
    [
        elsewhere("http://192.0.2.1/keys"),
        elsewhere("https://user@127.0.0.1/keys"),
        elsewhere("file:///etc/passwd"),
        elsewhere("//127.0.0.1/keys"),
        elsewhere(""),
        answering(DISCOVERY, lambda _: in_json({"issuer": "https://nobody.example"})),
        answering(DISCOVERY, lambda i: (302, {"Location": i.url + "/moved"}, b"")),
        answering(DISCOVERY, lambda _: in_json([])),
        answering(KEYS, lambda i: (307, {"Location": i.url + "/moved"}, b"")),
        answering(KEYS, lambda _: (200, {}, b"[" * 1000)),
        answering(KEYS, lambda _: (200, {}, b" " * (MAX_BYTES + 1))),
        answering(KEYS, lambda _: in_json({"keys": "none"})),
        answering(KEYS, lambda _: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")),
        answering(KEYS, lambda _: (500, {}, b"")),
    ],
)
async def test_an_issuer_that_answers_otherwise_is_away(
    issuer: TestIssuer, misbehave: Callable[[TestIssuer], None]
) -> None:
    issuer.answers["/moved"] = in_json({"keys": [one.public for one in issuer.signers]})
    misbehave(issuer)
    with pytest.raises(Unavailable):
        await verified(issuer, issuer.token())
    assert "/moved" not in issuer.asked


@pytest.mark.parametrize("url", ["http://localhost:9/keys", "http://127.0.0.1/keys", "HTTPS://[::1]/keys"])
def test_an_issuer_elsewhere_has_no_keys_on_this_machine(url: str) -> None:
    assert advertised_address_problem("https://id.example.com", url) is not None
    assert advertised_address_problem("http://localhost:8", url) is None


async def test_an_issuer_that_takes_too_long_is_away(issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.auth.jwks.TIMEOUT_S", 0.05)
    issuer.open.clear()
    with pytest.raises(Unavailable):
        await verified(issuer, issuer.token())


async def test_the_keys_may_be_named_without_a_discovery(issuer: TestIssuer) -> None:
    issuer.answers[DISCOVERY] = (404, {}, b"")
    assert (await verified(issuer, issuer.token(), jwks_uri=issuer.url + KEYS)).role == "auditor"
    assert issuer.asked == [KEYS]


async def test_a_token_that_names_no_key_is_taken_where_only_one_fits(issuer: TestIssuer) -> None:
    one, two = signer("ES256", "one"), signer("ES256", "two")
    issuer.signers = [one, signer("EdDSA", "three")]
    token = issuer.token(by=one, headers={"kid": None})
    assert (await verified(issuer, token)).role == "auditor"
    issuer.signers.append(two)
    with pytest.raises(TokenRefused):
        await verified(issuer, token)


def small_rsa() -> dict[str, Any]:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - to be refused
    return Signer("small", "RS256", weak).public


def with_private_part() -> dict[str, Any]:
    return {**signer("ES256").public, "d": "AQAB"}


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x", "alg": "HS256"},
        {"kty": "RSA", "n": "x", "e": "AQAB"},
        {"kty": "RSA", "n": 7, "e": None},
        {"kty": "RSA", "crv": ["P-256"]},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": ["EC"]},
        {**signer("ES256").public, "use": "enc"},
        {**signer("ES256").public, "alg": "HS256"},
        {**signer("ES256").public, "alg": ["ES256"]},
        {**signer("ES256").public, "key_ops": ["sign"]},
        {**signer("ES256").public, "key_ops": 7},
        {**signer("ES256").public, "kid": 7},
        {**signer("EdDSA").public, "x": "AA"},
        with_private_part(),
        small_rsa(),
    ],
)
def test_a_key_that_verifies_nothing_of_ours_is_left_out(jwk: dict[str, Any]) -> None:
    assert signing_key(jwk) is None
