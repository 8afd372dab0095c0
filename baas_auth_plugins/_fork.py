"""The one lock of this package, and what must be put right in a child process.

The lock guards a few assignments at a time, in threads that share a token; it is never held across a yield, a wait
or a call into user code. It is reentrant, because the garbage collector may close a flow in a
thread that holds it. After a fork the child gets a new one: the thread that held it may not exist there.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

__all__ = ["locked", "on_fork", "process_id"]


class Resettable(Protocol):
    """Something that a fork leaves in a state only its parent could mend."""

    def reset_after_fork(self) -> None:
        """Become usable again, without taking any lock."""


_resettable: WeakSet[Resettable] = WeakSet()
_lock = threading.RLock()
_process_id = os.urandom(8).hex()


def process_id() -> str:
    """Return what tells this process from any other, its parent too."""
    return _process_id


def locked() -> threading.RLock:
    """Return the lock."""
    return _lock


def on_fork(thing: Resettable) -> None:
    """Have `thing.reset_after_fork` called in every child process, for as long as `thing` lives."""
    _resettable.add(thing)


def _after_fork_in_child() -> None:
    global _lock, _process_id  # whoever holds the old lock will never release it
    _lock, _process_id = threading.RLock(), os.urandom(8).hex()
    for thing in list(_resettable):
        thing.reset_after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(after_in_child=_after_fork_in_child)
