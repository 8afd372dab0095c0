"""The one source of a token: what is known of it in this process, and whether to mint.

A source knows no HTTP library. Everyone who has the same cache key shares it. The rules:

- `token` is read without a lock and only ever replaced: a fresh token costs its caller one
  attribute and two clocks. All else happens under single flight or, for a few assignments, the lock.
- While a token lives nobody fails: a renewal that does not succeed is told to the log, and tried
  again after a pause. Only without a live token does an error reach the callers.
- A late success never overwrites a newer token, and a late failure never delays its renewal.
- After a rejection (401) exactly the rejected token is dropped, by identity: never a successor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ._client import Client, logger
from ._flight import FULL, ONCE, SingleFlight
from ._flow import Call, Clock, ConnectionLostError, Effect
from ._fork import on_fork
from ._limiter import RateLimiter
from ._token import Instant, State, Token, digest
from .cache import TokenCache
from .events import RenewalFailed, TokenMinted, TokenRejected, TokenServedStale
from .exceptions import BaaSAuthError, ConfigurationError, InvalidScopeError, RateLimitError, TokenEndpointError

__all__ = ["Mint", "TokenSource"]

T = TypeVar("T")
Mint = Callable[[bool, float], Generator[Effect, Any, Token]]
"""Makes the flow that mints: whether it may retry, and until when on the monotonic clock."""

_AFTER_FAILURE = (5.0, 10.0, 20.0, 30.0)
_AFTER_REFUSAL = _BRAKE = (5.0, 10.0, 20.0, 40.0, 60.0)
_BRAKE_FORGETS = 60.0
_CACHE_TIMEOUT = 5.0

_TOLD = (TokenEndpointError, ConfigurationError)
"""What keeps a token from being minted: the gateway, or what the callable gives for a client secret."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Something is not done again for so many seconds."""

    since: Instant
    seconds: float

    def left(self, now: Instant) -> float:
        return max(0.0, self.seconds - now.since(self.since))


_NO_PAUSE = Pause(Instant(0, 0), 0)


def _step(schedule: tuple[float, ...], times: int) -> float:
    return schedule[min(times, len(schedule) - 1)]


class TokenSource:
    """One token's state: the token, its renewal, the pauses after failures, the brake on rejections."""

    def __init__(self, provider: str, key: str, cache: TokenCache, limiter: RateLimiter, clock: Clock) -> None:
        self.key = key
        self.token: Token | None = None
        self.limiter = limiter
        self._cache = cache
        self._clock = clock
        self._flights = SingleFlight(provider, clock)
        self._failures = 0
        self._pause = _NO_PAUSE  # before the next voluntary renewal; with a refusal, before any
        self._refusal: TokenEndpointError | None = None
        self._rejected: Token | None = None
        self._rejected_at = Instant(float("-inf"), float("-inf"))
        self._on_probation: Token | None = None  # minted after a rejection, and not accepted yet
        self._braked_for: Token | None = None  # rejected although it was fresh
        self._braked = 0
        self._brake = _NO_PAUSE
        self.reset_after_fork()
        on_fork(self)

    def reset_after_fork(self) -> None:
        """Replace the lock, which a thread that does not exist here may hold."""
        self._lock = threading.RLock()

    def acquire(
        self, client: Client, mint: Mint, deadline: float, renew_in_background: Callable[[], None] | None
    ) -> Generator[Effect, Any, Token]:
        """Return a token that may be sent, renewing it if need be.

        Args:
            client: who asks.
            mint: makes the flow that mints, should this caller lead.
            deadline: the caller's patience ends at this time on the monotonic clock.
            renew_in_background: starts a renewal elsewhere, so that nobody waits while a token lives.

        Raises:
            TokenEndpointError: there is no live token, and none could be had.
        """
        asked = self._clock().monotonic
        failure: BaaSAuthError | None = None
        tried = False
        while True:
            token, now = self.token, self._clock()
            state = State.DEAD if token is None else token.state(now, client.leeway)
            if token is not None and state is State.FRESH:
                return token
            if token is not None and state is not State.DEAD:
                join = state is State.CRITICAL
                effort, until = ONCE, min(deadline, asked + client.timeout)
                if tried or self._rests(now) or (self._flights.busy and not join):
                    return self._serve_stale(client, token, now)
                if renew_in_background is not None:
                    renew_in_background()
                    return self._serve_stale(client, token, now)
            else:
                join = True
                effort, until = FULL, deadline
                if failure is not None:
                    raise failure
                if self._refusal is not None and self._pause.left(now):
                    raise self._refusal.own_copy()
            tried = True
            work = partial(self._renew, client, mint, token, effort, until)
            try:
                yield from self._flights.run(work, effort, until, join=join)
            except _TOLD as error:
                failure = error if effort == FULL else None

    def _rests(self, now: Instant) -> bool:
        """Tell whether no voluntary renewal is due yet."""
        return self._pause.left(now) > 0 or self.limiter.delay(now.monotonic) > 0

    def _serve_stale(self, client: Client, token: Token, now: Instant) -> Token:
        client.tell(TokenServedStale, token, lambda: {"remaining": token.remaining(now)})
        return token

    def _renew(
        self, client: Client, mint: Mint, seen: Token | None, effort: int, deadline: float
    ) -> Generator[Effect, Any, None]:
        """The leader's work: take what another process left in the cache, or mint."""
        before = self.token
        if before is not seen:
            return  # somebody was quicker: look again
        started = self._clock()
        try:
            found = yield from self._look_up(client, effort)
            token = found or (yield from mint(effort == FULL, deadline))
        except (*_TOLD, ConnectionLostError) as error:
            self._failed(client, before, started, error)
            raise
        except BaaSAuthError:  # the secret has changed: who found out renews with the new one
            with self._lock:
                self._pause, self._refusal = Pause(self._clock(), client.timeout), None
            raise
        landed = self._landed(token, effort, minted=found is None)
        if found is None:
            duration = self._clock().since(started)
            logger.debug("%s: minted token %s in %.3f s", client.name, digest(token.access_token), duration)
            client.tell(TokenMinted, token, lambda: {"duration": duration, "expires_in": token.expires_in})
            if landed:
                yield from self._with_cache(lambda: self._cache.set(self.key, token), None)

    def _look_up(self, client: Client, effort: int) -> Generator[Effect, Any, Token | None]:
        found = yield from self.cached()
        rejected = self._rejected
        if found is None or (rejected is not None and found.access_token == rejected.access_token):
            return None
        state = found.state(self._clock(), client.leeway)
        return found if state is State.FRESH or (state is not State.DEAD and effort == FULL) else None

    def _with_cache(self, operation: Callable[[], T], otherwise: T) -> Generator[Effect, Any, T]:
        """Do something with the cache; one that fails counts as empty: it must not cost a call."""
        try:
            if getattr(self._cache, "blocking", True):
                return (yield Call(operation, _CACHE_TIMEOUT))  # type: ignore[no-any-return]  # what the driver sends back
            return operation()
        except Exception as error:
            logger.warning("the token cache failed, and is passed over: %s", type(error).__name__)
            return otherwise

    def _landed(self, token: Token, effort: int, *, minted: bool) -> bool:
        now = self._clock()
        with self._lock:
            if self.token is not None and token.monotonic < self.token.monotonic:
                return False  # late: somebody has a newer one
            self.token = token
            self._failures, self._refusal = 0, None
            self._pause = Pause(now, min(30.0, token.expires_in / 10)) if effort == ONCE else _NO_PAUSE
            if minted and now.since(self._rejected_at) < _BRAKE_FORGETS:
                self._on_probation = token
            return True

    def _failed(
        self, client: Client, before: Token | None, started: Instant, error: BaaSAuthError | ConnectionLostError
    ) -> None:
        now = self._clock()
        status = error.status_code if isinstance(error, TokenEndpointError) else None
        refusal = error if isinstance(error, TokenEndpointError) and _is_refusal(error) else None
        with self._lock:
            if self.token is not before:
                return  # late: somebody has a newer token
            if (refusal is None) != (self._refusal is None):
                self._failures = 0
            schedule = _AFTER_FAILURE if refusal is None else _AFTER_REFUSAL
            self._pause = Pause(now, _step(schedule, self._failures))
            self._failures += 1
            self._refusal = refusal and refusal.own_copy()  # without the traceback, and so the caller's frames
        logger.warning(
            "%s: no new token (%s%s), the next try is in %g s",
            client.name,
            type(error).__name__,
            f" {status}" if status else "",
            self._pause.seconds,
        )
        client.tell(
            RenewalFailed,
            before,
            lambda: {
                "duration": now.since(started),
                "error": type(error).__name__,
                "status_code": status,
                "cooldown": self._pause.seconds,
            },
        )

    def reject(self, client: Client, token: Token, *, replayable: bool) -> tuple[bool, bool]:
        """Take note that the API answered 401 to this token.

        Returns:
            Whether another is worth a try, and whether this one was dropped. While the brake or a rate
            limit holds neither is so: the 401 stands then, and the token stays.
        """
        now = self._clock()
        with self._lock:
            dropped = False
            self._note_rejection(token, now)
            if self.token is token:
                allowed = not self._brake.left(now) and not self.limiter.delay(now.monotonic)
                if allowed:
                    self.token, dropped = None, True
            else:
                allowed = self.token is not None or self._flights.busy or not self._brake.left(now)
            if allowed:
                self._note_dropped(token)
        replaying = allowed and replayable
        logger.info("%s: token %s was rejected (401)", client.name, digest(token.access_token))
        client.tell(
            TokenRejected, token, lambda: {"age": token.expires_in - token.remaining(now), "replaying": replaying}
        )
        return replaying, dropped

    def accepted(self, token: Token) -> None:
        """Take note that the API accepted `token` from the very caller that had it minted: the brake comes off.

        From nobody else: where a new token kills the one before, all other requests are replayed, and accepted,
        after each mint that a path causes which always answers 401.
        """
        with self._lock:
            if token is not self._braked_for:
                self._braked, self._brake, self._on_probation = 0, _NO_PAUSE, None

    def replay_rejected(self, token: Token) -> None:
        """Take note that the API answered 401 to the replay, too: the brake goes on."""
        now = self._clock()
        with self._lock:
            self._note_rejection(token, now)
            if token is not self._braked_for:
                self._put_brake_on(token, now)

    def _note_dropped(self, token: Token) -> None:
        """See to it that this token is not taken from the cache again, however slow that is to delete it."""
        if self._rejected is None or token.monotonic >= self._rejected.monotonic:
            self._rejected = token

    def _note_rejection(self, token: Token, now: Instant) -> None:
        if now.since(self._rejected_at) > _BRAKE_FORGETS:
            self._braked, self._on_probation = 0, None
        self._rejected_at = now
        if token is self._on_probation:
            self._put_brake_on(token, now)

    def _put_brake_on(self, token: Token, now: Instant) -> None:
        self._brake = Pause(now, _step(_BRAKE, self._braked))
        self._braked += 1
        self._braked_for, self._on_probation = token, None

    def forget(self, token: Token | None = None) -> Generator[Effect, Any, None]:
        """Drop this token, or whichever is known, here and in the cache."""
        dropped = token or self.token or (yield from self.cached())
        if dropped is not None:
            with self._lock:
                self._note_dropped(dropped)
                if self.token is dropped:
                    self.token = None
            yield from self._with_cache(lambda: self._cache.delete(self.key, dropped), None)

    def cached(self) -> Generator[Effect, Any, Token | None]:
        """Return what the cache holds."""
        return (yield from self._with_cache(lambda: self._cache.get(self.key), None))


def _is_refusal(error: TokenEndpointError) -> bool:
    """Tell whether the gateway said no, rather than not now: a 4xx but 429, or a scope not granted."""
    if isinstance(error, InvalidScopeError):
        return True
    return error.status_code is not None and 400 <= error.status_code < 500 and not isinstance(error, RateLimitError)
