"""Roles of the database: what each process may do in it.

The first migration grants them their rights.
"""

from typing import Final

# Sees and appends to one ledger at a time: the one that its session is bound to.
API: Final = "sparkledger_api"
# Sees all ledgers, and owns the tables of views.
WORKER: Final = "sparkledger_worker"
# Owns the functions that append. It may not log in.
LOG: Final = "sparkledger_log"

ROLES: Final = (API, WORKER, LOG)
