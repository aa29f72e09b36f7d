"""Who calls, and what they may: keys, roles, subjects, and how much.

A route's signature names its roles: `caller: Annotated[Caller, allow("creator", "operator", "admin")]`. `Route` reads
them from there and lets nobody else in, before it reads the body.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from fastapi import Depends, Request

from api.http import headers
from api.http.dependencies import Services, limits_of, services_of
from api.http.problems import too_many, unauthenticated
from api.http.protocol import own
from domain.errors import NotAllowed
from domain.pasted import creator_name
from domain.values import Actor, Role
from infra.auth.access_log import AccessContext

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api.http.middleware import Exchange
    from domain.code import Code
    from infra.auth.api_keys import ApiKey
    from infra.eventstore.histories import History

REQUEST_HASH_BYTES: Final = 16
# Those who act for everyone in their ledger.
ACTS_FOR_ALL: Final[frozenset[Role]] = frozenset({"admin", "operator"})
# Those who read what concerns their subjects alone.
LIMITED_TO_SUBJECTS: Final[frozenset[Role]] = frozenset({"creator", "brand"})


@dataclass(slots=True)
class Caller:
    """A request that was let in: whose key it bears, and what it may touch.

    Nobody changes it; it is not frozen only because each request makes one, and frozen ones take three times as long.
    """

    key: ApiKey
    services: Services
    request: Request
    presented: str = field(repr=False)
    history: History

    @property
    def ledger_id(self) -> int:
        """The only ledger that this request reaches."""
        return self.key.ledger_id

    @property
    def role(self) -> Role:
        """The key's role."""
        return self.key.role

    def actor(self, subject: str | None) -> Actor:
        """Return who is recorded as having done it; `subject` is the creator or advertiser that they act for."""
        key = self.key
        return Actor(key.actor_id, key.role, None if key.role in ACTS_FOR_ALL else subject)

    def require_history(self, position: int | None, history: UUID | None) -> None:
        """Refuse a position of another history, or one that could be, because the request says nothing of it.

        Args:
            position: where the caller wants to go on from; None for nowhere.
            history: the history that the query names beside it; None if it names none.

        Raises:
            HistoryChanged: the history is another, or is not named and would have to be.

        """
        if history is not None:
            self.history.require(history)
        elif position is not None and headers.ledger_history(self.request) is None:
            self.history.require_common(position)

    @property
    def access_context(self) -> AccessContext:
        """Whose request it is, as the access log and the administration of keys record it."""
        scope = self.request.scope
        route = f"{scope['method']} {scope['route'].path}"
        return AccessContext(self.key.key_id, self.role, route, scope["request_id"])

    def keep_request_hash(self, sent: object) -> None:
        """Keep what tells a repeated request from another one with the same Idempotency-Key; `sent` is its JSON.

        It is keyed, so that nobody can test a guess at a secret or a note against what is kept of the request; with
        what stays the same while the key's text is changed, or its bearer gets another token.
        """
        request = self.request
        scope = request.scope
        line = f"{scope['method']}\n{scope['path']}\n{headers.text(request, b'if-match')}\n"
        hashed = line.encode("utf-8", "surrogatepass") + orjson.dumps(sent, option=orjson.OPT_SORT_KEYS)
        digest = hashlib.blake2b(hashed, digest_size=REQUEST_HASH_BYTES, key=self.key.request_key).digest()
        scope["request_hash"] = digest

    @property
    def request_hash(self) -> bytes:
        """The hash of a request that has an Idempotency-Key."""
        kept: bytes = self.request.scope["request_hash"]
        return kept

    def act_for_creator(self, creator_id: str) -> None:
        """Raise `NotAllowed` where the key does not act for this creator, however their id is spelled."""
        if self.role == "creator" and creator_name(creator_id) not in self.key.subjects.creator_ids:
            raise NotAllowed("This key does not act for this creator.")

    def act_for_advertiser(self, advertiser_id: str) -> None:
        """Raise `NotAllowed` where the key does not act for this advertiser account."""
        if self.role == "brand" and advertiser_id not in self.key.subjects.advertiser_ids:
            raise NotAllowed("This key does not act for this advertiser account.")

    def check_filters(self, *, creator_id: str | None, brand_id: str | None, advertiser_id: str | None) -> None:
        """Raise `NotAllowed` where a filter names others: what it lets through would tell with whom they deal."""
        if creator_id is not None:
            self.act_for_creator(creator_id)
        if advertiser_id is not None:
            self.act_for_advertiser(advertiser_id)
        if brand_id is not None and self.role == "brand" and brand_id not in self.key.subjects.brand_ids:
            raise NotAllowed("This key does not act for this brand.")

    def change_code(self, code: Code) -> None:
        """Raise `NotAllowed` where the key does not act for the creator of this code."""
        self.act_for_creator(code.creator_id)

    def read_code(self, code: Code) -> None:
        """Raise `NotAllowed` where the key may not read this code."""
        self.act_for_creator(code.creator_id)
        if self.role == "brand" and not self.is_party_to(
            {share.brand_id for share in code.shares},
            {share.advertiser_id for share in code.shares} | code.redemptions.keys(),
        ):
            raise NotAllowed(
                "This key can only read codes that were shared with its brands or redeemed by its advertiser accounts."
            )

    def is_party_to(self, brand_ids: Iterable[str | None], advertiser_ids: Iterable[str | None]) -> bool:
        """Tell whether a brand's key may see what names these brands and advertiser accounts."""
        ours = self.key.subjects
        return not ours.brand_ids.isdisjoint(brand_ids) or not ours.advertiser_ids.isdisjoint(advertiser_ids)


@dataclass(frozen=True, slots=True)
class Allowed:
    """The dependency that a route names its roles with, and by what else than a key it lets in."""

    roles: tuple[Role, ...]
    without_key: bool = False
    by_stream_token: bool = False

    async def __call__(self) -> None:
        """Stand in the signature; `Route` lets the caller in itself."""


def allow(*roles: Role, without_key: bool = False, by_stream_token: bool = False) -> Any:
    """Let keys of these roles in, and no others.

    Args:
        roles: the roles.
        without_key: whether a caller without one is answered, too; then the caller is None.
        by_stream_token: whether a stream token in the query can stand for the key that it was made with.

    """
    return Depends(Allowed(roles, without_key, by_stream_token), use_cache=False)


async def admit(request: Request, allowed: Allowed) -> Caller:
    """Let a request in whose key is valid, has not asked too much, and has one of the roles.

    Raises:
        Problem: there is no valid key, or it must wait.
        TokenRefused: what was presented is a token that cannot be trusted.
        NotAllowed: its role does not reach this far.
        HistoryChanged: it knows another history of the ledger.

    """
    scope = request.scope
    services = services_of(scope)
    presented = headers.bearer(request)
    if presented is None and allowed.by_stream_token and (text := request.query_params.get("token")) is not None:
        token = await services.stream_tokens.open(text)
        presented = None if token is None else token.presented
        scope["stream_token"] = token
    key = None if presented is None else await services.authenticator.authenticate(presented, services.now())
    if key is None or presented is None:
        raise unauthenticated(by_stream_token="stream_token" in scope)
    # For the record of a refusal: from here on it is known who is refused.
    scope["key"] = key
    exchange: Exchange = scope["exchange"]
    history = await services.histories.of(key.ledger_id)
    exchange.history = _spelled(history.history.int)
    requests = limits_of(scope).requests
    wait_s = requests.take_or_wait_s(key.key_id.int)
    if wait_s > 0:
        raise too_many("too_many_requests", wait_s, requests.policy)
    exchange.of_key(key)
    own(scope, key.ledger_id)
    if key.role not in allowed.roles:
        scope["refused_by_role"] = True
        raise NotAllowed(f"A key with the role {key.role} is not allowed to do this.")
    known = headers.ledger_history(request)
    if known is not None:
        history.require(known)
    return Caller(key, services, request, presented, history)


@lru_cache(maxsize=1_024)
def _spelled(number: int) -> bytes:
    """Return a UUID as a header has it."""
    return str(UUID(int=number)).encode()
