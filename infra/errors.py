"""What can go wrong between a command and the log, other than a rule saying no.

Unavailable            the database is away, a queue is full or a wait ran out; the request may be sent again
LedgerElsewhere        another server serves the ledger; the request may be sent again
Unreadable             an event cannot be read by this version of the program, and so neither can what rests on it
IdempotencyMismatch    the Idempotency-Key belongs to another request
IdempotencyRunning     the first request with the Idempotency-Key is still running
KeyNoLongerValid       the API key was revoked or expired on the way from the door to the log
KeyNotRotatable        the API key has no text that could be changed
TokenRefused           the bearer token cannot be trusted
"""

from __future__ import annotations

from typing import Final

MOVED: Final = "The ledger is moving to another server. Nothing was done. Try again in a moment."


class Unavailable(Exception):
    """The service is unavailable."""

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        """Say why, and after how many seconds to try again."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after


class LedgerElsewhere(Unavailable):
    """Another server serves the ledger: it has moved there, or is being copied from there.

    Attributes:
        ledger_id: the ledger.
        server: the name of that server.

    """

    def __init__(self, ledger_id: int, server: str) -> None:
        """Say which ledger it is, and who serves it."""
        super().__init__(MOVED)
        self.ledger_id = ledger_id
        self.server = server


class Unreadable(Exception):
    """An event cannot be read by this version of the program."""

    def __init__(self, detail: str) -> None:
        """Say which, and why."""
        super().__init__(detail)
        self.detail = detail


class IdempotencyMismatch(Exception):
    """The Idempotency-Key was already used for a different request. Use a new key for each new request."""


class IdempotencyRunning(Exception):
    """The first request with this Idempotency-Key is still in progress. Try again in a moment."""


class KeyNoLongerValid(Exception):
    """The API key was revoked or has expired."""


class KeyNotRotatable(Exception):
    """Only a key that is neither revoked nor expired can be rotated. A token identity has no key to rotate."""


class TokenRefused(Exception):
    """The token is not accepted."""

    def __init__(self, detail: str) -> None:
        """Say why, and nothing of what the token holds."""
        super().__init__(detail)
        self.detail = detail
