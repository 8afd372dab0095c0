"""A token's state and a client's rate limits, as encrypted bytes for a shared cache.

Spans of time are written as ages. A reader adds the time that the record was in the cache, which follows from its TTL.
So no two clocks need agree. AES-256-GCM encrypts under a key that only the client secret gives. The cache key is
authenticated with the content: a value that was copied to another key is a miss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .. import exceptions
from .._lifecycle.rate_limit import RateLimits
from .._lifecycle.state import Backoff, Failure, Lease, TokenState, Verdict
from .._oauth.token import Instant, Token

R = TypeVar("R")

_NONCE = 12
_TICK = 0.001  # seconds: no cache knows a TTL more exactly
_LONGEST_TTL = 365 * 86_400.0
_ERROR_FIELDS = ("provider", "status_code", "error", "error_description", "retry_after")


class Codec(Generic[R]):
    """Encrypts and decrypts one kind of record under one cache key.

    Args:
        key: the cache key.
        secret_key: 32 secret bytes.
        to_json: makes the record's content, at a moment.
        from_json: makes the record from its content, at a moment, after some seconds in the cache.
        ttl: seconds for which a record matters.
    """

    def __init__(
        self,
        key: str,
        secret_key: bytes,
        to_json: Callable[[R, Instant], Any],
        from_json: Callable[[Any, Instant, float], R],
        ttl: Callable[[R, Instant], float],
    ) -> None:
        self.key = key
        self._cipher = AESGCM(secret_key)
        self._to_json = to_json
        self._from_json = from_json
        self._ttl = ttl

    def encrypt(self, record: R, now: Instant) -> tuple[bytes, float]:
        """Return the bytes, and the seconds after which the cache may forget them."""
        ttl = min(max(1.0, self._ttl(record, now)), _LONGEST_TTL)
        content = json.dumps([ttl, self._to_json(record, now)]).encode()
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, content, self.key.encode()), ttl

    def decrypt(self, raw: object, ttl: float, now: Instant) -> R | None:
        """Return the record, with `ttl` seconds left in the cache; None for anything that this client did not write."""
        if not isinstance(raw, bytes) or ttl <= 0:
            return None
        try:
            content = self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], self.key.encode())
            written, record = json.loads(content)
            age = written - ttl
            return self._from_json(record, now, max(0.0, age)) if age > -_TICK else None
        except (InvalidTag, ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None


def state_codec(key: str, secret_key: bytes) -> Codec[TokenState]:
    """Return the codec of a token's state."""
    return Codec(key, secret_key, _state_to_json, _state_from_json, _state_ttl)


def limits_codec(key: str, secret_key: bytes, window: float) -> Codec[RateLimits]:
    """Return the codec of a client's rate limits, which matter for `window` seconds."""
    return Codec(
        key,
        secret_key,
        _limits_to_json,
        _limits_from_json,
        lambda limits, now: max(window + _TICK, limits.blocked.remaining(now)),
    )


def _state_ttl(state: TokenState, now: Instant) -> float:
    # By the monotonic clock alone: this host's wall clock may be wrong.
    life = state.token.expires_in - (now.monotonic - state.token.monotonic) if state.token is not None else 0.0
    return max(life, state.ttl(now))


def _state_to_json(state: TokenState, now: Instant) -> dict[str, Any]:
    token, failure, lease = state.token, state.failure, state.lease
    content = {
        "generation": state.generation,
        "verdict": int(state.verdict),
        "renewal": _backoff_to_json(state.renewal, now),
        "rejection": _backoff_to_json(state.rejection, now),
        "blocked": _dated_to_json(state.blocked, now),
        "dropped": state.dropped,
        "rejected_at": _age(state.rejected_at, now),
    }
    if token is not None:
        age = now.monotonic - token.monotonic
        content["token"] = [token.access_token, sorted(token.scopes), token.expires_in, age, token.issued_at]
    if failure is not None:
        error = failure.error
        fields = {name: getattr(error, name) for name in _ERROR_FIELDS}
        missing = sorted(getattr(error, "missing_scopes", ()))
        pause = _dated_to_json(failure.pause, now)
        content["failure"] = [type(error).__name__, str(error), fields, missing, failure.is_refusal, pause]
    if lease is not None:
        content["lease"] = [lease.owner, _age(lease.since, now), lease.seconds]
    return content


def _state_from_json(content: dict[str, Any], now: Instant, later: float) -> TokenState:
    return TokenState(
        generation=content["generation"],
        token=_token_from_json(content["token"], now, later) if "token" in content else None,
        verdict=Verdict(content["verdict"]),
        renewal=_backoff_from_json(content["renewal"], now, later),
        rejection=_backoff_from_json(content["rejection"], now, later),
        rejected_at=_ago(content["rejected_at"], now, later),
        failure=_failure_from_json(content["failure"], now, later) if "failure" in content else None,
        blocked=_dated_from_json(content["blocked"], now, later),
        dropped=tuple(content["dropped"]),
        lease=_lease_from_json(content["lease"], now, later) if "lease" in content else None,
    )


def _token_from_json(content: list[Any], now: Instant, later: float) -> Token:
    access_token, scopes, expires_in, age, issued_at = content
    by_ttl = age + later
    # The wall clock bounds the life of a record that was put back.
    age = max(by_ttl, now.wall - issued_at)
    return Token(access_token, "Bearer", frozenset(scopes), now.wall - age, expires_in, now.monotonic - by_ttl)


def _failure_from_json(content: list[Any], now: Instant, later: float) -> Failure:
    name, message, fields, missing, is_refusal, pause = content
    error = getattr(exceptions, name)(message, **fields)
    if missing:
        error.missing_scopes = frozenset(missing)
    return Failure(error, is_refusal, _dated_from_json(pause, now, later))


def _lease_from_json(content: list[Any], now: Instant, later: float) -> Lease:
    owner, age, seconds = content
    return Lease(owner, _ago(age, now, later), seconds)


def _backoff_to_json(backoff: Backoff, now: Instant) -> list[float]:
    """Return an empty back-off for one that is void."""
    void = now.is_before(backoff.since) or not (backoff.count or backoff.seconds)
    return [0, 0, 0] if void else [backoff.count, now.since(backoff.since), backoff.seconds]


def _backoff_from_json(content: list[float], now: Instant, later: float) -> Backoff:
    count, age, seconds = content
    return Backoff(int(count), _ago(age, now, later), seconds)


def _dated_to_json(backoff: Backoff, now: Instant) -> list[float]:
    """Return a back-off with its moment on the wall clock: a record that is put back must not bring it back."""
    void = now.is_before(backoff.since) or not backoff.seconds
    return [0, 0, 0, 0] if void else [*_backoff_to_json(backoff, now), now.wall - now.since(backoff.since)]


def _dated_from_json(content: list[float], now: Instant, later: float) -> Backoff:
    count, age, seconds, noted_at = content
    return Backoff(int(count), _ago(max(age + later, now.wall - noted_at), now, 0), seconds)


def _age(at: Instant, now: Instant) -> float | None:
    age = now.since(at)
    return None if age == float("inf") or now.is_before(at) else age


def _ago(age: float | None, now: Instant, later: float) -> Instant:
    seconds = float("inf") if age is None else age + later
    return Instant(now.wall - seconds, now.monotonic - seconds)


def _limits_to_json(limits: RateLimits, now: Instant) -> list[Any]:
    ages = {request: now.monotonic - at for request, at in limits.counted.items()}
    return [ages, _backoff_to_json(limits.blocked, now)]


def _limits_from_json(content: list[Any], now: Instant, later: float) -> RateLimits:
    ages, blocked = content
    counted = {request: now.monotonic - age - later for request, age in ages.items()}
    return RateLimits(counted, _backoff_from_json(blocked, now, later))
