"""What people paste comes to what they meant, or is refused with a reason that says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, TERMS, World, refused, told

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


def test_a_day_of_another_form_names_the_form(world: World) -> None:
    answer = world.client.post("/v1/codes", json=generating(starts_at="03/04/2026"))
    assert "YYYY-MM-DD" in answer.json()["errors"][0]["problem"]
