"""A rule about ends: who is told of which code, once, and what they read."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from infra.delivery.alerts.alert_store import load_rules
from tests.api.world import OTHER_CREATOR, OWN_CREATOR, World, refused, told
from tests.infra.delivery.alerts.mailroom import Mailroom, text_of

pytestmark = pytest.mark.long("a mail server answers, and reports wait for their turn")

# Of this day, so that what the server records lies around it.
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


def recorded(world: World, creator_id: str = OWN_CREATOR, *, left_days: float = 6.3, **more: Any) -> dict[str, Any]:
    """Record a code that TikTok generated long ago, and that ends in some days."""
    began = datetime.now(UTC) - timedelta(days=40)
    world.permit(creator_id, effective_at=began.isoformat())
    number = next(world._numbers)
    asked = {
        "creator_id": creator_id,
        "video_id": f"73123456789012{number:05}",
        "terms_version": "2026-01",
        "secret": f"#recorded-code-of-a-creator-{number:04}",
        "starts_at": began.isoformat(),
        "expires_at": (datetime.now(UTC) + timedelta(days=left_days)).isoformat(),
        "effective_at": began.isoformat(),
    } | more
    return told(world.client.post("/v1/codes", json=asked), 201)


def test_a_rule_reports_by_mail_that_a_code_ends_and_does_so_once(room: Mailroom, world: World) -> None:
    room.rule(zone="Europe/Berlin")
    code = recorded(world)
    room.wait_for("ExpiryApproaching")
    for _ in range(3):
        room.step()

    (message,) = room.messages
    ends_at = datetime.fromisoformat(code["expires_at"])
    day = f"{ends_at.astimezone(ZoneInfo('Europe/Berlin')):%Y-%m-%d}"
    assert message["Subject"] == f"A Spark code of {OWN_CREATOR} ends on {day}"
    assert message["From"] == "Sparkledger <alerts@ledger.example>"
    assert message["Auto-Submitted"] == "auto-generated"
    text = text_of(message)
    assert f"Code {code['masked']} of {OWN_CREATOR}" in text
    assert f"https://www.tiktok.com/@{OWN_CREATOR}/video/{code['video_id']}" in text or code["video_id"] in text
    assert f"{ends_at:%Y-%m-%d %H:%M} UTC (" in text
    assert "Europe/Berlin), in 6 days" in text
    assert f"https://console.example/codes/{code['code_id']}" in text
    assert "#recorded-code" not in message.as_string()


def test_a_new_rule_reports_what_ends_soon_already_and_each_code_once(room: Mailroom, world: World) -> None:
    soon, later = recorded(world, left_days=0.5), recorded(world, left_days=6.5)
    far = recorded(world, left_days=40)
    room.wait_for("ExpiryApproaching", 2)
    room.rule()
    room.step()
    room.step()

    (message,) = room.messages
    assert message["Subject"].startswith("2 Spark codes end soon, the first on ")
    text = text_of(message)
    assert text.index(soon["code_id"]) < text.index(later["code_id"])
    assert far["code_id"] not in text
    assert "in 12 hours" in text


def test_an_extended_code_is_not_reported_and_its_new_end_is(room: Mailroom, world: World) -> None:
    rule = room.rule()
    code = recorded(world)
    room.wait_for("ExpiryApproaching")
    room.serving.call(room.worker._look(room.connection, room.serving.call(load_rules(room.connection))))
    end = datetime.now(UTC) + timedelta(days=8)
    told(world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"expires_at": end.isoformat()}), 201)
    room.caught_up()
    room.step()
    assert room.messages == []
    assert [one["state"] for one in room.deliveries(rule)] == ["void"]

    # Its next reminder is as far away as the clock of the server: another code with that end shows that it comes.
    other = recorded(world, left_days=8)
    room.wait_for("ExpiryApproaching", 2)
    room.step()
    (message,) = room.messages
    assert other["code_id"] in text_of(message)
    assert code["code_id"] not in text_of(message)


def test_a_revoked_code_and_one_of_an_erased_creator_are_not_reported(room: Mailroom, world: World) -> None:
    rule = room.rule(quiet_from="00:00", quiet_until="23:59")
    revoked, erased, kept = recorded(world), recorded(world, OTHER_CREATOR), recorded(world)
    room.wait_for("ExpiryApproaching", 3)
    room.at(NOON)
    room.step()
    assert room.read(rule)["waiting"] == 3
    told(world.client.post(f"/v1/codes/{revoked['code_id']}/revocation", json={"reason": "Over"}), 200)
    told(world.client.post(f"/v1/creators/{OTHER_CREATOR}/erasure", json={"reason": "Asked"}), 200)
    room.caught_up()
    room.at(NOON.replace(hour=23, minute=59, second=30))
    room.step()
    (message,) = room.messages
    assert kept["code_id"] in text_of(message)
    assert revoked["code_id"] not in text_of(message)
    assert erased["code_id"] not in text_of(message)
    assert OTHER_CREATOR not in message.as_string()


def test_a_key_is_told_of_what_it_sees_and_of_nothing_else(room: Mailroom, world: World) -> None:
    own, others = recorded(world), recorded(world, OTHER_CREATOR)
    world.share(others)
    told(world.client.get("/v1/shares", params={"at_least": world.head()}), 200)
    room.wait_for("ExpiryApproaching", 2)
    domain = room.address.partition("@")[0]
    rules = {
        "creator": room.rule(client=world.creator(), address=f"c-{domain}@brand.example"),
        "brand": room.rule(client=world.brand(), address=f"b-{domain}@brand.example"),
        "filter": room.rule(creator_id=OTHER_CREATOR, address=f"f-{domain}@brand.example"),
        "none": room.rule(brand_id="nobody", address=f"n-{domain}@brand.example"),
    }
    room.step()
    told_of = {
        name: [code["code_id"] in text_of(message) for code in (own, others)]
        for name, rule in rules.items()
        for message in room.inbox.to(rule["address"])
    }
    assert told_of == {"creator": [True, False], "brand": [False, True], "filter": [False, True]}


def test_a_rule_ends_with_its_key(room: Mailroom, world: World) -> None:
    made = told(world.client.post("/v1/keys", json={"role": "operator"}), 201)
    rule = room.rule(client=world.with_key(made["key"]))
    told(world.client.delete(f"/v1/keys/{made['key_id']}"), 204)
    recorded(world)
    room.wait_for("ExpiryApproaching")
    room.step()
    found = room.read(rule)
    assert (found["enabled"], found["disabled"], found["waiting"], room.messages) == (False, "key", 0, [])
    answer = world.client.patch(f"/v1/alerts/{rule['rule_id']}", json={"enabled": True})
    assert refused(answer) == (409, "alert_key_invalid")


def test_what_the_server_refuses_for_now_is_tried_again_and_given_up_after_the_last_attempt(
    room: Mailroom, world: World
) -> None:
    rule = room.rule()
    recorded(world)
    room.wait_for("ExpiryApproaching")
    room.inbox.answer = "451 Later"
    began = room.clock()
    # Well beyond the pauses, because the clock runs on while a step takes its time.
    for seconds in (0, 5, 60, 240):
        room.at(began + timedelta(seconds=seconds))
        room.step()
    (delivery,) = room.deliveries(rule)
    assert (delivery["state"], delivery["attempts"], delivery["findings"]) == ("dead", 3, 1)
    assert delivery["error"] == "The mail server refused the message (451)."
    found = room.read(rule)
    assert (found["dead"], found["failed"], found["sent"]) == (1, 3, 0)

    room.inbox.answer = "250 OK"
    replay = told(world.client.post(f"/v1/alerts/{rule['rule_id']}/replays"), 202)
    assert replay == {"replayed": 1}
    room.at(datetime.now(UTC) + timedelta(minutes=5))
    room.step()
    found = room.read(rule)
    assert (found["dead"], found["sent"], found["error"], len(room.messages)) == (0, 1, None, 1)


def test_a_recipient_that_does_not_exist_is_not_tried_again(room: Mailroom, world: World) -> None:
    rule = room.rule()
    recorded(world)
    room.wait_for("ExpiryApproaching")
    room.inbox.recipient_answer = "550 No such user"
    room.step()
    (delivery,) = room.deliveries(rule)
    assert (delivery["state"], delivery["attempts"]) == ("dead", 1)
    assert delivery["error"] == "The mail server refused the recipient (550)."


def test_a_message_whose_record_was_lost_is_sent_once_more_with_the_same_id(room: Mailroom, world: World) -> None:
    rule = room.rule()
    recorded(world)
    room.wait_for("ExpiryApproaching")

    async def die_before_the_record() -> None:
        await room.worker.step(room.connection)
        await asyncio.wait(room.worker._sending)

    room.serving.call(die_before_the_record())
    assert (len(room.messages), room.read(rule)["sent"]) == (1, 0)
    room.worker = room.new_worker()
    began = room.clock()
    # Well beyond the pauses, because the clock runs on while a step takes its time.
    for seconds in (0, 5, 60, 240):
        room.at(began + timedelta(seconds=seconds))
        room.step()
    first, second = room.messages
    assert first["Message-ID"] == second["Message-ID"]
    assert (room.read(rule)["sent"], [one["attempts"] for one in room.deliveries(rule)]) == (1, [2])


def test_a_rule_that_is_enabled_again_does_not_repeat_itself(room: Mailroom, world: World) -> None:
    rule = room.rule()
    recorded(world)
    room.wait_for("ExpiryApproaching")
    room.step()
    for enabled in (False, True):
        told(world.client.patch(f"/v1/alerts/{rule['rule_id']}", json={"enabled": enabled}), 200)
        room.step()
    room.step()
    assert len(room.messages) == 1


def test_a_test_message_comes_in_quiet_hours_too(room: Mailroom, world: World) -> None:
    rule = room.rule(quiet_from="00:00", quiet_until="23:59")
    room.at(NOON)
    made = told(world.client.post(f"/v1/alerts/{rule['rule_id']}/test"), 202)
    room.at(datetime.now(UTC) + timedelta(hours=1))
    room.step()
    (message,) = room.messages
    assert message["Subject"] == f"Test of an alert of the ledger {world.server.ledger}"
    assert message["Message-ID"] == f"<{made['message_id']}@ledger.example>"
    assert "https://console.example/alerts" in text_of(message)
