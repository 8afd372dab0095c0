"""A token: validated once, frozen, with the phases of its life.

A lifetime counts from the moment the token request was sent, on two clocks. The age is the larger of the two, and at
least 0, so neither a stepped wall clock nor a suspended machine extends it.

A token is due for renewal `leeway` seconds before it expires, but never before half its lifetime: a 3600 s token at
55 minutes, a 300 s token at 150 s.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, Self

_LONGEST_TOKEN = 16_384
_B64TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750 section 2.1
SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")  # RFC 6749 section 3.3


class Instant(NamedTuple):
    """One moment on both clocks, in seconds."""

    wall: float
    monotonic: float

    def since(self, earlier: Instant) -> float:
        """Return the seconds since `earlier`, by the clock that says more; at least 0."""
        return max(self.wall - earlier.wall, self.monotonic - earlier.monotonic, 0.0)

    def is_before(self, noted: Instant) -> bool:
        """Return whether `noted` lies in the future on either clock: the machine was suspended, or time was frozen."""
        return self.wall < noted.wall or self.monotonic < noted.monotonic


def now() -> Instant:
    """Return this moment."""
    return Instant(time.time(), time.monotonic())


class Phase(enum.IntEnum):
    """The four phases of a token's life.

    FRESH: callers get it. STALE: one caller renews it, the others get it. CRITICAL: all callers join one renewal.
    EXPIRED: it is not sent any more.
    """

    FRESH = 0
    STALE = 1
    CRITICAL = 2
    EXPIRED = 3


def digest(access_token: str) -> str:
    """Return how a token appears in logs and events: the first 8 hex digits of its SHA-256."""
    return hashlib.sha256(access_token.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Token:
    """An access token (RFC 6749 section 5.1). Its repr does not show the token itself.

    Attributes:
        access_token: the secret value.
        token_type: always ``"Bearer"``.
        scopes: the granted scopes.
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

    def age(self, at: Instant) -> float:
        """Return the seconds since the token request was sent, by the clock that says more.

        Args:
            at: the moment.
        """
        return at.since(Instant(self.issued_at, self.monotonic))

    def remaining(self, at: Instant) -> float:
        """Return the seconds until the token expires.

        Args:
            at: the moment.
        """
        return self.expires_in - self.age(at)

    def renew_before(self, leeway: float) -> float:
        """Return the seconds before expiry at which the token is due for renewal: half the lifetime at most.

        So a BS2 token of 300 s is renewed at 150 s, although the leeway is 300 s.

        Args:
            leeway: seconds before expiry at which a token is due for renewal.
        """
        return min(leeway, self.expires_in / 2)

    def fresh_until(self, leeway: float) -> Instant:
        """Return the moment on each clock from which the token is due for renewal.

        Args:
            leeway: seconds before expiry at which a token is due for renewal.
        """
        span = self.expires_in - self.renew_before(leeway)
        return Instant(self.issued_at + span, self.monotonic + span)

    def phase(self, at: Instant, leeway: float) -> Phase:
        """Return the phase of the token's life.

        Args:
            at: the moment.
            leeway: seconds before expiry at which the token is due for renewal.
        """
        if at.wall < self.issued_at and at.monotonic < self.monotonic:
            return Phase.EXPIRED  # issued in the future of both clocks: a test froze time
        remaining, stale = self.remaining(at), self.renew_before(leeway)
        if remaining > stale:
            return Phase.FRESH
        critical = min(60, self.expires_in / 10, stale / 2)
        if remaining > critical:
            return Phase.STALE
        return Phase.CRITICAL if remaining > min(5, self.expires_in / 60, critical / 2) else Phase.EXPIRED

    def is_valid(self, at: Instant, leeway: float) -> bool:
        """Return whether the token may still be sent.

        Args:
            at: the moment.
            leeway: seconds before expiry at which a token is due for renewal.
        """
        return self.phase(at, leeway) is not Phase.EXPIRED

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Token cannot be pickled, so that none is stored by accident; pickle the auth object instead")

    @classmethod
    def from_response(
        cls,
        payload: Mapping[str, Any],
        sent: Instant,
        *,
        default_expires_in: float,
        requested: str = "",
    ) -> Self:
        """Validate a token response (RFC 6749 section 5.1, RFC 6750 section 2.1).

        Args:
            payload: the decoded JSON object.
            sent: when the token request was sent: the life starts there.
            default_expires_in: the lifetime in seconds where the response states none.
            requested: the requested scopes, which are granted where the response names none.

        Raises:
            ValueError: a member is missing or makes no sense; the text says which.
        """
        access_token = payload.get("access_token")
        if not isinstance(access_token, str) or not access_token:
            raise ValueError("no access_token")
        if len(access_token) > _LONGEST_TOKEN:
            raise ValueError(f"an access_token of more than {_LONGEST_TOKEN} characters")
        if not _B64TOKEN.fullmatch(access_token):
            raise ValueError("an access_token with characters that RFC 6750 does not allow")
        token_type = payload.get("token_type")
        if token_type is not None and (not isinstance(token_type, str) or token_type.lower() != "bearer"):
            raise ValueError("a token_type that is not Bearer")
        expires_in = _lifetime(payload.get("expires_in", default_expires_in), default_expires_in)
        if expires_in is None:
            raise ValueError("an expires_in that is not a positive number of seconds")
        scope = payload.get("scope")
        granted = _scopes(scope if isinstance(scope, str) else requested)
        return cls(access_token, "Bearer", granted, sent.wall, expires_in, sent.monotonic)


@lru_cache(maxsize=256)
def _scopes(scope: str) -> frozenset[str]:
    """Return the scopes of a list; tokens with equal scopes share one set."""
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
