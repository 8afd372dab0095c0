"""The cache that a fleet shares: one server on virtual time, under a weather of its own, and its clients.

The production code gives each operation to a thread. Here it is a piece of work that is done some virtual time
later, all of it in one go, but for this: between the reading and the writing others may be done, as on a real server.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from baas_auth_plugins.cache import MemoryTokenCache

from .world import World

if TYPE_CHECKING:
    from .process import Process

__all__ = ["LYING", "TROUBLES", "Connection", "Operation", "Store"]

TROUBLES = ("flush", "evict", "garbage", "old value", "server clock step")
LYING = ("old value", "server clock step")
"""What makes a token look younger than it is: only a host's own clock tells."""

_PHASES = {  # seconds that each kind of weather lasts
    "fine": (30, 3000),
    "slow": (5, 120),
    "flaky": (5, 120),
    "refused": (5, 600),
    "hang": (5, 200),
    "read-only": (5, 300),
}
_FLAKY = ("slow", "refused", "hang", "lost", "no thread", "fine", "fine")
_PROMPT = 0.25  # seconds: an operation that takes no longer is no fault
_INTERLEAVED = 0.3  # how often another operation comes between a reading and its writing
_REMEMBERED = 20


@dataclass(eq=False)
class Operation:
    """One operation on its way."""

    process: Process
    work: Callable[[], None]
    fate: str
    done: bool = False
    failed: bool = False

    @property
    def waiter(self) -> Any:
        """What wakes the caller that waits for it; None if nobody does."""
        return getattr(getattr(self.work, "__self__", None), "waiter", None)


@dataclass(eq=False)
class Connection:
    """One process's client of the store, as the production code knows caches."""

    store: Store
    blocking: ClassVar[bool] = True

    def get(self, key: str) -> tuple[Any, float] | None:
        """Return what is kept under `key` and the seconds that are left to it, or None."""
        return self.store.get(key)

    def swap(self, key: str, old: Any | None, new: Any | None, ttl: float) -> bool:
        """Put `new` in the place of `old`."""
        return self.store.swap(key, old, new, ttl)


@dataclass(eq=False)
class Store:
    """The server, and what is on its way to it."""

    world: World
    stormy: float
    """Share of time in which something is wrong with it."""
    faults: Counter[str]
    troubled: Callable[[], object]
    """Called whenever it did not work as it should."""
    changed: Callable[[str, Any, Any], object]
    """Called with each change that was made."""
    enter: Callable[[Process], Process | None]
    """Goes on as this process; returns the one before."""
    pending: list[Operation] = field(default_factory=list)
    operations: int = 0
    closed: bool = False
    _off: float = 0.0
    _weather: str = "fine"
    _until: float = 0.0
    _changes: list[tuple[str, Any, Any]] = field(default_factory=list)
    _doing: Operation | None = None
    _seen: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._flush()

    def _flush(self) -> None:
        self._kept = MemoryTokenCache(timer=lambda: self.world.true + self._off)

    # What production code does.

    def start(self, process: Process, work: Callable[[], None]) -> Operation | None:
        """Begin an operation, as a thread would.

        Raises:
            RuntimeError: no thread can be started.
        """
        if self.closed:
            return None
        fate, seconds = self._fate()
        if fate == "no thread":
            raise RuntimeError("can't start new thread")
        self.operations += 1
        operation = Operation(process, work, fate)
        self.pending.append(operation)
        self.world.at(self.world.true + seconds, lambda: self._do(operation))
        return operation

    def get(self, key: str) -> tuple[Any, float] | None:
        """Return what is kept."""
        self._may_fail("refused")
        kept = self._kept.get(key)
        return kept and (kept[0], int(kept[1] * 1000) / 1000)

    def swap(self, key: str, old: Any | None, new: Any | None, ttl: float) -> bool:
        """Put `new` in the place of `old`, unless somebody was quicker."""
        self._may_fail("read-only")
        while self.pending and self.world.random.random() < _INTERLEAVED:
            other = self.world.random.choice(self.pending)
            if other.fate != "fine":
                break
            self._do(other)
        if not self._kept.swap(key, old, new, max(1, int(ttl * 1000)) / 1000):
            self.faults["cache: somebody was quicker"] += 1
            return False
        if new is not None:
            self._seen[key] = [*self._seen[key][-_REMEMBERED:], new]
        self._changes.append((key, old, new))
        self._may_fail("lost")
        return True

    def _may_fail(self, fate: str) -> None:
        if self._doing is not None and self._doing.fate == fate:
            self._doing.failed = True
            raise ConnectionError(f"the cache is gone: {fate}")

    def _do(self, operation: Operation) -> None:
        if operation.done or self.closed:
            return
        operation.done = True
        self.pending.remove(operation)
        before, self._doing = self._doing, operation
        process = self.enter(operation.process)
        try:
            if operation.fate != "fine":
                self.troubled()
            operation.work()
            changes, self._changes = self._changes, []
            for change in changes:  # only now: what is raised within an operation is taken for the cache's failure
                self.changed(*change)
        finally:
            self._doing = before
            if process is not None:
                self.enter(process)

    # What goes wrong.

    def _fate(self) -> tuple[str, float]:
        """Return what becomes of an operation, and after how many seconds; the weather changes only while it is used."""
        rng = self.world.random
        if self.stormy and self.world.true >= self._until:
            self._weather = "fine" if rng.random() >= self.stormy else rng.choice(list(_PHASES)[1:])
            self._until = self.world.true + rng.uniform(*_PHASES[self._weather])
        fate = rng.choice(_FLAKY) if self._weather == "flaky" else self._weather
        seconds = rng.choice((0.0005, 0.002, 0.02, 0.1))
        if fate == "slow":
            seconds = rng.choice((rng.uniform(0.1, 1.0), rng.uniform(0.1, 4.0)))
            fate = fate if seconds > _PROMPT else "fine"
        elif fate == "hang":
            seconds = rng.choice((rng.uniform(4, 20), rng.uniform(5, 600)))
        if fate != "fine":
            self.faults[f"cache: {fate}"] += 1
            self.troubled()
        return fate, seconds

    def vanish(self, process: Process) -> None:
        """A process is gone: what it had under way was done in time, or never will be."""
        for operation in [one for one in self.pending if one.process is process]:
            if self.world.random.random() < 0.3:
                self._do(operation)
            elif not operation.done:  # in between another one
                operation.done = True
                self.pending.remove(operation)

    def trouble(self, kind: str) -> None:
        """Do something to what is kept."""
        rng = self.world.random
        self.troubled()
        if kind == "flush":
            self._flush()
            return
        if kind == "server clock step":
            self._off += rng.choice((-1, 1)) * rng.choice((2, 60, 3600, 86_400))
            return
        if not self._seen:
            return
        key = rng.choice(sorted(self._seen))
        there, _ = self._kept.get(key) or (None, 0.0)
        new = {
            "evict": None,
            "garbage": rng.randbytes(rng.choice((1, 5, 100))),
            "old value": rng.choice(self._seen[key]),
        }
        self._kept.swap(key, there, new[kind], rng.choice((1.0, 60.0, 3600.0)))
