"""The documentation page: the API reference as one page without a script, and the problems by name.

It is made of the OpenAPI document, so it needs nothing from elsewhere and says nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from typing import TYPE_CHECKING, Any, Final

from api.http.problems import DETAILS, RETRYABLE, STATUSES, statuses_of, title
from domain.errors import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Iterator

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1e; }
h2 { margin-top: 3rem; } h3 { margin-top: 2rem; border-top: 1px solid #d0d0d5; padding-top: 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #f3f3f5; border-radius: 4px; }
code { padding: 0 .25em; } pre { padding: .75rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } td { padding: .25rem .5rem; vertical-align: top; }
tr:nth-child(odd) { background: #fafafb; } a { color: #0b57d0; }
@media (prefers-color-scheme: dark) {
  body { background: #161618; color: #e6e6ea; } code, pre { background: #26262a; } a { color: #8ab4f8; }
  tr:nth-child(odd) { background: #1d1d20; } h3 { border-color: #3a3a40; }
}
"""
_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# The page's own style, and nothing else, from nowhere else.
POLICY: Final = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; frame-ancestors 'none'"


def page(reference: dict[str, Any]) -> str:
    """Return the page for an OpenAPI document."""
    info = reference["info"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in reference["paths"].items()
        for method, operation in methods.items()
    ]
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
            *(f"<p>{_prose(paragraph)}</p>" for paragraph in info["description"].strip().split("\n\n")),
            '<p>The same for machines: <a href="/openapi.json">openapi.json</a>. Every problem that can be answered ',
            'is <a href="#problems">listed below</a>.</p><h2>Routes</h2><table>',
            *(
                f'<tr><td><a href="#{escape(operation["operationId"])}"><code>{method} {escape(path)}</code></a></td>'
                f"<td>{escape(operation['summary'])}</td></tr>"
                for method, path, operation in operations
            ),
            "</table>",
            *(part for method, path, operation in operations for part in _operation(method, path, operation)),
            '<h2 id="problems">Problems</h2><table>',
            *(
                f'<tr id="{code}"><td><code>{code}</code></td><td>{", ".join(map(str, statuses_of(code)))}</td>'
                f"<td><b>{title(code)}.</b> "
                f"{_prose(_explained(code))}</td></tr>"
                for code in STATUSES
            ),
            "</table></body></html>",
        ]
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{escape(operation["operationId"])}"><code>{method} {escape(path)}</code></h3>'
    for paragraph in operation["description"].split("\n\n"):
        yield f"<p>{_prose(paragraph)}</p>"
    if operation.get("parameters"):
        yield "<table>"
        for parameter in operation["parameters"]:
            needed = ", required" if parameter["required"] else ""
            yield f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{parameter['in']}{needed}</td>"
            yield f"<td>{_prose(parameter.get('description', ''))}</td></tr>"
        yield "</table>"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        if "example" in content:
            yield f"<pre>{escape(json.dumps(content['example'], indent=2))}</pre>"
    yield "<table>"
    for status, response in operation["responses"].items():
        yield f"<tr><td>{status}</td><td>{_prose(response['description'])}</td></tr>"
    yield "</table>"


def _explained(code: str) -> str:
    sentences: dict[str, str] = DETAILS | dict(SENTENCES)
    explained = sentences.get(code, "`detail` names what is unknown.")
    return f"{explained} The same request may succeed later." if code in RETRYABLE else explained


def _prose(text: str) -> str:
    """Return text with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if odd % 2 else part for odd, part in enumerate(parts))
