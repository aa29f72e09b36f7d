"""Pages as people with disabilities use them: axe's rules, in light and dark, on a wide and a narrow screen."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Windows
from tests.console.seed import ACCOUNT, CREATOR, VIDEO, Seeded

# By tags: axe leaves out rules of WCAG 2.2 if it is not told to run them.
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
# Of what passes, only that something did: to describe each element takes axe longer than to check it.
RUN = """
async tags => {
  const runOnly = {type: "tag", values: tags}, kinds = ["violations", "incomplete"];
  const found = await axe.run(document, {runOnly, resultTypes: kinds, selectors: false});
  const nodes = kinds.flatMap(kind => found[kind].flatMap(rule => rule.nodes.map(node => [kind, rule.id, node.html])));
  return [found.passes.length, nodes];
}
"""
LOOKS: tuple[tuple[int, Literal["light", "dark"]], ...] = (
    (1280, "light"),
    (1280, "dark"),
    (360, "dark"),
    (360, "light"),
)
# Each page, by what its address is made of.
PAGES: dict[str, Callable[[Seeded], str]] = {
    "sign-in": lambda _: "/sign-in",
    "start": lambda _: "/",
    "not found": lambda _: "/nowhere",
    "question": lambda _: "/question",
    "verdict": lambda _: f"/question?video_id={VIDEO}&advertiser_id={ACCOUNT}",
    "codes": lambda _: "/codes",
    "a filter that is wrong": lambda _: "/codes?state=nope",
    "trail": lambda _: "/events",
    "a search that is wrong": lambda _: "/events?q=type:Nope",
    "event": lambda _: "/events/5",
    "who looked": lambda _: "/accesses",
    "proof": lambda _: "/proof",
    "statistics": lambda _: "/statistics",
    "figures": lambda _: "/figures?by=creator",
    "keys": lambda _: "/keys",
    "alerts": lambda _: "/alerts",
    "imports": lambda _: "/imports",
    "system": lambda _: "/system",
    "give": lambda _: f"/give?creator_id={CREATOR}",
    "use": lambda _: "/use",
    "share": lambda seeded: f"/codes/{seeded.running['code_id']}/share",
    "launch": lambda seeded: f"/codes/{seeded.running['code_id']}/launch",
    "dossier": lambda _: f"/dossiers/creators/{CREATOR}",
    "code": lambda seeded: f"/codes/{seeded.running['code_id']}?as_of=20",
}
# Those that axe is done with soonest.
SMALL = {"sign-in", "start", "not found", "question", "a search that is wrong", "alerts"}
long = pytest.mark.long("axe looks at everything on the page, four times")


def violations(page: Page) -> list[tuple[str, str]]:
    """Return what breaks a rule, and what axe could not decide, with where it is."""
    passed, found = page.evaluate(RUN, TAGS)
    assert passed, "axe checked nothing"
    return [
        (rule, html)
        for kind, rule, html in found
        # Axe cannot tell what is behind the text of a drawing. It has the colours of notes, which are checked as such.
        if not (kind == "incomplete" and rule == "color-contrast" and html.startswith("<text"))
    ]


@pytest.mark.parametrize("name", [name if name in SMALL else pytest.param(name, marks=long) for name in PAGES])
def test_axe_finds_nothing(windows: Windows, seeded: Seeded, name: str) -> None:
    page = windows.open(None if name == "sign-in" else windows.server.admin_key)
    page.goto(PAGES[name](seeded))
    # Where a test has opened the page, the policy lets it run what the page could not.
    page.evaluate(AXE)
    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == [], (name, width, scheme)
    # Nothing moves, so nothing has to hold still for those who ask for less motion.
    assert page.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("name", PAGES)
def test_nothing_but_tables_scrolls_sideways_even_at_twice_the_size(
    windows: Windows, seeded: Seeded, name: str
) -> None:
    page = windows.open(None if name == "sign-in" else windows.server.admin_key)
    page.goto(PAGES[name](seeded))
    # A phone; a window of 640 pixels at twice the size, of a page and of its text alone.
    for width, text in ((360, "1rem"), (320, "1rem"), (640, "32px")):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("size => { document.documentElement.style.fontSize = size; }", "" if text == "1rem" else text)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, text


# Of a page's links and buttons, those that are tried: the rest are rows of tables.
TABS = 25
FOCUSED = """
() => {
  const focused = document.activeElement;
  if (focused === document.body) return null;
  const box = focused.getBoundingClientRect();
  // The middle of what of it is on the screen: some regions are higher than it.
  const [top, bottom] = [Math.max(0, box.top), Math.min(innerHeight, box.bottom)];
  const found = bottom > top && document.elementFromPoint(box.x + box.width / 2, (top + bottom) / 2);
  return {seen: !!found && (focused.contains(found) || found.contains(focused)), what: focused.outerHTML.slice(0, 200)};
}
"""


@pytest.mark.parametrize("name", PAGES)
def test_what_the_keyboard_reaches_is_on_the_screen_and_under_nothing(
    windows: Windows, seeded: Seeded, name: str
) -> None:
    page = windows.open(None if name == "sign-in" else windows.server.admin_key)
    page.goto(PAGES[name](seeded))
    reached = []
    for _ in range(TABS):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused is None:
            break
        reached.append(focused)
    assert len(reached) > 1
    assert [one["what"] for one in reached if not one["seen"]] == []


def test_what_counts_new_events_hides_nothing_that_the_keyboard_reaches(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto(f"/codes/{seeded.running['code_id']}")
    page.evaluate(
        """() => {
          const link = document.getElementById("live").appendChild(document.createElement("a"));
          link.href = "/events";
          link.textContent = "1,234 new events";
        }"""
    )
    hidden = []
    for _ in range(4 * TABS):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused is None:
            break
        hidden += [] if focused["seen"] else [focused["what"]]
    assert hidden == []


def test_the_keyboard_alone_leads_from_signing_in_to_an_answer(windows: Windows, seeded: Seeded) -> None:
    page = windows.open()
    page.goto("/sign-in")
    # The browser moves the focus when it first draws the page, which may be after it has loaded.
    expect(page.locator("#key")).to_be_focused()
    with page.expect_navigation():
        page.keyboard.type(windows.server.admin_key)
        page.keyboard.press("Enter")
    expect(page.locator("#q")).to_be_focused()

    def on_to(text: str) -> None:
        for _ in range(TABS):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText ?? ''").strip().startswith(text):
                return
        raise AssertionError(text)

    on_to("Was a video authorized")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    for _ in range(TABS):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "video_id":
            break
    page.keyboard.type(VIDEO)
    page.keyboard.press("Tab")
    page.keyboard.type(ACCOUNT)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Yes, it was authorized")


@pytest.mark.parametrize("name", PAGES)
def test_a_printed_page_has_its_text_and_nothing_to_press(windows: Windows, seeded: Seeded, name: str) -> None:
    page = windows.open(None if name == "sign-in" else windows.server.admin_key)
    page.emulate_media(media="print", color_scheme="dark")
    page.goto(PAGES[name](seeded))
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    for what in ("button", ".button", "nav", "form.find", ".bottom"):
        assert page.locator(what).filter(visible=True).count() == 0, what
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"


def test_the_keyboard_alone_opens_the_menu_and_signs_out(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/codes")  # the start page begins in its box
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.locator("details.who summary").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Sign out")).to_be_hidden()


def test_times_follow_the_readers_switch_and_say_their_zone(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key, timezone_id="Asia/Kolkata")
    page.goto("/")
    shown = page.locator("details.who time")
    assert str(shown.text_content()).endswith(" UTC")
    page.get_by_role("button", name="Show local time").click()
    assert str(shown.text_content()).endswith(" UTC+5:30")
    page.reload()
    expect(page.locator("#zone")).to_have_text("Asia/Calcutta")
    page.get_by_role("button", name="Show UTC").click()
    assert str(shown.text_content()).endswith(" UTC")
