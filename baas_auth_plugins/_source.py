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

import random
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

from ._brake import NO_PAUSE, Brake, Pause, step
from ._client import Client, logger
from ._fleet import Fleet, NotNowError, Turn
from ._flight import FULL, ONCE, SingleFlight
from ._flow import Clock, ConnectionLostError, Effect, OutOfTimeError
from ._fork import locked
from ._limiter import RateLimiter
from ._record import Record
from ._token import Instant, State, Token, digest
from .exceptions import BaaSAuthError, ConfigurationError, InvalidScopeError, RateLimitError, TokenEndpointError

__all__ = ["Mint", "TokenSource"]

Mint = Callable[[bool, float, Turn], Generator[Effect, Any, Token]]
"""Makes the flow that mints: whether it may retry, until when on the monotonic clock, and in whose turn."""

_AFTER_FAILURE = (5.0, 10.0, 20.0, 30.0)
_AFTER_REFUSAL = (5.0, 10.0, 20.0, 40.0, 60.0)
_AFTER_A_LOOK = (0.25, 0.75)  # seconds: how soon to look again what another process is doing
_LONGEST_LOOK = 5.0
_NEWER = 1.0  # seconds by which a token must live longer than ours to be taken for another
_SAME_MOMENT = 0.1  # seconds: what is told of a token's age by way of a cache is not exact

_TOLD = (TokenEndpointError, ConfigurationError)
"""What keeps a token from being minted: the gateway, or what the callable gives for a client secret."""


class TokenSource:
    """One token's state: the token, its renewal, the pauses after failures, the brake on rejections."""

    __slots__ = (
        "__weakref__",
        "_brake",
        "_clock",
        "_failures",
        "_fleet",
        "_flights",
        "_looks",
        "_pause",
        "_refusal",
        "_rejected",
        "key",
        "limiter",
        "token",
    )

    def __init__(self, provider: str, key: str, fleet: Fleet, limiter: RateLimiter, clock: Clock) -> None:
        self.key = key
        self.token: Token | None = None
        self.limiter = limiter
        self._fleet = fleet
        self._clock = clock
        self._flights = SingleFlight(provider, clock)
        self._looks = SingleFlight(provider, clock) if fleet.shared else self._flights
        self._failures = 0
        self._pause = NO_PAUSE  # before the next voluntary renewal; with a refusal, before any
        self._refusal: TokenEndpointError | None = None
        self._rejected: Token | None = None
        self._brake = Brake()

    @property
    def is_shared(self) -> bool:
        """Whether other processes use this cache, too."""
        return self._fleet.shared

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
        client.tell("TokenServedStale", token, lambda: {"remaining": token.remaining(now)})
        return token

    def _renew(
        self, client: Client, mint: Mint, seen: Token | None, effort: int, deadline: float
    ) -> Generator[Effect, Any, None]:
        """The leader's work: take what another process minted, or mint."""
        before = self.token
        if before is not seen:
            return  # somebody was quicker: look again
        started = self._clock()
        turn = Turn(
            self._fleet,
            self.limiter,
            partial(self._wants, client, before, effort),
            self._learn,
            timeout=client.timeout,
            urgent=effort == FULL,
            deadline=deadline,
            provider=client.name,
        )
        try:
            token = (yield from turn.look()) or (yield from mint(effort == FULL, deadline, turn))
        except NotNowError:
            self._rest(random.uniform(*_AFTER_A_LOOK))  # noqa: S311  # jitter, not cryptography
            return
        except ConnectionLostError as error:  # nothing more may be yielded
            self._failed(client, before, started, error)
            turn.abandon()
            raise
        except TokenEndpointError as error:
            self._failed(client, before, started, error, known=turn.failed_elsewhere)
            if not turn.failed_elsewhere:
                yield from self._fleet.change(partial(self._tell_failure, turn, error))
            raise
        except (BaaSAuthError, OutOfTimeError) as error:
            if isinstance(error, ConfigurationError):
                self._failed(client, before, started, error)
            elif isinstance(error, BaaSAuthError):  # the secret has changed: who found out renews with the new one
                with locked():
                    self._pause, self._refusal = Pause(self._clock(), client.timeout), None
            yield from self._fleet.change(turn.give_back)
            raise
        except BaseException:
            turn.abandon()
            raise
        landed = self._landed(token, effort, turn.found)
        if turn.found is None:
            duration = self._clock().since(started)
            logger.debug("%s: minted token %s in %.3f s", client.name, digest(token.access_token), duration)
            client.tell("TokenMinted", token, lambda: {"duration": duration, "expires_in": token.expires_in})
            tell = partial(self._tell_token, turn, token) if landed else turn.give_back
            told, _ = yield from self._fleet.change(tell, urgent=effort == FULL, undo=partial(_aged, token))
            if told is None:
                turn.end_some_time(tell, undo=partial(_aged, token))

    def _wants(self, client: Client, before: Token | None, effort: int, found: Token) -> bool:
        """Tell whether a token is better than the one at hand."""
        now = self._clock()
        state = found.state(now, client.leeway)
        if state is State.DEAD or self._is_past(found, self._rejected):
            return False
        if before is None or effort == FULL:
            return True
        return found.remaining(now) > before.remaining(now) + _NEWER and (self._fleet.shared or state is State.FRESH)

    def _is_past(self, found: Token, dropped: Token | None) -> bool:
        """Tell whether a token is the one that was dropped, or one that was minted before it."""
        if dropped is None or found.access_token == dropped.access_token:
            return dropped is not None
        now = self._clock()
        return found.age(now) > dropped.age(now) + _SAME_MOMENT

    def _learn(self, record: Record) -> None:
        """Take over what another process ran into."""
        now = self._clock()
        with locked():
            if record.pause > self._pause.left(now):
                self._pause = Pause(now, record.pause)
            if record.failure is not None and record.failures >= self._failures:
                self._failures, self._refusal = record.failures, record.failure if record.refused else None
            self._brake.learn(record, now)
            mine = self.token
            if mine is not None and record.token is not None and mine.access_token == record.token.access_token:
                self._adopt(mine, record)

    def _tell_token(self, turn: Turn, token: Token, record: Record) -> Record | None:
        now, kept = self._clock(), record.token
        if record.leader != turn.id and kept is not None and kept.monotonic > token.monotonic:
            return None
        told = (turn.give_back(record) or record)._replace(
            token=token,
            issued_at=token.issued_at,
            failed="",
            failure=None,
            refused=False,
            failures=0,
            pause=self._pause.left(now),
        )
        return self._brake.tell(told, now)

    def _tell_failure(self, turn: Turn, error: TokenEndpointError, record: Record) -> Record | None:
        if record.leader not in ("", turn.id):
            return None
        return (turn.give_back(record) or record)._replace(
            failed=turn.id,
            failure=error,
            refused=_is_refusal(error),
            failures=self._failures,
            pause=self._pause.left(self._clock()),
        )

    def _rest(self, seconds: float) -> None:
        now = self._clock()
        with locked():
            if not self._pause.left(now):
                self._refusal = None
            if self._pause.left(now) < seconds:
                self._pause = Pause(now, seconds)

    def _landed(self, token: Token, effort: int, found: Record | None) -> bool:
        now = self._clock()
        with locked():
            if self.token is not None and token.monotonic < self.token.monotonic:
                return False  # late: somebody has a newer one
            self._failures, self._refusal = 0, None
            self._pause = NO_PAUSE
            if found is not None:
                self._adopt(token, found)
                return True
            self.token = token
            if effort == ONCE:
                self._pause = Pause(now, min(30.0, token.expires_in / 10))
            self._brake.minted(token, now)
            return True

    def _adopt(self, token: Token, found: Record) -> None:
        self.token = token
        self._brake.adopted(token, found)

    def _failed(
        self,
        client: Client,
        before: Token | None,
        started: Instant,
        error: BaaSAuthError | ConnectionLostError,
        *,
        known: bool = False,
    ) -> None:
        now = self._clock()
        status = error.status_code if isinstance(error, TokenEndpointError) else None
        refusal = error if isinstance(error, TokenEndpointError) and _is_refusal(error) else None
        with locked():
            if self.token is not before:
                return  # late: somebody has a newer token
            if not known:
                if (refusal is None) != (self._refusal is None):
                    self._failures = 0
                schedule = _AFTER_FAILURE if refusal is None else _AFTER_REFUSAL
                self._pause = Pause(now, step(schedule, self._failures))
                self._failures += 1
            self._refusal = refusal and refusal.own_copy()  # without the traceback, and so the caller's frames
        logger.warning(
            "%s: no new token (%s%s), the next try is in %g s",
            client.name,
            type(error).__name__,
            f" {status}" if status else "",
            self._pause.left(now),
        )
        client.tell(
            "RenewalFailed",
            before,
            lambda: {
                "duration": now.since(started),
                "error": type(error).__name__,
                "status_code": status,
                "cooldown": self._pause.left(now),
            },
        )

    def reject(self, client: Client, token: Token, *, replayable: bool) -> tuple[bool, bool]:
        """Take note that the API answered 401 to this token.

        Returns:
            Whether another is worth a try, and whether this one was dropped. While the brake or a rate
            limit holds neither is so: the 401 stands then, and the token stays.
        """
        now = self._clock()
        with locked():
            dropped = False
            self._brake.note_rejection(token, now)
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
        client.tell("TokenRejected", token, lambda: {"age": token.age(now), "replaying": replaying})
        return replaying, dropped

    def accepted(self, token: Token) -> None:
        """Take note that the API accepted `token` from the very caller that had it minted: the brake comes off.

        From nobody else: where a new token kills the one before, all other requests are replayed, and accepted,
        after each mint that a path causes which always answers 401.
        """
        with locked():
            self._brake.come_off(token)

    def replay_rejected(self, token: Token) -> None:
        """Take note that the API answered 401 to the replay, too: the brake goes on."""
        now = self._clock()
        with locked():
            self._brake.note_rejected_replay(token, now)

    def _note_dropped(self, token: Token) -> None:
        """See to it that this token is not taken from the cache again, however slow that is to delete it."""
        if self._rejected is None or token.monotonic >= self._rejected.monotonic:
            self._rejected = token

    def tell_brake(self) -> Generator[Effect, Any, None]:
        """Tell other processes of the brake, if it was put on or came off."""
        if self._brake.is_news and self._fleet.shared:
            self._brake.is_news = False
            yield from self._fleet.change(lambda record: self._brake.tell(record, self._clock()))

    def refresh(self, client: Client, token: Token) -> Generator[Effect, Any, None]:
        """After a 401 to `token`, see first what other processes know: perhaps they have another."""
        if self._fleet.shared and self.token is token:
            with locked():
                self._brake.note_moment(self._clock())
            with suppress(TokenEndpointError):  # it took too long
                look = partial(self._look, client, token)
                yield from self._looks.run(look, ONCE, self._clock().monotonic + _LONGEST_LOOK)

    def _look(self, client: Client, token: Token) -> Generator[Effect, Any, None]:
        record = yield from self._fleet.look(urgent=True)
        limits = yield from self._fleet.look_at_limits(urgent=True)
        if limits is not None:
            self.limiter.block(limits.wait(self._fleet.limit), self._clock().monotonic)
        if record is None:
            return
        self._learn(record)
        found = record.token
        if found is None or found.state(self._clock(), client.leeway) is State.DEAD:
            return
        with locked():
            if self.token is token and not (self._is_past(found, token) or self._is_past(found, self._rejected)):
                self._adopt(found, record)

    def forget(self, token: Token | None = None) -> Generator[Effect, Any, None]:
        """Drop this token, or whichever is known, here and in the cache."""
        dropped = token or self.token or (yield from self.cached())
        if dropped is not None:
            with locked():
                self._note_dropped(dropped)
                if self.token is dropped:
                    self.token = None
            yield from self._fleet.change(partial(self._tell_dropped, dropped), urgent=True)

    def _tell_dropped(self, token: Token, record: Record) -> Record | None:
        kept = record.token
        if kept is None or kept.access_token != token.access_token:
            return None
        return self._brake.tell(record._replace(token=None), self._clock())

    def cached(self) -> Generator[Effect, Any, Token | None]:
        """Return what the cache holds."""
        record = yield from self._fleet.look()
        return record.token if record else None


def _aged(token: Token, record: Record) -> Record | None:
    """Return the record with the age that its token has now: to write it took longer than anybody waited."""
    kept = record.token
    return record._replace(token=token) if kept is not None and kept.access_token == token.access_token else None


def _is_refusal(error: TokenEndpointError) -> bool:
    """Tell whether the gateway said no, rather than not now: a 4xx but 429, or a scope not granted."""
    if isinstance(error, InvalidScopeError):
        return True
    return error.status_code is not None and 400 <= error.status_code < 500 and not isinstance(error, RateLimitError)
