"""A generator of late paperwork, and a model of what happened that shares no code with the product.

`World` is told facts in the order in which they happened, one after the other, as a person with one clock would keep
them: there is nothing late in it, no log, no positions, no derived intervals. `worlds` makes up facts that this world
accepts. Whatever the product is told in another order must come to what the world came to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

START: Final = datetime(2026, 1, 1, tzinfo=datetime.fromisoformat("2026-01-01T00:00:00+00:00").tzinfo)
DAY: Final = timedelta(days=1)
CREATORS: Final = ("ana", "bo")
VIDEOS: Final = ("7312345678901234561", "7312345678901234562")
ADVERTISERS: Final = ("adv-1", "adv-2")
BRANDS: Final = ("acme", "zeta")
HASHES: Final = (None, "a" * 64, "b" * 64)


@dataclass(frozen=True)
class Fact:
    """Something that happened, when, and to what."""

    at: datetime
    kind: str
    code: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Ad:
    """A campaign as the world has it."""

    advertiser: str
    launched: datetime
    starts: datetime
    ends: datetime
    caption: str | None
    stopped: tuple[datetime, str] | None = None


@dataclass
class Slip:
    """A code as the world has it: a permission slip."""

    number: int
    creator: str
    video: str
    generated: datetime
    starts: datetime
    ends: datetime
    caption: str | None
    shared: dict[tuple[str, str | None], datetime] = field(default_factory=dict)
    redeemed: dict[str, datetime] = field(default_factory=dict)
    was_shared: dict[str, bool | None] = field(default_factory=dict)
    ads: dict[str, Ad] = field(default_factory=dict)
    revoked: datetime | None = None
    replaces: int | None = None
    replaced: datetime | None = None
    rights: datetime | None = None
    rights_over: datetime | None = None

    @property
    def held_until(self) -> datetime:
        """When it let go of its video, or will."""
        return min(moment for moment in (self.ends, self.revoked, self.replaced) if moment is not None)

    def begun(self) -> datetime:
        """When it was there: its window had begun, or the creator had it."""
        return min(self.starts, self.generated)

    def stops(self, ad: Ad) -> tuple[datetime, str]:
        """When an ad stops by itself, with the code, or with the rights, and why."""
        ends = [(ad.ends, "campaign_end"), (self.ends, "code_expired")]
        if self.rights_over is not None:
            ends.append((max(self.rights_over, ad.launched), "rights_ended"))
        return min(ends, key=lambda end: end[0])

    def open(self, now: datetime) -> bool:
        return self.revoked is None and self.starts <= now < self.ends


class World:
    """What happened, told in the order in which it happened."""

    def __init__(self) -> None:
        self.now = START
        self.permission: dict[str, bool] = {}
        self.permitted_since: dict[str, datetime] = {}
        self.owners: dict[str, str] = {}
        self.slips: dict[int, Slip] = {}

    def tick(self, now: datetime) -> None:
        """Let time pass: ads stop by themselves, or with the window of their code."""
        self.now = now
        for slip in self.slips.values():
            for ad in slip.ads.values():
                if ad.stopped is None and slip.stops(ad)[0] <= now:
                    ad.stopped = slip.stops(ad)

    def happen(self, fact: Fact) -> bool:
        """Let a fact happen, if the rules allow it at its time."""
        self.tick(fact.at)
        return bool(getattr(self, fact.kind)(fact, **fact.facts))

    def permit(self, fact: Fact, creator: str, *, enabled: bool) -> bool:
        if not enabled and creator not in self.permission:
            return False
        if self.permission.get(creator) != enabled:
            self.permitted_since[creator] = fact.at
        self.permission[creator] = enabled
        return True

    def name(self, _fact: Fact, advertiser: str, brand: str) -> bool:
        self.owners[advertiser] = brand
        return True

    def generate(self, fact: Fact, **said: Any) -> bool:
        starts, ends = said["starts"] or fact.at, said["ends"]
        old = self.slips.get(said["replaces"] or 0)
        for other in self.slips.values():
            if other.video == said["video"] and other is not old and starts < self._kept_until(other):
                return False
        if not self.permission.get(said["creator"]) or ends <= fact.at:
            return False
        if old is not None:
            moment = max(fact.at, starts)
            same = (old.creator, old.video) == (said["creator"], said["video"])
            if not same or old.revoked is not None or old.replaced is not None or old.ends <= moment:
                return False
            old.replaced = moment
        self.slips[fact.code or 0] = Slip(
            number=fact.code or 0,
            creator=said["creator"],
            video=said["video"],
            generated=fact.at,
            starts=starts,
            ends=ends,
            caption=said["caption"],
            replaces=said["replaces"],
        )
        return True

    def extend(self, fact: Fact, ends: datetime) -> bool:
        slip = self.slips[fact.code or 0]
        if slip.revoked is not None or not self.permission.get(slip.creator):
            return False
        if ends <= slip.ends or ends <= fact.at or (slip.replaced is not None and slip.replaced <= fact.at):
            return False
        begins = fact.at if slip.ends <= fact.at else slip.starts
        for other in self.slips.values():
            if other is slip or other.video != slip.video or other.number == slip.replaces:
                continue
            if slip.number != other.replaces and other.starts < ends and begins < self._kept_until(other):
                return False
        slip.ends = ends
        return True

    def rights(self, fact: Fact, until: datetime | None) -> bool:
        """Let somebody state until when the code may be used: nothing refuses that, and nobody undoes what stopped."""
        slip = self.slips[fact.code or 0]
        slip.rights = until
        slip.rights_over = None if until is None else max(until, fact.at)
        return True

    def share(self, fact: Fact, brand: str, advertiser: str | None) -> bool:
        slip = self.slips[fact.code or 0]
        if slip.revoked is not None or slip.ends <= fact.at or not self.permission.get(slip.creator):
            return False
        if slip.replaced is not None and slip.replaced <= fact.at:
            return False
        slip.shared.setdefault((brand, advertiser), fact.at)
        return True

    def redeem(self, fact: Fact, advertiser: str) -> bool:
        slip = self.slips[fact.code or 0]
        replaced = slip.replaced is not None and slip.replaced <= fact.at
        if not slip.open(fact.at) or (replaced and advertiser not in slip.redeemed):
            return False
        if advertiser not in slip.redeemed:
            slip.redeemed[advertiser] = fact.at
            slip.was_shared[advertiser] = self.shared_with(slip, advertiser)
        return True

    def launch(self, fact: Fact, name: str, advertiser: str, **said: Any) -> bool:
        slip = self.slips[fact.code or 0]
        if not slip.open(fact.at) or advertiser not in slip.redeemed or name in slip.ads:
            return False
        if not slip.starts <= said["starts"] < slip.ends:
            return False
        caption = said["caption"]
        launched = Ad(advertiser, fact.at, said["starts"], said["ends"], caption)
        begins, stops = max(fact.at, said["starts"]), slip.stops(launched)[0]
        for ad in slip.ads.values():
            run = max(ad.launched, ad.starts), ad.stopped[0] if ad.stopped else slip.stops(ad)[0]
            shown = ad.caption or self._caption_before(slip, ad)
            if max(begins, run[0]) < min(stops, run[1]) and caption and shown and caption != shown:
                return False
        slip.ads[name] = launched
        return True

    def end(self, fact: Fact, name: str) -> bool:
        slip = self.slips[fact.code or 0]
        if name not in slip.ads:
            return False
        ad = slip.ads[name]
        if ad.stopped is None:
            ad.stopped = (fact.at, "ended")
        return True

    def revoke(self, fact: Fact, *, force: bool) -> bool:
        slip = self.slips[fact.code or 0]
        if slip.revoked is not None:
            return True
        running = [ad for ad in slip.ads.values() if ad.stopped is None]
        if running and not force:
            return False
        for ad in running:
            ad.stopped = (fact.at, "code_revoked")
        slip.revoked = fact.at
        return True

    def _kept_until(self, slip: Slip) -> datetime:
        """Return until when nobody else may have a code's video, in whichever order codes are recorded.

        A code that was replaced before it began never had its video. But it is recorded before its successor, with at
        least the moment at which it began: a third code that is on record already, and has that moment, would keep it
        out.
        """
        unused = slip.replaced is not None and slip.replaced <= slip.starts
        return slip.starts + DAY if unused else slip.held_until

    def shared_with(self, slip: Slip, advertiser: str) -> bool | None:
        """Tell whether a code is shared with an account now, or nothing where nobody knows."""
        owner = self.owners.get(advertiser)
        if any(account == advertiser or brand == owner for brand, account in slip.shared):
            return True
        return None if owner is None and any(account is None for _, account in slip.shared) else False

    def _caption_before(self, slip: Slip, ad: Ad) -> str | None:
        earlier = [other for other in slip.ads.values() if other.launched < ad.launched and other.caption]
        return max(earlier, key=lambda other: other.launched).caption if earlier else slip.caption


def told(facts: list[Fact], until: datetime) -> World:
    """Return the world as it stood at a moment."""
    world = World()
    for fact in facts:
        if fact.at <= until:
            assert world.happen(fact)
    world.tick(until)
    return world


def state(world: World, number: int) -> str:
    """Return the word for where a code stood."""
    return state_of_slip(world.slips[number], world)


def there(facts: list[Fact], at: datetime) -> tuple[World, list[Slip]]:
    """Return the world as it stood at a moment, with every code that was there by what is known in the end.

    A code whose window began before the creator had it was there already, and nothing had happened to it.
    """
    world, last = told(facts, at), told(facts, facts[-1].at)
    begun = [number for number, slip in last.slips.items() if slip.begun() <= at]
    later = {f.code: _as_generated(f) for f in facts if f.kind == "generate" and f.at > at}
    return world, [world.slips.get(number) or later[number] for number in begun]


def state_of_slip(slip: Slip, world: World) -> str:
    if slip.revoked is not None:
        return "revoked"
    if slip.ends <= world.now:
        return "expired"
    if slip.replaced is not None and slip.replaced <= world.now:
        return "superseded"
    return "redeemed" if slip.redeemed else "shared" if slip.shared else "generated"


def answer(facts: list[Fact], video: str, advertiser: str, at: datetime) -> tuple[Any, ...]:
    """Answer the question from the world as it stood: reason, code, window, rights, permission, if it was shared."""
    world = told(facts, at)
    slips = [slip for slip in world.slips.values() if slip.video == video]
    # What was generated later was there already to a person who asks today: its window had not begun, or nobody had it.
    last = told(facts, facts[-1].at)
    slips += [
        _as_generated(fact)
        for fact in facts
        if fact.kind == "generate" and fact.at > at and fact.facts["video"] == video and fact.code in last.slips
    ]
    found: list[tuple[Any, Any, Slip]] = []
    for slip in slips:
        if slip.revoked is not None:
            reason = "revoked"
        elif at < slip.starts:
            reason = "not_started"
        elif slip.ends <= at:
            reason = "expired"
        elif slip.rights_over is not None and slip.rights_over <= at:
            reason = "rights_ended"
        else:
            reason = "authorized" if advertiser in slip.redeemed else "not_redeemed"
        rank = (reason == "authorized", slip.starts, slip.generated)
        shared = slip.was_shared.get(advertiser, world.shared_with(slip, advertiser))
        said = (
            reason,
            slip.number,
            slip.starts,
            slip.ends,
            slip.rights,
            world.permission.get(slip.creator, False),
            shared,
        )
        found.append((rank, said, slip))
    authorizing = [one for one in found if one[0][0]] or [one for one in found if one[2].starts <= at]
    if not authorizing:  # nothing had begun: what comes first, if it comes at all
        coming = [one for one in found if one[2].revoked is None] or found
        authorizing = [one for one in coming if one[2].starts == min(other[2].starts for other in coming)]
    replaced = {slip.replaces for _, _, slip in authorizing}
    left = [one for one in authorizing if one[2].number not in replaced]
    return max(left, key=lambda one: one[0])[1] if left else ("no_code", None, None, None, None, False, False)


def _as_generated(fact: Fact) -> Slip:
    said = fact.facts
    starts = said["starts"] or fact.at
    return Slip(
        fact.code or 0,
        said["creator"],
        said["video"],
        fact.at,
        starts,
        said["ends"],
        said["caption"],
        replaces=said["replaces"],
    )


def happenings(random: Random, steps: int) -> list[Fact]:
    """Make up what happened: facts that the world accepts, each at a moment of its own."""
    world = World()
    facts: list[Fact] = []
    now = START
    while len(facts) < steps:
        now += timedelta(minutes=random.choice([1, 7, 60, 60 * 24, 60 * 24 * 5, 60 * 24 * 12]) + random.randint(0, 50))
        for fact in _tried(random, world, now):
            if world.happen(fact):
                facts.append(fact)
                break
    return facts


def _tried(random: Random, world: World, now: datetime) -> Iterator[Fact]:
    for _ in range(20):
        kind = random.choice(
            ["permit", "name", *["generate"] * 3, *["extend"] * 3, *["share"] * 2, *["redeem"] * 4, *["launch"] * 5]
            + ["rights"] * 2
            + ["end"] * 2
            + ["revoke"]
        )
        if not world.permission:
            kind = "permit"
        if kind == "permit":
            enabled = random.random() < 0.7 or not world.permission
            yield Fact(now, kind, None, {"creator": random.choice(CREATORS), "enabled": enabled})
            continue
        if kind == "name":
            facts = {"advertiser": random.choice(ADVERTISERS), "brand": random.choice(BRANDS)}
            yield Fact(now, kind, None, facts)
            continue
        if kind == "generate":
            yield Fact(now, kind, len(world.slips) + 1, _generated(random, world, now))
            continue
        if not world.slips:
            continue
        slip = world.slips[random.choice([*world.slips, max(world.slips)])]
        yield Fact(now, kind, slip.number, _of_slip(random, kind, slip, now))


def _generated(random: Random, world: World, now: datetime) -> dict[str, Any]:
    given = random.random() < 0.6
    starts = random.choice([None, None, now + random.randint(0, 6) * DAY, now - random.randint(0, 3) * DAY])
    if given:
        starts = starts if random.random() < 0.7 else None
        ends = (starts or now) + timedelta(days=random.randint(4, 45), minutes=random.randint(0, 99))
    else:
        ends = (starts or now) + random.choice([7, 30]) * DAY
    creator, video = random.choice(CREATORS), random.choice(VIDEOS)
    replaces = None
    if world.slips and random.random() < 0.5:
        old = random.choice(list(world.slips.values()))
        creator, video, replaces = old.creator, old.video, old.number
    return {
        "creator": creator,
        "video": video,
        "replaces": replaces,
        "starts": starts,
        "ends": ends,
        "caption": random.choice(HASHES),
        "given": given,
    }


def _of_slip(random: Random, kind: str, slip: Slip, now: datetime) -> dict[str, Any]:  # noqa: PLR0911 - one for each
    advertiser = random.choice(ADVERTISERS)
    match kind:
        case "extend":
            return {"ends": max(slip.ends, now) + timedelta(days=random.randint(1, 40), minutes=random.randint(0, 99))}
        case "rights":
            until = now + timedelta(days=random.randint(-5, 40), minutes=random.randint(0, 99))
            return {"until": None if random.random() < 0.2 else until}
        case "share":
            return {"brand": random.choice(BRANDS), "advertiser": random.choice([None, advertiser])}
        case "redeem":
            return {"advertiser": advertiser}
        case "launch":
            starts = now + timedelta(days=random.choice([0, 0, 1, 5, -2]), minutes=3)
            ends = starts + timedelta(days=random.choice([2, 9, 30, 90]), minutes=5)
            name = f"campaign-{random.randint(1, 4)}"
            return {
                "name": name,
                "advertiser": advertiser,
                "starts": starts,
                "ends": ends,
                "caption": random.choice(HASHES),
            }
        case "end":
            return {"name": f"campaign-{random.randint(1, 4)}"}
        case _:
            return {"force": random.random() < 0.5}


# What happened, as a list of facts in the order in which they happened.
paperwork = st.builds(lambda seed, steps: happenings(Random(seed), steps), st.integers(0, 2**32), st.integers(5, 40))
