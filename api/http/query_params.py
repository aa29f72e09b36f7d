"""What reads take in their query: one model for each, with nothing unknown let through."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Self, cast
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from api.http.fields import (
    MAX_POSITION,
    MOMENT_SCHEMA,
    VIDEO_ID_EXACT,
    CreatorName,
    Id,
    Moment,
    VideoId,
    parse_moment,
)
from api.http.problems import malformed_query
from api.http.validation_messages import message_of

LIMIT: Final = 100
MAX_LIMIT: Final = 1_000
MAX_CURSOR_CHARACTERS: Final = 500
MAX_Q_CHARACTERS: Final = 500
# Longer than any number that is taken, so that one too large is told so; and bounded, for reading digits takes longer
# the more there are.
_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,99}")
# What the bytes that are no UTF-8 have become: looked for, it would find nothing, and say nothing of why.
_REPLACEMENT: Final = "\ufffd"
_NO_UTF_8: Final = PydanticCustomError(
    "utf_8", "This is not valid UTF-8, or contains the replacement character U+FFFD."
)
# A plus stands for a space in a query, unless it is written as %2B.
_LOST_PLUS: Final = re.compile(r".*[Tt].*[0-9] [0-9]{2}:[0-9]{2}")


def whole_number(value: object) -> object:
    """Read a number from the query: digits alone, for `1_0`, ` 1` and `1.0` are slips, not numbers."""
    if isinstance(value, str) and _WHOLE.fullmatch(value) is None:
        raise PydanticCustomError("whole", "Expected a whole number, 0 or greater.")
    return int(value) if isinstance(value, str) else value


def _code_id(value: object, read: ValidatorFunctionWrapHandler) -> object:
    try:
        return read(value)
    except ValidationError:  # the library's own message shows a part of what was sent
        raise PydanticCustomError("code_id", "Expected the id of a code, which is a UUID.") from None


def _as_of(value: object) -> datetime | int:
    if isinstance(value, str) and _WHOLE.fullmatch(value) is not None:
        position = int(value)
        if position > MAX_POSITION:
            raise PydanticCustomError("as_of", "No ledger can have this position.")
        return position
    return parse_moment(value)


# What an error has besides its sentence.
_OF_ERRORS: Final = frozenset({"reason", "code", "pasted", "offset"})


def _in_a_sentence(error: ErrorDetails, known: list[str]) -> InitErrorDetails:
    """Return an error with a sentence in place of the library's words, and nothing of what was sent."""
    loc, message = error["loc"], message_of(error)
    match error["type"]:
        case "extra_forbidden":
            loc = ()
            message = f"Unknown parameter. Known parameters: {', '.join(known)}."
        case "moment" if isinstance(error["input"], str) and _LOST_PLUS.fullmatch(error["input"]):
            message = "In a query, + means a space. Write %2B for the + of an offset, or give the time with Z."
    # The message is a template, and holds nothing to fill in.
    reason = {name: found for name, found in error.get("ctx", {}).items() if name in _OF_ERRORS}
    return {"type": PydanticCustomError("parameter", cast("Any", message), reason or None), "loc": loc, "input": None}


# The bounds come before the reading: so they stand in the reference too.
AnyPosition = Annotated[int, Field(ge=0, le=MAX_POSITION), BeforeValidator(whole_number)]
LedgerHistory = Annotated[
    UUID | None,
    Field(
        description="The history that `after` is of, as in `Ledger-History` of an earlier response, which can be sent "
        "as a header instead. Needed once the ledger has had several histories.",
        examples=["5d0a2b9e-4f3c-4a57-9a43-0f6f6b7a1c02"],
    ),
]
# How many events a part of the log has that is not empty.
TreeSize = Annotated[int, Field(ge=1, le=MAX_POSITION), BeforeValidator(whole_number)]
Number = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(whole_number)]
Size = Annotated[int, Field(ge=1, le=MAX_LIMIT), BeforeValidator(whole_number)]
AtLeast = Annotated[
    AnyPosition | None,
    Field(description="Wait for at most 5 seconds until this position has been read.", examples=[1]),
]
AsOf = Annotated[
    datetime | int | None,
    BeforeValidator(_as_of),
    WithJsonSchema({"anyOf": [MOMENT_SCHEMA, {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}]}),
    Field(description="Answer as the ledger knew at this time or position.", examples=["2026-03-01T12:00:00Z"]),
]
At = Annotated[Moment | None, Field(description="Answer as it was true at this effective time.")]
Limit = Annotated[Size, Field(description="The maximum number of entries in a page.", examples=[LIMIT])]
CodeId = Annotated[
    UUID,
    WrapValidator(_code_id),
    WithJsonSchema({"type": "string", "format": "uuid"}),
    Field(examples=["0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"]),
]


class QueryModel(BaseModel):
    """A query: unknown parameters are refused, because a misspelt filter would filter nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _told_in_sentences(cls, sent: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Say what is wrong in sentences, and what is known where something is not; never what was sent."""
        given = sent.items() if isinstance(sent, dict) else ()
        unreadable = [name for name, value in given if isinstance(value, str) and _REPLACEMENT in value]
        try:
            found = read(sent)
        except ValidationError as error:
            known = [field.alias or name for name, field in cls.model_fields.items()]
            wrong = [_in_a_sentence(e, known) for e in error.errors(include_url=False)]
            once = {(e["loc"], str(e["type"])): e for e in wrong}
            raise ValidationError.from_exception_data(cls.__name__, list(once.values()), hide_input=True) from None
        if unreadable:
            lost: list[InitErrorDetails] = [{"type": _NO_UTF_8, "loc": (name,), "input": None} for name in unreadable]
            raise ValidationError.from_exception_data(cls.__name__, lost, hide_input=True)
        return found


def refuse_empty(
    since: datetime | None, until: datetime | None, since_name: str = "from", until_name: str = "to"
) -> None:
    """Refuse a range of time that holds nothing.

    Args:
        since: the first moment in it.
        until: the first moment after it.
        since_name: the parameter of the one.
        until_name: and of the other.

    Raises:
        Problem: no moment lies in it.

    """
    if since is not None and until is not None and since >= until:
        raise malformed_query(until_name, f"This must be later than `{since_name}`: this range is empty.")


EitherCursor = Annotated[
    str | None,
    StringConstraints(max_length=MAX_CURSOR_CHARACTERS),
    Field(description="The `next_cursor` or `prev_cursor` of another page with the same filters."),
]
NextCursor = Annotated[
    str | None,
    StringConstraints(max_length=MAX_CURSOR_CHARACTERS),
    Field(description="The `next` of the previous page, with the same filters."),
]
# Until there were pages these were whole: a page that is not asked for by size is as long as one can be.
LongLimit = Annotated[Size, Field(description="The maximum number of entries in a page.", examples=[LIMIT])]
ByCreator = Annotated[CreatorName | None, Field(description="Only of this creator's codes.")]
ByVideo = Annotated[VideoId | None, Field(description="Only of this video's codes.")]
ByCode = Annotated[CodeId | None, Field(description="Only of this code.")]
ByAdvertiser = Annotated[Id | None, Field(description="Only of this advertiser account.", examples=["adv-7001"])]
From = Annotated[Moment | None, Field(alias="from", description="At this effective time or later.")]
To = Annotated[Moment | None, Field(description="Before this effective time.")]


def _flag(value: object) -> object:
    if value not in {"true", "false"}:
        raise PydanticCustomError("flag", "Expected true or false.")
    return value == "true"


Flag = Annotated[bool, BeforeValidator(_flag), WithJsonSchema({"type": "boolean"})]
Exact = Annotated[Flag | None, Field(description=VIDEO_ID_EXACT)]


class InTime(QueryModel):
    """A query whose entries lie between two moments."""

    from_: From = None
    to: To = None

    @model_validator(mode="after")
    def _no_empty_range(self) -> Self:
        refuse_empty(self.from_, self.to)
        return self
