"""What people paste comes to one thing, or is refused with a reason that says what to do."""

import re
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from functools import reduce

import pytest
from hypothesis import assume, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain import pasted
from domain.pasted import (
    Unusable,
    canonical_creator_id,
    canonical_secret,
    moment,
    recorded_secret,
    secret_hint,
    shown_creator_id,
    stored_secret,
    video_id,
)
from domain.values import ID_PATTERN
from tests.pasted import INVISIBLE, codes, decorations, surroundings

CODE = "#v08a+b/c=def0123456789"
CANONICAL = "v08a+b/c=def0123456789"
VIDEO = "7312345678901234567"
ROUNDED = "7312345678901230000"

quickly = settings(max_examples=200, deadline=None)


def reason(take: Callable[[], object]) -> str | None:
    """Return why something pasted is refused; nothing where it is taken."""
    try:
        take()
    except Unusable as unusable:
        return unusable.reason
    return None


# Codes.


@quickly
@for_all(codes, decorations)
def test_any_decoration_of_a_code_finds_that_code(code: str, decorate: Callable[[str], str]) -> None:
    assert canonical_secret(decorate(code)) == canonical_secret(code)


@quickly
@for_all(codes, codes, decorations, decorations)
def test_no_two_different_codes_become_one(
    one: str, other: str, decorate_one: Callable[[str], str], decorate_other: Callable[[str], str]
) -> None:
    assume(one != other)
    assert canonical_secret(decorate_one(one)) != canonical_secret(decorate_other(other))


@quickly
@for_all(codes, st.integers(0, 90), st.sampled_from("Aa0+/=_-."), decorations)
def test_codes_that_differ_in_one_character_stay_two(
    code: str, place: int, character: str, decorate: Callable[[str], str]
) -> None:
    other = code[: 1 + place % (len(code) - 1)] + character + code[2 + place % (len(code) - 1) :]
    assume(other != code)
    assert canonical_secret(decorate(code)) != canonical_secret(decorate(other))


@quickly
@for_all(codes, surroundings)
def test_a_code_is_stored_as_it_was_less_what_surrounds_it(code: str, around: list[Callable[[str], str]]) -> None:
    assert stored_secret(reduce(lambda text, step: step(text), around, code)) == code


@quickly
@for_all(st.text(max_size=60) | codes.flatmap(lambda code: decorations.map(lambda decorate: decorate(code))))
def test_what_was_reduced_once_is_not_reduced_further(text: str) -> None:
    assume(reason(lambda: canonical_secret(text)) is None)
    canonical, stored = canonical_secret(text), stored_secret(text)
    assert stored_secret(stored) == stored
    assert (canonical_secret(stored), canonical_secret(canonical)) == (canonical, canonical)


@pytest.mark.parametrize("mark", INVISIBLE)
def test_an_invisible_character_is_no_part_of_a_code(mark: str) -> None:
    assert stored_secret(f"{mark}{CODE[:4]}{mark}{CODE[4:]}{mark}") == CODE


def test_every_format_character_that_this_python_knows_is_removed() -> None:
    known = [chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) == "Cf"]
    assert [f"{ord(mark):04x}" for mark in known if stored_secret(CODE[:4] + mark + CODE[4:]) != CODE] == []


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("#v08a%2Bb%2fc%3d", "#v08a%2Bb%2fc%3d"),
        ("%23v08a+b/c=", "%23v08a+b/c="),
        ("##v08a+b/c=", "##v08a+b/c="),
        (" '#v08a+b/c=", "#v08a+b/c="),
        ("```\n#v08a+b/c=\n```", "#v08a+b/c="),
        ("“ '#v08a+b/c=' ”", "#v08a+b/c="),
    ],
)
def test_a_code_is_given_back_as_it_was_pasted_and_found_by_what_it_means(text: str, stored: str) -> None:
    assert (stored_secret(text), canonical_secret(text)) == (stored, "v08a+b/c=")


def test_percent_encoding_is_taken_off_once() -> None:
    assert canonical_secret("v08a%252Bb/c=") == "v08a%252Bb/c="


def test_a_quote_inside_a_code_or_without_its_match_is_a_part_of_it() -> None:
    assert stored_secret('v08a"b/c=d"') == 'v08a"b/c=d"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-", "too_short"),
        ("#", "too_short"),
        ("12", "too_short"),
        ("", "too_short"),
        ("#1234567", "too_short"),
        ("%23%23%23%23%23%231", "too_short"),
        ("#12345678", None),
        ("#" + "a" * 512, None),
        ("a" * 513, "too_long"),
        ("%2B" * 512, None),
        ("%2B" * 513, "too_long"),
        ("#" * 2048 + "a" * 8, "too_long"),
        ("the code is #v08a+b/c=", "sentence"),
        ("# v08a+b/c=", "sentence"),
        ("v08a+ b/c=d", "sentence"),
        (f"{CODE}\n#v08b+c/d=", "several_codes"),
        (f"{CODE},#v08b+c/d=", "several_codes"),
        (f"{CODE}; %23v08b+c/d=", "several_codes"),
        ("v08a+b/c= v08b+c/d=", "several_codes"),
        ("v08a+b/c=\tv08b+c/d=\tv08c+d/e=", "several_codes"),
        ("v08a\0+b/c=", "control_character"),
        ("v08a\x7f+b/c=", "control_character"),
        ("v08a\ud800+b/c=", "control_character"),
    ],
)
def test_what_is_not_one_code_is_refused_with_the_reason(text: str, expected: str | None) -> None:
    assert (reason(lambda: canonical_secret(text)), reason(lambda: stored_secret(text))) == (expected, expected)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"https://www.tiktok.com/@ana/video/{VIDEO}", "video_link"),
        ("vm.tiktok.com/ZT8WXquk6", "video_link"),
        ("…A1B2", "masked_code"),
        ("...A1B2C3D4", "masked_code"),
        ("************A1B2", "masked_code"),
        ("#v08a••••••••••••A1B2", "masked_code"),
        (f"{CODE}{CODE}", "several_codes"),
        (f"{CODE} {CODE}", "several_codes"),
        ("#v08a+b/c", "cut_off"),
        ("#v08a+b/c=def0123456…", "cut_off"),
        ("#v08a+b/c=def0123456%2", "cut_off"),
        ("#v08a%252Bb/c=def0123456", "percent_encoded"),
        ("#v08a%20b/c=def0123456", "percent_encoded"),
        (f"{CODE}.", "punctuation"),
        (f"{CODE},", "punctuation"),
        (CODE, None),
    ],
)
def test_a_code_that_nobody_knows_says_what_it_looks_like(text: str, hint: str | None) -> None:
    assert secret_hint(text) == hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://www.tiktok.com/@ana/video/{VIDEO}", "video_link"),
        ("vm.tiktok.com/ZT8WXquk6", "video_link"),
        ("****ab12cd34", "masked_code"),
        ("…9af1a0ab1a22", "masked_code"),
        ("#v08a••••••••••••A1B2", "masked_code"),
        ("code123456,", "separator"),
        (";code123456", "separator"),
        ("#code123456|", "separator"),
        ("#v08a+b/c", None),
        (CODE, None),
    ],
)
def test_what_is_certainly_no_code_is_not_recorded(text: str, expected: str | None) -> None:
    assert reason(lambda: recorded_secret(text)) == expected


@quickly
@for_all(codes, surroundings)
def test_a_code_is_recorded_as_it_is_stored(code: str, around: list[Callable[[str], str]]) -> None:
    assert recorded_secret(reduce(lambda text, step: step(text), around, code)) == code


@quickly
@for_all(st.text(max_size=60))
def test_whatever_is_pasted_gets_an_answer(text: str) -> None:
    secret_hint(text)
    for take in (canonical_secret, stored_secret, recorded_secret, video_id, shown_creator_id, moment):
        reason(lambda take=take: take(text))  # type: ignore[misc] # mypy infers no type for a bound default


# Videos.


@pytest.mark.parametrize(
    "text",
    [
        VIDEO,
        f" '{VIDEO}\u200b",
        f'"{VIDEO}"',
        f"https://www.tiktok.com/@name/video/{VIDEO}?_r=1&_t=ZT-8",
        f"https://www.tiktok.com/@name/photo/{VIDEO}",
        f"http://m.tiktok.com/v/{VIDEO}.html",
        f"www.tiktok.com/@name/video/{VIDEO}/",
        f"tiktok.com/@/video/{VIDEO}#comments",
        f"HTTPS://WWW.TikTok.com:443/@name/Video/{VIDEO}",
        f"https://www.tiktok.com/embed/v2/{VIDEO}",
    ],
)
def test_a_link_and_an_id_name_one_video(text: str) -> None:
    assert video_id(text) == VIDEO


@pytest.mark.parametrize("text", ["1" * 15, "1" * 20, "123456789012345000", "7312345678901200000"[:17]])
def test_a_video_id_has_15_to_20_digits(text: str) -> None:
    assert video_id(text, exact=True) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t", "not_a_video_id"),
        ("123", "not_a_video_id"),
        ("@x", "not_a_video_id"),
        ("ZT8WXquk6", "not_a_video_id"),
        ("", "not_a_video_id"),
        ("1" * 14, "not_a_video_id"),
        ("1" * 21, "not_a_video_id"),
        ("١٢٣٤٥٦٧٨٩٠١٢٣٤٥٦", "not_a_video_id"),
        ("7312345678901234567.0", "not_a_video_id"),
        ("7,312,345,678,901,230,000", "not_a_video_id"),
        ("https://vm.tiktok.com/ZT8WXquk6/", "short_link"),
        ("vt.tiktok.com/ZT8WXquk6", "short_link"),
        ("https://www.tiktok.com/t/ZT8WXquk6/", "short_link"),
        ("https://www.tiktok.com/@name", "other_link"),
        (f"https://example.org/@name/video/{VIDEO}", "other_link"),
        (f"https://tiktok.com.example.org/@name/video/{VIDEO}", "other_link"),
        (f"https://www.tiktok.com@example.org/@name/video/{VIDEO}", "other_link"),
        (f"https://example.org/?u=https://www.tiktok.com/@name/video/{VIDEO}", "other_link"),
        ("https://www.tiktok.com/@name/video/123", "other_link"),
        ("7.31235E+18", "rounded_by_spreadsheet"),
        ("7,31235e+18", "rounded_by_spreadsheet"),
        (ROUNDED, "rounded_by_spreadsheet"),
        ("731234567890123000", "rounded_by_spreadsheet"),
        ("73123456789012340000", None),
        ("7312345678901234000", None),
        ("73123456789012300", None),
        ("000000000000000", None),
    ],
)
def test_what_names_no_video_is_refused_with_the_reason(text: str, expected: str | None) -> None:
    assert reason(lambda: video_id(text)) == expected


def test_zeros_that_are_genuine_are_taken_from_a_link_and_where_somebody_says_so() -> None:
    assert [video_id(f"https://www.tiktok.com/@name/video/{ROUNDED}"), video_id(ROUNDED, exact=True)] == [ROUNDED] * 2


def test_an_exponent_is_no_id_whatever_somebody_says() -> None:
    assert reason(lambda: video_id("7.31235E+18", exact=True)) == "rounded_by_spreadsheet"


@pytest.mark.parametrize(
    ("text", "taken"),
    [("t", "t"), ("@x", "@x"), (ROUNDED, ROUNDED), (f"www.tiktok.com/@name/video/{VIDEO}", VIDEO)],
)
def test_where_any_id_is_taken_links_are_still_reduced(text: str, taken: str) -> None:
    assert video_id(text, "any") == taken


@pytest.mark.parametrize("text", [".", "..", "", "a b", "a" * 129])
def test_even_any_id_is_an_id(text: str) -> None:
    assert reason(lambda: video_id(text, "any")) == "not_a_video_id"


def test_the_refusal_of_a_video_has_the_name_that_clients_know() -> None:
    with pytest.raises(Unusable) as unusable:
        video_id("t")
    assert (unusable.value.code, str(unusable.value)) == (
        "video_id_unusable",
        "A video id has 15 to 20 digits. Send the id or the link of the post.",
    )


# Creators.


@pytest.mark.parametrize(
    "text",
    [
        "Ana.Creates",
        "@Ana.Creates",
        " '@Ana.Creates\u200b",
        "https://www.tiktok.com/@Ana.Creates",
        "https://www.tiktok.com/@Ana.Creates?lang=en",
        "tiktok.com/@Ana.Creates/",
        f"https://m.tiktok.com/@Ana.Creates/video/{VIDEO}",
    ],
)
def test_a_name_and_links_to_a_profile_are_one_creator(text: str) -> None:
    assert (shown_creator_id(text), canonical_creator_id(text)) == ("Ana.Creates", "ana.creates")


@pytest.mark.parametrize("text", ["", "@", ".", "..", "@..", "a b", "Änä", "a" * 129, "https://example.org/@ana"])
def test_what_names_no_creator_is_refused(text: str) -> None:
    assert reason(lambda: shown_creator_id(text)) == "not_a_creator_id"


@quickly
@for_all(st.from_regex(ID_PATTERN, fullmatch=True))
def test_a_creator_who_was_reduced_once_is_not_reduced_further(text: str) -> None:
    assume(reason(lambda: canonical_creator_id(text)) is None)
    canonical = canonical_creator_id(text)
    assert (canonical_creator_id(canonical), canonical_creator_id(shown_creator_id(text))) == (canonical, canonical)


# Times.


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2026-03-01T12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01t12:00:00z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T12:00:00+02:00", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("2026-03-01T12:00:00.000001Z", datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)),
        ("2026-03-01T12:00:00.5Z", datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-10-27 00:00:00", datetime(2026, 10, 27, tzinfo=UTC)),
        (' "2026-10-27 00:00:00"', datetime(2026, 10, 27, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_in_both_of_its_forms(text: str, read: datetime) -> None:
    assert moment(text) == read


@pytest.mark.parametrize(
    ("day", "read"),
    [("start", datetime(2026, 10, 27, tzinfo=UTC)), ("end", datetime(2026, 10, 28, tzinfo=UTC))],
)
def test_a_day_alone_means_its_start_or_its_end(day: pasted.Day, read: datetime) -> None:
    assert moment("2026-10-27", day) == read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("03/04/2026", "day_form"),
        ("3.4.2026", "day_form"),
        ("03-04-2026 12:00:00", "day_form"),
        ("2026/03/04", "day_form"),
        ("2026-3-4", "day_form"),
        ("2026-03-04", "day_alone"),
        ("2026-03-01T12:00:00", "offset_missing"),
        ("2026-03-01T12:00:00.123456789Z", "too_precise"),
        ("2026-03-01T12:00:00.1234567Z", "too_precise"),
        ("2026-02-30T12:00:00Z", "not_a_time"),
        ("2026-02-30 12:00:00", "not_a_time"),
        ("2026-03-01T24:00:00Z", "not_a_time"),
        ("2026-03-01 12:00:00Z", "not_a_time"),
        ("2026-03-01 12:00", "not_a_time"),
        ("yesterday", "not_a_time"),
        ("1760000000", "not_a_time"),
        ("", "not_a_time"),
        ("1999-12-31T23:59:59Z", "year_out_of_range"),
        ("2099-12-31T23:59:59-01:00", "year_out_of_range"),
        ("2000-01-01T00:00:00+01:00", "year_out_of_range"),
        ("2100-01-01 00:00:00", "year_out_of_range"),
    ],
)
def test_what_is_no_time_is_refused_with_the_form_that_is_taken(text: str, expected: str) -> None:
    assert reason(lambda: moment(text)) == expected


def test_a_day_that_may_be_two_days_is_not_guessed_at_even_where_a_day_is_meant() -> None:
    assert reason(lambda: moment("03/04/2026", "start")) == "day_form"


# Ids.


@pytest.mark.parametrize("text", [".", "..", "", "a/b", "ä", "a" * 129])
def test_a_text_that_a_path_cannot_hold_is_no_id(text: str) -> None:
    assert re.fullmatch(ID_PATTERN, text) is None


@pytest.mark.parametrize("text", ["a", "...", ".a", "..a", "a.", "a" * 128, "." * 128, "." + "a" * 127, "_:@-"])
def test_any_other_text_of_its_letters_is_an_id(text: str) -> None:
    assert re.fullmatch(ID_PATTERN, text) is not None
