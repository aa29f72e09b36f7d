"""Pasted text: codes, video ids, creators and times, reduced to what they mean or refused with a reason.

    secret      “#v08a%2Bb/c=”                            →  #v08a%2Bb/c= to store, v08a+b/c= to find it by
    video id    https://www.tiktok.com/@ana/video/73…67  →  73…67
    creator     https://www.tiktok.com/@Ana              →  Ana to show, ana to find it by
    time        2026-10-27 00:00:00                      →  2026-10-27T00:00:00Z

Nothing is guessed: ambiguous text is refused, and the sentence says what to send instead. No sentence repeats what was
pasted.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

from domain.values import ID_PATTERN

Kind = Literal["secret", "video_id", "creator_id", "moment"]
Reason = Literal[
    "several_codes",
    "sentence",
    "too_short",
    "too_long",
    "control_character",
    "video_link",
    "masked_code",
    "separator",
    "short_link",
    "other_link",
    "rounded_by_spreadsheet",
    "not_a_video_id",
    "not_a_creator_id",
    "day_form",
    "day_alone",
    "offset_missing",
    "too_precise",
    "not_a_time",
    "year_out_of_range",
    "contains_secret",
]
Hint = Literal["percent_encoded", "cut_off", "several_codes", "video_link", "masked_code", "punctuation"]
Day = Literal["start", "end"]
VideoIds = Literal["tiktok", "any"]

MIN_SECRET_CHARACTERS: Final = 8
MAX_SECRET_CHARACTERS: Final = 512
# As pasted: each character can be percent-encoded, and leading # are kept.
MAX_STORED_CHARACTERS: Final = 4 * MAX_SECRET_CHARACTERS
# Shorter codes exist, but an unknown text of this length is more often a part of one.
CUT_OFF_BELOW_CHARACTERS: Final = 16

# The years in a ledger. Other years are typing errors or wrong clocks.
FIRST_YEAR: Final = 2000
LAST_YEAR: Final = 2099

SENTENCES: Final[dict[Reason, str]] = {
    "several_codes": "This looks like several codes. Send one code at a time.",
    "sentence": "A code has no white space inside. Send only the code, without the text around it.",
    "too_short": f"A code has at least {MIN_SECRET_CHARACTERS} characters, not counting the # at its start.",
    "too_long": f"A code has at most {MAX_SECRET_CHARACTERS} characters.",
    "control_character": "A code has no control characters. Copy it again.",
    "video_link": "This is a link, not a code. Send the code that the creator generated for the video.",
    "masked_code": "This code is masked. Ask for the code itself.",
    "separator": "There is a comma, semicolon or bar before or after the code. Send only the code.",
    "short_link": (
        "A short link does not contain the video's id. Open it, and send the long link that the browser then shows."
    ),
    "other_link": "This is not a link to a TikTok post. Send the link of the post, or its id of 15 to 20 digits.",
    "rounded_by_spreadsheet": (
        "A spreadsheet seems to have rounded this number to 15 digits. Send the link of the post, or the id "
        "as text. If the zeros at its end are real, send video_id_exact: true."
    ),
    "not_a_video_id": "A video id has 15 to 20 digits. Send the id or the link of the post.",
    "not_a_creator_id": "A creator's id has 1 to 128 letters, digits or . _ : @ -, and is neither . nor ..",
    "day_form": "Write a day as YYYY-MM-DD. The order of day and month is not guessed.",
    "day_alone": "A day is not a time. Send a time, such as 2026-03-01T12:00:00Z.",
    "offset_missing": "This time has no offset. Send it as 2026-03-01T12:00:00Z, or with +02:00 at its end.",
    "too_precise": "A time must have at most six decimals of a second.",
    "not_a_time": (
        "Expected an RFC 3339 time with an offset, such as 2026-03-01T12:00:00Z, or a UTC time such as "
        "2026-03-01 12:00:00."
    ),
    "year_out_of_range": f"Expected a time in the years {FIRST_YEAR} to {LAST_YEAR}.",
    "contains_secret": (
        "This text seems to contain an authorization code or a key, which would be kept and shown in clear text. Leave "
        "it out, and name a code by its code_id. To find a code, look it up."
    ),
}


class Unusable(ValueError):
    """Pasted text that cannot be used. `reason` is stable, the sentence is for people."""

    def __init__(self, kind: Kind, reason: Reason) -> None:
        """Say what the text was expected to be, and why it is not."""
        self.kind = kind
        self.reason = reason
        super().__init__(SENTENCES[reason])

    @property
    def code(self) -> str:
        """The error's stable name, such as `video_id_unusable`."""
        return f"{self.kind}_unusable"


# ── codes ──

# Format characters (Cf) and variation selectors of Unicode 16. They are listed here because the identity of a code must
# not depend on the Unicode version of Python.
_INVISIBLE: Final = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890-\u0891\u08e2\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f\U000e0100-\U000e01ef]"
)
# The closing quotes for each opening quote. Some languages close with the opening quote of others.
_CLOSING: Final = {
    '"': '"',
    "'": "'",
    "\u201c": "\u201d\u201c",
    "\u201d": "\u201d",
    "\u201e": "\u201c\u201d",
    "\u2018": "\u2019\u2018",
    "\u2019": "\u2019",
    "\u201a": "\u2018\u2019",
    "«": "»",
    "»": "«",
    "\u2039": "\u203a",
    "\u203a": "\u2039",
    "「": "」",
    "『": "』",
}
# What codes usually look like: there is nothing to remove but the `#`, and nothing to decode.
_CLEAN: Final = re.compile(r"#?[A-Za-z0-9+/=_.-]+")
_ESCAPE: Final = re.compile(r"%(2[Bb]|2[Ff]|3[Dd]|23)")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BETWEEN_CODES: Final = re.compile(r"[\s,;|]+")
_LINK_INSIDE: Final = re.compile(r"https?:|tiktok\.com/", re.IGNORECASE)


def stored_secret(text: str) -> str:
    """Return a code as it is stored and returned: the pasted text without what surrounded it.

    Raises:
        Unusable: it is not one code. The reason is the first that applies of `several_codes`, `sentence`,
            `control_character`, `too_short` and `too_long`.

    """
    stored = _bare(text)
    _refuse_no_code(stored)
    return stored


def recorded_secret(text: str) -> str:
    """Return a code as it is stored, if it can be one that was generated.

    Text that is certainly none is refused here only: a look-up answers that it is unknown, with a hint.

    Raises:
        Unusable: as for `stored_secret`, then `video_link`, `masked_code` and `separator`.

    """
    stored = stored_secret(text)
    if _LINK_INSIDE.search(stored):
        raise Unusable("secret", "video_link")
    if _is_masked(_canonical(stored)):
        raise Unusable("secret", "masked_code")
    if _BETWEEN_CODES.match(stored) or _BETWEEN_CODES.match(stored[-1]):
        raise Unusable("secret", "separator")
    return stored


def canonical_secret(text: str) -> str:
    """Return the canonical form of a code: two pastes with the same canonical form are the same code.

    In addition to `stored_secret`, it removes one layer of percent-encoding and every leading `#`.

    Raises:
        Unusable: as for `stored_secret`.

    """
    return _refuse_no_code(_bare(text))


def secret_name(text: str) -> str:
    """Return the canonical form without checking that it is one code. It is the code's name in claims."""
    return text.removeprefix("#") if _CLEAN.fullmatch(text) else _canonical(_bare(text))


def secret_hint(text: str) -> Hint | None:  # noqa: PLR0911 - one line for each kind
    """Return what an unknown code looks like, so that the person who pasted it can find the mistake."""
    bare = _bare(text)
    canonical = _canonical(bare)
    if _LINK_INSIDE.search(bare):
        return "video_link"
    if _is_masked(canonical):
        return "masked_code"
    if _looks_like_several(bare) or "#" in canonical:
        return "several_codes"
    if re.search(r"(…|\.\.\.|%[0-9A-Fa-f]?)$", canonical):
        return "cut_off"
    if re.search(r"%[0-9A-Fa-f]{2}", canonical):
        return "percent_encoded"
    if re.search(r"[.,;:!?|]$", canonical):
        return "punctuation"
    return "cut_off" if len(canonical) < CUT_OFF_BELOW_CHARACTERS else None


def _is_masked(canonical: str) -> bool:
    return re.match(r"…|\.\.\.|[*•]", canonical) is not None or re.search(r"[*•]{3}", canonical) is not None


def _bare(text: str) -> str:
    """Remove format characters everywhere, and trim what surrounds a code until nothing changes."""
    if _CLEAN.fullmatch(text):
        return text
    bare, before = _INVISIBLE.sub("", text), None
    while bare != before:
        before = bare
        bare = bare.strip().strip("`")
        if len(bare) > 1 and bare[-1] in _CLOSING.get(bare[0], ""):
            bare = bare[1:-1]
        elif bare == before:
            bare = bare.removeprefix("'")  # a spreadsheet's mark for text, unless it is one of a pair
    return bare


def _canonical(bare: str) -> str:
    """Decode and remove what differs between copies of one code, until nothing changes."""
    if _CLEAN.fullmatch(bare):
        return bare.removeprefix("#")
    canonical, before = bare, None
    while canonical != before:
        before = canonical
        canonical = _bare(_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), canonical).lstrip("#"))
    return canonical


def _refuse_no_code(bare: str) -> str:
    """Return the canonical form of a text that is one code."""
    canonical = _canonical(bare)
    if _looks_like_several(bare):
        raise Unusable("secret", "several_codes")
    if re.search(r"\s", bare):
        raise Unusable("secret", "sentence")
    if _CONTROL.search(canonical):
        raise Unusable("secret", "control_character")
    if len(canonical) < MIN_SECRET_CHARACTERS:
        raise Unusable("secret", "too_short")
    if len(canonical) > MAX_SECRET_CHARACTERS or len(bare) > MAX_STORED_CHARACTERS:
        raise Unusable("secret", "too_long")
    return canonical


def _looks_like_several(bare: str) -> bool:
    """Return whether a text is a list: its parts begin like codes, or all of them look like codes."""
    parts = [part for part in _BETWEEN_CODES.split(bare) if part]
    if sum(_bare(part).startswith(("#", "%23")) for part in parts) > 1:
        return True
    spaced = bare.split()
    return len(spaced) > 1 and all(_like_a_code(part) for part in spaced)


def _like_a_code(part: str) -> bool:
    canonical = _canonical(_bare(part.strip(",;|")))
    return len(canonical) >= MIN_SECRET_CHARACTERS and re.search(r"[0-9+/=]", canonical) is not None


# ── codes in other texts ──

# A code is marked by its #, as TikTok shows it. Without the mark, it looks like any other id.
_MARK: Final = re.compile(r"[#\uff03]")
_MARKED: Final = re.compile(r"[#\uff03]+(?P<body>[A-Za-z0-9+/=_-]+)")
_IN_A_LINK: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.)[^\s]*", re.IGNORECASE)
# What no word that people write has often: base64's own characters, single digits, and capitals side by side.
_UNLIKE_WORDS: Final = re.compile(r"[+/=-]+|[0-9]+|[A-Z]{2,}")
_OF_BASE64: Final = re.compile(r"[+/=]")
_SHORT: Final = 16
_LONG: Final = 32
_LONGEST_HASHTAG: Final = 40


def contains_secret(text: str) -> bool:
    """Tell whether a text that is kept in clear contains what looks like a code, however it was pasted.

    Hashtags, colours, numbers of issues and links pass. So does a code without its #, which looks like any other id.
    """
    if "#" not in text and "%23" not in text and "\uff03" not in text:
        return False
    bare = _INVISIBLE.sub("", text)
    # The # of a link begins a fragment; only an encoded one can be a code's.
    outside = _IN_A_LINK.sub(lambda link: _MARK.sub(" ", link[0]), bare)
    decoded = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), outside)
    return any(_generated(marked["body"]) for marked in _MARKED.finditer(decoded))


def _generated(body: str) -> bool:
    """Tell whether what follows a # was generated: a person would not write it as a word."""
    unlike = len(_UNLIKE_WORDS.findall(body))
    lower, upper = re.search(r"[a-z]", body) is not None, re.search(r"[A-Z]", body) is not None
    digit = re.search(r"[0-9]", body) is not None
    if len(_OF_BASE64.findall(body)) > 1:
        return len(body) >= _SHORT and unlike >= _SHORT // 4 and lower + upper + digit > 1
    if len(body) >= _LONGEST_HASHTAG:
        return lower and upper and unlike >= 4  # noqa: PLR2004 - one of our own has that many, but for one in 10,000
    return len(body) >= _LONG and lower and upper and digit and unlike >= 5  # noqa: PLR2004 - more than a name has


# ── video ids ──

_ID: Final = re.compile(ID_PATTERN)
_VIDEO_ID: Final = re.compile(r"[0-9]{15,20}")
_EXPONENT: Final = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?[Ee][+-]?[0-9]+")
_LINK: Final = re.compile(
    r"(?:[a-z][a-z0-9+.-]*://)?(?:[^/?#@]*@)?(?P<host>[a-z0-9.-]+)(?::[0-9]*)?(?P<path>/[^?#]*)(?P<tail>[?#].*)?",
    re.IGNORECASE | re.DOTALL,
)
_POST_PATH: Final = re.compile(
    r"(?:/@[^/]*)?/(?:video|photo|v|embed|embed/v2|player/v1|share/video)/(?P<id>[0-9]+)(?:\.html)?/?", re.IGNORECASE
)
# Only ids with this many digits can have been rounded by a spreadsheet, which keeps 15.
_ROUNDED_FROM_DIGITS: Final = 18
_SPREADSHEET_DIGITS: Final = 15


def video_id(text: str, policy: VideoIds = "tiktok", *, exact: bool = False) -> str:
    """Return the id of a video from the id itself or from a link to its post.

    Args:
        text: the pasted text.
        policy: `tiktok` accepts 15 to 20 digits; `any` accepts every id, and also reduces links.
        exact: the zeros at the end are real, although they look like a spreadsheet's.

    Raises:
        Unusable: `short_link`, `other_link`, `rounded_by_spreadsheet` or `not_a_video_id`.

    """
    if _VIDEO_ID.fullmatch(text) and (policy == "any" or exact or not looks_rounded(text)):
        return text  # an id as nearly all are sent
    bare = _bare(text)
    link = _LINK.fullmatch(bare)
    if link is not None:
        return _video_of_link(link)
    if policy == "any":
        if _ID.fullmatch(bare) is None:
            raise Unusable("video_id", "not_a_video_id")
        return bare
    if _EXPONENT.fullmatch(bare) or (looks_rounded(bare) and not exact):
        raise Unusable("video_id", "rounded_by_spreadsheet")
    if _VIDEO_ID.fullmatch(bare) is None:
        raise Unusable("video_id", "not_a_video_id")
    return bare


def looks_rounded(video_id: str) -> bool:
    """Return whether an id looks as if a spreadsheet had kept only 15 of its digits."""
    return (
        len(video_id) >= _ROUNDED_FROM_DIGITS
        and len(video_id.strip("0")) <= _SPREADSHEET_DIGITS
        and _VIDEO_ID.fullmatch(video_id) is not None
    )


def creator_of_link(text: str) -> str | None:
    """Return the canonical id of the creator whom a link to a post names; None if it names nobody, or is no link."""
    if "/" not in text:
        return None
    link = _LINK.fullmatch(_bare(text))
    named = None if link is None else re.match(r"/@([^/]+)/", link["path"])
    if link is None or named is None or not _is_tiktok(link["host"].lower().rstrip(".")):
        return None
    return creator_name(named[1])


def _video_of_link(link: re.Match[str]) -> str:
    host, path = link["host"].lower().rstrip("."), link["path"]
    if not _is_tiktok(host):
        raise Unusable("video_id", "other_link")
    if host in {"vm.tiktok.com", "vt.tiktok.com"} or path.lower().startswith("/t/"):
        raise Unusable("video_id", "short_link")
    post = _POST_PATH.fullmatch(path)
    if post is None or _VIDEO_ID.fullmatch(post["id"]) is None:
        raise Unusable("video_id", "other_link")
    return post["id"]


def _is_tiktok(host: str) -> bool:
    return host == "tiktok.com" or host.endswith(".tiktok.com")


# ── creators ──


def shown_creator_id(text: str) -> str:
    """Return a creator's id as it is shown: without `@`, or taken out of a link to the profile or to a post.

    Raises:
        Unusable: `not_a_creator_id`.

    """
    bare = _bare(text)
    link = _LINK.fullmatch(bare) if "/" in bare else None
    if link is not None:
        profile = re.match(r"/@([^/]+)", link["path"])
        if not _is_tiktok(link["host"].lower().rstrip(".")) or profile is None:
            raise Unusable("creator_id", "not_a_creator_id")
        bare = profile[1]
    shown = bare.lstrip("@")
    if _ID.fullmatch(shown) is None:
        raise Unusable("creator_id", "not_a_creator_id")
    return shown


def canonical_creator_id(text: str) -> str:
    """Return the canonical form of a creator's id: as shown, with its ASCII letters in lower case.

    Raises:
        Unusable: `not_a_creator_id`.

    """
    return creator_name(shown_creator_id(text))


def creator_name(creator_id: str) -> str:
    """Return the canonical form of an id as it is shown. It is the creator's name in claims, filters and keys."""
    return creator_id.lower()  # an id has only ASCII letters


# ── times ──

_RFC3339: Final = re.compile(
    r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})[Tt](?P<clock>(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9])"
    r"(?:\.(?P<decimals>[0-9]+))?(?P<offset>[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
)
_TIKTOK: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY_OF_ANOTHER_FORM: Final = re.compile(
    r"(?![0-9]{4}-[0-9]{2}-[0-9]{2})[0-9]{1,4}[./-][0-9]{1,2}[./-][0-9]{1,4}\.?(?:[ T].*)?", re.DOTALL
)
_MAX_DECIMALS: Final = 6


def moment(text: str, day: Day | None = None) -> datetime:
    """Return a time in UTC, from RFC 3339 with an offset, or from TikTok's form `YYYY-MM-DD HH:MM:SS`, which is UTC.

    Args:
        text: the pasted text.
        day: what a day means, if days are accepted: its first instant, or the instant after its last.

    Raises:
        Unusable: `day_form`, `day_alone`, `offset_missing`, `too_precise`, `not_a_time` or `year_out_of_range`.

    """
    bare = _bare(text)
    rfc3339 = _RFC3339.fullmatch(bare)
    if rfc3339 is not None:
        if rfc3339["offset"] is None:
            raise Unusable("moment", "offset_missing")
        if len(rfc3339["decimals"] or "") > _MAX_DECIMALS:
            raise Unusable("moment", "too_precise")
        return _within_years(_read(bare.upper()))
    if _TIKTOK.fullmatch(bare):
        return _within_years(_read(f"{bare}Z"))
    if _DAY.fullmatch(bare):
        if day is None:
            raise Unusable("moment", "day_alone")
        start = _read(f"{bare}T00:00:00Z")
        return _within_years(start if day == "start" else start + timedelta(days=1))
    raise Unusable("moment", "day_form" if _DAY_OF_ANOTHER_FORM.fullmatch(bare) else "not_a_time")


def _read(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # a day that does not exist
        raise Unusable("moment", "not_a_time") from None


def _within_years(read: datetime) -> datetime:
    """Return a time in UTC. Its local year counts too, because an offset can change the year."""
    if not FIRST_YEAR <= read.year <= LAST_YEAR or not FIRST_YEAR <= (utc := read.astimezone(UTC)).year <= LAST_YEAR:
        raise Unusable("moment", "year_out_of_range")
    return utc


assert set(SENTENCES) == set(get_args(Reason))  # noqa: S101 - a reason without a sentence must not start
