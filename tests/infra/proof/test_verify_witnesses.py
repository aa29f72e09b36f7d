"""Witnesses in bundles: as many as the verifier demands, and their clocks bound when events were recorded."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from api.evidence_bundle import Plan, everything
from domain.merkle import leaf_hash, range_parts, root_of
from infra.proof import verify
from infra.proof.evidence_log import MAX_BESIDE, MAX_COSIGNED, EvidenceRow, bounding, reaching
from infra.proof.notes import Cosigner
from tests import given
from tests.given import CODE, Story
from tests.infra.proof.bundles import AT, Log, bad

Bundle = dict[str, bytes]
DAY_S = 24 * 3600


def with_witnesses() -> Log:
    """Return a log with the story of one code, that three witnesses may cosign."""
    story = given.running()
    story.when(given.revoke(force=True))
    log = Log.of(story)
    log.witnesses = [Cosigner(f"w{number}.example", Ed25519PrivateKey.generate()) for number in (1, 2, 3)]
    return log


@pytest.fixture
def log() -> Log:
    return with_witnesses()


def bundle_of(log: Log, *signed_by: int, at: int = AT) -> Bundle:
    """Return the bundle about the code, whose checkpoint witnesses have cosigned."""
    signed = log.signed()
    note = signed.note + "".join(log.witnesses[number - 1].cosign(signed.checkpoint, at) for number in signed_by)
    bundle = log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE]))
    return {**bundle, "data/proof/checkpoint": note.encode()}


def keys_of(log: Log) -> list[verify.Key]:
    return [verify.Key(witness.key.text) for witness in log.witnesses]


def seconds(log: Log, position: int) -> int:
    """Return when an event states that it was recorded."""
    return int(log.rows[position - 1].event.recorded_at.timestamp())


def replace_time(row: EvidenceRow, by: timedelta) -> EvidenceRow:
    return row._replace(event=row.event._replace(recorded_at=row.event.recorded_at + by))


# -- How many must have signed


def test_a_quorum_of_the_named_witnesses_must_have_cosigned(log: Log, tmp_path: Path) -> None:
    bundle, witnesses = bundle_of(log, 1, 3), keys_of(log)
    assert log.verdicts(tmp_path, bundle, witnesses=witnesses, quorum=2).good
    assert bad(log.verdicts(tmp_path, bundle, witnesses=witnesses, quorum=3)) == [
        "quorum: 2 of the 3 witnesses that you named have cosigned; you demand 3"
    ]
    assert bad(log.verdicts(tmp_path, bundle, witnesses=witnesses)) == [
        "witnessed: w2.example has not cosigned this checkpoint"
    ]
    assert bad(log.verdicts(tmp_path, bundle, witnesses=witnesses, quorum=0)) == [
        "quorum: 2 of the 3 witnesses that you named have cosigned; you demand 0"
    ]


def test_a_witness_that_is_named_twice_is_one(log: Log, tmp_path: Path) -> None:
    witness = keys_of(log)[0]
    report = log.verdicts(tmp_path, bundle_of(log, 1), witnesses=[witness, witness], quorum=2)
    assert bad(report) == ["quorum: 1 of the 1 witnesses that you named have cosigned; you demand 2"]


def test_a_cosignature_of_another_state_does_not_count(log: Log, tmp_path: Path) -> None:
    line = log.witnesses[0].cosign(log.signed(2).checkpoint, AT)
    bundle = {**bundle_of(log), "data/proof/checkpoint": (log.signed().note + line).encode()}
    assert bad(log.verdicts(tmp_path, bundle, witnesses=keys_of(log), quorum=1)) == [
        "the signature of w1.example is wrong"
    ]


def policy_text(log: Log, quorum: str) -> str:
    lines = [f"log {log.signer.verifier_keys[0]} https://ledger.example", "# three witnesses"]
    lines += [f"witness {name} {key.key.text}" for name, key in zip("abc", log.witnesses, strict=True)]
    return "\n".join([*lines, "group others any b c", "group most 2 a b c", f"group both all a others\n{quorum}"])


@pytest.mark.parametrize(
    ("quorum", "signed_by", "met"),
    [
        ("most", (1, 3), True),
        ("most", (3,), False),
        ("both", (1, 2), True),
        ("both", (2, 3), False),
        ("a", (1,), True),
        ("a", (2,), False),
    ],
)
def test_a_policy_says_which_witnesses_must_have_cosigned(
    log: Log, tmp_path: Path, quorum: str, signed_by: tuple[int, ...], met: bool
) -> None:
    policy = verify.Policy(policy_text(log, f"quorum {quorum}"))
    report = log.verdicts(tmp_path, bundle_of(log, *signed_by), keys=[], policy=policy)
    assert bad(report) == (
        [] if met else [f"quorum: your policy demands {quorum}, and the witnesses above are not enough"]
    )


def test_a_policy_may_demand_no_witness_and_still_names_the_log(log: Log, tmp_path: Path) -> None:
    policy = verify.Policy(policy_text(log, "quorum none"))
    assert log.verdicts(tmp_path, bundle_of(log), keys=[], policy=policy).good
    other = verify.Policy(policy_text(Log(log.rows, witnesses=log.witnesses), "quorum none"))
    assert bad(log.verdicts(tmp_path, bundle_of(log), keys=[], policy=other)) == [
        f"signed: not by the key of {log.signer.origin} that you named"
    ]


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "quorum a\nquorum b",
        "quorum d",
        "group g 3 a b\nquorum g",
        "group g 0 a b\nquorum g",
        "group g all a a\nquorum g",
        "group g all a x\nquorum g",
        "group a all b\nquorum a",
        "group none all a\nquorum none",
        "majority a b\nquorum none",
        "witness d DOUBLE\nquorum none",
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(log: Log, lines: str) -> None:
    head = policy_text(log, "").split("group", 1)[0]
    text = head + lines.replace("DOUBLE", log.witnesses[0].key.text)
    with pytest.raises(verify.Wrong):
        verify.Policy(text)


def test_the_policy_of_a_bundle_names_the_witnesses_that_have_cosigned_it(log: Log, tmp_path: Path) -> None:
    signed = log.signed()
    cosigned = replace(signed, note=log.cosign(signed, AT), witness_keys=[w.key.text for w in log.witnesses[:2]])
    log.signed = lambda size=None: cosigned  # type: ignore[method-assign] # what witnesses have signed meanwhile
    bundle = log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE]))
    assert bundle["data/keys/witnesses.vkeys"].decode().split() == [w.key.text for w in log.witnesses[:2]]
    policy = verify.Policy(bundle["data/keys/policy"].decode())
    assert policy.quorum == "witnesses"
    assert log.verdicts(tmp_path, bundle, keys=[], policy=policy).good
    without = {**bundle, "data/proof/checkpoint": signed.note.encode()}
    assert bad(log.verdicts(tmp_path, without, keys=[], policy=policy)) == [
        "quorum: your policy demands witnesses, and the witnesses above are not enough"
    ]


# -- When it was recorded


def test_witnesses_bound_the_time_of_an_event_on_both_sides(log: Log, tmp_path: Path) -> None:
    last = len(log.rows)
    log.cosigned_at = {last - 1: seconds(log, last) - 20}
    report = log.verdicts(tmp_path, bundle_of(log, 1, 2, 3, at=seconds(log, last) + 15), witnesses=keys_of(log))
    assert report.good, str(report)
    since, until = (verify.clock(seconds(log, last) + by) for by in (-20, 15))
    assert (
        "--",
        f"recorded between: event {last}, {log.rows[-1].event.type}: after {since}, before {until} UTC, by witnesses",
    ) in (report.lines)
    [said] = [text for mark, text in report.lines if mark == "ok" and text.startswith("recorded between")]
    assert said.endswith("1 of these also not before it saw the log without them, the widest within 0:00:35")


def test_an_event_that_was_dated_back_is_flagged(log: Log, tmp_path: Path) -> None:
    last = len(log.rows)
    # The witness saw the log without the event, a day after the time that the event states.
    log.cosigned_at = {last - 1: seconds(log, last) + DAY_S}
    bundle = bundle_of(log, 1, 2, 3, at=seconds(log, last) + DAY_S + 15)
    assert bad(log.verdicts(tmp_path, bundle, witnesses=keys_of(log))) == [
        f"times: event {last} states that it was recorded before a witness saw the log without it"
    ]
    # Without the witness's key there is only the word of the log.
    assert log.verdicts(tmp_path, bundle).good


def test_the_later_of_two_witnesses_is_not_believed_about_what_was_not_there(log: Log, tmp_path: Path) -> None:
    last = len(log.rows)
    signed = log.signed(last - 1)
    lines = [
        witness.cosign(signed.checkpoint, seconds(log, last) + by)
        for witness, by in zip(log.witnesses[:2], (-20, DAY_S), strict=True)
    ]
    bundle = bundle_of(log, 1, 2, 3, at=seconds(log, last) + DAY_S)
    bundle |= {f"data/proof/cosigned/{last - 1}": (signed.note + "".join(lines)).encode()}
    assert log.verdicts(tmp_path, bundle, witnesses=keys_of(log)).good


def test_an_earlier_state_that_contradicts_the_signed_one_is_a_fork(log: Log, tmp_path: Path) -> None:
    other = Log([*log.rows[:2], replace_time(log.rows[2], timedelta(seconds=1)), *log.rows[3:]], log.signer)
    other.witnesses = log.witnesses
    bundle = bundle_of(log, 1, 2, 3)
    bundle |= {"data/proof/cosigned/3": other.cosign(other.signed(3), AT).encode()}
    [verdict] = bad(log.verdicts(tmp_path, bundle, witnesses=keys_of(log)))
    assert verdict.startswith("FORK: a witness has cosigned a state that contradicts this one:")
    larger = Log([*log.rows, *log.rows], log.signer)
    larger.witnesses = log.witnesses
    bundle["data/proof/cosigned/3"] = larger.cosign(larger.signed(), AT).encode()
    [verdict] = bad(log.verdicts(tmp_path, bundle, witnesses=keys_of(log)))
    assert verdict.startswith("cosigned: data/proof/cosigned/3 is of another log, or does not fit")


def test_a_cosigned_state_whose_signature_is_wrong_bounds_nothing(log: Log, tmp_path: Path) -> None:
    last = len(log.rows)
    log.cosigned_at = {last - 1: seconds(log, last) - 20}
    bundle = bundle_of(log, 1, 2, 3)
    name = f"data/proof/cosigned/{last - 1}"
    text, _, signatures = bundle[name].decode().partition("\n\n")
    origin, size, root = text.split("\n")
    forged = base64.b64encode(bytes(32)).decode()
    assert root != forged
    bundle[name] = f"{origin}\n{size}\n{forged}\n\n{signatures}".encode()
    assert bad(log.verdicts(tmp_path, bundle, witnesses=keys_of(log))) == ["the signature of w1.example is wrong"]


def test_a_range_reaches_to_the_cosigned_states_beside_it(log: Log, tmp_path: Path) -> None:
    log.cosigned_at = {2: seconds(log, 3) - 5, 5: seconds(log, 5) + 5}
    run = reaching([2, 5], (4, 4))
    assert run == (3, 5)
    plan = Plan({"kind": "range", "first": 4, "last": 4}, range(4, 5), run, everything, "auditor")
    bundle = log.bundle(plan)
    assert sorted(name for name in bundle if "/cosigned/" in name) == [f"data/proof/cosigned/{n}" for n in (2, 5)]
    signed = log.signed()
    bundle["data/proof/checkpoint"] = log.cosign(signed, seconds(log, 5) + DAY_S).encode()
    report = log.verdicts(tmp_path, bundle, witnesses=keys_of(log))
    assert report.good, str(report)
    since, until = verify.clock(seconds(log, 3) - 5), verify.clock(seconds(log, 5) + 5)
    assert any(f"after {since}, before {until} UTC" in text for _, text in report.lines)


def test_the_past_of_a_log_follows_from_every_run_of_its_entries() -> None:
    leaves = [leaf_hash(bytes([number])) for number in range(24)]
    for size in range(1, len(leaves) + 1):
        for first in range(1, size + 1):
            run = verify.Run.__new__(verify.Run)
            run.first, run.last, run.leaves = first, size, leaves[first - 1 : size]
            run.beside = [root_of(leaves[part.start : part.stop]) for part in range_parts(first - 1, size, size)]
            for past in range(size + 1):
                known = past >= max(first - 1, 1)
                assert run.root_at(past) == (root_of(leaves[:past]) if known else None), (size, first, past)


def test_a_bundle_has_the_cosigned_states_next_to_its_events_and_a_bounded_number() -> None:
    sizes = [2, 4, 6, 8, 100]
    assert bounding(sizes, [5], (1, 200)) == [4, 6]
    assert bounding(sizes, [1, 7], (1, 200)) == [2, 6, 8]
    assert bounding(sizes, [150], (1, 200)) == [100]
    assert bounding(sizes, [5], (6, 200)) == [6]
    assert bounding(sizes, [], (1, 200)) == bounding([], [5], (1, 200)) == []
    many = bounding(range(1, 1_000), range(1, 1_000), (1, 1_000))
    assert (len(many) <= MAX_COSIGNED + 1, many[0], many[-1]) == (True, 1, 999)
    assert reaching([10, MAX_BESIDE + 100], (MAX_BESIDE + 50, MAX_BESIDE + 60)) == (MAX_BESIDE + 50, MAX_BESIDE + 100)


def test_a_story_without_witnesses_says_so(tmp_path: Path) -> None:
    story: Story = given.generated()
    log = Log.of(story)
    report = log.verdicts(tmp_path, log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE])))
    assert ("--", "not witnessed: nobody but the log's operator has confirmed this state of the log") in report.lines
    assert any(mark == "--" and text.startswith("recorded between: the times") for mark, text in report.lines)
