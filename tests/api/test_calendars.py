"""The routes of calendars: the address is shown once, opens one calendar, and ends with it or its key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import icalendar

from tests.api.world import OTHER_CREATOR, OWN_CREATOR, World, refused, told
from tests.serving import TLS


def subscribe(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    """Create a calendar."""
    return told(client.post("/v1/calendars", json=asked), 201)


def read(world: World, calendar: dict[str, Any], **headers: str) -> httpx.Response:
    """Read a calendar as programs do: without a key."""
    told(world.client.get("/v1/codes", params={"at_least": world.head(), "limit": 1}), 200)
    url = world.server.url + calendar["address"]
    return httpx.get(url, headers=headers, trust_env=False, verify=TLS, timeout=20)


def shown(answer: httpx.Response) -> dict[str, tuple[str, int]]:
    """Return status and sequence of the events that a program would show, by the id of the code."""
    assert answer.status_code == 200, answer.text
    events = icalendar.Calendar.from_ical(answer.content).walk("VEVENT")
    return {str(one["UID"]).partition("@")[0]: (str(one["STATUS"]), int(str(one["SEQUENCE"]))) for one in events}


def test_a_calendar_follows_its_codes_and_knows_whether_anything_has_changed(world: World) -> None:
    code, other = world.generate(), world.generate()
    calendar = subscribe(world.client)
    first = read(world, calendar)
    assert first.headers["content-type"] == "text/calendar; charset=utf-8"
    assert shown(first) == {code["code_id"]: ("CONFIRMED", 1), other["code_id"]: ("CONFIRMED", 1)}
    assert code["secret"] not in first.text
    again = read(world, calendar, **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")

    told(world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"days": 60}), 201)
    told(world.client.post(f"/v1/codes/{other['code_id']}/revocation", json={"reason": "Over"}), 200)
    changed = read(world, calendar, **{"If-None-Match": first.headers["etag"]})
    assert shown(changed) == {code["code_id"]: ("CONFIRMED", 2), other["code_id"]: ("CANCELLED", 2)}


def test_a_calendar_has_what_its_key_sees_and_whom_it_is_about(world: World) -> None:
    own, others = world.generate(), world.generate(OTHER_CREATOR)
    world.share(others)
    calendars = {
        "desk": subscribe(world.client),
        "one creator": subscribe(world.client, creator_id=f"@{OTHER_CREATOR.upper()}"),
        "creator": subscribe(world.creator()),
        "brand": subscribe(world.brand()),
        "nobody": subscribe(world.client, brand_id="nobody"),
    }
    both = {own["code_id"], others["code_id"]}
    assert {name: set(shown(read(world, calendar))) for name, calendar in calendars.items()} == {
        "desk": both,
        "one creator": {others["code_id"]},
        "creator": {own["code_id"]},
        "brand": {others["code_id"]},
        "nobody": set(),
    }
    assert refused(world.creator().post("/v1/calendars", json={"creator_id": OTHER_CREATOR})) == (403, "not_allowed")
    several = world.client.post("/v1/calendars", json={"creator_id": OWN_CREATOR, "brand_id": "acme"})
    assert refused(several) == (422, "malformed_body")


def test_the_address_is_shown_once_and_ends_with_the_calendar_or_its_key(world: World) -> None:
    made = told(world.client.post("/v1/keys", json={"role": "operator"}), 201)
    client = world.with_key(made["key"])
    once = {"Idempotency-Key": "once"}
    first = told(client.post("/v1/calendars", json={"name": "Desk"}, headers=once), 201)
    repeat = client.post("/v1/calendars", json={"name": "Desk"}, headers=once)
    assert told(repeat, 201) == first | {"address": None}
    assert repeat.headers["idempotent-replayed"] == "true"
    (listed,) = told(client.get("/v1/calendars"), 200)["calendars"]
    assert listed == {name: value for name, value in first.items() if name != "address"}
    other = subscribe(client)
    assert read(world, first).status_code == read(world, other).status_code == 200

    told(client.delete(f"/v1/calendars/{first['calendar_id']}"), 204)
    assert refused(read(world, first)) == (404, "calendar_unknown")
    told(world.client.delete(f"/v1/keys/{made['key_id']}"), 204)
    assert refused(read(world, other)) == (404, "calendar_unknown")
    for secret in ("A" * 43, "short", "A" * 200):
        assert refused(read(world, {"address": f"/calendar/{secret}.ics"})) == (404, "calendar_unknown")


def test_an_erased_creator_is_in_no_calendar(world: World) -> None:
    world.generate()
    kept = world.generate(OTHER_CREATOR)
    calendar = subscribe(world.client)
    told(world.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "Asked"}), 200)
    answer = read(world, calendar)
    assert set(shown(answer)) == {kept["code_id"]}
    assert OWN_CREATOR not in answer.text


def test_a_calendar_that_is_read_too_often_must_wait(world: World) -> None:
    calendar = subscribe(world.client)
    # All within the minute after which one more is free.
    with httpx.Client(base_url=world.server.url, trust_env=False, verify=TLS, timeout=20) as program:
        answers = [program.get(calendar["address"]) for _ in range(31)]
    assert {answer.status_code for answer in answers[:30]} == {200}
    assert refused(answers[30]) == (429, "too_many_requests")
    assert int(answers[30].headers["retry-after"]) >= 1


def test_codes_long_past_and_far_ahead_are_left_out(world: World) -> None:
    now = datetime.now(UTC)
    world.permit(effective_at=(now - timedelta(days=90)).isoformat())
    for number, days in enumerate((-40, 500)):
        asked = {
            "creator_id": OWN_CREATOR,
            "video_id": f"video-{number}",
            "terms_version": "1",
            "secret": f"#recorded-code-of-a-creator-{number}",
            "starts_at": (now - timedelta(days=80)).isoformat(),
            "expires_at": (now + timedelta(days=days)).isoformat(),
            "effective_at": (now - timedelta(days=80)).isoformat(),
        }
        told(world.client.post("/v1/codes", json=asked), 201)
    assert shown(read(world, subscribe(world.client))) == {}


def test_reads_of_a_calendar_are_counted_in_the_access_log_without_its_address(world: World) -> None:
    calendar = subscribe(world.client, creator_id=OWN_CREATOR)
    for _ in range(3):
        read(world, calendar)
    world.server.serving.call(world.server.serving.api.reads.write())
    asked = {"route": "GET /calendar/{secret}.ics"}
    entries = told(world.client.get("/v1/accesses", params=asked), 200)["accesses"]
    # One, or two where a minute ended in between.
    assert sum(entry["reads"] for entry in entries) == 3
    assert len(entries) <= 2
    assert {(entry["query"]["calendar_id"], entry["creator_id"]) for entry in entries} == {
        (calendar["calendar_id"], OWN_CREATOR)
    }
    secret = calendar["address"].removeprefix("/calendar/").removesuffix(".ics")
    assert secret not in str(entries)
    (listed,) = told(world.client.get("/v1/calendars"), 200)["calendars"]
    assert listed["read_at"] is not None
