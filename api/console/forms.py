"""Forms: their fields, and what the API says is wrong with what was entered."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from api.console.wording import words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api.console.adapter import Declined

FORM_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form.

    Attributes:
        name: of the parameter of the API.
        label: what it is called.
        kind: what is entered; `secret` is a code, which must be kept exactly as it was pasted.
        choices: what can be chosen, each with what it is called.
        hint: what else one must know.
        is_required: whether the form cannot be sent without it.

    """

    name: str
    label: str
    kind: Literal["text", "long", "secret", "time", "choice", "check"] = "text"
    choices: tuple[tuple[str, str], ...] = ()
    hint: str = ""
    is_required: bool = False


def choice(name: str, label: str, values: Iterable[str], hint: str = "") -> Field:
    """Return a field with fixed values."""
    return Field(name, label, "choice", tuple((value, words(value)) for value in values), hint)


def either(name: str, label: str, yes: str, no: str) -> Field:
    """Return a field for something that is so, or is not."""
    return Field(name, label, "choice", (("true", yes), ("false", no)))


def problems_of(declined: Declined) -> dict[str, str]:
    """Return what the API says is wrong, by the name of the field; what is wrong besides, under no name."""
    found: list[dict[str, Any]] = declined.problem.get("errors", [])
    return {_field_of(str(one.get("pointer") or "")): str(one["problem"]) for one in found} or {"": str(declined)}


def _field_of(pointer: str) -> str:
    """Return the last name of a JSON pointer that is no place in a list."""
    names = [name for name in pointer.split("/") if name and not name.isdigit()]
    return names[-1] if names else ""


def new_form_id() -> str:
    """Return what tells one form from another, so that one that is sent twice is carried out once."""
    return secrets.token_urlsafe(FORM_ID_BYTES)
