"""Where tokens are kept between requests, and between the processes that share them.

A cache is two methods: `get`, and `swap`, which is compare-and-swap. Leases, back-offs and rate limits of a fleet are
all built from these. So any store that can compare and swap, with a time to live, can be a cache.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .memory import MemoryTokenCache

__all__ = ["MemoryTokenCache", "TokenCache"]


@runtime_checkable
class TokenCache(Protocol):
    """Keeps encrypted values by key. The methods may block and raise, and are called from several threads.

    A cache is taken for shared with other processes, unless it has ``blocking = False``.
    """

    def get(self, key: str) -> tuple[bytes, float] | None:
        """Return the value and the seconds until it expires, or None.

        Args:
            key: a digest; it reveals nothing.
        """

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace a value in one step, if it still is `old`.

        Args:
            key: as for `get`.
            old: the expected value; None for none.
            new: the new value; None to delete it.
            ttl: seconds until the new value expires.

        Returns:
            Whether it was replaced.
        """
