"""What is wrong with a value that was sent: pydantic's own words name patterns, and may show what was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.http.fields import NO_CONTROL, NO_NUL
from domain.values import ID_PATTERN

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def sentence(error: ErrorDetails) -> str:  # noqa: C901, PLR0911 - one line for each kind of error
    """Say what is wrong, of an error that has its context."""
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "This is required."
        case "extra_forbidden":
            return "There is a field here that is not known."
        case "string_type":
            return "This is not a text."
        case "string_pattern_mismatch" if context["pattern"] == ID_PATTERN:
            return "An id is 1 to 128 characters of A-Z a-z 0-9 . _ : @ - and no others."
        case "string_pattern_mismatch" if context["pattern"] == NO_NUL:
            return "A text cannot hold the character NUL."
        case "string_pattern_mismatch" if context["pattern"] == NO_CONTROL:
            return "This cannot hold the end of a line, a tab or another control character."
        case "string_too_short" if context["min_length"] == 1:
            return "This is empty."
        case "string_too_long":
            return f"This is longer than {context['max_length']} characters."
        case "literal_error":
            return f"{context['expected']} is expected here."
        case "greater_than_equal":
            return f"This is less than {context['ge']:,}."
        case "less_than_equal":
            return f"This is more than {context['le']:,}."
        case _:
            return error["msg"]
