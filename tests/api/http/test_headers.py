"""What a request's headers say, where one was sent more than once, or not as one should be."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from api.http import headers
from api.http.problems import Problem


def request(*given: tuple[bytes, bytes]) -> Request:
    scope: dict[str, Any] = {"type": "http", "headers": [*given]}
    headers.by_name(scope)
    return Request(scope)


def test_of_headers_that_were_sent_more_than_once_the_first_is_kept_and_that_they_were() -> None:
    given = headers.of(request((b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"a", b"4")))
    assert (given, given.repeated) == ({b"a": b"1", b"b": b"2"}, {b"a"})


def test_what_can_be_said_once_is_refused_where_it_is_said_twice_and_of_the_rest_the_first_counts() -> None:
    twice = request(*[(name, b"a") for name in (b"idempotency-key", b"correlation-id", b"accept") for _ in range(2)])
    for read in (headers.idempotency_key, headers.correlation_id, headers.origins):
        with pytest.raises(Problem, match="was sent more than once"):
            read(twice)
    assert headers.text(twice, b"accept") == "a"
    assert headers.origins(request((b"host", b"x"))) == (None, None, None)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ([b"Bearer slk_a"], "slk_a"),
        ([b"bearer   slk_a  "], "slk_a"),
        ([b"BEARER a b"], "a b"),
        ([b"Bearer \xff"], "\xff"),
        ([b"Bearer"], None),
        ([b"Bearer  "], None),
        ([b"Bearer\tslk_a"], None),
        ([b"Basic slk_a"], None),
        ([b""], None),
        ([], None),
        ([b"Bearer slk_a", b"Bearer slk_a"], None),
    ],
)
def test_a_key_is_presented_once_as_a_bearer_token(said: list[bytes], key: str | None) -> None:
    assert headers.bearer(request(*[(b"authorization", one) for one in said])) == key


@pytest.mark.parametrize(
    ("types", "codings", "media_type"),
    [
        ([b"application/json"], [], "application/json"),
        ([b"Application/JSON; charset=UTF-8"], [], "application/json"),
        ([b"application/json"], [b"identity", b"Identity, "], "application/json"),
        ([b"application/json"], [b"identity", b"gzip"], None),
        ([b"application/json"], [b"identity, gzip"], None),
        ([b"application/json; charset=latin-1"], [], None),
        ([b"application/json", b"application/json"], [], None),
        ([], [], ""),
    ],
)
def test_a_body_is_what_is_said_once_and_nothing_where_it_would_have_to_be_decoded(
    types: list[bytes], codings: list[bytes], media_type: str | None
) -> None:
    said = [(b"content-type", one) for one in types] + [(b"content-encoding", one) for one in codings]
    assert headers.media_type(request(*said)) == media_type
