"""What everyone in the process shares by key: the sources of tokens, and the rate limiters.

The last ten thousand of each are kept even while nobody uses them, so that one-off auth objects find
the token, the pauses and the limits that earlier ones left.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from ._fork import locked

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """One shared thing per key, made when first asked for."""

    def __init__(self, kept: int = 10_000) -> None:
        self._kept = kept
        self._recent: dict[Hashable, T] = {}  # the one asked for last is last
        self._in_use: WeakValueDictionary[Hashable, T] = WeakValueDictionary()  # of those that are recent no more

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the thing of this key."""
        with locked():
            found = self._recent.pop(key, None) or self._in_use.pop(key, None) or make()
            self._recent[key] = found
            if len(self._recent) > self._kept:
                oldest = next(iter(self._recent))
                self._in_use[oldest] = self._recent.pop(oldest)
            return found
