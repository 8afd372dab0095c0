"""One token's place in a cache: its record, and that of its client's rate limit, read and replaced.

A cache that is down knows nothing and forbids nothing: then each process goes on by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from ._flow import Clock, Effect
from ._fork import process_id
from ._record import Limits, Record, open_record, seal_record
from ._shared import CacheDownError, SharedCache
from .cache import TokenCache

if TYPE_CHECKING:
    from ._seal import Seal

__all__ = ["Fleet"]

R = TypeVar("R", Record, Limits)

_PATIENCE, _PATIENCE_WITHOUT_TOKEN = 0.25, 5.0  # seconds for one operation
_TRIES = 50
_numbers = count()


class Fleet:
    """One token's place in a cache.

    Args:
        cache: where.
        key: of the token.
        limits_key: of the client's rate limit.
        seal: seals what leaves the process; None for a cache in this process's memory.
        limit: the provider's rate limit.
        clock: tells the time.
    """

    __slots__ = ("_cache", "_key", "_limits_key", "_seal", "clock", "limit", "shared")

    def __init__(
        self,
        cache: SharedCache,
        key: str,
        limits_key: str,
        seal: Seal | None,
        limit: tuple[int, float] | None,
        clock: Clock,
    ) -> None:
        self.shared = seal is not None
        self.limit = limit
        self.clock = clock
        self._cache = cache
        self._key = key
        self._limits_key = limits_key
        self._seal = seal

    @property
    def in_doubt(self) -> bool:
        """Whether the cache failed once, and may be back in a moment."""
        return self._cache.in_doubt

    def new_id(self) -> str:
        """Return an id for a flight or a token request of this process."""
        return f"{self._process()}{next(_numbers)}"

    def is_elsewhere(self, leader: str) -> bool:
        """Tell whether this flight is another process's."""
        return bool(leader) and not leader.startswith(self._process())

    def _process(self) -> str:
        return f"{process_id()}:{id(self)}:"

    def change(
        self,
        kind: type[R],
        decide: Callable[[R], R | None],
        *,
        until: float | None = None,
        undo: Callable[[R], R | None] | None = None,
    ) -> Generator[Effect, Any, tuple[R | None, bool]]:
        """Replace what is known by what `decide` makes of it; it may be asked again, if somebody else was quicker.

        Args:
            kind: of the token, its `Record`; of its client, the `Limits`.
            decide: returns what to put in its place, or None to leave it.
            until: where there is no token to serve meanwhile, when the caller's patience ends on the monotonic clock.
            undo: takes the change back, should it be made after it was given up.

        Returns:
            What is known now, or None while the cache is down; and whether it was replaced.
        """
        patience = _PATIENCE
        if until is not None:  # and there is more to do in that time
            patience = min(max(patience, (until - self.clock().monotonic) / 4), _PATIENCE_WITHOUT_TOKEN)
        try:
            changed: tuple[R, bool] = yield from self._cache.use(
                lambda cache: self._swap(cache, kind, decide),
                patience,
                undo and (lambda cache: self._swap(cache, kind, undo)),
                insist=until is not None,
            )
        except CacheDownError:
            return None, False
        return changed

    def look(self, kind: type[R], *, until: float | None = None) -> Generator[Effect, Any, R | None]:
        """Return what is known, or None while the cache is down."""
        return (yield from self.change(kind, lambda _: None, until=until))[0]

    def change_some_time(
        self,
        kind: type[R],
        decide: Callable[[R], R | None],
        undo: Callable[[R], R | None] | None = None,
        *,
        anyway: bool = False,
    ) -> None:
        """Do as `change`, without waiting for it; if `anyway`, even where the cache is passed over."""
        if self.shared:
            self._cache.start(
                lambda cache: self._swap(cache, kind, decide),
                undo and (lambda cache: self._swap(cache, kind, undo)),
                anyway=anyway,
            )

    def _swap(self, cache: TokenCache, kind: type[R], decide: Callable[[R], R | None]) -> tuple[R, bool]:
        key = self._key if kind is Record else self._limits_key
        for _ in range(_TRIES):
            value, ttl = cache.get(key) or (None, 0.0)
            known = open_record(kind, self._seal, key, value, ttl, self.clock())
            new = decide(known)
            if new is None:
                return known, False
            if cache.swap(key, value, *seal_record(new, self._seal, key, self.clock())):
                return new, True
        raise TimeoutError
