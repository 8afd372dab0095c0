"""What must be put right in a child process: locks and flights that belong to threads left behind."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["on_fork"]


class Resettable(Protocol):
    """Something that a fork leaves in a state only its parent could mend."""

    def reset_after_fork(self) -> None:
        """Become usable again, without taking any lock."""


_resettable: WeakSet[Resettable] = WeakSet()


def on_fork(thing: Resettable) -> None:
    """Have `thing.reset_after_fork` called in every child process, for as long as `thing` lives."""
    _resettable.add(thing)


def _after_fork_in_child() -> None:
    for thing in list(_resettable):
        thing.reset_after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(after_in_child=_after_fork_in_child)
