"""What the tests of `verify.py` verify, recorded: another verifier must say the same of every one of these bundles."""

from __future__ import annotations

import base64
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import api.http.single_flight
from infra.proof import verify
from tests.api import test_short_evidence
from tests.api.world import World
from tests.infra.proof import test_verify, test_verify_claims, test_verify_keys, test_verify_witnesses
from tests.infra.proof.bundles import Log

# They verify a folder, or in another process.
LEFT_OUT = {"test_an_unpacked_bundle_holds_as_well", "test_the_file_runs_by_itself_with_nothing_but_python"}


@dataclass(frozen=True)
class Case:
    """A bundle, what it was verified with, and what `verify.py` says of it.

    Attributes:
        name: the test that it is of.
        data: the ZIP file.
        options: the options, for another program: keys as text, files in base64.
        lines: the verdicts, or None if the file cannot be used at all.

    """

    name: str
    data: bytes
    options: Mapping[str, Any]
    lines: list[tuple[str, str]] | None

    @property
    def good(self) -> bool:
        """Whether the exit code is 0."""
        marks = [mark for mark, _ in self.lines or []]
        return "ok" in marks and "no" not in marks


@dataclass
class Recorder:
    """Stands in for `verify.verify`, and keeps what it was asked and what it said."""

    kept: list[Case] = field(default_factory=list)
    name: str = ""
    _verify: Callable[..., verify.Report] = verify.verify

    def __call__(self, path: Path, **options: Any) -> verify.Report:
        """Verify as ever."""
        try:
            report = self._verify(path, **options)
        except Exception:
            self._keep(path, options, None)
            raise
        self._keep(path, options, list(report.lines))
        return report

    def _keep(self, path: Path, options: Mapping[str, Any], lines: list[tuple[str, str]] | None) -> None:
        if path.is_file():
            self.kept.append(Case(self.name, path.read_bytes(), exported(options), lines))


class KeptPolicy(verify.Policy):
    """A policy that knows its text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def exported(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as another program takes them."""
    policy, older = options.get("policy"), options.get("older")
    return {
        "keys": [key_text(key) for key in options.get("keys", ())],
        "witnesses": [key_text(key) for key in options.get("witnesses", ())],
        "quorum": options.get("quorum"),
        "policy": None if policy is None else policy.text,
        "unpinned": options.get("unpinned", False),
        "older": None if older is None else base64.b64encode(older).decode(),
        "receipts": [base64.b64encode(receipt).decode() for receipt in options.get("receipts", ())],
        "maxAge": options.get("max_age_s"),
        "about": options.get("about"),
        "now": options.get("now"),
    }


def key_text(key: verify.Key) -> str:
    return f"{key.name}+{key.id.hex()}+{base64.b64encode(bytes([key.kind]) + key.public).decode()}"


def recorded(folder: Path, fresh: Callable[[], World]) -> list[Case]:
    """Run the tests, those of short evidence each in a fresh ledger, and return each bundle that they verify."""
    recorder, written = Recorder(), Log.written

    def smaller(log: Log, where: Path, bundle: Mapping[str, bytes]) -> Path:
        """Leave out what most of a bundle consists of, and no verifier looks into."""
        unread = ("data/verify.py", "data/REPORT.html")
        return written(log, where, {name: b"" if name in unread else c for name, c in bundle.items()})

    with (
        patch.object(verify, "verify", recorder),
        patch.object(verify, "Policy", KeptPolicy),
        patch.object(Log, "written", smaller),
        patch.object(api.http.single_flight, "KEEP_S", 0),
    ):
        story = test_verify.two_codes()
        of_the_story = {"story": story, "log": Log.of(story)}
        _run(recorder, folder, test_verify, lambda: of_the_story)
        _run(recorder, folder, test_verify_claims, lambda: of_the_story)
        _run(recorder, folder, test_verify_keys, lambda: {"changed": test_verify_keys.with_another_key()})
        _run(recorder, folder, test_verify_witnesses, lambda: {"log": test_verify_witnesses.with_witnesses()})
        _run(recorder, folder, test_short_evidence, lambda: {"sealed": test_short_evidence.sealed_in(fresh())})
    return recorder.kept


def _run(recorder: Recorder, folder: Path, module: ModuleType, fixtures: Callable[[], Mapping[str, Any]]) -> None:
    for name, test in inspect.getmembers(module, inspect.isfunction):
        wanted = inspect.signature(test).parameters
        if not name.startswith("test_") or "tmp_path" not in wanted or name in LEFT_OUT or "monkeypatch" in wanted:
            continue
        for number, parameters in enumerate(_parametrized(test)):
            recorder.name = name
            own = folder / f"{name}-{number}"
            own.mkdir(parents=True)
            given = {**fixtures(), "tmp_path": own, **parameters}
            test(**{one: given[one] for one in wanted})


def _parametrized(test: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Yield each set of values that a test is parametrized with."""
    marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    sets = []
    for names, values in marks:
        each = [names] if isinstance(names, str) else names
        sets.append([dict(zip(each, [one] if isinstance(names, str) else one, strict=True)) for one in values])
    for chosen in itertools.product(*sets):
        yield {name: value for one in chosen for name, value in one.items()}


@dataclass(frozen=True)
class Question:
    """A question, the events that it is answered from, and the answer; times in microseconds."""

    events: list[dict[str, Any]]
    video_id: str
    advertiser_id: str
    at: str
    answer: dict[str, Any]


def questions(seed: int) -> list[Question]:
    """Return the questions about random histories that both computations in Python agree on."""
    kept: list[Question] = []
    answer_from = verify.answer_from

    def keep(events: list[dict[str, Any]], video_id: str, advertiser_id: str, at: Any) -> dict[str, Any]:
        found = answer_from(events, video_id, advertiser_id, at)
        times = {n: str(microseconds(v)) if n.endswith("_at") and v is not None else v for n, v in found.items()}
        kept.append(Question(events, video_id, advertiser_id, at.isoformat(), times))
        return found

    with patch.object(verify, "answer_from", keep):
        test_verify.test_both_computations_of_the_answer_agree_on_random_histories(seed)
    return kept


def microseconds(at: Any) -> int:
    return int((at - verify.EPOCH) // verify.MICROSECOND)
