"""Roles of the database: what each process may do in it.

The first migration grants them their rights.

A query of the API that finds an event by a position which it computes must make the position a column first, in a
subquery with `OFFSET 0`, and then find the event in a scalar subquery. Row-level security hides other ledgers, so
PostgreSQL compares nothing with an expression that could tell something of hidden rows, such as a sum that overflows,
before it knows which rows are hidden. It uses no index for it, and reads all events of the ledger.
"""

from typing import Final

# Sees and appends to one ledger at a time: the one that its session is bound to.
API: Final = "sparkledger_api"
# Sees all ledgers, and owns the tables of views.
WORKER: Final = "sparkledger_worker"
# Owns the functions that append. It may not log in.
LOG: Final = "sparkledger_log"

# Copies ledgers from one server to another, and removes copies that are not served. It may not log in: the owner takes
# it on.
MOVER: Final = "sparkledger_mover"

ROLES: Final = (API, WORKER, LOG, MOVER)
