"""What the API says of malformed bodies and queries: our sentences, with our names, and nothing of what was sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import api.codes
import api.redemptions
import api.webhooks
from api.api_keys import CreateKey
from api.campaigns import LaunchCampaign
from api.codes import GenerateCode
from api.erasure import EraseCreator
from api.http.app import create_app
from api.http.models import Body
from api.http.problems import Problem, malformed
from api.http.query_params import QueryModel
from api.http.route import Route
from tests.wired import services

# One value of each kind that JSON has.
VALUES: tuple[Any, ...] = (None, True, 1, -1, 2**63, 1.5, "", "x", "\0", "x" * 5_000, [], [1], ["\n"], {}, {"a": 1})
# Words of the library, of its types and of ours, which tell a client nothing.
RAW = re.compile(r"Input should|should match|valid dictionary|instance of|at least \d+ item|[a-z]_[a-z]+_type|<class")


def problems(kind: Any, sent: object, code: str = "malformed_body") -> list[dict[str, str]]:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(kind).validate_python(sent)
    return list(malformed(code, raised.value, kind).members["errors"])


def test_an_unknown_field_is_named_with_the_known_ones() -> None:
    sent = {"reason": "asked", "creatorId": "ana"}
    assert problems(EraseCreator, sent) == [
        {"pointer": "/creatorId", "problem": "Unknown field `creatorId`. Known fields: effective_at, reason."}
    ]


@pytest.mark.parametrize(
    ("model", "sent", "pointer"),
    [
        (api.codes.RevokeCode, {"reason": "   "}, "/reason"),
        (api.codes.AddNote, {"text": " \u00a0\t", "about_position": 1}, "/text"),
        (GenerateCode, {"creator_id": "c", "video_id": "7312345678901234567", "terms_version": "  "}, "/terms_version"),
        (CreateKey, {"role": "auditor", "name": " "}, "/name"),
    ],
)
def test_white_space_alone_is_no_text(model: type[Body], sent: dict[str, Any], pointer: str) -> None:
    assert problems(model, sent) == [{"pointer": pointer, "problem": "This must not be blank."}]


def test_a_key_whose_role_cannot_reveal_is_not_promised_that_it_may() -> None:
    problem = "Keys with this role cannot reveal secrets. Send false, or nothing."
    for role in ("auditor", "subscriber", "brand"):
        subjects = {"subjects": {"brand_ids": ["acme"]}} if role == "brand" else {}
        asked = {"role": role, "may_reveal": True, **subjects}
        assert problems(CreateKey, asked) == [{"pointer": "/may_reveal", "problem": problem}]
        assert CreateKey.model_validate({"role": role, **subjects}).may_reveal
    assert CreateKey.model_validate({"role": "operator", "may_reveal": True}).may_reveal


def test_an_unknown_field_within_another_is_named_with_those_known_there() -> None:
    budget = {"amount": "1.00", "currency": "USD", "limit": 1}
    sent = {
        "campaign_id": "c",
        "advertiser_id": "a",
        "budget": budget,
        "starts_at": "2026-03-01T00:00:00Z",
        "ends_at": "2026-03-02T00:00:00Z",
    }
    assert problems(LaunchCampaign, sent) == [
        {"pointer": "/budget/limit", "problem": "Unknown field `limit`. Known fields: amount, currency."}
    ]


@pytest.mark.parametrize(
    "name",
    [
        "#k9/Tz+example==",
        "slk_3f9a",
        "x" * 25,
        "a b",
        "a\nb",
        "na\u00efve",
        "",
        "_a",
    ],
)
def test_a_name_that_may_be_a_secret_or_a_trick_is_not_repeated(name: str) -> None:
    (found,) = problems(EraseCreator, {"reason": "asked", name: "v"})
    assert found == {"pointer": "", "problem": "Unknown field. Known fields: effective_at, reason."}


def bodies() -> Iterator[Any]:
    for route in create_app(services()).routes:
        if isinstance(route, Route):
            for kind in get_type_hints(route.endpoint).values():
                if any(isinstance(one, type) and issubclass(one, Body | QueryModel) for one in (kind, *get_args(kind))):
                    yield kind


@pytest.mark.parametrize("kind", list(bodies()), ids=str)
def test_no_model_speaks_in_the_words_of_the_library(kind: Any) -> None:
    model = next(one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel))
    names = [field.alias or name for name, field in model.model_fields.items()]
    values = [value for value in VALUES if isinstance(value, str)] if issubclass(model, QueryModel) else VALUES
    nested = names if issubclass(model, Body) else []
    tries = [
        *values,
        *({name: value} for name in names for value in values),
        *({name: {"amount": value, "currency": value, "creator_ids": value}} for name in nested for value in values),
    ]
    code = "malformed_query" if issubclass(model, QueryModel) else "malformed_body"
    for sent in tries:
        try:
            TypeAdapter(kind).validate_python(sent)
        except ValidationError as error:
            for found in malformed(code, error, kind).members["errors"]:
                assert RAW.search(found["problem"]) is None, (sent, found)
        except Problem:  # a rule of the route, in its own words
            pass


@pytest.mark.parametrize("sent", [None, [], "x", 1])
def test_a_body_that_is_no_object_is_told_so(sent: object) -> None:
    assert problems(GenerateCode, sent) == [{"pointer": "", "problem": "Expected a JSON object."}]


def test_every_body_is_known_to_these_tests() -> None:
    known = {one for kind in bodies() for one in (kind, *get_args(kind)) if isinstance(one, type)}
    assert {api.codes.GenerateCode, api.redemptions.RedeemCode, api.webhooks.CreateWebhook} <= known
    assert all(issubclass(one, Body | QueryModel) for one in known if one is not type(None))
