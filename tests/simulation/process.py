"""A process of a fleet: its own registries, auth objects and clocks, while all else is shared.

The production code keeps what its process knows in module globals. Whoever steps something of a
process first goes on as that process, which puts its registries there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from baas_auth_plugins import _fork, _grant, _shared
from baas_auth_plugins._client import logger as package_logger
from baas_auth_plugins._registry import Registry

from .callers import Party
from .world import Host

__all__ = ["Process", "process_globals"]

_GLOBALS = (
    (_grant, "_sources"),
    (_grant, "_limiters"),
    (_grant, "_caches"),
    (_fork, "_process_id"),
)


@dataclass(eq=False)
class Process:
    """One process, with whatever the production code remembers in it."""

    number: int
    host: Host
    referee: Any
    parties: list[Party] = field(default_factory=list)
    gone: bool = False

    def __post_init__(self) -> None:
        name = f"process {id(self)}"
        self._globals: tuple[Any, ...] = (Registry(), Registry(), Registry(), name)

    def enter(self) -> None:
        """Have the production code find this process's globals."""
        for (module, name), value in zip(_GLOBALS, self._globals, strict=True):
            setattr(module, name, value)

    def leave(self) -> None:
        """Keep this process's globals for later."""
        self._globals = tuple(getattr(module, name) for module, name in _GLOBALS)


@contextmanager
def process_globals(in_daemon_thread: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Put everything back in the end; meanwhile log to nobody, and leave blocking work to the simulation."""
    level = package_logger.level
    package_logger.setLevel(logging.CRITICAL + 1)
    try:
        with ExitStack() as stack:
            for module, name in _GLOBALS:
                stack.enter_context(patch.object(module, name, getattr(module, name)))
            stack.enter_context(patch.object(_shared, "_in_daemon_thread", in_daemon_thread))
            yield
    finally:
        package_logger.setLevel(level)
