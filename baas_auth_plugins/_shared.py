"""Using a cache that other processes use, too: bounded, sealed, and passed over while it is down.

The rules:

- An operation runs in a thread of its own, and is waited for as one waits for another caller: so a
  cache that hangs costs a bounded time in threads, asyncio and trio alike, and stops no process from ending.
- What fails is not tried again for a while, by anybody. That is told once, and once more when it is over.
- The cache is for efficiency, never for correctness: without it, each process goes on by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from ._flow import Clock, Effect, Join, Waiter
from ._fork import on_fork
from .cache import TokenCache

__all__ = ["CacheDownError", "SharedCache"]

logger = logging.getLogger("baas_auth_plugins")

_AFTER_FAILURE = (5.0, 10.0, 20.0, 30.0)
_MOST_STUCK = 8


class CacheDownError(Exception):
    """The cache cannot be used now."""


class SharedCache:
    """A cache as flows use it."""

    def __init__(self, cache: TokenCache, clock: Clock) -> None:
        self.cache = cache
        self.blocking = bool(getattr(cache, "blocking", True))
        self._clock = clock
        self._failures = 0
        self._down_until = 0.0
        self.reset_after_fork()
        on_fork(self)

    def reset_after_fork(self) -> None:
        """Forget the threads, which do not exist here."""
        self._stuck: set[Waiter] = set()

    def use(self, operation: Callable[[TokenCache], Any], patience: float) -> Generator[Effect, Any, Any]:
        """Return what the operation returns.

        Args:
            operation: calls a method of the cache.
            patience: seconds to wait for it.

        Raises:
            CacheDownError: it failed or took too long, now or a moment ago.
        """
        now = self._clock().monotonic
        if now < self._down_until or len(self._stuck) >= _MOST_STUCK:
            raise CacheDownError
        try:
            result = operation(self.cache) if not self.blocking else (yield from self._aside(operation, now + patience))
        except Exception as error:  # whatever a cache raises, it must not cost a call
            self._went_down(error)
            raise CacheDownError from None
        if self._failures:
            self._failures = 0
            logger.info("the token cache is back")
        return result

    def start(self, operation: Callable[[TokenCache], Any]) -> None:
        """Begin an operation that nobody waits for."""
        if self.blocking and self._clock().monotonic >= self._down_until:
            with suppress(RuntimeError):
                _in_daemon_thread(lambda: _attempt(operation, self.cache, []))

    def _aside(self, operation: Callable[[TokenCache], Any], deadline: float) -> Generator[Effect, Any, Any]:
        waiter, outcome = Waiter(deadline), list[Any]()

        def work() -> None:
            _attempt(operation, self.cache, outcome)
            self._stuck.discard(waiter)
            with suppress(RuntimeError):  # its event loop is closed
                waiter.wake()

        _in_daemon_thread(work)
        while not outcome and (left := deadline - self._clock().monotonic) > 0:
            yield Join(waiter, left, 0)
        if not outcome:
            self._stuck.add(waiter)
            if outcome:
                self._stuck.discard(waiter)
            raise TimeoutError
        result, error = outcome
        if error is not None:
            raise error
        return result

    def _went_down(self, error: Exception) -> None:
        pause = _AFTER_FAILURE[min(self._failures, len(_AFTER_FAILURE) - 1)]
        self._down_until = self._clock().monotonic + pause
        if not self._failures:
            logger.warning(
                "the token cache failed (%s), and is passed over until it is back: each process goes on by itself",
                type(error).__name__,
            )
        self._failures += 1


def _attempt(operation: Callable[[TokenCache], Any], cache: TokenCache, outcome: list[Any]) -> None:
    try:
        outcome[:] = operation(cache), None
    except Exception as error:
        outcome[:] = None, error


def _in_daemon_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="baas-auth-cache", daemon=True).start()
