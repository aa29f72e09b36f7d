"""The single-file verifier: what is whole holds, and every lie of a server that signs what it likes is found."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from api.evidence_bundle import Plan, by_position, everything
from api.evidence_lines import Level, event_fields, ndjson_lines
from domain.log_entry import hashed
from domain.merkle import leaf_hash, root_of
from domain.values import Sealed
from infra.proof import verify
from infra.proof.bundle_check import check_bundle, domain_answer
from infra.proof.checkpoints import Checkpoint, MalformedCheckpoint
from infra.proof.event_check import Doubtful
from infra.proof.evidence_log import EvidenceRow
from tests import given
from tests.domain.test_late_paperwork import in_time, late
from tests.given import ADVERTISER, CODE, VIDEO, Story
from tests.infra.proof.bundles import AT, LOG_ID, Log, bad, ends_at_once, showing, shown, spread, stating
from tests.late_paperwork import ADVERTISERS, DAY, START, VIDEOS, happenings

VECTORS = Path(__file__).parent / "ed25519_vectors.txt"
Bundle = dict[str, bytes]


def two_codes() -> Story:
    """Tell of a code on which a campaign runs, and of a second one of another creator and video."""
    story = given.running()
    story.when(given.permission(creator_id="other"))
    story.when(given.generate(UUID(int=99), creator_id="other", video_id="video-2", secret=Sealed("#another-code")))
    return story


@pytest.fixture(scope="module")
def story() -> Story:
    return two_codes()


@pytest.fixture(scope="module")
def log(story: Story) -> Log:
    return Log.of(story)


def of_code(log: Log) -> Bundle:
    return log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE]))


def creator_stream(story: Story) -> UUID:
    return story.stream()[0].creator_stream


def answered(log: Log, story: Story, account: str = ADVERTISER, video: str = VIDEO) -> Bundle:
    """Return the bundle about the question as of now."""
    at = story.clock()
    lines = shown(log.bundle(log.plan({"kind": "ledger"})))
    stated = domain_answer(lines, video, account, at)
    codes = {UUID(line["stream_id"]) for line in lines if line["video_id"] == video}
    creators = {UUID(line["creator_stream"]) for line in lines if UUID(line["stream_id"]) in codes}
    return log.bundle(log.answer(stated, at, video, account, [*codes, *creators]))


# -- Ed25519


def test_ed25519_is_as_strict_as_rfc_8032() -> None:
    lines = [line for line in VECTORS.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 66
    for line in lines:
        _, key, signature, flags, message = line.split(" ", 4)
        # The RFC refuses other encodings of points, and with its equation what is left over of low order.
        refused = {"non_canonical_A", "non_canonical_R", "low_order_residue"} & set(flags.split(","))
        assert verify.ed25519_verifies(bytes.fromhex(key), message.encode(), bytes.fromhex(signature)) is not bool(
            refused
        )


def test_ed25519_agrees_with_a_library_and_refuses_every_other_spelling() -> None:
    random = Random(1)
    for _ in range(20):
        key = Ed25519PrivateKey.generate()
        public, message = key.public_key().public_bytes_raw(), random.randbytes(random.randrange(200))
        signature = key.sign(message)
        assert verify.ed25519_verifies(public, message, signature)
        # The same number modulo the order, which is refused.
        s = int.from_bytes(signature[32:], "little") + verify.ORDER
        assert not verify.ed25519_verifies(public, message, signature[:32] + s.to_bytes(32, "little"))
        flipped = bytearray(signature)
        flipped[random.randrange(64)] ^= 1 << random.randrange(8)
        assert not verify.ed25519_verifies(public, message, bytes(flipped))
        assert not verify.ed25519_verifies(public, message + b"x", signature)
    assert not verify.ed25519_verifies(public, message, signature[:63])
    assert not verify.ed25519_verifies(public[:31], message, signature)


# -- What is whole


def test_every_kind_of_bundle_holds(log: Log, story: Story, tmp_path: Path) -> None:
    creator = creator_stream(story)
    size = len(log.rows)
    codes = {row.event.stream_id for row in log.rows if row.event.creator_stream == creator}
    bundles = {
        "code": of_code(log),
        "creator": log.bundle(
            log.plan(
                {"kind": "creator", "creator_id": given.CREATOR, "creator_stream": str(creator)}, [*codes, creator]
            )
        ),
        "range": log.bundle(Plan({"kind": "range", "first": 2, "last": 4}, range(2, 5), (2, 4), everything, "auditor")),
        "ledger": log.bundle(log.plan({"kind": "ledger"})),
        "yes": answered(log, story),
        "no": answered(log, story, "nobody"),
        "absence": answered(log, story, video="video-3"),
    }
    assert size > 5
    for name, bundle in bundles.items():
        report = log.verdicts(tmp_path, bundle)
        assert report.good, f"{name}:\n{report}"
        assert any(text.startswith("complete") for mark, text in report.lines if mark == "ok")


def test_a_time_is_complete_with_its_neighbours(log: Log, tmp_path: Path) -> None:
    times = [row.event.recorded_at for row in log.rows]
    # All at the moment at which the third was recorded.
    since, until = times[2], times[2] + timedelta(microseconds=1)
    own = [position for position, at in enumerate(times, 1) if since <= at < until]
    first, last = own[0], own[-1]
    about = {"kind": "range", "first": first, "last": last, "from": since.isoformat(), "until": until.isoformat()}
    run = (max(first - 1, 1), min(last + 1, len(times)))
    plan = Plan(about, range(run[0], run[1] + 1), run, by_position(dict.fromkeys(own, Level.ALL)), "auditor")
    assert log.verdicts(tmp_path, log.bundle(plan)).good
    # Without them, or with another time, it is not.
    narrow = replace(plan, wanted=range(first, last + 1), run=(first, last))
    if run != (first, last):
        assert not log.verdicts(tmp_path, log.bundle(narrow)).good
    wrong = {**about, "until": (until + 365 * DAY).isoformat(), "from": (since - 365 * DAY).isoformat()}
    if len(own) < len(times):
        assert not log.verdicts(tmp_path, log.bundle(replace(plan, about=wrong))).good


def test_the_same_plan_gives_the_same_bytes(log: Log) -> None:
    plan = log.plan({"kind": "ledger"})
    made = log.bundle(plan)
    # The signature of ML-DSA-44 differs each time, so what is compared was signed once.
    signed = log.signed()
    log_once = replace_signed(log, signed)
    assert log_once.zipped(plan) == log_once.zipped(plan)
    assert made.keys() >= {"data/REPORT.html", "data/verify.py", "bag.note", "manifest-sha256.txt"}


def replace_signed(log: Log, signed: Any) -> Log:
    class Once(Log):
        def signed(self, _: int | None = None) -> Any:
            return signed

    return Once(log.rows, log.signer, log.bag_signer)


def test_an_unpacked_bundle_holds_as_well(log: Log, tmp_path: Path) -> None:
    for name, content in log.bundle(log.plan({"kind": "ledger"})).items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert verify.verify(tmp_path / "bundle", keys=log.keys).good
    (tmp_path / "bundle/data/note.txt").write_text("one more")
    assert bad(verify.verify(tmp_path / "bundle", keys=log.keys)) == ["files: data/note.txt is in no manifest"]


# -- Lies


def dropped(position: int) -> Callable[[list[dict[str, Any]]], object]:
    return lambda events: events.__setitem__(slice(None), [e for e in events if e["position"] != position])


def last_of_code(log: Log) -> int:
    return max(row.event.position for row in log.rows if row.event.stream_id == CODE)


def test_an_event_that_is_left_out_is_named(log: Log, story: Story, tmp_path: Path) -> None:
    for position in (shown(of_code(log))[1]["position"], last_of_code(log)):
        [verdict] = bad(log.verdicts(tmp_path, showing(of_code(log), dropped(position))))
        assert verdict == f"incomplete: code {CODE}: the event at position {position} is not shown"
    ledger = log.bundle(log.plan({"kind": "ledger"}))
    for position in (1, 3, len(log.rows)):
        [verdict] = bad(log.verdicts(tmp_path, showing(ledger, dropped(position))))
        assert verdict == f"incomplete: the ledger: the event at position {position} is not shown"
    creator = creator_stream(story)
    about = {"kind": "creator", "creator_id": given.CREATOR, "creator_stream": str(creator)}
    [verdict] = bad(log.verdicts(tmp_path, showing(log.bundle(log.plan(about, [CODE, creator])), dropped(1))))
    assert verdict == f"incomplete: creator {given.CREATOR}: the event at position 1 is not shown"


def test_an_entry_that_is_left_out_or_changed_does_not_lead_to_the_root(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    entries = bundle["data/proof/entries.bin"]
    for changed in (
        entries[:-65],
        entries[65:],
        entries + entries[:65],
        bytes([entries[0], entries[1] ^ 1]) + entries[2:],
    ):
        assert len(bad(log.verdicts(tmp_path, {**bundle, "data/proof/entries.bin": changed}))) == 1
    for cut in (b"", entries[:-1]):
        [verdict] = bad(log.verdicts(tmp_path, {**bundle, "data/proof/entries.bin": cut}))
        assert verdict == "entries: the file is empty or was cut off"
    other = b"\2" + entries[1:]
    [verdict] = bad(log.verdicts(tmp_path, {**bundle, "data/proof/entries.bin": other}))
    assert verdict == "entries: the format of an entry is not known here"


def test_an_envelope_that_is_left_out_of_a_no_is_named(log: Log, story: Story, tmp_path: Path) -> None:
    bundle = answered(log, story, "nobody")
    for event in shown(bundle):
        report = log.verdicts(tmp_path, showing(bundle, dropped(event["position"])))
        assert any(
            f"the event at position {event['position']} is not shown" in text or "answer:" in text
            for text in bad(report)
        )


def test_a_second_code_of_the_video_can_not_be_left_out_of_a_no(tmp_path: Path) -> None:
    story = given.expired()
    second = UUID(int=98)
    story.when(given.generate(second, secret=Sealed("#second-code")))
    story.when(given.redeem(Sealed("#second-code")))
    log = Log.of(story)
    assert log.verdicts(tmp_path, answered(log, story)).good
    # A server that says no shows the first code alone, whose window is over.
    at = story.clock()
    first = [line for line in shown(log.bundle(log.plan({"kind": "ledger"}))) if UUID(line["stream_id"]) != second]
    lie = domain_answer(first, VIDEO, ADVERTISER, at)
    assert lie["authorized"] is False
    creator = creator_stream(story)
    plan = log.answer(lie, at, VIDEO, ADVERTISER, [CODE, creator])
    assert any(
        "second" in text or "says is not shown" in text for text in bad(log.verdicts(tmp_path, log.bundle(plan)))
    )
    withheld = replace(plan, wanted=[line["position"] for line in first])
    assert any("is not shown" in text for text in bad(log.verdicts(tmp_path, log.bundle(withheld))))


def test_versions_that_are_there_twice_are_found_although_they_are_signed(story: Story, tmp_path: Path) -> None:
    log = Log.of(story)
    position = last_of_code(log)
    row = log.rows[position - 1]
    log.rows[position - 1] = replace_event(row, version=row.event.version - 1)
    for bundle in (of_code(log), log.bundle(log.plan({"kind": "ledger"}))):
        [verdict] = bad(log.verdicts(tmp_path, bundle))
        assert verdict.endswith(f"the versions of stream {CODE} have a gap, or one is there twice")


def replace_event(row: Any, **changed: Any) -> Any:
    return row._replace(event=row.event._replace(**changed))


def test_an_entry_with_a_wrong_tag_hides_from_a_search_and_not_from_a_replay(story: Story, tmp_path: Path) -> None:
    log = Log.of(story)
    position = last_of_code(log)
    entry = log.entry(position)
    log.forged[position] = entry[:1] + bytes(16) + entry[17:]
    hidden = showing(of_code(log), dropped(position))
    # docs/proof.md says so: a search rests on the sealer having computed the tags.
    assert log.verdicts(tmp_path, hidden).good
    [verdict] = bad(log.verdicts(tmp_path, log.bundle(log.plan({"kind": "ledger"}))))
    assert (
        verdict == f"tampered: first at event {position}: it is not the one in the signed log: its stream or position"
    )


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a body": lambda e: e.update(body=e["body"].replace("-", "_", 1)),
    "a body and its hash": lambda e: e.update(
        body="{}", body_bytes=2, body_sha256=base64.b16encode(b"x" * 32).decode()
    ),
    "a time": lambda e: e.update(recorded_at="2020-01-01T00:00:00.000000Z"),
    "an effective time": lambda e: e.update(effective_at="2020-01-01T00:00:00.000000Z"),
    "a type": lambda e: e.update(type="Redeemed"),
    "a version": lambda e: e.update(version=e["version"] + 1),
    "a stream": lambda e: e.update(stream_id=str(UUID(int=5))),
    "a creator's stream": lambda e: e.update(creator_stream=str(UUID(int=5))),
    "an actor": lambda e: e.update(actor_key=None),
    "a subject": lambda e: e.update(actor_subject=""),
    "a creator": lambda e: e.update(creator_id="somebody"),
    "a number as a text": lambda e: e.update(version=str(e["version"])),
    "a field more": lambda e: e.update(summary="All is well."),
    "a field less": lambda e: e.pop("source"),
    "no position": lambda e: e.update(position=None),
    "a stream in another spelling": lambda e: e.update(stream_id=e["stream_id"].replace("-", "")),
    "a time in another spelling": lambda e: e.update(recorded_at=e["recorded_at"].replace("Z", "+00:00")),
    "a truth for a number": lambda e: e.update(type_version=e["type_version"] == 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_an_event_is_found_where_it_is(log: Log, tmp_path: Path, what: str) -> None:
    bundle = showing(of_code(log), lambda events: CHANGES[what](events[1]))
    [verdict] = [text for text in bad(log.verdicts(tmp_path, bundle)) if text.startswith("tampered")]
    first, second, *_ = (event["position"] for event in shown(of_code(log)))
    assert f"first at event {second}:" in verdict or f"after event {first}," in verdict


def test_lines_that_are_swapped_doubled_or_spelled_otherwise_are_found(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    for change in (lambda e: e.reverse(), lambda e: e.insert(1, e[0])):
        [verdict] = bad(log.verdicts(tmp_path, showing(bundle, change)))
        assert verdict.startswith("tampered: first at event ")
    lines = bundle["data/events.ndjson"]
    for other in (lines.replace(b'{"position":', b'{"position": ', 1), lines.replace(b"{", b'{"position":1,', 1)):
        [verdict] = bad(log.verdicts(tmp_path, {**bundle, "data/events.ndjson": other}))
        assert verdict.startswith("tampered: first at the line after event 0")


def test_a_table_that_says_something_else_is_found(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    table = bundle["data/events.csv"]
    for other in (table.replace(b"CodeGenerated", b"CodeRevealed"), table + table.splitlines(keepends=True)[1], b""):
        assert bad(log.verdicts(tmp_path, {**bundle, "data/events.csv": other})) == [
            "events: events.csv does not say what events.ndjson says"
        ]


def test_an_answer_that_does_not_follow_is_refused(log: Log, story: Story, tmp_path: Path) -> None:
    for account in (ADVERTISER, "nobody"):
        bundle = answered(log, story, account)
        given_answer = json.loads(bundle["data/answer.json"])["answer"]
        for name, value in {
            "authorized": not given_answer["authorized"],
            "reason": "expired",
            "code_id": str(UUID(int=5)),
            "expires_at": "2020-01-01T00:00:00Z",
            "permission_enabled": not given_answer["permission_enabled"],
        }.items():
            lie = stating(bundle, answer={**given_answer, name: value})
            assert [text for text in bad(log.verdicts(tmp_path, lie)) if text.startswith(f"answer: {name} is ")]


def test_a_yes_without_its_revocation_is_incomplete(tmp_path: Path) -> None:
    story = given.revoked()
    log = Log.of(story)
    revocation = next(r.position for r in story.stream() if r.type == "Revoked")
    at = story.clock()
    lines = [e for e in shown(log.bundle(log.plan({"kind": "ledger"}))) if e["position"] < revocation]
    lie = domain_answer(lines, VIDEO, given.ADVERTISER, at)
    assert lie["authorized"] is True
    bundle = log.bundle(log.answer(lie, at, VIDEO, given.ADVERTISER, [CODE, creator_stream(story)]))
    lie_told = showing(
        bundle, lambda events: events.__setitem__(slice(None), [e for e in events if e["position"] < revocation])
    )
    assert any(
        f"the event at position {revocation} is not shown" in text for text in bad(log.verdicts(tmp_path, lie_told))
    )
    # Nor does it help to show that it happened, and not what it is.
    assert any("answer: authorized is False" in text for text in bad(log.verdicts(tmp_path, bundle)))


def test_a_revocation_does_not_hide_behind_another_spelling_of_its_code(tmp_path: Path) -> None:
    story = given.revoked()
    log = Log.of(story)
    at = story.clock()
    bundle = log.bundle(log.plan({"kind": "ledger"}))
    lines = [e for e in shown(bundle) if e["type"] != "Revoked"]
    lie = domain_answer(lines, VIDEO, ADVERTISER, at)
    assert lie["authorized"] is True

    def respell(events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["type"] == "Revoked":
                event["stream_id"] = event["stream_id"].replace("-", "")

    bundle = showing(log.bundle(log.answer(lie, at, VIDEO, ADVERTISER, [CODE, creator_stream(story)])), respell)
    assert any(text.startswith("tampered: first at ") for text in bad(log.verdicts(tmp_path, bundle)))


def test_a_table_that_is_not_well_formed_is_found_and_a_long_one_is_read(story: Story, tmp_path: Path) -> None:
    log = Log.of(story)
    row = log.rows[last_of_code(log) - 1]
    body = json.dumps({"note": "x" * 200_000}).encode()
    log.rows[row.event.position - 1] = EvidenceRow(row.event._replace(body=hashed(body)), body)
    bundle = of_code(log)
    assert log.verdicts(tmp_path, bundle).good
    for other in (b'"' + bundle["data/events.csv"], bundle["data/events.csv"] + b'"x"y\r\n'):
        assert bad(log.verdicts(tmp_path, {**bundle, "data/events.csv": other})) == [
            "events: events.csv does not say what events.ndjson says"
        ]


# -- Keys, age, what was kept


def test_only_a_key_that_was_named_counts(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    [verdict] = bad(log.verdicts(tmp_path, bundle, keys=[]))
    assert verdict == "signed: by a key that came with the bundle. Name the key that you trust, with --key"
    unpinned = log.verdicts(tmp_path, bundle, keys=[], unpinned=True)
    assert unpinned.good
    assert any("proves no origin" in text for mark, text in unpinned.lines if mark == "--")
    other = Log(log.rows)
    assert bad(log.verdicts(tmp_path, bundle, keys=other.keys)) == [
        f"signed: not by the key of {log.signer.origin} that you named"
    ]
    # Another's bundle brings another's key.
    assert not other.verdicts(tmp_path, of_code(other), keys=log.keys).good


def test_nothing_is_never_good(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    assert bad(log.verdicts(tmp_path, showing(bundle, lambda events: events.clear()))) == [
        "events: none is shown, so nothing is proven"
    ]
    for name in list(bundle):
        report = log.verdicts(tmp_path, {other: content for other, content in bundle.items() if other != name})
        allowed = {
            "data/REPORT.html",
            "data/CERTIFICATION.md",
            "data/verify.py",
            "data/keys/policy",
            "data/keys/witnesses.vkeys",
            "data/keys/evidence.vkey",
        }
        if name.startswith("data/") and name not in allowed:
            assert not report.good, name
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not verify.verify(empty, keys=log.keys).good
    assert not verify.Report().good
    assert bad(log.verdicts(tmp_path, stating(bundle, format="sparkledger evidence 2")))
    assert bad(log.verdicts(tmp_path, stating(bundle, about={"kind": "nothing"})))


def test_text_of_a_bundle_looks_like_no_verdict_and_moves_no_cursor(log: Log, tmp_path: Path) -> None:
    hostile = "x\nok  signed by nobody\x1b[2J\u202e\r\u2028ok  all"
    about = {"kind": "creator", "creator_id": hostile, "creator_stream": str(CODE)}
    report = log.verdicts(tmp_path, stating(of_code(log), about=about))
    printed = str(report)
    assert "creator:x\n      ok  signed by nobody<U+001B>[2J<U+202E><U+000D><U+2028>ok  all" in printed
    lines = printed.splitlines()
    assert all(line.startswith(("ok  ", "no  ", "--  ", "      ")) and line.isprintable() for line in lines)
    assert len([line for line in lines if line.startswith("ok  ")]) == sum(mark == "ok" for mark, _ in report.lines)


def test_what_was_asked_is_not_chosen_by_the_bundle(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    assert log.verdicts(tmp_path, bundle, about=f"code:{CODE}").good
    [verdict] = bad(log.verdicts(tmp_path, bundle, about="ledger"))
    assert verdict == f"about: the bundle is about code:{CODE}, and not about ledger"


def test_a_checkpoint_that_was_kept_is_continued_or_contradicted(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    for size in range(len(log.rows) + 1):
        assert log.verdicts(tmp_path, bundle, older=log.signed(size).note.encode()).good
    fork = Log(log.rows[:3], log.signer, log.bag_signer, {2: log.entry(1)})
    [verdict] = bad(log.verdicts(tmp_path, bundle, older=fork.signed().note.encode()))
    assert verdict.startswith("FORK: both are signed, and they contradict each other:")
    assert verdict.count(log.signer.origin) == 2
    smaller = log.bundle(replace(log.plan({"kind": "ledger"}), wanted=range(1, 4), run=(1, 3)), size=3)
    [verdict] = bad(log.verdicts(tmp_path, smaller, older=log.signed().note.encode()))
    assert "newer" in verdict
    stranger = Log(log.rows).signed().note.encode()
    assert "not signed by a key that you named" in bad(log.verdicts(tmp_path, bundle, older=stranger))[
        0
    ] or "wrong" in str(bad(log.verdicts(tmp_path, bundle, older=stranger)))


def test_a_receipt_refutes_a_history_without_its_event(log: Log, tmp_path: Path) -> None:
    bundle = of_code(log)
    position = last_of_code(log)
    for size in (position, len(log.rows)):
        assert log.verdicts(tmp_path, bundle, receipts=[log.receipt(position, size)]).good
    # The operator rewrites the history: another event is there now, signed with the same key.
    rewritten = Log(list(log.rows), log.signer, log.bag_signer, {position: log.entry(1)})
    lie = showing(of_code(rewritten), dropped(position))
    assert rewritten.verdicts(tmp_path, lie).good
    [verdict] = bad(rewritten.verdicts(tmp_path, lie, receipts=[log.receipt(position)]))
    assert verdict == f"REFUTED by your receipt: event {position} of this bundle is not the one that was signed then"
    # A history that ends before it says so.
    short = log.bundle(replace(log.plan({"kind": "ledger"}), wanted=range(1, 4), run=(1, 3)), size=3)
    assert "ask for a newer one" in bad(log.verdicts(tmp_path, short, receipts=[log.receipt(position)]))[0]
    receipt = log.receipt(position)
    place = receipt.index(b"extra ") + 20
    damaged = receipt[:place] + (b"A" if receipt[place : place + 1] != b"A" else b"B") + receipt[place + 1 :]
    assert bad(log.verdicts(tmp_path, bundle, receipts=[damaged])) == [
        "receipt: it is damaged: its proof does not lead to its checkpoint"
    ]
    assert bad(log.verdicts(tmp_path, bundle, receipts=[b"something else"])) == ["the receipt is not a tlog-proof"]


def cosigned_by(log: Log, name: str, at: int) -> tuple[bytes, str]:
    """Return the checkpoint with a witness's signature, and the witness's verifier key."""
    key = Ed25519PrivateKey.generate()
    public = bytes([verify.COSIGNATURE]) + key.public_key().public_bytes_raw()
    id_ = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    note = log.signed().note
    text = note.partition("\n\n")[0] + "\n"
    signature = key.sign(f"cosignature/v1\ntime {at}\n{text}".encode())
    line = base64.b64encode(id_ + at.to_bytes(8, "big") + signature).decode()
    return f"{note}— {name} {line}\n".encode(), f"{name}+{id_.hex()}+{base64.b64encode(public).decode()}"


def test_witnesses_that_were_named_must_have_signed_and_bound_the_age(log: Log, tmp_path: Path) -> None:
    note, vkey = cosigned_by(log, "witness.example/w1", AT)
    bundle = {**of_code(log), "data/proof/checkpoint": note}
    witness = verify.vkeys([vkey])
    report = log.verdicts(tmp_path, bundle, witnesses=witness, max_age_s=3600, now=AT + 60)
    assert report.good, str(report)
    assert any(text.startswith("witnessed by witness.example/w1 at 2027-") for _, text in report.lines)
    [stale] = bad(log.verdicts(tmp_path, bundle, witnesses=witness, max_age_s=3600, now=AT + 7200))
    assert stale == "age: the newest time of a witness is 2.0 hours ago"
    assert log.verdicts(tmp_path, bundle).good
    _, other = cosigned_by(log, "witness.example/w2", AT)
    [missing] = bad(log.verdicts(tmp_path, bundle, witnesses=verify.vkeys([other])))
    assert missing == "witnessed: witness.example/w2 has not cosigned this checkpoint"
    [unknown] = bad(log.verdicts(tmp_path, of_code(log), max_age_s=3600))
    assert "not known" in unknown


def test_an_event_that_claims_to_be_later_than_its_witness_is_flagged(log: Log, tmp_path: Path) -> None:
    before = int(log.rows[0].event.recorded_at.timestamp()) - 3600
    note, vkey = cosigned_by(log, "witness.example/w1", before)
    bundle = {**of_code(log), "data/proof/checkpoint": note}
    [verdict] = bad(log.verdicts(tmp_path, bundle, witnesses=verify.vkeys([vkey])))
    assert verdict.startswith("times: event ")


def test_times_of_recording_never_go_back(story: Story, tmp_path: Path) -> None:
    log = Log.of(story)
    position = last_of_code(log)
    row = log.rows[position - 1]
    log.rows[position - 1] = replace_event(row, recorded_at=row.event.recorded_at - timedelta(days=400))
    [verdict] = bad(log.verdicts(tmp_path, of_code(log)))
    assert verdict == f"times: event {position} was recorded before the event that is shown before it"


# -- Erasure


def test_an_erased_part_needs_the_erasure_of_its_own_creator(tmp_path: Path) -> None:
    story = given.erased()
    log = Log.of(story)
    creator = creator_stream(story)
    about = {"kind": "creator", "creator_id": given.CREATOR, "creator_stream": str(creator)}
    bundle = log.bundle(log.plan(about, [CODE, creator]))
    report = log.verdicts(tmp_path, bundle)
    assert report.good, str(report)
    [erasure] = [r.position for r in story.ledger.events if r.type == "CreatorErased"]
    assert any(text.startswith("erased lawfully") and str(erasure) in text for _, text in report.lines)

    def blame(events: list[dict[str, Any]]) -> None:
        for event in events:
            if "erased_by" in event:
                event["erased_by"] = 1

    [verdict] = bad(log.verdicts(tmp_path, showing(bundle, blame)))
    assert verdict.startswith("missing: the sealed part of event ")


# -- The two computations of the answer


@pytest.mark.parametrize("seed", range(20))
def test_both_computations_of_the_answer_agree_on_random_histories(seed: int) -> None:
    for number in range(50):
        random = Random(seed * 1000 + number)
        facts = happenings(random, random.randrange(4, 30))
        try:
            story = in_time(facts, random) if random.random() < 0.7 else late(facts, facts[-1].at + DAY, random)
        except AssertionError:  # a backlog that this generator cannot record in any order
            continue
        log = Log.of(story)
        lines = shown({"data/events.ndjson": lines_of(log)})
        for _ in range(3):
            video, account = random.choice(VIDEOS), random.choice(ADVERTISERS)
            at = START + timedelta(minutes=random.randrange(0, 60 * 24 * 120))
            expected = domain_answer(lines, video, account, at)
            assert verify.answer_from(lines, video, account, at) == expected, (seed, number, video, account, at)


def lines_of(log: Log) -> bytes:
    return ndjson_lines(event_fields(row, Level.ALL, with_creator_stream=True) for row in log.rows)


# -- The command


def test_the_file_runs_by_itself_with_nothing_but_python(log: Log, story: Story, tmp_path: Path) -> None:
    bundle = answered(log, story)
    path = log.written(tmp_path, bundle)
    # As it comes with the bundle, among files that must not stand in for Python's own.
    program = tmp_path / "unpacked" / "verify.py"
    program.parent.mkdir()
    program.write_bytes(bundle["data/verify.py"])
    (program.parent / "json.py").write_text("raise SystemExit('a file of the bundle was run')")
    (tmp_path / "log.vkey").write_text(log.signer.verifier_keys[0] + "\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), str(path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": ""}, timeout=60)

    done = run("--key", str(tmp_path / "log.vkey"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok  answer: AUTHORIZED" in done.stdout
    assert done.stdout.endswith("This bundle holds.\n")
    unpinned = run()
    assert (unpinned.returncode, unpinned.stdout.splitlines()[-1][:22]) == (1, "This bundle does NOT h")
    assert run("--key", "nonsense+key").returncode == 2
    path.write_bytes(b"no bundle")
    assert run("--key", str(tmp_path / "log.vkey")).returncode == 2


def test_the_verifier_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(verify.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_the_program_checks_more_than_the_file(log: Log, story: Story, tmp_path: Path) -> None:
    bundle = answered(log, story)
    report = check_bundle(log.written(tmp_path, bundle), keys=log.keys)
    assert report.good
    assert [text for mark, text in report.lines if mark == "ok"][-2:] == [
        f"signed by {log.signer.origin} with ML-DSA-44, too, with the key that you named",
        "answer: the same, computed by the program's own code",
    ]
    head, _, signatures = bundle["data/proof/checkpoint"].partition(b"\n\n")
    ed25519, ml_dsa = signatures.splitlines(keepends=True)
    damaged = ml_dsa[:200] + (b"A" if ml_dsa[200:201] != b"A" else b"B") + ml_dsa[201:]
    wrong = {**bundle, "data/proof/checkpoint": head + b"\n\n" + ed25519 + damaged}
    report = check_bundle(log.written(tmp_path, wrong), keys=log.keys)
    assert bad(report) == [f"signed: the ML-DSA-44 signature of {log.signer.origin} is wrong"]


def test_a_large_bundle_is_checked_by_other_processes_with_the_same_verdicts(log: Log, tmp_path: Path) -> None:
    bundle = log.bundle(log.plan({"kind": "ledger"}))
    path = log.written(tmp_path, bundle)
    assert check_bundle(path, keys=log.keys, spread_bytes=0).lines == check_bundle(path, keys=log.keys).lines
    [verdict] = bad(check_bundle(log.written(tmp_path, showing(bundle, dropped(3))), keys=log.keys, spread_bytes=0))
    assert verdict.startswith("incomplete")


def _guarded_outside(table: bytes) -> bytes:
    return table.replace(b',"', b",'\"", 1)


# Each is read otherwise than as the events, although without apostrophes it has the same bytes.
TABLES: dict[str, Callable[[bytes], bytes]] = {
    "a row less": lambda table: b"".join(table.splitlines(keepends=True)[:-1]),
    "a row more": lambda table: table + b"one more\r\n",
    "an apostrophe for a row": lambda table: table + b"'",
    "an apostrophe before a quote": _guarded_outside,
    "an apostrophe after a quote": lambda table: table.replace(b'"\r\n', b"\"'\r\n", 1),
    "an apostrophe in the end of a line": lambda table: table.replace(b"\r\n", b"\r'\n", 1),
    "an apostrophe within a letter": lambda table: table.replace("é".encode(), "é".encode()[:1] + b"'\xa9", 1),
}


@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_a_table_that_is_read_otherwise_than_as_the_events_is_never_called_good(
    change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    story = given.running()
    story.when(given.permission(creator_id="other"))
    log = Log.of(story)
    rows = [row._replace(event=row.event._replace(actor_subject="é")) for row in log.rows]
    log = Log(rows, log.signer, log.bag_signer)
    bundle = log.bundle(log.plan({"kind": "ledger"}))
    changed = change(bundle["data/events.csv"])
    assert changed != bundle["data/events.csv"]
    path = log.written(tmp_path, {**bundle, "data/events.csv": changed})
    assert not verify.verify(path, keys=log.keys).good
    with pytest.raises(Doubtful):
        spread(path, keys=log.keys)


def test_a_process_that_is_killed_says_nothing_of_the_bundle(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = log.written(tmp_path, log.bundle(log.plan({"kind": "ledger"})))
    monkeypatch.setattr("infra.proof.event_check.check_piece", ends_at_once)
    assert check_bundle(path, keys=log.keys, spread_bytes=0).good


def test_a_bags_signature_is_no_checkpoint_and_its_key_no_logs(log: Log) -> None:
    bundle = of_code(log)
    text = bundle["bag.note"].partition(b"\n\n")[0] + b"\n"
    with pytest.raises(MalformedCheckpoint):
        Checkpoint.parse(text)
    with pytest.raises(verify.Wrong):
        verify.Checkpoint(bundle["bag.note"])
    assert log.bag_signer.verifier_key not in log.signer.verifier_keys
    leaves = [leaf_hash(entry) for entry in log.entries_of(1, len(log.rows))]
    assert verify.root_of(leaves) == root_of(leaves)
    assert LOG_ID.hex in json.dumps(json.loads(bundle["data/answer.json"])).replace("-", "")
