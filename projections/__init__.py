"""Projections remember: one file for each question, each with its table, its handlers and its queries."""

from typing import Any, Final

from projections import campaigns, codes, expiring, history, permissions, redemptions, shares, statistics
from projections.view import View

# Every view there is. A new one is one file, one line here and one test.
VIEWS: Final[tuple[View[Any], ...]] = (
    codes.VIEW,
    history.VIEW,
    permissions.VIEW,
    shares.VIEW,
    redemptions.VIEW,
    campaigns.VIEW,
    expiring.VIEW,
    statistics.VIEW,
)
