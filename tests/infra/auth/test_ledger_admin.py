"""Administration of ledgers: a name is taken once, and an unknown one is refused by name."""

from __future__ import annotations

import pytest

from infra.auth.ledger_admin import LedgerExists
from tests.infra.opened import Opened


async def test_a_ledgers_name_is_taken_once(opened: Opened) -> None:
    await opened.ledger_admin.create("main")
    with pytest.raises(LedgerExists):
        await opened.ledger_admin.create("main")


async def test_an_unknown_ledger_is_named_in_the_refusal(opened: Opened) -> None:
    with pytest.raises(LookupError, match="no ledger named elsewhere"):
        await opened.ledger_admin.id_of("elsewhere")
