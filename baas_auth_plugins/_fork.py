"""The one lock of this package, and the id of this process: a fork makes both anew.

The lock guards a few assignments at a time, in threads that share a token; it is never held across a yield, a wait
or a call into user code. It is reentrant, because the garbage collector may close a flow in a
thread that holds it. After a fork the child gets a new one: the thread that held it may not exist there.
"""

from __future__ import annotations

import os
import threading

__all__ = ["locked", "process_id"]

_lock = threading.RLock()
_process_id = os.urandom(8).hex()


def process_id() -> str:
    """Return what tells this process from any other, its parent too."""
    return _process_id


def locked() -> threading.RLock:
    """Return the lock."""
    return _lock


def _after_fork_in_child() -> None:
    global _lock, _process_id  # whoever holds the old lock will never release it
    _lock, _process_id = threading.RLock(), os.urandom(8).hex()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(after_in_child=_after_fork_in_child)
