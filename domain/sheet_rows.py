"""What one row of a sheet says of one code, compared with the ledger: which commands would record it, as one decision.

A row is recorded whole or not at all: the code, its share, its redemption, its revocation and its note are events of
one stream, and go in with one append. A row that contradicts the ledger records nothing: its differences are returned.
A row whose facts are known records nothing either, so that the same sheet can be imported again.

A row without a code's text is about the code of its video that has its window. Codes of a video never share its time,
so there is one at most, unless the window of several is the same because one was revoked or superseded. So too,
a row with a code's text that is not known may be about a code that was recorded without it, also one that was revoked.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from domain import commands
from domain.commands import Decision, OfVideo
from domain.errors import Unknown
from domain.pasted import creator_name
from domain.periods import overlap
from domain.rights import UsageRights
from domain.sheet_import import SheetImport
from domain.values import Sealed, When, Window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from datetime import datetime
    from typing import Any
    from uuid import UUID

    from domain.advertiser import Advertiser
    from domain.campaign import Share
    from domain.code import Code
    from domain.commands import Ledger
    from domain.creator import Creator
    from domain.values import Policy

# The fields in which a row without a secret must agree with a code to be about it.
_WINDOW: Final = frozenset({"starts_at", "expires_at"})
NO_REASON: Final = "The sheet gives no reason."


class SeveralCodes(Exception):
    """A row may be about several codes of its video."""


class NoStart(Exception):
    """A row is about a code that is not known and has ended, and does not say when it began."""


class StatedTime(NamedTuple):
    """A time as a cell has it: a moment, or a day.

    Attributes:
        first: the moment, or the first instant of the day.
        last: the moment, or the first instant after the day.

    """

    first: datetime
    last: datetime

    def includes(self, moment: datetime) -> bool:
        """Return whether a recorded time agrees with the cell."""
        if self.first == self.last:
            # What is written to the second agrees with every moment in that second.
            second = timedelta(microseconds=1) if self.first.microsecond else timedelta(seconds=1)
            return self.first <= moment < self.first + second
        return self.first <= moment <= self.last


class Difference(NamedTuple):
    """A field in which a row contradicts the ledger: the value that is recorded, and the one in the sheet."""

    field: str
    recorded: str | None
    sheet: str


@dataclass(frozen=True, slots=True)
class SheetFacts:
    """What one row says.

    Attributes:
        secret, creator_id, video_id: the code, its creator and its video; no secret if the row has none.
        code_id: the code, if it is known and the row names it.
        terms_version: the version of the advertising terms that the creator accepted.
        terms_stated: whether the row itself has the version.
        starts_at, expires_at: the window, as far as it is stated.
        length: the length of the window, if it is stated; with an end, it gives the start.
        noted_at: when the row was written: by then there was the code, and facts without a time of their own hold.
        permission: whether the row, or the caller, says that the creator's ad authorization was on.
        share: with whom the code was shared, and `shared_at` when, if the row says so.
        redeemed_by: the account that entered the code, and `redeemed_at` when.
        revoked_at: when the code was revoked, and `reason` why.
        rights_until, platforms, edits_allowed, contract_reference: usage rights, as far as the row states them, and
            `rights_stated_at` since when they hold.
        note: a remark.

    """

    secret: Sealed | None
    creator_id: str
    video_id: str
    terms_version: str
    code_id: UUID | None = None
    terms_stated: bool = False
    starts_at: StatedTime | None = None
    expires_at: StatedTime | None = None
    length: timedelta | None = None
    noted_at: StatedTime | None = None
    permission: bool = False
    share: Share | None = None
    shared_at: StatedTime | None = None
    redeemed_by: str | None = None
    redeemed_at: StatedTime | None = None
    revoked_at: StatedTime | None = None
    reason: str | None = None
    rights_until: StatedTime | None = None
    platforms: tuple[str, ...] | None = None
    edits_allowed: bool | None = None
    contract_reference: Sealed | None = None
    rights_stated_at: StatedTime | None = None
    note: Sealed | None = None

    @property
    def begins(self) -> datetime | None:
        """The start of the window: as it is stated, or as its end and its length give it."""
        if self.starts_at is not None:
            return self.starts_at.first
        if self.expires_at is not None and self.length is not None:
            return self.expires_at.last - self.length
        return None

    @property
    def ends(self) -> datetime | None:
        """The end of the window: as it is stated, or as its start and its length give it."""
        if self.expires_at is not None:
            return self.expires_at.last
        if self.starts_at is not None and self.length is not None:
            return self.starts_at.first + self.length
        return None

    def generated_by(self, now: datetime) -> datetime:
        """Return by when the code had been generated, as far as the row says it."""
        noted = None if self.noted_at is None else self.noted_at.first
        return min(moment for moment in (now, noted, self.begins) if moment is not None)

    @property
    def can_be_new(self) -> bool:
        """Whether the row may be about a code that is not known: one that it names by its id alone is."""
        return self.secret is not None or self.code_id is None

    @property
    def states_rights(self) -> bool:
        """Whether the row says which usage rights there are."""
        return any(one is not None for one in (self.rights_until, self.platforms, self.edits_allowed))

    def rights_beside(self, known: UsageRights) -> UsageRights:
        """Return usage rights as the row states them, and else as they are known."""
        until = self.rights_until
        return known._replace(
            until=known.until if until is None or _includes(until, known.until) else until.last,
            platforms=known.platforms if self.platforms is None else self.platforms,
            edits_allowed=known.edits_allowed if self.edits_allowed is None else self.edits_allowed,
        )

    def shared_by(self, now: datetime) -> datetime:
        """Return by when the code had been shared."""
        stated = self.shared_at or self.noted_at
        return now if stated is None else stated.first


class RowDecision(NamedTuple):
    """What a row wants appended, whether its code is known, and in what it contradicts the ledger."""

    decision: Decision[Code]
    existing: bool
    differences: tuple[Difference, ...] = ()


async def permission_since(ledger: Ledger, facts: SheetFacts, now: datetime) -> datetime | None:
    """Return since when the creator's ad authorization is to be recorded as on, before the row itself is.

    Only the row's own word is recorded, and only where the ledger knows nothing for that time. Where a switch is on
    record by then, that one counts.

    Returns:
        The time; None if there is nothing to record.

    Raises:
        SeveralCodes: what the row is about is not clear.

    """
    if not facts.permission or await _known_code(ledger, facts, now) is not None:
        return None
    at = facts.generated_by(now)
    creator = await ledger.creator(facts.creator_id)
    if creator is None:
        return at
    if creator.erased_at is not None or any(switch.at <= at for switch in creator.switches.values()):
        return None
    return at


async def record_row(ledger: Ledger, policy: Policy, code_id: UUID, facts: SheetFacts, *, when: When) -> RowDecision:
    """Decide what a row records of its code. A new code gets the id.

    Raises:
        Refused: one of the commands that the row stands for is refused.
        SeveralCodes: what the row is about is not clear.
        NoStart: the code is not known, and when it began is not clear.

    """
    now = when.now
    known = await _known_code(ledger, facts, now)
    if known is None:
        if facts.ends is not None and facts.ends <= facts.generated_by(now):
            raise NoStart
        decision = await _generate(ledger, policy, code_id, facts, now)
    else:
        decision = Decision(known)
        differences = tuple(_differences(known, facts))
        if differences:
            return RowDecision(decision, existing=True, differences=differences)
    row = _Row(ledger, decision, now)
    await _add_facts(row, facts, is_new=known is None)
    return RowDecision(row.decision, existing=known is not None)


async def _generate(ledger: Ledger, policy: Policy, code_id: UUID, facts: SheetFacts, now: datetime) -> Decision[Code]:
    return await commands.generate(
        ledger,
        policy,
        code_id=code_id,
        creator_id=facts.creator_id,
        video_id=facts.video_id,
        terms_version=facts.terms_version,
        starts_at=facts.begins,
        expires_at=facts.ends,
        secret=facts.secret,
        secret_given=facts.secret is not None,
        when=When(now, facts.generated_by(now)),
    )


async def _known_code(ledger: Ledger, facts: SheetFacts, now: datetime) -> Code | None:
    """Return the code of a row, if it is known.

    Raises:
        Unknown: the row has only the code's id, and there is no such code.
        SeveralCodes: what the row is about is not clear.

    """
    if facts.secret is None:
        return await (_of_video(ledger, facts, now) if facts.code_id is None else ledger.code(facts.code_id))
    known = await ledger.code_by_secret(facts.secret)
    if known is None and facts.code_id is not None:
        with suppress(Unknown):  # a sheet that was exported from another ledger names codes of that one
            known = await ledger.code(facts.code_id)
            return known if known.masked is None else None
    return await _without_secret(ledger, facts) if known is None else known


async def _without_secret(ledger: Ledger, facts: SheetFacts) -> Code | None:
    """Return the code that a row brings the secret of: one that was recorded without it, and agrees with the row."""
    itself = replace(facts, code_id=None)
    codes = [
        code
        for code in (await ledger.of_video(facts.video_id)).codes
        if code.masked is None and not any(_differences(code, itself)) and not _ended_before(code, facts)
    ]
    return _one_of(codes)


def _ended_before(code: Code, facts: SheetFacts) -> bool:
    """Return whether a code was over, revoked or superseded, by the row's stated start: that is of a later code."""
    ends = [moment for moment in (code.revoked_at, code.superseded_at) if moment is not None]
    return facts.begins is not None and bool(ends) and min(ends) <= facts.begins


def _one_of(codes: list[Code]) -> Code | None:
    """Return the one that a row is about, of codes that agree with it: first, one that ever kept the video from others.

    Raises:
        SeveralCodes: there are several.

    """
    if len(codes) > 1:
        codes = [code for code in codes if code.occupation()] or codes
    if len(codes) > 1:
        raise SeveralCodes
    return codes[0] if codes else None


async def _of_video(ledger: Ledger, facts: SheetFacts, now: datetime) -> Code | None:
    """Return the code that a row without a secret is about, if it is known.

    Where no code has the window of the row, it is the one that has a part of its time: they cannot both be right.
    """
    codes = (await ledger.of_video(facts.video_id)).codes
    in_window = [code for code in codes if not any(one.field in _WINDOW for one in _differences(code, facts))]
    agree = _one_of([code for code in in_window if not _ended_before(code, facts)])
    if agree is not None or facts.ends is None:
        return agree
    time = [Window(facts.generated_by(now), facts.ends)]
    share_it = [code for code in codes if overlap(time, code.occupation())]
    return share_it[0] if len(share_it) == 1 else None


async def _add_facts(row: _Row, facts: SheetFacts, *, is_new: bool) -> None:
    """Add what the row says besides the code itself, as far as it is not known."""
    code, now = row.made, row.now
    secret = facts.secret
    if secret is not None and code.masked is None:
        await row.add(
            lambda ledger, when: commands.attach_secret(
                ledger, code.id, secret, if_match=None, authorize=_anyone, when=when
            ),
            now,
        )
    if facts.share is not None and not _is_shared(code, facts.share, facts.shared_at):
        share = facts.share
        await row.add(
            lambda ledger, when: commands.share(
                ledger, code.id, share, None, if_match=None, authorize=_anyone, when=when
            ),
            facts.shared_by(now),
        )
    account, redeemed_at = facts.redeemed_by, facts.redeemed_at
    if account is not None and redeemed_at is not None and not _is_by(code.redemptions.get(account), redeemed_at):
        await row.add(
            lambda ledger, when: commands.redeem(ledger, None, account, frozenset(), code_id=code.id, when=when),
            redeemed_at.first,
        )
    if facts.states_rights:
        await _add_rights(row, facts, is_new=is_new)
    if facts.revoked_at is not None and code.revoked_at is None:
        reason = facts.reason or NO_REASON
        await row.add(
            lambda ledger, when: commands.revoke(
                ledger, code.id, reason, force=False, if_match=None, authorize=_anyone, when=when
            ),
            facts.revoked_at.first,
        )
    if facts.note is not None:
        note = facts.note
        await row.add(
            lambda ledger, when: commands.add_note(
                ledger, code.id, note, None, if_match=None, authorize=_anyone, when=when
            ),
            now,
        )


async def _add_rights(row: _Row, facts: SheetFacts, *, is_new: bool) -> None:
    """Add the usage rights that the row states, as far as they are not known."""
    code, contract = row.made, facts.contract_reference
    known = UsageRights() if code.usage_rights is None else code.usage_rights.rights
    rights = facts.rights_beside(known)
    if contract is not None:
        rights = rights._replace(contract_fingerprint=await row.note_mark(code.creator_id, contract))
    if code.usage_rights is not None and rights == known:
        return
    stated = facts.rights_stated_at or facts.noted_at
    by = facts.generated_by(row.now) if is_new else row.now
    await row.add(
        lambda ledger, when: commands.state_rights(
            ledger, code.id, rights, contract, if_match=None, authorize=_anyone, when=when
        ),
        by if stated is None else stated.first,
    )


async def note_differences(
    ledger: Ledger, code_id: UUID, file_sha256: str, differences: tuple[Difference, ...], *, when: When
) -> Decision[Code]:
    """Record on a code, as a note, in what a sheet contradicts the ledger. The same sheet again records nothing."""
    said = "; ".join(
        f"{one.field} is {one.recorded or 'not stated'} here and {one.sheet} in the sheet" for one in differences
    )
    text = Sealed(f"A sheet with the SHA-256 {file_sha256} differs: {said}.")
    return await commands.add_note(ledger, code_id, text, None, if_match=None, authorize=_anyone, when=when)


def begin_import(import_id: UUID, *, when: When, **facts: Any) -> Decision[SheetImport]:
    """Record that an import begins; `facts` are the fields of the event."""
    return Decision(SheetImport.begin(import_id, at=when.at, **facts))


def end_import(
    sheet_import: SheetImport, *, complete: bool, counts: dict[str, int], when: When
) -> Decision[SheetImport]:
    """Record that an import ended, and what became of its rows."""
    sheet_import.end(complete=complete, counts=counts, at=when.at)
    return Decision(sheet_import)


class _Row:
    """A row while it is decided. Implements `Ledger`: its code is as the row has made it so far.

    Attributes:
        decision: everything decided so far, as one.
        now: the time at which the row is recorded.

    """

    def __init__(self, ledger: Ledger, decision: Decision[Code], now: datetime) -> None:
        self.decision = decision
        self.now = now
        self._ledger = ledger

    @property
    def made(self) -> Code:
        return self.decision.aggregate

    async def add(self, decide: Callable[[Ledger, When], Awaitable[Decision[Code]]], at: datetime) -> None:
        """Decide a command on the code, and add what it rests on.

        Raises:
            Refused: it is refused; the whole row then is.

        """
        found = await decide(self, When(self.now, at))
        if found.refusal is not None:
            raise found.refusal
        so_far = self.decision
        read = {one.id: one for one in (*so_far.also_read, *found.also_read) if one.id != self.made.id}
        # What takes effect now must not be recorded after a window that it relies on.
        until = [one for one in (so_far.valid_until, found.valid_until if at == self.now else None) if one is not None]
        self.decision = replace(
            so_far,
            also_read=list(read.values()),
            claims=[*so_far.claims, *(claim for claim in found.claims if claim not in so_far.claims)],
            valid_until=min(until, default=None),
        )

    async def code(self, code_id: UUID) -> Code:
        return self.made if code_id == self.made.id else await self._ledger.code(code_id)

    async def creator(self, creator_id: str) -> Creator | None:
        return await self._ledger.creator(creator_id)

    async def advertiser(self, advertiser_id: str) -> Advertiser | None:
        return await self._ledger.advertiser(advertiser_id)

    async def code_by_secret(self, secret: Sealed) -> Code | None:
        return await self._ledger.code_by_secret(secret)

    async def of_video(self, video_id: str) -> OfVideo:
        known = await self._ledger.of_video(video_id)
        others = known.besides(self.made.id)
        is_there = len(others) < len(known.codes)
        codes = [self.made if code.id == self.made.id else code for code in known.codes]
        return OfVideo(codes if is_there else [*codes, self.made], known.video)

    def fingerprint(self, text: str) -> str:
        return self._ledger.fingerprint(text)

    async def note_mark(self, creator_id: str, text: str) -> str:
        return await self._ledger.note_mark(creator_id, text)


def _anyone(_: Code) -> None:
    """Let everybody change the code: who imports may change every code."""


def _is_by(recorded: datetime | None, stated: StatedTime) -> bool:
    """Return whether something is on record as of the stated time, or as of an earlier one, which then counts."""
    return recorded is not None and (recorded <= stated.last or stated.includes(recorded))


def _is_shared(code: Code, share: Share, stated: StatedTime | None) -> bool:
    """Return whether a share is known, with or without a note."""
    moments = [moment for recorded, moment in code.shares.items() if replace(recorded, note_fingerprint=None) == share]
    return any(stated is None or _is_by(moment, stated) for moment in moments)


def _differences(code: Code, facts: SheetFacts) -> Iterator[Difference]:
    """Yield in what a row contradicts a code. What one of them leaves open is no contradiction."""
    if creator_name(code.creator_id) != creator_name(facts.creator_id):
        yield Difference("creator_id", code.creator_id, facts.creator_id)
    if facts.code_id is not None and code.id != facts.code_id:
        yield Difference("code_id", str(code.id), str(facts.code_id))
    if code.video_id != facts.video_id:
        yield Difference("video_id", code.video_id, facts.video_id)
    if facts.terms_stated and code.terms_version != facts.terms_version:
        yield Difference("terms_version", code.terms_version, facts.terms_version)
    starts_at = facts.starts_at
    if starts_at is not None and code.start_stated and not starts_at.includes(code.window.starts_at):
        yield Difference("starts_at", _said(code.window.starts_at), _said(starts_at.first))
    expires_at = facts.expires_at
    if expires_at is None and facts.ends is not None:
        expires_at = StatedTime(facts.ends, facts.ends)
    if expires_at is not None and not expires_at.includes(code.window.expires_at):
        yield Difference("expires_at", _said(code.window.expires_at), _said(expires_at.last))
    revoked_at = facts.revoked_at
    if revoked_at is not None and code.revoked_at is not None and not revoked_at.includes(code.revoked_at):
        yield Difference("revoked_at", _said(code.revoked_at), _said(revoked_at.first))
    yield from _rights_differences(code, facts)


def _rights_differences(code: Code, facts: SheetFacts) -> Iterator[Difference]:
    if code.usage_rights is None:
        return
    until, platforms, edits_allowed, _ = code.usage_rights.rights
    if facts.rights_until is not None and until is not None and not facts.rights_until.includes(until):
        yield Difference("rights_until", _said(until), _said(facts.rights_until.last))
    if facts.platforms is not None and platforms is not None and facts.platforms != platforms:
        yield Difference("platforms", " ".join(platforms), " ".join(facts.platforms))
    if facts.edits_allowed is not None and edits_allowed is not None and facts.edits_allowed != edits_allowed:
        yield Difference("edits_allowed", str(edits_allowed).lower(), str(facts.edits_allowed).lower())


def _includes(stated: StatedTime, recorded: datetime | None) -> bool:
    return recorded is not None and stated.includes(recorded)


def _said(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
