"""The cache that the processes share: a dict, whose operations get lost, come late, fail, or lie about their TTL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .world import World

__all__ = ["TROUBLES", "Blocked", "Cache", "Operation", "Store"]

TROUBLES = ("flush", "evict", "garbage", "old record", "lying TTL")
_WEATHERS = ("slow", "refused", "hang", "lost answer", "read-only", "mixed", "mixed")
_FAULTS = ("slow", "refused", "hang", "lost answer", "read-only")
_INTERLEAVED = 0.3  # how often another operation comes between the reading and the writing of one


class Blocked(BaseException):  # no error: a function in a thread has to wait
    """A function in a thread would block here. `begin` is called with what to call when it need not any more."""

    def __init__(self, begin: Callable[[Callable[[Callable[[], Any]], None]], None]) -> None:
        super().__init__()
        self.begin = begin


@dataclass(eq=False)
class Operation:
    """One operation of a process: what runs it, and what goes wrong."""

    run: Callable[[], None]
    fate: str
    process: Any


class Store:
    """The server."""

    def __init__(self, world: World, stormy: float, faults: Counter[str], enter: Callable[[Any], Any]) -> None:
        self.world = world
        self.stormy = stormy
        self.faults = faults
        self.operations = 0
        self.failures: list[float] = []  # true times
        self.last_lie = float("-inf")
        self.lost_at = float("-inf")  # true time at which a record was last taken away or replaced
        self.doing: Operation | None = None
        self.pending: list[Operation] = []
        self._enter = enter
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._before: dict[str, list[bytes]] = {}
        self._weather, self._until, self._lie = "fine", 0.0, 0.0

    @property
    def is_lying(self) -> bool:
        """Whether it tells wrong TTLs."""
        return bool(self._lie)

    def begin(self, process: Any, finish: Callable[[Callable[[], Any]], None], function: Callable[[], Any]) -> None:
        """Run an operation after as long as it takes to reach the server."""
        fate, seconds = self._draw()
        operation = Operation(lambda: finish(function), fate, process)
        self.pending.append(operation)
        self.world.after(seconds, lambda: self.do(operation))

    def do(self, operation: Operation) -> None:
        """Run an operation, as its process."""
        if operation not in self.pending:
            return
        self.pending.remove(operation)
        before, self.doing = self.doing, operation
        left = self._enter(operation.process)
        try:
            operation.run()
        finally:
            self.doing = before
            self._enter(left)

    def vanish(self, process: Any) -> None:
        """A process is gone: what it had under way was done in time, or never will be."""
        for operation in [one for one in self.pending if one.process is process]:
            if self.world.random.random() < 0.5 and operation in self.pending:
                self.pending.remove(operation)

    def _draw(self) -> tuple[str, float]:
        rng = self.world.random
        if self.stormy and self.world.true >= self._until:
            self._weather = rng.choice(_WEATHERS) if rng.random() < self.stormy else "fine"
            self._until = self.world.true + rng.choice((1, 10, 100, 1000)) * rng.random()
            if self._weather == "fine" and rng.random() < 0.3:  # a single operation fails
                self._weather, self._until = "one", float("inf")
        fate = rng.choice((*_FAULTS, "fine")) if self._weather in ("mixed", "one") else self._weather
        if self._weather == "one":
            self._weather, self._until = "fine", self.world.true + 200
        if fate != "fine":
            self._failed(fate)
        seconds = rng.choice((0.0005, 0.002, 0.02))
        if fate in ("slow", "hang"):
            seconds = rng.uniform(0.1, 1.5) if fate == "slow" else rng.choice((rng.uniform(1, 20), 1e6))
        return ("fine" if fate in ("slow", "hang") else fate), seconds

    def _failed(self, what: str) -> None:
        self.faults[f"cache: {what}"] += 1
        self.failures.append(self.world.true)

    def _fail_if(self, fate: str) -> None:
        if self.doing is not None and self.doing.fate == fate:
            raise ConnectionError(fate)

    def get(self, key: str) -> tuple[bytes, float] | None:
        """Return a value and the seconds that it has left."""
        self.operations += 1
        self._fail_if("refused")
        raw, until = self._kept.get(key, (b"", 0.0))
        left = until - self.world.true
        return (raw, left + self._lie) if left > 0 else None

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Compare and swap; other processes may come first."""
        self.operations += 1
        self._fail_if("refused")
        self._fail_if("read-only")
        while self.pending and self.world.random.random() < _INTERLEAVED:
            self.do(self.world.random.choice(self.pending))
        raw, until = self._kept.get(key, (None, 0.0))
        if (raw if until > self.world.true else None) != old:
            return False
        if new is None:
            self._kept.pop(key, None)
        else:
            self._kept[key] = new, self.world.true + ttl
            self._before.setdefault(key, []).append(new)
        self._fail_if("lost answer")
        return True

    def trouble(self, kind: str) -> None:
        """Do something to what is kept."""
        rng = self.world.random
        self._failed(kind)
        self.failures.append(self.world.true)  # this counts for more than one lost write
        if kind == "flush":
            self._kept.clear()
        if kind == "lying TTL":
            self._lie = rng.choice((0.0, -1.0, 1.0)) * rng.choice((1, 30, 3600))
            self.last_lie = self.world.true
            return
        self.lost_at = self.world.true
        if self._before and kind != "flush":
            key = rng.choice(sorted(self._before))
            if kind == "evict":
                self._kept.pop(key, None)
                return
            new = rng.randbytes(50) if kind == "garbage" else rng.choice(self._before[key][-10:])
            self._kept[key] = new, self.world.true + rng.choice((1.0, 60.0, 3600.0))
            self.last_lie = self.world.true


@dataclass(eq=False)
class Cache:
    """One process's client of the store: a `TokenCache`. It blocks until its operation reaches the server."""

    store: Store
    process: Any

    def get(self, key: str) -> tuple[bytes, float] | None:
        """Return a value and the seconds that it has left."""
        self._reach()
        return self.store.get(key)

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Compare and swap."""
        self._reach()
        return self.store.swap(key, old, new, ttl)

    def _reach(self) -> None:
        operation = self.store.doing
        if operation is None or operation.process is not self.process:
            raise Blocked(lambda finish: self.store.begin(self.process, finish, self.process.job_function))
