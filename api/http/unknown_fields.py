"""Unknown fields of a body: of very many, all but a few are counted and left out before anything looks at them.

To validate a body takes a moment for each field, and to describe what is wrong with each takes longer.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from pydantic import BaseModel

# Of one object. More are not described either.
MAX_UNKNOWN: Final = 20


class KnownFields:
    """The fields that a model has, and those of the models within it."""

    def __init__(self, model: type[BaseModel]) -> None:
        """Look at a model."""
        self.names = frozenset(field.alias or name for name, field in model.model_fields.items())
        self.within = {
            field.alias or name: KnownFields(found)
            for name, field in model.model_fields.items()
            if (found := model_in(field.annotation)) is not None
        }

    def without_excess(self, sent: Any) -> tuple[Any, int]:
        """Return what was sent with at most `MAX_UNKNOWN` unknown fields in each object, and how many were left out."""
        if not isinstance(sent, dict):
            return sent, 0
        left_out = 0
        if len(sent) > len(self.names) + MAX_UNKNOWN:
            excess = [name for name in sent if name not in self.names][MAX_UNKNOWN:]
            left_out = len(excess)
            sent = dict(sent)
            for name in excess:
                del sent[name]
        for name in self.within.keys() & sent.keys():
            inner, more = self.within[name].without_excess(sent[name])
            if more:
                sent = {**sent, name: inner}
                left_out += more
        return sent, left_out


def model_in(kind: Any) -> type[BaseModel] | None:
    """Return the model that a type is, or may be, or holds."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((model for one in get_args(kind) if (model := model_in(one)) is not None), None)
