"""When a token may be renewed again, after what failed and what succeeded of late.

A failure is followed by a pause, longer each time, in which no token is renewed that still lives. After a
refusal nobody asks in that time, with a token or without: all get the gateway's verdict.
"""

from __future__ import annotations

from typing import NamedTuple

from ._record import Record
from ._token import Instant
from .exceptions import InvalidScopeError, RateLimitError, TokenEndpointError

__all__ = ["NO_PAUSE", "Cooldown", "Pause", "is_refusal", "step"]

_AFTER_FAILURE = (5.0, 10.0, 20.0, 30.0)
_AFTER_REFUSAL = (5.0, 10.0, 20.0, 40.0, 60.0)


class Pause(NamedTuple):
    """Something is not done again for so many seconds."""

    since: Instant
    seconds: float

    def left(self, now: Instant) -> float:
        """Return the seconds that remain of it."""
        return max(0.0, self.seconds - now.since(self.since))


NO_PAUSE = Pause(Instant(0, 0), 0)


def step(schedule: tuple[float, ...], times: int) -> float:
    """Return the seconds to wait after so many times before."""
    return schedule[min(times, len(schedule) - 1)]


def is_refusal(error: Exception) -> bool:
    """Tell whether the gateway said no, rather than not now: a 4xx but 429, or a scope not granted."""
    if not isinstance(error, TokenEndpointError) or isinstance(error, RateLimitError):
        return False
    return isinstance(error, InvalidScopeError) or 400 <= (error.status_code or 0) < 500


class Cooldown:
    """The pauses between one source's renewals. What changes them is called with the lock held."""

    __slots__ = ("_failures", "_pause", "_refusal", "_stands")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all failures: a token came."""
        self._failures = 0
        self._pause = NO_PAUSE
        self._refusal: TokenEndpointError | None = None
        self._stands = NO_PAUSE  # the pause after the refusal, whatever prolongs the other

    def left(self, now: Instant) -> float:
        """Return the seconds before a token that lives may be renewed."""
        return self._pause.left(now)

    def verdict(self, now: Instant) -> TokenEndpointError | None:
        """Return the refusal that still stands, for one caller."""
        refusal = self._refusal
        return refusal.own_copy() if refusal is not None and self._stands.left(now) else None

    def failed(self, error: Exception, now: Instant) -> None:
        """Take note that no token came."""
        refused = is_refusal(error)
        if refused == (self._refusal is None):  # of the other kind than the last
            self._failures = 0
        self._pause = self._stands = Pause(now, step(_AFTER_REFUSAL if refused else _AFTER_FAILURE, self._failures))
        self._failures += 1
        # a copy has no traceback, and so holds no caller's frames
        self._refusal = error.own_copy() if refused and isinstance(error, TokenEndpointError) else None

    def rest(self, seconds: float, now: Instant) -> None:
        """Let so many seconds go by at least."""
        if self._pause.left(now) < seconds:
            self._pause = Pause(now, seconds)

    def learn(self, record: Record, now: Instant) -> None:
        """Take over what other processes ran into."""
        if record.pause > self._pause.left(now):
            self._pause = Pause(now, record.pause)
        if record.failure is not None and record.failures >= self._failures:
            self._failures, self._refusal = record.failures, record.failure if record.refused else None
            self._stands = Pause(now, record.pause)

    def tell(self, record: Record, now: Instant) -> Record:
        """Return the record with how things stand here."""
        return record._replace(failures=self._failures, pause=self._pause.left(now))
