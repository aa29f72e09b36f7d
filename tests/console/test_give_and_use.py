"""A creator gives a code, a brand uses it: each on a phone, step by step, with TikTok's own words."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.seed import shown
from tests.console.test_start import OURS, SUBJECTS, key_of, visitor
from tests.serving import Server

VIDEO = "7312345678901234567"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def _fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def _brand(world: World) -> str:
    subjects = {"brand_ids": ["acme"], "advertiser_ids": ["adv-7001"]}
    return str(told(world.client.post("/v1/keys", json={"role": "brand", "subjects": subjects}), 201)["key"])


def _creator(world: World, name: str = "ana.creates") -> str:
    asked = {"role": "creator", "subjects": {"creator_ids": [name]}}
    return str(told(world.client.post("/v1/keys", json=asked), 201)["key"])


@pytest.mark.long("a dozen pages are filled in by a browser")
@pytest.mark.parametrize("javascript", [True, False])
def test_the_whole_story_on_a_phone(own_windows: Windows, own_world: World, javascript: bool) -> None:
    page = own_windows.open(_creator(own_world), java_script_enabled=javascript, **PHONE)
    page.goto("/")
    follow(page.get_by_role("link", name="Give a code"))
    _fits(page)
    follow(page.get_by_role("button", name="I switched it on"))
    expect(page.locator(".steps-list .done")).to_have_count(1)
    page.get_by_label("Video").fill(f"https://www.tiktok.com/@ana.creates/video/{VIDEO}")
    page.get_by_label("How long the code is good").select_option("30")
    page.get_by_label("The creator accepts these terms").check()
    follow(page.get_by_role("button", name="Generate the code"))
    secret = page.locator("#secret").inner_text()
    assert len(secret) > 20
    _fits(page)
    follow(page.get_by_role("link", name="I gave it to somebody"))
    page.get_by_label("Brand").fill("acme")
    page.get_by_label("How it was handed over").select_option("dm")
    follow(page.get_by_role("button", name="Record a share"))
    expect(page.get_by_role("heading", level=1)).to_contain_text(VIDEO)
    _fits(page)
    assert secret not in page.content()

    brand = own_windows.open(_brand(own_world), java_script_enabled=javascript, **PHONE)
    brand.goto("/")
    follow(brand.get_by_role("link", name="Use a code", exact=True))
    brand.get_by_label("The code that you were sent").fill(f"  {secret}\n")
    follow(brand.get_by_role("button", name="See what it covers"))
    expect(brand.get_by_role("heading", level=1)).to_have_text("This is what the code covers")
    expect(brand.locator("main")).to_contain_text(VIDEO)
    _fits(brand)
    brand.get_by_label("Advertiser account").select_option("adv-7001")
    follow(brand.get_by_role("button", name="Record the redemption"))
    expect(brand.get_by_role("heading", level=1)).to_have_text("Plan a campaign")
    expect(brand.get_by_label("Advertiser account")).to_have_value("adv-7001")
    brand.get_by_label("Campaign id").fill("spring-sale")
    brand.get_by_label("Budget").fill("500.00")
    brand.get_by_label("Planned end").fill("2099-01-01T00:00:00")
    follow(brand.get_by_role("button", name="See when it will stop"))
    expect(brand.locator("#plan")).to_contain_text("before its planned end")
    assert told(own_world.client.get("/v1/campaigns"), 200)["campaigns"] == []
    _fits(brand)
    follow(brand.get_by_role("button", name="Record the launch"))
    expect(brand.locator(".parties")).to_contain_text("spring-sale")
    _fits(brand)
    assert all(secret not in url for url in own_windows.asked)


def test_a_refusal_is_a_sentence_at_its_step_and_what_was_entered_stays(own_windows: Windows, own_world: World) -> None:
    own_world.permit("ana.creates")
    page = own_windows.open(_creator(own_world))
    shown(own_world.client, "permissions")
    page.goto("/give")
    own_world.permit("ana.creates", enabled=False)
    page.get_by_label("Video").fill(VIDEO)
    page.get_by_label("The creator accepts these terms").check()
    follow(page.get_by_role("button", name="Generate the code"))
    expect(page.locator(".steps-list > li").nth(1).get_by_role("alert")).to_contain_text("ad authorization is off")
    expect(page.get_by_label("Video")).to_have_value(VIDEO)


def test_a_video_that_cannot_be_read_is_said_at_its_field(own_windows: Windows, own_world: World) -> None:
    own_world.permit("ana.creates")
    page = own_windows.open(_creator(own_world))
    shown(own_world.client, "permissions")
    page.goto("/give")
    page.get_by_label("Video").fill("https://vm.tiktok.com/ZMabcdef/")
    page.get_by_label("The creator accepts these terms").check()
    follow(page.get_by_role("button", name="Generate the code"))
    expect(page.locator("#w-video_id")).to_be_visible()
    expect(page.get_by_label("Video")).to_have_attribute("aria-invalid", "true")


def test_a_code_that_nobody_has_is_said_so_and_tried_once(own_windows: Windows, own_world: World) -> None:
    page = own_windows.open(_brand(own_world))
    page.goto("/use")
    page.get_by_label("The code that you were sent").fill("#mistyped+code+that+nobody+has==")
    follow(page.get_by_role("button", name="See what it covers"))
    expect(page.get_by_role("alert")).to_contain_text("no such code")
    expect(page.get_by_label("The code that you were sent")).to_have_value("#mistyped+code+that+nobody+has==")
    counts = told(own_world.client.get("/v1/stats"), 200)["refused_attempts"]
    assert counts.get("code_unknown") == 1


def test_a_form_that_is_sent_twice_generates_one_code(server: Server, own_world: World) -> None:
    own_world.permit("ana.creates")
    form = {"creator_id": "ana.creates", "video_id": VIDEO, "days": "30", "terms_version": "2026-01", "accepts": "true"}
    with visitor(server, _creator(own_world)) as client:
        answers = [client.post("/give/code", data=form | {"form_id": "one"}, headers=OURS) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    shown(own_world.client, "codes")
    assert len(told(own_world.client.get("/v1/codes"), 200)["codes"]) == 1


@pytest.mark.long("a browser fills in many pages")
def test_a_code_is_extended_shown_again_noted_and_revoked_by_its_creator(
    own_windows: Windows, own_world: World
) -> None:
    code = own_world.generate("ana.creates")
    page = own_windows.open(_creator(own_world), java_script_enabled=False)
    page.goto(f"/codes/{code['code_id']}")
    follow(page.get_by_role("link", name="Extend the window"))
    page.get_by_label("Length of the whole window").select_option("60")
    follow(page.get_by_role("button", name="Extend the window"))
    assert own_world.read(code)["expires_at"] > code["expires_at"]
    follow(page.get_by_role("link", name="Show the code again"))
    page.get_by_label("Why").fill("The brand lost it")
    follow(page.get_by_role("button", name="Show the code again"))
    expect(page.locator("#secret")).to_have_text(code["secret"])
    page.goto(f"/codes/{code['code_id']}/note")
    page.get_by_label("Note").fill("For the spring sale")
    follow(page.get_by_role("button", name="Add a note"))
    expect(page.locator("q")).to_have_text("For the spring sale")
    follow(page.get_by_role("link", name="Revoke the code"))
    page.get_by_label("Why").fill("Over")
    follow(page.get_by_role("button", name="Revoke the code"))
    expect(page.locator(".lead").first).to_contain_text("Revoked")
    assert page.get_by_role("link", name="Extend the window").count() == 0


def test_a_running_campaign_is_ended_and_keeps_a_code_from_being_revoked(
    own_windows: Windows, own_world: World
) -> None:
    code = own_world.running()
    page = own_windows.open(own_windows.server.admin_key)
    page.goto(f"/codes/{code['code_id']}/revoke")
    page.get_by_label("Why").fill("Over")
    follow(page.get_by_role("button", name="Revoke the code"))
    expect(page.get_by_role("alert")).to_be_visible()
    page.goto(f"/codes/{code['code_id']}")
    follow(page.get_by_role("link", name="End a campaign"))
    page.get_by_label("Campaign").select_option("campaign-1")
    follow(page.get_by_role("button", name="End a campaign"))
    expect(page.locator(".parties")).to_contain_text("does not run")
    assert own_world.read(code)["campaigns"][0]["ended_at"] is not None


def test_an_operator_records_what_happened_earlier(own_windows: Windows, own_world: World) -> None:
    code = own_world.generate("ana.creates")
    operator = told(own_world.client.post("/v1/keys", json={"role": "operator"}), 201)["key"]
    page = own_windows.open(operator)
    page.goto(f"/codes/{code['code_id']}/share")
    page.get_by_label("Brand").fill("acme")
    page.get_by_label("When it happened").fill("2020-01-01T00:00:00")
    follow(page.get_by_role("button", name="Record a share"))
    expect(page.get_by_role("alert").or_(page.locator(".wrong")).first).to_be_visible()


@pytest.mark.parametrize("role", SUBJECTS)
def test_each_role_is_offered_what_it_may_do(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        start = client.get("/").text
        forms = {path: client.get(path).status_code for path in ("/give", "/use")}
        given = client.post("/give/permission", data={"creator_id": "dee", "enabled": "false"}, headers=OURS)
    assert ('href="/give"' in start) is (role in {"creator", "operator", "admin"})
    assert ('href="/use"' in start) is (role in {"brand", "operator", "admin"})
    assert forms["/give"] == (200 if role in {"creator", "operator", "admin"} else 403)
    assert forms["/use"] == (200 if role in {"brand", "operator", "admin"} else 403)
    assert given.status_code == (303 if role in {"operator", "admin"} else 403)
