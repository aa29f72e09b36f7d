r"""What `q` may say: a small language in which people search the audit trail.

    query     = *SP term *( 1*SP term ) *SP           all terms must hold; at most 20
    term      = [ "-" ] ( qualifier / text )          "-" negates; a text stands in the event's summary, in any case
    qualifier = name ":" ( values / span / delay )    a span for recorded and effective, a delay for late, else values
    name      = 1*( ALPHA / "_" )                     one of `QUALIFIERS`, in any case
    values    = value *( "," value )                  one of them must hold; at most 20
    span      = time / [ time ] ".." [ time ]         from the beginning of the first to the end of the last
    delay     = [ ">" ] 1*DIGIT ( "h" / "d" )         hours or days
    time      = year / year "-" month / year "-" month "-" day / a time of RFC 3339
    text      = quoted / bare                         a bare one is not AND, OR or NOT, nor begins with a curly quote
    value     = quoted / bare
    quoted    = DQUOTE 1*( any / "\" DQUOTE / "\" "\" ) DQUOTE
    bare      = 1*( any but SP, DQUOTE, and in values also "," )

For example `type:Shared,Redeemed -channel:dm recorded:2026-01..2026-03 "spring sale"`. Whatever is wrong is said with
the place of the character where it goes wrong, counted from 0, and what was expected there; never with what was sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast, get_args
from uuid import UUID

from pydantic_core import PydanticCustomError

from api.http.fields import VideoIdPolicy, parse_moment, usable_video_id
from domain import pasted
from domain.errors import REFUSALS
from domain.event_types import EVENT_TYPES
from domain.pasted import FIRST_YEAR, LAST_YEAR, Unusable, canonical_creator_id
from domain.values import ID_PATTERN, Channel, Source
from projections.event_index import LATE_AFTER
from projections.index_scan import Among, Between, Condition, Field, Positions, RecordedLate

MAX_TERMS: Final = 20
MAX_VALUES: Final = 20
MAX_DELAY_DAYS: Final = 36_500

_SPACE: Final = re.compile(r"\s+")
_NAME: Final = re.compile(r"([A-Za-z_]+):")
_BARE: Final = re.compile(r'[^\s"]+')
_BARE_VALUE: Final = re.compile(r'[^\s",]+')
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
# Its reason is one of the refusals, and searched with `refused`.
_CODED: Final = frozenset({"RedemptionRefused"})
# What people know from other searches, or what their editor made of a quote: looked for as texts, these find nothing,
# and a trail that seems to hold nothing is a wrong answer.
_OPERATORS: Final = frozenset({"AND", "OR", "NOT"})
_CURLY: Final = ("\u201c", "\u201d", "\u201e")
_ESCAPED: Final = re.compile(r"\\(.)")
_DELAY: Final = re.compile(r">?([0-9]{1,6})([hd])")
_POSITIONS: Final = re.compile(r"([0-9]{1,18})(?:\.\.([0-9]{1,18}))?")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DATE: Final = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?")
_TIME_EXPECTED: Final = (
    "Expected a year, a month, a day or an RFC 3339 time, such as 2026, 2026-03, 2026-03-01 or 2026-03-01T12:00:00Z."
)


class QueryError(Exception):
    """The query goes wrong at a character."""

    def __init__(self, offset: int, problem: str, unusable: Mapping[str, Any] | None = None) -> None:
        """Say at which character, counted from 0, and what was expected there; `unusable`: why a value cannot be used.

        The latter is the context of the error that `usable_video_id` raises.
        """
        super().__init__(problem)
        self.offset = offset
        self.problem = problem
        self.unusable = unusable


# The text of an event in which words are searched.
Searched = Literal["summary", "reason", "terms_version", "note"]


@dataclass(frozen=True, slots=True)
class Words:
    """Words that a text of an event contains, in any case, and not in the middle of other words.

    `alternatives` are the same for other words, one of which suffices. The version of the terms must be equal as a
    whole.
    """

    text: str
    negated: bool = False
    searched: Searched = "summary"
    alternatives: tuple[str, ...] = ()

    def pattern(self) -> re.Pattern[str]:
        """Return the pattern that finds them in a text in casefolded form."""
        texts = [text.casefold() for text in (self.text, *self.alternatives)]
        if self.searched == "terms_version":
            return re.compile(rf"\A(?:{'|'.join(map(re.escape, texts))})\Z")
        return re.compile("|".join(map(_whole_words, texts)))


def _whole_words(text: str) -> str:
    begins = r"(?<!\w)" if re.match(r"\w", text) else ""
    ends = r"(?!\w)" if re.search(r"\w$", text) else ""
    return begins + re.escape(text) + ends


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """A query: conditions on the index of events, and words that the events' texts must contain.

    `key_names` are names of API keys, each with whether it is negated: the ids of these keys are looked up later.
    """

    conditions: tuple[Condition, ...] = ()
    words: tuple[Words, ...] = ()
    key_names: tuple[tuple[tuple[str, ...], bool], ...] = ()

    @property
    def reads_notes(self) -> bool:
        """Whether it searches the texts of notes, which are sealed."""
        return any(words.searched == "note" for words in self.words)

    def among(self, field: Field, values: tuple[str, ...]) -> ParsedQuery:
        """Return a query that also demands that a field is one of some values."""
        return replace(self, conditions=(*self.conditions, Among(field, values)))


_Other = Literal["effective_at", "key_name", "late", "note", "position", "reason", "recorded_at", "terms_version"]


@dataclass(frozen=True, slots=True)
class _Qualifier:
    """What a qualifier searches, and how its value is read.

    Attributes:
        searched: a field of the index, a text of the event, or another condition.
        read: reads a value of a field; None for a value that it cannot have.
        expected: what `read` expects, as a sentence.

    """

    searched: Field | _Other
    read: Callable[[str], str | UUID | None] = lambda text: text
    expected: str = ""


def _id(text: str) -> str | None:
    return None if re.fullmatch(ID_PATTERN, text) is None else text


def _creator(text: str) -> str | None:
    try:
        return canonical_creator_id(text)
    except Unusable:
        return None


def _key_id(text: str) -> str | None:
    return text.lower() if _UUID.fullmatch(text.lower()) or text.lower() == "clock" else None


def _code_id(text: str) -> UUID | None:
    return UUID(text.lower()) if _UUID.fullmatch(text.lower()) else None


def _one_of(known: tuple[str, ...]) -> tuple[Callable[[str], str | None], str]:
    by_folded = {word.casefold(): word for word in known}
    return lambda text: by_folded.get(text.casefold()), f"Expected one of {', '.join(known)}."


_CREATOR_EXPECTED: Final = pasted.SENTENCES["not_a_creator_id"]
_ID_EXPECTED: Final = "Expected an id: 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -"
_DELAY_EXPECTED: Final = "Expected a number of hours or days, at least 1h, such as >30d."
_POSITION_EXPECTED: Final = "Expected a position or a range of positions, such as 42 or 100..200."
# The types of the events that have the text.
_WITH_TEXT: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(type_ for type_, event in EVENT_TYPES.items() if name in event.__annotations__ and type_ not in _CODED)
    for name in ("reason", "terms_version")
} | {"note": ("NoteAdded", "Shared")}
QUALIFIERS: Final[dict[str, _Qualifier]] = {
    "actor": _Qualifier("actor", _key_id, "Expected the id of a key, or clock."),
    "advertiser": _Qualifier("advertiser_id", _id, _ID_EXPECTED),
    "brand": _Qualifier("brand_id", _id, _ID_EXPECTED),
    "channel": _Qualifier("channel", *_one_of(get_args(Channel))),
    "code": _Qualifier("code_id", _code_id, "Expected the id of a code, which is a UUID."),
    "creator": _Qualifier("creator_id", _creator, _CREATOR_EXPECTED),
    "effective": _Qualifier("effective_at"),
    "key": _Qualifier("key_name", expected="Expected the name of a key."),
    "late": _Qualifier("late", expected=_DELAY_EXPECTED),
    "note": _Qualifier("note", expected="Expected words of a note."),
    "position": _Qualifier("position", expected=_POSITION_EXPECTED),
    "reason": _Qualifier("reason", expected="Expected words of a reason."),
    "recorded": _Qualifier("recorded_at"),
    "refused": _Qualifier("refused", *_one_of(REFUSALS["redeem"])),
    "source": _Qualifier("source", *_one_of(get_args(Source))),
    "terms": _Qualifier("terms_version", expected="Expected a version of the terms, such as 2026-01."),
    "type": _Qualifier("type", *_one_of(tuple(EVENT_TYPES))),
    "video": _Qualifier("video_id", expected=_ID_EXPECTED),  # read as the request's other video ids are
}


def parameter(qualifier: str) -> Callable[[object], object]:
    """Return what reads a parameter that takes what a qualifier takes: a filter that nothing can match is a slip."""
    known = QUALIFIERS[qualifier]

    def read(value: object) -> object:
        found = known.read(value) if isinstance(value, str) else None
        if found is None:
            raise PydanticCustomError("parameter", cast("Any", known.expected))
        return found

    return read


def _any_video_id(text: str) -> str:
    return usable_video_id(text, VideoIdPolicy("any"), exact=False)


def parse(text: str, video_id: Callable[[str], str] = _any_video_id) -> ParsedQuery:
    """Read a query.

    Args:
        text: the query.
        video_id: returns the id of a video, or raises PydanticCustomError where there is none.

    Raises:
        QueryError: it is none.

    """
    return _Parser(text, video_id).query()


class _Parser:
    def __init__(self, text: str, video_id: Callable[[str], str]) -> None:
        self._text = text
        self._video_id = video_id
        self._at = 0
        self._conditions: list[Condition] = []
        self._words: list[Words] = []
        self._key_names: list[tuple[tuple[str, ...], bool]] = []
        self._seen: set[str] = set()

    def query(self) -> ParsedQuery:
        terms = 0
        while self._after_space():
            if terms == MAX_TERMS:
                raise QueryError(self._at, f"A query must have at most {MAX_TERMS} terms.")
            self._term()
            terms += 1
        if not terms:
            raise QueryError(self._at, "Expected a term: a word, or a qualifier with its value, such as type:Shared.")
        return ParsedQuery(tuple(self._conditions), tuple(self._words), tuple(self._key_names))

    def _after_space(self) -> bool:
        """Go past space, and tell whether there is more; a term ends at a space."""
        space = _SPACE.match(self._text, self._at)
        if space is not None:
            self._at = space.end()
        elif 0 < self._at < len(self._text):
            raise QueryError(self._at, "Expected a space or the end of the query.")
        return self._at < len(self._text)

    def _term(self) -> None:
        negated = self._text.startswith("-", self._at)
        self._at += negated
        name = _NAME.match(self._text, self._at)
        if name is None:
            self._words.append(Words(self._text_here(), negated))
            return
        known = QUALIFIERS.get(name[1].lower())
        if known is None:
            message = f"Unknown qualifier. Known qualifiers: {', '.join(QUALIFIERS)}."
            raise QueryError(self._at, f"{message} Put text that contains a colon in quotes.")
        began = self._at
        self._at = name.end()
        match known.searched:
            case "recorded_at" | "effective_at" as field:
                self._conditions.append(Between(field, *self._span(), negated))
            case "late":
                self._conditions.append(RecordedLate(self._delay(), negated))
            case "position":
                self._once(known, began, negated)
                self._conditions.append(Positions(self._ranges(), negated))
            case "key_name":
                self._once(known, began, negated)
                self._key_names.append((tuple(map(str, self._values(known))), negated))
            case "reason" | "terms_version" | "note" as searched:
                first, *others = map(str, self._values(known))
                self._words.append(Words(first, negated, searched, tuple(others)))
                if not negated:
                    self._conditions.append(Among("type", _WITH_TEXT[searched]))
            case field:
                self._once(known, began, negated)
                self._conditions.append(Among(field, self._values(known), negated))

    def _once(self, known: _Qualifier, began: int, negated: bool) -> None:
        """Refuse a qualifier that is repeated: it would find only what meets both, which is nothing."""
        if negated:
            return
        if known.searched in self._seen:
            message = "This qualifier is repeated. Give several values in one qualifier, separated by commas."
            raise QueryError(began, message)
        self._seen.add(known.searched)

    def _text_here(self) -> str:
        began = self._at
        text = self._value(_BARE, "Expected text.")
        if self._text.startswith('"', began):
            return text
        if text in _OPERATORS:
            message = (
                "AND, OR and NOT are not operators here. All terms must match, - negates a term, and commas "
                "separate values. Put the word in quotes to search for it."
            )
            raise QueryError(began, message)
        if text.startswith(_CURLY):
            raise QueryError(began, 'Use straight quotes, as in "spring sale". These are curly quotes.')
        return text

    def _values(self, qualifier: _Qualifier) -> tuple[str | UUID, ...]:
        values: list[str | UUID] = []
        while True:
            if len(values) == MAX_VALUES:
                raise QueryError(self._at, f"A qualifier must have at most {MAX_VALUES} values.")
            began = self._at
            value = qualifier.read(self._value(_BARE_VALUE, qualifier.expected))
            if qualifier.searched == "video_id":
                value = self._video_of(str(value), began)
            if value is None:
                raise QueryError(began, qualifier.expected)
            values.append(value)
            if not self._text.startswith(",", self._at):
                return tuple(values)
            self._at += 1

    def _video_of(self, text: str, began: int) -> str:
        try:
            return self._video_id(text)
        except PydanticCustomError as error:
            raise QueryError(began, error.message(), error.context) from None

    def _value(self, bare: re.Pattern[str], expected: str) -> str:
        """Take a text in quotes, or a bare one."""
        if self._text.startswith('"', self._at):
            quoted = _QUOTED.match(self._text, self._at)
            if quoted is None:
                raise QueryError(self._end_of_quoted(), 'Expected a closing ". Use \\ only before " and \\.')
            if not quoted[1]:
                raise QueryError(self._at + 1, expected)
            self._at = quoted.end()
            return _ESCAPED.sub(r"\1", quoted[1])
        found = bare.match(self._text, self._at)
        if found is None:
            raise QueryError(self._at, expected)
        self._at = found.end()
        return found[0]

    def _end_of_quoted(self) -> int:
        """Return where a quoted text goes wrong: at a backslash before something else, or at the end."""
        wrong = re.compile(r'"(?:[^"\\]|\\["\\])*').match(self._text, self._at)
        return len(self._text) if wrong is None else wrong.end()

    def _ranges(self) -> tuple[tuple[int, int], ...]:
        """Take positions and ranges of them, separated by commas; a range includes both of its ends."""
        ranges: list[tuple[int, int]] = []
        while True:
            if len(ranges) == MAX_VALUES:
                raise QueryError(self._at, f"A qualifier must have at most {MAX_VALUES} values.")
            began = self._at
            found = _POSITIONS.fullmatch(self._value(_BARE_VALUE, _POSITION_EXPECTED))
            if found is None or not 1 <= int(found[1]) <= int(found[2] or found[1]):
                raise QueryError(began, _POSITION_EXPECTED)
            ranges.append((int(found[1]), int(found[2] or found[1])))
            if not self._text.startswith(",", self._at):
                return tuple(ranges)
            self._at += 1

    def _delay(self) -> timedelta:
        began = self._at
        found = _DELAY.fullmatch(self._value(_BARE_VALUE, _DELAY_EXPECTED))
        delay = (
            None
            if found is None
            else timedelta(**{"h": {"hours": int(found[1])}, "d": {"days": int(found[1])}}[found[2]])
        )
        if delay is None or not LATE_AFTER <= delay <= timedelta(days=MAX_DELAY_DAYS):
            raise QueryError(began, _DELAY_EXPECTED)
        return delay

    def _span(self) -> tuple[datetime | None, datetime | None]:
        began = self._at
        text = self._value(_BARE_VALUE, _TIME_EXPECTED)
        first, dots, last = text.partition("..")
        if not dots:
            return _unit(first, began)
        if not first and not last:
            raise QueryError(began, _TIME_EXPECTED)
        since = _unit(first, began)[0] if first else None
        until = _unit(last, began + len(first) + 2)[1] if last else None
        if since is not None and until is not None and since >= until:
            raise QueryError(began + len(first) + 2, "The end of a range must be after its start.")
        return since, until


def _unit(text: str, offset: int) -> tuple[datetime, datetime]:
    """Return the beginning of a year, month, day or moment, and its end, which it does not hold."""
    date = _DATE.fullmatch(text)
    try:
        if date is None:
            moment = parse_moment(text)
            return moment, moment + timedelta(microseconds=1)
        year, month, day = (None if part is None else int(part) for part in date.groups())
        since = datetime(year or 0, month or 1, day or 1, tzinfo=UTC)
    except (ValueError, PydanticCustomError):
        raise QueryError(offset, _TIME_EXPECTED) from None
    if not FIRST_YEAR <= since.year <= LAST_YEAR:
        raise QueryError(offset, f"Expected a time in the years {FIRST_YEAR} to {LAST_YEAR}.")
    if day is not None:
        return since, since + timedelta(days=1)
    if month is not None:
        return since, since.replace(year=since.year + month // 12, month=month % 12 + 1)
    return since, since.replace(year=since.year + 1)
