"""Sheets that are imported: judged row by row, recorded whole rows at a time, and never twice."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest

from api import import_run
from api.imports import XLSX
from api.workbooks import WorkbookWriter
from tests.api.test_access_log import accesses
from tests.api.world import OWN_CREATOR, TERMS, World, days, refused, told
from tests.waiting import until

CSV = {"Content-Type": "text/csv"}
HEAD = ["Creator", "Video", "Spark Code", "Start", "End"]
LATER, SOONER = days(400)[:10], days(300)[:10]
# The first instant after a day.
LATER_END, SOONER_END = f"{days(401)[:10]}T00:00:00Z", f"{days(301)[:10]}T00:00:00Z"


def secret(number: int) -> str:
    return f"#k9/Tz+example+code+{number}=="


def sheet(*rows: list[str], head: list[str] | None = None) -> str:
    return "".join("\t".join(row) + "\n" for row in (HEAD if head is None else head, *rows))


def send(world: World, content: str | bytes, client: Any = None, **query: Any) -> httpx.Response:
    asked = {"terms": TERMS} | query
    answer: httpx.Response = (client or world.client).post("/v1/imports", content=content, headers=CSV, params=asked)
    return answer


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def fates(answer: httpx.Response) -> list[tuple[int, str, str | None]]:
    """Return of each row its number, its fate, and why."""
    return [(row["row"], row["fate"], row.get("reason")) for row in lines(answer)[1:-1]]


def events(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = told(world.client.get("/v1/events", params={"after": 0, "limit": 1000}), 200)[
        "events"
    ]
    return found


ROWS = (
    ["ana", "video-a", secret(1), "2026-01-01", LATER],
    ["@Ben", "video-b", secret(2), "2026-01-02", LATER],
)


def test_a_dry_run_says_what_would_become_of_each_row_and_records_nothing(world: World) -> None:
    rows = [
        *ROWS,
        ["ana", "video-a", secret(1), "2026-01-01", LATER],  # the first row once more
        ["ana", "video-a", secret(3), "2026-01-01", LATER],  # another code for its time
        ["ana", "video-c", secret(4), "03/04/2026", LATER],
        ["", "video-d", secret(5), "", ""],
    ]
    answer = send(world, sheet(*rows), permission="true")
    assert fates(answer) == [
        (2, "new", None),
        (3, "new", None),
        (4, "known", None),
        (5, "refused", "live_code_exists"),
        (6, "unclear", "date_order"),
        (7, "unclear", "no_end"),
    ]
    first, *found, last = lines(answer)
    assert (found[4]["field"], found[4]["column"]) == ("starts_at", "D")
    described = first["import"]
    assert (described["rows"], described["recording"], described["sheets"]) == (
        6,
        False,
        [
            {
                "sheet": 1,
                "name": "",
                "header": 1,
                "columns": {"creator_id": "A", "video_id": "B", "secret": "C", "starts_at": "D", "expires_at": "E"},
                "not_read": [],
            }
        ],
    )
    assert last["summary"] == {
        "import_id": None,
        "recorded": False,
        "rows": 6,
        "new": 2,
        "changed": 0,
        "known": 1,
        "differs": 0,
        "refused": 1,
        "unclear": 2,
    }
    assert events(world) == []


def test_what_is_recorded_says_when_it_was_true_and_from_which_row_it_is(world: World) -> None:
    answer = send(world, sheet(*ROWS), record="true", permission="true")
    assert fates(answer) == [(2, "new", None), (3, "new", None)]
    first, *found, last = lines(answer)
    import_id = last["summary"]["import_id"]
    started, *recorded, ended = sorted(events(world), key=lambda event: event["type"] == "ImportEnded")
    assert (started["type"], started["correlation_id"]) == ("ImportStarted", f"import:{import_id}")
    assert started["body"] == {
        "file_sha256": first["import"]["sha256"],
        "rows": 2,
        "columns": {"1!A": "creator_id", "1!B": "video_id", "1!C": "secret", "1!D": "starts_at", "1!E": "expires_at"},
        "options": {"permission": "true", "terms": TERMS, "time_zone": "UTC"},
    }
    told_of = {
        (e["type"], e["creator_id"], e["effective_at"], e["source"], e["correlation_id"], e["causation_id"])
        for e in recorded
    }
    cause, row = started["event_id"], f"import:{import_id}:1:"
    assert told_of == {
        ("PermissionEnabled", "ana", "2026-01-01T00:00:00Z", "operator", f"{row}2", cause),
        ("CodeGenerated", "ana", "2026-01-01T00:00:00Z", "operator", f"{row}2", cause),
        ("PermissionEnabled", "Ben", "2026-01-02T00:00:00Z", "operator", f"{row}3", cause),
        ("CodeGenerated", "Ben", "2026-01-02T00:00:00Z", "operator", f"{row}3", cause),
    }
    assert (ended["type"], ended["body"]["complete"], ended["body"]["new"]) == ("ImportEnded", True, 2)
    code = world.read(found[0])
    assert (code["video_id"], code["starts_at"], code["expires_at"], code["masked"]) == (
        "video-a",
        "2026-01-01T00:00:00Z",
        LATER_END,
        "…+1==",
    )


def test_the_same_sheet_again_records_nothing_whatever_its_order_and_form(world: World) -> None:
    told(world.client.get("/v1/stats"), 200)
    fates(send(world, sheet(*ROWS), record="true", permission="true"))
    before = world.head()
    again = send(world, sheet(*reversed(ROWS)).replace("\t", ";"), record="true", permission="true")
    assert fates(again) == [(2, "known", None), (3, "known", None)]
    assert (world.head(), lines(again)[-1]["summary"]["recorded"]) == (before, False)


def test_a_sheet_that_was_imported_in_part_is_imported_to_its_end(world: World) -> None:
    fates(send(world, sheet(ROWS[0]), record="true", permission="true"))
    answer = send(world, sheet(*ROWS), record="true", permission="true")
    assert fates(answer) == [(2, "known", None), (3, "new", None)]


def test_a_row_adds_what_is_not_recorded_of_its_code_yet(world: World) -> None:
    head = [*HEAD, "Brand", "Shared on", "Ad account", "Redeemed on"]
    row = [*ROWS[0], "acme", "2026-01-02", "adv-1", "2026-01-03"]
    fates(send(world, sheet(ROWS[0]), record="true", permission="true"))
    answer = send(world, sheet(row, head=head), record="true")
    assert fates(answer) == [(2, "changed", None)]
    assert [e["type"] for e in events(world)][-4:] == ["ImportStarted", "Shared", "Redeemed", "ImportEnded"]
    at_least = str(world.head())
    asked = {"video_id": "video-a", "advertiser_id": "adv-1", "at": "2026-01-03T00:00:00Z", "at_least": at_least}
    assert told(world.client.get("/v1/authorizations", params=asked), 200)["authorized"]


def test_a_row_that_differs_is_shown_with_both_values_and_changes_nothing(world: World) -> None:
    fates(send(world, sheet(*ROWS), record="true", permission="true"))
    before = world.head()
    other = ["ben", "video-a", secret(1), "2026-01-01", SOONER]
    (found,) = lines(send(world, sheet(other), record="true"))[1:-1]
    assert (found["fate"], found["differences"]) == (
        "differs",
        [
            {"field": "creator_id", "recorded": "ana", "sheet": "ben"},
            {"field": "expires_at", "recorded": LATER_END, "sheet": SOONER_END},
        ],
    )
    assert world.head() == before


def test_differences_are_recorded_as_notes_where_that_is_asked_for_and_once(world: World) -> None:
    fates(send(world, sheet(*ROWS), record="true", permission="true"))
    before = world.head()
    other = sheet(["ana", "video-a", secret(1), "2026-01-01", SOONER])
    for _ in range(2):
        assert fates(send(world, other, record="true", record_differences="true")) == [(2, "differs", None)]
    assert [e["type"] for e in events(world)[before:]] == ["ImportStarted", "NoteAdded", "ImportEnded"]


def test_a_row_that_is_refused_is_recorded_in_no_part(world: World) -> None:
    head = [*HEAD, "Brand", "Shared on"]
    row = ["ana", "video-a", secret(1), "2026-01-01", "2026-01-10", "acme", "2026-02-01"]
    answer = send(world, sheet(row, head=head), record="true", permission="true")
    assert (fates(answer), events(world)) == ([(2, "refused", "code_expired")], [])


def test_a_creator_of_whom_nothing_is_known_is_not_taken_for_permitted(world: World) -> None:
    assert fates(send(world, sheet(*ROWS))) == [(2, "refused", "creator_unknown"), (3, "refused", "creator_unknown")]
    head = [*HEAD, "Permission"]
    ticked, crossed = [*ROWS[0], "✓"], [*ROWS[1], "✗"]
    assert fates(send(world, sheet(ticked, crossed, head=head))) == [
        (2, "new", None),
        (3, "unclear", "permission_off"),
    ]


def test_rows_are_judged_after_those_before_them_however_many_are_judged_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [["ana", "video-a", secret(1), f"2026-0{1 + n % 2}-01", LATER] for n in range(20)]
    found = {}
    for at_once in (1, 64):
        monkeypatch.setattr(import_run, "AT_ONCE", at_once)
        found[at_once] = fates(send(world, sheet(*rows), permission="true"))
    assert found[1] == found[64]
    assert [fate for _, fate, _ in found[1]] == ["new"] + ["differs", "known"] * 9 + ["differs"]


def test_a_workbook_is_imported_sheet_by_sheet(world: World) -> None:
    file = io.BytesIO()
    with WorkbookWriter(file) as book:
        book.begin_sheet("January", HEAD)
        book.write(ROWS[0])
        book.begin_sheet("Rates", ["Name", "Rate"])
        book.write(["Ana", "100"])
        book.begin_sheet("February", HEAD)
        book.write(ROWS[1])
    answer = world.client.post(
        "/v1/imports",
        content=file.getvalue(),
        headers={"Content-Type": XLSX},
        params={"terms": TERMS, "permission": "true", "record": "true"},
    )
    first, *found, last = lines(answer)
    assert [(row["sheet"], row["row"], row["fate"]) for row in found] == [(1, 2, "new"), (3, 2, "new")]
    assert [(one["name"], one["header"]) for one in first["import"]["sheets"]] == [
        ("January", 1),
        ("Rates", None),
        ("February", 1),
    ]
    assert last["summary"]["new"] == 2


def test_columns_are_named_by_whoever_imports(world: World) -> None:
    content = f"Kode\tClip\tBis\n{secret(1)}\thttps://www.tiktok.com/@ana/video/7312345678901234567\t{LATER}\n"
    asked = {"columns": "secret=A,video_id=b,expires_at=C", "header": "1", "permission": "true"}
    assert fates(send(world, content, **asked)) == [(2, "new", None)]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"columns": "secrets=A"}, "columns"),
        ({"columns": "secret=1"}, "columns"),
        ({"columns": "secret=A,video_id=A"}, "columns"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../etc/passwd"}, "time_zone"),
        ({"days": "4000"}, "days"),
        ({"dates": "ymd"}, "dates"),
        ({"record_differences": "true"}, "record_differences"),
        ({"terms": "#k9/Tz+example+of+a+code=="}, "terms"),
        ({"dry_run": "true"}, ""),
    ],
)
def test_an_option_that_means_nothing_is_refused(world: World, query: dict[str, str], pointer: str) -> None:
    answer = send(world, sheet(*ROWS), **query)
    assert refused(answer) == (400, "malformed_query")
    assert pointer in str(answer.json()["errors"])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"1,2\n3,4\n", "No row names columns that are known"),
        (b"", "No row names columns that are known"),
        ("Gültig".encode("latin-1"), "not valid UTF-8"),
        (b"PK\x03\x04rubbish", "damaged"),
    ],
)
def test_a_file_that_is_no_sheet_is_refused_as_a_whole(world: World, content: bytes, why: str) -> None:
    answer = send(world, content)
    assert refused(answer) == (422, "malformed_body")
    assert why in answer.text


def test_a_file_of_another_kind_is_refused(world: World) -> None:
    answer = world.client.post("/v1/imports", content=b"{}", headers={"Content-Type": "application/json"})
    assert refused(answer) == (415, "unsupported_media_type")


def test_no_answer_repeats_a_code(world: World) -> None:
    answer = send(world, sheet(*ROWS, ["ana", "video-x", "short", "", LATER]), permission="true")
    assert [secret(1) in answer.text, secret(2) in answer.text, "short" in lines(answer)[3]["detail"]] == [False] * 3


def test_who_had_a_sheet_compared_with_the_ledger_is_on_record(world: World) -> None:
    answer = send(world, sheet(*ROWS))
    sha256 = lines(answer)[0]["import"]["sha256"]

    def found() -> list[tuple[Any, ...]]:
        imports = [access for access in accesses(world) if access["route"] == "POST /v1/imports"]
        return [(access["query"]["sha256"], access["rows"], access["complete"]) for access in imports]

    # How it ended is recorded after the last byte.
    until(lambda: found() == [(sha256, 2, True)])


def test_an_erased_creator_gets_no_new_codes(world: World) -> None:
    world.permit("ana", effective_at=days(-300))
    told(world.client.post("/v1/creators/ana/erasure", json={"reason": "asked for"}), 200)
    assert fates(send(world, sheet(ROWS[0]), permission="true", record="true")) == [(2, "refused", "creator_erased")]


def test_a_role_that_acts_only_for_its_subjects_cannot_import(world: World) -> None:
    world.permit(OWN_CREATOR)
    assert refused(send(world, sheet(*ROWS), client=world.creator())) == (403, "not_allowed")
