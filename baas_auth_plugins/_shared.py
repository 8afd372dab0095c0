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
from .cache import TokenCache

__all__ = ["CacheDownError", "SharedCache"]

logger = logging.getLogger("baas_auth_plugins")

_AFTER_FAILURE = (5.0, 10.0, 20.0, 30.0)
_PATIENCE_AFTER_FAILURE = 1.0  # seconds: one that is back answers sooner
_IMPATIENT = 0.25  # seconds: who leaves later than this has seen it fail

Operation = Callable[[TokenCache], Any]


class CacheDownError(Exception):
    """The cache cannot be used now."""


class SharedCache:
    """A cache as flows use it."""

    def __init__(self, cache: TokenCache, clock: Clock) -> None:
        self.cache = cache
        self.blocking = bool(getattr(cache, "blocking", True))
        self._clock = clock
        self._failures = 0
        self._failed_at = ""
        self._down_until = 0.0

    @property
    def in_doubt(self) -> bool:
        """Whether it failed once, and nobody knows yet if it is down: a moment's delay is not worth going on without it."""
        return self._failures == 1

    def use(
        self, operation: Operation, patience: float, undo: Operation | None = None, *, insist: bool = False
    ) -> Generator[Effect, Any, Any]:
        """Return what the operation returns.

        Args:
            operation: uses the cache.
            patience: seconds to wait for it.
            undo: takes back what the operation did, should it end when nobody waits any more.
            insist: try even where it failed a moment ago, if only once.

        Raises:
            CacheDownError: it failed or took too long, now or a moment ago.
        """
        now = self._clock().monotonic
        if now < self._down_until and not (insist and self.in_doubt):
            raise CacheDownError
        failures = self._failures
        if failures:
            patience = min(patience, _PATIENCE_AFTER_FAILURE)
        errand = _Errand(self.cache, operation, undo)
        try:
            if self.blocking:
                yield from self._aside(errand, now + patience)
            else:
                errand.run()
            if errand.error is not None:
                raise errand.error
        except Exception as error:  # whatever a cache raises, it must not cost a call
            if self._failures <= failures:  # nobody else has told it
                self._went_down(error, errand.doing)
            raise CacheDownError from None
        except BaseException:  # cancelled: but others are not to find out anew, each after its patience
            if self._failures <= failures and self._clock().monotonic - now > _IMPATIENT:
                self._went_down(TimeoutError(), errand.doing)
            raise
        if self._failures == failures:  # else it failed meanwhile for somebody who began later
            self._down_until = 0.0
            if failures and self._failed_at in errand.did:
                self._failures = 0
                logger.info("the token cache is back")
        return errand.result

    def start(self, operation: Operation, undo: Operation | None = None, *, anyway: bool = False) -> None:
        """Begin an operation that nobody waits for; if `anyway`, also where the cache is passed over."""
        if self.blocking and (anyway or self._clock().monotonic >= self._down_until):
            errand = _Errand(self.cache, operation, undo)
            errand.is_abandoned = True
            with suppress(RuntimeError):  # no thread can be started, as at the interpreter's exit
                _in_daemon_thread(errand.run)

    def _aside(self, errand: _Errand, deadline: float) -> Generator[Effect, Any, None]:
        waiter = errand.waiter = Waiter(deadline)
        _in_daemon_thread(errand.run)
        try:
            while not waiter.woken:
                left = deadline - self._clock().monotonic
                if left <= 0:
                    raise TimeoutError
                yield Join(waiter, left, 0)
        except BaseException:
            errand.abandon()
            raise

    def _went_down(self, error: Exception, doing: str) -> None:
        pause = _AFTER_FAILURE[min(self._failures, len(_AFTER_FAILURE) - 1)]
        self._down_until = self._clock().monotonic + pause
        if not self._failures:
            logger.warning(
                "the token cache failed (%s), and is passed over until it is back: each process goes on by itself",
                type(error).__name__,
            )
        self._failures += 1
        self._failed_at = doing


class _Errand:
    """An operation, perhaps in a thread of its own, which whoever sent it may not wait for any more.

    To the operation it is the cache. So it knows which method fails: a cache that is full, or a
    replica, can be read all the time, and is back only when it can be written again.
    """

    def __init__(self, cache: TokenCache, operation: Operation, undo: Operation | None) -> None:
        self._cache = cache
        self._operation = operation
        self._undo = undo
        self.waiter: Waiter | None = None
        self.is_abandoned = False
        self._is_over = False
        self.doing = "get"
        self.did: set[str] = set()
        self.result: Any = None
        self.error: Exception | None = None

    blocking = True

    def get(self, key: str) -> tuple[Any, float] | None:
        """Do what the cache does."""
        self.doing = "get"
        kept = self._cache.get(key)
        self.did.add("get")
        return kept

    def swap(self, key: str, old: Any | None, new: Any | None, ttl: float) -> bool:
        """Do what the cache does."""
        self.doing = "swap"
        swapped = self._cache.swap(key, old, new, ttl)
        self.did.add("swap")
        return swapped

    def run(self) -> None:
        """Do it all, and say so."""
        try:
            self.result = self._operation(self)
        except Exception as error:
            self.error = error
        self._is_over = True
        if self.waiter is not None and not self.is_abandoned:
            self.waiter.wake()
        if self.is_abandoned:
            self._take_back()

    def abandon(self) -> None:
        """Wait for it no longer."""
        self.is_abandoned = True
        if self._is_over:
            with suppress(RuntimeError):  # no thread can be started, as at the interpreter's exit
                _in_daemon_thread(self._take_back)

    def _take_back(self) -> None:
        if self._undo is not None and self.error is None:
            with suppress(Exception):  # it lapses by itself
                self._undo(self._cache)


def _in_daemon_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="baas-auth-cache", daemon=True).start()
