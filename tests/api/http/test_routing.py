"""Which route answers a request: the one that trying all of them in turn would have found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.routing import Match, Route

from api.http.app import create_app
from api.http.problems import Problem
from api.http.routing import Routes
from tests.wired import services

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.fixture(scope="module")
def routes() -> list[Route]:
    return [route for route in create_app(services()).routes if isinstance(route, Route)]


def paths(routes: list[Route]) -> Iterator[str]:
    """Yield addresses of every route, with ids in them and with words that other routes have there."""
    words = {part for route in routes for part in route.path.split("/") if part and "{" not in part}
    for route in routes:
        names = list(route.param_convertors)
        for word in ("0199b2f0", *sorted(words)) if names else ("",):
            yield route.path_format.format(**dict.fromkeys(names, word))
        yield route.path_format.format(**dict.fromkeys(names, "a%2Fb")) + "/"
    yield from ("", "/", "//", "/v1", "/v1/", "/v1/codes//", "/v2/codes", "/log/1/2/tile/0/x001/067.p/12")


@pytest.mark.long("every address is asked for with every method")
def test_a_route_is_the_one_that_trying_each_in_turn_finds(routes: list[Route]) -> None:
    index = Routes(routes)
    for path in dict.fromkeys(paths(routes)):
        scope = {"type": "http", "path": path, "method": METHODS[0], "root_path": ""}
        # A route that is of another address is so with every method.
        reached = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
        for method in METHODS:
            scope = {"type": "http", "path": path, "method": method, "root_path": ""}
            tried = [(route, *route.matches(scope)) for route in reached]
            whole = next(((route, child) for route, match, child in tried if match is Match.FULL), None)
            if whole is not None:
                assert index.find(scope) is whole[0], (method, path)
                assert scope["path_params"] == whole[1]["path_params"], (method, path)
                continue
            partly = any(match is Match.PARTIAL for _, match, _ in tried)
            with pytest.raises(Problem) as refused:
                index.find(scope)
            assert refused.value.code == ("method_not_allowed" if partly else "route_unknown"), (method, path)
            assert "route" not in scope


def test_the_methods_of_an_address_are_those_of_its_nearest_routes(routes: list[Route]) -> None:
    index = Routes(routes)
    assert index.methods("/v1/codes") == {"GET", "HEAD", "POST"}
    assert index.methods("/v1/codes/lookup") == {"POST"}
    assert index.methods("/v1/codes/0199b2f0") == {"GET", "HEAD"}
