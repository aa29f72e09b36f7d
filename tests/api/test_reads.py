"""Reading codes, permissions, the question and the figures: now, as the ledger knew then, and as it was true then."""

from __future__ import annotations

from typing import Any

import pytest

from infra.eventstore.aggregate_reader import AggregateReader
from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    World,
    days,
    refused,
    told,
)

# What a code's answer adds or leaves out between the command's answer and a read of it.
READ_ALONE = {"as_of"}
TOLD_ONCE = {"secret"}


def test_a_code_reads_as_the_command_left_it(world: World) -> None:
    code = world.generate()
    shared = world.share(code)

    read = world.read(code)

    assert {name: value for name, value in read.items() if name not in READ_ALONE} == shared
    assert read["as_of"] == shared["position"]


def test_a_code_reads_as_it_stood_at_each_version(world: World) -> None:
    code = world.generate()
    answers = [code, world.share(code), told(world.client.get(f"/v1/codes/{code['code_id']}"), 200)]
    world.redeem(code)

    for version, left in enumerate(answers[:2], start=1):
        read = world.read(code, version=version)
        expected = {name: value for name, value in left.items() if name not in TOLD_ONCE}
        assert {name: value for name, value in read.items() if name not in READ_ALONE} == expected
    beyond = world.client.get(f"/v1/codes/{code['code_id']}", params={"version": 9})
    assert refused(beyond) == (404, "version_unknown")


def test_a_code_reads_as_the_ledger_knew_it_at_a_position_or_a_time(world: World) -> None:
    code = world.generate()
    shared = world.share(code)
    events = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    world.redeem(code)

    assert world.read(code, as_of=shared["position"])["state"] == "shared"
    assert world.read(code, as_of=events[-1]["recorded_at"])["state"] == "shared"
    assert world.read(code, as_of=code["position"])["state"] == "generated"
    answer = world.client.get(f"/v1/codes/{code['code_id']}", params={"as_of": code["position"]})
    assert answer.headers["ledger-position"] == str(code["position"])
    assert answer.headers["etag"] == '"1"'

    before = world.client.get(f"/v1/codes/{code['code_id']}", params={"as_of": code["position"] - 1})
    assert refused(before) == (404, "code_unknown")


def test_what_the_ledger_learned_late_was_true_before_it_knew(world: World) -> None:
    code = world.generate(starts_at=days(-5))
    path = f"/v1/codes/{code['code_id']}/revocation"
    told(world.client.post(path, json={"reason": "why", "effective_at": days(-2)}), 200)

    assert world.read(code, at=days(-3))["state"] == "generated"
    assert world.read(code, at=days(-1))["state"] == "revoked"
    assert world.read(code, at=days(-1), as_of=code["position"])["state"] == "generated"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"as_of": days(1)}, "malformed_query"),
        ({"as_of": "999"}, "malformed_query"),
        ({"as_of": "yesterday"}, "malformed_query"),
        ({"as_of": "-1"}, "malformed_query"),
        ({"as_of": str(10**30)}, "malformed_query"),
        ({"at": "2026-03-01"}, "malformed_query"),
        ({"at": "2026-03-01T12:00:00"}, "malformed_query"),
        ({"at": "1999-12-31T12:00:00Z"}, "malformed_query"),
        ({"version": "0"}, "malformed_query"),
        ({"version": "1.0"}, "malformed_query"),
        ({"version": "1_0"}, "malformed_query"),
        ({"at_least": "-1"}, "malformed_query"),
        ({"as_off": "1"}, "malformed_query"),
    ],
)
def test_a_malformed_query_is_refused(world: World, query: dict[str, str], code: str) -> None:
    known = world.generate()
    answer = world.client.get(f"/v1/codes/{known['code_id']}", params=query)
    assert refused(answer) == (400, code)


@pytest.mark.parametrize(
    ("path", "query", "problem"),
    [
        ("/v1/codes", {"limit": "9" * 20}, "The maximum is 1,000."),
        ("/v1/codes", {"at_least": "9" * 99}, "The maximum is 4,611,686,018,427,387,904."),
        ("/v1/creators/ana/permission", {"as_of": "9" * 20}, "No ledger can have this position."),
        ("/v1/codes", {"limit": "9" * 6_000}, "Expected a whole number, 0 or greater."),
        ("/v1/events", {"code_id": "\N{BLACK HEART SUIT}"}, "Expected the id of a code, which is a UUID."),
        ("/v1/shares", {"code_id": "z"}, "Expected the id of a code, which is a UUID."),
        ("/v1/accesses", {"actor": "ada"}, "Expected the id of a key, or `machine`."),
        (
            "/v1/stats/days",
            {"from": "2099-12-31"},
            "This day is in the future. Send `to` as well. Its default is today.",
        ),
    ],
)
def test_what_is_wrong_with_a_parameter_is_said_without_showing_it(
    world: World, path: str, query: dict[str, str], problem: str
) -> None:
    answer = world.client.get(path, params=query)
    assert refused(answer) == (400, "malformed_query")
    assert answer.json()["errors"] == [{"pointer": f"/{next(iter(query))}", "problem": problem}]


def test_a_parameter_sent_twice_is_refused(world: World) -> None:
    known, unknown = (world.client.get(f"/v1/codes?{query}") for query in ("limit=1&limit=2", "sekret=1&sekret=2"))
    assert refused(known) == refused(unknown) == (400, "malformed_query")
    assert known.json()["detail"] == "The parameter `limit` was sent more than once."
    assert unknown.json()["detail"] == "A query parameter was sent more than once."


def test_more_parameters_than_there_are_is_refused(world: World) -> None:
    answer = world.client.get("/v1/codes?" + "&".join(f"p{number}=1" for number in range(51)))
    assert refused(answer) == (400, "malformed_query")
    assert answer.json()["detail"] == "The query has more than 50 parameters."


def test_an_unknown_code_and_what_is_no_code_id_are_told_the_same(world: World) -> None:
    code = world.generate()["code_id"]
    creator_stream = "01a2047d-e22d-7479-9309-83e7d9fc9f1d"
    ids = ["x", "lookup", creator_stream, code.upper(), code.replace("-", ""), f"{{{code}}}", "%00", "a" * 2000]

    answers = [world.client.get(f"/v1/codes/{id_}") for id_ in ids]

    texts = {answer.text.replace(answer.headers["request-id"], "") for answer in answers}
    assert {answer.status_code for answer in answers} == {404}
    assert len(texts) == 1


def test_a_read_waits_for_the_position_it_is_asked_for(world: World) -> None:
    position = 0
    for number in range(5):
        position = world.generate(video_id=f"video-{number}")["position"]
        answer = world.client.get("/v1/codes", params={"at_least": position})
        assert len(told(answer, 200)["codes"]) == number + 1
        assert int(answer.headers["ledger-position"]) >= position
    code = world.generate()
    answer = world.client.get(f"/v1/codes/{code['code_id']}", params={"at_least": code["position"]})
    assert int(answer.headers["ledger-position"]) >= code["position"]


def test_a_read_of_a_position_nobody_has_reached_is_told_to_come_back(world: World) -> None:
    code = world.generate()
    answer = world.client.get(f"/v1/codes/{code['code_id']}", params={"at_least": 999})
    assert refused(answer) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def listed(world: World, client: Any = None, **query: Any) -> list[str]:
    answer = (client or world.client).get("/v1/codes", params={"at_least": world.head()} | query)
    return [code["code_id"] for code in told(answer, 200)["codes"]]


def test_codes_are_listed_newest_first_by_every_filter(world: World) -> None:
    plain = world.generate(OTHER_CREATOR, video_id="video-x")["code_id"]
    shared = world.generate()
    world.share(shared)
    redeemed = world.generate()
    world.redeem(redeemed, OTHER_ACCOUNT)
    expired = world.generate(starts_at=days(-60))["code_id"]
    shared, redeemed = shared["code_id"], redeemed["code_id"]

    assert listed(world) == [expired, redeemed, shared, plain]
    assert listed(world, state="generated") == [plain]
    assert listed(world, state="shared") == [shared]
    assert listed(world, state="redeemed") == [redeemed]
    assert listed(world, state="expired") == [expired]
    assert listed(world, state="revoked") == []
    assert listed(world, creator_id=OTHER_CREATOR) == [plain]
    assert listed(world, video_id="video-x") == [plain]
    assert listed(world, brand_id=OWN_BRAND) == [shared]
    assert listed(world, advertiser_id=OTHER_ACCOUNT) == [redeemed]
    assert listed(world, expires_before=days(1)) == [expired]
    assert listed(world, creator_id=OWN_CREATOR, state="shared") == [shared]


def test_pages_of_codes_follow_one_another_without_a_gap(world: World) -> None:
    made = [world.generate(video_id=f"video-{number}")["code_id"] for number in range(7)]
    found: list[str] = []
    answer = world.client.get("/v1/codes", params={"limit": 3, "at_least": world.head()})
    while True:
        content = told(answer, 200)
        found += [code["code_id"] for code in content["codes"]]
        if content["next"] is None:
            assert "link" not in answer.headers
            break
        following = answer.links["next"]["url"]
        assert content["next"] in following
        answer = world.client.get(following)
    assert found == made[::-1]


def test_codes_are_listed_by_when_they_end_in_pages(world: World) -> None:
    later = [world.generate(days=length)["code_id"] for length in (60, 7, 30)]
    world.share(world.read({"code_id": later[0]}))
    told(world.client.post(f"/v1/codes/{world.generate()['code_id']}/revocation", json={"reason": "why"}), 200)
    world.generate(starts_at=days(-60))
    soonest = [later[1], later[2], later[0]]

    assert listed(world, order="ending") == soonest
    assert listed(world, order="ending", expires_before=days(31)) == soonest[:2]
    assert listed(world, world.creator(), order="ending") == soonest
    assert listed(world, world.brand(), order="ending") == soonest[2:]
    first = told(world.client.get("/v1/codes", params={"order": "ending", "limit": 2}), 200)
    rest = told(world.client.get("/v1/codes", params={"order": "ending", "cursor": first["next"]}), 200)
    assert [code["code_id"] for code in first["codes"] + rest["codes"]] == soonest
    assert rest["next"] is None
    assert refused(world.client.get("/v1/codes", params={"cursor": first["next"]})) == (400, "malformed_cursor")


def test_codes_that_were_live_at_a_moment_are_listed_whatever_became_of_them(world: World) -> None:
    running = world.generate(starts_at=days(-20), days=60)["code_id"]
    expired = world.generate(starts_at=days(-60))["code_id"]
    revoked = world.generate(starts_at=days(-50), days=60)["code_id"]
    gone = {"reason": "why", "effective_at": days(-10)}
    told(world.client.post(f"/v1/codes/{revoked}/revocation", json=gone), 200)

    assert listed(world, live_at=days(-61)) == []
    assert listed(world, live_at=days(-45)) == [expired, revoked]
    assert listed(world, live_at=days(-15)) == [revoked, running]
    assert listed(world, live_at=days(-15), order="ending") == [revoked, running]
    assert listed(world, live_at=days(-5)) == [running]
    assert listed(world, live_at=days(30)) == [running]
    assert listed(world, live_at=days(-45), state="expired") == [expired]
    assert listed(world, world.creator(), live_at=days(-45)) == [expired, revoked]
    assert listed(world, world.brand(), live_at=days(-45)) == []
    first = told(world.client.get("/v1/codes", params={"live_at": days(-45), "limit": 1}), 200)
    following = {"live_at": first["codes"][0]["expires_at"], "cursor": first["next"]}
    assert refused(world.client.get("/v1/codes", params=following)) == (400, "malformed_cursor")
    wrong = world.client.get("/v1/codes", params={"live_at": days(-45), "order": "newest"})
    assert (refused(wrong), wrong.json()["errors"][0]["pointer"]) == ((400, "malformed_query"), "/order")


def test_a_cursor_is_good_for_its_own_query_alone(world: World) -> None:
    for number in range(3):
        world.generate(video_id=f"video-{number}")
    given = told(world.client.get("/v1/codes", params={"limit": 1, "at_least": world.head()}), 200)["next"]

    assert world.client.get("/v1/codes", params={"cursor": given, "limit": 5}).status_code == 200
    queries: list[dict[str, str]] = [{"state": "shared"}, {"creator_id": OWN_CREATOR}]
    for query in queries:
        assert refused(world.client.get("/v1/codes", params={"cursor": given} | query)) == (400, "malformed_cursor")
    for cursor in ("", "x", given[:-1], "B" + given[1:], given + "A", "é", "A" * 500):
        assert refused(world.client.get("/v1/codes", params={"cursor": cursor})) == (400, "malformed_cursor")


def test_a_creator_lists_its_own_codes_and_a_brand_those_that_reached_it(world: World) -> None:
    own, foreign = world.generate(OWN_CREATOR), world.generate(OTHER_CREATOR)
    world.share(own, OTHER_BRAND, OTHER_ACCOUNT)
    world.share(foreign, OWN_BRAND, OWN_ACCOUNT)
    world.share(foreign, OTHER_BRAND, OTHER_ACCOUNT)

    assert listed(world, world.creator()) == [own["code_id"]]
    brand = world.brand()
    (row,) = told(brand.get("/v1/codes", params={"at_least": world.head()}), 200)["codes"]
    assert (row["code_id"], row["brand_ids"], row["advertiser_ids"]) == (foreign["code_id"], [OWN_BRAND], [OWN_ACCOUNT])


def test_a_filter_that_names_others_is_turned_away(world: World) -> None:
    creator, brand = world.creator(), world.brand()
    assert creator.get("/v1/codes", params={"creator_id": OWN_CREATOR}).status_code == 200
    assert creator.get("/v1/codes", params={"creator_id": OTHER_CREATOR}).status_code == 403
    assert brand.get("/v1/codes", params={"brand_id": OWN_BRAND, "advertiser_id": OWN_ACCOUNT}).status_code == 200
    assert brand.get("/v1/codes", params={"brand_id": OTHER_BRAND}).status_code == 403
    assert brand.get("/v1/codes", params={"advertiser_id": OTHER_ACCOUNT}).status_code == 403


def test_a_brand_reads_of_a_code_what_concerns_it_alone(world: World) -> None:
    code = world.running()
    world.share(code, OTHER_BRAND, OTHER_ACCOUNT, note="a note for the other brand")
    world.redeem(code, OTHER_ACCOUNT)
    world.launch(code, "campaign-2", OTHER_ACCOUNT)
    world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": "for ourselves"})
    brand = world.brand()

    read = told(brand.get(f"/v1/codes/{code['code_id']}"), 200)
    history = brand.get(f"/v1/codes/{code['code_id']}/history")

    assert [share["brand_id"] for share in read["shares"]] == [OWN_BRAND]
    assert [redemption["advertiser_id"] for redemption in read["redemptions"]] == [OWN_ACCOUNT]
    assert [entry["campaign_id"] for entry in read["campaigns"]] == ["campaign-1"]
    told_types = [event["type"] for event in told(history, 200)["events"]]
    assert told_types == ["CodeGenerated", "Shared", "Redeemed", "CampaignLaunched", "NoteAdded"]
    for hidden in (OTHER_BRAND, OTHER_ACCOUNT, "campaign-2", "for the other brand", "for ourselves", code["secret"]):
        assert hidden not in history.text


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


def test_a_permission_reads_as_it_is_and_as_it_was_known(world: World) -> None:
    on = world.permit()
    world.generate()
    off = world.permit(enabled=False)
    path = f"/v1/creators/{OWN_CREATOR}/permission"

    now = told(world.client.get(path, params={"at_least": off["position"]}), 200)
    then = told(world.client.get(path, params={"as_of": on["position"]}), 200)
    before = told(world.client.get(path, params={"as_of": 0}), 200)
    unknown = told(world.client.get("/v1/creators/nobody/permission"), 200)

    assert {**now, "as_of": None} == {**off, "as_of": None}
    assert then == {**on, "as_of": on["position"]}
    assert (before["enabled"], before["version"]) == (False, 0)
    assert (unknown["enabled"], unknown["version"], unknown["live_codes"], unknown["position"]) == (False, 0, 0, 0)


def test_a_permission_counts_the_codes_that_are_live_now_as_it_counts_those_that_were(world: World) -> None:
    world.generate()
    ended = world.generate(starts_at=days(-40))
    revoked = world.generate()
    told(world.client.post(f"/v1/codes/{revoked['code_id']}/revocation", json={"reason": "why"}), 200)
    lapsed = world.generate(starts_at=days(-40), days=60)
    world.generate(OTHER_CREATOR)
    world.share(lapsed)
    path, head = f"/v1/creators/{OWN_CREATOR}/permission", world.head()

    now = told(world.client.get(path, params={"at_least": head}), 200)

    assert now["live_codes"] == 2
    assert now == told(world.client.get(path, params={"as_of": head}), 200) | {"as_of": now["as_of"]}
    assert now == told(world.client.get(path, params={"at": days(0)}), 200) | {"as_of": now["as_of"]}
    assert told(world.client.get(path, params={"as_of": ended["position"]}), 200)["live_codes"] == 1


def test_a_permission_as_it_stands_is_read_without_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.generate()
    path, head = f"/v1/creators/{OWN_CREATOR}/permission", world.head()
    monkeypatch.delattr(AggregateReader, "live_codes")
    assert told(world.client.get(path, params={"at_least": head}), 200)["live_codes"] == 1


def ask(world: World, video_id: str, advertiser_id: str = OWN_ACCOUNT, **query: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"video_id": video_id, "advertiser_id": advertiser_id, "at_least": world.head()} | query
    return told(world.client.get("/v1/authorizations", params=asked), 200)


def test_the_question_is_answered_with_its_reason_and_its_proof(world: World) -> None:
    code = world.generate()
    world.share(code)
    redemption = world.redeem(code)

    answer = ask(world, code["video_id"])

    assert (answer["authorized"], answer["reason"], answer["code_id"]) == (True, "authorized", code["code_id"])
    assert (answer["permission_enabled"], answer["shared"]) == (True, True)
    assert (answer["starts_at"], answer["expires_at"]) == (code["starts_at"], code["expires_at"])
    assert answer["evidence"] == [1, 2, 3, 4]
    assert ask(world, code["video_id"], OTHER_ACCOUNT)["reason"] == "not_redeemed"
    assert ask(world, "another-video")["reason"] == "no_code"
    assert ask(world, code["video_id"], at=days(40))["reason"] == "expired"
    assert ask(world, code["video_id"], at=days(-40))["reason"] == "not_started"
    assert ask(world, code["video_id"], as_of=redemption["position"] - 1)["reason"] == "not_redeemed"
    assert ask(world, code["video_id"], as_of=0)["reason"] == "no_code"


def test_the_answer_to_a_past_question_does_not_change(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    first = ask(world, code["video_id"])
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)

    assert ask(world, code["video_id"])["reason"] == "revoked"
    then = ask(world, code["video_id"], as_of=first["as_of"], at=first["at"])
    assert then == first
    assert ask(world, code["video_id"], at=first["at"])["authorized"] is True
