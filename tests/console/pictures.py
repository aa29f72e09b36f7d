"""Pictures of the console for its documentation: `python -m tests.console.pictures URL KEY`.

Against a server with an empty ledger, such as `make up` has on its first start; KEY is its administrator's.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import sync_playwright

from tests.console.conftest import CHROMIUM, sign_in
from tests.console.seed import ACCOUNT, VIDEO, Seeded, seed

FOLDER: Final = Path(__file__).parents[2] / "docs" / "console"
WIDTH: Final = 1000
# A quarter of the size of the picture that a browser takes, and as clear.
SMALLER: Final = """
async (shot) => {
  const picture = await createImageBitmap(await (await fetch(`data:image/png;base64,${shot}`)).blob());
  const canvas = Object.assign(document.createElement("canvas"), {width: picture.width, height: picture.height});
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.toDataURL("image/webp", 0.85).split(",")[1];
}
"""
# Each picture, with what its address is made of, and its height.
PICTURES: Final[dict[str, tuple[Callable[[Seeded], str], int]]] = {
    "start": (lambda _: "/", 620),
    "question": (lambda _: f"/question?video_id={VIDEO}&advertiser_id={ACCOUNT}", 640),
    "code": (lambda seeded: f"/codes/{seeded.running['code_id']}", 860),
    "trail": (lambda _: "/events?q=type:Shared,Redeemed,Revoked", 560),
    "statistics": (lambda _: "/statistics?days=90", 620),
    "give": (lambda seeded: f"/give?creator_id={seeded.running['creator_id']}", 780),
}


def take(url: str, key: str, seeded: Seeded) -> None:
    """Take all pictures of a server whose ledger was seeded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(base_url=url, viewport={"width": WIDTH, "height": 600}, color_scheme="light")
        blank = browser.new_page()
        sign_in(page, key)
        for name, (address, height) in PICTURES.items():
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.goto(address(seeded))
            shot = base64.b64encode(page.screenshot()).decode()
            (FOLDER / f"{name}.webp").write_bytes(base64.b64decode(blank.evaluate(SMALLER, shot)))
        browser.close()


if __name__ == "__main__":
    address, key = sys.argv[1:]
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        story = seed(client)
    FOLDER.mkdir(exist_ok=True)
    take(address, key, story)
