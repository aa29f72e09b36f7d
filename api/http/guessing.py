"""Guesses at secrets: how many codes that nobody recorded a key may try.

A key has a budget of distinct misses; the same miss again costs nothing, and what was found costs nothing. A guess is
taken from the budget before the answer is known, and given back where it was none: so requests that arrive together
cannot pass the budget. Over it, hits and misses alike are refused, so that the refusal tells nothing of a secret.
Operators and admins may read every code, so they have nothing to guess, and no budget.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from api.http.caller import ACTS_FOR_ALL, Caller
from api.http.dependencies import limits_of
from api.http.problems import Problem, too_many
from domain.errors import Unknown
from domain.pasted import Hint, secret_hint, secret_name

if TYPE_CHECKING:
    from collections.abc import Iterator

# What to do about a code that nobody knows, by what it looks like.
_ADVICE: Final[dict[Hint, str]] = {
    "percent_encoded": "It looks percent-encoded. Send the code as TikTok shows it.",
    "cut_off": "It looks cut off. Copy the whole code.",
    "several_codes": "It looks like several codes. Send one code at a time.",
    "video_link": "It looks like a link to a video. Send the code that the creator generated for it.",
    "masked_code": "It looks like a masked code. Ask for the code itself.",
    "punctuation": "A punctuation mark follows it, which may be of the sentence around it. Send the code without it.",
}


class Guess:
    """One look for a secret. It is a miss once somebody says so."""

    def __init__(self, secret: str) -> None:
        """Begin with a secret as it was pasted."""
        self._secret = secret
        self.missed = False

    def miss(self) -> None:
        """Say that the answer tells whether the secret is recorded, to somebody who did not know it."""
        self.missed = True

    def unknown(self) -> Problem:
        """Return the problem of a code that nobody recorded, which is a miss.

        It says what the text looks like, so that anyone who pasted it can find the mistake.
        """
        self.miss()
        unknown, hint = Unknown("code"), secret_hint(self._secret)
        if hint is None:
            return Problem(unknown.code, unknown.detail)
        return Problem(unknown.code, f"{unknown.detail} {_ADVICE[hint]}", members={"hint": hint})


@contextmanager
def guessing(caller: Caller, secret: str) -> Iterator[Guess]:
    """Look for a secret within the budget of the caller's key.

    Raises:
        Problem: the budget is used up.

    """
    guess = Guess(secret)
    if caller.role in ACTS_FOR_ALL:
        yield guess
        return
    guesses, key_id = limits_of(caller.request.scope).guesses, caller.key.key_id
    wait_s = guesses.wait_s(key_id)
    if wait_s > 0:
        raise too_many("too_many_unknown_codes", wait_s, guesses.policy)
    guesses.take(key_id)
    try:
        yield guess
    finally:
        if not (guess.missed and guesses.is_new(key_id, secret_name(secret))):
            guesses.give_back(key_id)
