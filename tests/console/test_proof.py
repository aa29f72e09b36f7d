"""Proof: what a verifier outside needs, and bundles that it accepts."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from infra.proof import verify
from tests.api.world import World, told
from tests.console.conftest import Windows
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server


@pytest.mark.parametrize("from_", ["code", "answer"])
def test_a_bundle_that_is_taken_here_is_accepted_by_the_verifier(
    own_windows: Windows, own_world: World, tmp_path: Path, from_: str
) -> None:
    code = own_world.running()
    own_windows.server.serving.seal()
    page = own_windows.open(own_windows.server.admin_key)
    if from_ == "code":
        page.goto(f"/codes/{code['code_id']}")
    else:
        page.goto(f"/question?video_id={code['video_id']}&advertiser_id=account-own")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Take the evidence").click()
    bundle = tmp_path / "evidence.zip"
    downloading.value.save_as(bundle)
    page.goto("/proof")
    key = tmp_path / "log.vkey"
    key.write_text(page.get_by_role("region", name="Verifier keys").inner_text())
    done = subprocess.run(
        [sys.executable, "-I", str(verify.__file__), str(bundle), "--key", str(key)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_of_the_ledger_is_taken_in_one_click(own_windows: Windows, own_world: World) -> None:
    own_world.running()
    own_windows.server.serving.seal()
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/proof")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="All of the ledger").click()
    names = zipfile.ZipFile(io.BytesIO(downloading.value.path().read_bytes())).namelist()
    assert any(name.endswith("manifest-sha256.txt") for name in names)
    accesses = told(own_world.client.get("/v1/accesses", params={"route": "POST /v1/evidence"}), 200)["accesses"]
    assert len(accesses) == 1


def test_before_anything_is_signed_it_says_so_and_a_bundle_is_a_page_that_says_so(own_windows: Windows) -> None:
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/proof")
    expect(page.locator(".lead")).to_contain_text("Nothing is signed yet.")
    page.get_by_role("button", name="All of the ledger").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("log_unknown")


@pytest.mark.parametrize("role", SUBJECTS)
def test_each_role_sees_the_keys_to_pin_and_its_own_bundles(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        page = client.get("/proof")
    assert page.status_code == 200
    assert ("All of the ledger" in page.text) is (role in {"admin", "operator", "auditor"})
    assert ("All records of a creator" in page.text) is (role != "brand")
