"""The API reference: what FastAPI knows of the routes, and all that it does not.

Statuses, headers and roles follow from what a route is (does it take a body, does it change a code, who may call it),
so that none of them is written twice. What does not follow stands at the route, in its `Operation`; the tables here say
what each status and header means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi.openapi.utils import get_openapi

from api.http.fields import ANY_JSON, NO_NUL
from api.http.middleware import MAX_BODY_BYTES
from api.http.models import Problem
from api.http.problems import MEDIA_TYPE
from api.http.receipts import CHECKPOINT, WAIT_DESCRIPTION, ReceiptEntry
from api.http.route import Route

if TYPE_CHECKING:
    from fastapi import FastAPI

DESCRIPTION: Final = """\
Records who authorized which TikTok video as an ad, for which advertiser and when. Every permission, code, share,
redemption, campaign, extension, expiry and revocation is an event that is never edited, and every answer can be traced
to its events.

A key belongs to one ledger and has one role. Times are RFC 3339 in UTC; TikTok's form `2026-03-01 12:00:00`, in UTC, is
accepted too. You choose the ids: 1 to 128 of the characters `A-Z a-z 0-9 . _ : @ -`. Unknown fields and parameters are
refused. A refused request changes nothing.
"""
_REF: Final = "#/components/schemas/"
# Ids that begin with a dot or an @ are accepted too, where clients do not remove them.
_PATH_ID: Final = "^[A-Za-z0-9_:-][A-Za-z0-9._:@-]{0,127}$"
JSON_VALUE: Final = "JsonValue"
_WHY: Final[dict[int, str]] = {
    400: "A header, the query, the path or the cursor is malformed.",
    401: "The API key or token is missing or not valid.",
    403: "The key's role or subjects do not allow this.",
    404: "There is no such thing in this ledger.",
    408: "The body arrived too slowly.",
    409: (
        "A rule refuses the request, and `code` says which. Or it names a position or a history that the "
        "ledger does not have. "
        "Or the first request with this Idempotency-Key is still in progress."
    ),
    412: "What the command is about has changed since the version in If-Match.",
    413: f"The body is larger than {MAX_BODY_BYTES // 1024} KiB.",
    415: "The body is not `application/json` in UTF-8.",
    422: "The body is not valid, and `errors` says why. Or the Idempotency-Key was used for a different request.",
    429: "The key sends too many requests. Retry-After says how long to wait.",
    500: "Something went wrong on our side.",
    503: (
        "The database cannot be reached, or the request timed out. Nothing is half done. Retry-After says when "
        "to try again."
    ),
}
_RESPONSE_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Request-Id": {
        "description": "The id of this request in our logs.",
        "schema": {"type": "string"},
        "required": True,
    },
    "ETag": {
        "description": "The current version in quotes, for If-Match.",
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
        "required": True,
    },
    "Ledger-Position": {
        "description": "The position that this response has read or written up to.",
        "schema": {"type": "integer", "minimum": 0},
        "required": True,
    },
    "Ledger-History": {
        "description": "The history of the ledger. If it changes, the ledger has lost events, and positions may mean "
        "other events.",
        "schema": {"type": "string", "format": "uuid"},
        "required": True,
    },
    "Location": {"description": "The URL of what was created.", "schema": {"type": "string"}, "required": True},
    "Link": {"description": 'The next page as rel="next", if there is one.', "schema": {"type": "string"}},
    "Search-Complete": {
        "description": "`false` if the search stopped before the page was full. `next` continues there.",
        "schema": {"enum": ["true", "false"]},
    },
    "Looked-Through": {
        "description": "The number of events scanned for this page.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Idempotent-Replayed": {
        "description": "Present if this is the first response, returned again.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "The number of seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "RateLimit": {
        "description": "The remaining quota, and the seconds until it is reset.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {"description": "The quota, and its window in seconds.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to send a key.", "schema": {"type": "string"}, "required": True},
    "Cache-Control": {"description": "`no-store`: the response contains a secret.", "schema": {"type": "string"}},
}
_REQUEST_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Idempotency-Key": {
        "description": (
            "Makes the request safe to repeat: the same key with the same request returns the first response "
            "again, for at least 24 hours. With or without quotes, such as "
            "`8e03978e-40d5-43e8-bc93-6894a57f9324`. Use a new key for each new request."
        ),
        "schema": {"type": "string", "pattern": r'^("[!#-~]{1,255}"|[!#-~]{1,255})$'},
    },
    "If-Match": {
        "description": (
            'The version that the caller has seen, such as `"3"`. If there is another version now, the response is 412.'
        ),
        "schema": {"anyOf": [{"const": "*"}, {"type": "string", "pattern": '^"(0|[1-9][0-9]{0,9})"$'}]},
        "example": "*",
    },
    "Last-Event-ID": {
        "description": (
            "The last id that was received: the history, a colon and the position. The stream continues after it."
        ),
        "schema": {
            "type": "string",
            "pattern": "^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:)?(0|[1-9][0-9]{0,17})$",
        },
        "example": "0",
    },
    "Ledger-History": {
        "description": (
            "The history that the caller knows, from the `Ledger-History` of an earlier response. If the ledger has "
            "another now, the response is 409 (`history_changed`)."
        ),
        "schema": {"type": "string", "format": "uuid"},
    },
    "Correlation-Id": {
        "description": "Your name for the business process. It is recorded with the events.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:@-]{1,128}$"},
        "example": "spring-launch-7",
    },
    "Causation-Id": {
        "description": "The id of the event that the command follows from. It is recorded with the events.",
        "schema": {"type": "string", "format": "uuid"},
        "example": "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b22",
    },
}


def reference(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an application, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=app.openapi_tags
        )
        for route in app.routes:
            if isinstance(route, Route) and route.include_in_schema:
                for method in route.methods or ():
                    _complete(document, route, method)
        _add_components(document)
        app.openapi_schema = document
    return app.openapi_schema


def statuses(route: Route) -> set[int]:
    """Return the statuses of a route's refusals: they follow from what it is."""
    if not route.roles:
        return {500, *route.operation.refusals}
    found = {400, 401, 403, 409, 429, 500, 503, *route.operation.refusals}
    if route.param_convertors.keys() - {"creator_id", "advertiser_id"}:
        found.add(404)
    if route.takes_body:
        found |= {408, 413, 415, 422}
    if route.replays:
        found.add(422)
    if "If-Match" in route.operation.request_headers:
        found.add(412)
    return found


def _complete(document: dict[str, Any], route: Route, method: str) -> None:
    """Add to one operation what FastAPI does not know of it."""
    operation = document["paths"][route.path][method.lower()]
    operation["summary"] = route.endpoint.__name__.replace("_", " ").capitalize()
    if route.roles:
        operation["security"] = [{"apiKey": []}]
        operation["description"] += f"\n\nRoles: {', '.join(f'`{role}`' for role in sorted(route.roles))}."
    for header in _sent_headers(route, method):
        declared = {"name": header, "in": "header", "required": False, **_REQUEST_HEADERS[header]}
        operation.setdefault("parameters", []).append(declared)
    _add_receipt(document, route, operation)
    for parameter in operation.get("parameters", ()):
        _describe_in_path(parameter)
        _without_null(parameter["schema"])
    if route.operation.example is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = route.operation.example
    responses = operation["responses"]
    responses.pop("422", None)
    _describe_answers(route, responses)
    if route.operation.repeats:
        responses["201"]["description"] = "Recorded."
        responses["200"] = responses["201"] | {"description": "Already recorded. Nothing new was recorded."}
    other_formats = ("application/x-ndjson", "text/csv") if route.operation.lines else route.operation.other_formats
    if other_formats:
        content = responses["200"].setdefault("content", {})
        content |= {media_type: {"schema": {"type": "string"}} for media_type in other_formats}
    for status in sorted(statuses(route)):
        responses[str(status)] = {
            "description": _WHY[status],
            "headers": {header: _RESPONSE_HEADERS[header] for header in _problem_headers(status)},
            "content": {MEDIA_TYPE: {"schema": {"$ref": f"{_REF}Problem"}}},
        }


def _describe_answers(route: Route, responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        response["description"] = "Done." if status != "204" else "Done. The response has no body."
        response["headers"] = {header: _RESPONSE_HEADERS[header] for header in _answer_headers(route)}
        if route.operation.links:
            response["links"] = route.operation.links
    if {"200", "202"} <= responses.keys():
        responses["202"]["description"] = "Accepted. `Location` says where to follow it."
        responses["200"]["headers"].pop("Location", None)


def _add_receipt(document: dict[str, Any], route: Route, operation: dict[str, Any]) -> None:
    """Add to a command that it can wait for the signed log, and to its answer the receipt."""
    if not route.is_command:
        return
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["ReceiptEntry"] = ReceiptEntry.model_json_schema(ref_template=_REF + "{model}")
    schema = {"type": "string", "const": CHECKPOINT}
    wait = {"name": "wait", "in": "query", "required": False, "description": WAIT_DESCRIPTION, "schema": schema}
    operation.setdefault("parameters", []).append(wait)
    described = {"$ref": f"{_REF}ReceiptEntry", "description": "The proof, if the command was sent with `wait`."}
    for status, response in operation["responses"].items():
        if status in {"200", "201"}:
            name = response["content"]["application/json"]["schema"].get("$ref", "").removeprefix(_REF)
            if name in schemas:
                schemas[name]["properties"]["receipt"] = described


def _sent_headers(route: Route, method: str) -> list[str]:
    """Return the headers that a request to a route may bear, in the order of the table."""
    found = {"Idempotency-Key"} if method in {"POST", "PUT"} else set()
    found |= {"Correlation-Id", "Causation-Id"} if route.is_command else set()
    found |= {"Ledger-History"} if route.roles else set()
    return [header for header in _REQUEST_HEADERS if header in found.union(route.operation.request_headers)]


def _answer_headers(route: Route) -> list[str]:
    """Return the headers of a route's answer, in the order of the table."""
    found = {"Request-Id", *route.operation.answer_headers}
    if route.roles:
        found.add("Ledger-History")
    if route.is_command:
        found |= {"ETag", "Ledger-Position"}
    if route.replays:
        found.add("Idempotent-Replayed")
    if route.is_paged:
        found.add("Link")
    return [header for header in _RESPONSE_HEADERS if header in found]


def _describe_in_path(parameter: dict[str, Any]) -> None:
    if parameter["in"] != "path":
        return
    schemas = {
        "creator_id": ("The creator's TikTok account.", {"pattern": _PATH_ID}, "ana.creates"),
        "video_id": ("The video.", {"pattern": _PATH_ID}, "7312345678901234567"),
        "advertiser_id": ("The advertiser account.", {"pattern": _PATH_ID}, "adv-7001"),
        "brand_id": ("The brand.", {"pattern": _PATH_ID}, "acme"),
        "campaign_id": ("The campaign.", {}, "spring-sale"),
        "code_id": ("The code.", {}, "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"),
        "key_id": ("The key's id.", {}, "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b21"),
        "position": ("The event's position in the ledger.", {}, "1"),
        "rule_id": ("The alert rule.", {}, "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b24"),
        "calendar_id": ("The calendar.", {}, "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b25"),
        "import_id": ("The import.", {}, "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b40"),
        "name": ("The name of the mapping.", {"pattern": _PATH_ID}, "agency-sheet"),
        "webhook_id": ("The webhook.", {}, "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b23"),
    }
    description, schema, example = schemas[parameter["name"]]
    parameter |= {"description": description, "example": example}
    parameter["schema"] |= schema


def _without_null(schema: dict[str, Any]) -> None:
    """Leave null out of a parameter's schema: in a query or header, absent is absent."""
    alternatives = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(alternatives) == 1:
        del schema["anyOf"]
        schema |= alternatives[0]
    elif alternatives:
        schema["anyOf"] = alternatives


def _problem_headers(status: int) -> list[str]:
    limited = ["Retry-After", "RateLimit", "RateLimit-Policy"]
    more = {401: ["WWW-Authenticate"], 409: ["Retry-After"], 412: ["ETag"], 429: limited, 503: ["Retry-After"]}
    return ["Request-Id", *more.get(status, ())]


def _add_components(document: dict[str, Any]) -> None:
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "apiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, or a bearer token of a configured issuer.",
        }
    }
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template=_REF + "{model}")
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem
    value = {"$ref": f"{_REF}{JSON_VALUE}"}
    mapping = {"propertyNames": {"pattern": NO_NUL}, "additionalProperties": value}
    for schema in _schemas_within(schemas):
        if schema.pop(ANY_JSON, False):
            schema.update(mapping)
    schemas[JSON_VALUE] = {
        "description": "Any JSON without the NUL character.",
        "anyOf": [
            {"type": "string", "pattern": NO_NUL},
            {"type": ["number", "boolean", "null"]},
            {"type": "array", "items": value},
            {"type": "object", **mapping},
        ],
    }


def _schemas_within(value: Any) -> list[dict[str, Any]]:
    """Return every object in a document, whatever its depth."""
    if isinstance(value, list):
        return [found for item in value for found in _schemas_within(item)]
    if not isinstance(value, dict):
        return []
    return [value, *(found for item in value.values() for found in _schemas_within(item))]
