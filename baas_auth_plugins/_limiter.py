"""When the next token request may be sent: the provider's rate limit, and any Retry-After.

One limiter serves everyone in the process who uses the same token endpoint and client_id. It reads
the monotonic clock only: a limit must hold however the wall clock is stepped. A request counts
from the moment its answer came, which is never before the gateway counted it.
"""

from __future__ import annotations

import math

from ._fork import locked

__all__ = ["RateLimiter"]


class RateLimiter:
    """Keeps token requests within `requests` in any `seconds`, both from the provider's declaration."""

    __slots__ = ("__weakref__", "_blocked_until", "_counted", "_requests", "_seconds")

    def __init__(self, limit: tuple[int, float] | None) -> None:
        self._requests: float
        self._requests, self._seconds = limit or (math.inf, 0.0)
        self._counted: list[float] = []
        self._blocked_until = -math.inf

    def delay(self, now: float) -> float:
        """Return the seconds until a token request may be sent; 0 if one may be sent at once."""
        with locked():
            self._counted = [at for at in self._counted if now - at < self._seconds]
            free = max(self._blocked_until - now, 0.0)
            excess = len(self._counted) - self._requests
            if excess >= 0:
                free = max(free, sorted(self._counted)[int(excess)] + self._seconds - now)
            return free

    def take(self, now: float) -> float:
        """Count a request that is sent now, and return 0; or return the seconds to wait, and count nothing."""
        with locked():
            wait = self.delay(now)
            if wait == 0 and self._seconds:
                self._counted.append(now)
            return wait

    def answered(self, sent: float, now: float) -> None:
        """Count a request from `now` on, when its answer or its failure came, instead of from when it was sent."""
        if self._seconds:
            with locked():
                if sent in self._counted:
                    self._counted.remove(sent)
                self._counted.append(now)  # also where the answer took longer than the window

    def block(self, seconds: float, now: float) -> None:
        """Let no token request out for `seconds`: the gateway said so."""
        with locked():
            if seconds > 0:  # for whoever looked at the clock a moment before, "until now" would not be over yet
                self._blocked_until = max(self._blocked_until, now + seconds)
