"""What is wrong with a value that was sent: pydantic's own words name patterns, and may show what was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.http.fields import NO_CONTROL, NO_NUL
from domain.values import ID_PATTERN

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def message_of(error: ErrorDetails) -> str:  # noqa: C901, PLR0911 - one line for each kind of error
    """Say what is wrong, of an error that has its context."""
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "This is required."
        case "extra_forbidden":
            return "Unknown field."
        case "string_type":
            return "Expected a string."
        case "string_pattern_mismatch" if context["pattern"] == ID_PATTERN:
            return "Expected an id: 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -"
        case "string_pattern_mismatch" if context["pattern"] == NO_NUL:
            return "A string must not contain the NUL character."
        case "string_pattern_mismatch" if context["pattern"] == NO_CONTROL:
            return "This must not contain line breaks, tabs or other control characters."
        case "string_too_short" if context["min_length"] == 1:
            return "This must not be empty."
        case "string_too_long":
            return f"This is longer than {context['max_length']} characters."
        case "literal_error":
            return f"Expected {context['expected']}."
        case "greater_than_equal":
            return f"The minimum is {context['ge']:,}."
        case "less_than_equal":
            return f"The maximum is {context['le']:,}."
        case _:
            return error["msg"]
