"""One caller that needs a token, and its work for all waiters if it leads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .._listeners import Listener, emit
from .._oauth.client import OAuthClient
from .._oauth.messages import TokenRequest, TokenResponse
from .._oauth.token import Token, digest, now
from ..exceptions import RateLimitError, TokenEndpointError
from .effects import Flow, Sleep
from .single_flight import Flight, OutOfTimeError

if TYPE_CHECKING:
    from .coordinator import LocalState

logger = logging.getLogger("baas_auth_plugins")

Sender = Callable[[TokenRequest, Callable[[], bool]], TokenResponse]
"""Sends a token request in the thread that calls it. The second argument returns whether a caller still waits."""

_MOST_REQUESTS = 6
_SHORTEST_TIMEOUT = 0.5  # seconds for a request that is due at the very end of the caller's `max_wait`
_SHORTEST_RENEWAL = 0.05  # seconds for one that is due when reading the secret has taken almost all of `timeout`


class SecretReader(Protocol):
    """Reads the client secret for one token request."""

    def secret_for(self, call: Call) -> Flow[str]:
        """Return the secret of the source's key.

        Raises:
            BaaSAuthError: it cannot be read.
            SecretRotatedError: it was rotated.
        """

    def check_after_refusal(self, call: Call) -> Flow[None]:
        """Read the secret again after an `InvalidClientError`.

        Raises:
            SecretRotatedError: it was rotated.
        """


@dataclass(slots=True)
class _Budget:
    """What one call may use: time and token requests. A listener that asks for a token uses its caller's.

    A task that the listener starts inherits its context. What it does after the listener has returned is its own.
    """

    deadline: float
    requests: int = _MOST_REQUESTS
    is_of_listener: bool = False
    has_announced_limit: bool = False

    def announces(self, error: RateLimitError) -> bool:
        """Return whether a rate limit is an event. The package's own is one once, or a listener that calls would loop."""
        is_own, was_announced = error.status_code is None, self.has_announced_limit
        self.has_announced_limit = was_announced or is_own
        return not (is_own and was_announced)


_budget_of_listener: ContextVar[_Budget | None] = ContextVar("baas_auth_budget", default=None)


@dataclass(slots=True, eq=False)
class Call:
    """One caller that needs a token.

    Attributes:
        client: who it is.
        sender: sends its token requests; None to send them through the caller's own httpx client.
        user_agent: of the API request.
        on_event: the auth object's listener.
        reads_secret: reads the client secret.
        rejected: the token that the API answered 401 to, if that is why.
        key: of the source that it asks.
        requests: token requests that it has sent.
        secret: the client secret, if this call has read it and not used it yet.
        has_rotated: whether it has followed a rotated secret, which it does once.
        minted: the token that it requested.
        starts_renewal: starts a renewal in the background.
    """

    client: OAuthClient
    sender: Sender | None
    user_agent: str | None
    on_event: Listener | None
    reads_secret: SecretReader
    rejected: Token | None = None
    key: str = ""
    requests: int = 0
    secret: str | None = field(default=None, repr=False)
    has_rotated: bool = False
    minted: Token | None = None
    starts_renewal: Callable[[], None] | None = None
    deadline: float = field(init=False)
    budget: _Budget = field(init=False)
    _events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        deadline = now().monotonic + self.client.max_wait
        callers = _budget_of_listener.get()
        self.budget = callers if callers is not None and callers.is_of_listener else _Budget(deadline)
        self.deadline = min(deadline, self.budget.deadline)

    def emit(self, kind: str, token: Token | None, **fields: Any) -> None:
        """Keep an event until `flush`."""
        about = {
            "provider": self.client.name,
            "client_id": self.client.client_id,
            "token_digest": digest(token.access_token) if token is not None else None,
        }
        self._events.append((kind, about | fields))

    def flush(self) -> None:
        """Call the listeners, now that no caller waits for this one."""
        events, self._events = self._events, []
        before, is_nested = _budget_of_listener.set(self.budget), self.budget.is_of_listener
        self.budget.is_of_listener = True
        try:
            for kind, fields in events:
                emit(self.on_event, kind, fields)
        finally:
            self.budget.is_of_listener = is_nested
            _budget_of_listener.reset(before)


@dataclass(slots=True, eq=False)
class Work:
    """What the leader of one flight does for its call.

    Attributes:
        call: the call.
        flight: the flight that it leads.
        token: the valid token that is due for renewal, if there is one.
        deadline: moment on the monotonic clock until which it may take.
        local: the state as this process knows it.
        retries: how often an attempt that failed is repeated.
        epoch: of the state. After a reset nothing of this work is kept.
        generation: of the state as the last token request was sent.
        waited: seconds that it has slept.
    """

    call: Call
    flight: Flight
    token: Token | None
    deadline: float
    local: LocalState
    retries: int
    epoch: int = field(init=False)
    generation: int = field(init=False)
    waited: float = 0.0

    def __post_init__(self) -> None:
        self.epoch, self.generation = self.local.epoch, self.local.value.generation

    @property
    def is_urgent(self) -> bool:
        """Whether there is no valid token."""
        return self.token is None

    @property
    def remaining(self) -> float:
        """The seconds that the next token request may take."""
        return max(self.deadline - now().monotonic, _SHORTEST_TIMEOUT if self.is_urgent else _SHORTEST_RENEWAL)

    def wait(self, seconds: float, error: TokenEndpointError) -> Flow[None]:
        """Wait before the next token request; or raise the error, if that takes longer than the caller has.

        Sleeping is counted beside the clock, which may stand still.
        """
        self.waited += seconds
        if self.waited > self.call.client.max_wait or now().monotonic + seconds > self.deadline:
            logger.debug("%s; a wait of %.1f s does not fit in this call's time: raising the error", error, seconds)
            raise OutOfTimeError(error) if self.is_urgent else error
        level = logging.INFO if seconds >= 1 else logging.DEBUG
        logger.log(level, "%s; waiting %.1f s before the next token request", error, seconds)
        self.flight.hold(seconds)
        yield from Sleep(seconds)
