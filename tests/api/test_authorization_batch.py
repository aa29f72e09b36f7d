"""Questions in bulk: the same answers as one by one, line by line, whatever stands in the other lines."""

from __future__ import annotations

import csv
import errno
import io
import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from api import authorization_lines
from api.http.turns import Turn
from domain.pasted import SENTENCES
from infra.eventstore.authorization_evidence import EvidenceReader
from tests.api.test_access_log import accesses
from tests.api.world import OTHER_ACCOUNT, OWN_ACCOUNT, World, days, refused, told
from tests.waiting import until

NDJSON = {"Content-Type": "application/x-ndjson"}
CSV = {"Content-Type": "text/csv"}
PATH = "/v1/authorizations/batch"


def ask(
    world: World, content: str | bytes, headers: dict[str, str], client: Any = None, **query: Any
) -> httpx.Response:
    answer: httpx.Response = (client or world.client).post(
        PATH, content=content, headers=headers, params={"at_least": world.head()} | query
    )
    return answer


def verdicts(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_each_line_is_answered_as_the_question_alone_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization_lines, "AT_ONCE", 2)
    code, other = world.generate(), world.generate()
    world.redeem(code)
    world.share(other)
    at = days(0.5)
    questions = [
        {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT},
        {"video_id": code["video_id"], "advertiser_id": OTHER_ACCOUNT, "at": at},
        {"video_id": other["video_id"], "advertiser_id": OWN_ACCOUNT, "at": at},
        {"video_id": "nobodys", "advertiser_id": OWN_ACCOUNT, "at": days(-400)},
        {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at": days(90)},
    ]
    answers = verdicts(ask(world, "\n".join(json.dumps(question) for question in questions), NDJSON))

    assert [answer.pop("line") for answer in answers] == [1, 2, 3, 4, 5]
    assert [answer["reason"] for answer in answers] == [
        "authorized",
        "not_redeemed",
        "not_redeemed",
        "no_code",
        "expired",
    ]
    for answer in answers:
        asked = {name: answer[name] for name in ("video_id", "advertiser_id", "at", "as_of")}
        assert answer == told(world.client.get("/v1/authorizations", params=asked), 200)


def test_a_code_that_begins_later_does_not_hide_that_the_one_before_it_was_revoked(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    world.generate(video_id=code["video_id"], starts_at=days(12))
    question = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT}

    (line,) = verdicts(ask(world, json.dumps(question), NDJSON))
    alone = told(world.client.get("/v1/authorizations", params=question | {"at_least": world.head()}), 200)

    assert [(found["reason"], found["code_id"]) for found in (line, alone)] == [("revoked", code["code_id"])] * 2


def test_a_table_is_answered_with_a_table(world: World) -> None:
    code = world.generate()
    world.redeem(code, "-2")
    lines = f'\ufeffadvertiser_id, video_id\r\n\'-2,{code["video_id"]}\r\n\r\n"a","{code["video_id"]}"\r\n'

    answer = ask(world, lines, CSV | {"Accept": "*/*"})

    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["line"], row["advertiser_id"], row["authorized"], row["reason"]) for row in rows] == [
        ("2", "'-2", "true", "authorized"),
        ("4", "a", "false", "not_redeemed"),
    ]
    assert rows[0]["evidence"] == "1 2 3"
    assert (rows[0]["code_id"], rows[0]["expires_at"], rows[0]["error"]) == (code["code_id"], code["expires_at"], "")


def test_the_answer_has_the_format_that_is_wanted(world: World) -> None:
    line = '{"video_id": "v", "advertiser_id": "a"}'
    table = ask(world, line, NDJSON | {"Accept": "text/csv"})
    assert [row["reason"] for row in csv.DictReader(io.StringIO(table.text))] == ["no_code"]
    lines = ask(world, "video_id,advertiser_id\nv,a\n", CSV | {"Accept": "application/x-ndjson"})
    assert verdicts(lines)[0]["reason"] == "no_code"


def test_a_line_of_a_table_is_told_whether_a_quote_or_a_cell_is_wrong(world: World) -> None:
    answers = verdicts(
        ask(world, 'video_id,advertiser_id\n"w,a\n"w"x,a\nw\n', CSV | {"Accept": "application/x-ndjson"})
    )
    quote = "A quoted value in this line is not closed, or is followed by other text."
    assert [answer["error"] for answer in answers] == [
        quote,
        quote,
        "Expected 2 values, separated by commas.",
    ]


def test_a_bad_line_is_told_so_under_its_number_and_ends_nothing(world: World) -> None:
    good = '{"video_id": "v", "advertiser_id": "a"}'
    bad = [
        "{",
        "[]",
        "1",
        '{"video_id": "v"}',
        '{"video_id": "v", "advertiser_id": "a/b"}',
        '{"video_id": "v", "advertiser_id": "a", "at": "yesterday"}',
        '{"video_id": "v", "advertiser_id": "a", "colour": "sekret"}',
        '{"video_id": "v", "advertiser_id": "a", "video_id": "w"}',
        '{"video_id": 1, "at": "sekret"}',
        good.replace("v", "v" * 3000, 1),
    ]
    content = "\n".join([good, *bad, "", good]).encode() + b"\n\xff\xfe\n" + good.encode()

    answers = verdicts(ask(world, content, NDJSON))

    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15]
    errors = [answer.get("error") for answer in answers]
    assert (errors[0], errors[11], errors[13]) == (None, None, None)
    assert errors[1:11] == [
        "Expected JSON.",
        "Expected an object with the fields video_id, advertiser_id and, optionally, at.",
        "Expected an object with the fields video_id, advertiser_id and, optionally, at.",
        "advertiser_id is required.",
        "advertiser_id: Expected an id: 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -",
        f"at: {SENTENCES['not_a_time']}",
        "Unknown field `colour`. Known fields: video_id, advertiser_id, at, video_id_exact.",
        "A field is repeated.",
        f"video_id: Expected a string; advertiser_id is required; at: {SENTENCES['not_a_time']}",
        "A line must have at most 2,048 bytes.",
    ]
    assert errors[12] == "This line is not valid UTF-8."
    assert "sekret" not in str(answers)


@pytest.mark.parametrize(
    ("lines", "headers"),
    [("{}\n" * 500, NDJSON), ("\n" * 500, NDJSON), ("video_id,advertiser_id\n" + ",\n" * 500, CSV)],
    ids=["questions without fields", "empty lines", "rows without values"],
)
def test_a_batch_without_questions_lets_others_have_their_turn_after_each_line(
    world: World, monkeypatch: pytest.MonkeyPatch, lines: str, headers: dict[str, str]
) -> None:
    turns = 0

    async def counted(_: Turn) -> None:
        nonlocal turns
        turns += 1

    monkeypatch.setattr(Turn, "give_way", counted)
    assert ask(world, lines, headers).status_code == 200
    assert turns >= 500


def test_of_a_line_with_very_many_unknown_fields_a_few_are_named(world: World) -> None:
    many = dict.fromkeys((f"field_{first}{last}" for first in "abcde" for last in "abcdefghij"), 1)
    line = {"video_id": "v", "advertiser_id": "a"} | many
    (answer,) = verdicts(ask(world, json.dumps(line), NDJSON))
    assert answer["error"].count("Unknown field `field_") == 20
    assert answer["error"].endswith("; Unknown fields that are not listed here: 30.")


def test_a_bad_line_of_a_table_is_told_so_too(world: World) -> None:
    content = 'video_id,advertiser_id,at\nv,a,\nv\n"v,a,\nv,a,x\n,a,\nv,a,2026-03-01T12:00:00Z\n'
    rows = list(csv.DictReader(io.StringIO(ask(world, content, CSV).text)))
    assert [(row["line"], row["reason"], bool(row["error"])) for row in rows] == [
        ("2", "no_code", False),
        ("3", "", True),
        ("4", "", True),
        ("5", "", True),
        ("6", "", True),
        ("7", "no_code", False),
    ]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_may_be_as_long_as_is_said_without_its_end(world: World, end: str) -> None:
    line = '{"video_id": "v", "advertiser_id": "a"}'.ljust(authorization_lines.MAX_LINE_BYTES)
    first, second = verdicts(ask(world, f"{line}{end or chr(10)}{line} {end}", NDJSON))
    assert (first["line"], first["reason"]) == (1, "no_code")
    assert second == {"line": 2, "error": "A line must have at most 2,048 bytes."}


@pytest.mark.parametrize(
    "line",
    [
        r'{"video_id": "v", "advertiser_id": "a\u002d", "at": null}',
        r'{"video_id": "v", "\u0061dvertiser_id": "a"}',
        r'{"video_id": "v", "advertiser_id": "a\"b"}',
        '{"video_id": "v", "advertiser_id": {"a": "b", "a": "c"}}',
        '{"video_id": "v", "advertiser_id": ' + '["", ' * 300 + "1" + "]" * 300 + "}",
    ],
)
def test_a_field_that_is_named_once_is_not_taken_for_two(world: World, line: str) -> None:
    (answer,) = verdicts(ask(world, line, NDJSON))
    assert answer.get("error") != "A field is repeated."


def test_a_field_that_is_named_twice_in_two_spellings_is_one(world: World) -> None:
    line = r'{"video_id": "v", "advertiser_id": "a", "\u0061dvertiser_id": "b"}'
    assert verdicts(ask(world, line, NDJSON)) == [{"line": 1, "error": "A field is repeated."}]


@pytest.mark.parametrize("lines", ["", "\n"])
def test_a_byte_order_mark_before_the_first_line_says_nothing(world: World, lines: str) -> None:
    content = "\ufeff" + lines + '{"video_id": "v", "advertiser_id": "a"}'
    assert [answer["reason"] for answer in verdicts(ask(world, content, NDJSON))] == ["no_code"]


@pytest.mark.parametrize(
    "headers",
    [
        CSV | {"Content-Encoding": "gzip"},
        CSV | {"Content-Encoding": "identity, br"},
        {"Content-Type": "text/csv; charset=utf-16"},
        {"Content-Type": 'application/x-ndjson;charset="latin1"'},
    ],
)
def test_a_batch_that_would_have_to_be_decoded_is_refused(world: World, headers: dict[str, str]) -> None:
    answer = ask(world, "video_id,advertiser_id\nv,a\n", headers)
    assert refused(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "headers", [CSV | {"Content-Encoding": "Identity"}, {"Content-Type": 'Text/CSV; header=present; charset="UTF-8"'}]
)
def test_a_batch_in_utf_8_by_another_spelling_is_fine(world: World, headers: dict[str, str]) -> None:
    told_csv = ask(world, "video_id,advertiser_id\nv,a\n", headers)
    assert [row["reason"] for row in csv.DictReader(io.StringIO(told_csv.text))] == ["no_code"]


FIRST_LINE = (
    "The first line of a CSV batch must name its columns, separated by commas: video_id, advertiser_id and, "
    "optionally, at and video_id_exact."
)
UNKNOWN = (
    "Known columns: video_id, advertiser_id, at, video_id_exact. A column of your own must have a name that begins "
    "with x_ or note. It is not read."
)
UTF_16 = "The batch is in UTF-16. Save it in UTF-8, and send it again."


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("v,a\n", FIRST_LINE),
        ("", FIRST_LINE),
        (
            "video_id;advertiser_id;at\nv;a;\n",
            f"The columns are separated by semicolons. Separate them by commas. {FIRST_LINE}",
        ),
        ('"video_id"\t"advertiser_id"\n', f"The columns are separated by tabs. Separate them by commas. {FIRST_LINE}"),
        (
            "Our ads\n\nvideo_id,advertiser_id\nv,a\n",
            "Line 3 names the columns. Remove the lines above it, so that it is the first.",
        ),
        ("\n" * 30 + "video_id,advertiser_id\n", FIRST_LINE),
        ("video_id,at\nv,\n", f"The column advertiser_id is missing. {FIRST_LINE}"),
        ("advertiser_id\na\n", f"The column video_id is missing. {FIRST_LINE}"),
        ("video_id,advertiser_id,colour\n", f"Unknown column `colour`. {UNKNOWN}"),
        ("video_id,advertiser_id,7312345678901234567\n", f"Unknown column. {UNKNOWN}"),
        ("video_id,advertiser_id,video_id\n", "The column video_id is named twice."),
        ("video_id,advertiser_id,\n", "A column has no name. Name it, or remove it."),
        ("video_id,advertiser_id\nv,a\n".encode("utf-16"), UTF_16),
        ("video_id,advertiser_id\nv,a\n".encode("utf-16-be"), UTF_16),
    ],
)
def test_what_is_wrong_with_a_whole_table_has_a_sentence_of_its_own(
    world: World, content: str | bytes, problem: str
) -> None:
    answer = ask(world, content, CSV)
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"] == [{"pointer": "", "problem": problem}]


def test_lines_in_utf_16_are_told_so_once(world: World) -> None:
    answer = ask(world, '{"video_id": "v", "advertiser_id": "a"}\n'.encode("utf-16"), NDJSON)
    assert (refused(answer), answer.json()["errors"][0]["problem"]) == ((422, "malformed_body"), UTF_16)


def test_columns_and_fields_of_ones_own_ride_along_unread(world: World) -> None:
    table = "note,video_id,x_row,advertiser_id,notes,x_row\n;=1,v,2,a,-,3\n"
    lines = '{"x_row": 2, "video_id": "v", "note": {"a": [1]}, "advertiser_id": "a"}'
    for content, headers in ((table, CSV | {"Accept": "application/x-ndjson"}), (lines, NDJSON)):
        (answer,) = verdicts(ask(world, content, headers))
        assert answer["reason"] == "no_code"
        assert not {"note", "x_row"} & answer.keys()


def test_a_note_that_is_nested_deep_ends_nothing(world: World) -> None:
    deep = '{"video_id": "v", "advertiser_id": "a", "note": ' + "[" * 990 + '""' + "]" * 990 + "}"
    first, second = verdicts(ask(world, f'{deep}\n{{"video_id": "v", "advertiser_id": "a"}}', NDJSON))
    assert first.get("error") in {None, "This line is nested too deep."}
    assert second["reason"] == "no_code"


def test_a_note_of_several_lines_is_one_cell_and_a_quote_that_is_missing_spoils_its_own_line_alone(
    world: World,
) -> None:
    table = (
        "video_id,advertiser_id,note\n"
        'v,a,"call back\nabout ""the"" video\n"\n'
        'v,b,"never closed\n'
        "v,c,\n"
        '"v\n",d,so\n'
        'v,e,"' + "long\n" * 500 + '"\n'
        'v,f,"last"\n'
    )
    answers = verdicts(ask(world, table, CSV | {"Accept": "application/x-ndjson"}))
    found = {answer["line"]: answer.get("advertiser_id", "wrong") for answer in answers}
    assert list(found.items())[:4] == [(2, "a"), (5, "wrong"), (6, "c"), (7, "wrong")]
    assert (found[8], found[9], found[max(found)]) == ("wrong", "wrong", "f")
    assert set(found.values()) == {"a", "c", "f", "wrong"}


def test_answers_can_be_asked_again_as_they_are(world: World) -> None:
    code = world.generate(video_id=VIDEO)
    world.redeem(code, "7000000000000000001")
    lines = f"video_id,advertiser_id,at\n{VIDEO},7000000000000000001,{days(1)}\n{VIDEO},-1,\nw,a/b,\n"
    first = ask(world, lines, CSV)
    again = ask(world, first.content, CSV, as_of=int(first.headers["ledger-position"]))

    read = list(csv.DictReader(io.StringIO(first.text)))
    assert (read[0]["video_id"], read[0]["advertiser_id"]) == (f"'{VIDEO}", "'7000000000000000001")
    assert [row["reason"] for row in read] == ["authorized", "not_redeemed", ""]
    assert again.text.splitlines()[:3] == first.text.splitlines()[:3]


def test_answers_in_lines_can_be_asked_again_as_they_are(world: World) -> None:
    code = world.generate(video_id=VIDEO)
    world.redeem(code, "a")
    first = ask(world, f'{{"video_id": "{VIDEO}", "advertiser_id": "a"}}\n' * 2, NDJSON)
    again = ask(world, first.content, NDJSON, as_of=int(first.headers["ledger-position"]))

    assert [answer["reason"] for answer in verdicts(first)] == ["authorized", "authorized"]
    assert again.text == first.text


def test_the_names_of_columns_are_found_in_any_case_and_with_spaces_around_them(world: World) -> None:
    table = f"Video_ID, Advertiser_Id ,AT,Note\nv,a,{days(-1)},mine\n"
    (answer,) = verdicts(ask(world, table, CSV | {"Accept": "application/x-ndjson"}))
    assert (answer["video_id"], answer["advertiser_id"], answer["reason"]) == ("v", "a", "no_code")


VIDEO = "7312345678901234567"


def test_what_is_no_video_id_is_an_error_of_its_line_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(world.server.serving.settings), "video_ids", "tiktok")
    table = (
        "video_id,advertiser_id,video_id_exact\n7.31235E+18,a,\nhttps://vm.tiktok.com/ZT8/,a,\n"
        "7312345678901230000,a,FALSE\n"
        f"7312345678901230000,a,TRUE\nhttps://www.tiktok.com/@n/video/{VIDEO},a,\n'{VIDEO},a,\nv,a,\nv,a/b,\nv,a,yes\n"
    )
    answers = verdicts(ask(world, table, CSV | {"Accept": "application/x-ndjson"}))
    assert [answer.get("error_reason", answer.get("reason")) for answer in answers] == [
        "rounded_by_spreadsheet",
        "short_link",
        "rounded_by_spreadsheet",
        "no_code",
        "no_code",
        "no_code",
        "not_a_video_id",
        "not_a_video_id",
        "not_a_video_id",
    ]
    assert [answer.get("video_id") for answer in answers[3:6]] == ["7312345678901230000", VIDEO, VIDEO]
    assert answers[0]["error"] == f"video_id: {SENTENCES['rounded_by_spreadsheet']}"
    assert answers[8]["error"].startswith("video_id_exact: Expected true or false")

    exact = '{"video_id": "7312345678901230000", "advertiser_id": "a", "video_id_exact": %s}'
    lines = verdicts(ask(world, "\n".join(exact % value for value in ("true", "false", '"true"')), NDJSON))
    assert [line.get("reason") for line in lines] == ["no_code", None, None]


def test_what_is_recorded_has_happened_also_by_a_clock_that_is_late(world: World) -> None:
    clock = world.server.serving.clock
    code = world.generate(starts_at=days(-1))
    clock.ahead -= timedelta(seconds=1)
    try:
        world.redeem(code)
        line = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT}
        (answer,) = verdicts(ask(world, json.dumps(line), NDJSON))
        alone = told(world.client.get("/v1/authorizations", params=line | {"at_least": answer["as_of"]}), 200)
    finally:
        clock.ahead += timedelta(seconds=1)
    for found in (answer, alone):
        assert (found["reason"], found["permission_enabled"], found["evidence"]) == ("authorized", True, [1, 2, 3])


def test_a_batch_is_answered_as_of_one_position(world: World) -> None:
    code = world.generate()
    redeemed = world.redeem(code)
    line = json.dumps({"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT})

    before = ask(world, line, NDJSON, as_of=redeemed["position"] - 1)
    assert (verdicts(before)[0]["reason"], before.headers["ledger-position"]) == ("not_redeemed", "2")
    now = verdicts(ask(world, f"{line}\n{line}", NDJSON))
    assert [(answer["reason"], answer["as_of"]) for answer in now] == [("authorized", 3)] * 2


def test_a_brands_key_asks_for_its_own_accounts_alone(world: World) -> None:
    lines = "\n".join(json.dumps({"video_id": "v", "advertiser_id": a}) for a in (OWN_ACCOUNT, OTHER_ACCOUNT))
    mine, others = verdicts(ask(world, lines, NDJSON, world.brand()))
    assert mine["reason"] == "no_code"
    assert others == {"line": 2, "error": "This key does not act for this advertiser account."}


@pytest.mark.parametrize("headers", [NDJSON, NDJSON | {"Accept": "text/csv"}], ids=["lines", "table"])
def test_a_batch_that_asks_for_others_is_one_refused_attempt_as_the_question_alone_is(
    world: World, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(authorization_lines, "AT_ONCE", 2)
    brand = world.brand()
    accounts = [OWN_ACCOUNT] * 3 + [OTHER_ACCOUNT] * 5
    lines = "\n".join(json.dumps({"video_id": "v", "advertiser_id": account}) for account in accounts)

    assert ask(world, lines, headers, brand).status_code == 200
    ask(world, lines.splitlines()[0], headers, brand).raise_for_status()
    refused(brand.get("/v1/authorizations", params={"video_id": "v", "advertiser_id": OTHER_ACCOUNT}))

    found = [a for a in told(world.client.get("/v1/accesses"), 200)["accesses"] if a["refused"] is not None]
    assert [(access["route"], access["refused"], access["rows"]) for access in found] == [
        ("GET /v1/authorizations", "not_allowed", 0),
        (f"POST {PATH}", "not_allowed", 0),
    ]


@pytest.mark.parametrize(
    ("content", "headers", "query", "expected"),
    [
        ("{}", {"Content-Type": "application/json"}, {}, (415, "unsupported_media_type")),
        ("{}", {}, {}, (415, "unsupported_media_type")),
        ("v,a\n", CSV, {}, (422, "malformed_body")),
        ("", CSV, {}, (422, "malformed_body")),
        ("video_id,advertiser_id,colour\n", CSV, {}, (422, "malformed_body")),
        ("video_id,video_id,advertiser_id\n", CSV, {}, (422, "malformed_body")),
        ("\n" * 100_001, NDJSON, {}, (413, "body_too_large")),
        (b"x" * (17 << 20), NDJSON, {}, (413, "body_too_large")),
        ("", NDJSON, {"as_of": days(1)}, (400, "malformed_query")),
        ("", NDJSON, {"as_of": 99}, (409, "ahead_of_ledger")),
        ("", NDJSON, {"limit": 9}, (400, "malformed_query")),
    ],
)
def test_a_batch_that_is_none_is_refused(
    world: World, content: Any, headers: dict[str, str], query: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert refused(ask(world, content, headers, **query)) == expected
    assert [access for access in accesses(world) if access["route"].endswith("batch")] == []


def test_a_batch_ends_when_its_key_is_revoked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    monkeypatch.setattr(authorization_lines, "AT_ONCE", 1)
    # Pieces larger than any buffer on the way: a client can hold them up.
    monkeypatch.setattr(authorization_lines, "verdict_content", lambda *_: {"reason": "x" * (16 << 20)})
    lines = '{"video_id": "v", "advertiser_id": "a"}\n' * 5
    with world.with_key(key["key"]).stream("POST", PATH, content=lines, headers=NDJSON) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert world.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
        with pytest.raises(httpx.TransportError):
            for _ in pieces:
                pass
    until(lambda: accesses(world)[0]["complete"] is False)
    assert accesses(world)[0]["rows"] < 5


def test_an_empty_batch_has_an_empty_answer(world: World) -> None:
    assert verdicts(ask(world, "", NDJSON)) == []
    assert verdicts(ask(world, "\n \n", NDJSON)) == []


def test_a_thousand_questions_are_a_few_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [world.generate() for _ in range(5)]
    asked: list[int] = []
    of_all = EvidenceReader.of_all

    async def counted(self: EvidenceReader, ledger_id: int, questions: Any) -> Any:
        asked.append(len(questions))
        return await of_all(self, ledger_id, questions)

    monkeypatch.setattr(EvidenceReader, "of_all", counted)
    lines = [json.dumps({"video_id": codes[n % 5]["video_id"], "advertiser_id": "a"}) for n in range(1_000)]
    assert len(verdicts(ask(world, "\n".join(lines), NDJSON))) == 1_000
    assert asked == [5] * (1_000 // authorization_lines.AT_ONCE)


@pytest.mark.parametrize(
    ("as_of", "expected"),
    [
        # Its name in the list of tests must not depend on when that is collected.
        pytest.param(days(1), (400, "malformed_query"), id="tomorrow"),
        ("99", (409, "ahead_of_ledger")),
        ("-1", (400, "malformed_query")),
        ("soon", (400, "malformed_query")),
    ],
)
def test_a_question_as_of_what_is_not_known_yet_is_refused(world: World, as_of: str, expected: tuple[int, str]) -> None:
    asked = {"video_id": "v", "advertiser_id": "a", "as_of": as_of}
    assert refused(world.client.get("/v1/authorizations", params=asked)) == expected


# -- Room


@contextmanager
def half_sent(world: World, client: httpx.Client, sent: bytes = b"{}") -> Iterator[None]:
    """A batch whose last byte does not come."""
    held = world.server.serving.places.uploads.figures().held.get(ledger_id(world), 0)
    place = urlsplit(world.server.url)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        f"Authorization: {client.headers['Authorization']}\r\nContent-Length: {len(sent) + 1}\r\n\r\n"
    )
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + sent)
        until(lambda: world.server.serving.places.uploads.figures().held.get(ledger_id(world), 0) > held)
        yield
    until(lambda: world.server.serving.places.uploads.figures().held.get(ledger_id(world), 0) == held)


def ledger_id(world: World) -> int:
    with psycopg.connect(world.server.database.dsn()) as connection:
        found = connection.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (world.server.ledger,)).fetchone()
    assert found is not None
    return int(found[0])


@pytest.mark.parametrize("share", ["of_a_key", "of_a_ledger"])
def test_a_batch_finds_its_place_before_it_is_received(
    world: World, monkeypatch: pytest.MonkeyPatch, share: str
) -> None:
    places = world.server.serving.places.uploads
    monkeypatch.setattr(places, share, 1)
    monkeypatch.setattr(places, "wait_s", 0)
    one, other = world.as_role("auditor"), world.as_role("auditor")
    allowed = other if share == "of_a_key" else world.another().client
    with half_sent(world, one):
        answer = ask(world, "", NDJSON, one if share == "of_a_key" else other)
        assert refused(answer) == (429, "too_many_requests")
        assert int(answer.headers["retry-after"]) >= 1
        assert ask(world, "", NDJSON, allowed, at_least=0).status_code == 200
    assert ask(world, "", NDJSON, one).status_code == 200


def test_what_is_kept_of_the_batches_of_a_ledger_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = world.server.serving.places.upload_bytes
    monkeypatch.setattr(kept, "of_a_ledger", 1000)
    other = world.another().client
    with half_sent(world, world.client, b" " * 600):
        answer = ask(world, " " * 600, NDJSON)
        assert refused(answer) == (429, "too_many_requests")
        assert int(answer.headers["retry-after"]) >= 1
        assert ask(world, " " * 600, NDJSON, other, at_least=0).status_code == 200
    assert kept.figures().held == {}


def test_a_full_disk_is_said_with_when_to_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, *_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "SpooledTemporaryFile", Full)
        answer = ask(world, "{}", NDJSON)
    assert refused(answer) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    places = world.server.serving.places
    assert (places.uploads.figures().held, places.upload_bytes.figures().held) == ({}, {})
