"""What is sent, to whom and when: chat, e-mail with TLS and a login, digests, other kinds of rules."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.delivery.alerts.channels import CHAT_CHARACTERS_MAX, MailChannel, MailServer, chat_body
from infra.delivery.alerts.texts import AlertText
from infra.ids import uuid7
from tests.api.world import OTHER_ACCOUNT, OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, days, refused, told
from tests.infra.delivery.alerts.mailroom import LOGIN, Mailroom, mailroom, text_of
from tests.infra.delivery.alerts.test_ending import recorded
from tests.infra.delivery.kafka.broker import certificate_and_key

TEXT = AlertText("A code ends", "It ends.\n")


def test_a_chat_gets_json_with_a_text_and_a_chat_that_is_gone_is_not_asked_again(room: Mailroom, world: World) -> None:
    rule = room.rule(channel="chat", address=room.chat.url)
    code = recorded(world)
    room.wait_for("ExpiryApproaching")
    room.step()
    (posted,) = room.chat.received
    assert list(posted) == ["text"]
    assert posted["text"].startswith(f"A Spark code of {OWN_CREATOR} ends on ")
    assert f"https://console.example/codes/{code['code_id']}" in posted["text"]
    assert room.read(rule)["sent"] == 1

    room.chat.status = 404
    recorded(world)
    room.wait_for("ExpiryApproaching", 2)
    room.step()
    assert [(one["state"], one["error"]) for one in room.deliveries(rule)] == [
        ("sent", None),
        ("dead", "The receiver responded with status 404."),
    ]


def test_nothing_in_a_chats_text_is_a_mention_and_it_is_bounded() -> None:
    body = chat_body(AlertText("<!channel> & all", "x" * 50_000))
    assert b"&lt;!channel&gt; &amp; all" in body
    assert len(body) < CHAT_CHARACTERS_MAX + 100


def test_a_chat_in_another_network_is_refused_when_the_rule_is_made(world: World) -> None:
    asked = {"kind": "ending", "channel": "chat", "address": "https://10.0.0.1/hook"}
    assert refused(world.client.post("/v1/alerts", json=asked)) == (422, "malformed_body")


def test_creators_and_brands_cannot_have_anything_sent_to_this_machine_or_its_networks(
    room: Mailroom, world: World
) -> None:
    asked = {"kind": "ending", "channel": "chat", "address": room.chat.url}
    for outsider in (world.creator(), brand := world.brand()):
        assert refused(outsider.post("/v1/alerts", json=asked)) == (422, "malformed_body")
    # A name is looked up only when a message is sent.
    named = room.chat.url.replace("127.0.0.1", "localhost")
    rule = room.rule(client=brand, channel="chat", address=named)
    told(brand.post(f"/v1/alerts/{rule['rule_id']}/test"), 202)
    room.step()
    assert room.read(rule)["error"] == "The host name resolves to an address that webhooks must not use."
    assert room.chat.received == []


def test_mail_goes_by_starttls_with_a_login_and_a_certificate_of_our_own(world: World, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    for path, text in zip((certificate, key), certificate_and_key(), strict=True):
        path.write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    login = dict(zip(("user", "password"), LOGIN, strict=True))
    with mailroom(world, context, security="starttls", ca_file=certificate, **login) as room:
        rule = room.rule()
        told(world.client.post(f"/v1/alerts/{rule['rule_id']}/test"), 202)
        room.step()
        assert room.read(rule)["error"] is None
        assert len(room.messages) == 1

        room.worker = room.new_worker(password="wrong")
        told(world.client.post(f"/v1/alerts/{rule['rule_id']}/test"), 202)
        room.step()
        assert room.read(rule)["error"] == "The mail server refused the login (535)."

        room.worker = room.new_worker(ca_file=None)
        told(world.client.post(f"/v1/alerts/{rule['rule_id']}/test"), 202)
        room.step()
        assert room.read(rule)["error"] == "The mail server's certificate could not be verified."


def test_a_server_without_tls_gets_nothing_but_on_this_machine(room: Mailroom) -> None:
    server = MailServer("127.0.0.1", room.inbox.port, "starttls", "alerts@ledger.example", *LOGIN)
    sending = MailChannel(server).send(room.address, TEXT, uuid7(), datetime.now(UTC))
    assert room.serving.call(sending).error is not None
    assert room.messages == []


def test_a_header_cannot_be_added_by_what_is_in_a_message() -> None:
    channel = MailChannel(MailServer("127.0.0.1", 9, "none", "alerts@ledger.example"))
    with pytest.raises(ValueError, match="linefeed"):
        channel.message("desk@brand.example", AlertText("A\r\nBcc: x@y.example", ""), uuid7(), datetime.now(UTC))
    for address in ("desk@brand.example\r\nBcc: x@y.example", "a@b.example, c@d.example"):
        with pytest.raises(ValueError, match=r".*"):
            channel.message(address, TEXT, uuid7(), datetime.now(UTC))


def test_a_digest_has_all_of_a_day_and_comes_at_its_hour(room: Mailroom, world: World) -> None:
    rule = room.rule(digest_at="08:00", zone="Europe/Berlin")
    codes = [recorded(world), recorded(world)]
    room.wait_for("ExpiryApproaching", 2)
    today = datetime.now(UTC).replace(hour=9, minute=0, second=0, microsecond=0)
    room.at(today)
    room.step()
    assert (room.read(rule)["waiting"], room.messages) == (2, [])
    room.at(today + timedelta(hours=20))
    room.step()
    assert room.messages == []
    room.at(today + timedelta(hours=23))
    room.step()
    (message,) = room.messages
    assert all(code["code_id"] in text_of(message) for code in codes)


def test_what_is_too_much_for_one_digest_goes_on_after_a_moment(room: Mailroom, world: World) -> None:
    room.worker._policy = replace(room.worker._policy, findings=1, gap_s=30)
    room.rule(digest_at="08:00", zone="Europe/Berlin")
    codes = [recorded(world), recorded(world)]
    room.wait_for("ExpiryApproaching", 2)
    today = datetime.now(UTC).replace(hour=9, minute=0, second=0, microsecond=0)
    for hours in (0, 23, 23.1):
        room.at(today + timedelta(hours=hours))
        room.step()
    texts = [text_of(message) for message in room.messages]
    assert len(texts) == 2
    assert all(any(code["code_id"] in text for text in texts) for code in codes)


def test_a_campaign_that_rights_or_another_end_stop_is_reported_with_the_day_that_holds(
    room: Mailroom, world: World
) -> None:
    room.rule(kind="campaign_outlives_code")
    room.step()
    code = world.generate()
    world.redeem(code)
    world.launch(code, "within", ends_at=days(20))
    room.caught_up()
    room.step()
    assert room.messages == []
    path = f"/v1/codes/{code['code_id']}/usage-rights"
    told(world.client.put(path, json={"until": days(10)}), 200)
    room.caught_up()
    # Found, but its message is not made before the end moves.
    room.worker._policy = replace(room.worker._policy, collect_s=3_600)
    room.step()
    assert room.messages == []
    until = days(15)
    told(world.client.put(path, json={"until": until}), 200)
    room.caught_up()
    room.worker._policy = replace(room.worker._policy, collect_s=0)
    room.step()
    (message,) = room.messages
    assert until[:10] in message["Subject"]


def test_a_campaign_that_outlives_its_code_is_reported_to_those_who_may_see_it(room: Mailroom, world: World) -> None:
    desk = room.rule(kind="campaign_outlives_code")
    other = f"other-{room.address}"
    room.rule(kind="campaign_outlives_code", advertiser_id=OTHER_ACCOUNT, address=other)
    code = world.generate()
    world.share(code)
    world.redeem(code)
    world.launch(code, "short")
    world.launch(code, "long", ends_at=days(90))
    room.caught_up()
    for _ in range(2):
        room.step()
    (message,) = room.messages
    assert message["Subject"].startswith(f"A campaign stops early: its Spark code of {OWN_CREATOR} ends on ")
    assert f"Campaign: long of account {OWN_ACCOUNT}" in text_of(message)
    assert "short" not in text_of(message)
    assert room.inbox.to(other) == []
    assert room.read(desk)["sent"] == 1


def test_a_rule_made_later_reports_campaigns_that_outlive_their_code_already(room: Mailroom, world: World) -> None:
    code = world.generate()
    world.redeem(code)
    world.launch(code, "long", ends_at=days(90))
    room.caught_up()
    room.rule(kind="campaign_outlives_code")
    room.step()
    assert len(room.messages) == 1


def test_a_refused_attempt_is_reported_with_its_reason(room: Mailroom, world: World) -> None:
    room.rule(kind="refused_attempts", creator_id=OWN_CREATOR)
    for creator in (OWN_CREATOR, OTHER_CREATOR):
        code = world.generate(creator)
        told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "Over"}), 200)
        asked = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT}
        assert refused(world.client.post("/v1/redemptions", json=asked)) == (409, "code_revoked")
    room.caught_up()
    for _ in range(2):
        room.step()
    (message,) = room.messages
    assert message["Subject"] == f"A refused attempt to use a Spark code of {OWN_CREATOR}"
    assert f"Account:  {OWN_ACCOUNT}\n   Reason:   code revoked" in text_of(message)


def stop_a_view(world: World, *, stopped: bool) -> None:
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as owner:
        if stopped:
            owner.execute("INSERT INTO view_versions (view, version, state) VALUES ('of_the_alerts', 1, 'failed')")
        else:
            owner.execute("DELETE FROM view_versions WHERE view = 'of_the_alerts'")


def test_what_stops_is_reported_once_and_again_if_it_stops_again(room: Mailroom, world: World) -> None:
    room.rule(kind="stopped")

    def looked() -> list[Any]:
        room.worker._stopped_at = float("-inf")
        room.step()
        return room.messages

    try:
        stop_a_view(world, stopped=True)
        assert [message["Subject"] for message in looked()] == ["Stopped: the view of_the_alerts"]
        assert len(looked()) == 1
        stop_a_view(world, stopped=False)
        assert len(looked()) == 1
        stop_a_view(world, stopped=True)
        assert len(looked()) == 2
    finally:
        stop_a_view(world, stopped=False)
    asked = {"kind": "stopped", "channel": "email", "address": room.address}
    assert refused(world.creator().post("/v1/alerts", json=asked)) == (403, "not_allowed")


def test_a_server_that_sends_no_mail_says_so_and_chats_go_on(room: Mailroom, world: World) -> None:
    rule = room.rule()
    recorded(world)
    room.wait_for("ExpiryApproaching")
    room.worker._mail = None
    room.step()
    assert room.read(rule)["error"] == "This server sends no e-mail: SPARKLEDGER_SMTP_URL is not set."


def test_messages_of_a_rule_that_is_off_hold_up_no_other(room: Mailroom, world: World) -> None:
    off = room.rule(address=f"off-{room.address}")
    world.server.database.sql(
        "INSERT INTO alert_messages (message_id, rule_id, ledger_id, test, findings, made_at, next_at)"
        " SELECT gen_random_uuid(), rule_id, ledger_id, true, 0, now(), now() - interval '1 hour'"
        " FROM alert_rules, generate_series(1, 60) WHERE rule_id = %s",
        (off["rule_id"],),
    )
    told(world.client.patch(f"/v1/alerts/{off['rule_id']}", json={"enabled": False}), 200)
    rule = room.rule()
    told(world.client.post(f"/v1/alerts/{rule['rule_id']}/test"), 202)
    room.step()
    assert len(room.messages) == 1
    assert room.inbox.to(off["address"]) == []
