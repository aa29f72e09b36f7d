"""Dossiers: one page with all about one thing, to print, with its file and its evidence."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.console.seed import CREATOR, Seeded
from tests.console.test_start import visitor
from tests.serving import Server


def test_a_creators_dossier_has_a_row_for_each_entry_that_the_api_answers(
    seeded_ledger: Server, seeded: Seeded
) -> None:
    with seeded_ledger.client() as client, visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        code = reader.get(f"/codes/{seeded.running['code_id']}").text
        assert f'href="/dossiers/creators/{quote(CREATOR)}"' in code
        assert f'href="/dossiers/codes/{seeded.running["code_id"]}"' in code
        page = reader.get(f"/dossiers/creators/{CREATOR}")
        sections = client.get(f"/v1/dossiers/creators/{CREATOR}", params={"limit": 200}).json()["sections"]
    # The accesses grow by what was just read.
    found = {one["name"]: len(one["entries"]) for one in sections if one["name"] != "accesses"}
    for name, count in found.items():
        part = page.text.partition(f'id="s-{name}"')[2].partition("</section>")[0]
        assert part.count("<tr>") == (count + 1 if count else 0), name
    assert 'name="kind" value="creator"' in page.text


@pytest.mark.parametrize("kind", ["codes", "creators"])
def test_a_dossier_is_taken_along_whole(seeded_ledger: Server, seeded: Seeded, kind: str) -> None:
    id_ = seeded.running["code_id"] if kind == "codes" else CREATOR
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        page = reader.get(f"/dossiers/{kind}/{id_}")
        assert f'href="/dossiers/{kind}/{quote(id_)}/file"' in page.text
        file = reader.get(f"/dossiers/{kind}/{id_}/file")
    assert (file.status_code, "attachment" in file.headers["content-disposition"]) == (200, True)
    assert json.loads(file.text.splitlines()[-1]).keys() == {"trailer"}


def test_every_kind_has_a_page_and_another_has_none(seeded_ledger: Server, seeded: Seeded) -> None:
    running = seeded.running
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader, seeded_ledger.client() as client:
        key_id = client.get("/v1/keys").json()["keys"][0]["key_id"]
        for path in (f"videos/{running['video_id']}", "brands/acme", "advertisers/adv-7001", f"keys/{key_id}"):
            assert reader.get(f"/dossiers/{path}").status_code == 200, path
        assert reader.get("/dossiers/nothing/here").status_code == 404
