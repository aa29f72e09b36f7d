"""A rehearsal: commands decided one after another as if each were recorded, with nothing recorded.

What a dry run shows of a sheet must count its earlier rows: a second row with the same code, or with another code for
the same time of a video, would be refused or known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from domain.code import Code
from domain.commands import OfVideo
from domain.creator import Creator
from domain.errors import Unknown
from domain.pasted import creator_name, secret_name
from infra.eventstore.repository import copied

if TYPE_CHECKING:
    from uuid import UUID

    from domain.advertiser import Advertiser
    from domain.commands import Decision, Ledger
    from domain.values import Sealed


class Fingerprints(Protocol):
    """What names a secret without containing it."""

    def fingerprint(self, text: str) -> str:
        """Return the keyed hash of a text."""


class Pretended:
    """What earlier decisions would have changed. A code of it takes about 2 KB."""

    def __init__(self) -> None:
        """Begin with nothing changed."""
        self.creators: dict[str, Creator] = {}
        self.codes: dict[UUID, Code] = {}
        self.by_secret: dict[str, UUID] = {}
        self.by_video: dict[str, list[UUID]] = {}

    def keep(self, ledger: Fingerprints, decision: Decision[Any], secret: Sealed | None = None) -> int:
        """Remember what a decision changes, and return how many events it would record."""
        changed = decision.aggregate
        events = list(changed.collect_events())
        if not events:
            return 0
        if isinstance(changed, Creator):
            self.creators[creator_name(changed.creator_id)] = changed
        elif isinstance(changed, Code):
            if secret is not None:
                self.by_secret[ledger.fingerprint(secret_name(secret))] = changed.id
            if changed.id not in self.codes:
                self.by_video.setdefault(changed.video_id, []).append(changed.id)
            self.codes[changed.id] = changed
        return len(events)


class Rehearsal:
    """A ledger as it would be after what was pretended. Implements `domain.commands.Ledger`."""

    def __init__(self, ledger: Ledger, pretended: Pretended) -> None:
        """Take the ledger as it is, and what is pretended besides."""
        self._ledger = ledger
        self._pretended = pretended

    async def creator(self, creator_id: str) -> Creator | None:
        """Load a creator."""
        known = self._pretended.creators.get(creator_name(creator_id))
        return await self._ledger.creator(creator_id) if known is None else copied(known)

    async def code(self, code_id: UUID) -> Code:
        """Load a code."""
        known = self._pretended.codes.get(code_id)
        return await self._ledger.code(code_id) if known is None else copied(known)

    async def code_by_secret(self, secret: Sealed) -> Code | None:
        """Load the code with a secret."""
        code_id = self._pretended.by_secret.get(self._ledger.fingerprint(secret_name(secret)))
        if code_id is not None:
            return copied(self._pretended.codes[code_id])
        code = await self._ledger.code_by_secret(secret)
        known = None if code is None else self._pretended.codes.get(code.id)
        return code if known is None else copied(known)

    async def of_video(self, video_id: str) -> OfVideo:
        """Load the codes of a video."""
        known = await self._ledger.of_video(video_id)
        pretended = self._pretended.codes
        codes = {code.id: code for code in known.codes}
        changed = [code_id for code_id in codes if code_id in pretended]
        for code_id in (*changed, *self._pretended.by_video.get(video_id, ())):
            codes[code_id] = copied(pretended[code_id])
        return OfVideo(list(codes.values()), known.video)

    async def advertiser(self, advertiser_id: str) -> Advertiser | None:
        """Load an advertiser account."""
        return await self._ledger.advertiser(advertiser_id)

    def fingerprint(self, text: str) -> str:
        """Hash a text with the ledger's key."""
        return self._ledger.fingerprint(text)

    async def note_mark(self, creator_id: str, text: str) -> str:
        """Hash a note with its creator's key, if there is one yet."""
        if await self._ledger.creator(creator_id) is None:
            if creator_name(creator_id) not in self._pretended.creators:
                raise Unknown("creator")
            return self._ledger.fingerprint(text)
        return await self._ledger.note_mark(creator_id, text)
