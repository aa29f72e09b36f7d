"""The route that answers authorizations in bulk."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import tempfile
from typing import IO, TYPE_CHECKING, Annotated, Final, Self

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.access_log import record_access
from api.authorization_lines import (
    MAX_LINES,
    MEDIA_TYPES,
    BatchError,
    BatchQuery,
    Line,
    answer_lines,
    batch_context,
    count_lines,
    read_lines,
)
from api.authorizations import may_read
from api.http import headers
from api.http.caller import Caller, allow
from api.http.denied_attempts import record_denied_attempt
from api.http.dependencies import places_of
from api.http.media_types import wanted_format
from api.http.places import MIB, RETRY_AFTER_S, Places, UploadBytes
from api.http.problems import Problem, as_problem, malformed_body
from api.http.route import Operation, Route
from api.http.streaming_download import StreamingDownload, refuse_revoked
from domain.errors import NotAllowed
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from uuid import UUID

    from api.authorization_lines import BatchContext, Format


router = APIRouter(route_class=Route, tags=["Reads"])
# A batch is kept on disk beyond this, for its answers are sent while it is read.
IN_MEMORY_BYTES: Final = 1024 * 1024
# Of one process: batches that are being received or answered, and what is kept of them.
MAX_UPLOADS: Final = 16
MAX_UPLOADS_OF_A_LEDGER: Final = MAX_UPLOADS // 2
MAX_UPLOADS_OF_A_KEY: Final = MAX_UPLOADS_OF_A_LEDGER // 2
MAX_UPLOAD_BYTES: Final = 64 * MIB
MAX_UPLOAD_BYTES_OF_A_LEDGER: Final = MAX_UPLOAD_BYTES // 2
_NO_ROOM: Final = "The server has no room on its disk for this batch. Nothing was done. Try again in a moment."

log = logging.getLogger(__name__)

# No schema: any text is a batch, and each line that is no question is answered with that.
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {},
                "example": '{"video_id": "7312345678901234567", "advertiser_id": "adv-7001"}\n',
            },
            "text/csv": {
                "schema": {},
                "example": "video_id,advertiser_id,at\n7312345678901234567,adv-7001,2026-03-03T12:00:00Z\n",
            },
        },
    }
}


@router.post("/v1/authorizations/batch", response_class=Response, openapi_extra=_BODY, operation_id="askAuthorizations")
@Operation(trace="recorded", answer_headers=("Ledger-Position",), lines=True)
async def ask_authorizations(
    query: Annotated[BatchQuery, Query()],
    request: Request,
    caller: Annotated[Caller, allow("brand", "operator", "auditor", "admin")],
) -> Response:
    """Answer the authorization question for each line of a batch, all as of one position.

    A line of NDJSON is an object with `video_id`, `advertiser_id` and, optionally, `at`. The first line of a CSV
    names these columns. Each line is answered under its number, counted from 1. An invalid line gets an `error`
    instead, and does not affect the other lines. The response has the format of the batch, unless `Accept` asks for
    the other.
    """
    headers.idempotency_key(request)  # asking again changes nothing, but a malformed one is a mistake
    sent = _sent_as(request)
    others = [sent, *(media_type for media_type in MEDIA_TYPES if media_type != sent)]
    media_type = wanted_format(headers.text(request, b"accept"), others)
    upload = await Upload.begin(caller)
    try:
        await upload.receive()
        lines = _begun(read_lines(upload.file, MEDIA_TYPES[sent], caller.services.settings.video_ids))
        services = caller.services
        advertiser_check = _AdvertiserCheck(caller)
        context = await batch_context(
            services.views,
            services.events,
            caller.ledger_id,
            await services.aggregates.keyring.ledger(caller.ledger_id),
            query,
            services.now(),
            advertiser_check,
            functools.partial(may_read, caller),
        )
    except BaseException:
        upload.close()
        raise
    return _Batch(caller, query, context, advertiser_check, lines, upload, media_type).response()


def _sent_as(request: Request) -> str:
    """Return the media type of a batch.

    Raises:
        Problem: it is neither of them, or not sent as it is, in UTF-8.

    """
    media_type = headers.media_type(request)
    if media_type not in MEDIA_TYPES:
        message = (
            "Send the batch in UTF-8 as `Content-Type: application/x-ndjson` or `text/csv`, without `Content-Encoding`."
        )
        raise Problem("unsupported_media_type", message)
    return media_type


def upload_places() -> Places:
    """Return the places of batches that are being received or answered, all of them free."""
    return Places("batches in progress", MAX_UPLOADS, MAX_UPLOADS_OF_A_LEDGER, MAX_UPLOADS_OF_A_KEY)


def upload_bytes() -> UploadBytes:
    """Return the count of what is kept of batches, with nothing kept."""
    return UploadBytes(MAX_UPLOAD_BYTES, MAX_UPLOAD_BYTES_OF_A_LEDGER)


class Upload:
    """A batch that was sent, and its place among the others.

    Attributes:
        file: what was received, in memory or on disk.

    """

    def __init__(self, caller: Caller) -> None:
        """Take over a place that was taken for the caller."""
        self._caller = caller
        self._places = places_of(caller.request.scope)
        self._bytes = 0
        self._closed = False
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed when it is answered
            max_size=IN_MEMORY_BYTES
        )

    @classmethod
    async def begin(cls, caller: Caller) -> Self:
        """Find a place for a batch, before anything of it is received.

        Raises:
            Problem: the share of the key or of its ledger is taken.
            Unavailable: all places are taken.

        """
        await places_of(caller.request.scope).uploads.enter(caller.ledger_id, caller.key.key_id)
        return cls(caller)

    async def receive(self, check: Callable[[IO[bytes]], None] | None = None) -> None:
        """Take the batch in whole: a client that sends and does not read would else wait for us, and we for it.

        Args:
            check: refuses what is too long in another way than by its bytes; by default, by the lines of a batch.

        Raises:
            Problem: it is too long, or the ledger has too much of batches already.
            Unavailable: there is no room for it, in our count or on the disk.

        """
        try:
            async for chunk in self._caller.request.stream():
                self._places.upload_bytes.keep(self._caller.ledger_id, len(chunk))
                self._bytes += len(chunk)
                self.file.write(chunk)
            self.file.seek(0)
            (check or _refuse_longer)(self.file)
        except OSError:
            log.exception("A batch cannot be kept.")
            raise Unavailable(_NO_ROOM, RETRY_AFTER_S) from None

    def close(self) -> None:
        """Give the place back; again, nothing changes."""
        if self._closed:
            return
        self._closed = True
        # What could not be written is tried again when the file is closed.
        with contextlib.suppress(OSError):
            self.file.close()
        self._places.upload_bytes.drop(self._caller.ledger_id, self._bytes)
        self._places.uploads.leave(self._caller.ledger_id, self._caller.key.key_id)


class _AdvertiserCheck:
    """Says why the caller may not ask about an advertiser account, and remembers the first such refusal of a batch."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.first: NotAllowed | None = None

    def __call__(self, advertiser_id: str) -> str | None:
        """Return the reason; nothing where it may ask."""
        try:
            self._caller.act_for_advertiser(advertiser_id)
        except NotAllowed as error:
            self.first = self.first or error
            return error.detail
        return None


def _refuse_longer(file: IO[bytes]) -> None:
    if count_lines(file) > MAX_LINES:
        raise Problem(
            "body_too_large", f"A batch must have at most {MAX_LINES:,} lines. Send the rest in another batch."
        )


def _begun(lines: Iterator[Line | None]) -> Iterator[Line | None]:
    """Read as far as the first line: a table without its columns is refused as a whole.

    Raises:
        Problem: it is one.

    """
    try:
        first = list(itertools.islice(lines, 1))
    except BatchError as error:
        raise malformed_body("", str(error)) from None
    return itertools.chain(first, lines)


class _Batch:
    """One batch while it is answered."""

    def __init__(
        self,
        caller: Caller,
        query: BatchQuery,
        context: BatchContext,
        advertiser_check: _AdvertiserCheck,
        lines: Iterator[Line | None],
        upload: Upload,
        media_type: str,
    ) -> None:
        self._caller = caller
        self._parameters = query.model_dump(mode="json", exclude_none=True) | {"as_of": context.as_of}
        self._context = context
        self._advertiser_check = advertiser_check
        self._lines = lines
        self._upload = upload
        self._media_type = media_type
        self._answered = 0
        self._access_id: UUID | None = None

    def response(self) -> Response:
        return StreamingDownload(
            self._caller,
            self._pieces(MEDIA_TYPES[self._media_type]),
            begin=self._begin,
            end=self._end,
            headers={"Ledger-Position": str(self._context.as_of), "Vary": "Accept"},
            media_type=f"{self._media_type}; charset=utf-8" if self._media_type == "text/csv" else self._media_type,
        )

    async def _pieces(self, format_: Format) -> AsyncGenerator[bytes]:
        recorded = False
        turn = places_of(self._caller.request.scope).turns.begin()
        async for piece, lines in answer_lines(
            self._lines, self._caller.services.views.evidence, self._context, format_, turn.give_way
        ):
            await refuse_revoked(self._caller)
            if self._advertiser_check.first is not None and not recorded:
                # On record as it is where the question is asked by itself, but once, however many lines there are.
                await record_denied_attempt(self._caller.request, as_problem(self._advertiser_check.first))
                recorded = True
            self._answered += len(lines)
            yield piece

    async def _begin(self) -> None:
        self._access_id = await record_access(
            self._caller, self._parameters, rows=0, format=self._media_type, complete=None
        )

    async def _end(self, complete: bool) -> None:
        self._upload.close()
        if self._access_id is not None:
            accesses = self._caller.services.views.access_log
            await accesses.end(self._caller.ledger_id, self._access_id, rows=self._answered, complete=complete)
