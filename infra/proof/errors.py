"""Why the log of a ledger is not sealed.

SealingStopped   something contradicts what was signed; an operator must look before anything else is signed
Overtaken        another sealer has sealed the same events; this one stops leading and looks again
"""

from __future__ import annotations


class SealingStopped(Exception):
    """Sealing has stopped."""


class Overtaken(Exception):
    """Another sealer is ahead."""
