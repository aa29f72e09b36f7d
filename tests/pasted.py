"""A generator of pasted things: codes, and what chats, sheets, mails and browsers make of them on the way."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

# Zero-width characters, direction marks, a soft hyphen, a Mongolian vowel separator, variation selectors.
INVISIBLE: Final = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u00ad\u180e\ufe0e\ufe0f"
WHITE: Final = " \t\n\r\u00a0\u2003\u3000"
QUOTES: Final = [
    *('""', "''", "``", "«»", "»«", "「」"),
    *("\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u201a\u2018", "\u2039\u203a"),
]

# What is seen in real codes, less the # that each begins with.
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-."

# Codes as TikTok shows them. Two of them are different codes exactly where their texts differ.
codes = st.text(_ALPHABET, min_size=8, max_size=90).map(lambda body: f"#{body}")


def _surrounded(before: str, after: str) -> Callable[[str], str]:
    return lambda text: f"{before}{text}{after}"


def _encoded(text: str) -> str:
    """Percent-encode a code as a browser's address bar does; what is encoded already stays, for it was done once."""
    return text if "%" in text else "".join(quote(c, safe="") if c in "+/=#" else c for c in text)


def _encoded_small(text: str) -> str:
    return text if "%" in text else "".join(quote(c, safe="").lower() if c in "+/=#" else c for c in text)


@st.composite
def _marked(draw: st.DrawFn) -> Callable[[str], str]:
    """Put an invisible character somewhere, inside the code too."""
    mark, place = draw(st.sampled_from(INVISIBLE)), draw(st.integers(0, 100))
    return lambda text: text[:place] + mark + text[place:]


# What happens to a code before anything surrounds it: its # is lost or doubled, it is percent-encoded.
_rewritten: st.SearchStrategy[list[Callable[[str], str]]] = st.tuples(
    st.sampled_from([lambda text: text, lambda text: text[1:], lambda text: f"#{text}", lambda text: f"##{text}"]),
    st.sampled_from([lambda text: text, _encoded, _encoded_small]),
).map(list)
_around: st.SearchStrategy[Callable[[str], str]] = st.one_of(
    st.builds(_surrounded, st.text(WHITE, max_size=3), st.text(WHITE, max_size=3)),
    st.sampled_from(QUOTES).map(lambda pair: _surrounded(pair[0], pair[1])),
    st.just(_surrounded("'", "")),
    st.just(_surrounded("```", "```")),
    _marked(),
)
# What is around a code, as its first and last characters, and nothing that rewrites it.
surroundings = st.lists(_around, max_size=6)
# Ways in which a code comes to us: functions of its text.
decorations: st.SearchStrategy[Callable[[str], str]] = st.builds(
    lambda rewritten, around: lambda text: reduce(lambda so_far, step: step(so_far), [*rewritten, *around], text),
    _rewritten,
    surroundings,
)
