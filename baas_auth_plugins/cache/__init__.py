"""Where tokens are kept between requests, and between the processes that share them.

A cache is two methods: `get`, and `swap`, which changes what is kept only if it is still what the caller has
seen. That is all that one flight per fleet, its lease, its pauses and its rate limit are built
from, so whatever can compare and swap with a time to live can be a cache.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from .memory import MemoryTokenCache

__all__ = ["MemoryTokenCache", "TokenCache"]


@runtime_checkable
class TokenCache(Protocol):
    """Keeps opaque values by key. Keys reveal nothing. A cache that raises is passed over for a while.

    Where the methods do I/O, values are sealed bytes, and each call is made in a thread and waited for
    in bounded time, so nothing here need be fast, async or patient.
    """

    @property
    def blocking(self) -> bool:
        """Whether the methods do I/O: then other processes may share this cache."""

    def get(self, key: str) -> tuple[Any, float] | None:
        """Return what is kept under `key` and the seconds that are left to it, or None."""

    def swap(self, key: str, old: Any | None, new: Any | None, ttl: float) -> bool:
        """Put `new` in the place of `old`, in one step that nobody else's can come between.

        Args:
            key: where.
            old: what must be there, or None for nothing.
            new: what shall be there, or None for nothing.
            ttl: seconds after which it is gone by itself.

        Returns:
            Whether it was done; False if something else is there than `old`.
        """
