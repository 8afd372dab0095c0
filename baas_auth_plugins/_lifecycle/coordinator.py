"""The coordinator's protocol, and its implementation for one process: who sends a token request, who gets the outcome."""

from __future__ import annotations

import enum
import weakref
from typing import TYPE_CHECKING, Protocol

from .._oauth.token import Instant, now
from .._process import lock
from ..cache.memory import MemoryTokenCache
from .call import Work
from .effects import Flow
from .rate_limit import RateLimiter
from .state import EMPTY, TokenState, Transition

if TYPE_CHECKING:
    from .fetch import Attempt


class Decision(enum.Enum):
    """What a caller that wants to request a token may do."""

    LEAD = "send a token request"
    ADOPTED = "use the token, or the error, that another process got"
    BUSY = "serve the valid token; another process renews it"


class LocalState:
    """One token's state as this process knows it. It is read without the lock.

    Args:
        cache: keeps the state for auth objects that come later; None where another place does.
        key: of the token.
    """

    __slots__ = ("_cache", "_key", "attempt", "epoch", "value")

    def __init__(self, cache: MemoryTokenCache | None, key: str) -> None:
        self._cache = None if cache is None else weakref.ref(cache)
        self._key = key
        self.epoch = 0
        self.attempt: Attempt | None = None  # the last token request, for the next leader if this one leaves
        kept = cache.get(key) if cache is not None else None
        self.value = kept[0] if kept is not None and isinstance(kept[0], TokenState) else EMPTY

    def apply(self, transition: Transition, epoch: int | None = None) -> None:
        """Change the state; not if it was reset since `epoch`."""
        with lock():
            if epoch is None or epoch == self.epoch:
                self._set(transition(self.value))

    def reset(self) -> None:
        """Forget everything."""
        with lock():
            self.epoch += 1
            self.attempt = None
            self._set(EMPTY)

    def _set(self, state: TokenState) -> None:
        before, self.value = self.value, state
        cache = self._cache() if self._cache is not None else None
        if cache is not None and before is not state:
            kept = cache.get(self._key)
            cache.swap(self._key, kept and kept[0], state, state.ttl(now()))


class Coordinator(Protocol):
    """Decides who sends a token request. Every method can be called by any caller that leads in this process."""

    def lead_or_adopt(self, work: Work) -> Flow[Decision]:
        """Get the right to send a token request, or take over what another process got.

        Raises:
            OutOfTimeError: another process still works at the deadline.
        """

    def reserve(self, request: str) -> Flow[float]:
        """Count a token request, and return 0; or return the seconds to wait, and count nothing."""

    def answered(self, request: str) -> Flow[None]:
        """Count a token request from now on, when its answer came."""

    def publish(self, transition: Transition, epoch: int | None = None, *, ends_lead: bool = False) -> Flow[None]:
        """Change the state, for this process at once and for all others.

        Args:
            transition: the change.
            epoch: of the state; nothing changes if it was reset since.
            ends_lead: whether the caller led, and gives the lead back.
        """

    def publish_later(self, transition: Transition, epoch: int | None = None, *, ends_lead: bool = False) -> None:
        """Do as `publish`, where the caller can wait for nothing any more."""

    def look(self, deadline: float) -> Flow[None]:
        """After a 401 or before an invalidation: take over what other processes know."""

    def reset(self) -> None:
        """Forget everything, as `testing.reset` does."""


class LocalCoordinator:
    """One process alone: every caller that leads may send, and no other process has to know."""

    __slots__ = ("_limiter", "_local")

    def __init__(self, local: LocalState, limiter: RateLimiter) -> None:
        self._local = local
        self._limiter = limiter

    def lead_or_adopt(self, work: Work) -> Flow[Decision]:
        """Let the caller lead."""
        return Decision.LEAD
        yield

    def reserve(self, request: str) -> Flow[float]:
        """Count the request in this process."""
        at: Instant = now()
        with lock():
            wait = self._limiter.wait(at)
            if not wait:
                self._limiter.count(request, at)
        return wait
        yield

    def answered(self, request: str) -> Flow[None]:
        """Count the request from now on."""
        self._limiter.count(request, now())
        return
        yield

    def publish(self, transition: Transition, epoch: int | None = None, *, ends_lead: bool = False) -> Flow[None]:
        """Change the state."""
        self._local.apply(transition, epoch)
        return
        yield

    def publish_later(self, transition: Transition, epoch: int | None = None, *, ends_lead: bool = False) -> None:
        """Change the state."""
        self._local.apply(transition, epoch)

    def look(self, deadline: float) -> Flow[None]:
        """Do nothing: no other process knows more."""
        return
        yield

    def reset(self) -> None:
        """Forget everything."""
        self._local.reset()
