"""The cache in this process's memory: cachetools' TLRU, where each value expires on its own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from cachetools import TLRUCache

from .._fork import locked

__all__ = ["MemoryTokenCache"]


class MemoryTokenCache:
    """Keeps tokens in memory, for all threads of this process.

    Args:
        maxsize: how many tokens at most; the least recently used goes first.
        timer: the clock, in seconds, that entries expire by.
    """

    blocking: ClassVar[bool] = False

    def __init__(self, maxsize: int = 1024, *, timer: Callable[[], float] | None = None) -> None:
        self._maxsize = maxsize
        self._timer = timer or _monotonic
        self._kept: TLRUCache[str, tuple[Any, float]] = TLRUCache(maxsize, _expiry, timer=self._timer)

    def get(self, key: str) -> tuple[Any, float] | None:
        """Return what is kept under `key` and the seconds that are left to it, or None."""
        with locked():
            value, until = self._kept.get(key, (None, 0.0))
            return None if value is None else (value, until - self._timer())

    def swap(self, key: str, old: Any | None, new: Any | None, ttl: float) -> bool:
        """Put `new` in the place of `old`, None being nothing; False if something else is there."""
        with locked():
            if self._kept.get(key, (None, 0.0))[0] != old:
                return False
            if new is None:
                self._kept.pop(key, None)
            else:
                self._kept[key] = new, self._timer() + ttl
            return True

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._maxsize,)


def _monotonic() -> float:
    return time.monotonic()  # looked up at each call, as a test's fake clock needs it


def _expiry(_key: str, kept: tuple[Any, float], _now: float) -> float:
    return kept[1]
