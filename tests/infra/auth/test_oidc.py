"""Bearer tokens: whom an issuer vouches for, and all that is not believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from domain.errors import NotAllowed
from infra.auth.api_keys import Subjects
from infra.auth.oidc import MAX_TOKEN_CHARACTERS, Grant, Tokens
from infra.errors import TokenRefused
from tests.infra.auth.issuing import DISCOVERY, KEYS, TestIssuer, issuing, signer


def now() -> datetime:
    return datetime.now(UTC)


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


def segment(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def written(head: bytes, claims: bytes) -> str:
    """Write a token that nobody signed."""
    return f"{segment(head)}.{segment(claims)}.x"


def forged(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """Write a token as no library would."""
    signed = f"{segment(json.dumps(header).encode())}.{segment(json.dumps(claims).encode())}"
    return f"{signed}.{segment(sign(signed.encode()))}"


def claims_of(issuer: TestIssuer) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(issuer.token(), options={"verify_signature": False})
    return claims


# -- What is believed


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_token_that_the_issuer_signed_is_taken(issuer: TestIssuer, algorithm: str) -> None:
    issuer.signers = [signer(algorithm)]
    grant = await verified(issuer, issuer.token(sub="ana"))
    assert (grant.issuer, grant.subject, grant.ledger, grant.role) == (issuer.url, "ana", "main", "auditor")
    assert issuer.asked == [DISCOVERY, KEYS]


async def test_claims_say_which_ledger_role_and_subjects(issuer: TestIssuer) -> None:
    fields: dict[str, Any] = {
        "ledger_claim": "org",
        "ledgers": {"acme": "acme-legal"},
        "role_claim": "realm_access.roles",
        "roles": {"spark-admins": "admin", "sellers": "brand", "makers": "creator"},
        "creator_ids_claim": "creators",
        "brand_ids_claim": "https://acme.example/brands",
        "advertiser_ids_claim": "account",
    }
    claims: dict[str, Any] = {
        "org": "acme",
        "realm_access": {"roles": ["others", "sellers", 7]},
        "creators": ["ana"],
        "account": "adv-7001",
        "https://acme.example/brands": ["acme", "acme-two"],
    }
    token = issuer.token(**claims)
    grant = await verified(issuer, token, **fields)
    assert (grant.ledger, grant.role) == ("acme-legal", "brand")
    assert grant.subjects == Subjects(brand_ids=frozenset({"acme", "acme-two"}), advertiser_ids=frozenset({"adv-7001"}))


async def test_creators_are_named_as_keys_name_them(issuer: TestIssuer) -> None:
    token = issuer.token(creators=["@Ana", "ana", "BEN"])
    grant = await verified(issuer, token, role="creator", creator_ids_claim="creators")
    assert grant.subjects == Subjects(creator_ids=frozenset({"ana", "ben"}))


async def test_where_several_roles_fit_the_first_of_the_settings_counts(issuer: TestIssuer) -> None:
    token = issuer.token(groups=["a", "b"])
    roles = [
        (await verified(issuer, token, role_claim="groups", roles=given)).role
        for given in ({"a": "auditor", "b": "operator"}, {"b": "operator", "a": "auditor"})
    ]
    assert roles == ["auditor", "operator"]


@pytest.mark.parametrize(
    ("fields", "claims"),
    [
        ({"ledger_claim": "org", "ledgers": {"acme": "main"}}, {"org": "other"}),
        ({"ledger_claim": "org", "ledgers": {"acme": "main"}}, {}),
        ({"role_claim": "groups", "roles": {"a": "admin"}}, {"groups": ["b"]}),
        ({"role_claim": "groups", "roles": {"a": "admin"}}, {"groups": {"a": True}}),
        ({"role": "creator", "creator_ids_claim": "creators"}, {}),
        ({"role": "creator", "creator_ids_claim": "creators"}, {"creators": []}),
        ({"role": "creator", "creator_ids_claim": "creators"}, {"creators": ["no id"]}),
        ({"role": "creator", "creator_ids_claim": "creators"}, {"creators": ["@"]}),
        ({"role": "brand", "brand_ids_claim": "brands"}, {"brands": [f"brand-{n}" for n in range(1001)]}),
    ],
)
async def test_a_token_whose_claims_open_nothing_is_turned_away(
    issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], claims: dict[str, Any]
) -> None:
    monkeypatch.setattr("infra.auth.oidc.MAX_TOKEN_CHARACTERS", 100_000)
    with pytest.raises(NotAllowed):
        await verified(issuer, issuer.token(**claims), **fields)


@pytest.mark.parametrize("audience", ["another", ["another", "more"], [], None, 7, ""])
async def test_a_token_for_another_audience_is_refused(issuer: TestIssuer, audience: object) -> None:
    with pytest.raises(TokenRefused):
        await verified(issuer, issuer.token(aud=audience))


async def test_one_of_several_audiences_is_enough(issuer: TestIssuer) -> None:
    token = issuer.token(aud=["other", "second"])
    assert (await verified(issuer, token, audience=["first", "second"])).role == "auditor"


@pytest.mark.parametrize(
    ("claims", "taken"),
    [
        ({"exp": -59}, True),
        ({"exp": -61}, False),
        ({"nbf": 55}, True),
        ({"nbf": 65}, False),
        ({"iat": 55}, True),
        ({"iat": 65}, False),
    ],
)
async def test_clocks_may_differ_by_a_minute(issuer: TestIssuer, claims: dict[str, int], taken: bool) -> None:
    moment = int(time.time())
    told: dict[str, Any] = {name: moment + seconds for name, seconds in claims.items()}
    token = issuer.token(**told)
    if taken:
        assert (await verified(issuer, token)).role == "auditor"
    else:
        with pytest.raises(TokenRefused):
            await verified(issuer, token)


# -- Attacks


@pytest.mark.parametrize(
    "algorithm",
    ["none", "None", "", "HS256", "HS512", "PS256", "RS512", "ES384", None, 7, True, [], ["ES256"], {"ES256": 1}],
)
async def test_a_token_signed_in_another_way_is_refused(issuer: TestIssuer, algorithm: object) -> None:
    token = forged({"alg": algorithm, "kid": issuer.signers[0].key_id}, claims_of(issuer), lambda _: b"")
    with pytest.raises(TokenRefused, match="not signed with RS256, ES256 or EdDSA"):
        await verified(issuer, token)
    assert issuer.asked == []


async def test_the_public_key_is_no_shared_secret(issuer: TestIssuer) -> None:
    """The oldest trick: HMAC under what everyone may know, for a verifier that lets the token choose."""
    public = issuer.signers[0].private.public_key()
    for encoding, form in (
        (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ):
        secret = public.public_bytes(encoding, form)

        def sign(signed: bytes, secret: bytes = secret) -> bytes:
            return hmac.digest(secret, signed, hashlib.sha256)

        for algorithm in ("HS256", "ES256"):
            token = forged({"alg": algorithm, "kid": issuer.signers[0].key_id}, claims_of(issuer), sign)
            with pytest.raises(TokenRefused):
                await verified(issuer, token)


async def test_a_key_verifies_by_its_own_algorithm_alone(issuer: TestIssuer) -> None:
    issuer.signers = [signer("RS256", "one"), signer("ES256", "two"), signer("EdDSA", "three")]
    for by in issuer.signers:
        for of in issuer.signers:
            token = issuer.token(by=by, headers={"kid": of.key_id})
            if by is of:
                assert (await verified(issuer, token)).role == "auditor"
            else:
                with pytest.raises(TokenRefused, match="names a key that its issuer does not have"):
                    await verified(issuer, token)


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_a_token_that_was_changed_is_refused(issuer: TestIssuer, part: int) -> None:
    parts = issuer.token(sub="ana").split(".")
    other = issuer.token(sub="ben", headers={"typ": "at+jwt"}).split(".")
    parts[part] = other[part]
    with pytest.raises(TokenRefused, match="signature is not valid"):
        await verified(issuer, ".".join(parts))


async def test_somebody_elses_signature_is_refused(issuer: TestIssuer) -> None:
    attacker = signer("ES256", issuer.signers[0].key_id)
    with pytest.raises(TokenRefused, match="signature is not valid"):
        await verified(issuer, issuer.token(by=attacker))


async def test_no_address_or_key_within_a_token_is_looked_at(issuer: TestIssuer) -> None:
    attacker = signer("ES256", "attackers")
    with issuing() as elsewhere:
        elsewhere.signers = [attacker]
        headers = {
            "jku": elsewhere.url + KEYS,
            "x5u": elsewhere.url + KEYS,
            "jwk": attacker.public,
            "x5c": ["MIIB"],
        }
        for key_id in ("attackers", issuer.signers[0].key_id):
            with pytest.raises(TokenRefused):
                await verified(issuer, issuer.token(by=attacker, headers={**headers, "kid": key_id}))
        assert elsewhere.asked == []


async def test_one_issuers_key_signs_nothing_for_another(issuer: TestIssuer) -> None:
    with issuing() as other:
        other.signers = [signer("ES256", "theirs")]
        tokens = Tokens([issuer.configured(role="admin"), other.configured()])
        token = other.token(iss=issuer.url)
        with pytest.raises(TokenRefused):
            await tokens.verified(token, now())
        assert (await tokens.verified(other.token(), now())).role == "auditor"
        await tokens.stop()


@pytest.mark.parametrize("said", ["https://nobody.example", "", None, 7, ["x"]])
async def test_a_token_of_an_issuer_that_is_not_configured_is_refused(issuer: TestIssuer, said: object) -> None:
    token = forged({"alg": "ES256"}, {**claims_of(issuer), "iss": said}, lambda _: b"")
    with pytest.raises(TokenRefused, match="issuer are not accepted"):
        await verified(issuer, token)
    assert issuer.asked == []


async def test_an_issuer_is_meant_to_the_character(issuer: TestIssuer) -> None:
    with pytest.raises(TokenRefused, match="issuer are not accepted"):
        await verified(issuer, issuer.token(iss=issuer.url + "/"))


@pytest.mark.parametrize("claim", ["sub", "exp", "aud"])
async def test_a_token_says_who_until_when_and_for_whom(issuer: TestIssuer, claim: str) -> None:
    with pytest.raises(TokenRefused, match="lacks one of the claims"):
        await verified(issuer, issuer.token(**{claim: None}))


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sub": "x" * 256},
        {"sub": 7},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": 1e300},
        {"exp": -1},
        {"nbf": "now"},
        {"iat": [1]},
    ],
)
async def test_claims_of_another_form_are_refused(issuer: TestIssuer, claims: dict[str, Any]) -> None:
    by = issuer.signers[0]
    told = {**claims_of(issuer), **claims}
    # The library refuses to write some of them.
    token = jwt.PyJWS().encode(json.dumps(told).encode(), by.private, by.algorithm, {"kid": by.key_id})
    with pytest.raises(TokenRefused):
        await verified(issuer, token)


@pytest.mark.parametrize(
    "headers",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"kid": 7},
        {"kid": ["key-ES256"]},
    ],
)
async def test_a_head_that_asks_for_more_than_is_understood_is_refused(
    issuer: TestIssuer, headers: dict[str, Any]
) -> None:
    by = issuer.signers[0]

    def sign(signed: bytes) -> bytes:
        signature: bytes = jwt.get_algorithm_by_name(by.algorithm).sign(signed, by.private)
        return signature

    header = {"alg": by.algorithm, "kid": by.key_id, **headers}
    with pytest.raises(TokenRefused):
        await verified(issuer, forged(header, claims_of(issuer), sign))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "..",
        "a.b.c",
        "e30.e30.",
        "e30.W10.e30",
        "bnVsbA.bnVsbA.",
        written(b"[" * 5000, b"{}"),
        written(b'{"a":' * 1500, b"{}"),
        written(b'{"alg":"ES256"}', b"[" * 3000 + b"]" * 3000),
        written(b'{"alg":"ES256"}', b'{"iss":"\xff"}'),
        written(b'{"alg":"ES256"}', rb'{"iss":"\ud800"}'),
        "eyJ\u00e9.e30.x",
        "eyJhbGciOiJFUzI1NiJ9.e30.x.y",
    ],
)
async def test_what_is_no_token_is_refused(issuer: TestIssuer, token: str) -> None:
    with pytest.raises(TokenRefused):
        await verified(issuer, token)


async def test_a_token_has_a_largest_size(issuer: TestIssuer) -> None:
    token = issuer.token(more="x" * MAX_TOKEN_CHARACTERS)
    with pytest.raises(TokenRefused, match="longer than"):
        await verified(issuer, token)
    assert issuer.asked == []
