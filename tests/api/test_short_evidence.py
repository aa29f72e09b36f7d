"""Short evidence: sealed heads in the place of entries; it holds, is small, and every omission is found."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.proof import verify
from infra.proof.bundle_check import check_bundle
from tests.api.test_evidence import files
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, refused, told
from tests.infra.proof.bundles import Log, bad, showing

pytestmark = pytest.mark.usefixtures("unkept")

Bundle = dict[str, bytes]
HEADS, EARLY = "data/proof/heads.json", "data/proof/early.json"


@pytest.fixture
def sealed(world: World) -> tuple[World, dict[str, Any]]:
    """A ledger with one code that goes on after its heads were sealed, and business of others."""
    code = world.running()
    for number in range(4):
        world.running(f"creator-{number}")
    serving = world.server.serving
    serving.seal()
    serving.seal_heads()
    told(world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"days": 60}), 201)
    serving.seal()
    return world, code


def short(world: World, **asked: Any) -> Bundle:
    answer = world.client.post("/v1/evidence", json={"short": True, **asked})
    assert answer.status_code == 200, answer.text
    return files(answer.content)


def verdicts(world: World, bundle: Bundle, folder: Path) -> verify.Report:
    keys = told(world.client.get("/v1/log"), 200)["vkeys"]
    return check_bundle(Log([]).written(folder, bundle), keys=verify.vkeys(keys))


def changed(bundle: Bundle, name: str, change: Callable[[Any], object]) -> Bundle:
    content = json.loads(bundle[name])
    change(content)
    return {**bundle, name: json.dumps(content).encode()}


def test_short_evidence_holds_with_the_entries_since_the_heads_alone(
    sealed: tuple[World, dict[str, Any]], tmp_path: Path
) -> None:
    world, code = sealed
    size = world.head()
    for asked, events in (
        ({"kind": "code", "code_id": code["code_id"]}, 5),
        ({"kind": "creator", "creator_id": OWN_CREATOR}, 6),
    ):
        bundle = short(world, **asked)
        report = verdicts(world, bundle, tmp_path)
        assert report.good, str(report)
        [said] = [text for mark, text in report.lines if mark == "ok" and text.startswith("complete")]
        assert f": {events} events, by the heads that event {size - 1} has sealed, and 2 entries since" in said
        assert len(bundle["data/proof/entries.bin"]) == 2 * verify.ENTRY_BYTES
    yes = short(world, kind="answer", video_id=code["video_id"], advertiser_id=OWN_ACCOUNT)
    report = verdicts(world, yes, tmp_path)
    assert report.good, str(report)
    assert any(text.startswith("answer: AUTHORIZED") for _, text in report.lines)


def test_an_event_from_before_the_heads_that_is_left_out_is_found(
    sealed: tuple[World, dict[str, Any]], tmp_path: Path
) -> None:
    world, code = sealed
    bundle = short(world, kind="code", code_id=code["code_id"])
    positions = [event["position"] for event in map(json.loads, bundle["data/events.ndjson"].splitlines())]
    for position in positions[:-1]:

        def without(lines: list[Any], gone: int = position) -> None:
            lines[:] = [line for line in lines if line["position"] != gone]

        hidden = showing(bundle, without)
        assert bad(verdicts(world, hidden, tmp_path)), position
        # As well without its entry: the chain and the number do not fit then.
        [verdict] = bad(verdicts(world, changed(hidden, EARLY, without), tmp_path))
        assert verdict.startswith("incomplete: the heads have 4 events up to"), position
    last = showing(bundle, lambda events: events.pop())
    assert bad(verdicts(world, last, tmp_path)) == [
        f"incomplete: code {code['code_id']}: the event at position {positions[-1]} is not shown"
    ]


def test_forged_heads_are_refused(sealed: tuple[World, dict[str, Any]], tmp_path: Path) -> None:
    world, code = sealed
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


def test_only_the_event_that_seals_the_heads_of_this_log_counts(
    sealed: tuple[World, dict[str, Any]], tmp_path: Path
) -> None:
    world, code = sealed
    bundle = short(world, kind="code", code_id=code["code_id"])
    extended = bundle["data/events.ndjson"].splitlines(keepends=True)[-1]
    event = json.loads(extended)
    del event["creator_stream"]
    line = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    [verdict] = bad(verdicts(world, {**bundle, "data/proof/heads.ndjson": line}, tmp_path))
    assert verdict == "heads: the event that is shown does not seal the heads of this log"
    forged = bundle["data/proof/heads.ndjson"].replace(b'\\"format\\":1', b'\\"format\\":2')
    assert forged != bundle["data/proof/heads.ndjson"]
    [verdict] = bad(verdicts(world, {**bundle, "data/proof/heads.ndjson": forged}, tmp_path))
    assert verdict.startswith("tampered: first at event")


def test_what_has_no_short_form_says_so(world: World) -> None:
    code = world.running()
    world.server.serving.seal()
    asked = {"kind": "code", "code_id": code["code_id"], "short": True}
    assert refused(world.client.post("/v1/evidence", json=asked)) == (404, "log_unknown")
    assert refused(world.client.post("/v1/evidence", json={"kind": "ledger", "short": True}))[0] == 422
    world.server.serving.seal_heads()
    world.server.serving.seal()
    no = {"kind": "answer", "video_id": code["video_id"], "advertiser_id": "none", "short": True}
    assert refused(world.client.post("/v1/evidence", json=no)) == (404, "log_unknown")
