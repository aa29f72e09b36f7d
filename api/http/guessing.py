"""Guesses at secrets: how many codes that nobody generated a key may try."""

from __future__ import annotations

from api.http.caller import Caller
from api.http.dependencies import limits_of
from api.http.problems import too_many
from domain.errors import Unknown


def refuse_guessing(caller: Caller) -> None:
    limit = limits_of(caller.request.scope).unknown_codes
    wait_s = limit.wait_s(caller.key.key_id)
    if wait_s > 0:
        raise too_many("too_many_unknown_codes", wait_s, limit.policy)


def unknown_secret(caller: Caller) -> Unknown:
    """Count an attempt at a code that nobody generated against the key; `denied_attempts` counts it for statistics."""
    count_guess(caller)
    return Unknown("code")


def count_guess(caller: Caller) -> None:
    limits_of(caller.request.scope).unknown_codes.take(caller.key.key_id)
