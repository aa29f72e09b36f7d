"""verify.html: of every bundle it says what verify.py says, in each browser, from disk. It asks nothing of anybody."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import httpx
import pytest
from playwright.sync_api import Page, expect

from api import evidence_bundle
from api.console import verifier
from infra.proof import verify
from tests import given
from tests.absent import absent
from tests.api.world import World
from tests.console import firefox as firefox_
from tests.console import webkit as webkit_
from tests.console.conftest import Browsers, Windows
from tests.console.firefox import firefox
from tests.console.test_accessibility import AXE, LOOKS, violations
from tests.console.webkit import webkit
from tests.given import CODE
from tests.infra.proof.bundles import Log, showing, stating
from tests.infra.proof.bundles import files as unpacked
from tests.infra.proof.cases import Case, key_text, questions, recorded
from tests.infra.proof.test_verify import VECTORS, two_codes
from tests.serving import Serving, new_ledger

PAGE: Final = Path(verify.__file__).with_suffix(".html")
# The page's own functions, given what `verify.py` was given.
CHECK: Final = """
async ([data, given]) => {
  const bytes = (text) => text === null ? null : Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const keys = (list) => list.map((text) => new Key(text));
  const options = {
    ...given, keys: keys(given.keys), witnesses: keys(given.witnesses), older: bytes(given.older),
    policy: given.policy === null ? null : new Policy(given.policy), receipts: given.receipts.map(bytes),
    now: given.now ?? undefined,
  };
  try {
    const report = await verifyZip(bytes(data), options);
    return [report.lines, report.isGood, report.isPinned];
  } catch (error) {
    if (error instanceof Wrong) return null;
    throw error;
  }
}
"""
# How the page shows what it found.
SHOWN: Final = "() => [document.querySelector('.verdict').className, document.getElementById('headline').textContent]"
HOLDS: Final = ["verdict good", "This bundle holds"]
GREY: Final = ["verdict open", "Consistent in itself. Whose it is was not checked"]
FAILS: Final = ["verdict bad", "This bundle does not hold"]
UNUSABLE: Final = ["verdict bad", "This cannot be used"]
# The first of these tests runs all tests of the other verifier before.
GATHERING: Final = pytest.mark.timeout(600)
long: Final = pytest.mark.long("every bundle of the tests of the other verifier is made, and checked by a browser")


@pytest.fixture(scope="module")
def kept() -> list[Case]:
    """What one test of this process has recorded for the others."""
    return []


@pytest.fixture
def cases(kept: list[Case], serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Every bundle that the tests of `verify.py` verify, and what it says."""
    if not kept:
        with ExitStack() as opened:

            def fresh() -> World:
                server = new_ledger(serving)
                world = World(server, opened.enter_context(server.client()))
                opened.push(lambda *_: _close(world))
                return world

            kept += recorded(tmp_path_factory.mktemp("cases"), fresh)
    return kept


def _close(world: World) -> None:
    for client in world.clients:
        client.close()


def check_all(cases: list[Case], check: Callable[[str, Any], Any]) -> None:
    """Compare the verdicts on every bundle."""
    assert any("by the heads that event" in text for case in cases for _, text in case.lines or [])
    assert {case.good for case in cases} == {True, False}
    for case in cases:
        asked = [base64.b64encode(case.data).decode(), case.options]
        said = check(CHECK, asked)
        if case.lines is None:
            assert said is None, case.name
            continue
        lines, is_good, is_pinned = said
        assert [(mark, text) for mark, text in lines] == without_names_of_errors(case.lines), case.name
        assert is_good is case.good, case.name
        # Green needs a key that was named, whatever the bundle brings.
        named = bool(case.options["keys"] or case.options["policy"])
        assert is_pinned or not (is_good and named), case.name
        assert named or not is_pinned, case.name


def fewer(cases: list[Case]) -> list[Case]:
    """Return all bundles that do not hold, and of each test one that does."""
    holding = {case.name: case for case in cases if case.good}
    return [case for case in cases if not case.good or case is holding[case.name]]


def without_names_of_errors(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    malformed = "the bundle is malformed"
    return [(mark, malformed if text.startswith(malformed) else text) for mark, text in lines]


@contextmanager
def opened(browsers: Browsers, file: Path = PAGE) -> Iterator[Page]:
    """Open a page from disk; it may ask for nothing else, and break no policy."""
    context = browsers.browser().new_context(timezone_id="Asia/Tokyo", locale="de-DE")
    asked: list[str] = []
    errors: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    try:
        yield page
        assert asked == [file.as_uri()]
        assert errors == []
    finally:
        context.close()


# -- The same verdicts


@long
@GATHERING
def test_chromium_says_of_every_bundle_what_the_other_verifier_says(browsers: Browsers, cases: list[Case]) -> None:
    with opened(browsers) as page:
        assert len(cases) > 180
        check_all(cases, page.evaluate)


@long
@GATHERING
def test_firefox_says_of_every_bundle_what_the_other_verifier_says(cases: list[Case], tmp_path: Path) -> None:
    if firefox_.BINARY is None:
        absent("The second browser needs Firefox: apt-get install firefox-esr")
    (tmp_path / "profile").mkdir()
    with firefox(tmp_path / "profile") as tab:
        tab.go(PAGE.as_uri())

        def check(function: str, asked: Any) -> Any:
            return json.loads(tab.evaluate(f"({function})({json.dumps(asked)}).then(JSON.stringify)"))

        check_all(fewer(cases), check)
        bundle, vkey = good_bundle(tmp_path)
        tab.pick("#bundle", bundle)
        for typed, expected in ((None, GREY), (vkey, HOLDS)):
            if typed is not None:
                tab.type("#keys", typed)
            tab.click("#check")
            tab.shows("#headline", expected[1])
            assert json.loads(tab.evaluate(f"JSON.stringify(({SHOWN})())")) == expected
        assert tab.errors == []


@long
@GATHERING
def test_webkit_says_of_every_bundle_what_the_other_verifier_says(cases: list[Case], tmp_path: Path) -> None:
    if webkit_.DRIVER is None or webkit_.SCREEN is None:
        absent("The third browser needs WebKit and a screen: apt-get install webkit2gtk-driver xvfb")
    with webkit(tmp_path) as tab:
        tab.go(PAGE.as_uri())
        check_all(fewer(cases), tab.call)
        bundle, vkey = good_bundle(tmp_path)
        tab.type("#bundle", str(bundle))
        for typed, expected in ((None, GREY), (vkey, HOLDS)):
            if typed is not None:
                tab.type("#keys", typed)
            tab.click("#check")
            tab.shows("#headline", expected[1])
            assert tab.call(SHOWN) == expected


def test_signatures_are_as_strict_as_rfc_8032(browsers: Browsers) -> None:
    lines = [line.split(" ", 4) for line in VECTORS.read_text().splitlines() if not line.startswith("#")]
    with opened(browsers) as page:
        verified = page.evaluate(
            "(all) => all.map(([k, m, s]) => ed25519Verifies(unhex(k), encode(m), unhex(s)))",
            [[key, message, signature] for _, key, signature, _, message in lines],
        )
    assert verified == [
        verify.ed25519_verifies(bytes.fromhex(key), message.encode(), bytes.fromhex(signature))
        for _, key, signature, _, message in lines
    ]


def test_hashes_are_those_of_the_standard_at_every_length_of_two_blocks(browsers: Browsers) -> None:
    with opened(browsers) as page:
        found = page.evaluate(
            """(n) => [sha256, sha512].map((hash) =>
                 Array.from({length: n}, (_, i) => hex(hash(new Uint8Array(i).fill(i)))))""",
            258,
        )
    assert found == [
        [hash_(bytes([n % 256]) * n).hexdigest() for n in range(258)] for hash_ in (hashlib.sha256, hashlib.sha512)
    ]


def test_answers_are_the_same_on_random_histories(browsers: Browsers) -> None:
    asked = questions(seed=3)
    with opened(browsers) as page:
        found = page.evaluate(
            """(asked) => JSON.parse(asked).map(([events, video, account, at]) => Object.fromEntries(
                 Object.entries(answerFrom(events, video, account, moment(at)))
                   .map(([name, value]) => [name, typeof value === "bigint" ? String(value) : value])))""",
            json.dumps([[one.events, one.video_id, one.advertiser_id, one.at] for one in asked]),
        )
    assert found == [one.answer for one in asked]
    assert {one.answer["reason"] for one in asked} > {"authorized", "revoked", "expired"}


# -- What is seen


def good_bundle(folder: Path) -> tuple[Path, str]:
    """Write a bundle that holds; return its path, and the key to pin."""
    log = Log.of(two_codes())
    path = log.written(folder, log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE])))
    return path, log.signer.verifier_keys[0]


def check(page: Page, bundle: Path, keys: str = "") -> list[str]:
    """Pick a bundle, type keys, and return what is seen then."""
    page.get_by_label("The bundle", exact=True).set_input_files(bundle)
    page.get_by_label("The verifier key of the log").fill(keys)
    page.get_by_role("button", name="Check the bundle").click()
    expect(page.locator("#headline")).to_be_focused()
    shown: list[str] = page.evaluate(SHOWN)
    return shown


def test_it_is_green_only_with_the_key_of_the_log_and_grey_without(browsers: Browsers, tmp_path: Path) -> None:
    bundle, vkey = good_bundle(tmp_path)
    other = key_text(Log.of(given.running()).keys[0])
    with zipfile.ZipFile(bundle) as read:
        brought = next(read.read(name).decode() for name in read.namelist() if name.endswith("evidence.vkey"))
    with opened(browsers) as page:
        assert check(page, bundle, vkey) == HOLDS
        expect(page.get_by_text("events, which was signed with the key that you named.")).to_be_visible()
        expect(page.get_by_text("It does not prove that what was recorded is true.")).to_be_visible()
        expect(page.get_by_text(hashlib.sha256(bundle.read_bytes()).hexdigest())).to_be_visible()
        # What was found before is gone as soon as something else is asked.
        page.get_by_label("The verifier key of the log").fill("")
        expect(page.locator("#result")).to_be_hidden()
        assert check(page, bundle) == GREY
        assert check(page, bundle, other) == FAILS
        # The key that signs bundles comes with each of them, and is no key of a log.
        assert check(page, bundle, brought) == FAILS
        assert check(page, bundle, vkey[:-2]) == UNUSABLE
        assert check(page, bundle, f"\n {vkey} \n{other}\n") == HOLDS


def test_the_options_are_those_of_the_other_verifier(browsers: Browsers, tmp_path: Path) -> None:
    log = Log.of(two_codes())
    bundle = log.written(tmp_path, log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE])))
    vkey = log.signer.verifier_keys[0]
    kept, fork, receipt = (tmp_path / name for name in ("kept", "fork", "receipt"))
    kept.write_text(log.signed(3).note)
    fork.write_text(Log(log.rows[:3], log.signer, log.bag_signer, {2: log.entry(1)}).signed().note)
    receipt.write_bytes(log.receipt(2))
    (tmp_path / "log.vkey").write_text(vkey + "\n")
    with opened(browsers) as page:
        page.get_by_label("Or a file with these keys").set_input_files(tmp_path / "log.vkey")
        expect(page.get_by_label("The verifier key of the log")).to_have_value(vkey + "\n")
        page.get_by_text("Demand more").click()
        page.get_by_label("A checkpoint that you kept").set_input_files(kept)
        page.get_by_label("Receipts that you kept").set_input_files(receipt)
        page.get_by_label("What the bundle must be about").fill(f"code:{CODE}")
        assert check(page, bundle, vkey) == HOLDS
        expect(page.get_by_text("consistent with your checkpoint: the log continues the 3 events")).to_be_visible()
        expect(page.get_by_text("receipt: the log has the event of your receipt, at position 2")).to_be_visible()
        page.get_by_label("A checkpoint that you kept").set_input_files(fork)
        assert check(page, bundle, vkey) == FAILS
        expect(page.locator(".lines")).to_contain_text("FORK: both are signed, and they contradict each other")
        page.get_by_label("A checkpoint that you kept").set_input_files([])
        page.get_by_label("What the bundle must be about").fill("ledger")
        assert check(page, bundle, vkey) == FAILS
        page.get_by_label("What the bundle must be about").fill("")
        page.get_by_label("How many hours ago").fill("1")
        assert check(page, bundle, vkey) == FAILS
        page.get_by_label("How many hours ago").fill("soon")
        assert check(page, bundle, vkey) == UNUSABLE


def test_text_of_a_bundle_is_shown_and_never_obeyed(browsers: Browsers, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>\u202e\u200bdlrow"
    log = Log.of(two_codes())
    bundle = log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE]))
    about = {"kind": "creator", "creator_id": hostile, "creator_stream": str(CODE)}
    bundle = stating(bundle, about=about)
    with opened(browsers) as page:
        assert check(page, log.written(tmp_path, bundle)) == FAILS
        shown = page.locator(".lines li").filter(has_text="about:").locator("bdi")
        expect(shown).to_contain_text("creator:<img src=x onerror=alert(1)>U+202EU+200Bdlrow")
        assert page.locator("#result img").count() == 0


def test_what_was_recorded_is_listed_as_it_was_checked(browsers: Browsers, tmp_path: Path) -> None:
    bundle, vkey = good_bundle(tmp_path)
    with opened(browsers) as page:
        check(page, bundle, vkey)
        table = page.get_by_role("region", name="What was recorded, as checked here")
        expect(table.get_by_role("row").nth(1)).to_contain_text("CodeGenerated")
        # And nothing of a bundle that does not hold.
        log = Log.of(two_codes())
        lie = showing(log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE])), lambda events: events.pop())
        assert check(page, log.written(tmp_path, lie), log.signer.verifier_keys[0]) == FAILS
        expect(table).to_be_hidden()


# -- The report of a bundle


def report_of(bundle: Path) -> str:
    with zipfile.ZipFile(bundle) as read:
        return next(read.read(name).decode() for name in read.namelist() if name.endswith("/REPORT.html"))


@pytest.mark.long("a browser checks a whole report")
def test_a_report_checks_itself_from_disk_and_is_never_green(browsers: Browsers, tmp_path: Path) -> None:
    bundle, _ = good_bundle(tmp_path)
    report = tmp_path / "REPORT.html"
    whole = report_of(bundle)
    enclosed = whole.partition('id="enclosed">')[2].partition("</script>")[0]
    # An event of what it brings says something else.
    files = {
        name: content for name, content in unpacked(base64.b64decode(enclosed)).items() if name.startswith("data/")
    }
    lie = files | {"data/events.ndjson": files["data/events.ndjson"].replace(b"creator-1", b"creator-2")}
    other = base64.b64encode(Log.of(two_codes()).written(tmp_path, lie).read_bytes()).decode()
    assert lie != files
    for looks, text, expected in ((LOOKS[::2], whole, GREY), (LOOKS[1::2], whole.replace(enclosed, other), FAILS)):
        report.write_text(text)
        with opened(browsers, report) as page:
            page.locator("#headline").wait_for()
            assert page.evaluate(SHOWN) == expected
            expect(page.get_by_text("whoever forges the events can forge the page as well")).to_be_visible()
            expect(page.get_by_role("heading", name="The history of an authorization code")).to_be_visible()
            assert page.locator("textarea, input, button").count() == 0
            page.evaluate(AXE)
            for width, scheme in looks:
                page.set_viewport_size({"width": width, "height": 800})
                page.emulate_media(color_scheme=scheme)
                assert violations(page) == [], (width, scheme, expected)


def test_a_report_that_cannot_bring_its_bundle_says_so(browsers: Browsers, tmp_path: Path) -> None:
    with patch.object(evidence_bundle, "MAX_ENCLOSED_BYTES", 1_000):
        bundle, _ = good_bundle(tmp_path)
    report = tmp_path / "REPORT.html"
    report.write_text(report_of(bundle))
    with opened(browsers, report) as page:
        expect(page.get_by_text("The bundle is too large for a page to bring it once more.")).to_be_visible()
        expect(page.locator("script")).to_have_count(0)


# -- ZIP files


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED, top: str = "bundle") -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as bundle:
        for name, content in files.items():
            bundle.writestr(f"{top}/{name}", content)
    return written.getvalue()


def damaged(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


@pytest.mark.long("a browser reads dozens of files")
def test_zip_files_of_every_form_are_read_or_refused(browsers: Browsers, tmp_path: Path) -> None:
    path, vkey = good_bundle(tmp_path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as read:
        files = {name.partition("/")[2]: read.read(name) for name in read.namelist()}
    deflated = zipped(files, zipfile.ZIP_DEFLATED)
    directory = deflated.rindex(b"PK\x01\x02")
    # The last file says that it is larger or smaller than it is.
    larger, smaller = (
        deflated[: directory + 24] + size.to_bytes(4, "little") + deflated[directory + 28 :]
        for size in (2**30 - 2**20, 1)
    )
    forms = {
        "as it is": (good, HOLDS),
        "deflated": (deflated, HOLDS),
        "with a comment": (good[:-2] + b"\x02\x00hi", HOLDS),
        "two folders": (zipped({**files, "../other/x": b""}, top="bundle"), FAILS),
        "with a folder of its own": (zipped({"": b"", **files}), FAILS),
        "a file more": (zipped({**files, "data/x": b""}), FAILS),
        "a file less": (zipped({name: files[name] for name in files if name != "data/verify.py"}), FAILS),
        "empty": (zipped({}), FAILS),
        "nothing": (b"", UNUSABLE),
        "no ZIP file": (b"no bundle" * 10, UNUSABLE),
        "cut off": (good[:-30], UNUSABLE),
        "cut off in front": (good[30:], UNUSABLE),
        "larger than stated": (smaller, UNUSABLE),
        "smaller than stated": (larger, UNUSABLE),
        "another name in front": (damaged(good, b"/bag.note", b"/bag.nope"), UNUSABLE),
        "encrypted": (damaged(good, b"PK\x01\x02\x14\x03\x14\x00\x08", b"PK\x01\x02\x14\x03\x14\x00\x09"), UNUSABLE),
    }
    with opened(browsers) as page:
        for name, (data, expected) in forms.items():
            path.write_bytes(data)
            assert check(page, path, vkey) == expected, (name, page.locator(".lines").all_inner_texts())


# -- A file that keeps to itself


def test_it_reaches_nothing_even_when_it_is_told_to(browsers: Browsers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        context = browsers.browser().new_context()
        page = context.new_page()
        page.goto(PAGE.as_uri())
        page.evaluate(
            """async (url) => {
              const broken = [];
              document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
              await fetch(url).catch(() => null);
              navigator.sendBeacon(url);
              document.body.append(Object.assign(new Image(), {src: url}));
              try { document.body.innerHTML = "<b>x</b>"; } catch { broken.push("trusted types"); }
              window.broken = broken;
            }""",
            url,
        )
        refused = ["connect-src", "img-src", "trusted types"]
        page.wait_for_function("(refused) => refused.every((one) => window.broken.includes(one))", arg=refused)
        context.close()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_it_is_one_file_that_names_no_address() -> None:
    text = PAGE.read_text()
    assert "http" not in text.replace("http-equiv", "")
    # No policy keeps a page from leading elsewhere, nor from talking to peers: so its script must not.
    for word in ("fetch(", "XMLHttp", "Socket", "RTC", "href", "open(", "import", "Storage", "indexedDB", "eval"):
        assert word not in text, word
    assert text.count("location") == text.count("location.protocol ===")
    assert len(text) < 120_000


def test_the_server_hands_it_out_as_it_is_and_it_says_where_it_came_from(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/proof")
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Save verify.html").click()
    assert downloading.value.path().read_bytes() == PAGE.read_bytes()
    anybody = windows.open()
    anybody.goto("/verify.html")
    expect(anybody.get_by_text("You opened this page from a server.")).to_be_visible()
    anybody.evaluate(AXE)
    assert violations(anybody) == []
    answer = httpx.get(f"{windows.server.url}/verify.html", trust_env=False)
    assert answer.content == PAGE.read_bytes() == verifier.CONTENT
    assert answer.headers["content-security-policy"] == f"{verifier.POLICY}; frame-ancestors 'none'"
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.long("axe looks at everything, in light and dark")
def test_people_with_disabilities_can_use_it(browsers: Browsers, tmp_path: Path) -> None:
    bundle, vkey = good_bundle(tmp_path)
    with opened(browsers) as page:
        expect(page.get_by_text("You opened this page from a server.")).to_be_hidden()
        page.evaluate(AXE)
        page.get_by_text("Demand more").click()
        # Each look with another verdict: axe takes seconds.
        for (width, scheme), keys in zip(LOOKS, itertools.cycle((vkey, "nonsense", ""))):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            check(page, bundle, keys)
            assert violations(page) == [], (width, scheme, keys)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.emulate_media(media="print", color_scheme="dark")
        check_again = page.get_by_role("button", name="Check the bundle")
        expect(check_again).to_be_hidden()
        expect(page.locator("#headline")).to_be_visible()
