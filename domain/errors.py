"""Every way in which a command can be refused.

    Refused                       a rule refuses the command; `code` is stable, `detail` is for people
    ├── Unknown                   there is no such code, campaign or creator in this ledger
    ├── StaleVersion              the caller decided on an older version than the current one
    ├── Malformed                 two values of the request contradict each other
    └── NotAllowed                the actor's role or subjects do not allow the command

`REFUSALS` lists the rules' refusals. The order inside each command is the order of precedence: the first that applies
is the answer. HTTP statuses belong to the API and are in its own table.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

RefusalCode = Literal[
    "creator_unknown",
    "creator_erased",
    "permission_disabled",
    "terms_not_accepted",
    "start_unknown",
    "later_extension",
    "duration_not_allowed",
    "secret_unknown",
    "secret_known",
    "secret_exists",
    "other_creator",
    "other_video",
    "video_of_other_creator",
    "live_code_exists",
    "code_revoked",
    "code_superseded",
    "code_not_started",
    "code_expired",
    "window_not_longer",
    "not_redeemed_by_advertiser",
    "campaign_exists_differently",
    "campaign_outside_window",
    "creative_locked",
    "campaign_running",
    "effective_too_early",
]

REFUSALS: Final[dict[str, tuple[RefusalCode, ...]]] = {
    "permission": ("creator_erased",),
    "advertiser": (),
    "bind": ("creator_erased",),
    "generate": (
        "creator_unknown",
        "creator_erased",
        "permission_disabled",
        "terms_not_accepted",
        "duration_not_allowed",
        "secret_exists",
        "other_creator",
        "other_video",
        "code_revoked",
        "code_expired",
        "code_superseded",
        "video_of_other_creator",
        "live_code_exists",
    ),
    "attach": ("creator_erased", "secret_known", "secret_exists"),
    "extend": (
        "creator_erased",
        "permission_disabled",
        "code_revoked",
        "code_superseded",
        "start_unknown",
        "later_extension",
        "duration_not_allowed",
        "code_expired",
        "video_of_other_creator",
        "live_code_exists",
        "window_not_longer",
    ),
    "share": ("creator_erased", "permission_disabled", "code_revoked", "code_expired", "code_superseded"),
    "redeem": ("other_video", "code_revoked", "code_not_started", "code_expired", "code_superseded"),
    "launch": (
        "code_revoked",
        "code_not_started",
        "code_expired",
        "not_redeemed_by_advertiser",
        "campaign_exists_differently",
        "campaign_outside_window",
        "creative_locked",
    ),
    "end": (),
    "revoke": ("campaign_running",),
    "reveal": ("creator_erased", "secret_unknown"),
    "note": ("creator_erased",),
    "rights": ("creator_erased",),
    "erase": (),
}

# What a person reads when a rule says no: what happened, why, and what to do about it.
SENTENCES: Final[dict[RefusalCode, str]] = {
    "creator_unknown": "This creator is unknown. Switch their ad authorization on first.",
    "creator_erased": (
        "This creator was erased. Their sealed data can no longer be read, and nothing new can be recorded "
        "for them. Their codes can still be redeemed, revoked and read. If the creator returns, use a new "
        "creator_id."
    ),
    "permission_disabled": (
        "The creator's ad authorization is off, so their codes cannot be generated, extended or shared. "
        "Switch ad authorization on first."
    ),
    "terms_not_accepted": (
        "The creator has not accepted TikTok's advertising terms. Send the version that the creator accepted "
        "as terms_version."
    ),
    "start_unknown": "The start of this code's window is unknown, so a number of days is ambiguous. Send expires_at.",
    "later_extension": (
        "An extension that took effect later is already recorded, so a number of days is ambiguous. Send expires_at."
    ),
    "duration_not_allowed": "This window length is not allowed.",
    "secret_unknown": (
        "The secret of this code is not known: the code was recorded without it. If you have it, attach it first."
    ),
    "secret_known": (
        "The secret of this code is recorded already, and a secret is never replaced. If it is wrong, say so in a note."
    ),
    "secret_exists": "A code with this secret is already recorded. Look it up instead of recording it again.",
    "other_creator": "The code to be superseded belongs to another creator. Name a code of this creator.",
    "other_video": "The code is for another video. Use the code of the video that you mean.",
    "video_of_other_creator": (
        "An operator bound this video to another creator, so codes for it can be generated or extended only for that "
        "creator. If the video is yours, ask an operator to correct the binding."
    ),
    "live_code_exists": (
        "Another code for this video is valid during a part of that time. A video can have only one code at a time. "
        "Use that code, or revoke it first."
    ),
    "code_revoked": "The code was revoked. This is final. Ask the creator for a new code.",
    "code_superseded": "Another code has replaced this one. Use the new code.",
    "code_not_started": "The code's window has not started yet. Try again after it starts.",
    "code_expired": "The code's window has ended. Ask the creator to extend it or to generate a new code.",
    "window_not_longer": (
        "The new end must be later than the end at the effective time, and later than the effective time. "
        "Extending never shortens a window."
    ),
    "not_redeemed_by_advertiser": "This advertiser has not redeemed the code. Redeem it first.",
    "campaign_exists_differently": (
        "The code already has a campaign with this id and different details. Use another campaign_id."
    ),
    "campaign_outside_window": "The campaign starts outside the code's window. Choose a start inside the window.",
    "creative_locked": (
        "A campaign is running on this code, so the caption and the creative cannot change. End the "
        "campaign, or use the recorded caption and creative."
    ),
    "effective_too_early": "The effective_at is before the code began. Send a later effective_at.",
    "campaign_running": (
        "A campaign is running on this code. End the campaign first. An operator can force the revocation "
        "and must give a reason."
    ),
}


class Refused(Exception):
    """A rule refused the command. Nothing has changed, except what the rule itself records."""

    # Codes after which the same request can succeed later without a change.
    RETRYABLE: Final = frozenset({"code_not_started"})

    def __init__(self, code: str, detail: str | None = None, *, conflict_id: str | None = None) -> None:
        """Refuse with a stable code. `conflict_id` names what is in the way, if there is such a thing."""
        self.code = code
        self.detail = detail or SENTENCES[code]  # type: ignore[index] # a subclass gives its own detail
        self.conflict_id = conflict_id
        super().__init__(self.detail)

    @property
    def retryable(self) -> bool:
        """Whether the same request can succeed later."""
        return self.code in self.RETRYABLE


class Unknown(Refused):
    """There is no such thing in this ledger."""

    def __init__(self, what: str) -> None:
        """Name the kind of thing, never the id or secret that was requested."""
        super().__init__(f"{what}_unknown", f"There is no such {what} in this ledger.")


class StaleVersion(Refused):
    """The code, permission or account changed since the caller read it."""

    def __init__(self, current: int) -> None:
        """Keep the current version, so that the caller can decide again."""
        super().__init__(
            "stale_version",
            f"It has changed. Its version is now {current}. Read it again before you retry.",
        )
        self.current = current


class Malformed(Refused):
    """Two values of the request contradict each other."""

    def __init__(self, pointer: str, problem: str) -> None:
        """Name the field, as a JSON pointer, and say what is wrong with it."""
        super().__init__("malformed_body", problem)
        self.pointer = pointer


class NotAllowed(Refused):
    """The actor's role or subjects do not allow the command."""

    def __init__(self, detail: str) -> None:
        """Say what the key allows, never what was requested."""
        super().__init__("not_allowed", detail)


assert set(SENTENCES) == set(get_args(RefusalCode))  # noqa: S101 - a refusal without a sentence must not start
