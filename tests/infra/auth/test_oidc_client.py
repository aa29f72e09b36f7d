"""Signing people in at an identity provider: what is sent there, and what is taken from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from infra.auth.oidc_client import OidcClient, SignedIn, SignInFailed
from infra.auth.oidc_issuers import Issuer
from tests.infra.auth.issuing import DISCOVERY, in_json, issuing
from tests.infra.auth.provider import AUTHORIZE, CLIENT, TOKEN, Provider

BACK = "http://127.0.0.1:8080/sign-in/done"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with issuing() as issuer:
        yield Provider(issuer)


async def _sign_in(provider: Provider, client: OidcClient | None = None, **changed: Any) -> SignedIn:
    client = client or OidcClient(provider.configured())
    begun = await client.begin(BACK)
    async with httpx.AsyncClient(trust_env=False) as browser:
        address = (await browser.get(begun.address)).headers["location"]
    code = dict(httpx.URL(address).params)["code"]
    return await client.finish(
        code, **{"nonce": begun.nonce, "verifier": begun.verifier, "redirect_uri": BACK} | changed
    )


async def test_a_person_is_signed_in_with_the_access_token_and_can_be_renewed(provider: Provider) -> None:
    provider.claims = {"sub": "ana"}
    client = OidcClient(provider.configured())
    signed_in = await _sign_in(provider, client)
    assert (signed_in.token.count("."), signed_in.renewal) == (2, "renewal-0")
    again = await client.renew("renewal-0")
    assert (again.token.count("."), again.renewal, provider.renewed) == (2, "renewal-1", 1)
    with pytest.raises(SignInFailed):
        await client.renew("renewal-0")


async def test_where_the_access_token_says_nothing_the_id_token_does(provider: Provider) -> None:
    provider.opaque = True
    assert (await _sign_in(provider)).token.count(".") == 2


@pytest.mark.parametrize(
    "changed",
    [{"nonce": "of-another"}, {"verifier": "of-another"}, {"redirect_uri": "http://127.0.0.1:8080/elsewhere"}],
    ids=lambda changed: next(iter(changed)),
)
async def test_what_belongs_to_another_sign_in_signs_nobody_in(provider: Provider, changed: dict[str, Any]) -> None:
    with pytest.raises(SignInFailed):
        await _sign_in(provider, **changed)


@pytest.mark.parametrize(
    "identity",
    [{"iss": "https://other.example"}, {"aud": "other"}, {"sub": "other"}, {"nonce": None}],
    ids=lambda identity: next(iter(identity)),
)
async def test_an_id_token_for_somebody_else_signs_nobody_in(provider: Provider, identity: dict[str, Any]) -> None:
    provider.identity = identity
    with pytest.raises(SignInFailed):
        await _sign_in(provider)


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://other.example"},
        {"token_endpoint": "http://other.example/token"},
        {"authorization_endpoint": None},
    ],
    ids=lambda document: next(iter(document)),
)
async def test_addresses_that_cannot_be_trusted_are_not_used(provider: Provider, document: dict[str, Any]) -> None:
    url = provider.issuer.url
    found = {"issuer": url, "authorization_endpoint": url + AUTHORIZE, "token_endpoint": url + TOKEN}
    provider.issuer.answers[DISCOVERY] = in_json(found | document)
    with pytest.raises(SignInFailed):
        await OidcClient(provider.configured()).begin(BACK)


async def test_a_provider_that_is_away_is_said_so_and_no_secret_is_in_any_log(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = OidcClient(provider.configured())
    begun = await client.begin(BACK)
    with pytest.raises(SignInFailed, match="did not answer as it should"):
        await client.finish("unknown-code", nonce=begun.nonce, verifier=begun.verifier, redirect_uri=BACK)
    assert "responded with status 400" in caplog.text
    for secret in (begun.verifier, begun.nonce, begun.state, "unknown-code", "a secret"):
        assert secret not in caplog.text
    assert begun.verifier not in repr(begun)


def test_a_client_secret_without_a_client_is_refused_and_is_in_no_message() -> None:
    with pytest.raises(ValueError, match="give its client_id too") as refused:
        Issuer(
            issuer="https://id.example", audience="a", ledger="main", role="auditor", client_secret=SecretStr("hush")
        )
    assert "hush" not in str(refused.value)
    assert CLIENT not in repr(refused.value)
