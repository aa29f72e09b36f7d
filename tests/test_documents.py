"""The documentation is true: its links lead somewhere, its commands exist, the README's blocks print what it says."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import typer.main
from typer.core import TyperGroup

import cli
from domain.event_types import EVENT_TYPES
from projections import VIEWS
from tests import generated
from tests.absent import absent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serving import LiveServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name and (ROOT / name).is_file()
)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCED.sub("", page.read_text())


@cache
def code(page: Path) -> tuple[str, ...]:
    """Return every line of a block of code, and every piece of code within a sentence."""
    blocks = FENCED.findall(page.read_text())
    lines = (line for block in blocks for line in block.splitlines()[1:-1])
    return *lines, *re.findall(r"`([^`]+)`", prose(page))


@cache
def anchors(page: Path) -> set[str]:
    """Return what a link to a heading of the page may name, by the rule that most readers of Markdown follow."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# -- Links


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_something_that_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    broken = []
    for link in links:
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_is_named_with_its_folder_is_there(page: Path) -> None:
    folders = "api|domain|infra|projections|tests|docs"
    paths = {
        match[0]
        for piece in re.findall(r"`([^`]+)`", prose(page))
        for match in re.finditer(rf"(?<![\w./-])({folders})/[\w./-]+", piece)
    }
    # A recipe names what is to be made.
    assert {path for path in paths if "NAME" not in path and "NNNN" not in path and not (ROOT / path).exists()} == set()


# -- Commands


def targets() -> set[str]:
    return set(re.findall(r"^([.a-z]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@cache
def commands() -> dict[str, Any]:
    """Return every command of the command line by its words, groups included."""
    program = typer.main.get_command(cli.app)
    assert isinstance(program, TyperGroup)
    found: dict[str, Any] = dict(program.commands)
    for name, group in program.commands.items():
        if isinstance(group, TyperGroup):
            found |= {f"{name} {inner}": command for inner, command in group.commands.items()}
    return found


def called(line: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands of our own program in a line of code: the longest known name, and the words that follow."""
    for match in re.finditer(r"(?:^|[\s/])sparkledger ([a-z][^|#;&]*)", line):
        words = match[1].split()
        name = " ".join(words[:2]) if " ".join(words[:2]) in commands() else words[0]
        yield name, words[len(name.split()) :]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    meant = {
        match[1]
        for line in code(page)
        for match in re.finditer(r"(?:^|\s)make (?:[A-Z]+=\S+ )*([.a-z]+)(?=\s|$)", line)
    }
    assert meant <= targets()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_that_is_named_exists_with_its_options(page: Path) -> None:
    known = commands()
    for line in code(page):
        for name, words in called(line):
            assert name in known, line
            options = {option for parameter in known[name].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options | {"--help"}, line
            if name == "rebuild":
                assert words[0] in {view.name for view in VIEWS} | {"VIEW"}, line


def rows_of(start: str) -> list[str]:
    """Return the first cells of the README's table rows that begin with a word in code."""
    return re.findall(rf"^\| `{re.escape(start)} ([^`]+)` \|", README, flags=re.MULTILINE)


def test_the_readme_lists_every_make_target() -> None:
    assert set(rows_of("make")) == targets()


def test_the_readme_lists_every_command() -> None:
    assert {row.split()[0] for row in rows_of("sparkledger")} == {name for name in commands() if " " not in name}


# -- Decisions


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")), ids=named)
def test_a_decision_is_one_page_with_one_line_to_quote(page: Path) -> None:
    text = page.read_text()
    assert re.match(rf"# {page.name[:4]}\. \S", text)
    assert re.search(r"^Status: \S", text, flags=re.MULTILINE)
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == ["Context", "Decision", "Consequences", "Alternatives"]
    decision = text.partition("\n## Decision\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"(?:^> .*\n)+", decision, flags=re.MULTILINE)) == 1
    assert len(text.splitlines()) <= 90


# -- What is generated


def test_a_page_that_is_stale_is_named_and_can_be_refreshed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "infra").mkdir()
    shutil.copytree(ROOT / "infra/proof", tmp_path / "infra/proof")
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(README.replace("`unauthenticated`", "`unknown`"))

    def run(option: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tests.generated", option])
        code = generated.main()
        return code, *capsys.readouterr()

    run("--write")
    (tmp_path / "README.md").write_text(README.replace("`unauthenticated`", "`unknown`"))
    asked = "README.md is stale: run `.venv/bin/python -m tests.generated --write`\n"
    assert run("--check") == (1, "", asked)
    assert run("--write") == (0, "wrote README.md\n", "")
    assert run("--check") == (0, "", "")


def test_every_event_is_told_with_all_its_fields() -> None:
    page = generated.events_page()
    for name, kind in EVENT_TYPES.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        fields = [(name, "sealed" if secret else "clear") for name, _, secret in generated.own_fields(kind)]
        assert fields
        assert re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|$", section, flags=re.MULTILINE) == fields


# -- The README's blocks


class Step(NamedTuple):
    """A block that is marked to be run, and what the README says it prints."""

    script: str
    prints: str


STEPS = [
    Step(match[1], match[2] or "")
    for match in re.finditer(
        r"^<!-- run -->\n```sh\n(.*?)^```\n(?:<!-- prints -->\n```\w+\n(.*?)^```\n)?",
        README,
        flags=re.MULTILINE | re.DOTALL,
    )
]
MARK = "-- step"


def without_what_differs(text: str) -> str:
    """Return a text with names in place of what is another each time: times, masked secrets."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"\d{4}-\d\d-\d\d (?:at )?\d\d:\d\d UTC", "MINUTE", text)
    return re.sub(r"…\S{4}(?=[\s\"])", "MASKED", text).strip()


@pytest.fixture
def curl() -> None:
    """curl, as new as the README asks for."""
    said = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"curl (\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < (7, 82):
        absent("the README's blocks need curl 7.82 or newer: apt-get install curl")


@pytest.fixture
def fresh_ledger_key(live_server: LiveServer) -> str:
    """The admin key of a ledger in which nothing is recorded yet, as the README's reader has one."""
    begun = subprocess.run(
        [sys.executable, "-m", "cli", "ledgers", "create", f"readme-{secrets.token_hex(4)}"],
        cwd=ROOT,
        env=live_server.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return begun.rpartition("shown only once: ")[2].strip()


def test_every_block_with_curl_is_run_by_these_tests() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert [block for block in blocks if "curl" in block] == [step.script for step in STEPS if "curl" in step.script]


@pytest.mark.long("each block is a program that starts, as a reader starts it")
def test_the_readmes_blocks_run_in_order_and_print_what_it_says(
    curl: None, live_server: LiveServer, fresh_ledger_key: str
) -> None:
    script = "".join(f'printf "%s {number}\\n" "{MARK}"\n{step.script}' for number, step in enumerate(STEPS))

    # Nothing of our environment but the path: a proxy, a locale or a setting must not decide.
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": os.environ["PATH"], "URL": live_server.url, "KEY": fresh_ledger_key},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    printed = re.split(rf"^{MARK} \d+\n", ran.stdout, flags=re.MULTILINE)[1:]
    for step, what in zip(STEPS, printed, strict=True):
        assert without_what_differs(what) == without_what_differs(step.prints), step.script
