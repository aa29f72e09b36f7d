"""What pages load: our own files, and those of others as they were published."""

from __future__ import annotations

import base64
import hashlib
import tomllib

import httpx
import pytest

from api.console.assets import ASSETS, FILES, FOLDER
from api.console.frame import ENVIRONMENT
from tests.serving import Server

VENDOR = FOLDER / "vendor"
VENDORED = tomllib.loads((VENDOR / "vendor.toml").read_text())["package"]
# Raw bytes of script and style.
MAX_WEIGHT = 120_000
MAX_STYLE = 12_000


def test_files_of_others_are_as_they_were_published() -> None:
    stated = {name: digest for package in VENDORED for name, digest in package["files"].items()}
    found = {path.name: hashlib.sha384(path.read_bytes()).digest() for path in VENDOR.glob("*.js")}
    assert {name: f"sha384-{base64.b64encode(digest).decode()}" for name, digest in found.items()} == stated


@pytest.mark.parametrize("package", VENDORED, ids=lambda package: package["name"])
def test_files_of_others_come_with_their_licence(package: dict[str, str]) -> None:
    assert "permission" in (VENDOR / package["licence_file"]).read_text().lower()
    assert package["integrity"].startswith("sha512-")


def test_script_and_style_weigh_little() -> None:
    weights = {name: len(asset.content) for name, asset in ASSETS.items() if not name.endswith(".svg")}
    assert weights["app.css"] <= MAX_STYLE
    assert sum(weights.values()) <= MAX_WEIGHT


def test_every_file_is_served_for_good_under_its_hash_and_nothing_else_is(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for name, parts in FILES.items():
            answer = client.get(ASSETS[name].address)
            assert answer.content == b"\n".join((FOLDER / part).read_bytes() for part in parts)
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        for path in ("/assets/app.css", "/assets/vendor.toml", "/assets/..%2f..%2fpages.py", "/assets/app.0.css"):
            assert client.get(path).status_code == 404


def test_pages_need_no_file_once_the_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError

    for name in ("builtins.open", "pathlib.Path.open", "pathlib.Path.read_bytes", "pathlib.Path.read_text"):
        monkeypatch.setattr(name, gone)
    fresh = ENVIRONMENT.overlay(cache_size=0)
    assert {"frame.html", "sign_in.html"} <= {str(fresh.get_template(name).name) for name in fresh.list_templates()}
    assert all(ASSETS[name].content for name in FILES)
