"""Authorizations over HTTP: the answer, its reason and its proof."""

from __future__ import annotations

from typing import Any

from tests.api.world import OTHER_ACCOUNT, OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, days, told


def ask(world: World, video_id: str, advertiser_id: str = OWN_ACCOUNT, **query: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"video_id": video_id, "advertiser_id": advertiser_id, "at_least": world.head()} | query
    return told(world.client.get("/v1/authorizations", params=asked), 200)


def test_the_question_is_answered_with_its_reason_and_its_proof(world: World) -> None:
    code = world.generate()
    world.share(code)
    redemption = world.redeem(code)

    answer = ask(world, code["video_id"])

    assert (answer["authorized"], answer["reason"], answer["code_id"]) == (True, "authorized", code["code_id"])
    assert (answer["permission_enabled"], answer["shared"]) == (True, True)
    assert (answer["starts_at"], answer["expires_at"]) == (code["starts_at"], code["expires_at"])
    assert answer["evidence"] == [1, 2, 3, 4]
    assert ask(world, code["video_id"], OTHER_ACCOUNT)["reason"] == "not_redeemed"
    assert ask(world, "another-video")["reason"] == "no_code"
    assert ask(world, code["video_id"], at=days(40))["reason"] == "expired"
    assert ask(world, code["video_id"], at=days(-40))["reason"] == "not_started"
    assert ask(world, code["video_id"], as_of=redemption["position"] - 1)["reason"] == "not_redeemed"
    assert ask(world, code["video_id"], as_of=0)["reason"] == "no_code"


def test_the_answer_to_a_past_question_does_not_change(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    first = ask(world, code["video_id"])
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)

    assert ask(world, code["video_id"])["reason"] == "revoked"
    then = ask(world, code["video_id"], as_of=first["as_of"], at=first["at"])
    assert then == first
    assert ask(world, code["video_id"], at=first["at"])["authorized"] is True


def test_an_ordinary_answer_is_neither_recorded_late_nor_backdated(world: World) -> None:
    code = world.generate()
    world.share(code)
    redeemed = world.redeem(code)
    answer = ask(world, code["video_id"])
    (event,) = told(world.client.get("/v1/events", params={"after": redeemed["position"] - 1}), 200)["events"]

    assert (answer["recorded_late"], answer["backdated"]) == (False, False)
    assert answer["evidence_recorded_at"] == event["recorded_at"]
    assert (answer["creator_id"], answer["start_stated"]) == (code["creator_id"], True)
    assert answer["summary"] == (
        f"Video {code['video_id']} was authorized for advertiser {OWN_ACCOUNT} at {minute(answer['at'])}: the account "
        f"had redeemed the code inside its window, which ends at {minute(code['expires_at'])}."
    )


def minute(moment: str) -> str:
    return f"{moment[:10]} {moment[11:16]} UTC"


def test_an_answer_shows_that_its_evidence_was_recorded_later_and_with_another_effective_time(world: World) -> None:
    code = world.generate(starts_at=days(-10))
    redemption = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT, "effective_at": days(-5)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)

    then, now = ask(world, code["video_id"], at=days(-4)), ask(world, code["video_id"])

    assert [(one["reason"], one["recorded_late"], one["backdated"]) for one in (then, now)] == [
        ("authorized", True, True),
        ("authorized", False, True),
    ]
    assert then["evidence_recorded_at"] == now["evidence_recorded_at"] > then["at"]
    assert then["summary"].endswith(
        "Nothing is recorded of the creator's ad authorization at that time. The code had not been shared with this "
        f"account. Some of the evidence was recorded later, the last at {minute(then['evidence_recorded_at'])}. Some "
        "of the evidence was recorded with an earlier effective time."
    )


def test_a_permission_that_was_off_is_told_from_one_of_which_nothing_is_recorded(world: World) -> None:
    code = world.generate(starts_at=days(-10))
    before = ask(world, code["video_id"], at=days(-8))
    world.permit(enabled=False, effective_at=days(-9))
    after = ask(world, code["video_id"], at=days(-8))

    unknown, off = "Nothing is recorded of the creator's ad authorization", "The creator's ad authorization was off."
    assert [
        (one["permission_enabled"], unknown in one["summary"], off in one["summary"]) for one in (before, after)
    ] == [
        (False, True, False),
        (False, False, True),
    ]


def test_whether_a_code_was_shared_is_not_known_until_somebody_says_whose_the_account_is(world: World) -> None:
    code = world.generate(starts_at=days(-10))
    world.permit(effective_at=days(-10))
    share = {"brand_id": "acme", "channel": "dm", "effective_at": days(-9)}
    shared = told(world.client.post(f"/v1/codes/{code['code_id']}/shares", json=share), 201)
    redemption = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT, "effective_at": days(-5)}
    redeemed = told(world.client.post("/v1/redemptions", json=redemption), 201)
    before = ask(world, code["video_id"])

    def name(brand_id: str, since: float) -> int:
        body = {"brand_id": brand_id, "effective_at": days(since)}
        return int(told(world.client.put(f"/v1/advertisers/{OWN_ACCOUNT}", json=body), 200)["position"])

    assert before["shared"] is None
    assert shared["position"] in before["evidence"]
    assert "Whether the code had been shared with this account is not known." in before["summary"]
    name("acme", -4)
    assert ask(world, code["video_id"])["shared"] is None, "that was after the redemption"
    named = name("acme", -6)
    after = ask(world, code["video_id"])
    assert (after["shared"], after["evidence"]) == (True, [*before["evidence"], named])
    assert ask(world, code["video_id"], as_of=redeemed["position"])["shared"] is None
    name("zeta", -5.5)
    assert ask(world, code["video_id"])["shared"] is False


def test_a_code_whose_start_nobody_stated_has_not_started_before_anything_is_known_of_it(world: World) -> None:
    code = world.generate(secret="#only/its+end+is+known=", expires_at=days(20))
    before, after = ask(world, code["video_id"], at=days(-1)), ask(world, code["video_id"])
    assert [(one["reason"], one["start_stated"]) for one in (before, after)] == [
        ("not_started", False),
        ("not_redeemed", False),
    ]
    assert "Nobody stated when the code's window began." in before["summary"]


def test_of_a_code_and_its_successor_the_successor_answers_where_both_authorize(world: World) -> None:
    old = world.generate()
    world.redeem(old)
    new = world.generate(video_id=old["video_id"], secret="#its/successor+0123456789", supersedes=old["code_id"])
    assert ask(world, old["video_id"])["code_id"] == old["code_id"], "only that one was redeemed"
    world.redeem(new)
    assert ask(world, old["video_id"])["code_id"] == new["code_id"]


def test_a_brand_is_told_nothing_of_the_evidence_of_others_codes(world: World) -> None:
    code = world.generate(starts_at=days(-10))
    world.redeem(code, OTHER_ACCOUNT)
    asked = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": world.head()}
    answer = told(world.brand().get("/v1/authorizations", params=asked), 200)
    hidden = ("code_id", "creator_id", "starts_at", "start_stated", "expires_at", "evidence_recorded_at")
    assert (answer["reason"], answer["evidence"]) == ("not_redeemed", [])
    assert {answer[name] for name in (*hidden, "recorded_late", "backdated")} == {None}
    assert code["expires_at"][:10] not in answer["summary"]


def test_codes_of_one_video_from_different_creators_are_warned_of_and_named_to_who_may_read_them(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    assert ask(world, code["video_id"])["warnings"] == []
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    other = world.generate(OTHER_CREATOR, video_id=code["video_id"])

    asked = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": world.head()}
    (unnamed,) = told(world.brand().get("/v1/authorizations", params=asked), 200)["warnings"]
    (named,) = ask(world, code["video_id"])["warnings"]

    assert named == (
        f"Codes of this video are recorded from different creators: {OTHER_CREATOR}, {OWN_CREATOR}. "
        "Check whose video it is."
    )
    assert unnamed == "Codes of this video are recorded from different creators. Check whose video it is."
    assert ask(world, code["video_id"], as_of=other["position"] - 1)["warnings"] == []
