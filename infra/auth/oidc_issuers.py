"""Issuers of OpenID Connect tokens, as configured: how claims map to a ledger, a role and subjects.

It is apart from `oidc`, which verifies tokens, because the settings load it at every start of the program.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from domain.errors import NotAllowed
from domain.pasted import Unusable, canonical_creator_id
from domain.values import ID_PATTERN, Role
from infra.auth.api_keys import MAX_SUBJECTS, Subjects, subjects_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

MAX_ISSUERS: Final = 20
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_ID: Final = re.compile(ID_PATTERN)
_Text = Annotated[str, Field(min_length=1, max_length=512)]
_Scope = Annotated[str, Field(pattern=r"^[!#-\[\]-~]{1,128}$")]
_Ledger = Annotated[str, Field(pattern=ID_PATTERN)]


def address_problem(url: str) -> str | None:
    """Say why the keys of an issuer are not fetched from an address; None where they are."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "This is not a URL."
    if not host or parts.username is not None or parts.fragment:
        return "A URL must have a host, and neither a user nor a fragment."
    if parts.scheme != "https" and not (parts.scheme == "http" and host in LOOPBACK):
        return "A URL must start with https://. http:// is allowed only for this machine."
    return None


def advertised_address_problem(issuer: str, url: str) -> str | None:
    """Say why an address that an issuer advertises, and not the settings, is not used; None where it is."""
    problem = address_problem(url)
    if problem is None and urlsplit(url).hostname in LOOPBACK and urlsplit(issuer).hostname not in LOOPBACK:
        # Otherwise an issuer could make us send requests to services that only this machine can reach.
        return "The keys of a remote issuer must not be on this machine."
    return problem


class Issuer(BaseModel):
    """One configured issuer of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # Exactly as `iss` in its tokens.
    issuer: _Text
    # One of these must be in `aud`.
    audience: _Text | tuple[_Text, ...]
    # Absent: the address in the issuer's /.well-known/openid-configuration.
    jwks_uri: _Text | None = None
    # One ledger for all its tokens, or a ledger for each value of a claim.
    ledger: _Ledger | None = None
    ledger_claim: _Text | None = None
    ledgers: dict[str, _Ledger] = {}
    # One role for all its tokens, or a role for each value of a claim; where several match, the first listed here.
    role: Role | None = None
    role_claim: _Text | None = None
    roles: dict[str, Role] = {}
    # The claims that name whom creators and brands act for.
    creator_ids_claim: _Text | None = None
    brand_ids_claim: _Text | None = None
    advertiser_ids_claim: _Text | None = None
    # The console as a client of the issuer; absent: people sign in with keys.
    client_id: _Text | None = None
    # Absent: the console is a public client, which proves with PKCE alone that it began.
    client_secret: SecretStr | None = None
    scopes: tuple[_Scope, ...] = ()
    # What the page to sign in calls it.
    name: _Text | None = None

    @field_validator("issuer", "jwks_uri")
    @classmethod
    def _check_address(cls, url: str | None) -> str | None:
        problem = None if url is None else address_problem(url)
        if problem is not None:
            raise ValueError(problem)
        return url

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not self.audience:
            raise ValueError("It needs an audience.")
        if self.client_id is None and (self.client_secret is not None or self.scopes):
            raise ValueError("Only a client has a client_secret or scopes: give its client_id too.")
        for one, claim, several in (
            ("ledger", self.ledger_claim, self.ledgers),
            ("role", self.role_claim, self.roles),
        ):
            by_claim = claim is not None and bool(several)
            if (getattr(self, one) is None) is not by_claim or bool(several) is not (claim is not None):
                raise ValueError(f"It needs either {one}, or {one}_claim and {one}s together.")
        roles = set(self.roles.values()) | {self.role}
        if "creator" in roles and self.creator_ids_claim is None:
            raise ValueError("The role creator needs creator_ids_claim.")
        if "brand" in roles and self.brand_ids_claim is None and self.advertiser_ids_claim is None:
            raise ValueError("The role brand needs brand_ids_claim, advertiser_ids_claim or both.")
        return self

    def grants(self) -> list[tuple[str, str, list[str]]]:
        """Return each ledger that its tokens can open, with the issuer before it and the roles that they can give."""
        ledgers = {self.ledger} if self.ledger is not None else set(self.ledgers.values())
        roles = {self.role} if self.role is not None else set(self.roles.values())
        return [(self.issuer, ledger, sorted(roles)) for ledger in sorted(ledgers)]

    def ledger_of(self, claims: Mapping[str, Any]) -> str:
        """Return the name of the ledger that a token opens.

        Raises:
            NotAllowed: the claims name none.

        """
        found = self.ledger or _first(self.ledgers, _texts(claims, self.ledger_claim))
        if found is None:
            raise NotAllowed("The token's claims do not name a ledger of this service.")
        return found

    def role_of(self, claims: Mapping[str, Any]) -> Role:
        """Return the role that a token's bearer acts in.

        Raises:
            NotAllowed: the claims give none.

        """
        found = self.role or _first(self.roles, _texts(claims, self.role_claim))
        if found is None:
            raise NotAllowed("The token's claims do not give a role.")
        return found

    def subjects_of(self, claims: Mapping[str, Any], role: Role) -> Subjects:
        """Return whom a token's bearer acts for in a role.

        Raises:
            NotAllowed: the claims name nobody though the role needs somebody, too many, or something that is no id.

        """
        subjects = Subjects()
        if role == "creator":
            subjects = Subjects(creator_ids=_creators(_ids(claims, self.creator_ids_claim)))
        elif role == "brand":
            subjects = Subjects(
                brand_ids=_ids(claims, self.brand_ids_claim), advertiser_ids=_ids(claims, self.advertiser_ids_claim)
            )
        if subjects_problem(role, subjects) is not None:
            raise NotAllowed("The token's claims name no subjects for this role.")
        return subjects


def _first(meanings: Mapping[str, T], values: list[str]) -> T | None:
    return next((meaning for value, meaning in meanings.items() if value in values), None)


def _ids(claims: Mapping[str, Any], claim: str | None) -> frozenset[str]:
    ids = frozenset(_texts(claims, claim))
    if len(ids) > MAX_SUBJECTS or not all(_ID.fullmatch(id_) for id_ in ids):
        raise NotAllowed("The token's claims name too many subjects, or subjects with invalid ids.")
    return ids


def _creators(ids: frozenset[str]) -> frozenset[str]:
    try:
        return frozenset(map(canonical_creator_id, ids))
    except Unusable:  # nothing but @
        raise NotAllowed("The token's claims name subjects with invalid ids.") from None


def _texts(claims: Mapping[str, Any], claim: str | None) -> list[str]:
    """Return a claim's values, of a text or a list of texts; `a.b` also finds `b` nested in the object `a`."""
    found: Any = None
    if claim is not None:
        found = claims.get(claim)
        if found is None:
            found = claims
            for name in claim.split("."):
                found = found.get(name) if isinstance(found, dict) else None
    values = found if isinstance(found, list) else [found]
    return [value for value in values if isinstance(value, str)]
