"""Imports: a sheet is looked at, recorded, or left to the worker, without JavaScript."""

from __future__ import annotations

import httpx
import pytest

from api import imports
from api.http.middleware import MAX_BODY_BYTES
from infra.errors import Unavailable
from tests.api.test_imports import LATER, secret, sheet
from tests.api.world import World, told
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server

HTML = {"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
ROWS = [["ana", f"video-{n}", secret(n), "2026-01-01", LATER] for n in range(4)]
UNCLEAR = ["ana", "video-x", secret(9), "03/04/2026", LATER]


def send(client: httpx.Client, *rows: list[str], **fields: str) -> httpx.Response:
    given = {"terms": "2026-01", "permission": "true", "days": "", "dates": ""} | fields
    return client.post("/imports", files={"file": ("codes.csv", sheet(*rows))}, data=given, headers=HTML)


def test_a_sheet_is_looked_at_and_then_recorded(server: Server, own_world: World) -> None:
    with visitor(server, server.admin_key) as client:
        looked = send(client, *ROWS, UNCLEAR, record="false")
        assert "Nothing is recorded yet" in looked.text
        assert '<td class="number">6</td><td>D6</td><td>Unclear</td>' in looked.text
        assert "State the order of day and month at “03/04/2026 is”." in looked.text
        unknown = send(client, *ROWS, record="false", permission="")
        assert "Or state below that every creator’s ad authorization was on." in unknown.text
        assert told(own_world.client.get("/v1/codes"), 200)["codes"] == []
        recorded = send(client, *ROWS, record="true")
        again = send(client, *ROWS, record="true")
        wrong = send(client, UNCLEAR, record="true")
    assert "The sheet is recorded" in recorded.text
    assert "Nothing was recorded" in wrong.text
    assert "There was nothing to record" in again.text
    assert secret(1) not in looked.text + recorded.text


def test_what_is_wrong_with_a_sheet_is_said_at_the_form_which_keeps_what_was_entered(server: Server) -> None:
    with visitor(server, server.admin_key) as client:
        answer = send(client, *ROWS, record="true", time_zone="Nowhere/At all", columns="note=")
        empty = client.post("/imports", files={"file": ("codes.csv", "")}, headers=HTML)
        large = client.post("/imports", files={"file": ("codes.csv", b"a" * (MAX_BODY_BYTES + 1))}, headers=HTML)
    assert answer.status_code == 400
    assert answer.text.count("Unknown time zone") == 1
    assert 'value="note="' in answer.text
    assert (empty.status_code, "The sheet is empty." in empty.text) == (400, True)
    assert "Show what would happen" in empty.text
    assert (large.status_code, "sparkledger import FILE" in large.text) == (413, True)


def test_a_large_sheet_is_followed_to_its_report_and_cancelled(
    server: Server, own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "MAX_ROWS_OF_A_REQUEST", 3)
    another = told(own_world.client.post("/v1/keys", json={"role": "operator"}), 201)
    with visitor(server, server.admin_key) as client:
        sent = send(client, *ROWS, record="true")
        path = sent.headers["location"]
        page = client.get(path, headers=HTML)
        assert "0 of 4 rows are done" in page.text
        assert f'href="{path}"' in client.get("/imports", headers=HTML).text
        report = client.get(f"{path}/report", headers=HTML)
        assert (report.headers["content-type"], b'"rows":4' in report.content) == ("application/x-ndjson", True)
        with visitor(server, another["key"]) as operator:
            assert operator.post(f"{path}/cancellation", headers=HTML).headers["location"] == path
        assert "It was cancelled before a worker began it." in client.get(path, headers=HTML).text
    (one,) = told(own_world.client.get("/v1/imports"), 200)["imports"]
    assert (one["cancelled_by"], one["key_id"] == another["key_id"]) == (another["key_id"], False)


def test_a_sheet_whose_answer_breaks_off_is_to_be_sent_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Unavailable("The database is away.")

    monkeypatch.setattr(imports, "summary_content", away)
    with visitor(server, server.admin_key) as client:
        answer = send(client, *ROWS, record="false")
    assert answer.status_code == 503
    assert "The answer broke off." in answer.text


def test_a_sheet_is_read_by_a_saved_mapping_which_is_listed_and_removed(server: Server, own_world: World) -> None:
    mapping = {"columns": {"secret": "Kode", "note": None}, "dates": "dmy", "permission": True}
    told(own_world.client.put("/v1/imports/mappings/agency:north", json=mapping), 200)
    with visitor(server, server.admin_key) as client:
        page = client.get("/imports", headers=HTML)
        assert '<option value="agency:north">' in page.text
        assert "Note: not read, Secret: <bdi>Kode</bdi>" in page.text
        refused = send(client, *ROWS, record="false", mapping="agency:north")
        assert "Kode" in refused.text
        assert 'value="agency:north" selected' in refused.text
        gone = client.post("/imports/mappings/agency%3Anorth/deletion", headers=HTML)
    assert gone.headers["location"] == "/imports#mappings"
    assert told(own_world.client.get("/v1/imports/mappings"), 200)["mappings"] == []


@pytest.mark.parametrize("role", SUBJECTS)
def test_those_who_see_imports_are_those_of_the_api(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        page = client.get("/imports", headers=HTML)
    assert page.status_code == (200 if role in {"admin", "operator", "auditor"} else 403)
    assert ("Send a sheet" in page.text) == (role in {"admin", "operator"})
