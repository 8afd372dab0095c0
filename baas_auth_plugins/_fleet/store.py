"""A shared cache as flows use it: in a thread, in bounded time, and not at all while it is down.

The rules:

- An operation runs in a daemon thread. A cache that hangs costs a bounded time, and keeps no process from ending.
- An operation that fails is tried once more. Then a circuit breaker opens for 5, 10, 20, then 30 s: each process goes
  on alone. Both changes are logged once.
- An operation whose caller was cancelled, and that still runs after a second, counts as failed: while a cache hangs,
  impatient callers do not wait for it one after the other.
- The cache is for efficiency, never for correctness.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from .. import _process
from .._lifecycle.effects import Flow, Job, RunInThread
from .._lifecycle.state import AFTER_FAILURE, NO_BACKOFF, Backoff
from .._oauth.token import Instant, now
from ..cache import TokenCache
from .codec import Codec

logger = logging.getLogger("baas_auth_plugins")

R = TypeVar("R")

SECONDS_WITH_TOKEN, SECONDS_WITHOUT = 0.25, 1.0  # for one operation
_TRIES = 50
_MOST_LATE = 60.0  # seconds: a lease that an abandoned operation takes later than that lapses by itself

Decide = Callable[[R | None], R | None]
"""Makes the new record from the one that is there, or returns None to leave it."""


class StoreDownError(Exception):
    """The cache failed twice in a row, or a moment ago.

    Attributes:
        is_new: whether it was working until now: it may be back in a moment.
    """

    def __init__(self, *, is_new: bool) -> None:
        super().__init__("the token cache is down")
        self.is_new = is_new


class Record(NamedTuple, Generic[R]):
    """What is in the cache: the bytes, what they mean, and whether this operation wrote them."""

    raw: bytes | None
    value: R | None
    is_written: bool


class SharedStore:
    """One cache object, for all keys.

    Args:
        cache: the cache. It is held weakly: it goes with the auth objects that use it.
    """

    __slots__ = ("__weakref__", "_abandoned", "_breaker", "_cache", "_failed_at_writing")

    def __init__(self, cache: TokenCache) -> None:
        self._cache = _process.reference(cache)
        self._breaker = NO_BACKOFF
        self._failed_at_writing = False
        self._abandoned: tuple[Job[Any], Instant] | None = None

    def reset(self) -> None:
        """Forget that the cache failed."""
        self._breaker = NO_BACKOFF
        self._abandoned = None

    def read(self, codec: Codec[R], *, seconds: float) -> Flow[Record[R]]:
        """Return the record.

        Args:
            codec: of the record.
            seconds: the longest wait for one try.

        Raises:
            StoreDownError: the cache is down.
        """
        return (yield from self._run(lambda: self._changed(codec, _leave, None), seconds, writes=False))

    def change(
        self, codec: Codec[R], decide: Decide[R], *, seconds: float, seen: Record[R] | None = None
    ) -> Flow[Record[R]]:
        """Replace the record by compare-and-swap, and return what is there afterwards.

        Args:
            codec: of the record.
            decide: makes the new record. It is called again if another process was quicker.
            seconds: as for `read`.
            seen: what the record was a moment ago: if it still is, it need not be read.

        Raises:
            StoreDownError: the cache is down.
        """
        return (yield from self._run(lambda: self._changed(codec, decide, seen), seconds, writes=True))

    def change_later(self, codec: Codec[R], decide: Decide[R]) -> None:
        """Do as `change`, and wait for nothing. The caller's own operation, if it was abandoned, takes effect before."""
        abandoned = self._abandoned

        def change() -> Record[R]:
            if abandoned is not None and abandoned[0].is_running:
                abandoned[0].wait(_MOST_LATE)
            return self._changed(codec, decide, None)

        Job(change).join()

    def _changed(self, codec: Codec[R], decide: Decide[R], seen: Record[R] | None) -> Record[R]:
        cache = self._cache()
        if cache is None:
            raise TimeoutError("the cache is gone")
        for _ in range(_TRIES):
            if seen is None:
                raw, ttl = cache.get(codec.key) or (None, 0.0)
                seen = Record(raw, codec.decrypt(raw, ttl, now()), is_written=False)
            new = decide(seen.value)
            if new is None:
                return seen._replace(is_written=False)
            encrypted, ttl = codec.encrypt(new, now())
            if cache.swap(codec.key, seen.raw, encrypted, ttl):
                return Record(encrypted, new, is_written=True)
            seen = None
        raise TimeoutError("other processes were quicker each time")

    def _run(self, operation: Callable[[], Record[R]], seconds: float, *, writes: bool) -> Flow[Record[R]]:
        self._check_abandoned(writes)
        before = self._breaker
        if before.remaining(now()):
            raise StoreDownError(is_new=before.count == 1)
        for _ in range(2 if not before.count else 1):
            job, started = Job(operation), now()
            try:
                outcome = yield from RunInThread(job, seconds)
            except BaseException:
                self._abandoned = job, started
                raise
            if outcome.value is not None:
                self._succeeded(before, writes)
                return outcome.value
        if self._breaker is before:  # no other caller has noted it meanwhile
            self._failed(outcome.error or TimeoutError(), writes)
        raise StoreDownError(is_new=self._breaker.count == 1)

    def _check_abandoned(self, writes: bool) -> None:
        job, started = self._abandoned or (None, now())
        if job is not None and job.is_running:
            if now().since(started) <= SECONDS_WITHOUT:
                return
            self._failed(TimeoutError(), writes)
        self._abandoned = None

    def _succeeded(self, before: Backoff, writes: bool) -> None:
        if self._breaker is not before:
            return  # it opened while this operation was under way
        # A full Redis, or a replica, can be read but not written.
        if self._breaker.count and (writes or not self._failed_at_writing):
            self._breaker = NO_BACKOFF
            logger.info("the token cache works again")

    def _failed(self, error: BaseException, writes: bool) -> None:
        if not self._breaker.count:
            logger.warning(
                "the token cache failed twice (%s: %s). Each process requests tokens alone until it works again",
                type(error).__name__,
                "timeout" if isinstance(error, TimeoutError) else "see the cache's own log",
            )
        self._failed_at_writing = writes
        self._breaker = Backoff(self._breaker.count).longer(AFTER_FAILURE, now())


def _leave(_record: R | None) -> None:
    """Change nothing."""
