"""Short evidence: sealed heads in the place of entries; it holds, is small, and every omission is found."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import api.evidence_plans
import infra.jobs.heads
from domain.heads import video_key
from infra.proof import verify
from infra.proof.bundle_check import check_bundle
from tests.api.test_evidence import files
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, days, refused, told
from tests.infra.proof.bundles import Log, bad, showing, shown, stating
from tests.waiting import until

pytestmark = [
    pytest.mark.usefixtures("unkept"),
    pytest.mark.long("bundles are made, tampered with and verified by both verifiers"),
]

Bundle = dict[str, bytes]
HEADS, EARLY = "data/proof/heads.json", "data/proof/early.ndjson"


class Sealed(NamedTuple):
    """A ledger with a code that goes on after the heads were sealed; it took another's place, and one is to follow."""

    world: World
    code: dict[str, Any]
    earlier: dict[str, Any]
    later: dict[str, Any]


@pytest.fixture
def sealed(world: World) -> Sealed:
    return sealed_in(world)


def sealed_in(world: World) -> Sealed:
    earlier = world.generate()
    successor = {"secret": "#its/successor+0123456789", "supersedes": earlier["code_id"]}
    code = world.generate(video_id=earlier["video_id"], **successor) | {"secret": successor["secret"]}
    world.share(code)
    world.redeem(code)
    world.launch(code)
    for number in range(4):
        world.running(f"creator-{number}")
    serving = world.server.serving
    serving.seal()
    serving.seal_heads()
    told(world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"days": 60}), 201)
    later = world.generate(video_id=code["video_id"], starts_at=days(100))
    serving.seal()
    return Sealed(world, code, earlier, later)


def short(world: World, **asked: Any) -> Bundle:
    answer = world.client.post("/v1/evidence", json={"short": True, **asked})
    assert answer.status_code == 200, answer.text
    return files(answer.content)


def verdicts(world: World, bundle: Bundle, folder: Path) -> verify.Report:
    keys = told(world.client.get("/v1/log"), 200)["vkeys"]
    return check_bundle(Log([]).written(folder, bundle), keys=verify.vkeys(keys))


def changed(bundle: Bundle, name: str, change: Callable[[Any], object]) -> Bundle:
    lines = name.endswith(".ndjson")
    content = list(map(json.loads, bundle[name].splitlines())) if lines else json.loads(bundle[name])
    change(content)
    written = "".join(json.dumps(line) + "\n" for line in content) if lines else json.dumps(content)
    return {**bundle, name: written.encode()}


def without(*gone: int) -> Callable[[list[Any]], object]:
    """Return what takes the lines about some positions away."""

    def change(lines: list[Any]) -> None:
        lines[:] = [line for line in lines if line["position"] not in gone]

    return change


def of_stream(bundle: Bundle, code: dict[str, Any]) -> list[int]:
    return [event["position"] for event in shown(bundle) if event["stream_id"] == code["code_id"]]


def is_incomplete(report: verify.Report, why: str) -> bool:
    return any(text.startswith("incomplete") and why in text for text in bad(report))


def test_short_evidence_holds_with_the_entries_since_the_heads_alone(sealed: Sealed, tmp_path: Path) -> None:
    world, code, *_ = sealed
    size = world.head()
    for asked, counts in (
        ({"kind": "code", "code_id": code["code_id"]}, (5, 1)),
        ({"kind": "creator", "creator_id": OWN_CREATOR}, (9,)),
    ):
        bundle = short(world, **asked)
        report = verdicts(world, bundle, tmp_path)
        assert report.good, str(report)
        said = [text for mark, text in report.lines if mark == "ok" and text.startswith("complete")]
        by = f"by the heads that event {size - 2} has sealed, and 3 entries since"
        assert [text.rpartition(": ")[2] for text in said] == [f"{events} events, {by}" for events in counts]
        assert len(bundle["data/proof/entries.bin"]) == 3 * verify.ENTRY_BYTES
    asked = {"kind": "answer", "video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "short": True}
    for client in (world.client, world.brand()):
        answer = client.post("/v1/evidence", json=asked)
        assert answer.status_code == 200, answer.text
        report = verdicts(world, files(answer.content), tmp_path)
        assert report.good, str(report)
        assert any(text.startswith("answer: AUTHORIZED") for _, text in report.lines)


def test_a_no_and_a_video_are_proven_by_the_head_of_the_video(sealed: Sealed, tmp_path: Path) -> None:
    world, code, earlier, later = sealed
    size = world.head()
    rests = f"by the heads that event {size - 2} has sealed, and 3 entries since, each shown by its type"
    for video, codes in ((code["video_id"], 3), ("video-none", 0)):
        asked = {"kind": "answer", "video_id": video, "advertiser_id": "account-none"}
        for kind in (asked, {"kind": "video", "video_id": video}):
            bundle = short(world, **kind)
            report = verdicts(world, bundle, tmp_path)
            assert report.good, str(report)
            said, *permission = [text for mark, text in report.lines if mark == "ok" and text.startswith("complete")]
            assert len(permission) == (kind == asked and codes > 0)
            assert said.endswith(f": {codes} codes, {rests}"), said
            assert len(bundle["data/proof/entries.bin"]) == 3 * verify.ENTRY_BYTES
            ids = {event["stream_id"] for event in shown(bundle) if event["type"] == "CodeGenerated"}
            assert ids == {later["code_id"], *((code["code_id"], earlier["code_id"]) if codes else ())}
    assert any(text.startswith("answer: NOT AUTHORIZED (no_code)") for _, text in report_of_none(world, tmp_path).lines)


def report_of_none(world: World, folder: Path) -> verify.Report:
    bundle = short(world, kind="answer", video_id="video-none", advertiser_id=OWN_ACCOUNT)
    return verdicts(world, bundle, folder)


def test_a_code_of_the_video_that_is_left_out_is_found(sealed: Sealed, tmp_path: Path) -> None:
    world, code, earlier, later = sealed
    asked = {"kind": "answer", "video_id": code["video_id"], "advertiser_id": "account-none"}
    bundle = short(world, **asked)
    gone = of_stream(bundle, earlier)
    hidden = changed(showing(bundle, without(*gone)), EARLY, without(*gone))
    assert is_incomplete(verdicts(world, hidden, tmp_path), "the heads have 2 events up to")
    own = of_stream(bundle, code)
    # An event of a code, with and without its entry.
    for position in own[1:-1]:
        hidden = showing(bundle, without(position))
        assert is_incomplete(verdicts(world, hidden, tmp_path), "the versions of stream"), position
    # The end of a code: from before the heads, and since.
    hidden = changed(showing(bundle, without(gone[-1])), EARLY, without(gone[-1]))
    assert is_incomplete(verdicts(world, hidden, tmp_path), "the heads have 2 events up to")
    [verdict] = bad(verdicts(world, showing(bundle, without(own[-1])), tmp_path))
    assert verdict.startswith("answer: expires_at is"), verdict
    # A code from after the heads, and what it is of.
    [generated] = of_stream(bundle, later)
    hidden = showing(bundle, without(generated))
    assert is_incomplete(verdicts(world, hidden, tmp_path), f"the event at position {generated} is not shown")

    def veil(events: list[Any]) -> None:
        event = next(event for event in events if event["position"] == generated)
        of_content = hashlib.sha256(verify.content_of(event)).hexdigest()
        for name in ("body", *verify.CONTENT):
            event.pop(name, None)
        event["content_sha256"] = of_content

    veiled = verdicts(world, showing(bundle, veil), tmp_path)
    assert is_incomplete(veiled, f"the video of the code at position {generated} is not shown"), str(veiled)


def test_an_absence_is_of_one_video_and_rests_on_the_sealed_salt(sealed: Sealed, tmp_path: Path) -> None:
    world, code, *_ = sealed
    none = short(world, kind="video", video_id="video-none")
    # What proves that one video had no code proves nothing of another.
    about = {"kind": "video", "video_id": code["video_id"]}
    assert any("incomplete" in text for text in bad(verdicts(world, stating(none, about=about), tmp_path)))
    other = changed(none, HEADS, lambda content: content.update(video_salt="00" * 32))
    assert bad(verdicts(world, other, tmp_path)) == ["heads: the salt of videos is not the one that the log has sealed"]
    unsalted = changed(none, HEADS, lambda content: content.pop("video_salt"))
    assert is_incomplete(verdicts(world, unsalted, tmp_path), "lacks the salt by which the head of a video is found")
    # One neighbour of two is no proof.
    heads = json.loads(none[HEADS])["heads"]
    key = hashlib.sha256(
        b"sparkledger/heads/video/v1\n" + bytes.fromhex(json.loads(none[HEADS])["video_salt"]) + b"video-none"
    ).hexdigest()[:32]
    beside = min(heads, key=lambda head: abs(int(head["key"], 16) - int(key, 16)))
    alone = changed(none, HEADS, lambda content: content["heads"].remove(beside))
    assert is_incomplete(verdicts(world, alone, tmp_path), "nothing proves how many events there were")


def test_an_event_from_before_the_heads_that_is_left_out_is_found(sealed: Sealed, tmp_path: Path) -> None:
    world, code, *_ = sealed
    bundle = short(world, kind="code", code_id=code["code_id"])
    positions = of_stream(bundle, code)
    for position in positions[:-1]:
        hidden = showing(bundle, without(position))
        assert bad(verdicts(world, hidden, tmp_path)), position
        # As well without its entry: the chain and the number do not fit then.
        [verdict] = bad(verdicts(world, changed(hidden, EARLY, without(position)), tmp_path))
        assert verdict.startswith("incomplete: the heads have 4 events up to"), position
    last = showing(bundle, without(positions[-1]))
    assert bad(verdicts(world, last, tmp_path)) == [
        f"incomplete: code {code['code_id']}: the event at position {positions[-1]} is not shown"
    ]


def test_forged_heads_are_refused(sealed: Sealed, tmp_path: Path) -> None:
    world, code, *_ = sealed
    bundle = short(world, kind="code", code_id=code["code_id"])
    key = hashlib.sha256(b"sparkledger/heads/stream/v1\n" + bytes.fromhex(code["code_id"].replace("-", "")))
    place = [one["key"] for one in json.loads(bundle[HEADS])["heads"]].index(key.hexdigest()[:32])

    def of_code(content: Any) -> Any:
        return content["heads"][place]

    wrong = "heads: one does not lead to the root that the log has sealed"
    assert bad(verdicts(world, changed(bundle, HEADS, lambda c: of_code(c).update(count=3)), tmp_path)) == [wrong]
    assert bad(verdicts(world, changed(bundle, HEADS, lambda c: of_code(c).update(chain="00" * 32)), tmp_path)) == [
        wrong
    ]
    # Without the head nothing says how many there were; nor does one neighbour of what is absent.
    none = "incomplete: nothing proves how many events there were before the entries of this bundle"
    assert none in bad(verdicts(world, changed(bundle, HEADS, lambda c: c["heads"].pop(place)), tmp_path))
    # The events of another code under this one's head.
    other = short(world, kind="creator", creator_id="creator-1")
    mixed = {**bundle, EARLY: other[EARLY]}
    assert bad(verdicts(world, mixed, tmp_path))
    # An entry that is not in the tree.
    forged = base64.b64encode(b"\1" + bytes(64)).decode()
    [verdict] = bad(verdicts(world, changed(bundle, EARLY, lambda e: e[0].update(entry=forged)), tmp_path))
    assert "does not lead to the signed root" in verdict


def test_only_the_event_that_seals_the_heads_of_this_log_counts(sealed: Sealed, tmp_path: Path) -> None:
    world, code, *_ = sealed
    bundle = short(world, kind="code", code_id=code["code_id"])
    extended = bundle["data/events.ndjson"].splitlines(keepends=True)[-1]
    event = json.loads(extended)
    del event["creator_stream"]
    line = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    [verdict] = bad(verdicts(world, {**bundle, "data/proof/heads.ndjson": line}, tmp_path))
    assert verdict == "heads: the event that is shown does not seal the heads of this log"
    forged = bundle["data/proof/heads.ndjson"].replace(b'\\"format\\":2', b'\\"format\\":3')
    assert forged != bundle["data/proof/heads.ndjson"]
    [verdict] = bad(verdicts(world, {**bundle, "data/proof/heads.ndjson": forged}, tmp_path))
    assert verdict.startswith("tampered: first at event")


def test_heads_that_do_not_count_a_code_are_found_by_those_who_have_the_whole_ledger(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, *_ = sealed

    def verdict_on_heads() -> tuple[str, str]:
        answer = world.client.post("/v1/evidence", json={"kind": "ledger"})
        [said] = [
            line for line in verdicts(world, files(answer.content), tmp_path).lines if line[1].startswith("heads:")
        ]
        return said

    assert verdict_on_heads() == ("ok", "heads: counted again, the newest 1 of 1 that were sealed, and they are right")
    upto = world.head()
    with monkeypatch.context() as lying:
        lying.setattr(infra.jobs.heads, "video_key", lambda salt, video: video_key(salt, f"not {video}"))
        world.server.serving.seal_heads()
    world.server.serving.seal()
    expected = f"heads: those that were sealed up to event {upto} do not count the events that there are"
    assert verdict_on_heads() == ("no", expected)


def test_another_generation_counts_from_the_first_event_and_evidence_of_the_one_before_still_holds(
    sealed: Sealed, tmp_path: Path
) -> None:
    world, code, *_ = sealed
    serving, ledger = world.server.serving, world.server.ledger
    asked = {"kind": "answer", "video_id": code["video_id"], "advertiser_id": "account-none"}
    before, keys = short(world, **asked), told(world.client.get("/v1/log"), 200)["vkeys"]
    done = serving.change_keys(ledger, "compromise", "the disk was stolen")
    serving.seal()
    until(lambda: told(world.client.get("/v1/log"), 200)["generation"] == done.generation)
    assert HEADS not in short(world, **asked), "the heads of before are of another log"
    serving.seal_heads()
    serving.seal()
    after = short(world, **asked)
    assert json.loads(after["data/answer.json"])["log"]["generation"] == done.generation
    report = verdicts(world, after, tmp_path)
    assert report.good, str(report)
    report = check_bundle(Log([]).written(tmp_path, before), keys=verify.vkeys(keys))
    assert report.good, str(report)


def test_what_cannot_be_short_has_all_entries_and_says_why(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = world.running()
    world.server.serving.seal()
    asked = {"kind": "code", "code_id": code["code_id"]}

    def whole(why: str) -> None:
        bundle = short(world, **asked)
        report = verdicts(world, bundle, tmp_path)
        assert report.good, str(report)
        assert any("found by searching all" in text for _, text in report.lines)
        assert HEADS not in bundle
        assert f"all. The short form was asked for, but {why}" in bundle["data/REPORT.html"].decode()

    whole("no heads are sealed yet that this state of the log covers.")
    world.server.serving.seal_heads()
    world.server.serving.seal()
    assert HEADS in short(world, **asked)
    monkeypatch.setattr(api.evidence_plans, "FEW_PROOFS", 1)
    whole("with a proof for each of 5 events it would be larger.")
    assert refused(world.client.post("/v1/evidence", json={"kind": "ledger", "short": True}))[0] == 422
