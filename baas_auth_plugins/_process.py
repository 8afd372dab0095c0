"""Process-wide state: the one lock, the process id, and the objects that callers find by key.

The lock guards a few assignments. It is never held across a yield, a wait or a call into user code. It is reentrant,
because the garbage collector may close a flow in a thread that holds it. After a fork the child gets a new lock:
the thread that held the old one does not exist there.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar, cast

from cachetools import LRUCache

__all__ = ["Resettable", "lock", "on_reset", "process_id", "reference", "reset", "shared"]

_MOST_SHARED = 10_000


class Resettable(Protocol):
    """An object that the process shares and that `reset` can empty."""

    def reset(self) -> None:
        """Forget everything."""


S = TypeVar("S", bound=Resettable)
T = TypeVar("T")

_lock = threading.RLock()
_process_id = os.urandom(8).hex()
_by_owner: dict[int, LRUCache[Hashable, Resettable]] = {}
_kept: list[object] = []
_to_reset: list[Callable[[], None]] = []


def process_id() -> str:
    """Return an id that no other process has, not even the parent."""
    return _process_id


def lock() -> threading.RLock:
    """Return the lock."""
    return _lock


def shared(owner: object, key: Hashable, make: Callable[[], S]) -> S:
    """Return the owner's object of this key; make it at the first call.

    The last 10,000 objects of an owner stay while they are not used, so that one-off auth objects find the tokens,
    pauses and limits of earlier ones. They go when their owner goes, and must not hold it.
    """
    with _lock:
        objects = _by_owner.get(id(owner))
        if objects is None:
            objects = _by_owner[id(owner)] = LRUCache(_MOST_SHARED)
            try:
                weakref.finalize(owner, _by_owner.pop, id(owner), None).atexit = False
            except TypeError:  # a class with __slots__: its id must not become another's
                _kept.append(owner)
        found = objects.get(key)
        if found is None:
            found = objects[key] = make()
        return cast("S", found)


def on_reset(forget: Callable[[], None]) -> Callable[[], None]:
    """Call this function at each `reset`; for use as a decorator."""
    _to_reset.append(forget)
    return forget


def reference(owner: T) -> Callable[[], T | None]:
    """Return a weak reference to an owner of shared objects; a strong one where its class has no weak ones."""
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


def reset() -> None:
    """Forget everything that this process knows: tokens, refusals, pauses, rate limits, private connections."""
    with _lock:
        objects = [found for by_key in list(_by_owner.values()) for found in by_key.values()]
        for found in objects:
            found.reset()
    for forget in _to_reset:
        forget()


def _after_fork_in_child() -> None:
    global _lock, _process_id
    _lock, _process_id = threading.RLock(), os.urandom(8).hex()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
