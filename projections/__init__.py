"""Views of the log: one file for each question, with its tables, its handlers and its queries."""

from typing import Any, Final

from projections import (
    advertisers,
    campaigns,
    codes,
    event_index,
    expiring,
    figures,
    permissions,
    redemptions,
    shares,
    statistics,
)
from projections.engine.view import View

# All views. A new one takes one file, one line here and one test.
VIEWS: Final[tuple[View[Any], ...]] = (
    codes.VIEW,
    event_index.VIEW,
    permissions.VIEW,
    shares.VIEW,
    advertisers.VIEW,
    redemptions.VIEW,
    campaigns.VIEW,
    expiring.VIEW,
    statistics.VIEW,
    figures.VIEW,
)
