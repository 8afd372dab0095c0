"""One flight for a whole fleet: how the processes that share a cache agree on who mints, and what came of it.

The rules:

- Look before minting, and again before each further attempt. Whoever finds a better token takes it.
- One flight leads at a time. Its lease outlasts one token request, and it gives it back with the
  token, or with the failure. Flights elsewhere wait for either, as long as their callers would.
- Each token request is counted in the cache before it is sent, and again when it is answered.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from ._client import Client
from ._fleet import Fleet
from ._flight import no_token
from ._flow import Effect, OutOfTimeError, Sleep
from ._fork import locked
from ._known import Known
from ._limiter import RateLimiter
from ._record import Limits, Record
from ._token import State, Token
from .exceptions import BaaSAuthError, TokenEndpointError

__all__ = ["NotNowError", "Turn"]

_LEASE = 3.0  # seconds longer than one token request
_LOOK_AGAIN = (0.05, 0.1, 0.2, 0.4)  # seconds, with jitter
_ROUNDS = 2  # a cache so slow that the lead lapses meanwhile is of no more help
_NEWER = 1.0  # seconds by which a token must live longer than ours to be taken for another
_NEVER = float("-inf")


class NotNowError(Exception):
    """Another process is renewing the token, or did a moment ago; until then there is one to serve."""


class Turn:
    """One flight's way to a token: another process's, or one that it may mint itself.

    Args:
        fleet: with whom to agree.
        known: what this process knows of the token.
        limiter: this process's, which learns of the fleet's limits.
        client: who asks.
        urgent: whether there is no token to serve meanwhile.
        deadline: the caller's patience ends at this time on the monotonic clock.

    Attributes:
        id: what this flight is called in the cache.
        found: the record that held the token, where another process minted it.
        failed_elsewhere: whether what `look` raised is another process's failure, which the cache knows already.
    """

    def __init__(
        self, fleet: Fleet, known: Known, limiter: RateLimiter, client: Client, *, urgent: bool, deadline: float
    ) -> None:
        self.id = fleet.new_id() if fleet.shared else ""
        self.found: Record | None = None
        self.failed_elsewhere = False
        self.urgent = urgent
        self.deadline = deadline
        self._fleet = fleet
        self._known = known
        self._before = known.token
        self._limiter = limiter
        self._client = client
        self._until = deadline if urgent else None
        self._failed_before: str | None = None  # which flight had failed last when this one began to wait
        self._leads_until = _NEVER
        # Leads no more: the caller is gone, or the cache was down, and what was asked of it may come late.
        self._over = False
        self._request = ""

    def look(self) -> Generator[Effect, Any, Token | None]:
        """Return the token that another process minted, or None once it is this flight's to mint.

        Raises:
            NotNowError: another process is at it, and there is a token to serve.
            TokenEndpointError: another process failed while this one waited for it, or was refused.
            OutOfTimeError: no token came before the deadline.
        """
        fleet, pauses = self._fleet, iter(_LOOK_AGAIN)
        while True:
            asked = fleet.clock().monotonic
            record, leads = yield from fleet.change(Record, self._take_lead, until=self._until, undo=self.give_back)
            if record is None:
                self._over = True
                if fleet.in_doubt and not self.urgent:
                    raise NotNowError
                return None
            if fleet.shared:  # else nothing is in it but what was learnt here
                with locked():
                    self._known.learn(record, fleet.clock())
            if leads:
                self._leads_until = asked + record.lease
                return None
            if record.token is not None and self._wants(record.token):
                self.found = record
                return record.token
            if not fleet.shared or (self._over and not fleet.is_elsewhere(record.leader)):
                return None
            if record.failure is not None and self._shares_failure(record):
                self.failed_elsewhere = True
                raise record.failure.own_copy()
            if not self.urgent:
                raise NotNowError
            if self._failed_before is None:
                self._failed_before = record.failed
            left = self.deadline - fleet.clock().monotonic
            if left <= 0:
                raise OutOfTimeError(no_token(self._client.name, "none came within max_wait"))
            pause = next(pauses, _LOOK_AGAIN[-1])
            yield Sleep(min(left, random.uniform(pause / 2, pause)))  # noqa: S311  # jitter, not cryptography

    def _take_lead(self, record: Record) -> Record | None:
        if self._over or not self._fleet.shared or (record.token is not None and self._wants(record.token)):
            return None
        if self._shares_failure(record) or (record.pause and not self.urgent):
            return None
        if self._fleet.is_elsewhere(record.leader):
            return None
        return record._replace(leader=self.id, lease=self._client.timeout + _LEASE)

    def _shares_failure(self, record: Record) -> bool:
        """Tell whether what another process ran into is this flight's outcome, too."""
        failed_since = self._failed_before is not None and record.failed != self._failed_before
        return record.failed != "" and (failed_since or (record.refused and record.pause > 0))

    def _wants(self, found: Token) -> bool:
        """Tell whether a token is better than the one at hand."""
        now, before = self._fleet.clock(), self._before
        state = found.state(now, self._client.leeway)
        if state is State.DEAD or self._known.is_past(found, now):
            return False
        if before is None or self.urgent:
            return True
        return found.remaining(now) > before.remaining(now) + _NEWER and (self._fleet.shared or state is State.FRESH)

    def enter(self) -> Generator[Effect, Any, Token | None]:
        """Before a token request: make sure of the lead and count it, or return a token that came meanwhile."""
        fleet, now = self._fleet, self._fleet.clock().monotonic
        if not fleet.shared or self._limiter.delay(now):
            return None
        self._request = fleet.new_id()
        for _ in range(_ROUNDS):
            if self._leads_until < now + self._client.timeout:
                found = yield from self.look()
                if found is not None:
                    return found
            limits, counted = yield from fleet.change(Limits, self._count, until=self._until)
            now = fleet.clock().monotonic
            if limits is None or not counted:
                self._limiter.block(limits.wait(fleet.limit) if limits else 0.0, now)
                return None
            if self._over or self._leads_until >= now + self._client.timeout:
                return None  # and nothing comes between this and the request
        return None

    def _count(self, limits: Limits) -> Limits | None:
        return None if limits.wait(self._fleet.limit) else limits.counting(self._request, self._fleet.limit)

    def answered(self) -> None:
        """After a token request, whatever came of it: count it from now on, instead of from when it was sent."""
        fleet, request = self._fleet, self._request
        if fleet.limit:
            fleet.change_some_time(Limits, lambda limits: limits.counting(request, fleet.limit))

    def blocked(self, seconds: float) -> Generator[Effect, Any, None]:
        """After a token request: tell the fleet of a Retry-After."""
        fleet, until = self._fleet, self._fleet.clock().monotonic + seconds
        if fleet.shared:
            yield from fleet.change(Limits, lambda limits: limits.blocking(until - fleet.clock().monotonic))

    def tell_token(self, token: Token, *, landed: bool) -> Generator[Effect, Any, None]:
        """Give the lead back, with the token that was minted, unless somebody here has a newer one."""
        tell, undo = partial(self._with_token, token) if landed else self.give_back, partial(self._with_age, token)
        told, _ = yield from self._fleet.change(Record, tell, until=self._until, undo=undo)
        if told is None:
            self._end_some_time(tell, undo)

    def _with_token(self, token: Token, record: Record) -> Record | None:
        now, kept = self._fleet.clock(), record.token
        token = token.as_told(now)
        if record.leader != self.id and kept is not None and kept.monotonic > token.monotonic:
            return None
        return self._known.tell_token(self.give_back(record) or record, token, now)

    def _with_age(self, token: Token, record: Record) -> Record | None:
        """Return the record with the age that its token has now: to write it took longer than anybody waited."""
        kept = record.token
        if kept is None or kept.access_token != token.access_token:
            return None
        return record._replace(token=token.as_told(self._fleet.clock()))

    def tell_failure(self, error: BaaSAuthError) -> Generator[Effect, Any, None]:
        """Give the lead back, with what went wrong, unless it is this process's own affair."""
        if not self.failed_elsewhere:
            shared = partial(self._with_failure, error) if isinstance(error, TokenEndpointError) else self.give_back
            yield from self._fleet.change(Record, shared)

    def _with_failure(self, error: TokenEndpointError, record: Record) -> Record | None:
        if record.leader not in ("", self.id):
            return None
        return self._known.tell_failure(self.give_back(record) or record, self.id, error, self._fleet.clock())

    def tell_loss(self) -> None:
        """Give the lead back after a connection was lost, and wait for nothing; the second in a row is a failure to all."""
        self._over = True
        self._end_some_time(self._with_loss)

    def _with_loss(self, record: Record) -> Record | None:
        if not record.lost:
            led = self.give_back(record)
            return led and led._replace(lost=True)
        return self._with_failure(no_token(self._client.name, "the token endpoint cannot be reached"), record)

    def end(self) -> Generator[Effect, Any, None]:
        """Give the lead back."""
        yield from self._fleet.change(Record, self.give_back)

    def abandon(self) -> None:
        """Give the lead back, and wait for nothing: the caller is gone."""
        self._over = True
        self._end_some_time(self.give_back)

    def _end_some_time(
        self, decide: Callable[[Record], Record | None], undo: Callable[[Record], Record | None] | None = None
    ) -> None:
        if self._leads_until != _NEVER:  # others wait for a lead that this flight took, if it did
            self._fleet.change_some_time(Record, decide, undo, anyway=True)

    def give_back(self, record: Record) -> Record | None:
        """Return the record without this flight's lead; None if it does not lead."""
        return record._replace(leader="", lease=0.0) if record.leader == self.id else None
