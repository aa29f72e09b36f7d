"""What a row of a sheet records: everything that it says and that is not known, in one append, or nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.campaign import Share
from domain.errors import Refused
from domain.sheet_import import SheetImport
from domain.sheet_rows import (
    Difference,
    NoStart,
    RowDecision,
    SeveralCodes,
    SheetFacts,
    StatedTime,
    begin_import,
    end_import,
    note_differences,
    permission_since,
    record_row,
)
from domain.values import Sealed, When
from tests import given

DAY = timedelta(days=1)
MARCH = given.NOW - 60 * DAY
FACTS = SheetFacts(
    secret=given.SECRET,
    creator_id=given.CREATOR,
    video_id=given.VIDEO,
    terms_version=given.TERMS,
    starts_at=StatedTime(MARCH, MARCH),
    expires_at=StatedTime(MARCH + 29 * DAY, MARCH + 30 * DAY),
)


def at(moment: datetime) -> StatedTime:
    return StatedTime(moment, moment)


def permitted(since: datetime = MARCH) -> given.Story:
    story = given.Story()
    story.when(given.permission(), effective_at=since)
    return story


def decided(story: given.Story, facts: SheetFacts, code_id: UUID = given.CODE) -> RowDecision:
    when = When(story.clock(), story.clock())
    return given.done(record_row(story.ledger, given.POLICY, code_id, facts, when=when))


def recorded(story: given.Story, facts: SheetFacts, code_id: UUID = given.CODE) -> list[tuple[str, datetime]]:
    """Record a row, and return what it recorded, with the effective times."""
    events = story.ledger.append(decided(story, facts, code_id).decision, now=story.clock(), actor=given.OPERATOR)
    return [(event.type, event.effective_at) for event in events]


def test_a_row_is_recorded_with_the_times_at_which_its_facts_took_effect() -> None:
    facts = replace(
        FACTS,
        share=Share(given.BRAND, "dm"),
        shared_at=at(MARCH + DAY),
        redeemed_by=given.ADVERTISER,
        redeemed_at=at(MARCH + 2 * DAY),
        revoked_at=at(MARCH + 9 * DAY),
        note=Sealed("Paid twice."),
    )
    story = permitted()
    assert recorded(story, facts) == [
        ("CodeGenerated", MARCH),
        ("Shared", MARCH + DAY),
        ("Redeemed", MARCH + 2 * DAY),
        ("Revoked", MARCH + 9 * DAY),
        ("NoteAdded", given.NOW),
    ]
    code = story.code()
    assert (code.window.starts_at, code.window.expires_at, code.start_stated) == (MARCH, MARCH + 30 * DAY, True)


def test_the_same_row_again_records_nothing() -> None:
    facts = replace(
        FACTS,
        share=Share(given.BRAND, "dm"),
        redeemed_by=given.ADVERTISER,
        redeemed_at=at(MARCH + 2 * DAY),
        noted_at=at(MARCH + DAY),
        note=Sealed("Paid twice."),
    )
    story = permitted()
    recorded(story, facts)
    story.later(days=3)
    assert (recorded(story, facts), decided(story, facts).existing) == ([], True)


def test_a_row_that_says_more_of_a_known_code_records_only_that() -> None:
    story = permitted()
    recorded(story, FACTS)
    shared = replace(FACTS, share=Share(given.BRAND, "email"), shared_at=at(MARCH + DAY))
    assert recorded(story, shared) == [("Shared", MARCH + DAY)]


def test_a_day_agrees_with_every_time_in_it() -> None:
    story = permitted()
    recorded(story, replace(FACTS, expires_at=at(MARCH + 29 * DAY + timedelta(hours=3))))
    assert decided(story, FACTS).differences == ()
    day = StatedTime(MARCH, MARCH + DAY)
    shared = replace(FACTS, share=Share(given.BRAND, "dm"), shared_at=at(MARCH + timedelta(hours=5)))
    recorded(story, shared)
    assert recorded(story, replace(shared, shared_at=day)) == []


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"creator_id": "creator-2"}, Difference("creator_id", "creator-1", "creator-2")),
        ({"video_id": "video-2"}, Difference("video_id", "video-1", "video-2")),
        (
            {"expires_at": at(given.NOW)},
            Difference("expires_at", "2026-01-30T12:00:00Z", "2026-03-01T12:00:00Z"),
        ),
        ({"starts_at": at(MARCH - DAY)}, Difference("starts_at", "2025-12-31T12:00:00Z", "2025-12-30T12:00:00Z")),
        ({"terms_version": "other", "terms_stated": True}, Difference("terms_version", "terms-2026", "other")),
    ],
)
def test_a_row_that_contradicts_the_ledger_records_nothing(changed: dict[str, Any], difference: Difference) -> None:
    story = permitted()
    recorded(story, FACTS)
    # It says something new besides, which is not recorded either.
    facts = replace(FACTS, share=Share(given.BRAND, "dm"), shared_at=at(MARCH + DAY), **changed)
    found = decided(story, facts)
    assert (found.differences, found.decision.aggregate.pending_events) == ((difference,), [])


def test_the_terms_of_the_whole_sheet_contradict_no_code() -> None:
    story = permitted()
    recorded(story, FACTS)
    assert decided(story, replace(FACTS, terms_version="other")).differences == ()


def test_a_row_of_which_one_fact_is_refused_records_nothing() -> None:
    story = permitted()
    facts = replace(FACTS, share=Share(given.BRAND, "dm"), shared_at=at(MARCH + 40 * DAY))
    with pytest.raises(Refused, match="window has ended"):
        recorded(story, facts)
    assert [event.type for event in story.ledger.events] == ["PermissionEnabled"]


def test_a_redemption_that_is_refused_is_not_recorded_as_an_attempt() -> None:
    story = permitted()
    recorded(story, FACTS)
    facts = replace(FACTS, redeemed_by=given.ADVERTISER, redeemed_at=at(given.NOW))
    with pytest.raises(Refused) as refusal:
        recorded(story, facts)
    assert (refusal.value.code, story.told()) == ("code_expired", "CodeGenerated")


def test_a_code_whose_start_nobody_states_begins_when_the_row_was_written() -> None:
    story = permitted()
    noted = replace(FACTS, starts_at=None, noted_at=at(MARCH + DAY), share=Share(given.BRAND, "dm"))
    assert recorded(story, noted) == [("CodeGenerated", MARCH + DAY), ("Shared", MARCH + DAY)]
    assert (story.code().start_stated, story.code().window.starts_at) == (False, MARCH + DAY)


def test_an_end_and_a_length_give_the_start() -> None:
    story = permitted()
    recorded(story, replace(FACTS, starts_at=None, length=30 * DAY))
    assert (story.code().start_stated, story.code().window.starts_at) == (True, MARCH)


def test_two_rows_for_the_same_time_of_a_video_cannot_both_be_recorded() -> None:
    story = permitted()
    recorded(story, FACTS)
    with pytest.raises(Refused) as refusal:
        decided(story, replace(FACTS, secret=given.OTHER_SECRET), given.OTHER_CODE)
    assert refusal.value.code == "live_code_exists"


def since(story: given.Story, facts: SheetFacts) -> datetime | None:
    return given.done(permission_since(story.ledger, facts, story.clock()))


def test_the_permission_is_recorded_only_where_a_row_states_it_and_nothing_is_known() -> None:
    stated = replace(FACTS, permission=True)
    assert since(given.Story(), FACTS) is None
    assert since(given.Story(), stated) == MARCH
    assert since(permitted(MARCH + DAY), stated) == MARCH
    assert since(permitted(), stated) is None


def test_a_permission_that_was_switched_off_is_not_switched_on_by_a_sheet() -> None:
    story = permitted(MARCH - DAY)
    story.when(given.permission(enabled=False), effective_at=MARCH - timedelta(hours=1))
    stated = replace(FACTS, permission=True)
    assert since(story, stated) is None
    with pytest.raises(Refused) as refusal:
        decided(story, stated)
    assert refusal.value.code == "permission_disabled"


def test_differences_are_noted_once() -> None:
    story = permitted()
    recorded(story, FACTS)
    differences = (Difference("starts_at", None, "2026-01-01T00:00:00Z"),)
    when = When(story.clock(), story.clock())

    def noted() -> list[str]:
        decision = given.done(note_differences(story.ledger, given.CODE, "abc", differences, when=when))
        return given.types(story.ledger.append(decision, now=story.clock(), actor=given.OPERATOR))

    assert (noted(), noted()) == (["NoteAdded"], [])
    assert story.ledger.sealed[3]["text"] == (
        "A sheet with the SHA-256 abc differs: starts_at is not stated here and 2026-01-01T00:00:00Z in the sheet."
    )


def test_an_import_begins_and_ends_once() -> None:
    when = When(given.NOW, given.NOW)
    begun = begin_import(given.CODE, when=when, file_sha256="abc", rows=2, columns={}, options={})
    counts = dict.fromkeys(("new", "changed", "known", "differs", "refused", "unclear"), 0)
    ended = end_import(begun.aggregate, complete=True, counts=counts, when=when)
    end_import(ended.aggregate, complete=False, counts=counts, when=when)
    assert [type(event) for event in ended.aggregate.pending_events] == [SheetImport.Started, SheetImport.Ended]


def test_usage_rights_of_a_row_are_stated_once_and_what_it_leaves_out_stays() -> None:
    story = permitted()
    until = StatedTime(MARCH + 19 * DAY, MARCH + 20 * DAY)
    facts = replace(FACTS, rights_until=until, contract_reference=Sealed("C-117"))
    assert recorded(story, facts) == [("CodeGenerated", MARCH), ("UsageRightsStated", MARCH)]
    assert recorded(story, facts) == []
    # The end of a day agrees with every time in it, and another column is added to what is known.
    more = replace(FACTS, rights_until=until, edits_allowed=False, rights_stated_at=at(MARCH + DAY))
    assert recorded(story, more) == [("UsageRightsStated", MARCH + DAY)]
    stated = story.code().usage_rights
    assert stated is not None
    assert (stated.rights.until, stated.rights.edits_allowed) == (MARCH + 20 * DAY, False)
    assert stated.rights.contract_fingerprint is not None
    other = replace(more, rights_until=at(MARCH + 25 * DAY), edits_allowed=True)
    found = decided(story, other)
    assert [(one.field, one.sheet) for one in found.differences] == [
        ("rights_until", (MARCH + 25 * DAY).isoformat().replace("+00:00", "Z")),
        ("edits_allowed", "true"),
    ]


WITHOUT = replace(FACTS, secret=None)


def test_a_row_without_a_secret_is_recorded_once_and_completed_by_one_that_has_it() -> None:
    story = permitted()
    assert recorded(story, WITHOUT) == [("CodeGenerated", MARCH)]
    assert (story.code().masked, recorded(story, WITHOUT)) == (None, [])
    later = replace(FACTS, redeemed_by=given.ADVERTISER, redeemed_at=at(MARCH + DAY))
    completed = recorded(story, later, given.OTHER_CODE)
    assert completed == [("CodeSecretAttached", given.NOW), ("Redeemed", MARCH + DAY)]
    assert (story.code().masked, recorded(story, later), recorded(story, WITHOUT)) == ("…A1B2", [], [])


def test_a_row_without_a_secret_is_redeemed_with_the_code() -> None:
    facts = replace(WITHOUT, redeemed_by=given.ADVERTISER, redeemed_at=at(MARCH + DAY))
    assert recorded(permitted(), facts) == [("CodeGenerated", MARCH), ("Redeemed", MARCH + DAY)]


def test_a_row_without_a_secret_with_another_end_differs_from_the_code_of_its_time() -> None:
    story = permitted()
    recorded(story, FACTS)
    found = decided(story, replace(WITHOUT, starts_at=None, noted_at=at(MARCH + DAY), expires_at=at(MARCH + 99 * DAY)))
    assert [one.field for one in found.differences] == ["expires_at"]
    # One of another time is another code.
    after = replace(WITHOUT, starts_at=at(MARCH + 30 * DAY), expires_at=at(MARCH + 99 * DAY))
    assert decided(story, after, given.OTHER_CODE).existing is False


def test_a_secret_is_not_attached_to_a_code_that_its_row_contradicts() -> None:
    story = permitted()
    recorded(story, WITHOUT)
    with pytest.raises(Refused) as refusal:
        decided(story, replace(FACTS, expires_at=at(MARCH + 99 * DAY)), given.OTHER_CODE)
    assert refusal.value.code == "live_code_exists"


def test_a_row_without_a_secret_is_not_about_one_of_two_codes() -> None:
    story = permitted()
    recorded(story, replace(FACTS, revoked_at=at(MARCH + DAY)))
    successor = replace(FACTS, secret=given.OTHER_SECRET, starts_at=at(MARCH + DAY))
    when = When(story.clock(), story.clock())
    second = given.done(record_row(story.ledger, given.POLICY, given.OTHER_CODE, successor, when=when))
    story.ledger.append(second.decision, now=story.clock(), actor=given.OPERATOR)
    with pytest.raises(SeveralCodes):
        decided(story, replace(WITHOUT, starts_at=None))
    assert decided(story, WITHOUT).decision.aggregate.id == given.CODE


def test_a_row_that_names_a_code_without_a_secret_by_its_id_brings_it() -> None:
    story = permitted()
    recorded(story, WITHOUT)
    brought = recorded(story, replace(FACTS, code_id=given.CODE), given.OTHER_CODE)
    assert brought == [("CodeSecretAttached", given.NOW)]


UNSTATED = replace(WITHOUT, starts_at=None, noted_at=at(MARCH + DAY))


def test_a_row_brings_the_secret_of_a_code_that_was_revoked_meanwhile() -> None:
    story = permitted()
    recorded(story, replace(UNSTATED, revoked_at=at(MARCH + 5 * DAY)))
    # Neither its end, which is past, nor the permission, which is off, concerns a code that is known.
    story.when(given.permission(enabled=False))
    brought = replace(UNSTATED, secret=given.SECRET, noted_at=None)
    assert recorded(story, brought, given.OTHER_CODE) == [("CodeSecretAttached", given.NOW)]


def test_a_row_that_starts_after_a_revocation_brings_the_secret_of_another_code() -> None:
    story = permitted()
    recorded(story, replace(UNSTATED, revoked_at=at(MARCH + 5 * DAY)))
    later = replace(FACTS, starts_at=at(MARCH + 5 * DAY))
    assert recorded(story, later, given.OTHER_CODE) == [("CodeGenerated", MARCH + 5 * DAY)]


def test_a_secret_that_may_be_of_several_codes_is_attached_to_none() -> None:
    story = permitted()
    recorded(story, replace(UNSTATED, revoked_at=at(MARCH + 5 * DAY)))
    recorded(story, replace(WITHOUT, starts_at=at(MARCH + 5 * DAY)), given.OTHER_CODE)
    with pytest.raises(SeveralCodes):
        decided(story, replace(FACTS, starts_at=None))


def test_a_code_that_is_not_known_and_has_ended_needs_a_start() -> None:
    with pytest.raises(NoStart):
        decided(permitted(), replace(FACTS, starts_at=None))
