"""The route of a request, found without trying one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fastapi.routing import APIRoute
from starlette.routing import Route

from api.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.routing import BaseRoute
    from starlette.types import Scope


class PageRoute(Route):
    """A route to a page, which the process of pages answers where there is one, for those who show a cookie."""


class Routes:
    """The routes of an application, by address.

    An address without parameters is found in a dict. One with parameters is found by the number of its parts, and then
    by its pattern, in the order in which the routes were given.
    """

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        """Take the routes."""
        # By method, too.
        self._fixed: dict[str, dict[str, Route]] = {}
        self._templates: dict[int, list[Route]] = {}
        # Those whose last parameter can have several parts.
        self._open_ended: list[Route] = []
        for route in cast("Iterable[Route]", routes):
            if not route.param_convertors:
                by_method = self._fixed.setdefault(route.path, {})
                by_method |= {method: route for method in (route.methods or ()) if method not in by_method}
            elif ":path}" in route.path:
                self._open_ended.append(route)
            else:
                self._templates.setdefault(route.path.count("/"), []).append(route)

    def find(self, scope: Scope) -> Route:
        """Return the route that answers a request, and put the parameters of its address into the scope.

        Raises:
            Problem: there is no such address, or it does not support the method.

        """
        path, method = scope["path"], scope["method"]
        by_method = self._fixed.get(path, {})
        if method in by_method:
            return _found(by_method[method], scope, {})
        known = bool(by_method)
        for routes in (self._templates.get(path.count("/"), ()), self._open_ended):
            for route in routes:
                match = route.path_regex.match(path)
                if match is None:
                    continue
                if method in (route.methods or ()):
                    return _found(route, scope, match.groupdict())
                known = True
        raise Problem("method_not_allowed" if known else "route_unknown")

    def methods(self, path: str) -> set[str]:
        """Return every method that an address supports; several routes may share it."""
        found = list(self._fixed.get(path, {}).values())
        if not found:
            # An address that is spelled out belongs to no template, though one would match it too.
            templates = [*self._templates.get(path.count("/"), ()), *self._open_ended]
            matching = [route for route in templates if route.path_regex.match(path)]
            nearest = min(len(route.param_convertors) for route in matching)
            found = [route for route in matching if len(route.param_convertors) == nearest]
        return set().union(*(route.methods or () for route in found), *(_head(route) for route in found))


def _found(route: Route, scope: Scope, parameters: dict[str, str]) -> Route:
    scope["path_params"] = parameters
    if isinstance(route, APIRoute):
        scope["route"] = route
    return route


def _head(route: Route) -> set[str]:
    return {"HEAD"} if getattr(route, "answers_head", False) else set()
