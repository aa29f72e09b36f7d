"""Evidence: a bundle for those who were not there, with which they check what the ledger says without trusting it."""

from __future__ import annotations

import importlib.metadata
import logging
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from api.access_log import record_access
from api.authorizations import all_codes, may_read
from api.bag import evidence_signer
from api.event_content import visible_to
from api.evidence_bundle import Bundle
from api.evidence_plans import NOT_COVERED, EvidenceRequest, Viewer, plan_of
from api.http.caller import LIMITED_TO_SUBJECTS, Caller, allow
from api.http.problems import Problem
from api.http.route import Operation, Route
from api.http.streaming_download import StreamingDownload, refuse_revoked
from domain.errors import NotAllowed
from infra.auth.access_log import MACHINE_ROLE
from infra.errors import Unavailable
from infra.proof.evidence_log import EvidenceLog
from infra.proof.proofs import ProofFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from infra.crypto.envelope import LedgerKeys
    from infra.eventstore.reader import EventReader
    from infra.views.reader import ViewReader

ZIP: Final = "application/zip"
_CHANGED: Final = "What is stored does not fit the signed log, so the bundle was broken off."

log = logging.getLogger(__name__)
router = APIRouter(route_class=Route, tags=["Audit"])


@router.post("/v1/evidence", response_class=Response, operation_id="makeEvidence")
@Operation(trace="recorded", answer_headers=("Ledger-Position",), refusals=(404,), streams=True, other_formats=(ZIP,))
async def make_evidence(
    body: EvidenceRequest,
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Make an evidence bundle, as of a signed checkpoint: a ZIP file with events, proofs, a report and a verifier.

    It shows what the key may read, and no more. A creator's key gets its own codes and all its records, a brand's key
    codes that it may read and answers that say yes. The bundle is streamed, and broken off if what is stored does not
    fit the signed log. It is recorded in the access log before the first byte is sent.
    """
    caller.history.require_whole()
    services, ledger_id = caller.services, caller.ledger_id
    source = EvidenceLog(services.database)
    keys = await services.aggregates.keyring.ledger(ledger_id)
    signed = await source.keep(ledger_id, body.size)
    if signed is None or signed.size == 0:
        raise Problem("log_unknown", NOT_COVERED)
    plan = await plan_of(_viewer(caller, keys, source), body, signed, services.now())
    bundle = Bundle(signed, plan, source, evidence_signer(keys, signed.origin), software())
    access: list[UUID] = []

    async def begin() -> None:
        parameters = body.model_dump(mode="json", exclude_none=True) | {"size": signed.size}
        access.append(await record_access(caller, parameters, rows=0, format=ZIP, complete=None))

    async def end(complete: bool) -> None:
        for access_id in access:
            await services.views.access_log.end(ledger_id, access_id, rows=bundle.shown, complete=complete)

    async def pieces() -> AsyncGenerator[bytes]:
        try:
            async for piece in bundle.pieces():
                await refuse_revoked(caller)
                yield piece
        except ProofFailed as error:
            log.error("Evidence from ledger %s failed: %s", caller.key.ledger_name, error)  # noqa: TRY400 - its traceback says no more
            raise Unavailable(_CHANGED) from error

    headers = {
        "Ledger-Position": str(signed.size),
        "Content-Disposition": f'attachment; filename="{bundle.name}.zip"',
    }
    return StreamingDownload(caller, pieces(), begin=begin, end=end, headers=headers, media_type=ZIP)


def machine_viewer(
    ledger_id: int, events: EventReader, views: ViewReader, keys: LedgerKeys, source: EvidenceLog
) -> Viewer:
    """Return the command line as a viewer: its user can read the database."""

    def anything(_: object) -> None:
        """Refuse nothing."""

    return Viewer(
        ledger_id=ledger_id,
        role=MACHINE_ROLE,
        events=events,
        views=views,
        keys=keys,
        source=source,
        may_read_code=anything,
        may_see=lambda _: True,
        may_read_creator=anything,
        acts_for_advertiser=anything,
        readable=all_codes,
        sees_all=True,
        sees_creators=True,
    )


def software() -> str:
    """Return what makes bundles, with its version."""
    return f"Sparkledger {importlib.metadata.version('sparkledger')}"


def _viewer(caller: Caller, keys: LedgerKeys, source: EvidenceLog) -> Viewer:
    services = caller.services

    def may_read_creator(creator_id: str) -> None:
        if caller.role == "brand":
            raise NotAllowed("Keys of brands can only get evidence of codes and of answers.")
        caller.act_for_creator(creator_id)

    def acts_for_advertiser(advertiser_id: str) -> None:
        if caller.role == "creator":
            raise NotAllowed("Keys of creators can only get evidence of their codes and of their own records.")
        caller.act_for_advertiser(advertiser_id)

    def readable(stream: Any) -> bool:
        return may_read(caller, stream)

    return Viewer(
        ledger_id=caller.ledger_id,
        role=caller.role,
        events=services.events,
        views=services.views,
        keys=keys,
        source=source,
        may_read_code=caller.read_code,
        may_see=lambda recorded: visible_to(caller, recorded),
        may_read_creator=may_read_creator,
        acts_for_advertiser=acts_for_advertiser,
        readable=readable,
        sees_all=caller.role not in LIMITED_TO_SUBJECTS,
        sees_creators=caller.role != "brand",
    )
