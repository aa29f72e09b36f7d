"""Projections remember: one file for each question, each with its table, its handlers and its queries."""

from typing import Any, Final

from projections import codes, expiring, history, permissions, redemptions
from projections.view import View

# Every view there is. A new one is one file, one line here and one test.
VIEWS: Final[tuple[View[Any], ...]] = (
    codes.VIEW,
    history.VIEW,
    permissions.VIEW,
    redemptions.VIEW,
    expiring.VIEW,
)
