"""How far reads must have read: `at_least`, in lists and in what the log itself answers."""

from __future__ import annotations

import pytest

import infra.views.reader
from tests.api.world import World, refused, told


def test_a_read_waits_for_the_position_it_is_asked_for(world: World) -> None:
    position = 0
    for number in range(5):
        position = world.generate(video_id=f"video-{number}")["position"]
        answer = world.client.get("/v1/codes", params={"at_least": position})
        assert len(told(answer, 200)["codes"]) == number + 1
        assert int(answer.headers["ledger-position"]) >= position
    code = world.generate()
    answer = world.client.get(f"/v1/codes/{code['code_id']}", params={"at_least": code["position"]})
    assert int(answer.headers["ledger-position"]) >= code["position"]


@pytest.mark.usefixtures("impatient")
def test_a_read_of_a_position_nobody_has_reached_is_told_to_come_back(world: World) -> None:
    code = world.generate()
    answer = world.client.get(f"/v1/codes/{code['code_id']}", params={"at_least": 999})
    assert refused(answer) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_position_ahead_of_the_ledger_cannot_be_known(world: World) -> None:
    code = world.generate()
    answer = world.client.get(f"/v1/codes/{code['code_id']}", params={"as_of": 999})
    assert refused(answer) == (409, "ahead_of_ledger")
    assert answer.json()["last_position"] == world.head()


LISTS = ("shares", "redemptions", "campaigns")


@pytest.mark.parametrize("name", LISTS)
def test_a_position_that_nobody_has_reached_is_told_to_come_back(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.views.reader, "AT_LEAST_WAIT_S", 0.1)
    world.permit()
    assert refused(world.client.get(f"/v1/{name}", params={"at_least": 999})) == (503, "unavailable")
