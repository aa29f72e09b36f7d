"""Usage rights beside a code: stated, read, and the end that binds in every answer."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, TERMS, World, days, refused, told

CONTRACT = "Contract of somebody, 117"


def state_rights(world: World, code: dict[str, Any], **rights: Any) -> dict[str, Any]:
    return told(world.client.put(f"/v1/codes/{code['code_id']}/usage-rights", json=rights), 200)


def ends(answer: dict[str, Any]) -> tuple[datetime, str]:
    return datetime.fromisoformat(answer["ends_at"]), answer["ends_by"]


def test_rights_are_stated_and_bind_where_they_end_first(world: World) -> None:
    code = world.generate()
    assert (code["usage_rights"], ends(code)) == (None, (datetime.fromisoformat(code["expires_at"]), "code"))
    until = days(10)
    stated = state_rights(
        world, code, until=until, platforms=["tiktok", "instagram"], edits_allowed=False, contract_reference=CONTRACT
    )
    assert {name: value for name, value in stated["usage_rights"].items() if name not in {"until", "stated_at"}} == {
        "platforms": ["instagram", "tiktok"],
        "edits_allowed": False,
    }
    assert ends(stated) == (datetime.fromisoformat(until), "rights")
    assert (stated["version"], stated["state"], stated["live"]) == (2, "generated", True)
    read = world.read(code)
    assert {name: read[name] for name in ("usage_rights", "ends_at", "ends_by")} == {
        name: stated[name] for name in ("usage_rights", "ends_at", "ends_by")
    }
    assert world.read(code, as_of=stated["position"] - 1)["usage_rights"] is None
    # The same again records nothing; a later end is no longer the first one.
    again = {"until": until, "platforms": ["instagram", "tiktok"], "edits_allowed": False}
    assert state_rights(world, code, **again, contract_reference=CONTRACT)["position"] == stated["position"]
    assert ends(state_rights(world, code, until=days(90))) == (datetime.fromisoformat(code["expires_at"]), "code")


def test_rights_come_with_a_new_code_in_one_answer(world: World) -> None:
    until = days(5)
    code = world.generate(usage_rights={"until": until, "contract_reference": CONTRACT})
    assert (ends(code), code["version"]) == ((datetime.fromisoformat(until), "rights"), 2)
    position = code["position"]
    assert (position, world.head()) == (3, 3)


def test_the_reference_to_the_contract_is_sealed_and_read_with_the_notes(world: World) -> None:
    code = world.generate()
    position = state_rights(world, code, platforms=["tiktok"], contract_reference=CONTRACT)["position"]
    world.share(code)
    trail = world.client.get("/v1/events").text + world.client.get(f"/v1/events/{position}").text
    assert CONTRACT not in trail
    history = f"/v1/codes/{code['code_id']}/history"
    stated = told(world.creator().get(history), 200)["events"][1]
    assert stated["body"]["contract_reference"] == CONTRACT
    assert stated["changes"] == [{"field": "platforms", "before": None, "after": ["tiktok"]}]
    assert CONTRACT not in world.brand().get(history).text
    [event] = [
        one
        for section in told(world.client.get(f"/v1/dossiers/codes/{code['code_id']}"), 200)["sections"]
        for one in section["entries"]
        if one.get("type") == "UsageRightsStated"
    ]
    assert event["body"]["contract_reference"] == CONTRACT
    told(world.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "asked for"}), 200)
    after = told(world.client.get(history), 200)["events"]
    assert CONTRACT not in json.dumps(after)
    assert refused(world.client.put(f"/v1/codes/{code['code_id']}/usage-rights", json={})) == (409, "creator_erased")


def test_the_question_says_no_from_the_end_of_the_rights_on_and_which_end_binds(world: World) -> None:
    code = world.running()
    until = days(10)
    stated = state_rights(world, code, until=until)
    world.client.put(f"/v1/advertisers/{OWN_ACCOUNT}", json={"brand_id": "acme"})

    def ask(**more: Any) -> dict[str, Any]:
        asked = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": world.head()} | more
        return told(world.client.get("/v1/authorizations", params=asked), 200)

    now, later = ask(), ask(at=days(11))
    assert (now["authorized"], now["reason"], *ends(now)) == (
        *(True, "authorized"),
        *(datetime.fromisoformat(until), "rights"),
    )
    assert (later["authorized"], later["reason"], later["rights_until"]) == (False, "rights_ended", now["rights_until"])
    assert stated["position"] in later["evidence"]
    assert "the usage rights had ended at" in later["summary"]
    batch = world.client.post(
        "/v1/authorizations/batch",
        content=f"video_id,advertiser_id,at\n{code['video_id']},{OWN_ACCOUNT},{days(11)}\n",
        headers={"Content-Type": "text/csv", "Accept": "application/x-ndjson"},
    )
    [line] = [json.loads(line) for line in batch.text.splitlines() if "reason" in line]
    assert (line["reason"], line["ends_by"]) == ("rights_ended", "rights")


def test_campaigns_say_that_the_rights_stop_them_and_lists_find_them(world: World) -> None:
    code, other = world.running(), world.generate("creator-other")
    until = days(1)
    stated = state_rights(world, code, until=until)
    [campaign] = stated["campaigns"]
    assert (datetime.fromisoformat(campaign["stops_at"]), campaign["stop_reason"], campaign["running"]) == (
        *(datetime.fromisoformat(until), "rights_end"),
        True,
    )
    asked: dict[str, Any] = {"at_least": world.head(), "stop_reason": "rights_end"}
    [listed] = told(world.client.get("/v1/campaigns", params=asked), 200)["campaigns"]
    assert (listed["stops_at"], listed["stop_reason"]) == (campaign["stops_at"], "rights_end")
    for more in ({}, {"as_of": world.head()}):
        asked = {"at_least": world.head(), "rights_until": days(2), **more}
        [found] = told(world.client.get("/v1/codes", params=asked), 200)["codes"]
        assert {name: found[name] for name in ("code_id", "usage_rights", "ends_at", "ends_by")} == {
            name: stated[name] for name in ("code_id", "usage_rights", "ends_at", "ends_by")
        }
    asked = {"at_least": world.head(), "rights_until": days(0.5)}
    assert told(world.client.get("/v1/codes", params=asked), 200)["codes"] == []
    assert other["usage_rights"] is None


def test_a_launch_warns_that_the_rights_end_before_the_campaign(world: World) -> None:
    code = world.generate(usage_rights={"until": days(1)})
    world.share(code)
    world.redeem(code)
    [warning] = world.launch(code)["warnings"]
    assert warning.endswith("when the usage rights end, before its own end.")


@pytest.mark.parametrize(
    ("rights", "pointer"),
    [
        ({"platforms": ["Tik Tok"]}, "/platforms/0"),
        ({"platforms": ["tiktok"] * 21}, "/platforms"),
        ({"until": "soon"}, "/until"),
        ({"contract_reference": " "}, "/contract_reference"),
        ({"edits_allowed": "yes"}, "/edits_allowed"),
    ],
)
def test_what_cannot_be_usage_rights_is_refused_at_its_field(
    world: World, rights: dict[str, Any], pointer: str
) -> None:
    code = world.generate()
    answer = world.client.put(f"/v1/codes/{code['code_id']}/usage-rights", json=rights)
    assert refused(answer) == (422, "malformed_body")
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]


def test_a_creator_states_the_rights_of_their_own_codes_and_obeys_if_match(world: World) -> None:
    code, other = world.generate(), world.generate("creator-other")
    path = f"/v1/codes/{code['code_id']}/usage-rights"
    told(world.creator().put(path, json={"until": days(3)}, headers={"If-Match": '"1"'}), 200)
    assert refused(world.creator().put(path, json={}, headers={"If-Match": '"1"'})) == (412, "stale_version")
    others = f"/v1/codes/{other['code_id']}/usage-rights"
    assert refused(world.creator().put(others, json={})) == (403, "not_allowed")
    assert refused(world.brand().put(path, json={})) == (403, "not_allowed")


def test_rights_that_were_agreed_earlier_count_from_then_on(world: World) -> None:
    world.permit(effective_at=days(-20))
    facts = {"creator_id": OWN_CREATOR, "video_id": "video-late", "terms_version": TERMS, "secret": "#late/secret=="}
    code = told(
        world.client.post("/v1/codes", json=facts | {"starts_at": days(-20), "days": 60, "effective_at": days(-20)}),
        201,
    )
    state_rights(world, code, until=days(30), effective_at=days(-2))
    state_rights(world, code, until=days(5), effective_at=days(-10))
    assert ends(world.read(code))[1] == "rights"
    assert datetime.fromisoformat(world.read(code)["usage_rights"]["until"]) > datetime.fromisoformat(days(29))
    assert datetime.fromisoformat(world.read(code, at=days(-5))["usage_rights"]["until"]) < datetime.fromisoformat(
        days(6)
    )
