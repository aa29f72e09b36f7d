"""The query language of the trail: what it means, and where it goes wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.query_language import MAX_TERMS, MAX_VALUES, QUALIFIERS, ParsedQuery, QueryError, Words, parse
from domain.event_types import EVENT_TYPES
from projections.index_scan import Among, Between, Condition, Positions, RecordedLate

CODE = "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"


def day(year: int, month: int = 1, number: int = 1, **more: int) -> datetime:
    return datetime(year, month, number, tzinfo=UTC) + timedelta(**more)


@pytest.mark.parametrize(
    ("query", "conditions"),
    [
        ("type:Shared", [Among("type", ("Shared",))]),
        ("TYPE:shared,REDEEMED", [Among("type", ("Shared", "Redeemed"))]),
        ("-type:Shared -type:Redeemed", [Among("type", (kind,), True) for kind in ("Shared", "Redeemed")]),
        (f"actor:clock code:{CODE.upper()}", [Among("actor", ("clock",)), Among("code_id", (UUID(CODE),))]),
        (f"actor:{CODE.upper()}", [Among("actor", (CODE,))]),
        ('creator:"ana.creates"', [Among("creator_id", ("ana.creates",))]),
        ("brand:a:b@c-d advertiser:-2", [Among("brand_id", ("a:b@c-d",)), Among("advertiser_id", ("-2",))]),
        ("video:1 channel:dm,email", [Among("video_id", ("1",)), Among("channel", ("dm", "email"))]),
        ("refused:code_expired source:platform", [Among("refused", ("code_expired",)), Among("source", ("platform",))]),
        ("recorded:2026", [Between("recorded_at", day(2026), day(2027))]),
        ("recorded:2026-12", [Between("recorded_at", day(2026, 12), day(2027))]),
        ("recorded:2026-02-28", [Between("recorded_at", day(2026, 2, 28), day(2026, 3, 1))]),
        ("recorded:2026-01..2026-03", [Between("recorded_at", day(2026, 1), day(2026, 4))]),
        ("effective:2026-01-31..", [Between("effective_at", day(2026, 1, 31), None)]),
        ("-effective:..2025", [Between("effective_at", None, day(2026), True)]),
        ("position:4,100..200", [Positions(((4, 4), (100, 200)))]),
        ("-position:1", [Positions(((1, 1),), True)]),
        ("late:>30d", [RecordedLate(timedelta(days=30))]),
        ("-late:1h", [RecordedLate(timedelta(hours=1), True)]),
        (
            "recorded:2026-03-01T12:00:00Z",
            [Between("recorded_at", day(2026, 3, 1, hours=12), day(2026, 3, 1, hours=12, microseconds=1))],
        ),
        (
            "recorded:2026-03-01T12:00:00.5+01:00..2026-03-02",
            [Between("recorded_at", day(2026, 3, 1, hours=11, milliseconds=500), day(2026, 3, 3))],
        ),
    ],
)
def test_a_qualifier_searches_a_field(query: str, conditions: list[Condition]) -> None:
    assert parse(query) == ParsedQuery(tuple(conditions))


@pytest.mark.parametrize(
    ("query", "types", "words"),
    [
        ('reason:"agreement ended"', {"Revoked", "CodeRevealed"}, Words("agreement ended", searched="reason")),
        ("terms:2026-01,2026-02", {"CodeGenerated"}, Words("2026-01", False, "terms_version", ("2026-02",))),
        ("note:spring", {"NoteAdded", "Shared"}, Words("spring", searched="note")),
    ],
)
def test_a_text_of_an_event_is_searched_in_the_events_that_have_it(query: str, types: set[str], words: Words) -> None:
    parsed = parse(query)
    assert parsed.words == (words,)
    [condition] = parsed.conditions
    assert isinstance(condition, Among)
    assert condition.field == "type"
    assert types <= set(map(str, condition.values)) <= set(EVENT_TYPES) - {"RedemptionRefused"}


def test_keys_are_named_in_a_query_and_looked_up_later() -> None:
    assert parse('key:"Acme, Inc",Ana -key:old').key_names == ((("Acme, Inc", "Ana"), False), (("old",), True))


def test_a_version_of_terms_is_found_only_as_a_whole() -> None:
    pattern = Words("2026-01", searched="terms_version", alternatives=("B",)).pattern()
    assert [text for text in ("2026-01", "2026-01-b", "b", "ab") if pattern.search(text)] == ["2026-01", "b"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("spring sale", [Words("spring"), Words("sale")]),
        ('"spring sale" -summer', [Words("spring sale"), Words("summer", negated=True)]),
        (r'"say \"hi\" \\ there"', [Words(r'say "hi" \ there')]),
        ("12:30 a-b …Zx9A", [Words("12:30"), Words("a-b"), Words("…Zx9A")]),
        ('"type:Shared"', [Words("type:Shared")]),
        ('"AND" and -"\u201ca" NOTE', [Words("AND"), Words("and"), Words("\u201ca", negated=True), Words("NOTE")]),
        ('-"-"', [Words("-", negated=True)]),
    ],
)
def test_what_is_no_qualifier_stands_in_the_summary(query: str, words: list[Words]) -> None:
    assert parse(query) == ParsedQuery(words=tuple(words))


@pytest.mark.parametrize(
    ("text", "found", "missed"),
    [
        ("on", "switched on.", "authorization off."),
        ("AUTHORIZATION", "ad authorization on", "unauthorization"),
        ("campaign-1", "launched campaign-1 with", "launched campaign-12 with"),
        ("(adv", "brand acme (adv-7001)", "brand acme"),
        ("straße", "die STRASSE hier", "strassen"),
    ],
)
def test_words_are_found_whole_and_in_any_case(text: str, found: str, missed: str) -> None:
    pattern = Words(text).pattern()
    assert pattern.search(found.casefold())
    assert not pattern.search(missed.casefold())


# The query, with a caret under the character where it goes wrong, and the beginning of what is said.
@pytest.mark.parametrize(
    ("query", "caret", "problem"),
    [
        ("typ:Shared", "^", "Unknown qualifier. Known qualifiers: actor, advertiser, brand, channel, code, creator, "),
        ("a -typ:Shared", "   ^", "Unknown qualifier"),
        ("type:", "     ^", "Expected one of PermissionEnabled, "),
        ("type: Shared", "     ^", "Expected one of "),
        ("type:Share", "     ^", "Expected one of "),
        ("type:Shared,", "            ^", "Expected one of "),
        ("type:Shared,,Redeemed", "            ^", "Expected one of "),
        ("type:Shared AND adv", "            ^", "AND, OR and NOT are not"),
        ("NOT type:Shared", "^", "AND, OR and NOT are not"),
        ("a -OR b", "   ^", "AND, OR and NOT are not"),
        ("\u201cspring sale\u201d", "^", "Use straight quotes"),
        ('a,x"', "   ^", "Expected a space or the end of the query."),
        ("code:1", "     ^", "Expected the id of a code, which is a UUID."),
        ("actor:ana", "      ^", "Expected the id of a key, or clock."),
        ("creator:a/b", "        ^", "A creator's id has 1 to 128"),
        ("brand:a/b", "      ^", "Expected an id"),
        ("channel:dm,fax", "           ^", "Expected one of dm, email, text, other."),
        ("refused:because", "        ^", "Expected one of other_video, code_revoked, code_not_started"),
        ("source:me", "       ^", "Expected one of creator, brand, operator, platform, clock."),
        ("type:Shared type:Redeemed", "            ^", "This qualifier is repeated"),
        ("key:Ana key:Acme", "        ^", "This qualifier is repeated"),
        ("position:0", "         ^", "Expected a position or a range"),
        ("position:1,9..3", "           ^", "Expected a position or a range"),
        ("late:30", "     ^", "Expected a number of hours or days"),
        ("late:0h", "     ^", "Expected a number of hours or days"),
        ("late:>99999d", "     ^", "Expected a number of hours or days"),
        ("terms:", "      ^", "Expected a version of the terms"),
        ("recorded:yesterday", "         ^", "Expected a year, a month, a day or an RFC 3339 time"),
        ("recorded:2026-13", "         ^", "Expected a year, "),
        ("recorded:2026-02-30", "         ^", "Expected a year, "),
        ("recorded:2026-03-01T12:00:00", "         ^", "Expected a year, "),
        ("recorded:1999", "         ^", "Expected a time in the years 2000 to 2099."),
        ("recorded:..", "         ^", "Expected a year, "),
        ("recorded:2026..x", "               ^", "Expected a year, "),
        ("recorded:2026-03..2026-01", "                  ^", "The end of a range must be after its start."),
        ('"spring', "       ^", 'Expected a closing "'),
        (r'"a\b"', r"  ^", 'Expected a closing "'),
        ('a ""', "   ^", "Expected text."),
        ('"a"b', "   ^", "Expected a space or the end of the query."),
        ("a - b", "   ^", "Expected text."),
        ("-", " ^", "Expected text."),
        ("   ", "   ^", "Expected a term"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_pointed_at(query: str, caret: str, problem: str) -> None:
    with pytest.raises(QueryError) as raised:
        parse(query)
    assert " " * raised.value.offset + "^" == caret
    assert raised.value.problem.startswith(problem)


def test_a_query_is_bounded() -> None:
    assert len(parse(" ".join(["a"] * MAX_TERMS)).words) == MAX_TERMS
    for query, offset in (
        (" ".join(["a"] * (MAX_TERMS + 1)), 2 * MAX_TERMS),
        ("creator:" + ",".join(["a"] * (MAX_VALUES + 1)), 8 + 2 * MAX_VALUES),
    ):
        with pytest.raises(QueryError) as raised:
            parse(query)
        assert raised.value.offset == offset


def test_every_type_of_event_can_be_asked_for() -> None:
    assert {"PermissionEnabled", "CodeGenerated", "RedemptionRefused", "Expired"} <= EVENT_TYPES.keys()
    assert not {"Code", "CodeChanged", "Creator"} & EVENT_TYPES.keys()
    for kind in EVENT_TYPES:
        assert parse(f"type:{kind.lower()}") == ParsedQuery((Among("type", (kind,)),))


MOMENTS = st.datetimes(day(2000).replace(tzinfo=None), day(2099).replace(tzinfo=None), timezones=st.just(UTC))
# `.` and `..` are no ids.
IDS = st.text("aZ09._:@-", min_size=1, max_size=8).filter(lambda text: text not in {".", ".."})
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "actor": st.one_of(st.just("clock"), st.uuids().map(str)),
    "advertiser": IDS,
    "brand": IDS,
    "channel": st.sampled_from(["dm", "email", "text", "other"]),
    "code": st.uuids(),
    # An @ and capitals make no difference: what they come to has tests of its own.
    "creator": IDS.map(str.lower).filter(lambda text: not text.startswith("@")),
    "refused": st.sampled_from(["code_revoked", "code_expired"]),
    "source": st.sampled_from(["creator", "clock"]),
    "type": st.sampled_from(list(EVENT_TYPES)),
    "video": IDS,
}


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def queries(draw: st.DrawFn) -> tuple[str, ParsedQuery]:
    """A query as somebody may write it, and what it means."""
    terms: list[str] = []
    conditions: list[Condition] = []
    words: list[Words] = []
    for name in draw(st.lists(st.sampled_from([*VALUES, "recorded", "effective", "words"]), min_size=1, max_size=8)):
        negated = draw(st.booleans())
        minus = "-" * negated
        spelt = draw(st.sampled_from([name, name.upper(), name.title()]))
        if name == "words":
            text = draw(
                st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
            )
            terms.append(minus + quoted(text))
            words.append(Words(text, negated))
        elif name in {"recorded", "effective"}:
            since, until = sorted(draw(st.tuples(MOMENTS, MOMENTS)))
            terms.append(f"{minus}{spelt}:{since.isoformat()}..{until.isoformat()}")
            field: Any = f"{name}_at"
            conditions.append(Between(field, since, until + timedelta(microseconds=1), negated))
        else:
            known: Any = QUALIFIERS[name].searched
            if not negated and any(isinstance(c, Among) and c.field == known and not c.negated for c in conditions):
                continue
            values = draw(st.lists(VALUES[name], min_size=1, max_size=3))
            quote = draw(st.booleans())
            terms.append(f"{minus}{spelt}:" + ",".join(quoted(str(v)) if quote else str(v) for v in values))
            conditions.append(Among(known, tuple(values), negated))
    space = draw(st.sampled_from([" ", "  ", "\t", "\n "]))
    return space.join(terms), ParsedQuery(tuple(conditions), tuple(words))


@settings(deadline=None)
@given(queries())
def test_a_query_means_what_it_was_written_for(query: tuple[str, ParsedQuery]) -> None:
    text, meant = query
    assert parse(text) == meant


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.text('atype:recorded,."-\\ 0126', max_size=60)))
def test_any_text_is_a_query_or_goes_wrong_within_itself(text: str) -> None:
    asked = outcome(text)
    if isinstance(asked, QueryError):
        assert 0 <= asked.offset <= len(text)
        assert asked.problem.endswith(".")
    else:
        assert asked.conditions or asked.words


def outcome(text: str) -> ParsedQuery | QueryError:
    try:
        return parse(text)
    except QueryError as error:
        return error


@pytest.mark.parametrize("spelling", ["Ana", "@ana", "@@ANA", "https://www.tiktok.com/@ana", "tiktok.com/@Ana?lang=en"])
def test_a_creator_is_meant_however_spelled(spelling: str) -> None:
    assert parse(f'creator:"{spelling}"') == ParsedQuery((Among("creator_id", ("ana",)),))
