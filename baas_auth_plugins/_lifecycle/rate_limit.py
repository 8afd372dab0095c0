"""The provider's limit on token requests: one sliding window, for a process and for a fleet, and any Retry-After.

A request counts from its answer: the gateway has counted it by then. The window reads the
monotonic clock alone: the limit holds however the wall clock is stepped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from .._oauth.token import Instant
from .._process import lock, process_id
from .state import NO_BACKOFF, Backoff

Limit = tuple[int, float] | None
"""Requests and seconds."""

_AHEAD = 2.0  # seconds: a fleet counts a request somewhat later than it was sent
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The token requests of late, and the gateway's Retry-After.

    Attributes:
        counted: id of a token request to the moment from which it counts, on the monotonic clock.
        blocked: no token request is sent while this runs.
    """

    counted: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    blocked: Backoff = NO_BACKOFF

    def wait(self, limit: Limit, now: Instant) -> float:
        """Return the seconds until a token request may be sent."""
        requests, seconds = limit or (math.inf, 0.0)
        # A moment in the future is void: it comes from another clock.
        ages = [now.monotonic - at for at in self.counted.values()]
        ages = sorted(age for age in ages if -_AHEAD <= age < seconds)
        excess = len(ages) - requests
        window = seconds - ages[-int(excess) - 1] if excess >= 0 else 0.0
        return max(window, self.blocked.remaining(now))

    def counting(self, request: str, limit: Limit, at: float, now: Instant) -> RateLimits:
        """Return these limits with a token request that counts from `at` on the monotonic clock."""
        if limit is None:
            return self
        recent = {one: then for one, then in self.counted.items() if now.monotonic - then < limit[1]}
        return replace(self, counted={**recent, request: max(at, recent.get(request, at))})

    def blocking(self, seconds: float, now: Instant) -> RateLimits:
        """Return these limits with no token request for at least so many seconds."""
        if seconds <= self.blocked.remaining(now):
            return self
        return replace(self, blocked=Backoff(1, now, seconds))

    def merged(self, shared: RateLimits | None, now: Instant) -> RateLimits:
        """Return what this process and the shared record know together."""
        if shared is None:
            return self
        counted = dict(shared.counted)
        for request, at in self.counted.items():
            counted[request] = max(at, counted.get(request, at))
        return RateLimits(counted, max(self.blocked, shared.blocked, key=lambda blocked: blocked.remaining(now)))


class RateLimiter:
    """The limits of one client at one token endpoint, for all callers in the process.

    Args:
        limit: (requests, seconds), or None.
    """

    __slots__ = ("__weakref__", "_epoch", "limit", "limits")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.limits = RateLimits()
        self._epoch = 0

    def reset(self) -> None:
        """Forget everything. A token request under way does not count any more."""
        with lock():
            self._epoch += 1
            self.limits = RateLimits()

    def wait(self, now: Instant) -> float:
        """Return the seconds until a token request may be sent."""
        return self.limits.wait(self.limit, now)

    def new_request(self) -> str:
        """Return an id for a token request."""
        return f"{process_id()}:{next(_numbers)}:{self._epoch}"

    def count(self, request: str, now: Instant) -> None:
        """Count a token request from now on."""
        with lock():
            if self._is_known(request):
                self.limits = self.limits.counting(request, self.limit, now.monotonic, now)

    def block(self, seconds: float, now: Instant, request: str | None = None) -> None:
        """Send no token request for so many seconds.

        Args:
            seconds: the length.
            now: this moment.
            request: the token request whose answer says so.
        """
        with lock():
            if request is None or self._is_known(request):
                self.limits = self.limits.blocking(seconds, now)

    def _is_known(self, request: str) -> bool:
        """Return whether a token request was sent after the last reset."""
        return request.endswith(f":{self._epoch}")
