"""The guide's story against real servers, and what `sparkledger up` promises of itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from api.demo import run_demo
from tests.serving import LiveServer, Server
from tests.waiting import until


def test_the_guides_story_comes_out_as_told(server: Server) -> None:
    said: list[str] = []
    assert run_demo(server.url, server.admin_key, said.append) == 0, "\n".join(said)
    assert any("no: revoked" in line for line in said)


def test_the_story_can_be_told_again_in_the_same_ledger(server: Server) -> None:
    assert run_demo(server.url, server.admin_key, lambda _: None) == 0
    assert run_demo(server.url, server.admin_key, lambda _: None) == 0


def test_a_code_expires_by_the_clock_and_is_recorded_once(server: Server) -> None:
    with server.client() as client:
        client.put("/v1/creators/c-1/permission", json={"enabled": True})
        begins = (datetime.now(UTC) - timedelta(days=7) + timedelta(milliseconds=300)).isoformat()
        code = client.post(
            "/v1/codes",
            json={"creator_id": "c-1", "video_id": "v-1", "terms_version": "1", "days": 7, "starts_at": begins},
        ).json()
        assert code["state"] == "generated"

        def expiries() -> list[dict[str, str]]:
            history = client.get(f"/v1/codes/{code['code_id']}/history").json()["events"]
            return [event for event in history if event["type"] == "Expired"]

        until(lambda: expiries() != [])
        (expired,) = expiries()
        assert expired["effective_at"] == code["expires_at"]
        assert client.get(f"/v1/codes/{code['code_id']}").json()["state"] == "expired"


def test_the_demo_runs_against_a_program_that_is_up(live_server: LiveServer) -> None:
    said: list[str] = []
    assert run_demo(live_server.url, live_server.admin_key, said.append) == 0, "\n".join(said)
