"""Virtual time: the true time, each host's two clocks, and a scheduler that interleaves whatever is due."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

__all__ = ["Host", "Moment", "World"]

_EPOCH, _BOOT = 1_750_000_000.0, 5_000_000.0
_HICCUP = 0.03  # how often a caller that could go on is left waiting for a while


class Moment(NamedTuple):
    """One moment on a host's two clocks."""

    wall: float
    monotonic: float

    def since(self, earlier: Moment) -> float:
        """Return the seconds since `earlier`, by the clock that says more."""
        return max(self.wall - earlier.wall, self.monotonic - earlier.monotonic, 0.0)


@dataclass(eq=False)
class Host:
    """One machine.

    Attributes:
        skew: seconds by which its wall clock is off.
        slept: seconds for which it was suspended: its monotonic clock stood still.
        zero: seconds by which its monotonic clock differs from another host's.
        awake_at: until then it is suspended.
        stepped_at: the true time of the last step or suspension.
    """

    skew: float = 0.0
    slept: float = 0.0
    zero: float = 0.0
    awake_at: float = 0.0
    stepped_at: float = float("-inf")


@dataclass(order=True)
class _Event:
    due: float
    tie: float
    number: int
    action: Callable[[], object] = field(compare=False)
    host: Host | None = field(compare=False)


class World:
    """The true time, which never stands still nor goes back, and what is due when."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # not cryptography
        self.true = 0.0
        self.host = Host()  # whose clocks the code under test reads
        self._events: list[_Event] = []
        self._number = 0

    @property
    def now(self) -> Moment:
        """The present host's two clocks."""
        return self.on(self.host)

    def on(self, host: Host) -> Moment:
        """Return a host's two clocks."""
        return Moment(_EPOCH + self.true + host.skew, _BOOT + self.true + host.zero - host.slept)

    def after(self, seconds: float, action: Callable[[], object], host: Host | None = None) -> None:
        """Do something later; on a host, by its monotonic clock."""
        self._number += 1
        due = max(self.true, host.awake_at if host else 0.0) + max(seconds, 0.0)
        heapq.heappush(self._events, _Event(due, self.random.random(), self._number, action, host))

    def soon(self, action: Callable[[], object], host: Host | None = None) -> None:
        """Do something in its turn: now or, if the scheduler is busy, a little later."""
        rng = self.random
        self.after(rng.uniform(0, 0.3) if rng.random() < _HICCUP else 0.0, action, host)

    def suspend(self, host: Host, seconds: float) -> None:
        """Let a host sleep. Its timers stop; an answer from outside waits until it is awake."""
        host.slept += seconds
        host.awake_at = max(host.awake_at, self.true) + seconds
        host.stepped_at = host.awake_at
        for event in self._events:
            if event.host is host:
                event.due += seconds
        heapq.heapify(self._events)

    def step_wall_clock(self, host: Host, seconds: float) -> None:
        """Set a host's wall clock."""
        host.skew += seconds
        host.stepped_at = max(self.true, host.awake_at)

    def run(self, most: int) -> int:
        """Do all that is due, in its order; return how many steps that took."""
        for step in range(most):
            if not self._events:
                return step
            event = heapq.heappop(self._events)
            self.true = max(self.true, event.due)
            event.action()
        return most

    @contextmanager
    def clocks(self) -> Iterator[None]:
        """Let the code under test read these clocks and this randomness."""
        state: Any = random.getstate()
        random.seed(self.random.random())
        try:
            with (
                patch.object(time, "time", lambda: self.now.wall),
                patch.object(time, "monotonic", lambda: self.now.monotonic),
            ):
                yield
        finally:
            random.setstate(state)
