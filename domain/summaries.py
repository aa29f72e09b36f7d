"""One sentence for each event, and a few for each answer to the authorization question. Nothing sealed is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.log import Log
from domain.sheet_import import SheetImport
from domain.video import Video

if TYPE_CHECKING:
    from datetime import datetime

    from domain.authorization import Verdict
    from domain.recorded import Event


def summary(event: Event) -> str:  # noqa: C901, PLR0911, PLR0912, PLR0915 - one line for each event
    """Say in one sentence what happened."""
    match event:
        case Creator.Enabled():
            return f"Creator {event.creator_id} switched ad authorization on."
        case Creator.Disabled():
            return f"Creator {event.creator_id} switched ad authorization off."
        case Advertiser.Named():
            return f"Advertiser account {event.advertiser_id} is of brand {event.brand_id}."
        case Video.Bound():
            return f"Video {event.video_id} was bound to creator {event.creator_id}."
        case Video.Released():
            return f"The binding of video {event.video_id} to a creator was lifted."
        case Creator.Erased():
            return f"Creator {event.creator_id} was erased: their sealed data can no longer be read."
        case Code.Generated():
            start = f"from {_day(event.starts_at)} " if event.start_stated else ""
            beside = "" if event.start_stated else "; nobody stated when it began"
            code = "a code whose secret is not known" if event.masked is None else f"code {event.masked}"
            return (
                f"Creator {event.creator_id} accepted terms {event.terms_version} and generated {code} "
                f"for video {event.video_id}, valid {start}until {_day(event.expires_at)}{beside}."
            )
        case Code.SecretAttached():
            return f"The secret of the code was attached: {event.masked}."
        case Code.Extended():
            return f"The code was extended from {_day(event.old_expires_at)} to {_day(event.expires_at)}."
        case Code.Shared():
            via = {"dm": "a direct message", "email": "e-mail", "text": "a text message"}
            account = f" (advertiser {event.advertiser_id})" if event.advertiser_id else ""
            channel = via.get(event.channel, "another channel")
            return f"The code was shared with brand {event.brand_id}{account} by {channel}."
        case Code.Redeemed():
            unknown = "; whether it had been shared with that account was not known"
            flag = {True: "", False: ", with which it had not been shared", None: unknown}
            return f"Advertiser {event.advertiser_id} redeemed the code{flag[event.shared_with_advertiser]}."
        case Code.RedemptionRefused():
            return f"Advertiser {event.advertiser_id} was refused the code: {event.reason}."
        case Code.CampaignLaunched():
            budget = f"{event.budget['amount']} {event.budget['currency']}"
            return (
                f"Advertiser {event.advertiser_id} launched campaign {event.campaign_id} with {budget}, "
                f"from {_day(event.starts_at)} until {_day(event.ends_at)}."
            )
        case Code.CampaignEnded():
            why = {
                "code_expired": ", because the code expired",
                "code_revoked": ", because the code was revoked",
            }
            return f"Campaign {event.campaign_id} of advertiser {event.advertiser_id} ended{why.get(event.cause, '')}."
        case Code.Revealed():
            return "The secret was revealed again."
        case Code.NoteAdded():
            about = "" if event.about_position is None else f" about position {event.about_position}"
            return f"A note was added{about}."
        case Code.RightsStated():
            end = "without an end" if event.rights_end_at is None else f"until {_day(event.rights_end_at)}"
            where = "" if event.platforms is None else f", on {', '.join(event.platforms)}"
            edits = {True: ", edits allowed", False: ", no edits", None: ""}[event.edits_allowed]
            contract = "" if event.contract_fingerprint is None else ", by a contract whose reference is sealed"
            return f"Usage rights were stated: {end}{where}{edits}{contract}."
        case Code.Superseded():
            return f"The code was superseded by another from {_day(event.superseded_at)} on."
        case Code.Revoked():
            return "The code was revoked by force." if event.forced else "The code was revoked."
        case Code.Expired():
            return f"The code expired at {_day(event.expires_at)}."
        case Code.ExpiryApproaching():
            days = "1 day" if event.days_left == 1 else f"{event.days_left} days"
            return f"The code expires within {days}, at {_day(event.expires_at)}."
        case SheetImport.Started():
            return f"The import of a sheet with {_rows(event.rows)} began. Its SHA-256 is {event.file_sha256}."
        case SheetImport.Ended():
            done = "ended" if event.complete else "was interrupted"
            return (
                f"The import {done}: {_rows(event.new)} new, {event.changed} added to known codes, "
                f"{event.known} known already, {event.differs} different, {event.refused} refused, "
                f"{event.unclear} unclear."
            )
        case Log.Restarted():
            lost = "" if event.lost_position is None else f" Events up to position {event.lost_position} were lost."
            after = "" if event.common_position is None else f" after position {event.common_position}"
            return f"The log goes on as generation {event.generation}{after}.{lost}"
        case Log.HeadsSealed():
            return f"The heads of {event.keys} streams, creators and videos were sealed, as of position {event.upto}."
        case Log.KeyAdded():
            return f"The log is signed by another key as well: {_key(event.vkey)}."
        case Log.KeyRetired():
            return f"The log is not signed any more by the key {_key(event.vkey)}."
        case Log.KeyCompromised():
            return f"The key {_key(event.vkey)} of the log is compromised: what it alone has signed counts for nothing."
        case _:
            message = f"no sentence is written for {type(event).__name__}"
            raise NotImplementedError(message)


def _key(vkey: str) -> str:
    """Return the name and the id of a verifier key."""
    return vkey.rpartition("+")[0]


def verdict_summary(verdict: Verdict, video_id: str, advertiser_id: str, at: datetime) -> str:
    """Say in a few sentences whether a video was authorized for an advertiser account, why, and what to know of it."""
    was = "was authorized" if verdict.authorized else "was not authorized"
    sentences = [f"Video {video_id} {was} for advertiser {advertiser_id} at {_day(at)}: {_why(verdict)}."]
    if verdict.code_id is not None:
        if not verdict.start_stated:
            sentences.append("Nobody stated when the code's window began.")
        if not verdict.permission_known:
            sentences.append("Nothing is recorded of the creator's ad authorization at that time.")
        elif not verdict.permission_enabled:
            sentences.append("The creator's ad authorization was off.")
    if verdict.shared is None:
        sentences.append("Whether the code had been shared with this account is not known.")
    elif verdict.authorized and not verdict.shared:
        sentences.append("The code had not been shared with this account.")
    if verdict.recorded_late and verdict.evidence_recorded_at is not None:
        sentences.append(f"Some of the evidence was recorded later, the last at {_day(verdict.evidence_recorded_at)}.")
    if verdict.backdated:
        sentences.append("Some of the evidence was recorded with an earlier effective time.")
    return " ".join(sentences)


def _why(verdict: Verdict) -> str:
    start = "" if verdict.starts_at is None else f", which begins at {_day(verdict.starts_at)}"
    end = "" if verdict.expires_at is None else f", which ends at {_day(verdict.expires_at)}"
    rights = "" if verdict.rights_until is None else f" at {_day(verdict.rights_until)}"
    return {
        "authorized": f"the account had redeemed the code inside its window{end}",
        "no_code": "no code of this video is known",
        "not_redeemed": "the account had not redeemed the code",
        "not_started": f"it was before the code's window{start}",
        "expired": f"it was after the code's window{end}",
        "revoked": "the code had been revoked",
        "rights_ended": f"the usage rights had ended{rights}",
    }[verdict.reason]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _day(moment: datetime) -> str:
    # By strftime it took half the time of a sentence, and every event of an export has one.
    return f"{str(moment)[:16]} UTC"
