"""The kinds of values that requests and answers are made of, each with its bounds, its description and an example."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, cast

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from domain import pasted
from domain.campaign import two_decimals
from domain.values import ID_PATTERN, Sealed

MAX_TARGETING_BYTES: Final = 16 * 1024
MAX_TARGETING_DEPTH: Final = 8
MAX_POSITION: Final = 2**62
# Of a code as it is pasted, with all that surrounds it.
MAX_PASTED_CHARACTERS: Final = 4_096
MAX_TEXT_CHARACTERS: Final = 4_000
MAX_REASON_CHARACTERS: Final = 500
MAX_NAME_CHARACTERS: Final = 200
# RFC 3339, for the reference, with the years of a ledger alone: what it lets through is accepted.
_RFC3339_PATTERN: Final = (
    r"^(20[0-9]{2}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))|20([02468][048]|[13579][26])-02-29)"
    r"[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
ID_EXPECTED: Final = "Expected an id: 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -"
# Codes of ISO 4217 that stand for no currency: for tests, and for transactions without one.
NO_CURRENCIES: Final = frozenset({"XTS", "XXX"})
NO_NUL: Final = r"^[^\u0000]*$"
SHA256_PATTERN: Final = r"^[0-9a-f]{64}$"
AMOUNT_PATTERN: Final = r"^([1-9][0-9]{0,11}(\.[0-9]{1,2})?|0\.(0[1-9]|[1-9][0-9]?))$"
# Of usage rights.
MAX_PLATFORMS: Final = 20
PLATFORM_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,31}$"
CURRENCY_PATTERN: Final = r"^[A-Z]{3}$"
UUID_PATTERN: Final = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
NO_CONTROL: Final = r"^[^\u0000-\u001f\u007f-\u009f]*$"
# For the reference; `_not_blank` decides.
NOT_BLANK: Final = r"^[^\u0000]*[^\u0000\s][^\u0000]*$"


def _a_currency(code: str) -> str:
    if code in NO_CURRENCIES:
        raise PydanticCustomError("currency", "This ISO 4217 code stands for no currency. Expected one such as USD.")
    return code


def parse_moment(value: object) -> datetime:
    """Read a time of RFC 3339 with its offset, or one in TikTok's form, which is UTC, and turn it to UTC.

    Raises:
        PydanticCustomError: it is none, or lies outside of the years that this ledger speaks of.

    """
    if not isinstance(value, str):
        raise PydanticCustomError("moment", cast("Any", pasted.SENTENCES["not_a_time"]), {"reason": "not_a_time"})
    try:
        return pasted.moment(value)
    except pasted.Unusable as error:
        raise PydanticCustomError("moment", cast("Any", str(error)), {"reason": error.reason}) from None


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "A string must not contain the NUL character.")
    return text


def _not_blank(text: str) -> str:
    """Refuse white space alone; whether a text can be empty, its length says."""
    if text and not text.strip():
        raise PydanticCustomError("blank", "This must not be blank.")
    return text


# Keys, tokens and signing secrets of this API, by their beginnings.
_ISSUED: Final = re.compile(r"(?:slk|slt|whsec)_[A-Za-z0-9+/=_-]{16}")


def refuse_secret(text: str) -> str:
    """Refuse a text that is kept in clear, if it contains a code or a key."""
    if pasted.contains_secret(text) or ("_" in text and _ISSUED.search(text) is not None):
        raise PydanticCustomError(
            "contains_secret", cast("Any", pasted.SENTENCES["contains_secret"]), {"reason": "contains_secret"}
        )
    return text


def unusable(error: pasted.Unusable) -> PydanticCustomError:
    """Return the error of a field that holds what cannot be taken; its reason stands beside the sentence."""
    return PydanticCustomError("unusable", cast("Any", str(error)), {"reason": error.reason, "code": error.code})


def _secret(text: str) -> Sealed:
    """Take off what a paste leaves around a code."""
    try:
        return Sealed(pasted.stored_secret(text))
    except pasted.Unusable as error:
        raise unusable(error) from None


def _recorded_secret(secret: Sealed) -> Sealed:
    """Refuse what is certainly not a code that was generated."""
    try:
        return Sealed(pasted.recorded_secret(secret))
    except pasted.Unusable as error:
        raise unusable(error) from None


@dataclass(frozen=True, slots=True)
class VideoIdPolicy:
    """What a request's models are validated with: which video ids are accepted.

    Attributes:
        accepts: the setting.
        recorded: ids that the ledger has, which are accepted as they are.

    """

    accepts: pasted.VideoIds
    recorded: frozenset[str] = frozenset()


def usable_video_id(text: str, policy: VideoIdPolicy, *, exact: bool) -> str:
    """Reduce a link to the id that it holds, and refuse an id that cannot be a video's.

    Raises:
        PydanticCustomError: its context has what was pasted, so that it can be looked for in the ledger.

    """
    if text in policy.recorded:
        return text
    try:
        return pasted.video_id(text, policy.accepts, exact=exact)
    except pasted.Unusable as error:
        if policy.accepts == "any" and error.reason == "not_a_video_id":
            raise PydanticCustomError("id", ID_EXPECTED) from None
        context = {"reason": error.reason, "code": error.code, "pasted": text}
        raise PydanticCustomError("unusable", cast("Any", str(error)), context) from None


def video_id_policy(context: object) -> VideoIdPolicy:
    """Return which video ids are accepted, from the context of a validation."""
    return context if isinstance(context, VideoIdPolicy) else VideoIdPolicy("tiktok")


def _video_id(text: str, info: ValidationInfo) -> str:
    return usable_video_id(text, video_id_policy(info.context), exact=info.data.get("video_id_exact") is True)


class PastedVideoId(str):
    """A video's id, and the creator whom the link names that it was taken from, if it was one."""

    __slots__ = ("creator",)
    creator: str | None

    def __new__(cls, video_id: str, creator: str | None) -> Self:
        """Keep both."""
        pasted_id = super().__new__(cls, video_id)
        pasted_id.creator = creator
        return pasted_id


def _pasted_video_id(text: Any, reduce: ValidatorFunctionWrapHandler) -> PastedVideoId:
    return PastedVideoId(reduce(text), pasted.creator_of_link(text))


def _shown_creator(text: str) -> str:
    """Take a creator's id out of a link to their profile, and an @ off it."""
    try:
        return pasted.shown_creator_id(text)
    except pasted.Unusable as error:
        raise unusable(error) from None


def _creator_name(text: str) -> str:
    """Reduce a creator's id to the form that all its spellings have in common."""
    return pasted.creator_name(_shown_creator(text))


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is too deep, too large, or what no store and no other JSON parser would give back unchanged."""
    if _depth(value) > MAX_TARGETING_DEPTH:
        raise PydanticCustomError("depth", f"This is nested more than {MAX_TARGETING_DEPTH} levels deep.")
    if len(orjson.dumps(value)) > MAX_TARGETING_BYTES:
        raise PydanticCustomError("size", f"This is larger than {MAX_TARGETING_BYTES // 1024} KiB.")
    return value


def _depth(value: object) -> int:
    """Return how deep a value is nested, one more than allowed for all that is deeper; walks without recursion."""
    level, depth = [value], 0
    while level and depth <= MAX_TARGETING_DEPTH:
        depth += 1
        below: list[object] = []
        for item in level:
            match item:
                case dict():
                    below += [*item.keys(), *item.values()]
                case list():
                    below += item
                case str():
                    _no_nul(item)
                case float() if not math.isfinite(item):
                    raise PydanticCustomError("number", "A number is too large.")
                case _:
                    pass
        level = [item for item in below if isinstance(item, dict | list)]
        for item in below:
            if isinstance(item, str):
                refuse_secret(_no_nul(item))
    return depth


Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
PASTED_CREATOR_ID = WithJsonSchema(
    {"type": "string", "minLength": 1, "maxLength": MAX_PASTED_CHARACTERS, "examples": ["ana.creates"]}
)
# As it is shown where it is the first spelling.
CreatorId = Annotated[
    str,
    StringConstraints(max_length=MAX_PASTED_CHARACTERS),
    AfterValidator(_shown_creator),
    PASTED_CREATOR_ID,
    Field(
        description="Your id for the creator's TikTok account, or a link to their profile. An @ before it makes no "
        "difference, and neither does upper or lower case."
    ),
]
# As it is compared.
CreatorName = Annotated[
    str, StringConstraints(max_length=MAX_PASTED_CHARACTERS), AfterValidator(_creator_name), PASTED_CREATOR_ID
]
VIDEO_ID_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_PASTED_CHARACTERS,
    "examples": ["7312345678901234567"],
}
VideoId = Annotated[
    str,
    StringConstraints(max_length=MAX_PASTED_CHARACTERS),
    AfterValidator(_video_id),
    WithJsonSchema(VIDEO_ID_SCHEMA),
    Field(description="The video that the code is for: its id of 15 to 20 digits, or a link to the post."),
]
NewVideoId = Annotated[VideoId, WrapValidator(_pasted_video_id)]
VIDEO_ID_EXACT: Final = (
    "Whether the zeros at the end of the video id are real, and not the result of rounding by a spreadsheet."
)
BrandId = Annotated[Id, Field(description="Your id for the brand.", examples=["acme"])]
CodeIdText = Annotated[
    str, StringConstraints(pattern=UUID_PATTERN), Field(examples=["0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"])
]
AdvertiserId = Annotated[Id, Field(description="The advertiser account in TikTok Ads Manager.", examples=["adv-7001"])]
CampaignId = Annotated[Id, Field(description="Your id for the campaign.", examples=["spring-sale"])]
MOMENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "format": "date-time",
    "pattern": _RFC3339_PATTERN,
    "examples": ["2026-03-01T12:00:00Z"],
}
Moment = Annotated[datetime, BeforeValidator(parse_moment), WithJsonSchema(MOMENT_SCHEMA)]
Sha256 = Annotated[
    str,
    StringConstraints(pattern=SHA256_PATTERN),
    Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]),
]
Secret = Annotated[
    str,
    StringConstraints(max_length=MAX_PASTED_CHARACTERS),
    AfterValidator(_secret),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": pasted.MIN_SECRET_CHARACTERS,
            "maxLength": MAX_PASTED_CHARACTERS,
            "pattern": NO_NUL,
            "examples": ["#k9/Tz+example+of+a+spark+ad+code=="],
            "description": (
                "The authorization code as it was pasted, of "
                f"{pasted.MIN_SECRET_CHARACTERS} to {pasted.MAX_SECRET_CHARACTERS} characters. White space, quotes and "
                "invisible characters around it are removed. Codes that differ only in leading # and in the "
                "percent-encoding of + / = # are the same code."
            ),
        }
    ),
]
RecordedSecret = Annotated[Secret, AfterValidator(_recorded_secret)]
Note = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_TEXT_CHARACTERS),
    AfterValidator(_no_nul),
    AfterValidator(_not_blank),
    AfterValidator(refuse_secret),
    AfterValidator(Sealed),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS, "pattern": NOT_BLANK}),
]
Text = Annotated[str, StringConstraints(pattern=NO_NUL), AfterValidator(refuse_secret)]
SingleLine = Annotated[
    str,
    StringConstraints(pattern=NO_CONTROL),
    AfterValidator(_not_blank),
    AfterValidator(refuse_secret),
]
Reason = Annotated[
    Text,
    StringConstraints(min_length=1, max_length=MAX_REASON_CHARACTERS),
    AfterValidator(_not_blank),
    Field(examples=["Shared with the wrong brand"], json_schema_extra={"pattern": NOT_BLANK}),
]
Name = Annotated[
    Text,
    StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS),
    AfterValidator(_not_blank),
    Field(json_schema_extra={"pattern": NOT_BLANK}),
]
Amount = Annotated[
    str,
    StringConstraints(pattern=AMOUNT_PATTERN),
    AfterValidator(two_decimals),
    Field(description="A positive decimal number as a string. It is kept with two decimals.", examples=["500.00"]),
]
Currency = Annotated[
    str,
    StringConstraints(pattern=CURRENCY_PATTERN),
    AfterValidator(_a_currency),
    Field(
        description="The currency's ISO 4217 code.",
        examples=["USD"],
        json_schema_extra={"not": {"enum": sorted(NO_CURRENCIES)}},
    ),
]
# Stands in a schema for "any JSON without NUL, at any depth"; the reference says so with a schema that names itself.
ANY_JSON: Final = "x-any-json"
Targeting = Annotated[
    dict[str, Any],
    AfterValidator(_bounded),
    WithJsonSchema({"type": "object", ANY_JSON: True, "examples": [{"countries": ["US", "CA"], "age_min": 18}]}),
]
Position = Annotated[int, Field(ge=1, le=MAX_POSITION, examples=[42])]
State = Literal["generated", "shared", "redeemed", "superseded", "expired", "revoked"]
# A moment that lies ahead whenever the reference is read.
LATER = "2099-01-01T00:00:00Z"
CaptionHash = Annotated[
    Sha256 | None, Field(description="The SHA-256 of the video's caption, in lowercase hexadecimal.")
]
