"""Exports of lists: the list's own rows, in a file that a spreadsheet keeps as it is and that an import takes back."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import httpx
import openpyxl
import pytest
from typer.testing import CliRunner

import cli
from api import list_exports
from api.export_files import ExportError, verify, verify_export
from api.imports import XLSX
from api.spreadsheet_cells import read_csv
from infra.errors import Unavailable
from tests.api.test_access_log import accesses
from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, OWN_BRAND, World, refused, told
from tests.waiting import until

LISTS = ("codes", "permissions", "shares", "redemptions", "campaigns")


def export(world: World, name: str, client: httpx.Client | None = None, **query: Any) -> httpx.Response:
    asked = {"at_least": world.head()} | query
    answer = (client or world.client).get(f"/v1/exports/{name}", params=asked)
    assert answer.status_code == 200, answer.text
    return answer


def listed(world: World, name: str, client: httpx.Client | None = None, **query: Any) -> list[dict[str, Any]]:
    """Return all rows of a list, page by page."""
    rows: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    while True:
        asked = {"at_least": world.head(), "limit": 2} | query | cursor
        page = told((client or world.client).get(f"/v1/{name}", params=asked), 200)
        rows += page[name]
        if page["next"] is None:
            return rows
        cursor = {"cursor": page["next"]}


def ended(world: World, name: str) -> list[tuple[Any, ...]]:
    """Return how exports ended, which is recorded after the last byte: the rows, whether complete, and the query."""
    found = [one for one in accesses(world) if one["route"] == f"GET /v1/exports/{name}"]
    return [(one["rows"], one["complete"], one["query"]) for one in found]


def ndjson(answer: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *rows, last = [json.loads(line) for line in answer.text.splitlines()]
    return rows, last["trailer"]


@pytest.fixture
def filled(world: World) -> World:
    """A ledger with a few rows in every list."""
    for number in range(3):
        creator = f"creator-{number}"
        code = world.generate(creator, video_id=str(7312345678901234560 + number))
        world.share(code)
        world.redeem(code)
        world.launch(code, f"campaign-{number}", name="=1+1")
    return world


@pytest.mark.parametrize("name", LISTS)
def test_an_export_has_the_rows_of_its_list_in_their_order(
    filled: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_exports, "PAGE_ROWS", 2)
    rows, trailer = ndjson(export(filled, name, format="ndjson"))
    assert rows == listed(filled, name)
    assert (trailer["list"], trailer["rows"], trailer["position_first"], trailer["position_last"]) == (
        name,
        3,
        filled.head(),
        filled.head(),
    )


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("codes", {"creator_id": "creator-1"}),
        ("codes", {"state": "redeemed", "order": "ending"}),
        ("codes", {"live_at": "2099-01-01T00:00:00Z"}),
        ("shares", {"channel": "dm", "from": "2026-01-01T00:00:00Z"}),
        ("redemptions", {"refused": "false", "shared": "true"}),
        ("campaigns", {"running": "true", "order": "desc"}),
        ("permissions", {"enabled": "true"}),
    ],
)
def test_the_filters_are_those_of_the_list(filled: World, name: str, query: dict[str, Any]) -> None:
    assert ndjson(export(filled, name, format="ndjson", **query))[0] == listed(filled, name, **query)


def test_a_key_exports_what_it_sees(filled: World) -> None:
    filled.generate(OTHER_CREATOR)
    for client in (filled.brand(), filled.creator()):
        rows = ndjson(export(filled, "codes", client, format="ndjson"))[0]
        assert rows == listed(filled, "codes", client)
        assert len(rows) < 4
    assert refused(filled.brand().get("/v1/exports/codes", params={"brand_id": "another"})) == (403, "not_allowed")


def test_a_table_has_a_column_for_each_value_and_a_trailer(filled: World, tmp_path: Path) -> None:
    answer = export(filled, "campaigns")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    head, *rows, end = read_csv(answer.text)
    assert head[:8] == [
        *("campaign_id", "code_id", "creator_id", "video_id", "advertiser_id", "name", "budget_amount"),
        "budget_currency",
    ]
    expected = listed(filled, "campaigns")
    assert [row[:8] for row in rows] == [
        [
            *(one["campaign_id"], one["code_id"], one["creator_id"], one["video_id"], one["advertiser_id"]),
            *(one["name"], "500.00", "USD"),
        ]
        for one in expected
    ]
    # A spreadsheet would take one for a formula, and round the other.
    raw = list(csv.reader(io.StringIO(answer.text)))
    assert (raw[1][5], raw[1][3]) == ("'=1+1", f"'{expected[0]['video_id']}")
    assert end[0] == "end"
    path = tmp_path / "campaigns.csv"
    path.write_bytes(answer.content)
    assert str(verify_export(path)) == "3 rows of the list of campaigns"
    with pytest.raises(ExportError, match="not of events"):
        verify(path)


@pytest.mark.parametrize("format_", ["csv", "ndjson"])
def test_an_export_that_was_cut_off_or_changed_is_recognised(filled: World, tmp_path: Path, format_: str) -> None:
    content = export(filled, "shares", format=format_).content
    path = tmp_path / "shares"
    path.write_bytes(content)
    found = CliRunner().invoke(cli.app, ["export", "--verify", str(path)])
    assert (found.exit_code, "3 rows of the list of shares" in found.output) == (0, True)
    lines = content.splitlines(keepends=True)
    for broken in (
        b"".join(lines[:-1]),
        b"".join([*lines[:1], *lines[2:]]),
        content.replace(b"brand-own", b"brand-0wn"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ExportError):
            verify_export(path)


def test_a_table_begins_with_a_byte_order_mark_for_excel(filled: World, tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_bytes(export(filled, "codes", bom="true").content)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert str(verify_export(path)) == "3 rows of the list of codes"
    assert refused(filled.client.get("/v1/exports/codes", params={"bom": "true", "format": "xlsx"})) == (
        400,
        "malformed_query",
    )


def test_a_workbook_keeps_ids_as_texts_and_times_as_times(filled: World) -> None:
    answer = export(filled, "campaigns", format="xlsx")
    assert answer.headers["content-type"] == XLSX
    assert answer.headers["content-disposition"].endswith('.xlsx"')
    book = openpyxl.load_workbook(io.BytesIO(answer.content))
    assert book.sheetnames == ["campaigns", "export"]
    head, *rows = book["campaigns"].iter_rows(values_only=True)
    first, expected = dict(zip(head, rows[0], strict=True)), listed(filled, "campaigns")[0]
    assert (first["video_id"], first["name"], first["running"]) == (expected["video_id"], "=1+1", True)
    assert first["starts_at"].isoformat(timespec="seconds") == expected["starts_at"][:19]
    about = dict(book["export"].iter_rows(values_only=True, min_row=2))
    assert (about["list"], about["rows"], about["position_first"]) == ("campaigns", 3, filled.head())


@pytest.mark.parametrize("format_", ["csv", "xlsx"])
def test_an_export_of_codes_is_imported_without_a_difference(filled: World, format_: str) -> None:
    content = export(filled, "codes", format=format_).content
    media_type = {"csv": "text/csv", "xlsx": XLSX}[format_]
    before = filled.head()
    answer = filled.client.post(
        "/v1/imports", content=content, headers={"Content-Type": media_type}, params={"record": "true"}
    )
    lines = [json.loads(line) for line in answer.text.splitlines()]
    # The trailer of a table is no row of it.
    assert [row["fate"] for row in lines[1:-1]] == ["known"] * 3
    assert filled.head() == before


def test_an_export_of_shares_is_imported_into_codes_that_are_known(filled: World) -> None:
    content = export(filled, "shares", format="xlsx").content
    answer = filled.client.post("/v1/imports", content=content, headers={"Content-Type": XLSX})
    assert [json.loads(line)["fate"] for line in answer.text.splitlines()[1:-1]] == ["known"] * 3


def test_the_access_log_is_exported_like_a_list_and_says_who_exported_it(filled: World) -> None:
    told(filled.client.get("/v1/events/1"), 200)
    answer = filled.client.get(
        "/v1/exports/accesses", params={"format": "ndjson", "route": "GET /v1/events/{position}"}
    )
    rows, trailer = ndjson(answer)
    assert [row["query"] for row in rows] == [{"position": 1}]
    assert trailer["query"] == {"format": "ndjson", "route": "GET /v1/events/{position}"}
    until(lambda: ended(filled, "accesses") == [(1, True, trailer["query"])])


@pytest.mark.parametrize("format_", ["csv", "xlsx"])
def test_an_empty_list_is_a_file_too(world: World, format_: str) -> None:
    answer = world.client.get("/v1/exports/codes", params={"format": format_})
    if format_ == "csv":
        head, end = read_csv(answer.text)
        assert (head[0], end[0]) == ("code_id", "end")
    else:
        assert len(list(openpyxl.load_workbook(io.BytesIO(answer.content))["codes"].rows)) == 1


def test_a_page_of_a_list_is_no_part_of_an_export(world: World) -> None:
    for query in ({"limit": "10"}, {"cursor": "x"}):
        assert refused(world.client.get("/v1/exports/codes", params=query)) == (400, "malformed_query")


def test_an_export_ends_when_its_key_is_revoked(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_exports, "PAGE_ROWS", 1)
    checks = iter([None, Unavailable("The API key was revoked or has expired.")])

    async def refuse(_: Any) -> None:
        error = next(checks)
        if error is not None:
            raise error

    monkeypatch.setattr(list_exports, "refuse_revoked", refuse)
    with pytest.raises(httpx.RemoteProtocolError):
        export(filled, "codes", format="ndjson")
    monkeypatch.undo()
    until(lambda: [one[:2] for one in ended(filled, "codes")] == [(1, False)])


def test_who_exports_for_a_brand_finds_only_its_own_names(filled: World) -> None:
    code = filled.generate()
    filled.share(code)
    filled.share(code, "another-brand", "another-account")
    rows = ndjson(export(filled, "codes", filled.brand(), format="ndjson"))[0]
    assert {(*row["brand_ids"], *row["advertiser_ids"]) for row in rows} == {(OWN_BRAND, OWN_ACCOUNT)}
