"""What people paste comes to what they meant, or is refused with a reason that says what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from domain.pasted import SENTENCES
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, TERMS, World, campaign, refused, told

# As TikTok shows it.
CODE = "#+v08a+b/c=def0123456789"


def generating(**changed: Any) -> dict[str, Any]:
    return {"creator_id": OWN_CREATOR, "video_id": "video-0", "terms_version": TERMS} | changed


def reasons(content: dict[str, Any]) -> list[tuple[str, str]]:
    return [(error["pointer"], error["reason"]) for error in content["errors"]]


# Codes.

PASTES = [
    f" \n“{CODE}”\t",
    f"'{CODE}",
    f"```{CODE}```",
    f"\ufeff{CODE[:7]}\u200b{CODE[7:]}\u202c",
    f"#{CODE}",
    CODE[1:],
    "#%2Bv08a%2Bb%2Fc%3Ddef0123456789",
    "%23%2bv08a%2bb%2fc%3ddef0123456789",
]


@pytest.mark.parametrize("paste", PASTES)
def test_a_code_is_found_however_it_was_pasted(world: World, paste: str) -> None:
    code = world.generate(secret=CODE)

    found = told(world.client.post("/v1/codes/lookup", json={"secret": paste}), 200)
    redeemed = told(world.client.post("/v1/redemptions", json={"secret": paste, "advertiser_id": OWN_ACCOUNT}), 201)
    again = told(world.client.post("/v1/redemptions", json={"secret": CODE, "advertiser_id": OWN_ACCOUNT}), 200)

    assert {found["code_id"], redeemed["code_id"], again["code_id"]} == {code["code_id"]}


@pytest.mark.parametrize("paste", PASTES)
def test_a_code_is_recorded_once_however_it_was_pasted(world: World, paste: str) -> None:
    world.generate(secret=CODE)

    again = world.client.post("/v1/codes", json=generating(video_id="video-another", secret=paste))

    assert refused(again) == (409, "secret_exists")


def test_a_code_is_given_back_as_it_was_pasted_less_what_surrounds_it(world: World) -> None:
    code = world.generate(secret="\u200e “#%2Bv08a%2Bb/c=def0123456789” ")

    revealed = told(world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "Lost"}), 200)

    assert {code["secret"], revealed["secret"]} == {"#%2Bv08a%2Bb/c=def0123456789"}


@pytest.mark.parametrize("path", ["/v1/codes", "/v1/codes/lookup", "/v1/redemptions"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{CODE}, #v08b+c/d=def0123456789", "several_codes"),
        (f"the code is {CODE}", "sentence"),
        ("-", "too_short"),
        ("#", "too_short"),
        ("12", "too_short"),
        ("", "too_short"),
        ("a" * 513, "too_long"),
        ("#v08a\0b/c=def", "control_character"),
    ],
)
def test_what_is_no_code_is_refused_with_a_reason(world: World, path: str, text: str, reason: str) -> None:
    world.permit()
    asked = {
        "/v1/codes": generating(secret=text),
        "/v1/codes/lookup": {"secret": text},
        "/v1/redemptions": {"secret": text, "advertiser_id": OWN_ACCOUNT},
    }[path]

    answer = world.client.post(path, json=asked)

    assert refused(answer) == (422, "malformed_body")
    assert reasons(answer.json()) == [("/secret", reason)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://www.tiktok.com/@ana/video/7312345678901234567", "video_link"),
        ("****ab12cd34", "masked_code"),
        ("…9af1a0ab1a22", "masked_code"),
        ("code123456,", "separator"),
    ],
)
def test_what_is_certainly_no_code_is_not_recorded(world: World, text: str, reason: str) -> None:
    world.permit()
    answer = world.client.post("/v1/codes", json=generating(secret=text))
    assert refused(answer) == (422, "malformed_body")
    assert reasons(answer.json()) == [("/secret", reason)]
    assert world.client.post("/v1/codes/lookup", json={"secret": text}).status_code == 404


def test_a_paste_is_bounded_with_all_that_surrounds_it(world: World) -> None:
    answer = world.client.post("/v1/codes/lookup", json={"secret": CODE + " " * 4_096})
    assert refused(answer) == (422, "malformed_body")


@pytest.mark.parametrize("path", ["/v1/codes/lookup", "/v1/redemptions"])
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("#v08a%20b/c=def0123456789", "percent_encoded"),
        ("#v08a+b/c=d", "cut_off"),
        ("#v08a+b/c=def0123456789…", "cut_off"),
        ("#v08a+b/c=def0123456789#v08b+c/d=", "several_codes"),
        ("https://www.tiktok.com/@ana/video/7312345678901234567", "video_link"),
        ("#v08a****cdef", "masked_code"),
        ("#v08a+b/c=def0123456789", None),
    ],
)
def test_a_miss_says_what_it_looks_like(world: World, path: str, text: str, hint: str | None) -> None:
    asked = {"secret": text} | ({"advertiser_id": OWN_ACCOUNT} if path == "/v1/redemptions" else {})

    answer = world.client.post(path, json=asked)

    assert refused(answer) == (404, "code_unknown")
    assert answer.json().get("hint") == hint
    assert text not in answer.text


# Times.


def test_a_time_is_taken_in_the_form_that_tiktok_shows(world: World) -> None:
    world.permit()

    code = told(world.client.post("/v1/codes", json=generating(starts_at="2026-01-27 08:30:00")), 201)
    ended = {"expires_before": "2026-02-26 08:30:01"}

    assert code["starts_at"] == "2026-01-27T08:30:00Z"
    assert [
        one["code_id"]
        for one in told(world.client.get("/v1/codes", params={"at_least": code["position"]} | ended), 200)["codes"]
    ] == [code["code_id"]]


TIMES = [
    ("03/04/2026", "day_form"),
    ("03.04.2026 12:00", "day_form"),
    ("2026-03-04", "day_alone"),
    ("2026-03-04T12:00:00", "offset_missing"),
    ("2026-03-04T12:00:00.123456789Z", "too_precise"),
    ("yesterday", "not_a_time"),
]


@pytest.mark.parametrize(("text", "reason"), TIMES)
def test_a_time_that_may_mean_two_things_is_refused_with_a_reason(world: World, text: str, reason: str) -> None:
    body = world.client.post("/v1/codes", json=generating(starts_at=text))
    query = world.client.get("/v1/codes", params={"expires_before": text})

    assert (refused(body), reasons(body.json())) == ((422, "malformed_body"), [("/starts_at", reason)])
    assert (refused(query), reasons(query.json())) == ((400, "malformed_query"), [("/expires_before", reason)])


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("extensions", {"expires_at": "2099-01-01T00:00:00.123456789Z"}, "/expires_at"),
        ("shares", {"brand_id": "b", "channel": "dm", "effective_at": "2026-03-04"}, "/effective_at"),
        ("revocation", {"reason": "why", "effective_at": "2026-03-04T12:00:00.1234567Z"}, "/effective_at"),
        ("campaigns", {"starts_at": "2026-03-04"}, "/starts_at"),
    ],
)
def test_nine_decimals_and_bare_days_are_refused_and_not_cut_wherever_a_time_is_taken(
    world: World, path: str, body: dict[str, Any], pointer: str
) -> None:
    code = world.generate()
    asked = campaign() | body if path == "campaigns" else body

    answer = world.client.post(f"/v1/codes/{code['code_id']}/{path}", json=asked)

    assert refused(answer) == (422, "malformed_body")
    assert [pointer for pointer, _ in reasons(answer.json())] == [pointer]
    assert {reason for _, reason in reasons(answer.json())} <= {"too_precise", "day_alone"}


def test_six_decimals_are_kept(world: World) -> None:
    world.permit()
    code = told(world.client.post("/v1/codes", json=generating(starts_at="2026-11-04T12:00:00.123456Z")), 201)
    assert code["starts_at"] == "2026-11-04T12:00:00.123456Z"


@pytest.mark.parametrize("day", ["2026-03-04", "2026-03-04T12:00:00.123456789Z", "03/04/2026"])
@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/events", "from"), ("/v1/events", "to"), ("/v1/shares", "from"), ("/v1/campaigns", "stops_before")],
)
def test_a_range_of_a_list_takes_times_alone(world: World, path: str, name: str, day: str) -> None:
    answer = world.client.get(path, params={name: day})
    assert refused(answer) == (400, "malformed_query")
    assert [pointer for pointer, _ in reasons(answer.json())] == [f"/{name}"]


def test_a_query_of_the_trail_takes_a_day_from_its_start_to_its_end(world: World) -> None:
    world.permit(effective_at="2026-03-04T00:00:00Z")
    world.permit(enabled=False, effective_at="2026-03-04T23:59:59.999999Z")
    world.permit(effective_at="2026-03-05T00:00:00Z")

    found = world.client.get("/v1/events", params={"q": "effective:2026-03-04", "at_least": 3})

    assert [event["position"] for event in told(found, 200)["events"]] == [1, 2]


def test_a_day_of_another_form_names_the_form(world: World) -> None:
    answer = world.client.post("/v1/codes", json=generating(starts_at="03/04/2026"))
    assert "YYYY-MM-DD" in answer.json()["errors"][0]["problem"]


# Videos.

VIDEO = "7312345678901234567"
ROUNDED = "7312345678901230000"
LINKS = [
    f"https://www.tiktok.com/@name/video/{VIDEO}?_r=1",
    f"https://www.tiktok.com/@name/photo/{VIDEO}",
    f"m.tiktok.com/v/{VIDEO}.html",
    f" '{VIDEO}",
]
UNUSABLE = [
    ("https://vm.tiktok.com/ZT8WXquk6/", "short_link"),
    ("https://www.tiktok.com/t/ZT8WXquk6/", "short_link"),
    ("https://example.com/@name/video/7312345678901234567", "other_link"),
    ("t", "not_a_video_id"),
    ("123", "not_a_video_id"),
    ("@x", "not_a_video_id"),
    ("ZT8WXquk6", "not_a_video_id"),
    ("7.31235E+18", "rounded_by_spreadsheet"),
    (ROUNDED, "rounded_by_spreadsheet"),
]


@pytest.fixture
def tiktok(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world that takes TikTok's video ids alone, as servers do unless they are set otherwise."""
    monkeypatch.setitem(vars(world.server.serving.settings), "video_ids", "tiktok")
    return world


@pytest.mark.parametrize("paste", LINKS)
def test_a_link_is_reduced_to_the_video_that_it_leads_to(tiktok: World, paste: str) -> None:
    code = tiktok.generate(video_id=paste)

    listed = tiktok.client.get("/v1/codes", params={"video_id": paste, "at_least": code["position"]})
    asked = tiktok.client.get(
        "/v1/authorizations", params={"video_id": paste, "advertiser_id": "a", "at_least": code["position"]}
    )

    assert code["video_id"] == VIDEO
    assert [one["code_id"] for one in told(listed, 200)["codes"]] == [code["code_id"]]
    assert (told(asked, 200)["video_id"], asked.json()["reason"]) == (VIDEO, "not_redeemed")


@pytest.mark.parametrize(("text", "reason"), UNUSABLE)
def test_what_is_no_video_id_is_refused_with_a_reason(tiktok: World, text: str, reason: str) -> None:
    tiktok.permit()

    body = tiktok.client.post("/v1/codes", json=generating(video_id=text))
    queries = [
        tiktok.client.get(path, params={"video_id": text} | more)
        for path, more in (
            ("/v1/codes", {}),
            ("/v1/shares", {}),
            ("/v1/events", {}),
            ("/v1/authorizations", {"advertiser_id": "a"}),
        )
    ]

    assert (refused(body), reasons(body.json())) == ((422, "video_id_unusable"), [("/video_id", reason)])
    for query in queries:
        assert (refused(query), reasons(query.json())) == ((400, "video_id_unusable"), [("/video_id", reason)])


@pytest.mark.parametrize("paste", LINKS)
def test_a_query_of_the_trail_finds_a_video_by_its_link(tiktok: World, paste: str) -> None:
    code = tiktok.generate(video_id=VIDEO)

    found = tiktok.client.get("/v1/events", params={"q": f'video:"{paste}"', "at_least": code["position"]})

    assert [event["type"] for event in told(found, 200)["events"]] == ["CodeGenerated"]


@pytest.mark.parametrize(("text", "reason"), UNUSABLE)
@pytest.mark.parametrize("path", ["/v1/events", "/v1/exports/events", "/v1/events/stream"])
def test_a_query_of_the_trail_for_what_is_no_video_is_refused_where_it_stands(
    tiktok: World, path: str, text: str, reason: str
) -> None:
    answer = tiktok.client.get(path, params={"q": f'type:Shared video:{VIDEO},"{text}"'})

    assert refused(answer) == (400, "video_id_unusable")
    assert answer.json()["errors"] == [
        {"pointer": "/q", "problem": SENTENCES[reason], "reason": reason, "offset": 38}  # type: ignore[index]
    ]
    assert text not in answer.text or text in {"t", "123"}


def test_a_query_of_the_trail_takes_ids_that_are_recorded_or_said_to_be_exact(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [world.generate(video_id=video_id) for video_id in ("opaque-1", "opaque-2")]
    told(world.client.get("/v1/codes", params={"at_least": codes[1]["position"]}), 200)
    monkeypatch.setitem(vars(world.server.serving.settings), "video_ids", "tiktok")

    def found(q: str, **more: str) -> Any:
        return world.client.get("/v1/events", params={"q": q, "at_least": codes[1]["position"]} | more)

    both = told(found("video:opaque-1,opaque-2"), 200)["events"]
    assert [event["code_id"] for event in both] == [code["code_id"] for code in codes]
    assert refused(found("video:opaque-1,opaque-3")) == (400, "video_id_unusable")
    assert refused(found(f"video:{ROUNDED}")) == (400, "video_id_unusable")
    assert told(found(f"video:{ROUNDED}", video_id_exact="true"), 200)["events"] == []


def test_an_expected_video_is_read_as_any_other(tiktok: World) -> None:
    code = tiktok.generate(video_id=VIDEO)
    for text, reason in UNUSABLE:
        for path, body in (
            ("/v1/codes/lookup", {"secret": code["secret"]}),
            ("/v1/redemptions", {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT}),
        ):
            answer = tiktok.client.post(path, json=body | {"expected_video_id": text})
            assert refused(answer) == (422, "video_id_unusable"), text
            assert reasons(answer.json()) == [("/expected_video_id", reason)]
    exact = {"secret": code["secret"], "expected_video_id": ROUNDED, "video_id_exact": True}
    assert refused(tiktok.client.post("/v1/codes/lookup", json=exact)) == (409, "other_video")


def test_zeros_at_the_end_of_a_video_id_can_be_said_to_be_genuine(tiktok: World) -> None:
    tiktok.permit()
    asked = {"video_id": "7312345678901240000", "advertiser_id": "a", "video_id_exact": "true"}

    code = tiktok.generate(video_id=ROUNDED, video_id_exact=True)
    linked = tiktok.generate(video_id="https://www.tiktok.com/@name/video/7312345678901250000")
    unknown = told(tiktok.client.get("/v1/authorizations", params=asked), 200)

    assert (code["video_id"], linked["video_id"]) == (ROUNDED, "7312345678901250000")
    assert unknown["reason"] == "no_code"


def test_a_video_id_that_is_recorded_is_taken_whatever_it_looks_like(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = world.generate(video_id="opaque-1")
    told(world.client.get("/v1/codes", params={"at_least": code["position"]}), 200)
    monkeypatch.setitem(vars(world.server.serving.settings), "video_ids", "tiktok")

    asked = {"video_id": "opaque-1", "advertiser_id": "a"}
    lines = "video_id,advertiser_id\nopaque-1,a\nopaque-2,a\n"
    headers = {"Content-Type": "text/csv", "Accept": "application/x-ndjson"}

    expected = {"secret": code["secret"], "expected_video_id": "opaque-1"}
    assert told(world.client.post("/v1/codes/lookup", json=expected), 200)["code_id"] == code["code_id"]
    assert told(world.client.get("/v1/authorizations", params=asked), 200)["reason"] == "not_redeemed"
    assert refused(world.client.post("/v1/codes", json=generating(video_id="opaque-1"))) == (409, "live_code_exists")
    answers = world.client.post("/v1/authorizations/batch", content=lines, headers=headers).text.splitlines()
    assert [json.loads(line).get("reason") for line in answers] == ["not_redeemed", None]
    assert json.loads(answers[1])["error"] == f"video_id: {SENTENCES['not_a_video_id']}"


def test_ids_of_other_platforms_are_taken_where_the_setting_allows_them(world: World) -> None:
    assert world.generate(video_id="ZT8WXquk6")["video_id"] == "ZT8WXquk6"
    assert world.generate(video_id=LINKS[0])["video_id"] == VIDEO
