"""What happened to a token, told to `on_event`: frozen facts that hold no secret and no token.

A token appears as `token_digest`, the first 8 hex digits of its SHA-256. Durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Event",
    "RateLimited",
    "RenewalFailed",
    "RequestReplayed",
    "TokenMinted",
    "TokenRejected",
    "TokenServedStale",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event tells: the provider's name, and the token it is about, where there is one."""

    provider: str
    token_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMinted(Event):
    """A token request gave a token; `duration` includes retries and waits between them."""

    duration: float
    expires_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenServedStale(Event):
    """A caller got a token that is due for renewal; it lives for `remaining` seconds more."""

    remaining: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalFailed(Event):
    """No token came of a renewal; the old one, if it lives, is served for `cooldown` seconds before the next try."""

    duration: float
    error: str
    status_code: int | None
    cooldown: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRejected(Event):
    """The API answered 401; `age` is the token's age in seconds, `replaying` whether the request is sent again."""

    age: float
    replaying: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReplayed(Event):
    """A rejected request was sent again with another token, `duration` seconds after the rejection."""

    duration: float
    status_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimited(Event):
    """No token request may be sent for `retry_after` seconds; None where the gateway did not say how long."""

    retry_after: float | None
