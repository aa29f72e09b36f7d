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
