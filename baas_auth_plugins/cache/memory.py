"""The cache in this process's memory: cachetools' TLRU, where each token expires on its own clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from cachetools import TLRUCache

from .._fork import on_fork
from .._token import Instant, Token

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
        self._tokens: TLRUCache[str, Token] = TLRUCache(maxsize, _expiry, timer=self._timer)
        self._lock = threading.RLock()
        on_fork(self)

    def get(self, key: str) -> Token | None:
        """Return the token kept under `key`, or None."""
        with self._lock:
            return self._tokens.get(key)

    def set(self, key: str, token: Token) -> None:
        """Keep `token` for the rest of its life."""
        with self._lock:
            self._tokens[key] = token

    def delete(self, key: str, token: Token) -> None:
        """Drop `token`, unless another one has taken its place."""
        with self._lock:
            kept = self._tokens.get(key)
            if kept is not None and kept.access_token == token.access_token:
                self._tokens.pop(key, None)

    def reset_after_fork(self) -> None:
        """Replace the lock, which a thread that does not exist here may hold."""
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._maxsize,)


def _monotonic() -> float:
    return time.monotonic()  # looked up at each call, as a test's fake clock needs it


def _expiry(_key: str, token: Token, now: float) -> float:
    return now + token.remaining(Instant(time.time(), now))
