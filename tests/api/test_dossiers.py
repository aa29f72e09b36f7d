"""Dossiers: everything about one thing, as its reader may read it, in one answer, and one entry of the access log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import dossiers
from api.export_files import ExportError, verify_export
from tests.api.test_access_log import accesses
from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    World,
    refused,
    told,
)
from tests.waiting import until

NOTE = "Position 2 named the wrong brand."


def dossier(world: World, path: str, client: httpx.Client | None = None, **query: Any) -> dict[str, Any]:
    """Read a dossier that has all that was recorded."""
    asked = {"at_least": world.head()} | query
    return told((client or world.client).get(f"/v1/dossiers/{path}", params=asked), 200)


def parts(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {one["name"]: one["entries"] for one in content["sections"]}


def types(entries: list[dict[str, Any]]) -> list[str]:
    return [one["type"] for one in entries]


@pytest.fixture
def busy(world: World) -> tuple[World, dict[str, Any]]:
    """A code with a campaign and a note that two brands have, and business of others."""
    code = world.running()
    told(world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": NOTE}), 201)
    world.share(code, OTHER_BRAND, OTHER_ACCOUNT)
    world.running(OTHER_CREATOR, OTHER_BRAND, OTHER_ACCOUNT)
    return world, code


def test_a_creators_dossier_has_everything_of_the_creator_and_nothing_of_others(
    busy: tuple[World, dict[str, Any]],
) -> None:
    world, code = busy
    world.permit(enabled=False)
    content = dossier(world, f"creators/@{OWN_CREATOR}")
    found = parts(content)
    assert (content["kind"], content["id"], content["complete"], content["left_out"]) == (
        "creator",
        OWN_CREATOR,
        True,
        [],
    )
    assert content["evidence"] == {"kind": "creator", "creator_id": OWN_CREATOR}
    assert types(found["permission"]) == ["PermissionEnabled", "PermissionDisabled"]
    assert found["permission"][1]["changes"] == [{"field": "enabled", "before": True, "after": False}]
    for name, count in (("codes", 1), ("shares", 2), ("redemptions", 1), ("campaigns", 1)):
        assert [one["code_id"] for one in found[name]] == [code["code_id"]] * count, name
    assert types(found["events"]) == [
        *("PermissionEnabled", "CodeGenerated", "Shared", "Redeemed", "CampaignLaunched", "NoteAdded", "Shared"),
        "PermissionDisabled",
    ]
    assert found["events"][5]["body"]["text"] == NOTE


def test_a_codes_dossier_has_its_state_the_permission_it_rests_on_and_what_each_event_changed(
    busy: tuple[World, dict[str, Any]],
) -> None:
    world, code = busy
    content = dossier(world, f"codes/{code['code_id']}")
    found = parts(content)
    read = world.read(code)
    assert found["code"] == [{name: read[name] for name in found["code"][0]}]
    assert types(found["permission"]) == ["PermissionEnabled"]
    history = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    assert [{**one, "proof": None} for one in found["events"]] == [{**one, "proof": None} for one in history]
    assert content["evidence"] == {"kind": "code", "code_id": code["code_id"]}


def test_a_creator_reads_their_own_dossier_and_sees_that_somebody_looked_but_not_who(
    busy: tuple[World, dict[str, Any]],
) -> None:
    world, _code = busy
    auditor, creator = world.as_role("auditor"), world.creator()
    told(auditor.get(f"/v1/creators/{OWN_CREATOR}/permission/history"), 200)
    own = parts(dossier(world, f"creators/{OWN_CREATOR}", creator))
    whole = parts(dossier(world, f"creators/{OWN_CREATOR}"))
    assert {**own, "accesses": None, "events": types(own["events"])} == {
        **whole,
        "accesses": None,
        "events": types(whole["events"]),
    }
    [seen] = own["accesses"]
    assert (seen["route"], seen["role"]) == ("GET /v1/creators/{creator_id}/permission/history", "auditor")
    assert seen.keys() == {*("at", "route", "format", "reads", "rows", "complete", "code_id", "video_id", "role")}
    assert refused(creator.get(f"/v1/dossiers/creators/{OTHER_CREATOR}")) == (403, "not_allowed")
    assert refused(creator.get(f"/v1/dossiers/brands/{OWN_BRAND}")) == (403, "not_allowed")


def test_a_brand_reads_what_concerns_it_and_no_note_permission_or_access(busy: tuple[World, dict[str, Any]]) -> None:
    world, code = busy
    brand = world.brand()
    content = dossier(world, f"codes/{code['code_id']}", brand)
    found = parts(content)
    assert [one["section"] for one in content["left_out"]] == ["permission", "accesses"]
    assert list(found) == ["code", "shares", "redemptions", "campaigns", "events"]
    assert types(found["events"]) == ["CodeGenerated", "Shared", "Redeemed", "CampaignLaunched", "NoteAdded"]
    given = parts(dossier(world, f"brands/{OWN_BRAND}", brand))
    assert ([one["code_id"] for one in given["codes"]], types(given["events"])) == ([code["code_id"]], ["Shared"])
    account = parts(dossier(world, f"advertisers/{OWN_ACCOUNT}", brand))
    assert types(account["events"]) == ["Shared", "Redeemed", "CampaignLaunched"]
    for shown in (found, given, account):
        text = json.dumps(shown)
        assert NOTE not in text
        assert OTHER_BRAND not in text
        assert OTHER_ACCOUNT not in text
    assert refused(brand.get(f"/v1/dossiers/brands/{OTHER_BRAND}")) == (403, "not_allowed")


def test_a_video_a_brand_an_account_and_a_key_have_dossiers_too(busy: tuple[World, dict[str, Any]]) -> None:
    world, code = busy
    told(world.client.put(f"/v1/advertisers/{OWN_ACCOUNT}", json={"brand_id": OWN_BRAND}), 200)
    told(world.client.put(f"/v1/videos/{code['video_id']}", json={"creator_id": OWN_CREATOR}), 200)
    video = parts(dossier(world, f"videos/{code['video_id']}"))
    assert ([one["code_id"] for one in video["codes"]], types(video["events"])[-1]) == ([code["code_id"]], "VideoBound")
    assert types(parts(dossier(world, f"brands/{OWN_BRAND}"))["events"]) == ["Shared", "AdvertiserNamed"]
    assert types(parts(dossier(world, f"advertisers/{OWN_ACCOUNT}"))["events"])[-1] == "AdvertiserNamed"
    operator = world.as_role("operator")
    told(operator.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": False}), 200)
    key_id = told(world.client.get("/v1/keys"), 200)["keys"][0]["key_id"]
    told(operator.get("/v1/events"), 200)
    key = parts(dossier(world, f"keys/{key_id}"))
    assert (key["key"][0]["role"], types(key["events"])) == ("operator", ["PermissionDisabled"])
    assert "GET /v1/events" in [one["route"] for one in key["accesses"]]
    assert refused(world.client.get(f"/v1/dossiers/keys/{world.head():032x}"))[0] == 404


def test_a_dossier_is_one_entry_of_the_access_log_under_what_it_is_about(busy: tuple[World, dict[str, Any]]) -> None:
    world, code = busy
    dossier(world, f"creators/{OWN_CREATOR}")
    dossier(world, f"codes/{code['code_id']}")
    # Beside the reads by which this test learned of the ledger's last position.
    of_code, of_creator = (one for one in accesses(world) if one["route"] != "GET /v1/events")
    assert (of_creator["route"], of_creator["creator_id"], of_creator["query"]) == (
        "GET /v1/dossiers/creators/{creator_id}",
        OWN_CREATOR,
        {"kind": "creator", "id": OWN_CREATOR, "format": "json"},
    )
    assert of_creator["rows"] > 10
    assert (of_code["code_id"], of_code["creator_id"], of_code["video_id"]) == (
        code["code_id"],
        OWN_CREATOR,
        code["video_id"],
    )


def test_the_file_has_all_of_it_and_says_that_it_is_whole(
    busy: tuple[World, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _code = busy
    monkeypatch.setattr(dossiers, "PAGE_ENTRIES", 2)
    short = dossier(world, f"creators/{OWN_CREATOR}", limit=1)
    assert (short["complete"], [len(one["entries"]) for one in short["sections"]][:2]) == (False, [1, 1])
    whole = dossier(world, f"creators/{OWN_CREATOR}")
    asked: dict[str, Any] = {"format": "ndjson", "at_least": world.head()}
    answer = world.client.get(f"/v1/dossiers/creators/{OWN_CREATOR}", params=asked)
    first, *lines, last = [json.loads(line) for line in answer.text.splitlines()]
    assert {**first["dossier"], "made_at": None} == {
        **{name: value for name, value in whole.items() if name not in {"sections", "complete"}},
        "made_at": None,
    }
    found: dict[str, list[Any]] = {}
    for line in lines:
        found.setdefault(line["section"], []).append(line["entry"])
    of_whole = parts(whole)
    for name in ("permission", "codes", "shares", "redemptions", "campaigns"):
        assert [{**one, "proof": None} for one in found[name]] == [{**one, "proof": None} for one in of_whole[name]]
    assert types(found["events"]) == types(of_whole["events"])
    assert {name: len(entries) for name, entries in found.items()} == last["trailer"]["sections"]
    path = tmp_path / "dossier.ndjson"
    path.write_bytes(answer.content)
    assert str(verify_export(path)) == f"{len(lines) + 1} lines of a dossier"
    path.write_bytes(answer.content.replace(b"Shared", b"shared"))
    with pytest.raises(ExportError, match="was changed"):
        verify_export(path)
    route = "GET /v1/dossiers/creators/{creator_id}"

    def ended() -> list[tuple[Any, ...]]:
        """Return the newest entry, which is ended after the last byte."""
        found = [one for one in accesses(world) if one["route"] == route][:1]
        return [(one["rows"], one["format"], one["complete"]) for one in found]

    until(lambda: ended() == [(len(lines), "application/x-ndjson", True)])


def test_what_nobody_knows_has_an_empty_dossier_and_no_evidence(world: World) -> None:
    content = told(world.client.get("/v1/dossiers/creators/nobody"), 200)
    assert content["evidence"] is None
    assert {name: len(entries) for name, entries in parts(content).items()} == dict.fromkeys(
        ("permission", "codes", "shares", "redemptions", "campaigns", "events", "accesses"), 0
    )
    code_id = "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"
    assert refused(world.client.get(f"/v1/dossiers/codes/{code_id}")) == (404, "code_unknown")
