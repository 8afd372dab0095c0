"""Virtual time, and the scheduler that interleaves callers at every yield.

Three clocks, as on a real machine. `true` is the gateway's: it never stands still nor jumps back. The
machine's monotonic clock is the true one minus the time it slept; its wall clock is the true one
plus whatever it was stepped by. Timers of callers run on the monotonic clock, all else on the true one.

The processes of a fleet may be on hosts of their own: each has its own wall clock, and its own zero of the
monotonic one. Whoever steps something says on which host that is.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

__all__ = ["EPSILON", "Host", "Moment", "Task", "World"]

EPSILON = 1e-3
"""Seconds within which the simulation does not argue."""

_BOOT, _EPOCH = 1_000.0, 1_750_000_000.0
_TICK = 1e-6  # no timer is shorter: a float that grows by less may not grow at all
_HICCUP = 0.03  # how often a runnable caller is left lying while time goes on


class Moment(NamedTuple):
    """One moment on the machine's two clocks."""

    wall: float
    mono: float

    def since(self, earlier: Moment) -> float:
        """Return the seconds from `earlier`, by whichever clock says more."""
        return max(self.wall - earlier.wall, self.mono - earlier.mono)


@dataclass(eq=False)
class Host:
    """What is one machine's own: how far its wall clock is off, and when its monotonic one began."""

    off: float = 0.0
    zero: float = 0.0


class Task:
    """Something that can be stepped: the scheduler's view of a caller."""

    name: str
    done = False
    epoch = 0
    """Grows at each step, so that timers and answers which come too late are recognised."""
    frozen_until = 0.0
    """On the monotonic clock: its event loop hangs, while everything else goes on."""
    frozen_since = float("inf")
    action: tuple[str, Any] | None = None
    """What it is resumed with, once it is runnable."""


class World:
    """The clocks, the timers, and who may run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # a simulation, not cryptography
        self.true = 0.0
        self.stepped_at = float("-inf")
        self.slept = 0.0
        self.host = Host()
        self._serial = 0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._runnable: list[Task] = []

    @property
    def mono(self) -> float:
        """The machines' monotonic clock, but for its zero, which no span of time depends on."""
        return _BOOT + self.true - self.slept

    @property
    def wall(self) -> float:
        """This host's wall clock."""
        return _EPOCH + self.true + self.host.off

    @property
    def now(self) -> Moment:
        """This moment, as the machine's clocks tell it."""
        return Moment(self.wall, self.mono)

    @property
    def neutral(self) -> Moment:
        """This moment by clocks that nobody steps."""
        return Moment(_EPOCH + self.true, self.mono)

    def step_wall_clock(self, seconds: float) -> None:
        """Set this host's wall clock forward or back."""
        self.host.off += seconds
        self.stepped_at = self.true

    def suspend(self, seconds: float) -> None:
        """Let the machines sleep: their timers and their monotonic clocks stand still."""
        self.true += seconds
        self.slept += seconds
        self.stepped_at = self.true

    def at(self, true: float, do: Callable[[], object]) -> None:
        """Have something done at a true time: the gateway's and the network's doing."""
        self._serial += 1
        heapq.heappush(self._events, (true, self._serial, do))

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Have something done after so many seconds on the monotonic clock: a timer of the machine."""
        self._serial += 1
        heapq.heappush(self._timers, (self.mono + max(seconds, _TICK), self._serial, do))

    def resume(self, task: Task, how: str, value: Any = None) -> None:
        """Make a task runnable; a cancellation takes the place of whatever it was to be resumed with."""
        if task.done:
            return
        if task.action is None:
            self._runnable.append(task)
        elif how != "cancel":
            return
        task.action = (how, value)

    def run(self, step: Callable[[Task], None], idle: Callable[[], None]) -> None:
        """Step runnable tasks in random order, and let time jump whenever there is none, until all is still."""
        while self._runnable or self._events or self._timers:
            if self._runnable and not (self.random.random() < _HICCUP and self._next() < self.true + 0.1):
                self._step_one(step)
            elif self._next() < float("inf"):
                if not self._runnable:
                    idle()
                self._advance()
            else:
                self._step_one(step)

    def drop(self, doomed: Callable[[Task], bool]) -> None:
        """Forget the runnable tasks that a fork leaves behind."""
        self._runnable = [task for task in self._runnable if not doomed(task)]

    def _step_one(self, step: Callable[[Task], None]) -> None:
        index = self.random.randrange(len(self._runnable))
        self._runnable[index], self._runnable[-1] = self._runnable[-1], self._runnable[index]
        task = self._runnable.pop()
        if task.frozen_until > self.mono:
            self.after(task.frozen_until - self.mono, lambda: self._runnable.append(task))
        elif not task.done:
            step(task)

    def _next(self) -> float:
        event = self._events[0][0] if self._events else float("inf")
        timer = self._timers[0][0] - _BOOT + self.slept if self._timers else float("inf")
        return min(event, timer)

    def _advance(self) -> None:
        due = self._next()
        heap = self._events if self._events and self._events[0][0] <= due else self._timers
        _, _, do = heapq.heappop(heap)
        self.true = max(self.true, due)
        do()

    @contextmanager
    def clocks(self, seed: int) -> Iterator[None]:
        """Put the virtual clocks and a seeded random generator in the place of the real ones."""
        state = random.getstate()
        random.seed(seed)
        try:
            with (
                patch.object(time, "time", lambda: self.wall),
                patch.object(time, "monotonic", lambda: self.mono + self.host.zero),
            ):
                yield
        finally:
            random.setstate(state)
