"""The one source of a token: what is known of it in this process, and whether to mint.

A source knows no HTTP library. Everyone who has the same cache key shares it. The rules:

- A fresh token is read without a lock. All else happens under single flight or, for a few assignments, the lock.
- While a token lives nobody fails: a renewal that does not succeed is told to the log, and tried
  again after a pause. Only without a live token does an error reach the callers.
- A late failure never delays the renewal of a newer token.
- After a rejection (401) exactly the rejected token is dropped, by identity: never a successor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

from ._client import Client, logger
from ._fleet import Fleet
from ._flight import FULL, ONCE, SingleFlight
from ._flow import Clock, ConnectionLostError, Effect, OutOfTimeError, Release
from ._fork import locked
from ._known import Known, is_past
from ._limiter import RateLimiter
from ._record import Limits, Record
from ._token import Instant, State, Token, digest
from ._turn import NotNowError, Turn
from .exceptions import BaaSAuthError, ConfigurationError, TokenEndpointError

__all__ = ["Mint", "TokenSource"]

Mint = Callable[[Turn], Generator[Effect, Any, Token]]
"""Makes the flow that mints in a turn."""

_TO_FORGET = 4.0  # seconds, where the caller set none: others should know of it, too
_AFTER_A_LOOK = (0.25, 0.75)  # seconds: how soon to look again what another process is doing

_TOLD = (TokenEndpointError, ConfigurationError)
"""What keeps a token from being minted: the gateway, or what the callable gives for a client secret."""


class TokenSource:
    """One token's way in and out of this process."""

    __slots__ = ("__weakref__", "_clock", "_fleet", "_flights", "_looks", "key", "known", "limiter")

    def __init__(self, provider: str, key: str, fleet: Fleet, limiter: RateLimiter, clock: Clock) -> None:
        self.key = key
        self.known = Known()
        self.limiter = limiter
        self._fleet = fleet
        self._clock = clock
        self._flights = SingleFlight(provider, clock)
        self._looks = SingleFlight(provider, clock) if fleet.shared else self._flights

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
            token, now = self.known.token, self._clock()
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
                verdict = self.known.cooldown.verdict(now)
                if verdict is not None:
                    raise verdict
            tried = True
            work = partial(self._renew, client, mint, token, effort, until)
            try:
                yield from self._flights.run(work, effort, until, join=join)
            except _TOLD as error:
                failure = error if effort == FULL else None

    def _rests(self, now: Instant) -> bool:
        """Tell whether no voluntary renewal is due yet."""
        return self.known.cooldown.left(now) > 0 or self.limiter.delay(now.monotonic) > 0

    def _serve_stale(self, client: Client, token: Token, now: Instant) -> Token:
        client.tell("TokenServedStale", token, lambda: {"remaining": token.remaining(now)})
        return token

    def _renew(
        self, client: Client, mint: Mint, before: Token | None, effort: int, deadline: float
    ) -> Generator[Effect, Any, None]:
        """The leader's work: take what another process minted, or mint."""
        if self.known.token is not before:
            return  # somebody was quicker: look again
        started = self._clock()
        turn = Turn(self._fleet, self.known, self.limiter, client, urgent=effort == FULL, deadline=deadline)
        try:
            token = (yield from turn.look()) or (yield from mint(turn))
        except NotNowError:
            with locked():
                self.known.cooldown.rest(random.uniform(*_AFTER_A_LOOK), self._clock())  # noqa: S311  # jitter
            return
        except ConnectionLostError as error:  # nothing more may be yielded
            self._failed(client, before, started, error)
            turn.tell_loss()
            raise
        except _TOLD as error:
            self._failed(client, before, started, error, elsewhere=turn.failed_elsewhere)
            yield from turn.tell_failure(error)
            raise
        except (BaaSAuthError, OutOfTimeError) as error:
            if isinstance(error, BaaSAuthError):  # the secret has changed: who found out renews with the new one
                with locked():
                    self.known.cooldown.clear()
                    self.known.cooldown.rest(client.timeout, self._clock())
            yield from turn.end()
            raise
        except BaseException:
            turn.abandon()
            raise
        rest = 0.0 if turn.urgent else min(30.0, token.expires_in / 10)
        with locked():
            landed = self.known.landed(token, turn.found, rest, self._clock())
        if turn.found is None:
            duration = self._clock().since(started)
            logger.debug("%s: minted token %s in %.3f s", client.name, digest(token.access_token), duration)
            client.tell("TokenMinted", token, lambda: {"duration": duration, "expires_in": token.expires_in})
            yield from turn.tell_token(token, landed=landed)

    def _failed(
        self,
        client: Client,
        before: Token | None,
        started: Instant,
        error: BaaSAuthError | ConnectionLostError,
        *,
        elsewhere: bool = False,
    ) -> None:
        now, cooldown = self._clock(), self.known.cooldown
        status = error.status_code if isinstance(error, TokenEndpointError) else None
        with locked():
            if self.known.token is not before:
                return  # late: somebody has a newer token
            if not elsewhere:  # else it has been learnt
                cooldown.failed(error, now)
            pause = cooldown.left(now)
        logger.warning(
            "%s: no new token (%s%s), the next try is in %g s",
            client.name,
            type(error).__name__,
            f" {status}" if status else "",
            pause,
        )
        client.tell(
            "RenewalFailed",
            before,
            lambda: {
                "duration": now.since(started),
                "error": type(error).__name__,
                "status_code": status,
                "cooldown": pause,
            },
        )

    def reject(self, client: Client, token: Token, *, replayable: bool) -> tuple[bool, bool]:
        """Take note that the API answered 401 to this token.

        Returns:
            Whether another is worth a try, and whether this one was dropped. While the brake or a rate
            limit holds neither is so: the 401 stands then, and the token stays.
        """
        now, known = self._clock(), self.known
        with locked():
            known.brake.note_rejection(token, now)
            braked, is_ours = known.brake.left(now) > 0, known.token is token
            if is_ours:
                allowed = not braked and not self.limiter.delay(now.monotonic)
            else:
                allowed = known.token is not None or self._flights.busy or not braked
            if allowed:
                known.drop(token)
        replaying = allowed and replayable
        logger.info("%s: token %s was rejected (401)", client.name, digest(token.access_token))
        client.tell("TokenRejected", token, lambda: {"age": token.age(now), "replaying": replaying})
        return replaying, allowed and is_ours

    def accepted(self, token: Token) -> None:
        """Take note that the API accepted `token` from the very caller that had it minted: the brake comes off.

        From nobody else: where a new token kills the one before, all other requests are replayed, and accepted,
        after each mint that a path causes which always answers 401.
        """
        with locked():
            self.known.brake.come_off(token)

    def replay_rejected(self, token: Token) -> None:
        """Take note that the API answered 401 to the replay, too: the brake goes on."""
        now = self._clock()
        with locked():
            self.known.brake.note_rejected_replay(token, now)

    def tell_brake(self) -> Generator[Effect, Any, None]:
        """Tell other processes of the brake, if it was put on or came off."""
        brake = self.known.brake
        if brake.is_news and self._fleet.shared:
            brake.is_news = False
            yield from self._fleet.change(Record, lambda record: brake.tell(record, self._clock()))

    def refresh(self, client: Client, token: Token, deadline: float) -> Generator[Effect, Any, None]:
        """After a 401 to `token`, see first what other processes know: perhaps they have another."""
        if not self._fleet.shared:
            return
        yield Release()
        if self.known.token is token:
            with locked():
                self.known.brake.note_moment(self._clock())
            with suppress(TokenEndpointError):  # it took too long
                yield from self._looks.run(partial(self._look, client, token, deadline), ONCE, deadline)

    def _look(self, client: Client, token: Token, until: float) -> Generator[Effect, Any, None]:
        record = yield from self._fleet.look(Record, until=until)
        limits = yield from self._fleet.look(Limits, until=until)
        if limits is not None:
            self.limiter.block(limits.wait(self._fleet.limit), self._clock().monotonic)
        if record is None:
            return
        found, known, now = record.token, self.known, self._clock()
        with locked():
            known.learn(record, now)
            if found is None or found.state(now, client.leeway) is State.DEAD:
                return
            if known.token is token and not (is_past(found, token, now) or known.is_past(found, now)):
                known.adopt(found, record)

    def forget(self, token: Token | None = None, until: float | None = None) -> Generator[Effect, Any, None]:
        """Drop this token, or whichever is known, here and in the cache: see `Fleet.change`."""
        dropped = token or self.known.token or (yield from self.cached())
        if dropped is not None:
            until = until or self._clock().monotonic + _TO_FORGET
            with locked():
                self.known.drop(dropped)
            yield from self._fleet.change(Record, partial(self._tell_dropped, dropped), until=until)

    def _tell_dropped(self, token: Token, record: Record) -> Record | None:
        kept = record.token
        if kept is None or kept.access_token != token.access_token:
            return None
        return self.known.brake.tell(record._replace(token=None), self._clock())

    def cached(self) -> Generator[Effect, Any, Token | None]:
        """Return what the cache holds."""
        record = yield from self._fleet.look(Record)
        return record.token if record else None
