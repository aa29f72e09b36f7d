"""What a bundle claims beside its events: other spellings, words and files prove nothing to the verifier."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from infra.proof import verify
from tests import given
from tests.given import ADVERTISER, CODE, VIDEO, Story
from tests.infra.proof.bundles import Log, bad, showing, stating
from tests.infra.proof.test_verify import Bundle, answered, creator_stream, two_codes

NO_CODE = {
    "authorized": False,
    "reason": "no_code",
    "code_id": None,
    "starts_at": None,
    "expires_at": None,
    "permission_enabled": False,
    "shared": False,
}


@pytest.fixture(scope="module")
def story() -> Story:
    return two_codes()


@pytest.fixture(scope="module")
def log(story: Story) -> Log:
    return Log.of(story)


def stated(bundle: Bundle) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bundle["data/answer.json"])
    return content


def about(bundle: Bundle, answer: dict[str, Any], **changed: Any) -> Bundle:
    return stating(bundle, about=stated(bundle)["about"] | changed, answer=stated(bundle)["answer"] | answer)


def test_an_id_that_only_looks_like_one_with_codes_proves_no_absence(log: Log, story: Story, tmp_path: Path) -> None:
    bundle = answered(log, story, "nobody")
    for video in (
        f"{VIDEO}\u200b",
        f"{VIDEO} ",
        VIDEO.replace("i", "\u0456"),
        [VIDEO],
        7,
        None,
        f"{VIDEO}\nok  signed",
    ):
        expected = ["about: video_id is not spelled as a ledger spells it"]
        assert bad(log.verdicts(tmp_path, about(bundle, NO_CODE, video_id=video))) == expected
        assert bad(log.verdicts(tmp_path, stating(bundle, about={"kind": "video", "video_id": video}))) == expected
    for account in (f"{ADVERTISER}\u200b", [ADVERTISER], 7):
        [verdict] = bad(log.verdicts(tmp_path, about(bundle, {}, advertiser_id=account)))
        assert verdict == "about: advertiser_id is not spelled as a ledger spells it"
    for positions in ({"first": 1.5, "last": 2}, {"first": True, "last": 2}, {"first": 1, "last": "2"}):
        [verdict] = bad(log.verdicts(tmp_path, stating(bundle, about={"kind": "range", **positions})))
        assert verdict == "about: the positions are not numbers"


def test_what_is_stated_has_one_reading(log: Log, story: Story, tmp_path: Path) -> None:
    bundle = answered(log, story, "nobody")
    text = bundle["data/answer.json"].decode()
    twice = text.replace('"authorized": false', '"authorized": true,\n    "authorized": false')
    assert twice != text
    spelled = json.dumps(json.loads(text), indent=2)
    for other in (twice.encode(), spelled.encode(), text.replace("false", " false").encode()):
        [verdict] = bad(log.verdicts(tmp_path, {**bundle, "data/answer.json": other}))
        assert (
            verdict == "about: answer.json is not in the one spelling of bundles, so others could read something else"
        )
    for encoding in ("utf-16", "utf-8-sig"):
        assert not log.verdicts(tmp_path, {**bundle, "data/answer.json": text.encode(encoding)}).good


def test_an_answer_is_about_what_was_asked_and_of_the_checkpoint(log: Log, story: Story, tmp_path: Path) -> None:
    for account in (ADVERTISER, "nobody"):
        bundle = answered(log, story, account)
        right = {"video_id": VIDEO, "advertiser_id": account, "as_of": len(log.rows), "creator_id": given.CREATOR}
        assert log.verdicts(tmp_path, about(bundle, right)).good
        for name, value in right.items():
            [verdict] = bad(log.verdicts(tmp_path, about(bundle, {**right, name: "other"})))
            assert verdict == f"answer: {name} is {value}, and the bundle states another"
        for name, other in (("origin", "other.example/log/main/1"), ("size", 8), ("root", "AAAA")):
            lie = stating(bundle, log=stated(bundle)["log"] | {name: other})
            [verdict] = bad(log.verdicts(tmp_path, lie))
            assert verdict == "about: answer.json names another state of the log than the checkpoint"


def test_a_permission_that_is_stated_rests_on_all_of_its_events(log: Log, story: Story, tmp_path: Path) -> None:
    def unowned(events: list[dict[str, Any]]) -> None:
        for event in events:
            del event["creator_stream"]

    def veiled(events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["type"].startswith("Permission"):
                event.pop("body", None)

    for account in (ADVERTISER, "nobody"):
        bundle = answered(log, story, account)
        off = {"permission_enabled": False}
        assert bad(log.verdicts(tmp_path, about(showing(bundle, unowned), off))) == [
            "incomplete: the creator's permission: whose code it is, is not shown"
        ]
        assert bad(log.verdicts(tmp_path, about(showing(bundle, veiled), off))) == [
            "incomplete: the creator's permission: what event 1 says is not shown"
        ]
        left_out = showing(bundle, lambda events: events.pop(0))
        assert "incomplete: the creator's permission: the event at position 1 is not shown" in bad(
            log.verdicts(tmp_path, about(left_out, off))
        )
        not_stated = log.verdicts(tmp_path, about(showing(bundle, unowned), {"permission_enabled": None}))
        assert not_stated.good
        assert ("--", "permission: not shown; the answer does not rest on it") in not_stated.lines


def test_a_part_of_an_event_that_nobody_signed_is_refused(log: Log, story: Story, tmp_path: Path) -> None:
    def annotated(events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["sealed"] is not None:
                event["sealed"]["note"] = "The creator agreed."

    [verdict] = bad(log.verdicts(tmp_path, showing(answered(log, story), annotated)))
    assert verdict.startswith("tampered: first at the line after event ")


def test_an_erasure_explains_nothing_that_was_sealed_after_it(tmp_path: Path) -> None:
    story = given.erased()
    log = Log.of(story)
    creator = creator_stream(story)
    topic = {"kind": "creator", "creator_id": given.CREATOR, "creator_stream": str(creator)}
    [erasure] = [row for row in log.rows if row.event.type == "CreatorErased"]
    sealed = next(row for row in reversed(log.rows) if row.event.sealed is not None)
    # A server that goes on to seal for an erased creator.
    again = sealed.event._replace(
        position=len(log.rows) + 1, version=log.rows[-1].event.version + 1, recorded_at=log.rows[-1].event.recorded_at
    )
    again = again._replace(version=1 + max(r.event.version for r in log.rows if r.event.stream_id == again.stream_id))
    log.rows.append(sealed._replace(event=again))
    bundle = log.bundle(log.plan(topic, [CODE, creator]))

    def blame(events: list[dict[str, Any]]) -> None:
        events[-1]["erased_by"] = erasure.event.position

    [verdict] = bad(log.verdicts(tmp_path, showing(bundle, blame)))
    assert verdict == f"missing: the sealed part of event {again.position}; no erasure of its creator is shown"


def test_an_old_state_says_that_it_does_not_have_what_came_later(log: Log, story: Story, tmp_path: Path) -> None:
    later = about(answered(log, story), {}, at=(story.clock() + timedelta(days=3)).isoformat())
    report = log.verdicts(tmp_path, later)
    assert report.good
    since = "age: what was recorded since this state of the log, such as a revocation, is not here; see --max-age"
    assert ("--", since) in report.lines


def test_what_is_withheld_is_counted_whatever_the_bundle_is_about(log: Log, story: Story, tmp_path: Path) -> None:
    creator = creator_stream(story)
    of_creator = {"kind": "creator", "creator_id": given.CREATOR, "creator_stream": str(creator)}
    for plan in (
        log.plan({"kind": "ledger"}),
        log.plan({"kind": "code", "code_id": str(CODE)}, [CODE]),
        log.plan(of_creator, [CODE, creator]),
    ):
        bundle = showing(log.bundle(plan), lambda events: events[-1].pop("body"))
        report = log.verdicts(tmp_path, bundle)
        assert report.good, str(report)
        assert [text[:15] for _, text in report.lines if text.startswith("withheld")] == ["withheld: what "]


def test_a_report_that_nobody_signed_is_said_to_be_anybodys(log: Log, story: Story, tmp_path: Path) -> None:
    lie = {**answered(log, story), "data/REPORT.html": b"<h1>NOT AUTHORIZED</h1>"}
    report = log.verdicts(tmp_path, lie, keys=verify.vkeys(log.signer.verifier_keys))
    assert report.good
    assert any("REPORT.html and the words of answer.json may be anybody's" in text for _, text in report.lines)


@pytest.mark.parametrize(
    "name", ["data/../data/events.ndjson", "data/./x", "data//x", "/x", "data/x.", "data\\x", "data/x:y", "data/DIR/"]
)
def test_a_file_that_is_unpacked_to_another_place_is_refused(log: Log, story: Story, tmp_path: Path, name: str) -> None:
    path = log.written(tmp_path, answered(log, story))
    with ZipFile(path, "a") as file:
        file.writestr(f"bundle/{name}", b"")
    report = verify.verify(path, keys=log.keys)
    assert bad(report) == ["a file of the ZIP file has a name that no file of a bundle has"]


def test_two_files_whose_names_differ_in_their_case_are_one(log: Log, story: Story, tmp_path: Path) -> None:
    path = log.written(tmp_path, answered(log, story))
    with ZipFile(path, "a") as file:
        file.writestr("bundle/data/EVENTS.ndjson", b"")
    assert bad(verify.verify(path, keys=log.keys)) == ["a file is in the bundle twice"]


def test_a_row_of_the_table_has_the_cells_of_its_event(log: Log, story: Story, tmp_path: Path) -> None:
    bundle = answered(log, story)
    table = bundle["data/events.csv"].replace(b"CodeGenerated,1,", b"CodeGenerated\x001,", 1)
    assert table != bundle["data/events.csv"]
    assert bad(log.verdicts(tmp_path, {**bundle, "data/events.csv": table})) == [
        "events: events.csv does not say what events.ndjson says"
    ]


def test_a_window_that_nobody_stated_begins_with_the_first_use_that_is_on_record_whoever_made_it() -> None:
    def event(position: int, type_: str, day: int, body: dict[str, Any] | None) -> dict[str, Any]:
        made = {"position": position, "stream_id": str(CODE), "version": position, "type": type_, "video_id": VIDEO}
        shown = {} if body is None else {"body": json.dumps(body)}
        return made | shown | {"effective_at": f"2026-03-{day:02}T00:00:00.000000Z"}

    window = {"starts_at": "2026-03-09T00:00:00Z", "expires_at": "2026-04-01T00:00:00Z", "start_stated": False}
    events = [
        event(1, "CodeGenerated", 9, window),
        event(2, "Redeemed", 5, None),  # by another account, so that its brand does not see by which
        event(3, "Redeemed", 10, {"advertiser_id": ADVERTISER}),
    ]
    found = verify.answer_from(events, VIDEO, ADVERTISER, verify.moment("2026-03-12T00:00:00Z"))
    assert (found["reason"], found["starts_at"]) == ("authorized", verify.moment("2026-03-05T00:00:00Z"))
