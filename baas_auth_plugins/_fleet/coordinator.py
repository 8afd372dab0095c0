"""One token request for a whole fleet: the processes that share a cache agree by compare-and-swap on one record per token.

The rules:

- A process reads the record before it requests a token. If another one has a better token, it adopts that.
- One process at a time holds the lease, and may send. The lease covers one token request: `timeout` + 5 s. A process
  without a valid token waits for the holder's token or failure; one with a valid token serves that.
- Each change is applied to ``merged(local, shared)``. A process applies it at once to its own state, so that a cache
  that fails loses nothing.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from .._lifecycle import reports
from .._lifecycle.call import Work
from .._lifecycle.coordinator import Decision, LocalState
from .._lifecycle.effects import Flow, ReadResponse, Sleep
from .._lifecycle.rate_limit import RateLimiter, RateLimits
from .._lifecycle.single_flight import Flight, OutOfTimeError, SingleFlight, no_token
from .._lifecycle.state import Lease, TokenState, Transition, merged
from .._oauth.token import Instant, now
from .._process import lock, process_id
from ..exceptions import TokenEndpointError
from .codec import Codec
from .store import SECONDS_WITH_TOKEN, SECONDS_WITHOUT, Record, SharedStore, StoreDownError

logger = logging.getLogger("baas_auth_plugins")

_LEASE_MARGIN = 5.0  # seconds: a cache operation may take 1 s, and be tried again
_POLL = (0.05, 0.1, 0.2, 0.4)  # seconds, with jitter
_LONGER = 1.0  # seconds by which a token must outlive ours to be worth adopting
_UNTIL_ANSWERED = 1.0  # seconds: a request counts from here on, as if its answer had come by then
_numbers = itertools.count()


class FleetCoordinator:
    """Coordinates this process with all others that use one cache.

    Args:
        provider: the provider's name, for errors.
        local: this process's state.
        limiter: this process's rate limit.
        store: the cache.
        codec: of the token's record.
        limits: of the record of the client's rate limit.
    """

    def __init__(
        self,
        provider: str,
        local: LocalState,
        limiter: RateLimiter,
        store: SharedStore,
        codec: Codec[TokenState],
        limits: Codec[RateLimits],
    ) -> None:
        self._provider = provider
        self._local = local
        self._limiter = limiter
        self._store = store
        self._codec = codec
        self._limits = limits
        self._number = next(_numbers)
        self._turn = 0  # goes up as a lead ends
        self._looks = SingleFlight(provider)
        self._seen: Record[TokenState] | None = None
        self._is_seen_now = False
        self._seen_limits: Record[RateLimits] | None = None

    def reset(self) -> None:
        """Forget everything but what is in the cache."""
        self._local.reset()
        self._store.reset()
        self._looks = SingleFlight(self._provider)
        self._seen = self._seen_limits = None

    @property
    def _name(self) -> str:
        """What the ids of this coordinator's leases begin with. Each lease that it finds there is its own."""
        return f"{process_id()}:{self._number}:"

    @property
    def _owner(self) -> str:
        """The id of the present lead's lease. A lead that ends late takes no lease from the next one."""
        return f"{self._name}{self._turn}"

    def lead_or_adopt(self, work: Work) -> Flow[Decision]:
        """Take the lease, or adopt another process's token: see `Coordinator`."""
        polls = iter(_POLL)
        while True:
            if self._leads(work.call.client.timeout):
                return Decision.LEAD
            seen, self._is_seen_now = (self._seen if self._is_seen_now else None), False
            try:
                seconds = _patience(work.deadline) if work.is_urgent else SECONDS_WITH_TOKEN
                decide = partial(self._leased, work, self._owner)
                record = yield from self._store.change(self._codec, decide, seconds=seconds, seen=seen)
            except StoreDownError as down:
                return (yield from self._alone(work, down))
            state, at = self._take_over(record), now()
            if record.is_written:
                self._say("this process holds the lease, and may send one token request")
                return Decision.LEAD
            if state.token is not None and self._is_better(state, work, at):
                name, remaining = reports.name_of(state.token), state.token.remaining(at)
                self._say("adopted %s, which another process requested; it expires in %.0f s", name, remaining)
                return Decision.ADOPTED
            if not work.is_urgent:
                self._say("another process renews the token, or has just failed to")
                return Decision.BUSY
            if state.failure_now(at):
                self._say("another process's token request failed; its error counts here, too")
                return Decision.ADOPTED  # raised here, it would count as this process's own
            if not state.leased_by_other(self._name, at):  # a Retry-After: the limiter makes the caller wait
                self._limiter.block(state.blocked.remaining(at), at)
                return Decision.LEAD
            self._say("another process requests a token; looking for it again soon")
            yield from self._pause(work, next(polls, _POLL[-1]))

    def _say(self, text: str, *values: object) -> None:
        logger.debug("%s: " + text, self._provider, *values)

    def _leads(self, seconds: float) -> bool:
        lease = self._local.value.lease
        return lease is not None and lease.owner == self._owner and lease.remaining(now()) >= seconds

    def _leased(self, work: Work, owner: str, shared: TokenState | None) -> TokenState | None:
        """Return the record with the lease, or None if this process must not take it."""
        at = now()
        if owner != self._owner:
            return None  # too late: that lead has ended
        base = merged(self._local.value, shared, at)
        if self._is_better(base, work, at) or base.failure_now(at) or base.leased_by_other(self._name, at):
            return None
        is_own = base.lease is not None and base.lease.owner == owner
        waits = base.blocked.remaining(at) or (not work.is_urgent and base.renewal.remaining(at))
        if waits and not is_own:
            return None
        if work.call.rejected is not None:
            base = base.without_token(work.call.rejected)
        return base.leased(owner, work.call.client.timeout + _LEASE_MARGIN, at)

    def _is_better(self, state: TokenState, work: Work, at: Instant) -> bool:
        """Return whether the record's token spares this process a request."""
        token, ours = state.usable(work.call.rejected, work.call.client.leeway, at), work.token
        if token is None or ours is None:
            return token is not None
        return token.access_token != ours.access_token and token.remaining(at) > ours.remaining(at) + _LONGER

    def _alone(self, work: Work, down: StoreDownError) -> Flow[Decision]:
        """Go on without the cache, after the lease of another process that is known."""
        lease = self._local.value.leased_by_other(self._name, now())
        if not work.is_urgent:
            return Decision.BUSY if down.is_new or lease else Decision.LEAD
        while lease:
            yield from self._pause(work, min(lease, 1.0))
            lease = self._local.value.leased_by_other(self._name, now())
        return Decision.LEAD

    def _pause(self, work: Work, seconds: float) -> Flow[None]:
        left = work.deadline - now().monotonic
        if left <= 0:
            raise OutOfTimeError(no_token(self._provider, "none came within max_wait"))
        work.flight.hold(seconds)
        yield from Sleep(min(left, random.uniform(seconds / 2, seconds)))  # noqa: S311  # jitter, not cryptography

    def _take_over(self, record: Record[TokenState]) -> TokenState:
        """Merge what is in the cache into what this process knows."""
        with lock():
            self._seen = record
            self._local.apply(lambda state: merged(state, record.value, now()))
            return self._local.value

    def publish(self, transition: Transition, epoch: int | None = None, *, ends_lead: bool = False) -> Flow[None]:
        """Change the state here, then in the cache. A cache that fails costs no more than time."""
        decide = self._applied(transition, epoch, ends_lead=ends_lead)
        if decide is None:
            return
        seconds, self._is_seen_now = SECONDS_WITHOUT if self._local.value.token is None else SECONDS_WITH_TOKEN, False
        try:
            record = yield from self._store.change(self._codec, decide, seconds=seconds, seen=self._seen)
        except StoreDownError:
            self._seen = None
        else:
            self._take_over(record)

    def publish_later(self, transition: Transition, epoch: int | None = None, *, ends_lead: bool = False) -> None:
        """Do as `publish`, and wait for nothing."""
        decide = self._applied(transition, epoch, ends_lead=ends_lead)
        if decide is not None:
            self._seen = None
            self._store.change_later(self._codec, decide)

    def _applied(
        self, transition: Transition, epoch: int | None, *, ends_lead: bool
    ) -> Callable[[TokenState | None], TokenState] | None:
        """Change the state here; return what changes the record, or None if the record says all of it."""
        with lock():
            owner = self._owner
            self._turn += ends_lead
            if epoch is not None and epoch != self._local.epoch:
                return None  # `testing.reset` came between
            before = self._local.value
            self._local.apply(transition, epoch)
            after = self._local.value
        if not self._has_ended(before.lease) and self._seen is not None and after == self._seen.value:
            return None

        def decide(shared: TokenState | None) -> TokenState:
            at = now()
            base = merged(before, shared, at)
            holds = base.lease is not None and base.lease.owner == owner
            # The holder of the lease has the last word; for all others the rules of `merged` apply.
            new = transition(base) if holds else merged(after, shared, at)
            return replace(new, lease=None if self._has_ended(base.lease) else base.lease)

        return decide

    def _has_ended(self, lease: Lease | None) -> bool:
        """Return whether a lease is one of this coordinator's, of a lead that has ended."""
        return lease is not None and lease.owner.startswith(self._name) and lease.owner != self._owner

    def look(self, deadline: float) -> Flow[None]:
        """Read the record, once for all callers that want to."""
        yield from ReadResponse()
        with suppress(TokenEndpointError):  # other callers' reading took too long
            yield from self._looks.run(partial(self._read, _patience(deadline)), is_urgent=True, deadline=deadline)

    def _read(self, seconds: float, _flight: Flight) -> Flow[None]:
        with suppress(StoreDownError):
            self._take_over((yield from self._store.read(self._codec, seconds=seconds)))
            self._is_seen_now = True
            if self._limiter.limit is not None:  # while the fleet may send nothing, a 401 is returned as it is
                self._seen_limits = yield from self._store.read(self._limits, seconds=seconds)
                self._take_over_limits(self._seen_limits)

    def _take_over_limits(self, record: Record[RateLimits]) -> None:
        with lock():
            self._limiter.limits = self._limiter.limits.merged(record.value, now())

    def reserve(self, request: str) -> Flow[float]:
        """Count a token request in the fleet before it is sent."""
        limiter = self._limiter
        if limiter.limit is None or (wait := limiter.wait(now())):
            return limiter.wait(now())

        def decide(shared: RateLimits | None) -> RateLimits | None:
            at = now()
            known = limiter.limits.merged(shared, at)
            if known.wait(limiter.limit, at):
                return None
            return known.counting(request, limiter.limit, at.monotonic + _UNTIL_ANSWERED, at)

        try:
            seen, self._seen_limits = self._seen_limits, None
            record = yield from self._store.change(self._limits, decide, seconds=SECONDS_WITHOUT, seen=seen)
        except StoreDownError:
            wait = limiter.wait(now())
            if not wait:
                limiter.count(request, now())
            return wait
        self._take_over_limits(record)
        return 0.0 if record.is_written else max(limiter.wait(now()), _POLL[0])

    def answered(self, request: str) -> Flow[None]:
        """Count a slow token request anew; a quick one has been counted so from the start."""
        limiter, at = self._limiter, now()
        if limiter.limit is None or limiter.limits.counted.get(request, at.monotonic) > at.monotonic:
            return
        limiter.count(request, at)
        with suppress(StoreDownError):
            yield from self._store.change(
                self._limits, lambda shared: limiter.limits.merged(shared, now()), seconds=SECONDS_WITHOUT
            )


def _patience(deadline: float) -> float:
    """Return the seconds for one cache operation, which is tried twice, so that half the caller's time is left."""
    return min(SECONDS_WITHOUT, max(SECONDS_WITH_TOKEN, (deadline - now().monotonic) / 4))
