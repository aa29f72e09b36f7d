"""Histories: what each event changed, in pages, as the ledger knew it and as it was true."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.code import LONG
from infra.auth.access_log import Access, AccessLog
from tests.api.world import OTHER_ACCOUNT, OTHER_BRAND, OWN_ACCOUNT, OWN_CREATOR, TERMS, World, days, refused, told
from tests.waiting import until


def history(world: World, code: dict[str, Any], client: Any = None, **query: Any) -> list[dict[str, Any]]:
    answer = (client or world.client).get(f"/v1/codes/{code['code_id']}/history", params=query)
    events: list[dict[str, Any]] = told(answer, 200)["events"]
    return events


def changes(events: list[dict[str, Any]]) -> list[dict[str, tuple[Any, Any]]]:
    return [{change["field"]: (change["before"], change["after"]) for change in event["changes"]} for event in events]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_a_history_tells_before_and_after_each_change(world: World) -> None:
    code = world.generate()
    world.share(code)
    extended = told(world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"days": 60}), 201)
    told(world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": "so"}), 201)
    revoked = told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)

    assert changes(history(world, code)) == [
        {
            "state": (None, "generated"),
            "starts_at": (None, code["starts_at"]),
            "expires_at": (None, code["expires_at"]),
        },
        {"state": ("generated", "shared"), "shares": (0, 1)},
        {"expires_at": (code["expires_at"], extended["expires_at"])},
        {},
        {"state": ("shared", "revoked"), "revoked_at": (None, revoked["revoked_at"])},
    ]


@pytest.mark.parametrize("path", ["/v1/events", "/v1/codes/{code_id}/history"])
def test_so_many_large_reads_at_a_time_leave_memory_and_room_for_others(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    code, other = world.generate(), world.another()
    places = world.server.serving.places.pages
    monkeypatch.setattr(places, "of_a_ledger", 1)
    record, begun, going = AccessLog.record, threading.Event(), threading.Event()

    async def held(self: AccessLog, ledger_id: int, access: Access) -> UUID:
        if not begun.is_set():
            begun.set()
            await asyncio.to_thread(going.wait, 30)
        return await record(self, ledger_id, access)

    monkeypatch.setattr(AccessLog, "record", held)
    with ThreadPoolExecutor(2) as beside:
        first = beside.submit(world.client.get, path.format(**code))
        assert begun.wait(10)
        second = beside.submit(world.as_role("auditor").get, path.format(**code))
        until(lambda: sum(places.figures().waiting.values()) == 1)
        told(other.client.get("/v1/events"), 200)
        with monkeypatch.context() as patched:
            patched.setattr(places, "wait_s", 0)
            assert refused(world.client.get(path.format(**code))) == (429, "too_many_requests")
        going.set()
        assert [answer.result().status_code for answer in (first, second)] == [200, 200]


def test_pages_of_a_history_follow_one_another_oldest_first(world: World) -> None:
    code = world.generate()
    for number in range(4):
        world.share(code, f"brand-{number}")
    whole = history(world, code)
    paged: list[dict[str, Any]] = []
    answer = world.client.get(f"/v1/codes/{code['code_id']}/history", params={"limit": 2})
    while True:
        content = told(answer, 200)
        paged += content["events"]
        if content["next"] is None:
            assert "link" not in answer.headers
            break
        answer = world.client.get(answer.links["next"]["url"])
    assert paged == whole
    assert len(whole) == 5
    given = told(world.client.get(f"/v1/codes/{code['code_id']}/history", params={"limit": 2}), 200)["next"]
    other = world.client.get(f"/v1/codes/{code['code_id']}/history", params={"cursor": given, "as_of": 3})
    assert refused(other) == (400, "malformed_cursor")


def test_an_expiry_recorded_an_hour_late_was_true_before_the_ledger_knew(world: World) -> None:
    an_hour = 1 / 24
    code = world.generate(starts_at=days(-30 - an_hour))
    until(lambda: len(history(world, code)) == 2)
    expired = history(world, code)[1]
    late = datetime.fromisoformat(expired["recorded_at"]) - datetime.fromisoformat(expired["effective_at"])
    assert late >= timedelta(hours=1)
    assert expired["effective_at"] == code["expires_at"]

    assert types(history(world, code, at=days(-an_hour / 2))) == ["CodeGenerated", "Expired"]
    assert types(history(world, code, at=days(-2 * an_hour))) == ["CodeGenerated"]
    assert types(history(world, code, as_of=code["position"])) == ["CodeGenerated"]
    assert changes([expired]) == [{"state": ("generated", "expired")}]
    # By the clock the code was over when it was recorded, whatever the ledger knew.
    assert world.read(code, as_of=code["position"])["state"] == "expired"
    assert world.read(code, as_of=code["position"], at=days(-2 * an_hour))["state"] == "generated"


def test_an_imported_code_that_began_last_month_was_live_before_the_ledger_knew(world: World) -> None:
    before = world.permit()["position"]
    code = world.generate(starts_at=days(-29))

    assert world.read(code, at=days(-10))["live"] is True
    unknown = world.client.get(f"/v1/codes/{code['code_id']}", params={"at": days(-10), "as_of": before})
    assert refused(unknown) == (404, "code_unknown")
    asked = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at": days(-10), "at_least": world.head()}
    assert told(world.client.get("/v1/authorizations", params=asked), 200)["reason"] == "not_redeemed"
    asked["as_of"] = before
    assert told(world.client.get("/v1/authorizations", params=asked), 200)["reason"] == "no_code"


def test_a_revocation_recorded_late_is_in_the_history_of_what_was_true_and_not_of_what_was_known(world: World) -> None:
    code = world.generate(starts_at=days(-20))
    shared = world.share(code)
    body = {"reason": "why", "effective_at": days(-10)}
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=body), 200)

    assert types(history(world, code)) == ["CodeGenerated", "Shared", "Revoked"]
    assert types(history(world, code, as_of=shared["position"])) == ["CodeGenerated", "Shared"]
    # The share took effect today, and the revocation ten days ago: it is what was true yesterday.
    assert types(history(world, code, at=days(-1))) == ["CodeGenerated", "Revoked"]
    assert types(history(world, code, at=days(-1), as_of=shared["position"])) == ["CodeGenerated"]
    assert changes(history(world, code, at=days(-1)))[1]["state"] == ("shared", "revoked")
    answer = world.client.get(f"/v1/codes/{code['code_id']}/history", params={"as_of": shared["position"]})
    assert (answer.headers["ledger-position"], answer.headers["etag"]) == (str(shared["position"]), '"2"')


def test_a_brands_history_does_not_tell_how_many_others_there_are(world: World) -> None:
    code = world.generate()
    world.share(code, OTHER_BRAND, OTHER_ACCOUNT)
    world.share(code)
    world.redeem(code, OWN_ACCOUNT)

    events = history(world, code, world.brand())

    assert types(events) == ["CodeGenerated", "Shared", "Redeemed"]
    assert changes(events)[1:] == [{}, {"state": ("shared", "redeemed")}]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"as_of": days(1)}, 400, "malformed_query"),
        ({"as_of": "999"}, 409, "ahead_of_ledger"),
        ({"as_of": "1"}, 404, "code_unknown"),
        ({"at": "2026-03-01"}, 400, "malformed_query"),
        ({"limit": "1001"}, 400, "malformed_query"),
        ({"cursor": "AAAA"}, 400, "malformed_cursor"),
        ({"at_least": "999"}, 503, "unavailable"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_malformed_query_of_a_history_is_refused(world: World, query: dict[str, str], status: int, code: str) -> None:
    known = world.generate()
    answer = world.client.get(f"/v1/codes/{known['code_id']}/history", params=query)
    assert refused(answer) == (status, code)


@pytest.mark.usefixtures("impatient")
def test_a_permission_at_a_position_that_nobody_has_reached_is_told_to_come_back(world: World) -> None:
    world.permit()
    assert refused(world.client.get(PERMISSION, params={"at": days(-1), "at_least": 999})) == (503, "unavailable")


PERMISSION = f"/v1/creators/{OWN_CREATOR}/permission"


def test_a_permission_switched_off_late_was_off_before_the_ledger_knew(world: World) -> None:
    world.permit()
    code = world.generate(starts_at=days(-20))
    on = world.head()
    body = {"enabled": False, "effective_at": days(-10)}
    off = told(world.client.put(PERMISSION, json=body), 200)

    def permission(**query: Any) -> tuple[bool, int, int]:
        read = told(world.client.get(PERMISSION, params=query), 200)
        return read["enabled"], read["live_codes"], read["version"]

    assert permission(at_least=off["position"]) == (True, 1, 2), "what took effect last is how it is, as for commands"
    asked = {"creator_id": OWN_CREATOR, "video_id": "video-of-today", "terms_version": TERMS}
    told(world.client.post("/v1/codes", json=asked), 201)
    assert permission(at=days(-5)) == (False, 1, 2), "the switch went on today, and off ten days ago"
    assert permission(at=days(-15)) == (False, 1, 0), "nothing is known of it to have been on"
    assert permission(as_of=on) == (True, 1, 1)
    assert permission(as_of=on, at=days(-5)) == (False, 1, 0)
    assert permission(as_of=code["position"], at=days(-30)) == (False, 0, 0)


def test_a_permissions_history_tells_when_it_went_on_and_off(world: World) -> None:
    told(world.client.put(PERMISSION, json={"enabled": True, "effective_at": days(-20)}), 200)
    told(world.client.put(PERMISSION, json={"enabled": False, "effective_at": days(-10)}), 200)

    def read(**query: Any) -> list[tuple[str, dict[str, Any]]]:
        events = told(world.client.get(f"{PERMISSION}/history", params=query), 200)["events"]
        return list(zip(types(events), changes(events), strict=True))

    on = ("PermissionEnabled", {"enabled": (False, True)})
    off = ("PermissionDisabled", {"enabled": (True, False)})
    assert read() == [on, off]
    assert read(as_of=1) == [on]
    assert read(at=days(-15)) == [on]
    assert read(at=days(-15), as_of=0) == []
    assert read(limit=1) == [on]
    nobody = told(world.client.get("/v1/creators/nobody/permission/history"), 200)
    assert (nobody["events"], nobody["next"]) == ([], None)
    assert world.creator().get("/v1/creators/creator-other/permission/history").status_code == 403


def test_a_history_tells_the_text_of_notes_and_never_the_secret(world: World) -> None:
    code = world.generate()
    world.share(code, note="a note on sharing")
    told(world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": "a remark", "about_position": 2}), 201)
    told(world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"}), 200)

    answer = world.client.get(f"/v1/codes/{code['code_id']}/history")
    events = told(answer, 200)["events"]

    assert [event["position"] for event in events] == sorted(event["position"] for event in events)
    assert events[1]["body"]["note"] == "a note on sharing"
    assert events[2]["body"]["text"] == "a remark"
    assert code["secret"] not in answer.text
    assert answer.headers["etag"] == '"2"'


def test_a_page_of_a_history_is_the_same_however_much_comes_before_and_after_it(world: World) -> None:
    code = world.generate()
    for number in range(LONG):
        world.share(code, f"brand-{number}", f"account-{number}")
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    whole = history(world, code, as_of=world.head())
    pages = [history(world, code, after=one["position"] - 1, limit=2) for one in whole]
    assert [page[0] for page in pages] == whole
    assert [page[1:] for page in pages[:-1]] == [[one] for one in whole[1:]]
    assert pages[-1][1:] == []


def test_a_history_tells_how_its_events_are_spread_over_time(world: World) -> None:
    world.permit(effective_at=days(-30))
    code = world.generate(secret="#spread==", starts_at=days(-20), days=30, effective_at=days(-20))
    path = f"/v1/codes/{code['code_id']}"
    for number, day in enumerate((-19, -18.9, -10, -0.001)):
        body = {"brand_id": f"brand-{number}", "channel": "dm", "effective_at": days(day)}
        told(world.client.post(f"{path}/shares", json=body), 201)
    asked = {"spread": 4, "limit": 1}
    now = told(world.client.get(f"{path}/history", params=asked), 200)["spread"]
    then = told(world.client.get(f"{path}/history", params={**asked, "as_of": world.head()}), 200)["spread"]
    assert now == then
    events = history(world, code)
    effective = [event["effective_at"] for event in events]
    assert now == [
        {
            "type": type_,
            "count": last - first,
            "begins": effective[first],
            "ends": effective[last - 1],
            "position": events[first]["position"],
            "late": late,
        }
        for type_, first, last, late in (
            ("CodeGenerated", 0, 1, 1),
            ("Shared", 1, 3, 2),
            ("Shared", 3, 4, 1),
            ("Shared", 4, 5, 0),
        )
    ]
