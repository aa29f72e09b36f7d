"""Columns by the names that people give them. The names are as seen in sheets; the rows are made up."""

from __future__ import annotations

import pytest

from api.sheet_columns import FIELDS, NAMES, Columns, column_index, column_letters, find_columns, normal_name


def found(*rows: str, header: int | None = None, **given: int | None) -> Columns | None:
    numbered = [(number, row.split("|")) for number, row in enumerate(rows, 1)]
    return find_columns(numbered, given, header)  # type: ignore[arg-type] # the names are those of fields


SHAPES = {
    "Creator|Handle|Product|Expiration Date|Permission|Status|Video": {
        "creator_id": 1,
        "expires_at": 3,
        "permission": 4,
        "video_id": 6,
        "name": 0,
    },
    "Name|Spark Code|Clean TT Handle|Confrimed Rate": {"secret": 1, "creator_id": 2, "name": 0},
    "video_id|spark_code|spark_code_expiry_date|spark_code_expired|posted_date": {
        "video_id": 0,
        "secret": 1,
        "expires_at": 2,
    },
    "作品发布链接|Spark code": {"video_id": 0, "secret": 1},
    "账号ID|视频ID|内容-广告授权码|内容-广告授权码有效期": {
        "creator_id": 0,
        "video_id": 1,
        "secret": 2,
        "expires_at": 3,
    },
    "Creator|Campaign|Sound|Status|Video URL|Spark Code|Identified Date|Notes": {
        "creator_id": 0,
        "video_id": 4,
        "secret": 5,
        "noted_at": 6,
        "note": 7,
    },
    "auth_code|influencer_name|creator_username|notes": {"secret": 0, "creator_id": 2, "note": 3, "name": 1},
    "Benutzername|Videolink|Autorisierungscode|gültig bis|Laufzeit": {
        "creator_id": 0,
        "video_id": 1,
        "secret": 2,
        "expires_at": 3,
        "days": 4,
    },
    "usuario|enlace del video|código de autorización|fecha de vencimiento": {
        "creator_id": 0,
        "video_id": 1,
        "secret": 2,
        "expires_at": 3,
    },
}


@pytest.mark.parametrize(("header", "fields"), SHAPES.items())
def test_columns_are_known_by_the_names_that_people_give_them(header: str, fields: dict[str, int]) -> None:
    columns = found(header, "a|b|c|d|e|f|g|h")
    assert columns is not None
    assert columns.fields == fields
    assert set(columns.not_read) == set(range(header.count("|") + 1)) - set(fields.values())


def test_the_names_may_be_below_a_title() -> None:
    columns = found("Spark codes, spring", "as of 1 March", "Video|Code|Ends", "1|2|3")
    assert columns is not None
    assert (columns.header, columns.fields) == (3, {"video_id": 0, "secret": 1, "expires_at": 2})


def test_a_sheet_without_names_has_no_columns() -> None:
    assert found("1|2|3", "notes|4|5", "brand|reason|6") is None


def test_whoever_imports_names_what_the_sheet_does_not() -> None:
    columns = found("Video|Kode|Notes", secret=1, note=None)
    assert columns is not None
    assert (columns.fields, columns.not_read) == ({"secret": 1, "video_id": 0}, (2,))
    bare = found("7312345678901234567|#abc", secret=1, video_id=0)
    assert bare == Columns(0, {"secret": 1, "video_id": 0}, ())


def test_the_row_with_the_names_can_be_given() -> None:
    columns = found("Video|Code", "Code|Video", header=2)
    assert columns == Columns(2, {"secret": 0, "video_id": 1}, ())


def test_no_name_means_two_fields() -> None:
    names = [(normal_name(name), field) for field, known in NAMES.items() for name in known]
    assert {name: {field for one, field in names if one == name} for name, _ in names} == {
        name: {field} for name, field in dict(reversed(names)).items()
    }
    assert NAMES.keys() == set(FIELDS)


@pytest.mark.parametrize(("index", "letters"), [(0, "A"), (25, "Z"), (26, "AA"), (51, "AZ"), (701, "ZZ"), (702, "AAA")])
def test_columns_bear_the_letters_that_spreadsheets_give_them(index: int, letters: str) -> None:
    assert (column_letters(index), column_index(letters.lower())) == (letters, index)
