"""Benchmarks run: what they measure changes, and nobody runs them every day."""

from __future__ import annotations

import pytest

from tests.bench import admission


@pytest.mark.long("a benchmark runs")
def test_the_benchmark_of_admission_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS", "LOOKED_UP", "RUNS"):
        monkeypatch.setattr(admission, name, 1)
    assert admission.run()["microseconds"].keys() == {
        "key, remembered",
        "token, remembered",
        "key, looked up again",
        *(f"token, verified first: {algorithm}" for algorithm in ("RS256", "ES256", "EdDSA")),
    }
