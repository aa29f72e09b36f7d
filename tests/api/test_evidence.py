"""Evidence bundles over HTTP: what each shows to whom, that it holds, and that its making is recorded."""

from __future__ import annotations

import io
import json
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.proof import evidence_log, verify
from infra.proof.bundle_check import check_bundle
from tests.api.world import OTHER_ACCOUNT, OTHER_BRAND, OWN_ACCOUNT, OWN_BRAND, OWN_CREATOR, World, days, refused, told
from tests.conftest import TestDatabase
from tests.infra.proof.auditing import sql
from tests.infra.proof.witnessing import serving as witnessing
from tests.serving import Serving, new_ledger
from tests.waiting import until

pytestmark = [pytest.mark.usefixtures("unkept"), pytest.mark.long("bundles are made and verified by both verifiers")]


def make(world: World, client: httpx.Client | None = None, **asked: Any) -> bytes:
    """Seal what is recorded, and return a bundle."""
    if "size" not in asked:
        world.server.serving.seal()
    answer = (client or world.client).post("/v1/evidence", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    return answer.content


def verdicts(world: World, data: bytes, folder: Path, **options: Any) -> verify.Report:
    """Return what the verifier says to an auditor who kept the keys of the log."""
    log = told(world.client.get("/v1/log"), 200)
    path = folder / "bundle.zip"
    path.write_bytes(data)
    return check_bundle(path, keys=verify.vkeys([*log["vkeys"], log["evidence_vkey"]]), **options)


def complete(report: verify.Report) -> list[str]:
    """Return what a bundle is complete for, if all verdicts are good."""
    assert report.good, str(report)
    return [text for mark, text in report.lines if mark == "ok" and text.startswith("complete")]


def files(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        return {name.partition("/")[2]: bundle.read(name) for name in bundle.namelist()}


def events_in(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files(data)["data/events.ndjson"].splitlines()]


@pytest.fixture
def busy(world: World) -> tuple[World, dict[str, Any]]:
    """A ledger with one code that two brands have, and business of others."""
    code = world.running()
    world.share(code, OTHER_BRAND, OTHER_ACCOUNT)
    world.redeem(code, OTHER_ACCOUNT)
    world.running("creator-other", OTHER_BRAND, OTHER_ACCOUNT)
    world.generate()
    return world, code


def test_every_kind_of_evidence_holds_and_is_complete(busy: tuple[World, dict[str, Any]], tmp_path: Path) -> None:
    world, code = busy
    size = world.head()

    def shown(**asked: Any) -> list[str]:
        return complete(verdicts(world, make(world, **asked), tmp_path))

    of_code, of_permission = shown(kind="code", code_id=code["code_id"])
    assert of_code == f"complete for code {code['code_id']}: 6 events, found by searching all {size} entries"
    assert of_permission.startswith("complete for the permission that the code rests on: 1 events, ")
    [of_creator] = shown(kind="creator", creator_id=OWN_CREATOR)
    assert of_creator.startswith(f"complete for creator {OWN_CREATOR}: 8 events, ")
    assert len(shown(kind="range", first=2, last=5)) == 1
    assert len(shown(kind="range", since=days(-1), until=days(1))) == 2
    assert len(shown(kind="ledger")) == 1
    yes = shown(kind="answer", video_id=code["video_id"], advertiser_id=OWN_ACCOUNT)
    assert [text.rpartition(":")[0] for text in yes] == [
        f"complete for code {code['code_id']}, on which a yes rests",
        "complete for the creator's permission",
    ]
    no, of_its_creator = shown(kind="answer", video_id=code["video_id"], advertiser_id="account-none")
    assert of_its_creator.startswith("complete for the creator's permission: 1 events, ")
    on = f"all codes of video {code['video_id']}, on which a no rests"
    assert no == f"complete for {on}: 1 codes, found among all {size} events"
    [absent] = shown(kind="answer", video_id="video-none", advertiser_id=OWN_ACCOUNT)
    assert "0 codes" in absent


def test_the_same_evidence_at_the_same_checkpoint_is_the_same_to_the_byte(
    busy: tuple[World, dict[str, Any]],
) -> None:
    world, code = busy
    asked = {"kind": "code", "code_id": code["code_id"]}
    first = make(world, **asked)
    size = json.loads(files(first)["data/answer.json"])["log"]["size"]
    world.launch(code, "campaign-2")
    world.server.serving.seal()
    assert make(world, size=size, **asked) == first
    assert make(world, **asked) != first
    assert refused(world.client.post("/v1/evidence", json={**asked, "size": size - 1})) == (404, "log_unknown")


def test_a_brand_sees_its_own_part_of_a_shared_code_and_of_the_other_brand_nothing(
    busy: tuple[World, dict[str, Any]], tmp_path: Path
) -> None:
    world, code = busy
    brand = world.brand()
    data = make(world, brand, kind="code", code_id=code["code_id"])
    report = verdicts(world, data, tmp_path)
    assert len(complete(report)) == 1
    shown = events_in(data)
    assert [(event["type"], "body" in event) for event in shown] == [
        ("CodeGenerated", True),
        ("Shared", True),
        ("Redeemed", True),
        ("CampaignLaunched", True),
        ("Shared", False),
        ("Redeemed", False),
    ]
    # The bundle has no byte of the other brand, and nothing to confirm a guess at what its events say with.
    everything = events_in(make(world, kind="code", code_id=code["code_id"]))
    secrets = [OTHER_BRAND, OTHER_ACCOUNT, everything[0]["creator_stream"]]
    for withheld in everything[-2:]:
        secrets += [withheld["event_id"], withheld["command_id"], withheld["body_sha256"]]
    for name, content in files(data).items():
        assert [secret for secret in secrets if secret.encode() in content] == [], name
    # Its yes rests on what it may see.
    answer = make(world, brand, kind="answer", video_id=code["video_id"], advertiser_id=OWN_ACCOUNT)
    assert len(complete(verdicts(world, answer, tmp_path))) == 1
    assert OTHER_BRAND.encode() not in b"".join(files(answer).values())


def test_evidence_shows_what_the_key_may_read_and_no_more(busy: tuple[World, dict[str, Any]], tmp_path: Path) -> None:
    world, code = busy
    world.server.serving.seal()
    brand, creator = world.brand(), world.creator()
    other = world.as_role("brand", brand_ids=["brand-none"], advertiser_ids=["account-none"])

    def status(client: httpx.Client, **asked: Any) -> tuple[int, str]:
        return refused(client.post("/v1/evidence", json=asked))

    of_code = {"kind": "code", "code_id": code["code_id"]}
    assert status(other, **of_code) == (403, "not_allowed")
    for client in (brand, creator):
        for asked in ({"kind": "ledger"}, {"kind": "range", "first": 1, "last": 2}):
            assert status(client, **asked) == (403, "not_allowed")
    assert status(brand, kind="creator", creator_id=OWN_CREATOR) == (403, "not_allowed")
    assert status(creator, kind="creator", creator_id="creator-other") == (403, "not_allowed")
    assert status(creator, kind="answer", video_id=code["video_id"], advertiser_id=OWN_ACCOUNT) == (403, "not_allowed")
    assert status(brand, kind="answer", video_id=code["video_id"], advertiser_id=OTHER_ACCOUNT) == (403, "not_allowed")
    # A no shows codes of others.
    assert status(brand, kind="answer", video_id="video-none", advertiser_id=OWN_ACCOUNT) == (403, "not_allowed")
    for asked in (of_code, {"kind": "creator", "creator_id": OWN_CREATOR}):
        assert complete(verdicts(world, make(world, creator, **asked), tmp_path))


def test_what_there_is_not_or_is_not_sealed_yet_has_no_evidence(world: World) -> None:
    ledger = {"kind": "ledger"}
    assert refused(world.client.post("/v1/evidence", json=ledger)) == (404, "log_unknown")
    code = world.generate()
    assert refused(world.client.post("/v1/evidence", json=ledger)) == (404, "log_unknown")
    world.server.serving.seal()
    later = world.generate()
    for asked, problem in (
        ({"kind": "code", "code_id": later["code_id"]}, "log_unknown"),
        ({"kind": "code", "code_id": "01a2283c-8a3f-76fc-8a11-0f5b8645c85e"}, "code_unknown"),
        ({"kind": "creator", "creator_id": "nobody"}, "creator_unknown"),
        ({"kind": "range", "first": 1, "last": 9}, "log_unknown"),
        ({"kind": "range", "since": days(-9), "until": days(-8)}, "event_unknown"),
    ):
        assert refused(world.client.post("/v1/evidence", json=asked)) == (404, problem)
    for malformed in (
        {"kind": "code"},
        {"kind": "ledger", "code_id": code["code_id"]},
        {"kind": "range", "first": 2},
        {"kind": "range", "first": 2, "last": 1},
        {"kind": "range", "since": days(1), "until": days(0)},
        {"kind": "answer", "video_id": code["video_id"]},
    ):
        assert refused(world.client.post("/v1/evidence", json=malformed)) == (422, "malformed_body")


def test_a_bundle_names_its_witnesses_and_their_clocks_bound_its_times(
    busy: tuple[World, dict[str, Any]], tmp_path: Path
) -> None:
    world, code = busy
    serving = world.server.serving

    def cosigned() -> bool:
        """Seal and let the witness cosign; tell whether it has cosigned everything."""
        serving.seal()
        witness.know_keys(told(world.client.get("/v1/log"), 200)["vkeys"][:1])
        serving.cosign(witness.configured)
        of_log = told(world.client.get("/v1/log"), 200)["witnesses"]
        return [(one["name"], one["size"]) for one in of_log] == [("w1.example", world.head())]

    with witnessing(tmp_path / "w1", "w1.example", lambda: int(time.time())) as witness:
        until(cosigned)
        before = world.head()
        told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "over", "force": True}), 200)
        until(cosigned)
    [known] = told(world.client.get("/v1/log"), 200)["witnesses"]
    assert known["vkey"] == witness.witness.key.text
    asked = {"kind": "code", "code_id": code["code_id"]}
    data = make(world, **asked)
    assert files(data)["data/keys/witnesses.vkeys"].decode().split() == [known["vkey"]]
    assert f"data/proof/cosigned/{before}" in files(data)
    policy = verify.Policy(files(data)["data/keys/policy"].decode())
    report = verdicts(world, data, tmp_path, witnesses=verify.vkeys([known["vkey"]]), quorum=1, policy=policy)
    assert len(complete(report)) == 2
    revoked = next(event["position"] for event in events_in(data) if event["type"] == "Revoked")
    [said] = [text for _, text in report.lines if text.startswith(f"recorded between: event {revoked}, Revoked: after")]
    assert said.endswith("UTC, by witnesses")
    # What a bundle was made with is kept, whatever else is forgotten.
    forget = "DELETE FROM witnessed_checkpoints w USING log_trees t WHERE t.ledger_id = w.ledger_id AND t.ledger = %s"
    sql(world.server.database, forget, world.server.ledger)
    assert make(world, size=world.head(), **asked) == data
    part = make(world, kind="range", first=revoked, last=revoked)
    assert json.loads(files(part)["data/proof/run.json"])["first"] == before + 1
    assert verdicts(world, part, tmp_path, witnesses=verify.vkeys([known["vkey"]]), quorum=1).good


def ended_access(world: World) -> dict[str, Any]:
    """Return the latest access, once its end is recorded: that comes after the last byte."""

    def latest() -> dict[str, Any]:
        [access, *_] = told(world.client.get("/v1/accesses"), 200)["accesses"]
        return access  # type: ignore[no-any-return]

    until(lambda: latest()["complete"] is not None)
    return latest()


def test_the_making_of_evidence_is_recorded(busy: tuple[World, dict[str, Any]]) -> None:
    world, code = busy
    make(world, kind="code", code_id=code["code_id"])
    access = ended_access(world)
    assert (access["route"], access["format"], access["rows"], access["complete"], access["code_id"]) == (
        *("POST /v1/evidence", "application/zip", 7, True),
        code["code_id"],
    )
    assert access["query"] == {"kind": "code", "code_id": code["code_id"], "size": world.head()}


def test_erased_parts_are_named_with_the_event_that_erased_them(world: World, tmp_path: Path) -> None:
    code = world.generate()
    told(world.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "asked for"}), 200)
    for asked in ({"kind": "code", "code_id": code["code_id"]}, {"kind": "ledger"}):
        data = make(world, **asked)
        report = verdicts(world, data, tmp_path)
        assert complete(report)
        [erasure] = [event["position"] for event in events_in(data) if event["type"] == "CreatorErased"]
        assert any(
            text == f"erased lawfully: the sealed parts of 1 events, by the erasures at positions [{erasure}]"
            for _, text in report.lines
        )
        assert code["secret"].encode() not in data


def test_a_long_ledger_is_made_in_pages(
    busy: tuple[World, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = busy
    monkeypatch.setattr(evidence_log, "PAGE_EVENTS", 3)
    monkeypatch.setattr(evidence_log, "WIDTH", 4)
    assert complete(verdicts(world, make(world, kind="ledger"), tmp_path))
    assert complete(verdicts(world, make(world, kind="range", first=2, last=10), tmp_path))


def test_a_log_that_does_not_fit_what_was_signed_gives_no_evidence(database: TestDatabase) -> None:
    with Serving(database) as serving:
        server = new_ledger(serving)
        with server.client() as client:
            world = World(server, client)
            world.permit("one")
            world.permit("two")
            serving.seal()
            sql(database, "ALTER TABLE events DISABLE TRIGGER ALL")
            sql(database, "UPDATE events SET source = 'brand' WHERE position = 1")
            for asked in ({"kind": "ledger"}, {"kind": "range", "first": 1, "last": 1}):
                with pytest.raises(httpx.RemoteProtocolError):
                    client.post("/v1/evidence", json=asked)
            access = ended_access(world)
            assert (access["route"], access["complete"]) == ("POST /v1/evidence", False)
            assert refused(client.get("/v1/events/1/proof")) == (500, "proof_failed")


def test_the_report_names_the_answer_and_loads_nothing(world: World) -> None:
    code = world.generate()
    world.generate(video_id="7300000000000000042")
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "over"}), 200)
    bundle = files(make(world, kind="answer", video_id=code["video_id"], advertiser_id=OWN_ACCOUNT))
    page = bundle["data/REPORT.html"].decode()
    assert "Not authorized: the code was revoked" in page
    assert "Of each code of another video it shows the creator, the video" in page
    assert "http" not in page.replace("http-equiv", "")
    assert re.findall(r"<script[^>]*>", page) == ['<script type="application/zip" id="enclosed">', "<script>"]
    assert OWN_BRAND not in page
    assert b"902(13)" in bundle["data/CERTIFICATION.md"]
    assert bundle["data/verify.py"] == Path(verify.__file__).read_bytes()
