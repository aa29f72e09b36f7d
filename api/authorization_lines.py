"""Authorizations asked in bulk: lines of NDJSON or CSV, read from a file and answered a few hundred at a time.

Every line has its answer, in order and under its number; one that is no question is told so and ends nothing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from api.authorizations import Readable, all_codes, authorization_verdict, verdict_content
from api.http.as_of import known_in
from api.http.dependencies import DatabaseCursor
from api.http.fields import AdvertiserId, Moment, VideoId, VideoIdPolicy
from api.http.query_params import AsOf, AtLeast, QueryModel
from api.http.strict_json import has_duplicate_names
from api.http.validation_messages import message_of
from api.spreadsheet_cells import csv_lines
from domain.values import ID_PATTERN
from projections import codes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from domain.pasted import VideoIds
    from infra.eventstore.authorization_evidence import EvidenceReader
    from infra.eventstore.reader import EventReader
    from infra.views.reader import ViewReader


class BatchQuery(QueryModel):
    as_of: AsOf = None
    at_least: AtLeast = None


Format = Literal["ndjson", "csv"]
MEDIA_TYPES: Final[dict[str, Format]] = {"application/x-ndjson": "ndjson", "text/csv": "csv"}
MAX_LINES: Final = 100_000
MAX_LINE_BYTES: Final = 2_048
# Questions that one read answers.
AT_ONCE: Final = 200
COLUMNS: Final = ("video_id", "advertiser_id", "at")
_ANSWER_COLUMNS: Final = (
    "line",
    "video_id",
    "advertiser_id",
    "at",
    "authorized",
    "reason",
    "code_id",
    "starts_at",
    "expires_at",
    "permission_enabled",
    "shared",
    "evidence",
    "as_of",
    "error",
)
# Our own tables put it before what a spreadsheet would take for a formula.
_SAFE: Final = "'"
_NO_COLUMNS: Final = (
    "The first line of a CSV batch must name its columns in UTF-8, separated by commas: video_id, "
    "advertiser_id and, optionally, at."
)
_TOO_LONG: Final = f"A line must have at most {MAX_LINE_BYTES:,} bytes."
_NO_UTF_8: Final = "This line is not valid UTF-8."
_NO_QUESTION: Final = "Expected an object with the fields video_id, advertiser_id and, optionally, at."
_BYTE_ORDER_MARK: Final = "\ufeff"


class BatchError(Exception):
    """Nothing of the batch can be answered."""


class AuthorizationRequest(BaseModel):
    """One line of a batch."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    video_id: VideoId
    advertiser_id: AdvertiserId
    at: Moment | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A line by its number, from 1: a question, or what is wrong with it.

    With both it is a question only if the ledger has its video: recorded ids are accepted whatever they look like.
    """

    number: int
    request: AuthorizationRequest | None = None
    error: str = ""


def allow_all(_: str) -> str | None:
    """Refuse no advertiser account."""
    return None


# Says why an advertiser account may not be asked about; nothing where it may.
Refuse = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class BatchContext:
    """As of what the questions of a batch are answered, and who may ask which.

    Attributes:
        ledger_id: the ledger.
        as_of: the position that every answer speaks of.
        now: the moment of a question that names none.
        refuse: see `Refuse`.
        readable: see `Readable`.

    """

    ledger_id: int
    as_of: int
    now: datetime
    refuse: Refuse
    readable: Readable


async def batch_context(
    views: ViewReader,
    store: EventReader,
    ledger_id: int,
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
    return BatchContext(ledger_id, as_of, now, refuse, readable)


def read_lines(file: IO[bytes], format_: Format, video_ids: VideoIds) -> Iterator[Line]:
    """Read a batch line by line, in constant memory; empty lines are counted and passed over.

    Raises:
        BatchError: the table's first line does not name its columns.

    """
    columns: Sequence[str] | None = None
    for number, (sent, error) in enumerate(_texts(file), 1):
        text = sent.removeprefix(_BYTE_ORDER_MARK) if number == 1 else sent
        if format_ == "csv" and columns is None:
            columns = _columns(text)
        elif error:
            yield Line(number, error=error)
        elif text.strip():
            yield _line(number, text, columns, VideoIdPolicy(video_ids))
    if format_ == "csv" and columns is None:
        raise BatchError(_NO_COLUMNS)


def count_lines(file: IO[bytes]) -> int:
    """Count the lines of a file from where it is, and go back to its beginning."""
    count, last = 0, b"\n"
    while block := file.read(1 << 20):
        count += block.count(b"\n")
        last = block[-1:]
    file.seek(0)
    return count + (last != b"\n")


async def answer_lines(
    lines: Iterator[Line], questions: EvidenceReader, context: BatchContext, format_: Format
) -> AsyncGenerator[tuple[bytes, Sequence[Line]]]:
    """Yield the answers as they are sent, each piece with the lines that it answers.

    Raises:
        Unavailable: the database is away.

    """
    if format_ == "csv":
        yield csv_lines([_ANSWER_COLUMNS]), ()
    chunk: list[Line] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == AT_ONCE:
            yield await _answered(chunk, questions, context, format_)
            chunk = []
    if chunk:
        yield await _answered(chunk, questions, context, format_)


async def _answered(
    chunk: Sequence[Line], questions: EvidenceReader, context: BatchContext, format_: Format
) -> tuple[bytes, Sequence[Line]]:
    """Answer some lines, and return them with their answers: what turned out to be no question is none there."""
    videos = {line.request.video_id for line in chunk if line.request is not None}
    evidence = await questions.of_videos(context.ledger_id, list(videos)) if videos else {}
    lines = [
        Line(line.number, error=line.error)
        if line.request is None or (line.error and not evidence[line.request.video_id].codes)
        else Line(line.number, line.request)
        for line in chunk
    ]
    contents: list[dict[str, Any]] = []
    for line in lines:
        error = line.error if line.request is None else context.refuse(line.request.advertiser_id)
        if line.request is None or error:
            contents.append({"line": line.number, "error": error})
            continue
        request, at = line.request, line.request.at or context.now
        answer = authorization_verdict(
            evidence[request.video_id], context.as_of, request.advertiser_id, at, context.readable
        )
        about = {
            "video_id": request.video_id,
            "advertiser_id": request.advertiser_id,
            "at": at,
            "as_of": context.as_of,
        }
        contents.append({"line": line.number, **about, **verdict_content(answer)})
    if format_ == "ndjson":
        encoded = (orjson.dumps(c, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE) for c in contents)
        return b"".join(encoded), lines
    for content in contents:
        content["evidence"] = " ".join(str(position) for position in content.get("evidence", ()))
    return csv_lines([[content.get(column) for column in _ANSWER_COLUMNS] for content in contents]), lines


def _texts(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Yield each line as text, or what is wrong with one that is too long or not in UTF-8; no more of it is kept."""
    while raw := file.readline(MAX_LINE_BYTES + len(b"\r\n")):
        too_long = len(raw.removesuffix(b"\n").removesuffix(b"\r")) > MAX_LINE_BYTES
        rest = raw
        while too_long and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        try:
            yield ("", _TOO_LONG) if too_long else (raw.decode(), "")
        except UnicodeDecodeError:
            yield "", _NO_UTF_8


def _columns(text: str) -> Sequence[str]:
    names = [name.strip() for name in _cells(text) or ()]
    if not {"video_id", "advertiser_id"} <= set(names) <= set(COLUMNS) or len(set(names)) < len(names):
        raise BatchError(_NO_COLUMNS)
    return names


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
            column: cell.strip().removeprefix(_SAFE)
            for column, cell in zip(columns, cells, strict=True)
            if cell.strip() or column != "at"
        }
    question, wrong = _question(sent, policy)
    if question is None:
        return Line(number, error=wrong)
    if columns is None and has_duplicate_names(sent, text.encode()):
        return Line(number, error="A field is repeated.")
    return Line(number, question, wrong)


def _question(sent: Any, policy: VideoIdPolicy) -> tuple[AuthorizationRequest | None, str]:
    """Return a question, what is wrong with it, or both where that is its video's id alone."""
    try:
        return AuthorizationRequest.model_validate(sent, context=policy), ""
    except ValidationError as error:
        wrong = _said(error)
        found = error.errors(include_url=False, include_input=False)
        if any(one.get("ctx", {}).get("code") != "video_id_unusable" for one in found):
            return None, wrong
        return _question_if_recorded(sent, policy), wrong


def _question_if_recorded(sent: Any, policy: VideoIdPolicy) -> AuthorizationRequest | None:
    video_id = sent["video_id"]
    if re.fullmatch(ID_PATTERN, video_id) is None:
        return None
    return AuthorizationRequest.model_validate(sent, context=replace(policy, recorded=frozenset({video_id})))


def _cells(text: str) -> Sequence[str] | None:
    """Return the cells of one line of a table; None where it is none."""
    try:
        return next(iter(csv.reader([text.rstrip("\r\n")], strict=True)), [])
    except csv.Error:
        return None


def _said(error: ValidationError) -> str:
    """Say what is wrong with a line, field by field, and nothing of what it holds."""
    wrong = []
    for found in error.errors(include_url=False, include_input=False):
        name = next((str(part) for part in found["loc"] if part in COLUMNS), "")
        match found["type"]:
            case "extra_forbidden":
                wrong.append(message_of(found, COLUMNS))
            case "missing":
                wrong.append(f"{name} is required.")
            case _:
                wrong.append(f"{name}: {message_of(found)}" if name else _NO_QUESTION)
    whole = "; ".join(said.removesuffix(".") for said in dict.fromkeys(wrong))
    # A sentence that ends in a list of characters must not seem to list one more.
    return whole if whole.endswith("-") else f"{whole}."
