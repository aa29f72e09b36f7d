"""Authorizations asked in bulk: lines of NDJSON or CSV, read from a file and answered a few hundred at a time.

Every line has its answer, in order and under its number; one that is no question is answered as such, and ends nothing.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Strict, ValidationError

from api.authorizations import Readable, about, all_codes, authorization_verdict, verdict_content
from api.http.as_of import known_in
from api.http.dependencies import DatabaseCursor
from api.http.fields import AdvertiserId, Moment, VideoId, VideoIdPolicy
from api.http.query_params import AsOf, AtLeast, QueryModel
from api.http.strict_json import has_duplicate_names
from api.http.unknown_fields import KnownFields
from api.http.validation_messages import is_plain_name, message_of
from api.spreadsheet_cells import BYTE_ORDER_MARK, csv_lines, read_csv
from domain.values import ID_PATTERN
from projections import codes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from pydantic_core import ErrorDetails

    from domain.pasted import VideoIds
    from infra.crypto.envelope import LedgerKeys
    from infra.eventstore.authorization_evidence import Asked, AuthorizationEvidence, EvidenceReader
    from infra.eventstore.reader import EventReader
    from infra.views.reader import ViewReader


class BatchQuery(QueryModel):
    as_of: AsOf = None
    at_least: AtLeast = None


Format = Literal["ndjson", "csv"]
# A line by its number: its text, or what is wrong with it.
_Numbered = tuple[int, tuple[str, str]]
MEDIA_TYPES: Final[dict[str, Format]] = {"application/x-ndjson": "ndjson", "text/csv": "csv"}
MAX_LINES: Final = 100_000
MAX_LINE_BYTES: Final = 2_048
# Questions that one read answers.
AT_ONCE: Final = 200
COLUMNS: Final = ("video_id", "advertiser_id", "at", "video_id_exact")
REQUIRED: Final = frozenset({"video_id", "advertiser_id"})
# A column or field whose name begins so is the caller's own, and is not read.
UNREAD: Final = ("x_", "note")
_ANSWER_COLUMNS: Final = (
    "line",
    "video_id",
    "advertiser_id",
    "at",
    "authorized",
    "reason",
    "code_id",
    "creator_id",
    "starts_at",
    "start_stated",
    "expires_at",
    "rights_until",
    "ends_at",
    "ends_by",
    "permission_enabled",
    "shared",
    "evidence",
    "evidence_recorded_at",
    "recorded_late",
    "backdated",
    "as_of",
    "summary",
    "warnings",
    "error",
    "error_reason",
)
# An apostrophe at the beginning of a cell marks text in a spreadsheet. No id and no time begins with one.
_TEXT_MARK: Final = "'"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
# How far a table's columns are looked for, if the first line does not name them.
_LINES_ABOVE: Final = 20
_SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_FIRST_LINE: Final = (
    "The first line of a CSV batch must name its columns, separated by commas: video_id, advertiser_id and, "
    "optionally, at and video_id_exact."
)
_IN_UTF_16: Final = "The batch is in UTF-16. Save it in UTF-8, and send it again."
_OTHER_SEPARATOR: Final = "The columns are separated by {}. Separate them by commas."
_NAMED_BELOW: Final = "Line {} names the columns. Remove the lines above it, so that it is the first."
_COLUMN_MISSING: Final = "The column {} is missing."
_COLUMN_REPEATED: Final = "The column {} is named twice."
_COLUMN_WITHOUT_NAME: Final = "A column has no name. Name it, or remove it."
_COLUMN_UNKNOWN: Final = (
    f"Unknown column{{}}. Known columns: {', '.join(COLUMNS)}. A column of your own must have a name that begins with "
    f"{' or '.join(UNREAD)}. It is not read."
)
_TOO_LONG: Final = f"A line must have at most {MAX_LINE_BYTES:,} bytes."
_NO_UTF_8: Final = "This line is not valid UTF-8."
_TOO_DEEP: Final = "This line is nested too deep."
_NO_QUESTION: Final = "Expected an object with the fields video_id, advertiser_id and, optionally, at."


class BatchError(Exception):
    """Nothing of the batch can be answered."""


class AuthorizationRequest(BaseModel):
    """One line of a batch."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    video_id_exact: Annotated[bool, Strict()] = False
    video_id: VideoId
    advertiser_id: AdvertiserId
    at: Moment | None = None


_KNOWN: Final = KnownFields(AuthorizationRequest)


@dataclass(frozen=True, slots=True)
class Line:
    """A line by its number, from 1: a question, or what is wrong with it.

    With both it is a question only if the ledger has its video: recorded ids are accepted whatever they look like.
    `reason` is the stable reason for which its video id cannot be used.
    """

    number: int
    request: AuthorizationRequest | None = None
    error: str = ""
    reason: str = ""


def allow_all(_: str) -> str | None:
    """Refuse no advertiser account."""
    return None


async def hurry() -> None:
    """Let nothing come between, where there is nothing else to do."""


# Awaited after each line: lets others have their turn.
GiveWay = Callable[[], Awaitable[None]]
# Says why an advertiser account may not be asked about; nothing where it may.
Refuse = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class BatchContext:
    """As of what the questions of a batch are answered, and who may ask which.

    Attributes:
        ledger_id: the ledger.
        keys: its keys, for the keyed hashes of advertiser accounts.
        as_of: the position that every answer speaks of.
        now: the moment of a question that names none.
        refuse: see `Refuse`.
        readable: see `Readable`.

    """

    ledger_id: int
    keys: LedgerKeys
    as_of: int
    now: datetime
    refuse: Refuse
    readable: Readable


async def batch_context(
    views: ViewReader,
    store: EventReader,
    ledger_id: int,
    keys: LedgerKeys,
    query: BatchQuery,
    now: datetime,
    refuse: Refuse = allow_all,
    readable: Readable = all_codes,
) -> BatchContext:
    """Decide as of what a batch is answered: one position for all of it, whatever is recorded meanwhile.

    Raises:
        Problem: `as_of` lies ahead.
        Unavailable: the view of codes did not come so far in time, or the database is away.

    """
    as_of, at_least = None, query.at_least
    if query.as_of is not None:
        as_of, now = await known_in(store, ledger_id, query.as_of, now)
        at_least = max(as_of, query.at_least or 0)

    async def nothing(_: DatabaseCursor) -> None:
        """Ask only how far the view has come."""

    _, position = await views.read(ledger_id, nothing, view=codes.NAME, at_least=at_least)
    if as_of is None:
        as_of = position
        # What is recorded has happened, though the database's clock may be ahead of ours.
        _, recorded_at = await known_in(store, ledger_id, position, now)
        now = max(now, recorded_at)
    return BatchContext(ledger_id, keys, as_of, now, refuse, readable)


def read_lines(file: IO[bytes], format_: Format, video_ids: VideoIds) -> Iterator[Line | None]:
    """Read a batch line by line, in constant memory; an empty line is None, so that no step reads more than a line.

    Raises:
        BatchError: the table's first line does not name its columns, or the batch is in UTF-16.

    """
    columns: Sequence[str] | None = None
    texts: Iterator[_Numbered] = enumerate(_texts(file), 1)
    if format_ == "csv":
        _, (first, _) = next(texts, (1, ("", "")))
        columns = _columns(first.removeprefix(BYTE_ORDER_MARK), itertools.islice(texts, _LINES_ABOVE))
        texts = _whole_rows(texts, columns)
    for number, (sent, error) in texts:
        text = sent.removeprefix(BYTE_ORDER_MARK) if number == 1 else sent
        if error:
            yield Line(number, error=error)
        elif not text.strip():
            yield None
        else:
            yield _line(number, text, columns, VideoIdPolicy(video_ids))


def count_lines(file: IO[bytes]) -> int:
    """Count the lines of a file from where it is, and go back to its beginning."""
    count, last = 0, b"\n"
    while block := file.read(1 << 20):
        count += block.count(b"\n")
        last = block[-1:]
    file.seek(0)
    return count + (last != b"\n")


async def answer_lines(
    lines: Iterator[Line | None],
    questions: EvidenceReader,
    context: BatchContext,
    format_: Format,
    give_way: GiveWay = hurry,
) -> AsyncGenerator[tuple[bytes, Sequence[Line]]]:
    """Yield the answers as they are sent, each piece with the lines that it answers.

    Raises:
        Unavailable: the database is away.

    """
    if format_ == "csv":
        yield csv_lines([_ANSWER_COLUMNS]), ()
    chunk: list[Line] = []
    for line in lines:
        await give_way()
        if line is None:
            continue
        chunk.append(line)
        if len(chunk) == AT_ONCE:
            yield await _answered(chunk, questions, context, format_, give_way)
            chunk = []
    if chunk:
        yield await _answered(chunk, questions, context, format_, give_way)


async def _answered(
    chunk: Sequence[Line], questions: EvidenceReader, context: BatchContext, format_: Format, give_way: GiveWay
) -> tuple[bytes, Sequence[Line]]:
    """Answer some lines, and return them with their answers: what turned out to be no question is none there."""
    asked = {
        line.number: about(context.keys, line.request.video_id, line.request.advertiser_id)
        for line in chunk
        if line.request is not None
    }
    evidence = await questions.of_all(context.ledger_id, list(set(asked.values()))) if asked else {}
    lines = [
        replace(line, request=None)
        if line.request is None or (line.error and not evidence[asked[line.number]].codes)
        else Line(line.number, line.request)
        for line in chunk
    ]
    pieces: list[bytes] = []
    for line in lines:
        await give_way()
        pieces.append(_encoded(_content(line, asked, evidence, context), format_))
    return b"".join(pieces), lines


def _content(
    line: Line, asked: Mapping[int, Asked], evidence: Mapping[Asked, AuthorizationEvidence], context: BatchContext
) -> dict[str, Any]:
    """Return the answer to a line."""
    request = line.request
    error = line.error if request is None else context.refuse(request.advertiser_id)
    if request is None or error:
        reason = {"error_reason": line.reason} if line.reason else {}
        return {"line": line.number, "error": error, **reason}
    at = request.at or context.now
    found = authorization_verdict(
        evidence[asked[line.number]], context.as_of, request.advertiser_id, at, context.readable
    )
    return {
        "line": line.number,
        **verdict_content(found, request.video_id, request.advertiser_id, at, context.as_of),
    }


def _encoded(content: dict[str, Any], format_: Format) -> bytes:
    if format_ == "ndjson":
        return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    content["evidence"] = " ".join(str(position) for position in content.get("evidence", ()))
    content["warnings"] = " ".join(content.get("warnings", ()))
    return csv_lines([[content.get(column) for column in _ANSWER_COLUMNS]])


def _texts(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Yield each line as text, or what is wrong with one that is too long or not in UTF-8; no more of it is kept."""
    first = True
    while raw := file.readline(MAX_LINE_BYTES + len(b"\r\n")):
        if first and (raw.startswith(_UTF_16) or b"\0" in raw[:2]):
            raise BatchError(_IN_UTF_16)
        first = False
        too_long = len(raw.removesuffix(b"\n").removesuffix(b"\r")) > MAX_LINE_BYTES
        rest = raw
        while too_long and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        try:
            yield ("", _TOO_LONG) if too_long else (raw.decode(), "")
        except UnicodeDecodeError:
            yield "", _NO_UTF_8


def _whole_rows(texts: Iterator[_Numbered], columns: Sequence[str]) -> Iterator[_Numbered]:
    """Yield the rows of a table: a cell that is not read, such as a note, may go on in the next lines.

    A row of several lines has the number of the first one, and together no more bytes than one line may have. All other
    lines are rows by themselves, so that a quote that is missing spoils no line but its own.
    """
    ahead: deque[_Numbered] = deque()
    while (one := ahead.popleft() if ahead else next(texts, None)) is not None:
        number, (text, error) = one
        further: list[_Numbered] = []
        while not error and text.count('"') % 2 and len(text.encode()) <= MAX_LINE_BYTES:
            following = ahead.popleft() if ahead else next(texts, None)
            if following is None:
                break
            further.append(following)
            text, error = text + following[1][0], following[1][1]
        if further and not error and _is_row(text, columns):
            yield number, (text, "")
        else:
            yield one
            ahead.extendleft(reversed(further))


def _is_row(text: str, columns: Sequence[str]) -> bool:
    """Return whether lines are together a row, of which only cells that are not read have several lines."""
    cells = _cells(text)
    if cells is None or len(cells) != len(columns) or len(text.encode()) > MAX_LINE_BYTES:
        return False
    return not any("\n" in cell for column, cell in zip(columns, cells, strict=True) if column in COLUMNS)


def _columns(text: str, below: Iterator[_Numbered]) -> Sequence[str]:
    """Return the names of a table's columns; `below` are the lines that may name them instead, by number.

    Raises:
        BatchError: they are not named as they must be; the sentence says how they are.

    """
    names = _names(text)
    if not REQUIRED & set(names):
        separators = (word for separator, word in _SEPARATORS.items() if set(_names(text, separator)) >= REQUIRED)
        numbers = (number for number, (line, _) in below if set(_names(line)) >= REQUIRED)
        if (separator := next(separators, None)) is not None:
            raise BatchError(f"{_OTHER_SEPARATOR.format(separator)} {_FIRST_LINE}")
        if (number := next(numbers, None)) is not None:
            raise BatchError(_NAMED_BELOW.format(number))
        raise BatchError(_FIRST_LINE)
    for name in COLUMNS[:2]:
        if name not in names:
            raise BatchError(f"{_COLUMN_MISSING.format(name)} {_FIRST_LINE}")
    for name in names:
        if not name:
            raise BatchError(_COLUMN_WITHOUT_NAME)
        if not _is_unread(name) and names.count(name) > 1:
            raise BatchError(_COLUMN_REPEATED.format(name))
        if name not in COLUMNS and not _is_unread(name):
            raise BatchError(_COLUMN_UNKNOWN.format(f" `{name}`" if is_plain_name(name) else ""))
    return names


def _names(text: str, separator: str = ",") -> list[str]:
    cells = _cells(text) if separator == "," else text.split(separator)
    return [name.strip().strip('"').lower() for name in cells or ()]


def _is_unread(name: str) -> bool:
    """Return whether a column or field is the caller's own, or one of our own answers, which may be asked again."""
    return name.startswith(UNREAD) or (name in _ANSWER_COLUMNS and name not in COLUMNS)


def _line(number: int, text: str, columns: Sequence[str] | None, policy: VideoIdPolicy) -> Line:
    sent: Any
    if columns is None:
        try:
            sent = orjson.loads(text)
        except orjson.JSONDecodeError:
            return Line(number, error="Expected JSON.")
    else:
        cells = _cells(text)
        if cells is None:
            return Line(number, error="A quoted value in this line is not closed, or is followed by other text.")
        if len(cells) != len(columns):
            return Line(number, error=f"Expected {len(columns)} values, separated by commas.")
        sent = {
            column: _value(column, cell.strip().lstrip(_TEXT_MARK))
            for column, cell in zip(columns, cells, strict=True)
            if column in COLUMNS and (cell.strip() or column in REQUIRED)
        }
    line = _question(number, sent, policy)
    if columns is None and line.request is not None:
        try:
            repeated = has_duplicate_names(sent, text.encode())
        except RecursionError:
            return Line(number, error=_TOO_DEEP)
        if repeated:
            return Line(number, error="A field is repeated.")
    return line


def _value(column: str, cell: str) -> str | bool:
    """Return what a cell says; spreadsheets write truth values in capitals."""
    return cell.lower() == "true" if column == "video_id_exact" and cell.lower() in {"true", "false"} else cell


def _question(number: int, sent: Any, policy: VideoIdPolicy) -> Line:
    """Return a question, what is wrong with it, or both if that is only its video's id."""
    read, left_out = _KNOWN.without_excess(
        {name: value for name, value in sent.items() if not _is_unread(name)} if isinstance(sent, dict) else sent
    )
    try:
        return Line(number, AuthorizationRequest.model_validate(read, context=policy))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        contexts = [one.get("ctx", {}) for one in found]
        of_video = [context["reason"] for context in contexts if context.get("code") == "video_id_unusable"]
        request = _question_if_recorded(read, policy) if len(of_video) == len(contexts) else None
        return Line(number, request, _said(found, left_out), next(iter(of_video), ""))


def _question_if_recorded(sent: Any, policy: VideoIdPolicy) -> AuthorizationRequest | None:
    video_id = sent["video_id"]
    if re.fullmatch(ID_PATTERN, video_id) is None:
        return None
    return AuthorizationRequest.model_validate(sent, context=replace(policy, recorded=frozenset({video_id})))


def _cells(text: str) -> Sequence[str] | None:
    """Return the cells of one line of a table; None where it is none."""
    try:
        return next(read_csv(text.rstrip("\r\n")), [])
    except csv.Error:
        return None


def _said(errors: Sequence[ErrorDetails], left_out: int) -> str:
    """Say what is wrong with a line, field by field, and nothing of what it holds.

    `left_out` counts the unknown fields that were left out before.
    """
    wrong = []
    for found in errors:
        name = next((str(part) for part in found["loc"] if part in COLUMNS), "")
        match found["type"]:
            case "extra_forbidden":
                wrong.append(message_of(found, COLUMNS))
            case "missing":
                wrong.append(f"{name} is required.")
            case _:
                wrong.append(f"{name}: {message_of(found)}" if name else _NO_QUESTION)
    if left_out:
        wrong.append(f"Unknown fields that are not listed here: {left_out:,}.")
    whole = "; ".join(said.removesuffix(".") for said in dict.fromkeys(wrong))
    # A sentence that ends in a list of characters must not seem to list one more.
    return whole if whole.endswith("-") else f"{whole}."
