"""A code whose secret is not known: imported from a row without one, redeemed by its id, completed once."""

from __future__ import annotations

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.test_imports import fates, send, sheet
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, days, refused, told

SECRET, OTHER_SECRET = "#k9/Tz+the+string+of+a+code==", "#m2/Xy+another+string+of+it=="
HEAD = ["Creator", "Video", "Spark Code", "Start", "End"]
LATER = days(400)[:10]
ROW = ["ana", "video-a", "", "2026-01-01", LATER]


def attach(world: World, code: dict[str, Any], secret: str = SECRET, client: Any = None) -> Any:
    return (client or world.client).post(f"/v1/codes/{code['code_id']}/secret", json={"secret": secret})


def import_of(world: World, *rows: list[str], **query: Any) -> list[tuple[int, str, str | None]]:
    return fates(send(world, sheet(*rows, head=HEAD), record="true", permission="true", **query))


def types(world: World, code: dict[str, Any]) -> list[str]:
    events = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    return [event["type"] for event in events]


def test_a_code_without_a_secret_has_no_mask_and_cannot_be_revealed(world: World) -> None:
    code = world.without_secret()
    assert code["masked"] is None
    (listed,) = told(world.client.get("/v1/codes", params={"at_least": code["position"]}), 200)["codes"]
    assert listed["masked"] is None
    reveal = world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"})
    assert refused(reveal) == (409, "secret_unknown")
    (event,) = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    assert "a code whose secret is not known" in event["summary"]
    assert {"masked", "fingerprint", "secret", "secret_given"} & {n for n, v in event["body"].items() if v} == set()


def test_an_operator_redeems_it_by_its_id_and_nobody_else_does(world: World) -> None:
    code = world.without_secret()
    asked = {"code_id": code["code_id"], "advertiser_id": OWN_ACCOUNT}
    assert refused(world.brand().post("/v1/redemptions", json=asked)) == (403, "not_allowed")
    redeemed = told(world.client.post("/v1/redemptions", json=asked), 201)
    assert (redeemed["code_id"], redeemed["masked"]) == (code["code_id"], None)
    told(world.client.post("/v1/redemptions", json=asked), 200)
    question = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": redeemed["position"]}
    assert told(world.client.get("/v1/authorizations", params=question), 200)["authorized"]


@pytest.mark.parametrize(
    "named", [{}, {"secret": SECRET, "code_id": "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"}, {"secret": None}]
)
def test_a_redemption_names_its_code_in_one_way(world: World, named: dict[str, Any]) -> None:
    answer = world.client.post("/v1/redemptions", json={"advertiser_id": OWN_ACCOUNT} | named)
    assert refused(answer) == (422, "malformed_body")


def test_a_code_that_nobody_knows_is_not_found_by_its_id(world: World) -> None:
    asked = {"code_id": "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20", "advertiser_id": OWN_ACCOUNT}
    assert refused(world.client.post("/v1/redemptions", json=asked)) == (404, "code_unknown")


def test_a_secret_is_attached_once_and_then_is_like_any_other(world: World) -> None:
    code = world.without_secret()
    attached = told(attach(world, code), 201)
    assert (attached["masked"], attached["version"], "secret" in attached) == (f"…{SECRET[-4:]}", 2, False)
    told(attach(world, code, f'  "{SECRET}" '), 200)
    assert refused(attach(world, code, OTHER_SECRET)) == (409, "secret_known")
    asked = {"secret": SECRET, "advertiser_id": OWN_ACCOUNT}
    assert told(world.brand().post("/v1/redemptions", json=asked), 201)["code_id"] == code["code_id"]
    reveal = told(world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"}), 200)
    assert reveal["secret"] == SECRET
    assert types(world, code) == ["CodeGenerated", "CodeSecretAttached", "Redeemed", "CodeRevealed"]
    (listed,) = told(world.client.get("/v1/codes", params={"at_least": reveal["position"]}), 200)["codes"]
    assert listed["masked"] == f"…{SECRET[-4:]}"
    trail = world.client.get("/v1/events", params={"after": 0}).text
    assert SECRET not in trail


def test_the_secret_of_another_code_is_not_attached(world: World) -> None:
    other = world.generate(secret=SECRET)
    answer = attach(world, world.without_secret())
    assert (refused(answer), answer.json()["conflict_id"]) == ((409, "secret_exists"), other["code_id"])


def test_of_two_codes_that_get_one_secret_at_once_one_has_it(world: World) -> None:
    codes = [world.without_secret() for _ in range(4)]
    with ThreadPoolExecutor(len(codes)) as pool:
        statuses = sorted(pool.map(lambda code: attach(world, code).status_code, codes))
    assert statuses == [201, 409, 409, 409]
    assert sorted(world.read(code)["masked"] or "" for code in codes) == ["", "", "", f"…{SECRET[-4:]}"]


def test_of_two_secrets_that_one_code_gets_at_once_it_has_one(world: World) -> None:
    code = world.without_secret()
    with ThreadPoolExecutor(4) as pool:
        tries = [f"#secret+number/{number}+of+the+code==" for number in range(4)]
        statuses = sorted(pool.map(lambda secret: attach(world, code, secret).status_code, tries))
    assert (statuses, types(world, code)) == ([201, 409, 409, 409], ["CodeGenerated", "CodeSecretAttached"])


def test_a_creator_attaches_the_secret_of_an_own_code_only(world: World) -> None:
    own, others = world.without_secret(), world.without_secret("somebody.else")
    client = world.creator()
    assert refused(attach(world, others, client=client)) == (403, "not_allowed")
    told(attach(world, own, client=client), 201)


def test_guesses_at_secrets_by_attaching_them_are_counted(world: World) -> None:
    known = world.generate("somebody.else", secret=SECRET)
    answer = attach(world, world.without_secret(), client=world.creator())
    # Whose code it is, is not said.
    assert (refused(answer), "conflict_id" in answer.json(), known["code_id"] in answer.text) == (
        (409, "secret_exists"),
        False,
        False,
    )


def test_an_erasure_takes_a_secret_that_was_attached(world: World) -> None:
    code, other = world.without_secret(), world.without_secret()
    told(attach(world, code), 201)
    told(world.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "asked for"}), 200)
    reveal = world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"})
    assert refused(reveal) == (409, "creator_erased")
    assert refused(attach(world, other, OTHER_SECRET)) == (409, "creator_erased")


def test_the_same_row_without_a_secret_again_records_nothing(world: World) -> None:
    assert import_of(world, ROW) == [(2, "new", None)]
    assert import_of(world, ROW, ROW) == [(2, "known", None), (3, "known", None)]


def test_rows_without_a_secret_are_judged_after_those_before_them(world: World) -> None:
    rows = [ROW, ROW, ["ana", "video-a", "", "2026-01-01", days(300)[:10]], ["ben", "video-b", "", "", LATER]]
    expected = [(2, "new", None), (3, "known", None), (4, "differs", None), (5, "new", None)]
    assert fates(send(world, sheet(*rows, head=HEAD), permission="true")) == expected
    assert import_of(world, *rows) == expected


def test_a_row_that_brings_the_secret_completes_the_code(world: World) -> None:
    import_of(world, ROW)
    complete = [*ROW[:2], SECRET, *ROW[3:]]
    dry = fates(send(world, sheet(complete, complete, head=HEAD)))
    assert dry == [(2, "changed", None), (3, "known", None)]
    assert import_of(world, complete, complete) == dry
    (code,) = told(world.client.get("/v1/codes", params={"at_least": world.head()}), 200)["codes"]
    assert (types(world, code), code["masked"]) == (["CodeGenerated", "CodeSecretAttached"], f"…{SECRET[-4:]}")
    # And the row without it still speaks of the same code.
    assert import_of(world, ROW) == [(2, "known", None)]


def test_a_secret_is_not_attached_to_a_code_that_the_row_contradicts(world: World) -> None:
    import_of(world, ROW)
    other_end = ["ana", "video-a", SECRET, "2026-01-01", days(300)[:10]]
    assert import_of(world, other_end) == [(2, "refused", "live_code_exists")]
    assert import_of(world, ["ben", *other_end[1:4], LATER]) == [(2, "refused", "live_code_exists")]


def test_a_row_that_may_be_about_several_codes_is_unclear(world: World) -> None:
    import_of(world, ROW)
    (code,) = told(world.client.get("/v1/codes", params={"at_least": world.head()}), 200)["codes"]
    revocation = {"reason": "wrong", "effective_at": "2026-01-05T00:00:00Z"}
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=revocation), 200)
    assert import_of(world, ["ana", "video-a", "", "2026-01-06", LATER]) == [(2, "new", None)]
    head = [*HEAD, "Date added"]
    row = ["ana", "video-a", "", "", LATER, "2026-01-07"]
    assert fates(send(world, sheet(row, head=head))) == [(2, "unclear", "several_codes")]


def test_an_export_with_codes_without_a_secret_is_imported_without_a_difference(world: World) -> None:
    world.without_secret()
    code = world.without_secret()
    told(attach(world, code), 201)
    export = world.client.get("/v1/exports/codes", params={"at_least": world.head()})
    rows = list(csv.DictReader(io.StringIO(export.text)))[:-1]
    assert sorted(row["masked"] for row in rows) == ["", f"…{SECRET[-4:]}"]
    assert fates(send(world, export.content, record="true")) == [(2, "known", None), (3, "known", None)]


def test_evidence_of_a_code_without_a_secret_is_made(world: World) -> None:
    code = world.without_secret()
    told(attach(world, code), 201)
    world.server.serving.seal()
    answer = world.client.get(f"/v1/dossiers/codes/{code['code_id']}", params={"at_least": world.head()})
    assert SECRET not in json.dumps(told(answer, 200))


def test_a_row_without_a_secret_needs_an_end_and_terms(world: World) -> None:
    no_end = send(world, sheet(["ana", "video-a", "", "", ""], head=HEAD), permission="true")
    assert fates(no_end) == [(2, "unclear", "no_end")]
    no_video = send(world, sheet(["ana", "", "", "", LATER], head=HEAD), permission="true")
    assert fates(no_video) == [(2, "unclear", "no_video")]
    no_terms = world.client.post("/v1/imports", content=sheet(ROW, head=HEAD), headers={"Content-Type": "text/csv"})
    assert fates(no_terms) == [(2, "unclear", "no_terms")]
