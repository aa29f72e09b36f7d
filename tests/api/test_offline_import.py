"""The command that imports a sheet, and its report: the same sheet with two columns added."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from typer.testing import CliRunner

import cli
from api import offline_import
from api.import_run import Import
from api.offline import OfflineError
from api.sheet_files import SheetError
from api.spreadsheet_cells import read_csv
from domain.values import Policy
from tests.api.test_imports import HEAD, LATER, ROWS, events, secret, sheet
from tests.api.test_offline import where
from tests.api.world import TERMS, World, told


def imported(world: World, path: Path, report: Path | None = None, **given: Any) -> Import:
    asked = offline_import.import_query(**{"terms": TERMS, "permission": True} | given)
    run, _ = asyncio.run(
        offline_import.import_sheet(
            where(world.server), asked, path, report, lambda _: None, policy=Policy(), video_ids="any"
        )
    )
    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "codes.tsv"
    file.write_text(sheet(*ROWS, ["ana", "video-c", secret(3), "03/04/2026", LATER]))
    return file


REPORT = [
    [*HEAD, "import_fate", "import_explanation"],
    [*ROWS[0], "new", ""],
    [*ROWS[1], "new", ""],
    [
        *("ana", "video-c", secret(3), "03/04/2026", LATER, "unclear"),
        "Cell D4: This day can be read in two ways. State the order of day and month with `dates`: dmy or mdy.",
    ],
]


def test_a_report_is_the_same_sheet_with_what_becomes_of_each_row(world: World, path: Path, tmp_path: Path) -> None:
    table, book = tmp_path / "report.csv", tmp_path / "report.xlsx"
    for report in (table, book):
        run = imported(world, path, report)
        assert (run.all_counts()["new"], run.all_counts()["unclear"], run.started) == (2, 1, None)
    assert list(read_csv(table.read_text())) == REPORT
    rows = openpyxl.load_workbook(book).active.iter_rows(values_only=True)
    assert [["" if cell is None else cell for cell in row] for row in rows] == REPORT
    assert events(world) == []


def test_what_is_recorded_bears_a_key_that_is_revoked_afterwards(world: World, path: Path) -> None:
    run = imported(world, path, record=True, dates="dmy")
    assert run.all_counts()["new"] == 3
    key_ids = {event["actor"]["key_id"] for event in events(world)}
    keys = {key["key_id"]: key for key in told(world.client.get("/v1/keys"), 200)["keys"]}
    assert [(keys[key_id]["name"], keys[key_id]["revoked_at"] is None) for key_id in key_ids] == [
        ("command line", False)
    ]
    assert offline_import.summary(run) == ["        3  new", f"Recorded as import {run.import_id}."]
    again = imported(world, path, record=True, dates="dmy")
    assert offline_import.summary(again) == ["        3  known already", "Nothing was recorded."]


def test_a_dry_run_creates_no_key(world: World, path: Path) -> None:
    imported(world, path)
    assert [key["name"] for key in told(world.client.get("/v1/keys"), 200)["keys"]] == ["administrator"]


def test_a_report_is_not_written_over_a_file(world: World, path: Path) -> None:
    with pytest.raises(OfflineError, match="already exists"):
        imported(world, path, path, record=True)
    assert events(world) == []


def test_a_file_that_is_no_sheet_is_refused_and_leaves_no_report(world: World, tmp_path: Path) -> None:
    path = tmp_path / "codes.xlsx"
    path.write_bytes(b"PK\x03\x04rubbish")
    with pytest.raises(SheetError, match="damaged"):
        imported(world, path, tmp_path / "report.csv")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--dates=ymd", "dmy"),
        ("--days=0", "minimum is 1"),
        ("--time-zone=Mars", "IANA"),
        ("--columns=x", "field=LETTERS"),
    ],
)
def test_an_option_that_means_nothing_is_wrong_usage(path: Path, option: str, why: str) -> None:
    found = CliRunner().invoke(cli.app, ["import", str(path), option])
    assert (found.exit_code, why in found.output) == (2, True)
