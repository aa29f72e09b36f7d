"""Proof: is what is shown here signed, and how does somebody outside check it without this server?

This page is served by the server that is to be checked, so it verifies nothing itself. It hands out what a verifier
needs, and says what must come from elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

import orjson

from api.console.forms import Field
from api.console.visit import PEOPLE, Page
from api.console.wording import in_utc
from api.evidence_plans import Kind

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

ALL: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor"})
# A key that can be read to somebody on the phone.
SHORT_KEY_CHARACTERS: Final = 200
_TIMES: Final = ("at", "since", "until")
_NUMBERS: Final = ("first", "last", "size")
_TEXTS: Final = ("video_id", "advertiser_id", "code_id", "creator_id")
# The bundles that have a form on this page; those of a code and of an answer are made where these are shown.
CREATOR: Final = (Field("creator_id", "Creator", is_required=True),)
RANGE: Final = (
    Field("since", "Recorded from", "time", hint="UTC", is_required=True),
    Field("until", "Recorded before", "time", hint="UTC", is_required=True),
)


async def _show(visit: Visit) -> Response:
    log = (await visit.api.get("/v1/log")).json
    return visit.page(
        "proof.html",
        log=log,
        short_key=SHORT_KEY_CHARACTERS,
        creator=CREATOR,
        span=RANGE,
        reads_all=visit.role in ALL,
    )


async def _bundle(visit: Visit) -> Response:
    form = await visit.form()
    kind = form.get("kind", "")
    body: dict[str, object] = {"kind": kind if kind in get_args(Kind) else "ledger"}
    body |= {name: form[name].strip() for name in _TEXTS if form.get(name, "").strip()}
    body |= {name: in_utc(form[name]) for name in _TIMES if form.get(name)}
    body |= {name: int(form[name]) for name in _NUMBERS if form.get(name, "").isdecimal()}
    return visit.passed_on("/v1/evidence", {}, accept="*/*", method="POST", body=orjson.dumps(body))


PAGES: Final = (
    Page("/proof", _show, more="Proof", roles=PEOPLE, parts=("/proof",)),
    Page("/proof/bundle", _bundle, methods=("POST",), roles=PEOPLE),
)
