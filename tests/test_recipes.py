"""The recipes of CONTRIBUTING.md name every file that a change touches, compared with what the existing code touched.

The name of a change is found by reading the code: a command by its function and its events, a refusal by its code, a
view by its module, a setting by its field. The files with that name are the files that adding it took. Files beyond a
recipe are in EXCEPTIONS with the reason. An exception that is no longer needed fails, too.
"""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from domain.errors import REFUSALS, SENTENCES
from domain.event_types import EVENT_TYPES
from infra.settings import Settings
from projections import VIEWS
from tests.api import attempts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

ROOT: Final = Path(__file__).parent.parent
CONTRIBUTING: Final = (ROOT / "CONTRIBUTING.md").read_text()
LIFE_CYCLE: Final = "tests/domain/test_life_cycle.py"
# One room of four files: an event belongs to one of the four aggregates.
AGGREGATES: Final = ("domain/code.py", "domain/creator.py", "domain/advertiser.py", "domain/video.py")

_WHICH_AGGREGATE: Final = "the first event of a stream says which aggregate it is; no new command begins a stream"

# Files beyond the recipe, by kind of change: the names in them, and the reason.
EXCEPTIONS: Final[dict[str, dict[str, tuple[set[str], str]]]] = {
    "command": {
        "api/authorizations.py": (
            {"Shared", "Redeemed"},
            "a brand's key may ask about codes that were shared with it or that it redeemed",
        ),
        "api/catch_up.py": ({"CodeGenerated"}, "the video of a code is in its first event only"),
        "api/console/code.py": ({"Revoked", "Superseded"}, "the page links an end of a code to the event that says so"),
        "api/console/lifeline.py": (
            {"Extended", "Shared", "Redeemed", "CampaignLaunched", "CampaignEnded", "Revoked"},
            "the picture of a code's life has a lane for each of these",
        ),
        "api/event_content.py": (
            {"Shared", "NoteAdded", "UsageRightsStated"},
            "texts of people are sealed in three events",
        ),
        "api/evidence_bundle.py": ({"CodeGenerated"}, "evidence of a no shows of every other code its video"),
        "api/evidence_plans.py": ({"CodeGenerated"}, _WHICH_AGGREGATE),
        "api/query_language.py": (
            {"NoteAdded", "Shared", "RedemptionRefused"},
            "the qualifiers `note` and `reason` search in events with such a text",
        ),
        "domain/authorization.py": (
            {
                *{"PermissionEnabled", "CodeGenerated", "Extended", "Shared", "Redeemed", "Revoked", "Superseded"},
                *{"AdvertiserNamed", "Expired", "UsageRightsStated"},
            },
            "the authorization question is answered from the log, not from a view",
        ),
        "domain/changes.py": (
            {"Expired", "Superseded"},
            "both change what is true from their own moment on, and not before",
        ),
        "infra/delivery/alerts/alert_store.py": ({"CreatorErased"}, "no alert names an erased creator"),
        "infra/delivery/alerts/looking.py": (
            {"CampaignLaunched", "UsageRightsStated", "RedemptionRefused"},
            "what rules report is found in the events that record it",
        ),
        "infra/auth/erasure_lock.py": ({"CreatorErased"}, "keys of an erased creator stop working"),
        "infra/delivery/kafka/records.py": (
            {"CodeGenerated", "CreatorErased"},
            "the codes of an erased creator get a state that says so",
        ),
        "infra/eventstore/aggregate_reader.py": ({"CodeGenerated"}, _WHICH_AGGREGATE),
        "infra/eventstore/authorization_evidence.py": (
            {"CodeGenerated", "AdvertiserNamed", "VideoBound"},
            _WHICH_AGGREGATE,
        ),
        "infra/eventstore/event_filter.py": ({"RedemptionRefused"}, "the filter `refused` reads the reason"),
        "infra/eventstore/event_metadata.py": (
            {"AdvertiserNamed", "VideoBound", "VideoReleased"},
            "events of an account or of a binding name that instead of a code",
        ),
        "infra/eventstore/reader.py": (
            {"CodeGenerated", "CreatorErased"},
            "SQL that finds the codes of a creator, and erasures that are not carried out yet",
        ),
        "infra/eventstore/repository.py": ({"CodeGenerated", "AdvertiserNamed", "VideoBound"}, _WHICH_AGGREGATE),
        "infra/eventstore/serialization.py": (
            {"CodeGenerated", "PermissionEnabled", "PermissionDisabled", "AdvertiserNamed", "VideoBound"},
            _WHICH_AGGREGATE,
        ),
        "infra/jobs/erasure.py": ({"CreatorErased"}, "the job destroys the key after the event"),
        "infra/jobs/derived_check.py": (
            {
                *{"PermissionEnabled", "PermissionDisabled", "CodeGenerated", "CodeSecretAttached"},
                *{"AdvertiserNamed", "VideoBound"},
            },
            "the claims that these events take are computed here again",
        ),
        "infra/jobs/heads.py": ({"CodeGenerated"}, "a video has a head, which the codes of it make"),
        "infra/proof/heads_check.py": ({"CodeGenerated"}, "as infra/jobs/heads.py"),
        "infra/proof/bundle_check.py": ({"CodeGenerated", "AdvertiserNamed"}, _WHICH_AGGREGATE),
        "infra/proof/evidence_log.py": ({"CreatorErased"}, "SQL that finds which keys an erasure destroyed"),
        "infra/proof/log_check.py": ({"CreatorErased"}, "SQL that finds which keys an erasure destroyed"),
        "infra/proof/verify.py": (
            {
                *{"PermissionEnabled", "PermissionDisabled", "CreatorErased", "CodeGenerated", "Extended", "Shared"},
                *{"Redeemed", "Revoked", "Superseded", "AdvertiserNamed", "UsageRightsStated"},
            },
            "a recipient of evidence has this one file and nothing else of the program",
        ),
    },
    "view": {
        "infra/eventstore/authorization_evidence.py": ({"codes"}, "the view finds the codes of a video"),
        "infra/delivery/alerts/calendar_text.py": ({"codes"}, "as texts.py"),
        "infra/delivery/alerts/calendars.py": ({"codes"}, "a calendar has the codes that end"),
        "infra/delivery/alerts/looking.py": ({"campaigns", "codes"}, "rules look at what holds now, and for whom"),
        "infra/delivery/alerts/texts.py": ({"codes"}, "a message says of a code what the view has"),
        "infra/delivery/alerts/worker.py": ({"campaigns", "codes"}, "a message says what holds when it is sent"),
        "infra/jobs/expiry_clock.py": ({"expiring"}, "the expiry clock reads the view, no route does"),
    },
    "refusal": {
        "api/campaigns.py": ({"code_expired", "code_revoked"}, "also the stored cause of the end of a campaign"),
        "api/console/imports.py": (
            {"creator_unknown"},
            "the page says in the words of its form how such rows are recorded",
        ),
        "api/codes.py": ({"secret_exists"}, "counted, so that nobody can search for secrets"),
        "api/evidence_plans.py": (
            {"creator_unknown"},
            "404, as wherever evidence about something unknown is asked for",
        ),
        "api/http/command_context.py": (
            {"secret_exists", "live_code_exists", "code_superseded"},
            "they name a code, and not everyone may know which",
        ),
        "api/http/denied_attempts.py": ({"permission_disabled", "creator_unknown"}, "recorded as denied attempts"),
        "api/http/problems.py": ({"creator_unknown"}, "404 if the unknown creator is in the address"),
        "domain/campaign.py": ({"code_expired", "code_revoked"}, "also the stored cause of the end of a campaign"),
        "domain/summaries.py": ({"code_expired", "code_revoked"}, "also the stored cause of the end of a campaign"),
        "infra/auth/key_admin.py": ({"creator_erased"}, "no key is created for an erased creator"),
        "infra/crypto/keyring.py": ({"creator_erased"}, "the key of an erased creator is gone"),
        "infra/eventstore/aggregate_reader.py": ({"creator_erased"}, "the secret of an erased creator is gone"),
        "projections/campaigns.py": ({"code_revoked"}, "also the stored cause of the end of a campaign"),
        "projections/code_timeline.py": (
            {"code_expired", "code_revoked"},
            "also the stored cause of the end of a campaign",
        ),
        "projections/figures.py": ({"code_expired"}, "also the stored cause of the end of a campaign"),
        "projections/statistics.py": ({"code_expired"}, "also the stored cause of the end of a campaign"),
    },
}

# Refusals that two guards raise, with the reason.
RAISED_TWICE: Final = {
    "other_video": "of one code when it is redeemed, of two codes when one supersedes the other",
    "code_not_started": "of one code before its start, of several when the start would move into the time of another",
}

# Settings that more than one file reads, with the reason.
READ_TWICE: Final = {
    "oidc_issuers": "migrate tells the database which issuers it may believe the API about",
    "data_dir": "the embedded PostgreSQL and the generated master key are in the same directory",
    "allowed_days": "commands over HTTP are decided by it, and imports of the command line",
    "extend_after_expiry": "as allowed_days",
    "codes_without_secret": "as allowed_days",
    "host": "the API listens there, and the demo connects to it",
    "port": "the API listens there, and the demo connects to it",
    "smtp_url": "the API refuses rules that no e-mail could be sent for, and the worker sends them",
    "webhook_networks": "checked when a webhook is created, and again when it is sent to",
    "video_ids": "requests and the lines of batches are checked by it",
    "public_url": "webhooks and Kafka name the schemas of their messages there, and the list of deliveries shows that",
    "kafka_bootstrap_servers": "also says whether anything is published at all",
}


class Recipe(NamedTuple):
    """What a recipe says: the files that it names, in order, and how many it counts."""

    files: tuple[str, ...]
    program: int
    tests: int

    def room(self, path: str) -> str | None:
        """Return the name by which the recipe names a file, such as `api/NAME.py`; None where it does not."""
        for file in self.files:
            if re.fullmatch(re.escape(file).replace("NAME", "[a-z][a-z_]*"), path):
                return AGGREGATES[0] if file in AGGREGATES else file
        return None

    def rooms(self, paths: Iterable[str]) -> set[str]:
        """Return the recipe's names of the files that it names."""
        return {room for path in paths if (room := self.room(path)) is not None}


def recipe(title: str) -> Recipe:
    """Read a recipe of CONTRIBUTING.md."""
    found = re.search(
        rf"^\*\*A new {title}\*\*: (\d+) files? of the program(?:, (\d+) of the tests)?\n\n(.*?)(?=^\*\*|^## )",
        CONTRIBUTING,
        flags=re.MULTILINE | re.DOTALL,
    )
    assert found is not None, title
    paths = re.findall(r"`((?:api|domain|infra|projections|tests)/[\w/]+\.(?:py|sql)|cli\.py)`", found[3])
    return Recipe(tuple(dict.fromkeys(paths)), int(found[1]), int(found[2] or 0))


# -- Names in the code


class Named(NamedTuple):
    """What a file names, without docstrings and without the examples of the API reference.

    Attributes:
        attributes: `owner.name`, where the owner is the last word before the dot.
        texts: every string constant.
        lines: all of them as one text.
        imports: `module.name`.
        defined: names of functions and of variables that are assigned.

    """

    attributes: frozenset[str]
    texts: frozenset[str]
    lines: str
    imports: frozenset[str]
    defined: frozenset[str]


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, docstrings and examples left out."""
    left = [tree]
    while left:
        for child in ast.iter_child_nodes(left.pop()):
            if isinstance(child, ast.keyword) and child.arg in {"example", "examples"}:
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            left.append(child)
            yield child


@cache
def parsed(path: str) -> ast.Module:
    """Return a file, parsed."""
    return ast.parse((ROOT / path).read_text())


def named_in(tree: ast.AST) -> Named:
    """Collect the names of a tree."""
    attributes: set[str] = set()
    texts: set[str] = set()
    imports: set[str] = set()
    defined: set[str] = set()
    for node in nodes(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
                attributes.add(f"{owner}.{name}")
            case ast.Constant(value=str(value)):
                texts.add(value)
            case ast.ImportFrom(module=str(module)):
                imports.update(f"{module}.{alias.name}" for alias in node.names)
            case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
    return Named(frozenset(attributes), frozenset(texts), "\n".join(texts), frozenset(imports), frozenset(defined))


@cache
def program() -> dict[str, Named]:
    """Return what every file of the program names."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    rooms = re.compile(r"(?:api|domain|infra|projections)/.*|cli\.py")
    return {path: named_in(parsed(path)) for path in listed if rooms.fullmatch(path) and (ROOT / path).is_file()}


def files_with_attribute(name: str) -> set[str]:
    """Return the files of the program that name `owner.name`."""
    return {path for path, named in program().items() if name in named.attributes}


def files_with_text(text: str) -> set[str]:
    """Return the files of the program with a text that is the name, or with SQL that quotes it."""
    return {path for path, named in program().items() if text in named.texts or f"'{text}'" in named.lines}


def beyond(kind: str, found: dict[str, Collection[str]]) -> dict[str, set[str]]:
    """Turn the files that bear each name into the names in each file that the recipe does not name."""
    rooms = recipe(kind)
    names: dict[str, set[str]] = {}
    for name, paths in found.items():
        for path in paths:
            if rooms.room(path) is None:
                names.setdefault(path, set()).add(name)
    return names


def excepted(kind: str) -> dict[str, set[str]]:
    """Return the names in each file beyond the recipe that have a reason."""
    return {path: names for path, (names, reason) in EXCEPTIONS[kind].items() if reason}


# -- Commands: named in REFUSALS, in tests/given.py and, in longer form, in domain/commands.py


COMMANDS: Final = tuple(REFUSALS)


def function_of(command: str) -> str:
    """Return the name of a command's function in domain/commands.py."""
    functions = [node.name for node in parsed("domain/commands.py").body if isinstance(node, ast.AsyncFunctionDef)]
    (found,) = [name for name in functions if command in name.split("_")]
    return found


@cache
def events_by_command() -> dict[str, set[str]]:
    """Return which events each command records, as the life-cycle table has it."""
    words: dict[str, str] = {}
    table = ""
    for node in parsed(LIFE_CYCLE).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Call):
                    words[str(key.value)] = ast.unparse(value.func).removeprefix("given.")
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TABLE":
            table = ast.literal_eval(node.value)
    topics = set(EVENT_TYPES)
    found: dict[str, set[str]] = {command: set() for command in COMMANDS}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 3 and words.get(cells[1]) in found:
            found[words[cells[1]]] |= topics & set(re.findall(r"\w+", cells[2]))
    return found


@cache
def files_of_event(topic: str) -> frozenset[str]:
    """Return the files of the program that name an event, by its class or by its stored name."""
    owner, name = EVENT_TYPES[topic].__qualname__.split(".")
    return frozenset(files_with_attribute(f"{owner}.{name}") | files_with_text(topic))


@cache
def routes_of(command: str) -> dict[str, str]:
    """Return the routes that carry a command out, by method and path, each with its file."""
    called = f"commands.{function_of(command)}"
    found = {}
    for path in sorted(files_with_attribute(called)):
        for node in parsed(path).body:
            if isinstance(node, ast.AsyncFunctionDef) and called in named_in(node).attributes:
                routers = [call for call in node.decorator_list if ast.unparse(call).startswith("router.")]
                for call in routers:
                    assert isinstance(call, ast.Call)
                    method = ast.unparse(call.func).removeprefix("router.").upper()
                    found[f"{method} {ast.literal_eval(call.args[0])}"] = path
    return found


def files_of_command(command: str) -> set[str]:
    """Return the files of the program that a command is found in."""
    return {
        "domain/commands.py",
        "domain/errors.py",
        *files_with_attribute(f"commands.{function_of(command)}"),
        *(path for topic in events_by_command()[command] for path in files_of_event(topic)),
    }


def test_every_command_records_an_event_and_has_one_route_in_one_file() -> None:
    for command in COMMANDS:
        assert events_by_command()[command], command
        (route,) = routes_of(command)
        assert route in attempts.ROLES, command
        assert route in attempts.REQUESTS, command


def test_an_event_is_named_in_no_file_beyond_the_recipe_of_a_command() -> None:
    found: dict[str, Collection[str]] = {}
    in_api: dict[str, set[str]] = {}
    for command, topics in events_by_command().items():
        for topic in topics:
            found[topic] = files_of_event(topic)
            in_api.setdefault(topic, set()).update(routes_of(command).values())
    elsewhere = beyond("command", found)
    # The recipe's api/NAME.py is the file of the command's own resource, and no other.
    for topic, paths in found.items():
        for path in set(paths) - in_api[topic]:
            if path.startswith("api/"):
                elsewhere.setdefault(path, set()).add(topic)
    assert elsewhere == excepted("command")


def test_a_command_takes_as_many_files_as_its_recipe_counts() -> None:
    rooms = recipe("command")
    counted = {command: len(rooms.rooms(files_of_command(command))) for command in COMMANDS}
    assert max(counted.values()) == rooms.program, counted
    tests = [file for file in rooms.files if file.startswith("tests/")]
    assert len(tests) == rooms.tests
    assert set(rooms.files) - set(tests) == {*AGGREGATES, *rooms.rooms(set().union(*map(files_of_command, COMMANDS)))}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_its_word_and_its_rows_in_the_tests(command: str) -> None:
    words = {node.name for node in parsed("tests/given.py").body if isinstance(node, ast.FunctionDef)}
    assert command in words
    assert f"given.{command}(" in (ROOT / LIFE_CYCLE).read_text()


# -- Views


@cache
def files_of_view(view: str) -> frozenset[str]:
    """Return the files of the program that import a view."""

    found = {
        path
        for path, named in program().items()
        if any(f"{name}.".startswith(f"projections.{view}.") for name in named.imports)
    }
    return frozenset(found | {f"projections/{view}.py"})


def modules_of_views() -> list[str]:
    """Return the modules of the views that projections/__init__.py lists."""
    found = [
        node.value.id
        for node in ast.walk(parsed("projections/__init__.py"))
        if isinstance(node, ast.Attribute) and node.attr == "VIEW" and isinstance(node.value, ast.Name)
    ]
    assert len(found) == len(VIEWS)
    return found


def test_a_view_is_named_in_no_file_beyond_its_recipe() -> None:
    assert beyond("view", {view: files_of_view(view) for view in modules_of_views()}) == excepted("view")


def test_a_view_takes_as_many_files_as_its_recipe_counts() -> None:
    rooms = recipe("view")
    counted = {view: len(rooms.rooms(files_of_view(view))) for view in modules_of_views()}
    assert max(counted.values()) == rooms.program, counted
    tests = [file for file in rooms.files if file.startswith("tests/")]
    assert len(tests) == rooms.tests
    for view in modules_of_views():
        assert (ROOT / tests[0].replace("NAME", view)).is_file()


# -- Refusals


def test_a_refusal_is_named_in_no_file_beyond_its_recipe() -> None:
    assert beyond("refusal", {code: files_with_text(code) for code in SENTENCES}) == excepted("refusal")


@pytest.mark.parametrize("code", SENTENCES)
def test_a_refusal_takes_as_many_files_as_its_recipe_counts(code: str) -> None:
    rooms = recipe("refusal")
    assert len(rooms.rooms(files_with_text(code))) == rooms.program + (code in RAISED_TWICE)
    (tests,) = [file for file in rooms.files if file.startswith("tests/")]
    assert code in (ROOT / tests).read_text()


# -- Settings


def test_a_setting_is_read_in_one_file() -> None:
    readers = {field: files_with_attribute(f"settings.{field}") for field in Settings.model_fields}
    assert {field for field, files in readers.items() if len(files - {"infra/settings.py"}) > 1} == set(READ_TWICE)


def test_the_environment_is_read_by_the_settings_alone() -> None:
    readers = files_with_attribute("os.environ") | files_with_attribute("os.getenv")
    # The command line, the supervisor and the API hand the whole environment to the processes that they start. Those
    # that fill parts of views get what is no setting of it.
    passing_on = {
        *("cli.py", "infra/postgres/embedded/cluster.py", "infra/processes/supervisor.py"),
        *("infra/views/part_processes.py", "api/http/page_process.py"),
    }
    assert readers - passing_on == {"infra/settings.py"}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_a_setting_has_its_name_in_the_tests_that_the_recipe_names(field: str) -> None:
    rooms = recipe("setting")
    (tests,) = [file for file in rooms.files if file.startswith("tests/")]
    assert rooms.tests == 1
    assert re.search(rf"\b{field}\b", (ROOT / tests).read_text(), flags=re.IGNORECASE)


# -- Versions of events, and migrations


def test_only_the_aggregates_set_the_version_of_an_event_and_read_its_old_ones() -> None:
    setting = {
        path
        for path, named in program().items()
        if any(name == "class_version" or name.startswith("upcast_") for name in named.defined)
    }
    rooms = recipe("version of an event")
    assert setting <= set(AGGREGATES) <= set(rooms.files)
    for topic, kind in EVENT_TYPES.items():
        for version in range(1, getattr(kind, "class_version", 1) + 1):
            assert (ROOT / f"docs/schemas/{topic}.v{version}.json").is_file()


def test_a_migration_is_one_file_that_no_other_names() -> None:
    rooms = recipe("migration")
    (pattern,) = rooms.files
    folder = ROOT / pattern
    migrations = sorted(path.name for path in folder.parent.glob("*.sql"))
    assert [name[:4] for name in migrations] == [f"{number:04}" for number in range(1, len(migrations) + 1)]
    for name in migrations:
        assert files_with_text(name) == set()
        assert files_with_text(name.removesuffix(".sql")) == set()
