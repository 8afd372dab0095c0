"""What the process was told so far: written down as CONTRACT.md defines it, not as the code computes it.

The ledger judges nothing. It says how old a token is, which pauses run and why; `invariants` asks it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .gateway import Reply
from .world import EPSILON, Moment

__all__ = ["EDGE", "INEXACT", "Book", "Endpoint", "Known", "Pause"]

FRESH, STALE, CRITICAL, DEAD, EDGE = "fresh", "stale", "critical", "dead", "on the edge"

_COOL_DOWN = (5, 10, 20, 30)
_REFUSAL = _BRAKE = (5, 10, 20, 40, 60)
_FORGOTTEN_AFTER = 60
INEXACT = 0.1  # seconds: what is told of spans of time by way of a cache
_SPARE = 1  # a leader that was given up may have counted a request that it never sent


def _step(schedule: tuple[int, ...], times: int) -> int:
    return schedule[min(times, len(schedule) - 1)]


@dataclass
class Pause:
    """Something is not to be done for so many seconds, by the faster of the machine's clocks."""

    since: Moment
    seconds: float
    sure: bool = True
    """Whether it certainly holds; one that only may hold excuses, but does not accuse."""

    def holds(self, now: Moment, slack: float = EPSILON) -> bool:
        """Tell whether it still runs."""
        return now.since(self.since) < self.seconds + slack


@dataclass(eq=False)
class Known:
    """A token that the process was given, measured from the sending of its request."""

    access_token: str
    sent: Moment
    life: float
    rejected: bool = False
    """The API answered 401 to it."""
    dropped: bool = False
    """It was rejected while neither the brake nor a limit held: the next caller mints."""
    forgotten: bool = False
    """`invalidate` was called."""
    adopted: bool = False
    """Another process minted it, which knows more of it."""

    def left(self, now: Moment) -> float:
        """Return the seconds of life that are left."""
        return self.life - now.since(self.sent)

    def margins(self, leeway: float) -> tuple[float, float, float]:
        """Return the seconds left at which it turns stale, critical and dead (CONTRACT section 3)."""
        stale = min(leeway, self.life / 2)
        critical = min(60, self.life / 10, stale / 2)
        return stale, critical, min(5, self.life / 60, critical / 2)

    @property
    def slack(self) -> float:
        """Seconds by which the process may take it for older than it is: a cache counts in whole milliseconds."""
        return INEXACT if self.adopted else EPSILON

    def age(self, now: Moment, leeway: float) -> str:
        """Return its state, or that it is too near a threshold to argue."""
        left, margins = self.left(now), self.margins(leeway)
        if any(abs(left - margin) < self.slack for margin in margins):
            return EDGE
        return (FRESH, STALE, CRITICAL, DEAD)[sum(left < margin for margin in margins)]

    def lives(self, now: Moment, leeway: float) -> bool:
        """Tell whether it is certainly not dead."""
        return self.left(now) > self.margins(leeway)[2] + self.slack


@dataclass
class Endpoint:
    """What all keys share: the token endpoint's limits for one client_id."""

    limit: tuple[int, float] | None
    blocked_until: float = float("-inf")
    """A Retry-After runs, on the monotonic clock."""
    answered: deque[float] = field(default_factory=deque)
    arrivals: deque[float] = field(default_factory=deque)
    limited_at: float = float("-inf")

    def told(self, reply: Reply, now: Moment) -> None:
        """Take note of a 429 or a Retry-After that a caller has read."""
        seconds = reply.retry_after if reply.retry_at is None else reply.retry_at - now.wall
        if seconds is not None:
            self.blocked_until = max(self.blocked_until, now.mono + min(max(seconds, 0.0), 86_400.0))
        if reply.kind == "429":
            self.limited_at = now.mono

    def arrived(self, true: float) -> int:
        """Count an arrival; return how many there were within the limit's window, this one included."""
        self.arrivals.append(true)
        while self.limit and self.arrivals[0] <= true - self.limit[1]:
            self.arrivals.popleft()
        return len(self.arrivals)

    def limits(self, now: Moment, in_flight: int, spare: int = _SPARE) -> bool:
        """Tell whether a caller may find that no token request can be sent just now: an excuse, not a rule."""
        if self.blocked_until > now.mono - EPSILON:
            return True
        if self.limit is None:
            return False
        while self.answered and self.answered[0] < now.mono - self.limit[1] - EPSILON:
            self.answered.popleft()
        return len(self.answered) + in_flight + spare >= self.limit[0]


@dataclass
class Book:
    """All that is known under one cache key."""

    known: Known | None = None
    sender: Any = None
    """The caller whose token request is under way."""
    pause: Pause | None = None
    """After a failed renewal."""
    spacing: Pause | None = None
    """After a successful one."""
    superseded: Pause | None = None
    """The one before: who heard of it, and cannot use its token for a clock that is far off, goes by it."""
    refusal: Pause | None = None
    brake: Pause | None = None
    failures: int = 0
    refusals: int = 0
    blurred: bool = False
    """How many failures in a row there were cannot be told from here: the vault failed, or somebody's patience."""
    _doubt: Moment | None = None
    _braked: int = 0
    _braked_for: Known | None = None
    rejected_at: Moment | None = None
    minter: Any = None
    """The process that has the token from the gateway itself."""
    published: bool = False
    """Whether it lies in the cache for all to see."""
    brake_on: float = float("-inf")
    """When the brake was put on, truly."""
    _probation: Known | None = None

    def landed(self, known: Known, now: Moment, *, voluntary: bool, sure: bool) -> None:
        """Take note of a token, unless it is older than the one at hand."""
        at_hand = self.known
        replaces = at_hand is not None and not (at_hand.dropped or at_hand.forgotten)  # one that was not rejected
        if at_hand is not None and replaces and known.sent.mono < at_hand.sent.mono:
            return
        self.known = known
        self.failures = self.refusals = 0
        self.superseded = self.spacing or self.superseded
        self.pause = self.refusal = self.spacing = None
        self.blurred = False
        if voluntary:
            self.spacing = Pause(now, min(30, known.life / 10), sure)
        if not replaces and self.rejected_at is not None and now.since(self.rejected_at) < _FORGOTTEN_AFTER:
            self._probation = known

    def adopted(self, known: Known) -> None:
        """Take note of a token that another process minted: how it came by it, that one knows."""
        self.known = known
        self.failures = self.refusals = 0
        self.pause = self.refusal = self.spacing = self._probation = None
        self.blurred = True

    def failed(self, now: Moment, *, refusal: bool, sure: bool, blurs: bool) -> None:
        """Take note that a flight failed for good."""
        sure = sure and not self.blurred
        if refusal:
            seconds = _REFUSAL[-1] if self.blurred else _step(_REFUSAL, self.refusals)
            self.refusal = Pause(now, seconds, sure)
            self.refusals, self.failures = self.refusals + 1, 0
        else:
            seconds = _COOL_DOWN[-1] if self.blurred else _step(_COOL_DOWN, self.failures)
            self.pause = Pause(now, seconds, sure)
            self.refusals, self.failures = 0, self.failures + 1
        self.blurred |= blurs

    def fade(self, now: Moment) -> None:
        """Take note that a fleet forgets how often it failed a minute after the pause, but who failed does not."""
        lasting = any(
            pause is not None and pause.holds(now, _FORGOTTEN_AFTER - 1) for pause in (self.pause, self.refusal)
        )
        self.blurred |= self.failures + self.refusals > 0 and not lasting

    def vault_failed(self, now: Moment) -> None:
        """Take note that a flight may have failed before it sent anything."""
        self.failed(now, refusal=False, sure=False, blurs=True)

    def rejected(self, known: Known, now: Moment, *, replay: bool) -> None:
        """Take note of a 401; brake if the token was freshly minted after another one, or answers a replay within a minute."""
        if self.rejected_at is None or now.since(self.rejected_at) > _FORGOTTEN_AFTER:
            self._braked, self._probation = 0, None
        self.rejected_at = now
        known.rejected = True
        age = now.since(known.sent)
        fresh = age < _FORGOTTEN_AFTER
        if known is self._probation or (replay and fresh and known is not self._braked_for):
            sure = not (known.adopted or self._doubted(now) or age > _FORGOTTEN_AFTER - known.slack)
            self.brake = Pause(now, _step(_BRAKE, self._braked), sure=sure)
            self._braked += 1
            self._braked_for, self._probation = known, None

    def doubt(self, now: Moment, told: float | None = None) -> None:
        """Take note that who was told of a rejection, then on the monotonic clock, may be gone before the process knew."""
        self._doubt = now
        if self.brake is not None and self.brake.since.mono == told:
            self.brake.sure = False

    def _doubted(self, now: Moment) -> bool:
        return self._doubt is not None and now.since(self._doubt) < _FORGOTTEN_AFTER + 1

    def accepted(self, known: Known) -> None:
        """Take note that the caller that minted a token was let in with it."""
        if known is not self._braked_for:
            self._braked, self._probation, self.brake = 0, None, None
