"""Guesses at secrets: how many codes that nobody generated a key may try."""

from __future__ import annotations

from typing import Final

from api.http.caller import Caller
from api.http.dependencies import limits_of
from api.http.problems import Problem, too_many
from domain.errors import Unknown
from domain.pasted import Hint, secret_hint

# What to do about a code that nobody knows, by what it looks like.
_ADVICE: Final[dict[Hint, str]] = {
    "percent_encoded": "It looks percent-encoded. Send the code as TikTok shows it.",
    "cut_off": "It looks cut off. Copy the whole code.",
    "several_codes": "It looks like several codes. Send one code at a time.",
    "video_link": "It looks like a link to a video. Send the code that the creator generated for it.",
    "masked_code": "It looks like a masked code. Ask for the code itself.",
}


def refuse_guessing(caller: Caller) -> None:
    limit = limits_of(caller.request.scope).unknown_codes
    wait_s = limit.wait_s(caller.key.key_id)
    if wait_s > 0:
        raise too_many("too_many_unknown_codes", wait_s, limit.policy)


def unknown_secret(caller: Caller, secret: str) -> Problem:
    """Count an attempt at a code that nobody generated against the key; `denied_attempts` counts it for statistics.

    The problem says what the text looks like, so that whoever pasted it can find the mistake.
    """
    count_guess(caller)
    unknown, hint = Unknown("code"), secret_hint(secret)
    if hint is None:
        return Problem(unknown.code, unknown.detail)
    return Problem(unknown.code, f"{unknown.detail} {_ADVICE[hint]}", members={"hint": hint})


def count_guess(caller: Caller) -> None:
    limits_of(caller.request.scope).unknown_codes.take(caller.key.key_id)
