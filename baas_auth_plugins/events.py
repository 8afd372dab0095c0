"""What happens to tokens, as events for `on_event` and for `subscribe`. No event holds a secret or a token.

A token appears as `token_digest`, the first 8 hex digits of its SHA-256. Durations are seconds.

Listeners run in the thread where the event happens; in async code that is the event loop's thread, so they must not
block. They run after the callers that wait for the token were woken. What a listener raises is logged.

The logger ``baas_auth_plugins`` says the same in words: at WARNING what failed, at INFO 401s and waits, at DEBUG why each
token request happens. The sandbox has a logger of its own, ``baas_auth_plugins.sandbox``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from . import _listeners
from .exceptions import ConfigurationError

__all__ = [
    "Event",
    "RateLimited",
    "RenewalFailed",
    "RequestReplayed",
    "TokenMinted",
    "TokenRejected",
    "TokenServedStale",
    "subscribe",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event has.

    Attributes:
        provider: the provider's name, such as ``"axia"``.
        client_id: the client whose token it is.
        token_digest: the token, as its digest; None where no token is involved.
    """

    provider: str
    client_id: str
    token_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMinted(Event):
    """The gateway issued a token.

    Attributes:
        reason: why it was requested: there was none yet (``cold``), the old one was due for renewal (``due``), had
            expired (``expired``), was rejected by the API (``rejected``), or was dropped (``invalidated``).
        attempts: token requests that were sent for it.
        duration: seconds from the decision to request it, retries and waits included.
        expires_in: its lifetime in seconds.
    """

    reason: Literal["cold", "due", "expired", "rejected", "invalidated"]
    attempts: int
    duration: float
    expires_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenServedStale(Event):
    """A caller got a token that is due for renewal.

    Attributes:
        remaining: seconds until it expires.
    """

    remaining: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalFailed(Event):
    """A token request failed.

    Attributes:
        error: the name of the exception class.
        status_code: HTTP status of the gateway's answer; None without an answer.
        duration: seconds from the decision to request a token, retries and waits included.
        serving_old_token: whether callers still get a valid token.
        next_attempt_in: seconds until a token may be requested again.
    """

    error: str
    status_code: int | None
    duration: float
    serving_old_token: bool
    next_attempt_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRejected(Event):
    """The API answered 401 to a token.

    Attributes:
        age: the token's age in seconds.
        replaying: whether the request is sent again with another token.
        reason: why it is not: ``body``, ``back-off`` or ``rate limit``; None if it is.
    """

    age: float
    replaying: bool
    reason: Literal["body", "back-off", "rate limit"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReplayed(Event):
    """A rejected request was sent again with another token.

    Attributes:
        status_code: HTTP status of the second answer.
        duration: seconds from the rejection to the second answer.
    """

    status_code: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimited(Event):
    """The token endpoint's rate limit was met, at the gateway (429) or on this side.

    Attributes:
        retry_after: seconds until the next token request.
    """

    retry_after: float | None


def subscribe(listener: Callable[[Event], object]) -> Callable[[], None]:
    """Call a function with each event of every auth object in this process.

    Args:
        listener: called with one event. It must be a plain function: a coroutine would not be awaited.

    Returns:
        A function that ends the subscription.

    Raises:
        ConfigurationError: `listener` is not callable, or is a coroutine function.
    """
    functions = (listener, getattr(type(listener), "__call__", None))  # noqa: B004  # the second is of an object
    if not callable(listener) or any(map(inspect.iscoroutinefunction, functions)):
        raise ConfigurationError("listener must be a plain function that takes one event")
    return _listeners.add(listener)
