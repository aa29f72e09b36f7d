"""The subjects that keys of each role have."""

from __future__ import annotations

import pytest

from domain.values import Role
from infra.auth.api_keys import Subjects, subjects_problem

SOMEBODY = frozenset({"x"})


@pytest.mark.parametrize(
    ("role", "subjects"),
    [
        ("admin", Subjects()),
        ("auditor", Subjects()),
        ("creator", Subjects(creator_ids=SOMEBODY)),
        ("brand", Subjects(brand_ids=SOMEBODY)),
        ("brand", Subjects(advertiser_ids=SOMEBODY)),
        ("brand", Subjects(brand_ids=SOMEBODY, advertiser_ids=SOMEBODY)),
    ],
)
def test_a_role_may_have_these_subjects(role: Role, subjects: Subjects) -> None:
    assert subjects_problem(role, subjects) is None


@pytest.mark.parametrize(
    ("role", "subjects"),
    [
        ("admin", Subjects(creator_ids=SOMEBODY)),
        ("subscriber", Subjects(brand_ids=SOMEBODY)),
        ("creator", Subjects()),
        ("creator", Subjects(creator_ids=SOMEBODY, brand_ids=SOMEBODY)),
        ("brand", Subjects()),
        ("brand", Subjects(creator_ids=SOMEBODY, brand_ids=SOMEBODY)),
    ],
)
def test_a_role_may_not_have_these_subjects(role: Role, subjects: Subjects) -> None:
    assert subjects_problem(role, subjects) is not None
