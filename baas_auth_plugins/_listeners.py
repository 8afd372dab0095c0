"""Who hears events: the functions given to `events.subscribe`, and each auth object's `on_event`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .events import Event

__all__ = ["Listener", "add", "emit"]

Listener = Callable[["Event"], object]

logger = logging.getLogger("baas_auth_plugins")

_subscribed: dict[object, Listener] = {}


def add(listener: Listener) -> Callable[[], None]:
    """Add a listener for all events, and return the function that removes it."""
    subscription = object()
    _subscribed[subscription] = listener
    return lambda: _subscribed.pop(subscription, None) and None


def emit(on_event: Listener | None, kind: str, fields: Mapping[str, Any]) -> None:
    """Call every listener with the event of this class name. What one raises is logged and goes no further."""
    listeners = [*_subscribed.values()] if on_event is None else [on_event, *_subscribed.values()]
    if not listeners:
        return
    from . import events  # imported by those who listen: the dataclasses take 3 ms to make

    event: Event = getattr(events, kind)(**fields)
    for listener in listeners:
        try:
            listener(event)
        except Exception:
            logger.exception("%s: an event listener raised an exception", event.provider)
