"""Keys that sign a log are replaced and ended as events of the log: verifiers can follow, and nobody can hide it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from infra.proof import verify
from infra.proof.bundle_check import check_bundle
from infra.proof.notes import SignedNote, VerifierKey
from tests.api.test_evidence import events_in, files, make
from tests.api.world import World, told
from tests.infra.proof.bundles import Log, bad
from tests.waiting import until

pytestmark = [
    pytest.mark.usefixtures("unkept"),
    pytest.mark.long("bundles of a rotation are made and verified by both verifiers"),
]

FOLLOWED = "with a key that the one that you named has introduced in event"


def of_log(world: World) -> dict[str, Any]:
    return dict(told(world.client.get("/v1/log"), 200))


def signers(world: World) -> set[str]:
    """Return the keys, of those that are known, that have validly signed the checkpoint that is served."""
    known = of_log(world)
    note = SignedNote.parse(known["checkpoint"].encode())
    for key in map(VerifierKey.parse, known["vkeys"]):
        [signature] = note.by(key)
        key.signed_at(note.checkpoint, signature)
    assert len(note.signatures) == len(known["vkeys"])
    return set(known["vkeys"])


def verdicts(folder: Path, bundle: dict[str, bytes] | bytes, keys: list[str]) -> verify.Report:
    """Return the verdicts over a bundle as it is, or over files that somebody has changed and put into a bag again."""
    if isinstance(bundle, bytes):
        path = folder / "bundle.zip"
        path.write_bytes(bundle)
    else:
        path = Log([]).written(folder, bundle)
    return check_bundle(path, keys=verify.vkeys(keys))


@pytest.fixture
def rotated(world: World) -> tuple[World, list[str], list[str]]:
    """A ledger whose log is signed by another key than it began with; the keys of before and after."""
    serving, ledger = world.server.serving, world.server.ledger
    world.running()
    serving.seal()
    before = of_log(world)["vkeys"]
    added = serving.change_keys(ledger, "add", "once a year")
    serving.seal()
    assert signers(world) == {*before, *added.verifier_keys}
    world.generate()
    serving.seal()
    assert signers(world) == {*before, *added.verifier_keys}
    retired = serving.change_keys(ledger, "retire")
    assert retired.verifier_keys == added.verifier_keys
    serving.seal()
    assert signers(world) == set(added.verifier_keys)
    return world, before, added.verifier_keys


def test_who_has_the_old_key_follows_to_the_new_one(
    rotated: tuple[World, list[str], list[str]], tmp_path: Path
) -> None:
    world, before, after = rotated
    data = make(world, kind="ledger")
    changes = {event["type"]: event for event in events_in(data) if event["type"].startswith("LogKey")}
    assert list(changes) == ["LogKeyAdded", "LogKeyRetired"]
    added, retired = (json.loads(event["body"]) for event in changes.values())
    assert (added["vkey"], added["reason"]) == (after[0], "once a year")
    assert (retired["vkey"], retired["ml_dsa_vkey"]) == tuple(before)
    followed = verdicts(tmp_path, data, before)
    assert followed.good, str(followed)
    at = changes["LogKeyAdded"]["position"]
    assert any(mark == "ok" and f"{FOLLOWED} {at};" in text for mark, text in followed.lines)
    named = verdicts(tmp_path, data, after)
    assert named.good, str(named)
    assert not any(FOLLOWED in text for _, text in named.lines)


def test_a_bundle_of_a_state_from_before_is_still_the_same_to_the_byte(world: World, tmp_path: Path) -> None:
    code = world.running()
    asked = {"kind": "code", "code_id": code["code_id"]}
    data, size = make(world, **asked), world.head()
    before = of_log(world)["vkeys"]
    for step in ("add", "retire"):
        world.server.serving.change_keys(world.server.ledger, step)
        world.server.serving.seal()
    assert make(world, size=size, **asked) == data
    assert verdicts(tmp_path, data, before).good


def test_a_key_that_no_trusted_key_has_introduced_does_not_count(
    rotated: tuple[World, list[str], list[str]], tmp_path: Path
) -> None:
    world, before, _ = rotated
    bundle = files(make(world, kind="ledger"))
    [handover] = [name for name in bundle if name.startswith("data/proof/keys/")]
    origin = of_log(world)["origin"]
    not_by = f"signed: not by the key of {origin} that you named"
    # Without the handover, and with one that the old key has not signed.
    assert bad(verdicts(tmp_path, {n: c for n, c in bundle.items() if n != handover}, before)) == [not_by]
    text, _, lines = bundle[handover].partition(b"\n\n")
    new_alone = b"".join(lines.splitlines(keepends=True)[2:])
    assert bad(verdicts(tmp_path, {**bundle, handover: text + b"\n\n" + new_alone}, before)) == [not_by]
    # One with another root under the signature of the old key.
    altered = bundle[handover].replace(text.split(b"\n")[2], b"A" * 43 + b"=")
    assert bad(verdicts(tmp_path, {**bundle, handover: altered}, before)) == [f"the signature of {origin} is wrong"]


def test_what_the_log_says_of_its_keys_can_not_be_left_out(
    rotated: tuple[World, list[str], list[str]], tmp_path: Path
) -> None:
    world, _, after = rotated
    bundle = files(make(world, kind="ledger"))
    name = "data/proof/log.ndjson"
    first, second = bundle[name].splitlines(keepends=True)
    position = json.loads(second)["position"]
    assert bad(verdicts(tmp_path, {**bundle, name: first}, after)) == [
        f"incomplete: the log's keys: the event at position {position}, of the log itself, is not shown"
    ]
    assert bad(verdicts(tmp_path, {n: c for n, c in bundle.items() if n != name}, after))
    changed = bundle[name].replace(b"LogKeyRetired", b"LogKeyRenamed")
    [verdict] = bad(verdicts(tmp_path, {**bundle, name: changed}, after))
    assert verdict.startswith(f"tampered: first at event {position}")


def test_a_compromised_key_ends_at_once_and_bundles_say_so(world: World, tmp_path: Path) -> None:
    serving, ledger = world.server.serving, world.server.ledger
    world.running()
    serving.seal()
    before = of_log(world)
    done = serving.change_keys(ledger, "compromise", "the disk was stolen")
    assert done.generation == before["generation"] + 1
    serving.seal()
    until(lambda: of_log(world)["generation"] == done.generation)
    after = of_log(world)
    assert after["vkeys"] == done.verifier_keys
    assert signers(world) == set(done.verifier_keys)
    assert after["origin"].removesuffix("/2") == before["origin"].removesuffix("/1")
    public = {VerifierKey.parse(key).public for key in before["vkeys"]}
    assert public.isdisjoint(VerifierKey.parse(key).public for key in after["vkeys"])

    data = make(world, kind="ledger")
    named = verdicts(tmp_path, data, after["vkeys"])
    assert named.good, str(named)
    assert any("LogKeyCompromised" in text for mark, text in named.lines if mark == "--")
    key = verify.Key(before["vkeys"][0])
    said = [f"keys: the key {key.name}+{key.id.hex()} that you named is compromised, says event {done.position - 1}"]
    assert bad(verdicts(tmp_path, data, [*after["vkeys"], *before["vkeys"]])) == said
    # The event is in the log, and each of its bundles must show what it says.
    bundle = files(data)
    name = "data/proof/log.ndjson"
    event = json.loads(bundle[name].splitlines()[0])
    assert event["type"] == "LogKeyCompromised"
    envelope = {field: event[field] for field in verify.ENVELOPE}
    envelope["content_sha256"] = hashlib.sha256(verify.content_of(event)).hexdigest()
    line = json.dumps(envelope, separators=(",", ":")).encode() + b"\n"
    hidden = line + b"".join(bundle[name].splitlines(keepends=True)[1:])
    assert bad(verdicts(tmp_path, {**bundle, name: hidden}, after["vkeys"])) == [
        f"incomplete: the log's keys: what event {event['position']}, LogKeyCompromised, says is not shown"
    ]


def test_each_step_of_a_rotation_needs_the_one_before(world: World) -> None:
    serving, ledger = world.server.serving, world.server.ledger
    with pytest.raises(LookupError, match="has not begun"):
        serving.change_keys(ledger, "add")
    serving.seal()
    with pytest.raises(LookupError, match="Only one key signs this log"):
        serving.change_keys(ledger, "retire")
    serving.change_keys(ledger, "add")
    with pytest.raises(LookupError, match="has not signed with the new key yet"):
        serving.change_keys(ledger, "retire")
    with pytest.raises(LookupError, match="Two keys sign this log already"):
        serving.change_keys(ledger, "add")
    serving.seal()
    serving.change_keys(ledger, "retire")
    serving.seal()
    assert len(of_log(world)["vkeys"]) == 2
