"""What the command line does with the trail: whole files or none, checked files, answered files, and a record of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from api import offline
from api.authorization_lines import BatchQuery
from api.export_files import verify
from api.exports import Export
from domain.pasted import VideoIds
from infra.errors import Unavailable
from infra.postgres.roles import API
from tests.api.world import OWN_ACCOUNT, World, told
from tests.serving import Server

RUN = CliRunner()


@dataclass(frozen=True)
class Place:
    owner: str
    api: str


def where(server: Server) -> offline.LedgerAddress:
    database = server.serving.database
    return offline.LedgerAddress(Place(database.dsn(), database.dsn(API)), server.serving.master_key, server.ledger)


def machine(world: World) -> list[tuple[Any, ...]]:
    """What the machine itself read, newest first."""
    found = told(world.client.get("/v1/accesses"), 200)["accesses"]
    return [
        (a["route"], a["query"], a["format"], a["rows"], a["complete"], a["actor"]["key_id"])
        for a in found
        if a["route"] in {"sparkledger export", "sparkledger authorizations"}
    ]


def export(world: World, path: Path, q: str | None = None) -> list[str]:
    said: list[str] = []
    asyncio.run(offline.export(where(world.server), offline.export_query(q, path), path, said.append))
    return said


@pytest.mark.parametrize("name", ["out.csv", "out.ndjson"])
def test_an_export_is_a_file_that_is_whole(world: World, tmp_path: Path, name: str) -> None:
    world.running()
    path = tmp_path / name

    said = export(world, path, "-type:Shared")

    assert (verify(path).events, verify(path).head) == (4, 5)
    assert said[-1].startswith("4 events in ")
    assert list(tmp_path.iterdir()) == [path]
    format_ = name.rpartition(".")[2]
    media_type = {"csv": "text/csv", "ndjson": "application/x-ndjson"}[format_]
    assert machine(world) == [
        ("sparkledger export", {"q": "-type:Shared", "format": format_}, media_type, 4, True, None)
    ]


def test_a_file_that_is_there_is_not_written_over(world: World, tmp_path: Path) -> None:
    path = tmp_path / "out.ndjson"
    path.write_text("mine")
    with pytest.raises(offline.OfflineError, match="already exists"):
        export(world, path)
    assert (path.read_text(), machine(world)) == ("mine", [])


def test_an_export_that_breaks_off_leaves_no_file_and_is_recorded_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.running()
    pieces = Export.pieces

    async def broken(self: Export, *given: Any) -> Any:
        async for piece in pieces(self, *given):
            yield piece
            raise Unavailable("The database went away.")

    monkeypatch.setattr(Export, "pieces", broken)
    with pytest.raises(Unavailable):
        export(world, tmp_path / "out.ndjson")
    assert list(tmp_path.iterdir()) == []
    assert [access[3:5] for access in machine(world)] == [(5, False)]


def test_a_query_that_is_none_is_pointed_at() -> None:
    with pytest.raises(ValueError, match="Unknown qualifier") as raised:
        offline.export_query("type:Shared typ:x", Path("out.csv"))
    assert str(raised.value).splitlines()[1:] == ["  type:Shared typ:x", "              ^"]


def answered(world: World, path: Path, output: Path | None = None, as_of: str | None = None) -> list[str]:
    said: list[str] = []
    asyncio.run(
        offline.ask(where(world.server), offline.batch_query(as_of), path, output, said.append, video_ids="any")
    )
    return said


def test_a_file_of_questions_is_answered_into_another(world: World, tmp_path: Path) -> None:
    code = world.generate()
    redemption = world.redeem(code)
    world.client.get("/v1/codes", params={"at_least": redemption["position"]}).raise_for_status()
    asked, output = tmp_path / "asked.csv", tmp_path / "answers.ndjson"
    asked.write_text(f"video_id,advertiser_id\n{code['video_id']},{OWN_ACCOUNT}\n{code['video_id']},nobody\n")

    said = answered(world, asked, output)

    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["line"], line["reason"], line["as_of"]) for line in lines] == [
        (2, "authorized", 3),
        (3, "not_redeemed", 3),
    ]
    assert said[-1].startswith("2 lines in ")
    assert machine(world) == [("sparkledger authorizations", {"as_of": 3}, "application/x-ndjson", 2, True, None)]
    output.unlink()
    answered(world, asked, output, as_of="2")
    assert json.loads(output.read_text().splitlines()[0])["reason"] == "not_redeemed"


def test_lines_that_are_no_questions_are_counted_and_the_others_answered(world: World, tmp_path: Path) -> None:
    asked, output = tmp_path / "asked.ndjson", tmp_path / "answers.csv"
    asked.write_text('{\n{"video_id": "v", "advertiser_id": "a"}\n')
    with pytest.raises(offline.OfflineError, match=r"Invalid lines: 1\."):
        answered(world, asked, output)
    assert [line.split(",")[0] for line in output.read_text().splitlines()] == ["line", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "as_of", "problem"),
    [
        ("asked.csv", "v,a\n", None, "must name its columns"),
        ("asked.csv", "video_id;advertiser_id\nv;a\n", None, "separated by semicolons"),
        ("asked.csv", "\0v\0i\0d\0e\0o\0_\0i\0d", None, "in UTF-16"),
        ("asked.ndjson", "{}", "2099-01-01T00:00:00Z", "is in the future"),
        ("asked.ndjson", "{}", "99", "has not reached this position"),
    ],
)
def test_a_file_that_cannot_be_answered_leaves_no_other(
    world: World, tmp_path: Path, name: str, content: str, as_of: str | None, problem: str
) -> None:
    asked = tmp_path / name
    asked.write_text(content)
    with pytest.raises(offline.OfflineError, match=problem):
        answered(world, asked, tmp_path / "answers.csv", as_of)
    assert list(tmp_path.iterdir()) == [asked]


def test_a_moment_that_is_none_is_refused() -> None:
    assert offline.batch_query("7") == BatchQuery.model_validate({"as_of": "7"})
    with pytest.raises(ValueError, match="Expected an RFC 3339 time"):
        offline.batch_query("yesterday")


@pytest.mark.parametrize("query", ["", "x" * 501, "\udcff"])
def test_a_query_of_the_command_that_is_empty_or_too_long_is_told_so_plainly(query: str) -> None:
    outcome = RUN.invoke(cli.app, ["export", "a.csv", "-q", query])
    assert outcome.exit_code == 2
    assert "a query must have 1 to 500 characters, in UTF-8" in " ".join(outcome.output.replace("│", " ").split())
    assert "pydantic" not in outcome.output


def test_the_command_checks_a_file_and_says_what_it_found(world: World, tmp_path: Path) -> None:
    world.running()
    path = tmp_path / "out.ndjson"
    export(world, path)

    whole = RUN.invoke(cli.app, ["export", "--verify", str(path)])
    assert (whole.exit_code, whole.stdout) == (
        0,
        f"{path} is complete: 5 events, positions 1 to 5, of a ledger that had reached 5.\n",
    )
    path.write_bytes(path.read_bytes().replace(OWN_ACCOUNT.encode(), b"account-not", 1))
    changed = RUN.invoke(cli.app, ["export", "--verify", str(path)])
    assert changed.exit_code == 1
    assert "was changed" in str(changed.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["export", "a", "--verify", "b"],
        ["export", "--verify", "/nowhere"],
        ["export", "a.csv", "--query", "typ:x"],
        ["export", "a.csv", "--query", " "],
        ["authorizations", "/nowhere"],
    ],
)
def test_wrong_usage_is_told_so(arguments: list[str]) -> None:
    assert RUN.invoke(cli.app, arguments).exit_code == 2


@pytest.mark.parametrize(("video_ids", "fine"), [("tiktok", False), ("any", True)])
def test_a_query_for_what_is_no_video_is_pointed_at(video_ids: VideoIds, *, fine: bool) -> None:
    query = "type:Shared video:ZT8WXquk6"
    if fine:
        assert offline.export_query(query, Path("out.csv"), video_ids=video_ids).q == query
        return
    with pytest.raises(ValueError, match="A video id has 15 to 20 digits") as refused:
        offline.export_query(query, Path("out.csv"), video_ids=video_ids)
    assert str(refused.value).splitlines()[1:] == [f"  {query}", f"  {' ' * 18}^"]
