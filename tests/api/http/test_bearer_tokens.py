"""Bearer tokens over HTTP: a process with an issuer in its settings, and what a bearer may and is told.

All tests share the process. Each has a ledger of its own, which its tokens name.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.processes.worker import create_views
from tests.api.attempts import ALERT
from tests.api.processes import serving_process
from tests.api.world import OTHER_CREATOR, OWN_CREATOR, refused, told
from tests.conftest import fresh_database
from tests.infra.auth.issuing import TestIssuer, issuing, signer
from tests.keys import master_key_of

# As many as there are tests.
LEDGERS = 4


@dataclass(frozen=True)
class Place:
    """A process that takes the tokens of an issuer for a ledger, and the key of that ledger's administrator."""

    url: str
    issuer: TestIssuer
    ledger: str
    admin_key: str
    opened: ExitStack

    def token(self, **claims: Any) -> str:
        """Sign a token for the ledger."""
        return self.issuer.token(**{"ledger": self.ledger, **claims})

    def client(self, bearer: str) -> httpx.Client:
        """Return a client that presents a key or a token."""
        headers = {"Authorization": f"Bearer {bearer}"}
        return self.opened.enter_context(httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=20))


@pytest.fixture(scope="module")
def places(cluster: EmbeddedPostgres) -> Iterator[Iterator[Place]]:
    with fresh_database(cluster) as database, issuing() as issuer, ExitStack() as opened:
        master = base64.b64encode(fresh_key()).decode()
        asyncio.run(create_views(database.dsn()))
        admins = {
            name: asyncio.run(create_ledger(database.dsn(), master_key_of(master), name))
            for name in (f"ledger-{number}" for number in range(LEDGERS))
        }
        configured = issuer.configured(
            ledger_claim="ledger",
            ledgers={name: name for name in admins},
            role_claim="groups",
            roles={"makers": "creator", "legal": "auditor", "feeds": "subscriber", "heads": "admin"},
            creator_ids_claim="creators",
        )
        issuers = json.dumps([configured.model_dump(exclude_unset=True)])
        migrate(database.dsn(), issuers=configured.grants())
        url = opened.enter_context(serving_process(database, master, oidc_issuers=issuers))
        yield (Place(url, issuer, name, admin, opened) for name, admin in admins.items())


@pytest.fixture
def place(places: Iterator[Place]) -> Place:
    return next(places)


def switch(client: httpx.Client, creator_id: str, **headers: str) -> httpx.Response:
    return client.put(f"/v1/creators/{creator_id}/permission", json={"enabled": True}, headers=headers)


def test_a_bearer_acts_as_their_token_says_and_under_an_id_of_their_own(place: Place) -> None:
    facts: dict[str, Any] = {"sub": "ana@id.example", "groups": ["makers"], "creators": [OWN_CREATOR]}
    first, second = (place.client(place.token(jti=jti, **facts)) for jti in ("1", "2"))
    answers = [switch(client, OWN_CREATOR, **{"Idempotency-Key": "once"}) for client in (first, second)]

    assert [answer.status_code for answer in answers] == [200, 200]
    # The second token is the same bearer's: the Idempotency-Key is theirs, not the token's.
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert switch(first, OTHER_CREATOR).status_code == 403
    assert first.get("/v1/keys").status_code == 403

    admin = place.client(place.admin_key)
    (event,) = told(admin.get("/v1/events"), 200)["events"]
    bearer = told(admin.get("/v1/keys"), 200)["keys"][0]
    assert event["actor"] == {
        "key_id": bearer["key_id"],
        "key_name": place.issuer.url,
        "role": "creator",
        "subject": OWN_CREATOR,
    }
    assert (bearer["kind"], bearer["subject"], bearer["name"]) == ("token", "ana@id.example", place.issuer.url)
    assert "ana@id.example" not in admin.get("/v1/events").text + admin.get("/v1/accesses").text
    auditor = place.client(told(admin.post("/v1/keys", json={"role": "auditor"}), 201)["key"])
    listed = {key["key_id"]: key for key in told(auditor.get("/v1/keys"), 200)["keys"]}
    assert listed[bearer["key_id"]] == bearer | {"subject": None}

    rotation = admin.post(f"/v1/keys/{bearer['key_id']}/rotation", json={"overlap_seconds": 0})
    assert refused(rotation) == (409, "key_not_rotatable")
    assert admin.delete(f"/v1/keys/{bearer['key_id']}").status_code == 204
    assert [switch(client, OWN_CREATOR).status_code for client in (first, second)] == [401, 401]


def test_a_bearer_whose_token_was_narrowed_gets_no_first_answer_again(place: Place) -> None:
    bearer: dict[str, Any] = {"sub": "ana@id.example"}
    wide = place.client(place.token(**bearer, groups=["heads"]))
    assert switch(wide, OWN_CREATOR).status_code == 200
    asked: dict[str, Any] = {
        "json": {"creator_id": OWN_CREATOR, "video_id": "7312345678901234567", "terms_version": "1"},
        "headers": {"Idempotency-Key": "code"},
    }
    code = told(wide.post("/v1/codes", **asked), 201)
    noted: dict[str, Any] = {"json": {"text": "so"}, "headers": {"Idempotency-Key": "note"}}
    path = f"/v1/codes/{code['code_id']}/notes"
    assert wide.post(path, **noted).status_code == 201

    narrow = place.client(place.token(**bearer, groups=["makers"], creators=[OTHER_CREATOR]))
    for answer in (narrow.post("/v1/codes", **asked), narrow.post(path, **noted)):
        assert refused(answer) == (403, "not_allowed")
        assert code["secret"] not in answer.text
    own = place.client(place.token(**bearer, groups=["makers"], creators=[OWN_CREATOR]))
    assert told(own.post("/v1/codes", **asked), 201) == code


def test_a_token_that_is_refused_says_so_and_why_and_nothing_of_itself(place: Place) -> None:
    issuer = place.issuer
    for token, detail in (
        (place.token(exp=1), "has expired"),
        (place.token(aud="another"), "another audience"),
        (place.token(by=signer("ES256", issuer.signers[0].key_id)), "signature"),
        (place.token(iss="https://nobody.example"), "issuer"),
        ("eyJhbGciOiJub25lIn0.e30.", "not signed"),
    ):
        answer = place.client(token).get("/v1/codes")
        assert refused(answer) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == 'Bearer realm="sparkledger", error="invalid_token"'
        assert detail in answer.json()["detail"]
        assert token not in answer.text

    nobody = place.client(place.token(groups=["others"])).get("/v1/codes")
    assert refused(nobody) == (403, "not_allowed")


def test_no_webhook_is_made_with_a_token_for_it_would_outlive_the_token(place: Place) -> None:
    feeds, heads = (place.client(place.token(sub=sub, groups=[sub])) for sub in ("feeds", "heads"))
    for client in (feeds, heads):
        answer = client.post("/v1/webhooks", json={"url": "https://receiver.example/"})
        assert refused(answer) == (403, "not_allowed")
        assert answer.json()["detail"] == (
            "A webhook needs an API key, not a token, because tokens expire. Create it with a key of the "
            "role subscriber."
        )
        assert told(client.get("/v1/webhooks"), 200) == {"webhooks": []}
    for path, body in (("/v1/alerts", ALERT), ("/v1/calendars", {})):
        assert refused(heads.post(path, json=body)) == (403, "not_allowed")

    # With a key it is made, as the sentence says; an administrator's token looks after it as a key does.
    key = told(place.client(place.admin_key).post("/v1/keys", json={"role": "subscriber"}), 201)
    made = told(place.client(key["key"]).post("/v1/webhooks", json={"url": "https://receiver.example/"}), 201)
    path = f"/v1/webhooks/{made['webhook_id']}"
    assert told(heads.patch(path, json={"enabled": False}), 200)["disabled"] == "asked"
    assert refused(feeds.get(path)) == (404, "webhook_unknown")
    assert heads.delete(path).status_code == 204
