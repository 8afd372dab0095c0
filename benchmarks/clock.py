"""This process's clocks, moved ahead by hand: an hour of a token's life passes in no time.

`time.time` and `time.monotonic` are replaced while the clock is in use, and so is `datetime.now` where a peer
asks that. Timers go on: neither `time.sleep` nor a socket's timeout asks these clocks, but an event
loop does, so there must be none.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

__all__ = ["Clock", "moved"]

_ASKS_DATETIME = {
    "httpx_auth._oauth2.tokens": "module",
    "google.auth._helpers": "module",
    "requests_oauth2client.tokens": "class",
    "requests_oauth2client.utils": "class",
}
"""The peers' modules that ask `datetime`, and whether they import it or the class in it."""


class Clock:
    """How far ahead of the real clocks this process is."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.ahead += seconds


@contextmanager
def moved() -> Iterator[Clock]:
    """Put a clock of this process in the place of the real ones; import the peers first."""
    clock = Clock()
    wall, monotonic = time.time, time.monotonic

    class Datetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Datetime:
            return cls.fromtimestamp(time.time(), tz)

    module = SimpleNamespace(**vars(datetime) | {"datetime": Datetime})
    with ExitStack() as patches:
        patches.enter_context(patch("time.time", lambda: wall() + clock.ahead))
        patches.enter_context(patch("time.monotonic", lambda: monotonic() + clock.ahead))
        for name, what in _ASKS_DATETIME.items():
            if name in sys.modules:
                replacement = module if what == "module" else Datetime
                patches.enter_context(patch.object(sys.modules[name], "datetime", replacement))
        yield clock
