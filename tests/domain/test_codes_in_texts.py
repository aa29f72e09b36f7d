"""Codes inside of texts that are kept in clear: found however they were pasted, and never seen where there is none."""

import base64
import random
import string
from urllib.parse import quote

import pytest
from hypothesis import example, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain.pasted import contains_secret

quickly = settings(max_examples=200, deadline=None)

CODE = "#v08a+b/cA=def0123456789+Qz/7Kp=="
ORDINARY = [
    "Shared with the wrong brand",
    "Requested on 3 March, ticket #4711, see #123-revoke-code",
    "#SparkAds #TikTokMadeMeBuyIt2026 #GRWM_OOTD_FYP_2026",
    "#GetTheLookBuyItNowOnTikTokShop2026",
    "#fashion/beauty/spring+summer",
    "#springsale2026springsale2026springsale2026springsale2026",
    "The colours are #a1b2c3 and #FF00AA99",
    "https://www.tiktok.com/@ana.creates/video/7312345678901234567?is_from_webapp=1&sender_device=pc",
    "https://mail.google.com/mail/u/0/#inbox/FMfcgzQXJWDsKmvxzHFVzzPqPRnNLwVj",
    "https://docs.example/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgVE2upms/edit#gid=0",
    "https://docs.example/page#:~:text=the%20spring%20sale",
    "www.example.com/help#How+to+get/A+Code/9=Z",
    "order dGhpcyBpcyBhbiBvcmRlcg== of 2026",
    "1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgVE2upms",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20",
    "the code …A1B2 of #ana, 100%23",
    "C#, F# and A#",
    "№ 5, # 5, ## Heading",
    "",
]
# The letters of base64 in both of its forms.
_BASE64 = string.ascii_letters + string.digits + "+/-_"


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_have_no_code(text: str) -> None:
    assert not contains_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        f"  “{CODE}”  ",
        f"Please revoke {CODE}, it leaked.",
        f"code:{CODE};thanks",
        f"(the code is{CODE})",
        f"#{CODE}",
        quote(CODE),
        quote(CODE, safe=""),
        CODE.replace("#", "%23"),
        CODE.replace("#", "\uff03"),
        "\u200b".join(CODE),
        f"https://example.com/?code={quote(CODE, safe='')}",
        "#k9/Tz+example+of+a+spark+ad+code==",
        "#cAnary/s3cret+that=TikTok/made==tail",
    ],
)
def test_a_code_is_found_however_it_was_pasted(text: str) -> None:
    assert contains_secret(text)


def test_generated_codes_are_found() -> None:
    """TikTok's have 64 characters of base64. Ours have 43, of which one in 10,000 may look like a word."""
    drawn = random.Random(0)
    tiktoks = ["#" + base64.b64encode(drawn.randbytes(48)).decode() for _ in range(5_000)]
    ours = ["#" + base64.urlsafe_b64encode(drawn.randbytes(32)).decode().rstrip("=") for _ in range(5_000)]
    assert [code for code in tiktoks if not contains_secret(f"it was {code}.")] == []
    assert len([code for code in ours if not contains_secret(f"it was {code}.")]) <= 2


@quickly
@for_all(st.text(st.sampled_from(" \n" + string.ascii_letters + string.digits + "äß漢🎉.,;:!?()'\"@&%/+=_-")))
def test_a_text_without_the_mark_of_a_code_has_none(text: str) -> None:
    assert not contains_secret(text.replace("%23", ""))


@quickly
@for_all(st.lists(st.from_regex(r"\A[A-Z]?[a-z]{1,12}\Z"), min_size=1, max_size=8), st.sampled_from(["", "_"]))
@example(["Back", "to", "School"], "")
def test_words_behind_the_mark_are_a_hashtag(words: list[str], between: str) -> None:
    assert not contains_secret(f"#{between.join(words)}2026 #{between.join(words)}")


@quickly
@for_all(st.text())
def test_every_text_gets_an_answer(text: str) -> None:
    assert contains_secret(text) in {True, False}


@quickly
@for_all(st.text(st.sampled_from(_BASE64), max_size=15))
def test_what_is_shorter_than_any_code_passes(text: str) -> None:
    assert not contains_secret(f"#{text}")
