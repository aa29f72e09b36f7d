"""What is wrong with a value that was sent: pydantic's own words name patterns, and may show what was sent.

The name of an unknown field is repeated only if it is short, of letters and underscores, as misspelt names are. Else
a client that mixes up fields and values would find a secret in the answer, and in every log that keeps it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic_core.core_schema import ErrorType

from api.http.fields import (
    AMOUNT_PATTERN,
    CURRENCY_PATTERN,
    ID_EXPECTED,
    NO_CONTROL,
    NO_NUL,
    PLATFORM_PATTERN,
    SHA256_PATTERN,
    UUID_PATTERN,
)
from api.http.unknown_fields import model_in
from domain.values import ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import ErrorDetails

MAX_NAME_CHARACTERS: Final = 24
_PLAIN_NAME: Final = re.compile(rf"(?=.{{1,{MAX_NAME_CHARACTERS}}}\Z)[A-Za-z]+(?:_[A-Za-z]+)*")
# What the access log calls a route. Which routes there are, the application knows.
ROUTE_PATTERN: Final = (
    r"^((GET|POST|PUT|PATCH|DELETE) /[A-Za-z0-9/_.{}-]{0,100}|sparkledger( [a-z-]{1,20}){1,2}|first use|erasure)$"
)
ROUTE_EXPECTED: Final = "Expected a route as the access log shows it, such as `GET /v1/codes/{code_id}`."
_PATTERNS: Final = {
    ROUTE_PATTERN: ROUTE_EXPECTED,
    ID_PATTERN: ID_EXPECTED,
    NO_NUL: "A string must not contain the NUL character.",
    NO_CONTROL: "This must not contain line breaks, tabs or other control characters.",
    SHA256_PATTERN: "Expected a SHA-256 in lowercase hexadecimal: 64 of the characters 0-9 a-f.",
    AMOUNT_PATTERN: 'Expected an amount above 0 with at most 2 decimals, as a string such as "500.00".',
    CURRENCY_PATTERN: "Expected an ISO 4217 code, such as USD.",
    PLATFORM_PATTERN: "Expected a platform's name: 1 to 32 lowercase letters, digits or . _ -, such as tiktok.",
    UUID_PATTERN: "Expected a UUID in lowercase.",
}
_TYPES: Final = {
    "missing": "This is required.",
    "string_type": "Expected a string.",
    "bool_type": "Expected true or false.",
    "int_type": "Expected a whole number.",
    "int_from_float": "Expected a whole number.",
    "list_type": "Expected an array.",
    "dict_type": "Expected a JSON object.",
    "model_type": "Expected a JSON object.",
    "model_attributes_type": "Expected a JSON object.",
}
# Types of errors that the library knows; all others are ours, and have our sentences.
_OF_THE_LIBRARY: Final = frozenset(get_args(ErrorType))


def message_of(error: ErrorDetails, known: Sequence[str] = ()) -> str:  # noqa: PLR0911 - a line a kind
    """Say what is wrong, of an error that has its context; `known` are the fields that an unknown one is not among."""
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            name = str(error["loc"][-1])
            unknown = f"Unknown field `{name}`." if is_plain_name(name) else "Unknown field."
            return f"{unknown} Known fields: {', '.join(known)}."
        case "string_pattern_mismatch":
            return _PATTERNS[context["pattern"]]
        case "string_too_short" | "too_short" if context["min_length"] == 1:
            return "This must not be empty."
        case "string_too_long":
            return f"This is longer than {context['max_length']} characters."
        case "too_long":
            return f"This has more than {context['max_length']:,} entries."
        case "literal_error":
            return f"Expected {context['expected']}."
        case "greater_than_equal":
            return f"The minimum is {context['ge']:,}."
        case "less_than_equal":
            return f"The maximum is {context['le']:,}."
        case type_ if type_ in _OF_THE_LIBRARY:
            return _TYPES.get(type_, "This value is not valid here.")
        case _:
            return error["msg"]


def is_plain_name(name: str) -> bool:
    """Tell whether a name that a client chose may be repeated to it."""
    return _PLAIN_NAME.fullmatch(name) is not None


def fields_at(kind: Any, path: Sequence[int | str]) -> list[str]:
    """Return the names of the fields that a model has, or one within it, at a path of fields and places in lists."""
    model = model_in(kind)
    for part in path:
        if model is not None and isinstance(part, str) and part in model.model_fields:
            model = model_in(model.model_fields[part].annotation)
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]
