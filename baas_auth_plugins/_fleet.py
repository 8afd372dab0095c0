"""One flight for a whole fleet: how the processes that share a cache agree on who mints, and what came of it.

The rules:

- Look before minting, and again before each further attempt. Whoever finds a better token takes it.
- One flight leads at a time. Its lease outlasts one token request, and it gives it back with the
  token, or with the failure. Flights elsewhere wait for either, as long as their callers would.
- Each token request is counted in the cache before it is sent, and again when it is answered.
- A cache that is down knows nothing and forbids nothing: then each process goes on by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from ._flow import Clock, Effect, OutOfTimeError, Sleep
from ._fork import process_id
from ._limiter import RateLimiter
from ._record import Limits, Record, open_record, seal_record
from ._shared import CacheDownError, SharedCache
from ._token import Token
from .cache import TokenCache
from .exceptions import TokenEndpointUnavailableError

if TYPE_CHECKING:
    from ._seal import Seal

__all__ = ["Fleet", "NotNowError", "Turn"]

R = TypeVar("R", Record, Limits)

_PATIENCE, _PATIENCE_WITHOUT_TOKEN = 0.25, 5.0  # seconds for one operation
_LEASE = 3.0  # seconds longer than one token request
_LOOK_AGAIN = (0.05, 0.1, 0.2, 0.4)  # seconds, with jitter
_TRIES = 50
_NEVER = float("-inf")
_numbers = count()


class NotNowError(Exception):
    """Another process is renewing the token, or did a moment ago; until then there is one to serve."""


class Fleet:
    """One token's place in a cache.

    Args:
        cache: where.
        key: of the token.
        limits_key: of the client's rate limit.
        seal: seals what leaves the process; None for a cache in this process's memory.
        limit: the provider's rate limit.
        clock: tells the time.
    """

    __slots__ = ("_cache", "_key", "_limits_key", "_seal", "clock", "limit", "shared")

    def __init__(
        self,
        cache: SharedCache,
        key: str,
        limits_key: str,
        seal: Seal | None,
        limit: tuple[int, float] | None,
        clock: Clock,
    ) -> None:
        self.shared = seal is not None
        self.limit = limit
        self.clock = clock
        self._cache = cache
        self._key = key
        self._limits_key = limits_key
        self._seal = seal

    def new_id(self) -> str:
        """Return an id for a flight or a token request of this process."""
        return f"{self._process()}{next(_numbers)}"

    def is_elsewhere(self, leader: str) -> bool:
        """Tell whether this flight is another process's."""
        return bool(leader) and not leader.startswith(self._process())

    def _process(self) -> str:
        return f"{process_id()}:{id(self)}:"

    def change(
        self,
        decide: Callable[[Record], Record | None],
        *,
        urgent: bool = False,
        undo: Callable[[Record], Record | None] | None = None,
    ) -> Generator[Effect, Any, tuple[Record | None, bool]]:
        """Replace the record by what `decide` makes of it; it may be asked again, if somebody else was quicker.

        Args:
            decide: returns the new record, or None to leave it.
            urgent: there is no token to serve meanwhile, so waiting longer is worth it.
            undo: takes the change back, should it be made after it was given up.

        Returns:
            The record as it is now, or None while the cache is down; and whether it was replaced.
        """
        return (yield from self._change(Record, self._key, decide, urgent, undo))

    def look(self, *, urgent: bool = False) -> Generator[Effect, Any, Record | None]:
        """Return the record, or None while the cache is down."""
        return (yield from self.change(lambda _: None, urgent=urgent))[0]

    def look_at_limits(self, *, urgent: bool = False) -> Generator[Effect, Any, Limits | None]:
        """Return the client's limits, or None while the cache is down."""
        return (yield from self.change_limits(lambda _: None, urgent=urgent))[0]

    def change_limits(
        self, decide: Callable[[Limits], Limits | None], *, urgent: bool = False
    ) -> Generator[Effect, Any, tuple[Limits | None, bool]]:
        """Do as `change`, with the client's limits."""
        return (yield from self._change(Limits, self._limits_key, decide, urgent, None))

    def change_some_time(
        self, decide: Callable[[Record], Record | None], undo: Callable[[Record], Record | None] | None = None
    ) -> None:
        """Do as `change`, without waiting for it, and even where the cache is passed over."""
        if self.shared:
            self._cache.start(
                lambda cache: self._swap(cache, Record, self._key, decide),
                undo and (lambda cache: self._swap(cache, Record, self._key, undo)),
                anyway=True,
            )

    def change_limits_some_time(self, decide: Callable[[Limits], Limits | None]) -> None:
        """Do as `change_limits`, without waiting for it."""
        if self.shared:
            self._cache.start(lambda cache: self._swap(cache, Limits, self._limits_key, decide))

    def _change(
        self,
        kind: type[R],
        key: str,
        decide: Callable[[R], R | None],
        urgent: bool,
        undo: Callable[[R], R | None] | None,
    ) -> Generator[Effect, Any, tuple[R | None, bool]]:
        patience = _PATIENCE_WITHOUT_TOKEN if urgent else _PATIENCE
        try:
            changed: tuple[R, bool] = yield from self._cache.use(
                lambda cache: self._swap(cache, kind, key, decide),
                patience,
                undo and (lambda cache: self._swap(cache, kind, key, undo)),
            )
        except CacheDownError:
            return None, False
        return changed

    def _swap(self, cache: TokenCache, kind: type[R], key: str, decide: Callable[[R], R | None]) -> tuple[R, bool]:
        for _ in range(_TRIES):
            value, ttl = cache.get(key) or (None, 0.0)
            known = open_record(kind, self._seal, key, value, ttl, self.clock())
            new = decide(known)
            if new is None:
                return known, False
            if cache.swap(key, value, *seal_record(new, self._seal, key, self.clock())):
                return new, True
        raise TimeoutError


class Turn:
    """One flight's way to a token: another process's, or one that it may mint itself.

    Args:
        fleet: with whom to agree.
        limiter: this process's, which learns of the fleet's limits.
        wants: tells whether a token is better than what is at hand.
        learn: is told of each record that is seen.
        timeout: seconds for one token request.
        urgent: whether there is no token to serve meanwhile.
        deadline: the caller's patience ends at this time on the monotonic clock.
        provider: the provider's name, for errors.
    """

    def __init__(
        self,
        fleet: Fleet,
        limiter: RateLimiter,
        wants: Callable[[Token], bool],
        learn: Callable[[Record], None],
        *,
        timeout: float,
        urgent: bool,
        deadline: float,
        provider: str,
    ) -> None:
        self.id = fleet.new_id() if fleet.shared else ""
        self.found: Record | None = None
        self.failed_elsewhere = False
        self._fleet = fleet
        self._limiter = limiter
        self._wants = wants
        self._learn = learn
        self._timeout = timeout
        self._urgent = urgent
        self._deadline = deadline
        self._provider = provider
        self._failed_before: str | None = None  # which flight had failed last when this one began to wait
        self._leads_until = _NEVER
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
            record, leads = yield from fleet.change(self._take_lead, urgent=self._urgent, undo=self.give_back)
            if record is None:
                self._over = True  # from here on without the cache
                return None
            if fleet.shared:  # else nothing is in it but what was learnt here
                self._learn(record)
            if leads:
                self._leads_until = asked + record.lease
                return None
            if record.token is not None and self._wants(record.token):
                self.found = record
                return record.token
            if not fleet.shared:
                return None
            if record.failure is not None and self._shares_failure(record):
                self.failed_elsewhere = True
                raise record.failure.own_copy()
            if not self._urgent:
                raise NotNowError
            if self._failed_before is None:
                self._failed_before = record.failed
            left = self._deadline - fleet.clock().monotonic
            if left <= 0:
                text = f"{self._provider}: no token, none came within max_wait"
                raise OutOfTimeError(TokenEndpointUnavailableError(text, provider=self._provider))
            pause = next(pauses, _LOOK_AGAIN[-1])
            yield Sleep(min(left, random.uniform(pause / 2, pause)))  # noqa: S311  # jitter, not cryptography

    def _take_lead(self, record: Record) -> Record | None:
        if self._over or not self._fleet.shared or (record.token is not None and self._wants(record.token)):
            return None
        if self._shares_failure(record) or (record.pause and not self._urgent):
            return None
        if self._fleet.is_elsewhere(record.leader):
            return None
        return record._replace(leader=self.id, lease=self._timeout + _LEASE)

    def _shares_failure(self, record: Record) -> bool:
        """Tell whether what another process ran into is this flight's outcome, too."""
        failed_since = self._failed_before is not None and record.failed != self._failed_before
        return record.failed != "" and (failed_since or (record.refused and record.pause > 0))

    def enter(self) -> Generator[Effect, Any, Token | None]:
        """Before a token request: make sure of the lead and count it, or return a token that came meanwhile."""
        fleet, now = self._fleet, self._fleet.clock().monotonic
        if not fleet.shared or self._limiter.delay(now):
            return None
        self._request = fleet.new_id()
        while not self._over:
            if self._leads_until < now + self._timeout:
                found = yield from self.look()
                if found is not None:
                    return found
            limits, counted = yield from fleet.change_limits(self._count, urgent=self._urgent)
            now = fleet.clock().monotonic
            if limits is None or not counted:
                self._limiter.block(limits.wait(fleet.limit) if limits else 0.0, now)
                return None
            if self._leads_until >= now + self._timeout:
                return None  # and nothing comes between this and the request
        return None

    def _count(self, limits: Limits) -> Limits | None:
        return None if limits.wait(self._fleet.limit) else limits.counting(self._request, self._fleet.limit)

    def answered(self) -> None:
        """After a token request, whatever came of it: count it from now on, instead of from when it was sent."""
        fleet, request = self._fleet, self._request
        if fleet.limit:
            fleet.change_limits_some_time(lambda limits: limits.counting(request, fleet.limit))

    def blocked(self, seconds: float) -> Generator[Effect, Any, None]:
        """After a token request: tell the fleet of a Retry-After."""
        if self._fleet.shared:
            yield from self._fleet.change_limits(lambda limits: limits.blocking(seconds))

    def abandon(self) -> None:
        """Give the lead back, and wait for nothing: the caller is gone."""
        self._over = True
        self.end_some_time(self.give_back)

    def end_some_time(
        self, decide: Callable[[Record], Record | None], undo: Callable[[Record], Record | None] | None = None
    ) -> None:
        """Do as `Fleet.change`, without waiting for it: others wait for a lead that this flight took, if it did."""
        if self._leads_until != _NEVER:
            self._fleet.change_some_time(decide, undo)

    def give_back(self, record: Record) -> Record | None:
        """Return the record without this flight's lead; None if it does not lead."""
        return record._replace(leader="", lease=0.0) if record.leader == self.id else None
