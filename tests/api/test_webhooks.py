"""The routes of webhooks: whose they are, what is told once, what is refused; what is sent is tested elsewhere."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

import infra.delivery.webhooks.subscriptions
from infra.auth.api_keys import ApiKey
from infra.auth.authenticator import Authenticator
from tests.api.world import World, refused, told

URL = "https://receiver.example/hook?token=theirs"


def create(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    return told(client.post("/v1/webhooks", json={"url": URL} | asked), 201)


def test_a_webhook_is_told_with_its_secret_once(world: World) -> None:
    world.generate()
    subscriber = world.as_role("subscriber")
    answer = subscriber.post(
        "/v1/webhooks", json={"url": URL, "description": "ours", "types": ["Shared", "Redeemed", "Shared"]}
    )
    webhook = told(answer, 201)
    secret = webhook.pop("secret")

    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert (answer.headers["cache-control"], answer.headers["location"]) == (
        "no-store",
        f"/v1/webhooks/{webhook['webhook_id']}",
    )
    read = told(subscriber.get(f"/v1/webhooks/{webhook['webhook_id']}"), 200)
    assert read == webhook
    assert secret not in str(read)
    assert read | {"webhook_id": "", "key_id": "", "created_at": ""} == {
        "webhook_id": "",
        "key_id": "",
        "url": URL,
        "description": "ours",
        "types": ["Redeemed", "Shared"],
        "creator_ids": [],
        "enabled": True,
        "disabled": None,
        "disabled_at": None,
        "created_at": "",
        "old_secret_until": None,
        "position": 2,
        "lag": 0,
        "lag_seconds": 0.0,
        "waiting": 0,
        "dead": 0,
        "failures": 0,
        "delivered": 0,
        "failed": 0,
        "delivered_at": None,
        "failed_at": None,
        "error": None,
        "paused_until": None,
    }


def test_a_webhook_may_begin_with_what_is_recorded_already(world: World) -> None:
    world.generate()
    webhook = create(world.client, after=0)
    assert (webhook["position"], webhook["lag"]) == (0, 2)
    assert webhook["lag_seconds"] > 0


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ({"url": "http://receiver.example/"}, "/url"),
        ({"url": "https://10.0.0.1/"}, "/url"),
        ({"url": "https://169.254.169.254/latest"}, "/url"),
        ({"url": "nonsense"}, "/url"),
        ({"url": ""}, "/url"),
        ({"types": ["Nonsense"]}, "/types"),
        ({"after": -1}, "/after"),
        ({"secret": "mine"}, "/secret"),
    ],
)
def test_what_cannot_be_sent_to_is_refused(world: World, asked: dict[str, Any], pointer: str) -> None:
    answer = world.client.post("/v1/webhooks", json={"url": URL} | asked)
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert "10.0.0.1" not in answer.text


def test_a_webhook_does_not_begin_beyond_the_end_of_the_ledger(world: World) -> None:
    assert refused(world.client.post("/v1/webhooks", json={"url": URL, "after": 1})) == (409, "ahead_of_ledger")


def test_a_subscriber_has_its_own_webhooks_and_an_administrator_all(world: World) -> None:
    one, other = world.as_role("subscriber"), world.as_role("subscriber")
    webhook_id = create(one)["webhook_id"]
    others = create(other)["webhook_id"]
    admins = create(world.client)["webhook_id"]

    def listed(client: httpx.Client) -> list[str]:
        return [webhook["webhook_id"] for webhook in told(client.get("/v1/webhooks"), 200)["webhooks"]]

    assert (listed(one), listed(other)) == ([webhook_id], [others])
    assert listed(world.client) == [admins, others, webhook_id]
    assert refused(other.get(f"/v1/webhooks/{webhook_id}")) == (404, "webhook_unknown")
    assert told(world.client.get(f"/v1/webhooks/{webhook_id}"), 200)["webhook_id"] == webhook_id


def test_another_ledgers_webhook_is_as_unknown_as_one_that_never_was(world: World) -> None:
    webhook_id = create(world.client)["webhook_id"]
    stranger = world.another().client
    for path, method in (
        ("", "GET"),
        ("", "DELETE"),
        ("", "PATCH"),
        ("/rotation", "POST"),
        ("/test", "POST"),
        ("/deliveries", "GET"),
        ("/dead-letters", "GET"),
        ("/replays", "POST"),
    ):
        answers = [
            stranger.request(method, f"/v1/webhooks/{id_}{path}", json={} if method == "PATCH" else None)
            for id_ in (webhook_id, uuid4(), "nonsense")
        ]
        contents = [answer.json() | {"request_id": ""} for answer in answers]
        assert [answer.status_code for answer in answers] == [404, 404, 404], (method, path)
        assert contents[0] == contents[1] == contents[2]


def test_a_webhook_is_changed_disabled_and_enabled(world: World) -> None:
    path = f"/v1/webhooks/{create(world.client, types=['Shared'], description='ours')['webhook_id']}"
    changed = told(world.client.patch(path, json={"enabled": False, "types": []}), 200)
    assert (changed["enabled"], changed["disabled"], changed["types"], changed["description"]) == (
        *(False, "asked", []),
        "ours",
    )
    assert refused(world.client.post(f"{path}/test")) == (409, "webhook_disabled")
    assert refused(world.client.post(f"{path}/replays")) == (409, "webhook_disabled")

    changed = told(world.client.patch(path, json={"enabled": True, "description": None, "url": URL + "2"}), 200)
    assert (changed["enabled"], changed["disabled_at"], changed["description"], changed["url"]) == (
        *(True, None, None),
        URL + "2",
    )
    assert told(world.client.patch(path, json={}), 200)["url"] == URL + "2"


def test_a_webhook_whose_key_is_gone_cannot_be_enabled(world: World) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "subscriber"}), 201)
    path = f"/v1/webhooks/{create(world.with_key(key['key']))['webhook_id']}"
    assert world.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
    assert refused(world.client.patch(path, json={"enabled": True})) == (409, "webhook_key_invalid")
    assert told(world.client.patch(path, json={"enabled": False}), 200)["disabled"] == "asked"


@pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
def test_a_key_that_has_ended_changes_no_webhook_though_the_door_has_not_heard(
    world: World, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    let_in: dict[str, ApiKey | None] = {}
    authenticate = Authenticator.authenticate

    async def remembering(authenticator: Authenticator, presented: str, now: datetime) -> ApiKey | None:
        if presented not in let_in:
            let_in[presented] = await authenticate(authenticator, presented, now)
        return let_in[presented]

    monkeypatch.setattr(Authenticator, "authenticate", remembering)
    key = told(world.client.post("/v1/keys", json={"role": "admin"}), 201)
    ended = world.with_key(key["key"])
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}"
    before = told(ended.get("/v1/webhooks"), 200)
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as another:
        another.execute(f"UPDATE api_keys SET {end} = now() WHERE key_id = %s", (key["key_id"],))
        stored = another.execute("SELECT w::text FROM webhooks w ORDER BY w.webhook_id").fetchall()

        answered = {
            f"{method} {at.removeprefix(path)}": refused(ended.request(method, at, json=body))
            for method, at, body in (
                ("POST", "/v1/webhooks", {"url": URL}),
                ("PATCH", path, {"url": URL + "2"}),
                ("POST", f"{path}/rotation", None),
                ("POST", f"{path}/test", None),
                ("POST", f"{path}/replays", None),
                ("DELETE", path, None),
            )
        }
        assert answered == dict.fromkeys(answered, (401, "unauthenticated"))
        assert len(answered) == 6
        assert told(ended.get("/v1/webhooks"), 200) == before
        assert another.execute("SELECT w::text FROM webhooks w ORDER BY w.webhook_id").fetchall() == stored


def test_a_deleted_webhook_is_unknown(world: World) -> None:
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}"
    assert world.client.delete(path).status_code == 204
    assert refused(world.client.delete(path)) == (404, "webhook_unknown")
    assert told(world.client.get("/v1/webhooks"), 200) == {"webhooks": []}


def test_a_new_secret_is_told_once_and_overlaps_with_the_old_one(world: World) -> None:
    webhook = create(world.client)
    path = f"/v1/webhooks/{webhook['webhook_id']}"
    rotated = told(world.client.post(f"{path}/rotation", json={"overlap_hours": 1}), 201)
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != webhook["secret"]
    assert rotated["old_secret_until"] is not None
    at_once = told(world.client.post(f"{path}/rotation", json={"overlap_hours": 0}), 201)
    assert at_once["old_secret_until"] is None


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("", {"url": URL}, 201), ("/rotation", {"overlap_hours": 2}, 201), ("/test", None, 202), ("/replays", None, 202)],
)
def test_the_same_request_gets_the_first_answer_again(
    world: World, path: str, body: dict[str, Any] | None, status: int
) -> None:
    at = "/v1/webhooks" if not path else f"/v1/webhooks/{create(world.client)['webhook_id']}{path}"
    header = {"Idempotency-Key": "one"}
    first = world.client.post(at, json=body, headers=header)
    again = world.client.post(at, json=body, headers=header)

    shown_once = {"secret": None} if "secret" in told(first, status) else {}
    assert told(again, status) == told(first, status) | shown_once
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = world.client.post("/v1/webhooks", json={"url": URL + "other"}, headers=header)
    assert refused(other) == (422, "idempotency_key_reused")
    # Another key's is another request.
    assert (
        told(world.as_role("subscriber").post("/v1/webhooks", json={"url": URL}, headers=header), 201) != first.json()
    )


def test_an_idempotency_key_that_was_forgotten_brings_no_old_secret_back(world: World) -> None:
    header = {"Idempotency-Key": "rotate"}
    at = f"/v1/webhooks/{create(world.client)['webhook_id']}/rotation"
    before = told(world.client.post(at, headers=header), 201)["secret"]
    forget_requests(world)
    assert told(world.client.post(at, headers=header), 201)["secret"] not in {before, None}


def forget_requests(world: World) -> None:
    """Drop what was asked with Idempotency-Keys, as a worker does after two days."""
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as connection:
        connection.execute("DELETE FROM webhook_requests")


def test_a_ledger_has_a_bounded_number_of_webhooks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.delivery.webhooks.subscriptions, "MAX_WEBHOOKS", 2)
    create(world.client)
    create(world.as_role("subscriber"))
    assert refused(world.client.post("/v1/webhooks", json={"url": URL})) == (409, "too_many_webhooks")
    create(world.another().client)


def test_the_webhooks_of_one_key_leave_room_for_those_of_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.delivery.webhooks.subscriptions, "MAX_WEBHOOKS_OF_A_KEY", 1)
    create(world.client)
    assert refused(world.client.post("/v1/webhooks", json={"url": URL})) == (409, "too_many_webhooks")
    create(world.as_role("subscriber"))


def test_a_test_is_taken_on(world: World) -> None:
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}"
    message_id = told(world.client.post(f"{path}/test"), 202)["message_id"]
    assert UUID(message_id).version == 7
    assert told(world.client.get(path), 200)["waiting"] == 1


def test_a_bounded_number_of_tests_waits(world: World) -> None:
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}"
    asked = [told(world.client.post(f"{path}/test"), 202)["message_id"] for _ in range(12)]
    assert (len(set(asked)), asked[9:]) == (10, [asked[9]] * 3)
    assert told(world.client.get(path), 200)["waiting"] == 10


def record(world: World, webhook_id: str, table: str, number: int) -> None:
    """Put rows into the log of deliveries or among the dead letters, as a sender does."""
    queries = {
        "attempts": "INSERT INTO webhook_attempts (webhook_id, ledger_id, message_id, position, type, attempt, at,"
        " outcome, status, duration_ms) SELECT %s, ledger_id, gen_random_uuid(), n, 'Shared', 1, now(),"
        " CASE n % 2 WHEN 0 THEN 'delivered' ELSE 'failed' END, 200, 5"
        " FROM ledgers, generate_series(1, %s) n WHERE name = %s",
        "messages": "INSERT INTO webhook_messages (webhook_id, ledger_id, message_id, position, type, lane, dead,"
        " attempts, error) SELECT %s, ledger_id, gen_random_uuid(), n, 'Shared', gen_random_uuid(), true, 7, 'no'"
        " FROM ledgers, generate_series(1, %s) n WHERE name = %s",
    }
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as connection:
        connection.execute(queries[table].replace("n % 2", "n %% 2"), (webhook_id, number, world.server.ledger))


def test_deliveries_are_listed_by_pages_newest_first(world: World) -> None:
    webhook_id = create(world.client)["webhook_id"]
    record(world, webhook_id, "attempts", 5)
    at = f"/v1/webhooks/{webhook_id}/deliveries"

    first = told(world.client.get(at, params={"limit": 3}), 200)
    rest = told(world.client.get(at, params={"limit": 3, "cursor": first["next"]}), 200)
    assert [d["position"] for d in first["deliveries"] + rest["deliveries"]] == [5, 4, 3, 2, 1]
    assert rest["next"] is None
    delivered = told(world.client.get(at, params={"outcome": "delivered"}), 200)["deliveries"]
    assert [d["position"] for d in delivered] == [4, 2]
    assert refused(world.client.get(at, params={"cursor": first["next"], "outcome": "failed"})) == (
        400,
        "malformed_cursor",
    )


def test_dead_letters_are_listed_and_sent_again(world: World) -> None:
    webhook_id = create(world.client)["webhook_id"]
    record(world, webhook_id, "messages", 5)
    path = f"/v1/webhooks/{webhook_id}"

    first = told(world.client.get(f"{path}/dead-letters", params={"limit": 3}), 200)
    rest = told(world.client.get(f"{path}/dead-letters", params={"limit": 3, "cursor": first["next"]}), 200)
    assert [letter["position"] for letter in first["dead_letters"] + rest["dead_letters"]] == [1, 2, 3, 4, 5]

    one = first["dead_letters"][0]["message_id"]
    assert told(world.client.post(f"{path}/replays", json={"message_ids": [one]}), 202) == {"replayed": 1, "next": None}
    assert told(world.client.post(f"{path}/replays", json={"message_ids": [one]}), 202) == {"replayed": 0, "next": None}
    assert told(world.client.post(f"{path}/replays"), 202) == {"replayed": 4, "next": None}
    stands = told(world.client.get(path), 200)
    assert (stands["dead"], stands["waiting"]) == (0, 5)


def test_who_had_events_sent_is_recorded_among_the_accesses_without_the_url(world: World) -> None:
    webhook_id = create(world.client, types=["Shared"])["webhook_id"]
    path = f"/v1/webhooks/{webhook_id}"
    told(world.client.patch(path, json={"enabled": False}), 200)
    told(world.client.post(f"{path}/rotation"), 201)
    assert world.client.delete(path).status_code == 204

    entries = told(world.client.get("/v1/accesses"), 200)["accesses"]
    assert [(entry["route"], entry["query"]) for entry in entries if "/v1/webhooks" in entry["route"]] == [
        ("DELETE /v1/webhooks/{webhook_id}", {"webhook_id": webhook_id}),
        ("POST /v1/webhooks/{webhook_id}/rotation", {"webhook_id": webhook_id}),
        ("PATCH /v1/webhooks/{webhook_id}", {"webhook_id": webhook_id, "changed": ["enabled"]}),
        ("POST /v1/webhooks", {"webhook_id": webhook_id, "types": ["Shared"], "creator_ids": []}),
    ]


def test_a_webhook_is_created_disabled_and_with_a_secret_of_the_owners(world: World) -> None:
    secret = "whsec_" + base64.b64encode(bytes(24)).decode()
    webhook = create(world.client, enabled=False, secret=secret)
    assert (webhook["enabled"], webhook["disabled"], webhook["secret"]) == (False, "asked", None)

    for bad in ("whsec_" + base64.b64encode(bytes(23)).decode(), "whsec_" + "A" * 33, "A" * 32):
        assert refused(world.client.post("/v1/webhooks", json={"url": URL, "secret": bad})) == (422, "malformed_body")


def test_a_webhook_is_moved_to_where_the_ledger_has_been(world: World) -> None:
    world.generate()
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}"
    assert told(world.client.patch(path, json={"after": 1}), 200)["position"] == 1
    refusal = world.client.patch(path, json={"after": 3})
    assert refused(refusal) == (409, "ahead_of_ledger")
    assert refusal.json()["last_position"] == 2


@pytest.mark.parametrize(
    "asked",
    [
        {"after": 1, "message_ids": [str(uuid4())]},
        {"after": 1, "recorded_from": "2026-01-01T00:00:00Z"},
        {"upto": 1},
        {"recorded_to": "2026-01-01T00:00:00Z"},
    ],
)
def test_what_is_to_be_sent_again_is_named_in_one_way(world: World, asked: dict[str, Any]) -> None:
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}/replays"
    assert refused(world.client.post(path, json=asked)) == (422, "malformed_body")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"after": 10, "upto": 5}, "upto is before after. Send the earlier position as after."),
        (
            {"recorded_from": "2026-01-02T00:00:00Z", "recorded_to": "2026-01-01T00:00:00Z"},
            "recorded_to is before recorded_from. Send the earlier time first.",
        ),
    ],
)
def test_a_range_to_be_sent_again_does_not_end_before_it_begins(world: World, asked: dict[str, Any], said: str) -> None:
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}/replays"
    answer = world.client.post(path, json=asked)
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"][0]["problem"] == said
    # What is left of a range when `next` has reached its end is not an error.
    assert told(world.client.post(path, json={"after": 5, "upto": 5}), 202)["replayed"] == 0


def test_what_was_recorded_in_a_time_is_sent_again(world: World) -> None:
    world.permit()
    code = world.generate()
    (event,) = told(world.client.get("/v1/events", params={"after": 1}), 200)["events"]
    path = f"/v1/webhooks/{create(world.client)['webhook_id']}"

    asked = {"recorded_from": event["recorded_at"]}
    assert told(world.client.post(f"{path}/replays", json=asked), 202) == {"replayed": 1, "next": None}
    asked = {"recorded_from": "2020-01-01T00:00:00Z", "recorded_to": event["recorded_at"]}
    assert told(world.client.post(f"{path}/replays", json=asked), 202) == {"replayed": 1, "next": None}
    assert told(world.client.post(f"{path}/replays", json={"after": 0, "upto": 2}), 202)["replayed"] == 0
    assert told(world.client.get(path), 200)["waiting"] == 2
    assert told(world.client.post(f"{path}/retries"), 202) == {"retried": 2}
    assert code["position"] == 2


def test_what_was_sent_is_shown_with_a_delivery_that_asks_for_it(world: World) -> None:
    world.permit()
    webhook_id = create(world.client)["webhook_id"]
    record(world, webhook_id, "attempts", 1)
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as connection:
        connection.execute(
            "UPDATE webhook_attempts a SET message_id = e.event_id FROM events e"
            " WHERE e.ledger_id = a.ledger_id AND e.position = 1 AND a.webhook_id = %s",
            (webhook_id,),
        )
    path = f"/v1/webhooks/{webhook_id}/deliveries"
    (with_it,) = told(world.client.get(path, params={"payload": True}), 200)["deliveries"]
    (without,) = told(world.client.get(path), 200)["deliveries"]

    assert with_it["payload"]["data"]["creator_id"] == "creator-own"
    assert (without["answer"], "payload" in without) == (None, False)
