"""The cache in this process's memory: cachetools' TLRU, in which each entry expires on its own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from cachetools import TLRUCache

from .._process import lock

__all__ = ["MemoryTokenCache"]


class MemoryTokenCache:
    """Keeps tokens in memory, for all threads and event loops of this process.

    Args:
        maxsize: the most tokens it keeps; the least recently used one goes first.
        timer: the clock in seconds by which entries expire; `time.monotonic` by default.
    """

    blocking: ClassVar[bool] = False

    def __init__(self, maxsize: int = 1024, *, timer: Callable[[], float] | None = None) -> None:
        self._maxsize = maxsize
        self._timer = timer or _monotonic
        self._entries: TLRUCache[str, tuple[Any, float]] = TLRUCache(maxsize, _expiry, timer=self._timer)

    def get(self, key: str) -> tuple[Any, float] | None:
        """Return the value and the seconds until it expires, or None: see `TokenCache`."""
        with lock():
            value, until = self._entries.get(key, (None, 0.0))
            return None if value is None else (value, until - self._timer())

    def swap(self, key: str, old: Any | None, new: Any | None, ttl: float) -> bool:
        """Replace a value if it still is `old`, and return whether it was replaced: see `TokenCache`."""
        with lock():
            if self._entries.get(key, (None, 0.0))[0] != old:
                return False
            if new is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = new, self._timer() + ttl
            return True

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._maxsize,)


def _monotonic() -> float:
    return time.monotonic()  # looked up at each call, for tests that fake the clock


def _expiry(_key: str, entry: tuple[Any, float], _now: float) -> float:
    return entry[1]
