"""Filter forms: the filters of the API as fields, with what it says is wrong with one beside its field.

The form is sent by GET, so the address says what is shown. Filters that have no field of their own, such as those of a
link, stay in the address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from starlette.responses import RedirectResponse

from api.console.forms import Field, problems_of
from api.console.wording import in_utc, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.responses import Response

    from api.console.adapter import Declined
    from api.console.visit import Visit

# What of an address is a place in the list, and no filter.
PLACE: Final = frozenset({"cursor", "limit"})

VIDEO: Final = Field("video_id", "Video", hint="id or TikTok link")
CREATOR: Final = Field("creator_id", "Creator")
ACCOUNT: Final = Field("advertiser_id", "Advertiser account")
BRAND: Final = Field("brand_id", "Brand")


def times(label: str) -> tuple[Field, Field]:
    """Return the two filters of a span of time."""
    return Field("from", f"{label} from", "time", hint="UTC"), Field("to", f"{label} before", "time", hint="UTC")


def asked_of(visit: Visit, fields: Sequence[Field]) -> dict[str, str]:
    """Return the filters that an address has, with times as the API takes them."""
    in_time = {one.name for one in fields if one.kind == "time"}
    given = ((name, text.strip()) for name, text in visit.query.items() if name not in PLACE)
    return {name: in_utc(text) if name in in_time else text for name, text in given if text}


def without_empty(visit: Visit) -> Response | None:
    """Lead to the same address without the fields that were left empty; None if there are none."""
    query = visit.request.scope["query_string"].decode("latin-1")
    if not any(part.endswith("=") for part in query.split("&")):
        return None
    path = visit.request.scope["path"]
    return RedirectResponse(f"{path}?{urlencode(visit.query)}" if visit.query else path, 303)


@dataclass(frozen=True, slots=True)
class FilterForm:
    """A filter form as it is shown.

    Attributes:
        path: of the page.
        fields: its filters.
        asked: those that are set, by name.
        errors: what is wrong with a filter, by name.
        wrong: what is wrong besides.

    """

    path: str
    fields: Sequence[Field]
    asked: Mapping[str, str]
    errors: Mapping[str, str]
    wrong: Sequence[str]

    @property
    def kept(self) -> dict[str, str]:
        """Those that are set and have no field."""
        names = {one.name for one in self.fields}
        return {name: text for name, text in self.asked.items() if name not in names}

    @property
    def said(self) -> list[tuple[str, str]]:
        """What the filters say, for people."""
        labels = {one.name: one.label for one in self.fields}
        choices = {one.name: dict(one.choices) for one in self.fields}
        return [
            (labels.get(name, words(name)), choices.get(name, {}).get(text, text)) for name, text in self.asked.items()
        ]

    def address(self, path: str | None = None, **more: str | None) -> str:
        """Return the address of this list, or of another page with the same filters, and more."""
        query = {**self.asked, **{name: text for name, text in more.items() if text is not None}}
        path = path or self.path
        return f"{path}?{urlencode(query)}" if query else path


def filter_form(
    path: str, fields: Sequence[Field], asked: Mapping[str, str], declined: Declined | None = None
) -> FilterForm:
    """Return a form, with what the API refused of its filters."""
    if declined is None:
        return FilterForm(path, fields, asked, {}, ())
    errors = problems_of(declined)
    known = {one.name for one in fields}
    wrong = [text for name, text in errors.items() if name not in known]
    return FilterForm(path, fields, asked, errors, wrong)
