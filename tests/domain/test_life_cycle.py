"""The life cycle as one table: what every command comes to in every state.

An answer names the events that are recorded, in order, and then the refusal, if there is one. `nothing` is a repeat, or
a command that finds nothing to do. The states and the commands are those of `tests.given`.
"""

from datetime import timedelta
from uuid import UUID

import pytest

from domain.values import Sealed
from tests import given
from tests.given import CODE, NOW, OTHER_CODE, OTHER_SECRET

STATES = {
    "unknown": given.unknown,
    "permitted": given.permitted,
    "generated": given.generated,
    "without secret": given.without_secret,
    "not started": given.not_started,
    "shared": given.shared,
    "redeemed": given.redeemed,
    "running": given.running,
    "campaign ended": given.campaign_ended,
    "approaching": given.approaching,
    "window over": given.window_over,
    "cut off": given.cut_off,
    "expired": given.expired,
    "revived": given.revived,
    "superseded": given.superseded,
    "revoked": given.revoked,
    "permission off": given.permission_off,
    "bound": given.bound,
    "bound away": given.bound_elsewhere,
    "erased": given.erased,
}
COMMANDS = {
    "permit": given.permission(enabled=True),
    "forbid": given.permission(enabled=False),
    # A second code for the same video.
    "generate": given.generate(OTHER_CODE, secret=OTHER_SECRET),
    # One that takes the first one's place.
    "supersede": given.generate(UUID(int=3), secret=Sealed("#third/secret+of-a-code=E5F6"), supersedes=CODE),
    "attach": given.attach(),
    "extend": given.extend(expires_at=NOW + timedelta(days=90)),
    "share": given.share(),
    "redeem": given.redeem(),
    # By an account that has not entered the code yet.
    "redeem anew": given.redeem(advertiser_id="advertiser-2"),
    "launch": given.launch(),
    "end": given.end(),
    "revoke": given.revoke(),
    "force revoke": given.revoke(force=True),
    "reveal": given.reveal(),
    "note": given.note(),
    "rights": given.rights(NOW + timedelta(days=20)),
    "clock": given.record_due(),
    "erase": given.erase(),
    "name account": given.advertiser(),
    "bind": given.bind(),
    # To another creator than the code's.
    "bind away": given.bind("creator-2"),
    "release": given.bind(None),
}
TABLE = """
state          | command      | answer

unknown        | permit       | PermissionEnabled
unknown        | forbid       | nothing
unknown        | generate     | creator_unknown
unknown        | supersede    | code_unknown
unknown        | attach       | code_unknown
unknown        | extend       | code_unknown
unknown        | share        | code_unknown
unknown        | redeem       | code_unknown
unknown        | redeem anew  | code_unknown
unknown        | launch       | code_unknown
unknown        | end          | code_unknown
unknown        | revoke       | code_unknown
unknown        | force revoke | code_unknown
unknown        | reveal       | code_unknown
unknown        | note         | code_unknown
unknown        | rights       | code_unknown
unknown        | clock        | code_unknown
unknown        | erase        | creator_unknown
unknown        | name account | AdvertiserNamed
unknown        | bind         | VideoBound
unknown        | bind away    | VideoBound
unknown        | release      | nothing

permitted      | permit       | nothing
permitted      | forbid       | PermissionDisabled
permitted      | generate     | CodeGenerated
permitted      | supersede    | code_unknown
permitted      | attach       | code_unknown
permitted      | extend       | code_unknown
permitted      | share        | code_unknown
permitted      | redeem       | code_unknown
permitted      | redeem anew  | code_unknown
permitted      | launch       | code_unknown
permitted      | end          | code_unknown
permitted      | revoke       | code_unknown
permitted      | force revoke | code_unknown
permitted      | reveal       | code_unknown
permitted      | note         | code_unknown
permitted      | rights       | code_unknown
permitted      | clock        | code_unknown
permitted      | erase        | CreatorErased
permitted      | name account | AdvertiserNamed
permitted      | bind         | VideoBound
permitted      | bind away    | VideoBound
permitted      | release      | nothing

generated      | permit       | nothing
generated      | forbid       | PermissionDisabled
generated      | generate     | live_code_exists
generated      | supersede    | Superseded CodeGenerated
generated      | attach       | nothing
generated      | extend       | Extended
generated      | share        | Shared
generated      | redeem       | Redeemed
generated      | redeem anew  | Redeemed
generated      | launch       | not_redeemed_by_advertiser
generated      | end          | campaign_unknown
generated      | revoke       | Revoked
generated      | force revoke | Revoked
generated      | reveal       | CodeRevealed
generated      | note         | NoteAdded
generated      | rights       | UsageRightsStated
generated      | clock        | nothing
generated      | erase        | CreatorErased
generated      | name account | AdvertiserNamed
generated      | bind         | VideoBound
generated      | bind away    | VideoBound
generated      | release      | nothing

without secret | permit       | nothing
without secret | forbid       | PermissionDisabled
without secret | generate     | live_code_exists
without secret | supersede    | Superseded CodeGenerated
without secret | attach       | CodeSecretAttached
without secret | extend       | Extended
without secret | share        | Shared
without secret | redeem       | code_unknown
without secret | redeem anew  | code_unknown
without secret | launch       | not_redeemed_by_advertiser
without secret | end          | campaign_unknown
without secret | revoke       | Revoked
without secret | force revoke | Revoked
without secret | reveal       | secret_unknown
without secret | note         | NoteAdded
without secret | rights       | UsageRightsStated
without secret | clock        | nothing
without secret | erase        | CreatorErased
without secret | name account | AdvertiserNamed
without secret | bind         | VideoBound
without secret | bind away    | VideoBound
without secret | release      | nothing

not started    | permit       | nothing
not started    | forbid       | PermissionDisabled
not started    | generate     | live_code_exists
not started    | supersede    | Superseded CodeGenerated
not started    | attach       | nothing
not started    | extend       | Extended
not started    | share        | Shared
not started    | redeem       | RedemptionRefused code_not_started
not started    | redeem anew  | RedemptionRefused code_not_started
not started    | launch       | code_not_started
not started    | end          | campaign_unknown
not started    | revoke       | Revoked
not started    | force revoke | Revoked
not started    | reveal       | CodeRevealed
not started    | note         | NoteAdded
not started    | rights       | UsageRightsStated
not started    | clock        | nothing
not started    | erase        | CreatorErased
not started    | name account | AdvertiserNamed
not started    | bind         | VideoBound
not started    | bind away    | VideoBound
not started    | release      | nothing

shared         | permit       | nothing
shared         | forbid       | PermissionDisabled
shared         | generate     | live_code_exists
shared         | supersede    | Superseded CodeGenerated
shared         | attach       | nothing
shared         | extend       | Extended
shared         | share        | nothing
shared         | redeem       | Redeemed
shared         | redeem anew  | Redeemed
shared         | launch       | not_redeemed_by_advertiser
shared         | end          | campaign_unknown
shared         | revoke       | Revoked
shared         | force revoke | Revoked
shared         | reveal       | CodeRevealed
shared         | note         | NoteAdded
shared         | rights       | UsageRightsStated
shared         | clock        | nothing
shared         | erase        | CreatorErased
shared         | name account | AdvertiserNamed
shared         | bind         | VideoBound
shared         | bind away    | VideoBound
shared         | release      | nothing

redeemed       | permit       | nothing
redeemed       | forbid       | PermissionDisabled
redeemed       | generate     | live_code_exists
redeemed       | supersede    | Superseded CodeGenerated
redeemed       | attach       | nothing
redeemed       | extend       | Extended
redeemed       | share        | nothing
redeemed       | redeem       | nothing
redeemed       | redeem anew  | Redeemed
redeemed       | launch       | CampaignLaunched
redeemed       | end          | campaign_unknown
redeemed       | revoke       | Revoked
redeemed       | force revoke | Revoked
redeemed       | reveal       | CodeRevealed
redeemed       | note         | NoteAdded
redeemed       | rights       | UsageRightsStated
redeemed       | clock        | nothing
redeemed       | erase        | CreatorErased
redeemed       | name account | AdvertiserNamed
redeemed       | bind         | VideoBound
redeemed       | bind away    | VideoBound
redeemed       | release      | nothing

running        | permit       | nothing
running        | forbid       | PermissionDisabled
running        | generate     | live_code_exists
running        | supersede    | Superseded CodeGenerated
running        | attach       | nothing
running        | extend       | Extended
running        | share        | nothing
running        | redeem       | nothing
running        | redeem anew  | Redeemed
running        | launch       | nothing
running        | end          | CampaignEnded
running        | revoke       | campaign_running
running        | force revoke | CampaignEnded Revoked
running        | reveal       | CodeRevealed
running        | note         | NoteAdded
running        | rights       | UsageRightsStated
running        | clock        | nothing
running        | erase        | CreatorErased
running        | name account | AdvertiserNamed
running        | bind         | VideoBound
running        | bind away    | VideoBound
running        | release      | nothing

campaign ended | permit       | nothing
campaign ended | forbid       | PermissionDisabled
campaign ended | generate     | live_code_exists
campaign ended | supersede    | Superseded CodeGenerated
campaign ended | attach       | nothing
campaign ended | extend       | Extended
campaign ended | share        | nothing
campaign ended | redeem       | nothing
campaign ended | redeem anew  | Redeemed
campaign ended | launch       | nothing
campaign ended | end          | nothing
campaign ended | revoke       | Revoked
campaign ended | force revoke | Revoked
campaign ended | reveal       | CodeRevealed
campaign ended | note         | NoteAdded
campaign ended | rights       | UsageRightsStated
campaign ended | clock        | nothing
campaign ended | erase        | CreatorErased
campaign ended | name account | AdvertiserNamed
campaign ended | bind         | VideoBound
campaign ended | bind away    | VideoBound
campaign ended | release      | nothing

approaching    | permit       | nothing
approaching    | forbid       | PermissionDisabled
approaching    | generate     | live_code_exists
approaching    | supersede    | Superseded CodeGenerated
approaching    | attach       | nothing
approaching    | extend       | Extended
approaching    | share        | nothing
approaching    | redeem       | nothing
approaching    | redeem anew  | Redeemed
approaching    | launch       | CampaignLaunched
approaching    | end          | campaign_unknown
approaching    | revoke       | Revoked
approaching    | force revoke | Revoked
approaching    | reveal       | CodeRevealed
approaching    | note         | NoteAdded
approaching    | rights       | UsageRightsStated
approaching    | clock        | ExpiryApproaching
approaching    | erase        | CreatorErased
approaching    | name account | AdvertiserNamed
approaching    | bind         | VideoBound
approaching    | bind away    | VideoBound
approaching    | release      | nothing

window over    | permit       | nothing
window over    | forbid       | PermissionDisabled
window over    | generate     | CodeGenerated
window over    | supersede    | code_expired
window over    | attach       | nothing
window over    | extend       | Expired Extended
window over    | share        | code_expired
window over    | redeem       | RedemptionRefused code_expired
window over    | redeem anew  | RedemptionRefused code_expired
window over    | launch       | code_expired
window over    | end          | campaign_unknown
window over    | revoke       | Expired Revoked
window over    | force revoke | Expired Revoked
window over    | reveal       | CodeRevealed
window over    | note         | NoteAdded
window over    | rights       | UsageRightsStated
window over    | clock        | Expired
window over    | erase        | CreatorErased
window over    | name account | AdvertiserNamed
window over    | bind         | VideoBound
window over    | bind away    | VideoBound
window over    | release      | nothing

cut off        | permit       | nothing
cut off        | forbid       | PermissionDisabled
cut off        | generate     | CodeGenerated
cut off        | supersede    | code_expired
cut off        | attach       | nothing
cut off        | extend       | CampaignEnded Expired Extended
cut off        | share        | code_expired
cut off        | redeem       | RedemptionRefused code_expired
cut off        | redeem anew  | RedemptionRefused code_expired
cut off        | launch       | code_expired
cut off        | end          | nothing
cut off        | revoke       | CampaignEnded Expired Revoked
cut off        | force revoke | CampaignEnded Expired Revoked
cut off        | reveal       | CodeRevealed
cut off        | note         | NoteAdded
cut off        | rights       | UsageRightsStated
cut off        | clock        | CampaignEnded Expired
cut off        | erase        | CreatorErased
cut off        | name account | AdvertiserNamed
cut off        | bind         | VideoBound
cut off        | bind away    | VideoBound
cut off        | release      | nothing

expired        | permit       | nothing
expired        | forbid       | PermissionDisabled
expired        | generate     | CodeGenerated
expired        | supersede    | code_expired
expired        | attach       | nothing
expired        | extend       | Extended
expired        | share        | code_expired
expired        | redeem       | RedemptionRefused code_expired
expired        | redeem anew  | RedemptionRefused code_expired
expired        | launch       | code_expired
expired        | end          | nothing
expired        | revoke       | Revoked
expired        | force revoke | Revoked
expired        | reveal       | CodeRevealed
expired        | note         | NoteAdded
expired        | rights       | UsageRightsStated
expired        | clock        | nothing
expired        | erase        | CreatorErased
expired        | name account | AdvertiserNamed
expired        | bind         | VideoBound
expired        | bind away    | VideoBound
expired        | release      | nothing

revived        | permit       | nothing
revived        | forbid       | PermissionDisabled
revived        | generate     | live_code_exists
revived        | supersede    | Superseded CodeGenerated
revived        | attach       | nothing
revived        | extend       | Extended
revived        | share        | nothing
revived        | redeem       | nothing
revived        | redeem anew  | Redeemed
revived        | launch       | nothing
revived        | end          | nothing
revived        | revoke       | Revoked
revived        | force revoke | Revoked
revived        | reveal       | CodeRevealed
revived        | note         | NoteAdded
revived        | rights       | UsageRightsStated
revived        | clock        | nothing
revived        | erase        | CreatorErased
revived        | name account | AdvertiserNamed
revived        | bind         | VideoBound
revived        | bind away    | VideoBound
revived        | release      | nothing

superseded     | permit       | nothing
superseded     | forbid       | PermissionDisabled
superseded     | generate     | secret_exists
superseded     | supersede    | code_superseded
superseded     | attach       | nothing
superseded     | extend       | code_superseded
superseded     | share        | code_superseded
superseded     | redeem       | nothing
superseded     | redeem anew  | RedemptionRefused code_superseded
superseded     | launch       | CampaignLaunched
superseded     | end          | campaign_unknown
superseded     | revoke       | Revoked
superseded     | force revoke | Revoked
superseded     | reveal       | CodeRevealed
superseded     | note         | NoteAdded
superseded     | rights       | UsageRightsStated
superseded     | clock        | nothing
superseded     | erase        | CreatorErased
superseded     | name account | AdvertiserNamed
superseded     | bind         | VideoBound
superseded     | bind away    | VideoBound
superseded     | release      | nothing

revoked        | permit       | nothing
revoked        | forbid       | PermissionDisabled
revoked        | generate     | CodeGenerated
revoked        | supersede    | code_revoked
revoked        | attach       | nothing
revoked        | extend       | code_revoked
revoked        | share        | code_revoked
revoked        | redeem       | RedemptionRefused code_revoked
revoked        | redeem anew  | RedemptionRefused code_revoked
revoked        | launch       | code_revoked
revoked        | end          | campaign_unknown
revoked        | revoke       | nothing
revoked        | force revoke | nothing
revoked        | reveal       | CodeRevealed
revoked        | note         | NoteAdded
revoked        | rights       | UsageRightsStated
revoked        | clock        | nothing
revoked        | erase        | CreatorErased
revoked        | name account | AdvertiserNamed
revoked        | bind         | VideoBound
revoked        | bind away    | VideoBound
revoked        | release      | nothing

permission off | permit       | PermissionEnabled
permission off | forbid       | nothing
permission off | generate     | permission_disabled
permission off | supersede    | permission_disabled
permission off | attach       | nothing
permission off | extend       | permission_disabled
permission off | share        | permission_disabled
permission off | redeem       | nothing
permission off | redeem anew  | Redeemed
permission off | launch       | CampaignLaunched
permission off | end          | campaign_unknown
permission off | revoke       | Revoked
permission off | force revoke | Revoked
permission off | reveal       | CodeRevealed
permission off | note         | NoteAdded
permission off | rights       | UsageRightsStated
permission off | clock        | nothing
permission off | erase        | CreatorErased
permission off | name account | AdvertiserNamed
permission off | bind         | VideoBound
permission off | bind away    | VideoBound
permission off | release      | nothing

bound          | permit       | nothing
bound          | forbid       | PermissionDisabled
bound          | generate     | live_code_exists
bound          | supersede    | Superseded CodeGenerated
bound          | attach       | nothing
bound          | extend       | Extended
bound          | share        | Shared
bound          | redeem       | Redeemed
bound          | redeem anew  | Redeemed
bound          | launch       | not_redeemed_by_advertiser
bound          | end          | campaign_unknown
bound          | revoke       | Revoked
bound          | force revoke | Revoked
bound          | reveal       | CodeRevealed
bound          | note         | NoteAdded
bound          | rights       | UsageRightsStated
bound          | clock        | nothing
bound          | erase        | CreatorErased
bound          | name account | AdvertiserNamed
bound          | bind         | nothing
bound          | bind away    | VideoBound
bound          | release      | VideoReleased

bound away     | permit       | nothing
bound away     | forbid       | PermissionDisabled
bound away     | generate     | video_of_other_creator
bound away     | supersede    | video_of_other_creator
bound away     | attach       | nothing
bound away     | extend       | video_of_other_creator
bound away     | share        | Shared
bound away     | redeem       | Redeemed
bound away     | redeem anew  | Redeemed
bound away     | launch       | not_redeemed_by_advertiser
bound away     | end          | campaign_unknown
bound away     | revoke       | Revoked
bound away     | force revoke | Revoked
bound away     | reveal       | CodeRevealed
bound away     | note         | NoteAdded
bound away     | rights       | UsageRightsStated
bound away     | clock        | nothing
bound away     | erase        | CreatorErased
bound away     | name account | AdvertiserNamed
bound away     | bind         | VideoBound
bound away     | bind away    | nothing
bound away     | release      | VideoReleased

erased         | permit       | creator_erased
erased         | forbid       | nothing
erased         | generate     | creator_erased
erased         | supersede    | creator_erased
erased         | attach       | creator_erased
erased         | extend       | creator_erased
erased         | share        | creator_erased
erased         | redeem       | nothing
erased         | redeem anew  | Redeemed
erased         | launch       | CampaignLaunched
erased         | end          | campaign_unknown
erased         | revoke       | Revoked
erased         | force revoke | Revoked
erased         | reveal       | creator_erased
erased         | note         | creator_erased
erased         | rights       | creator_erased
erased         | clock        | nothing
erased         | erase        | nothing
erased         | name account | AdvertiserNamed
erased         | bind         | creator_erased
erased         | bind away    | VideoBound
erased         | release      | nothing
"""
ROWS = [tuple(cell.strip() for cell in line.split("|")) for line in TABLE.splitlines() if line][1:]


@pytest.mark.parametrize(("state", "command", "answer"), ROWS)
def test_the_answer_is_what_the_table_says(state: str, command: str, answer: str) -> None:
    assert STATES[state]().outcome(COMMANDS[command]) == answer


def test_the_table_has_one_row_for_every_command_in_every_state() -> None:
    assert [row[:2] for row in ROWS] == [(state, command) for state in STATES for command in COMMANDS]
