"""The models that the resources' own build on: bodies of requests, answers, and the problem."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from api.http.fields import Moment
from domain.pasted import Hint


class Body(BaseModel):
    """A body: unknown fields are refused, types are not bent, and no error shows what was sent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Command(Body):
    """The body of a command."""

    effective_at: Annotated[
        Moment | None,
        Field(
            description=(
                "When this happened in the world, if earlier than now. Only for keys with the role operator or admin."
            )
        ),
    ] = None


class ImmediateCommand(Body):
    """The body of a command that takes effect when it is recorded, and at no other time."""

    @property
    def effective_at(self) -> None:
        """When it takes effect: nobody can say otherwise."""
        return


def absent() -> Any:
    """Stand for a field that some answers have and others lack; it is never null."""


class Answer(BaseModel):
    """An answer: every field is always there."""

    model_config = ConfigDict(extra="forbid")


class FieldProblem(Answer):
    pointer: Annotated[
        str, Field(description="A JSON Pointer to the field. Empty for the whole body.", examples=["/days"])
    ]
    problem: Annotated[str, Field(description="What is wrong.", examples=["This is required."])]
    reason: Annotated[
        str,
        Field(
            description="A stable name for what is wrong, where something was pasted that cannot be used.",
            examples=["several_codes"],
        ),
    ] = Field(default_factory=absent)
    offset: Annotated[int, Field(ge=0, description="The offset of the wrong character, from 0.")] = Field(
        default_factory=absent
    )


class Problem(BaseModel):
    """The response to a refused or failed request (RFC 9457)."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[
        str, Field(description="A link to the description of this kind of problem.", examples=["/docs#code_expired"])
    ]
    title: Annotated[str, Field(description="The problem's short name.", examples=["Code expired"])]
    status: Annotated[int, Field(description="The HTTP status.", examples=[409])]
    detail: Annotated[str, Field(description="What happened, why, and what to do.")]
    code: Annotated[
        str,
        Field(description="The stable code of the problem. Let your program decide by it.", examples=["code_expired"]),
    ]
    retryable: Annotated[bool, Field(description="Whether the same request can succeed later.")]
    request_id: Annotated[str, Field(description="The id of this request in our logs.")]
    errors: Annotated[
        list[FieldProblem], Field(description="For malformed input: each wrong field and why, 20 of them at most.")
    ] = Field(default_factory=absent)
    more_errors: Annotated[
        int, Field(ge=1, description="The number of further errors, if there are more than `errors` describes.")
    ] = Field(default_factory=absent)
    conflict_id: Annotated[str, Field(description="The id of what is in the way.")] = Field(default_factory=absent)
    hint: Annotated[Hint, Field(description="What a code that nobody knows looks like.", examples=["cut_off"])] = Field(
        default_factory=absent
    )
    last_position: Annotated[
        int, Field(ge=0, description="The last position of the ledger, if a later one was sent.")
    ] = Field(default_factory=absent)
    history: Annotated[UUID, Field(description="The present history of the ledger, if another was sent.")] = Field(
        default_factory=absent
    )
    sent_history: Annotated[UUID, Field(description="The history that was sent.")] = Field(default_factory=absent)
    last_common_position: Annotated[
        int, Field(ge=0, description="The last position that both histories have in common, if it is known.")
    ] = Field(default_factory=absent)
    current_version: Annotated[int, Field(description="The current version, if If-Match named another.")] = Field(
        default_factory=absent
    )
    begun_at: Annotated[
        str,
        WithJsonSchema({"type": "string", "format": "date-time"}),
        Field(description="When the code began, if `at` is earlier."),
    ] = Field(default_factory=absent)
