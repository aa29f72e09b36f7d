"""Sheets of one workbook that are joined by the creator's handle or name."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest

from api.imports import XLSX
from api.workbooks import WorkbookWriter
from tests.api.test_imports import LATER, events, lines, secret
from tests.api.world import TERMS, World

POSTS = ["Name", "Video", "Spark Code", "Expiration Date"]
ROSTER = ["Name", "Clean TT Handle", "Confrimed Rate", "Permission"]
Sheets = dict[str, list[list[Any]]]


def send(world: World, sheets: Sheets, **query: str) -> httpx.Response:
    file = io.BytesIO()
    with WorkbookWriter(file) as book:
        for name, (head, *rows) in sheets.items():
            book.begin_sheet(name, head)
            for row in rows:
                book.write(row)
    answer: httpx.Response = world.client.post(
        "/v1/imports", content=file.getvalue(), headers={"Content-Type": XLSX}, params={"terms": TERMS} | query
    )
    return answer


def found(world: World, sheets: Sheets, **query: str) -> list[tuple[int, int, str, str | None]]:
    rows = lines(send(world, sheets, **query))[1:-1]
    return [(row["sheet"], row["row"], row["fate"], row.get("reason")) for row in rows]


def test_a_row_takes_the_handle_and_the_permission_from_the_row_with_its_name(world: World) -> None:
    sheets: Sheets = {
        "Posts": [
            POSTS,
            ["Ana Lee", "video-a", secret(1), LATER],
            [" ana  LEE ", "video-b", secret(2), LATER],
            ["Ben", "video-c", secret(3), LATER],
        ],
        "Roster": [ROSTER, ["Ana Lee", "@ana.creates", 100, "✓"], ["Ben", "@ben.creates", 200, "✓"]],
    }
    expected = [(1, 2, "new", None), (1, 3, "new", None), (1, 4, "new", None)]
    assert found(world, sheets) == expected
    assert found(world, sheets, record="true") == expected
    creators = [event["creator_id"] for event in events(world) if event["type"] == "CodeGenerated"]
    assert sorted(creators) == ["ana.creates", "ana.creates", "ben.creates"]
    assert [fate for _, _, fate, _ in found(world, sheets, record="true")] == ["known"] * 3


def test_a_row_whose_name_several_rows_have_is_unclear_and_says_which(world: World) -> None:
    roster: list[list[Any]] = [ROSTER, ["Ana", "@ana.one", 1, "✓"], ["Ana", "@ana.two", 2, "✓"]]
    sheets: Sheets = {"Posts": [["Creator", *POSTS[1:]], ["Ana", "video-a", secret(1), LATER]], "Roster": roster}
    assert found(world, sheets) == [(1, 2, "unclear", "several_names")]
    detail = lines(send(world, sheets))[1]["detail"]
    assert detail == (
        "Several creators have this name. Add the handle. In sheet 2, several rows have this name or handle, such as 2 "
        "and 3."
    )


def test_a_row_whose_name_no_row_has_is_unclear_and_says_so(world: World) -> None:
    sheets: Sheets = {
        "Posts": [POSTS, ["Cleo", "video-a", secret(1), LATER]],
        "Roster": [ROSTER, ["Ana", "@ana.one", 1, "✓"]],
    }
    assert found(world, sheets) == [(1, 2, "unclear", "no_creator")]
    assert lines(send(world, sheets))[1]["detail"].endswith(
        "Sheet 2, which could say it, has no row with this name or handle."
    )


def test_the_code_of_a_creator_goes_to_the_only_row_of_the_creator(world: World) -> None:
    roster = ["Name", "Spark Code", "Clean TT Handle", "Confrimed Rate"]
    sheets: Sheets = {
        "Roster": [
            roster,
            ["Ana", secret(1), "@ana", 1],
            ["Ben", secret(2), "@ben", 2],
            ["Cleo", secret(3), "@cleo", 3],
        ],
        "Posts": [
            ["Handle", "Video", "Expiration Date"],
            ["ana", "video-a", LATER],
            # Which of these two is the code of Ben for?
            ["ben", "video-b", LATER],
            ["ben", "video-c", LATER],
        ],
    }
    answer = lines(send(world, sheets, permission="true"))
    rows = [(row["sheet"], row["row"], row["fate"], row.get("reason")) for row in answer[1:-1]]
    assert rows == [
        (1, 3, "unclear", "no_video"),
        (1, 4, "unclear", "no_video"),
        (2, 2, "new", None),
        (2, 3, "unclear", "whose_code"),
        (2, 4, "unclear", "whose_code"),
    ]
    assert answer[-1]["summary"]["rows"] == 5


def test_a_row_says_more_than_another_one_says_of_it(world: World) -> None:
    sheets: Sheets = {
        "Posts": [["Name", "Handle", *POSTS[1:]], ["Ana", "@ana", "video-a", secret(1), LATER]],
        "Roster": [[*ROSTER, "Expires"], ["Ana", "@somebody.else", 1, "✗", "2026-01-01"]],
    }
    # Two handles are two creators, whatever they are called.
    assert found(world, sheets, permission="true") == [(1, 2, "new", None)]


def test_what_is_unclear_of_a_joined_row_names_the_cell_it_is_from(world: World) -> None:
    sheets: Sheets = {
        "Posts": [POSTS[:3], ["Ana", "video-a", secret(1)]],
        "Roster": [["Name", "Handle", "Expiration Date"], ["Ana", "@ana", "03/04/2026"]],
    }
    row = lines(send(world, sheets, permission="true"))[1]
    assert (row["reason"], "column" in row) == ("date_order", False)
    assert row["detail"].endswith("It is from row 2 of sheet 2.")


@pytest.mark.parametrize(
    "name", ["=HYPERLINK(1)", "x" * 4_000, "\u202eana", "', '", "{}", "ana\u0000".replace("\u0000", "\u2400")]
)
def test_a_name_is_only_compared(world: World, name: str) -> None:
    sheets: Sheets = {
        "Posts": [POSTS, [name, "video-a", secret(1), LATER], [f"{name}x"[:4_000], "video-b", secret(2), LATER]],
        "Roster": [ROSTER, [name, "@ana", 1, "✓"]],
    }
    fates = found(world, sheets)
    assert fates[0] == (1, 2, "new", None)
    assert fates[1][2] == ("new" if len(name) == 4_000 else "unclear")


def test_the_same_names_of_columns_on_two_sheets_are_two_columns(world: World) -> None:
    head = ["Creator", "Video", "Video", "Spark Code", "Spark Code", "End"]
    row = ["ana", "video-a", "other", secret(1), secret(2), LATER]
    sheets: Sheets = {"One": [head, row], "Two": [head, ["ben", "video-b", "other", secret(3), secret(4), LATER]]}
    assert found(world, sheets, permission="true") == [(1, 2, "new", None), (2, 2, "new", None)]


def told_of(world: World, *types: str) -> list[tuple[str, str]]:
    """Return the events of some types, each with the video of its code."""
    found = events(world)
    videos = {event["code_id"]: event["video_id"] for event in found if event["type"] == "CodeGenerated"}
    return [(event["type"], videos[event["code_id"]]) for event in found if event["type"] in types]


OF_ANA = [["@ana", f"video-{number}", secret(number), "2026-01-01", LATER] for number in (1, 2, 3)]
DATED: list[Any] = ["Handle", "Video", "Spark Code", "Start", "Expiration Date"]


def test_a_row_about_one_code_says_nothing_of_another_code_of_its_creator(world: World) -> None:
    revocations = [
        ["Handle", "Spark Code", "Revoked on", "Reason"],
        ["@ana", secret(1), "2026-02-01", "wrong video"],
        ["@ana", secret(3), "2026-03-01", "wrong video"],
        ["@ana", secret(4), "2026-03-01", "wrong video"],
    ]
    sheets: Sheets = {"Posts": [DATED, *OF_ANA], "Revocations": revocations}
    rows = found(world, sheets, permission="true", record="true")
    assert rows == [*((1, row, "new", None) for row in (2, 3, 4)), (2, 4, "unclear", "no_video")]
    assert sorted(told_of(world, "Revoked")) == [("Revoked", "video-1"), ("Revoked", "video-3")]


def test_of_what_happened_to_one_code_nothing_is_said_of_each_of_several(world: World) -> None:
    head = ["Handle", "Ad account", "Redeemed on", "Revoked on", "Terms", "Permission"]
    row = ["@ana", "account-1", "2026-01-05", "2026-02-01", TERMS, "✓"]
    sheets: Sheets = {"Posts": [DATED, *OF_ANA], "Roster": [head, row]}
    assert [fate for _, _, fate, _ in found(world, sheets, record="true")] == ["new"] * 3
    assert told_of(world, "Redeemed", "Revoked") == []
    one: Sheets = {"Posts": [DATED, OF_ANA[0]], "Roster": [head, row]}
    assert found(world, one, record="true") == [(1, 2, "changed", None)]
    assert told_of(world, "Redeemed", "Revoked") == [("Redeemed", "video-1"), ("Revoked", "video-1")]


def test_a_code_of_a_roster_is_not_attached_to_codes_that_rows_name_by_their_ids(world: World) -> None:
    codes = [world.without_secret("ana") for _ in range(2)]
    posts = [["@ana", code["video_id"], code["code_id"]] for code in codes]
    sheets: Sheets = {
        "Posts": [["Handle", "Video", "Code ID"], *posts],
        "Codes": [["Handle", "Spark Code"], ["@ana", secret(1)]],
    }
    rows = found(world, sheets, record="true")
    assert rows == [(1, 2, "known", None), (1, 3, "known", None), (2, 2, "unclear", "no_video")]
    assert [world.read(code)["masked"] for code in codes] == [None, None]


@pytest.mark.parametrize("order", [("Posts", "Creators", "Codes"), ("Codes", "Creators", "Posts")])
def test_a_code_that_is_found_by_way_of_two_rosters_goes_to_one_row(world: World, order: tuple[str, ...]) -> None:
    posts: list[list[Any]] = [["Name", "Video", "Expiration Date"], ["Ana", "video-a", LATER]]
    sheets: Sheets = {
        "Posts": [*posts, ["Ana", "video-b", LATER]],
        "Creators": [["Name", "Handle"], ["Ana", "@ana"]],
        "Codes": [["Handle", "Spark Code"], ["@ana", secret(1)]],
    }
    rows = found(world, {name: sheets[name] for name in order}, permission="true")
    assert sorted((reason, fate) for _, _, fate, reason in rows) == [
        ("no_video", "unclear"),
        ("whose_code", "unclear"),
        ("whose_code", "unclear"),
    ]
    alone = {name: posts if name == "Posts" else sheets[name] for name in order}
    assert [fate for _, _, fate, _ in found(world, alone, permission="true")] == ["new"]


def test_what_one_roster_leaves_open_another_one_says(world: World) -> None:
    sheets: Sheets = {
        "Posts": [["Name", "Video", "Expiration Date"], ["Ana", "video-a", LATER]],
        "Payments": [["Name", "Handle", "Code", "Paid"], ["Ana", "@ana", "", 1], ["Ana", "@ana", "", 2]],
        "Roster": [["Handle", "Spark Code"], ["@ana", secret(1)]],
    }
    assert found(world, sheets, permission="true") == [(1, 2, "new", None)]


def test_two_rosters_with_two_codes_for_a_row_leave_it_unclear(world: World) -> None:
    sheets: Sheets = {
        "Posts": [["Handle", "Video", "Expiration Date"], ["@ana", "video-a", LATER]],
        "One": [["Handle", "Spark Code"], ["@ana", secret(1)]],
        "Two": [["Handle", "Spark Code"], ["@ana", secret(2)]],
    }
    assert found(world, sheets, permission="true") == [(1, 2, "unclear", "whose_code")]


def test_what_a_column_of_handles_holds_is_no_name(world: World) -> None:
    sheets: Sheets = {
        "Posts": [["Handle", *POSTS[1:]], ["ana", "video-a", secret(1), LATER]],
        "Roster": [ROSTER, ["ana", "@ana.creates", 1, "✗"]],
    }
    assert found(world, sheets, permission="true", record="true") == [(1, 2, "new", None)]
    assert {event["creator_id"] for event in events(world) if event["type"] == "CodeGenerated"} == {"ana"}


def test_a_row_with_the_id_of_its_code_needs_no_code_of_a_roster(world: World) -> None:
    code = world.without_secret("ana")
    sheets: Sheets = {
        "Posts": [["Handle", "Video", "Code ID"], ["@ana", code["video_id"], code["code_id"]]],
        "Codes": [["Handle", "Spark Code"], ["@ana", secret(1)], ["@ana", secret(2)]],
    }
    assert found(world, sheets)[0] == (1, 2, "known", None)


def test_the_answer_says_which_sheet_is_a_roster_and_how_many_of_its_rows_no_row_uses(world: World) -> None:
    sheets: Sheets = {
        "Posts": [POSTS, ["Ana", "video-a", secret(1), LATER]],
        "Roster": [ROSTER, ["Ana", "@ana", 1, "✓"], ["Ben", "@ben", 1, "✓"]],
    }
    described = lines(send(world, sheets))[0]["import"]["sheets"]
    assert [sheet.get("roster") for sheet in described] == [None, {"rows_not_used": 1}]
