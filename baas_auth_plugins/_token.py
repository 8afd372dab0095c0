"""A token: parsed and validated once, frozen, and able to tell how far through its life it is.

A life is measured from the moment the token request was sent, on two clocks at once. The age is
the larger of the two, so neither a stepped wall clock nor a suspended machine extends a life.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, Self

from .exceptions import InvalidTokenResponseError

__all__ = ["SCOPE_TOKEN", "Instant", "State", "Token", "digest"]

_B64TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750 section 2.1
SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")  # RFC 6749 section 3.3


class Instant(NamedTuple):
    """One moment on both clocks, in seconds."""

    wall: float
    monotonic: float

    def since(self, earlier: Instant) -> float:
        """Return the seconds from `earlier` to here: the larger of what the two clocks say."""
        return max(self.wall - earlier.wall, self.monotonic - earlier.monotonic)


class State(enum.IntEnum):
    """The four ages of a token, from the youngest."""

    FRESH = 0
    STALE = 1
    CRITICAL = 2
    DEAD = 3


def digest(access_token: str) -> str:
    """Return what stands for a token in logs and events: the first 8 hex digits of its SHA-256."""
    return hashlib.sha256(access_token.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Token:
    """An access token (RFC 6749 section 5.1). Its repr does not show the token itself.

    Attributes:
        access_token: the secret value.
        token_type: always ``"Bearer"``.
        scopes: what the gateway granted.
        issued_at: when the token request was sent, in epoch seconds of this machine's clock.
        expires_in: the lifetime in seconds, counted from `issued_at`.
    """

    access_token: str = field(repr=False)
    token_type: str
    scopes: frozenset[str]
    issued_at: float
    expires_in: float
    monotonic: float = field(repr=False, compare=False)

    @property
    def expires_at(self) -> float:
        """When the token expires, in epoch seconds."""
        return self.issued_at + self.expires_in

    def age(self, now: Instant) -> float:
        """Return the seconds since the token was asked for, by whichever clock says more."""
        return now.since(Instant(self.issued_at, self.monotonic))

    def as_told(self, now: Instant) -> Self:
        """Return the token as other hosts, whose wall clocks may differ, are to know it: as old by the monotonic clock."""
        return replace(self, monotonic=now.monotonic - self.age(now))

    def remaining(self, now: Instant) -> float:
        """Return the seconds of life left at `now`."""
        return self.expires_in - self.age(now)

    def fresh_until(self, leeway: float) -> Instant:
        """Return the moment on each clock from which the token is not fresh any more."""
        span = self.expires_in - min(leeway, self.expires_in / 2)
        return Instant(self.issued_at + span, self.monotonic + span)

    def state(self, now: Instant, leeway: float) -> State:
        """Return how far through its life the token is.

        Args:
            now: the moment asked about.
            leeway: seconds before expiry at which it is stale; half the lifetime at most.
        """
        life = self.expires_in
        left = self.remaining(now)
        stale = min(leeway, life / 2)
        if left > stale:
            return State.FRESH
        critical = min(60, life / 10, stale / 2)
        if left > critical:
            return State.STALE
        return State.CRITICAL if left > min(5, life / 60, critical / 2) else State.DEAD

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Token is not pickled, so that none is ever at rest; pickle the auth object instead")

    @classmethod
    def from_response(
        cls,
        payload: Mapping[str, Any],
        sent: Instant,
        *,
        provider: str,
        default_expires_in: float,
        requested: str = "",
    ) -> Self:
        """Validate a token response (RFC 6749 section 5.1, RFC 6750 section 2.1).

        Args:
            payload: the decoded JSON object.
            sent: when the token request was sent: the life starts there.
            provider: the provider's name, for errors.
            default_expires_in: the lifetime in seconds where the response states none.
            requested: the scopes asked for, granted where the response names none.

        Raises:
            InvalidTokenResponseError: any of it is missing or makes no sense.
        """

        def refuse(what: str) -> InvalidTokenResponseError:
            return InvalidTokenResponseError(f"{provider}: the token response has {what}", provider=provider)

        access_token = payload.get("access_token")
        if not isinstance(access_token, str) or not access_token:
            raise refuse("no access_token")
        if not _B64TOKEN.fullmatch(access_token):
            raise refuse("an access_token with characters that RFC 6750 does not allow")
        token_type = payload.get("token_type")
        if token_type is not None and (not isinstance(token_type, str) or token_type.lower() != "bearer"):
            raise refuse("a token_type that is not Bearer")
        expires_in = _lifetime(payload.get("expires_in", default_expires_in), default_expires_in)
        if expires_in is None:
            raise refuse("an expires_in that is not a positive number of seconds")
        scope = payload.get("scope")
        granted = _scopes(scope if isinstance(scope, str) else requested)
        return cls(access_token, "Bearer", granted, sent.wall, expires_in, sent.monotonic)


@lru_cache(maxsize=256)
def _scopes(scope: str) -> frozenset[str]:
    """Return the scopes of a list: one and the same set for all tokens that have them."""
    return frozenset(SCOPE_TOKEN.findall(scope))


def _lifetime(value: object, default: float) -> float | None:
    """Return a lifetime in seconds: a positive, finite number or a string of digits; None for nonsense."""
    if value is None:
        return default
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
