"""The flows, without I/O: what to send, when to retry, when to give up.

A flow is a generator. It yields what it wants done (the classes below), is sent the result or
thrown the error, and returns what was asked of it. A driver performs; it decides nothing. The rules:

- A flow reads no clock of its own, opens no socket, takes no lock and imports no HTTP library.
- A driver throws `NetworkError` where it can go on afterwards, and `ConnectionLostError` where it cannot:
  httpx closes an auth flow whose request failed, so a flow must not yield again after that.
- `OutOfTimeError` means that this caller's patience ran out, not that the gateway refused: whoever
  waits for the same token and has more time may go on.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ._limiter import RateLimiter
from ._token import Instant
from .exceptions import (
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)

__all__ = [
    "MAX_RESPONSE_BYTES",
    "Call",
    "Clock",
    "ConnectionLostError",
    "Effect",
    "Exchange",
    "Gate",
    "Join",
    "NetworkError",
    "OutOfTimeError",
    "Release",
    "Sleep",
    "Steps",
    "TokenRequest",
    "TokenResponse",
    "Waiter",
    "backoff",
]

MAX_RESPONSE_BYTES = 1 << 20
_ANY_ZLIB_FORMAT = 32 + zlib.MAX_WBITS  # gzip or zlib, told apart by the header
_RETRIED = {None, 429, 500, 502, 503, 504}  # None: no answer came
_RETRIES = 3
_SHORTEST_TIMEOUT = 0.5  # seconds: what a request gets that is due at the very end of the caller's patience

E = TypeVar("E")
T = TypeVar("T")
Clock = Callable[[], Instant]


class TokenRequest(NamedTuple):
    """Send this to the gateway with the client's credentials; the result is a `TokenResponse`."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    timeout: float
    """Seconds for each phase: connecting, reading, writing, and waiting for a pooled connection."""

    def __repr__(self) -> str:
        return f"TokenRequest(timeout={self.timeout})"

    def presentable(self, error: Exception) -> Exception | None:
        """Return the error for an exception's chain without the request; None where its text would show a token in the query."""
        if "?" in self.url:
            return None
        error.request = None  # type: ignore[attr-defined]  # requests' and httpx's errors hold it, and it the credentials
        return error


class TokenResponse(NamedTuple):
    """The gateway's answer; header names in lower case."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"TokenResponse(status_code={self.status_code})"

    @classmethod
    def of(cls, status_code: int, headers: Mapping[str, str], body: bytes) -> TokenResponse:
        """Return the answer to a flow's request from its body as it was transferred.

        Raises:
            InvalidTokenResponseError: the body, decoded, is longer than 1 MiB, or cannot be decoded.
        """
        lower = {name.lower(): value for name, value in headers.items()}
        coding = lower.get("content-encoding", "identity").strip().lower()
        try:
            if coding in ("gzip", "x-gzip", "deflate"):
                body = zlib.decompressobj(_ANY_ZLIB_FORMAT).decompress(body, MAX_RESPONSE_BYTES + 1)
            elif coding not in ("identity", ""):
                raise InvalidTokenResponseError("the token response has a content coding that nobody asked for")
        except zlib.error:
            raise InvalidTokenResponseError("the token response cannot be decompressed") from None
        if len(body) > MAX_RESPONSE_BYTES:
            raise InvalidTokenResponseError("the token response is longer than 1 MiB", status_code=status_code)
        return cls(status_code, lower, body)


class Sleep(NamedTuple):
    """Wait for so many seconds, blocking nobody else."""

    seconds: float


class Call(NamedTuple):
    """Call a function that may block; async drivers do so in a worker thread, at most so many seconds."""

    function: Callable[[], Any]
    timeout: float


class Release:
    """Read the rejected API response to its end, so that its connection goes back to the pool."""

    __slots__ = ()


class Waiter:
    """Someone who waits to be woken from any thread: `wake` may come before `notify` is known."""

    __slots__ = ("deadline", "notify", "promoted", "woken")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.notify: Callable[[], object] | None = None
        self.woken = self.promoted = False

    def wake(self) -> bool:
        """Wake whoever waits; False if its event loop is closed."""
        self.woken = True
        try:
            if self.notify is not None:
                self.notify()
        except RuntimeError:
            return False
        return True


class Join(NamedTuple):
    """Wait until the waiter is woken, at most so many seconds.

    The result is whether waiting here would keep the leader from ever waking anyone: a blocking
    wait in the leader's own thread, as of a sync call in a coroutine.
    """

    waiter: Waiter
    timeout: float
    leader: int


Effect = TokenRequest | Sleep | Call | Release | Join


class Steps(Generic[E, T]):
    """A flow taken one step at a time: each step's `result` or `error` goes into the next; at the end there is a `value`."""

    value: T

    def __init__(self, flow: Generator[E, Any, T]) -> None:
        self.flow = flow
        self.result: Any = None
        self.error: BaseException | None = None

    def next(self) -> E | None:
        """Return what the flow wants done now, or None at its end."""
        result, error = self.result, self.error
        self.result = self.error = None
        try:
            return self.flow.send(result) if error is None else self.flow.throw(error)
        except StopIteration as end:
            self.value = end.value
            return None


class NetworkError(Exception):
    """A request failed before its answer was read, and the driver can send another."""

    @classmethod
    def of(cls, error: Exception) -> NetworkError:
        """Return what to tell of a client's own error: its kind, since its text may hold a URL."""
        return cls(f"the token endpoint cannot be reached ({type(error).__name__})")


class ConnectionLostError(Exception):
    """A request failed, and the client has closed this flow: nothing more may be yielded."""


class OutOfTimeError(Exception):
    """The caller's `max_wait` does not reach far enough; `error` is what to tell it."""

    def __init__(self, error: TokenEndpointError) -> None:
        super().__init__(str(error))
        self.error = error


class Gate(Protocol):
    """What a token request must pass, where others than this process send some, too."""

    def enter(self) -> Generator[Effect, Any, Any]:
        """Before a request; what it returns, if anything, makes the request needless."""

    def answered(self) -> None:
        """After a request, whatever came of it."""

    def blocked(self, seconds: float) -> Generator[Effect, Any, None]:
        """After a request that was answered with a Retry-After."""


def backoff(failures: int) -> float:
    """Return the seconds before retry number `failures`: exponential from 0.5 s, with full jitter."""
    return random.uniform(0, 0.5 * 2 ** (failures - 1))  # noqa: S311  # jitter, not cryptography


class Exchange(NamedTuple):
    """How requests go to the gateway's OAuth endpoints.

    Attributes:
        provider: the provider's name, for errors.
        clock: tells the time.
        limiter: tells when a request may be sent.
        limited: is told of each limit met, the gateway's or the limiter's.
        timeout: seconds for one attempt.
        gate: what each attempt must pass.
    """

    provider: str
    clock: Clock
    limiter: RateLimiter
    limited: Callable[[RateLimitError], None]
    timeout: float
    gate: Gate | None = None

    def run(
        self,
        build: Callable[[float], TokenRequest],
        read: Callable[[TokenResponse, Instant], Any],
        *,
        deadline: float,
        retry: bool = True,
    ) -> Generator[Effect, Any, Any]:
        """Send a request until it is answered, refused or given up.

        Args:
            build: makes the request from the timeout in seconds that one attempt may take.
            read: makes the result of a 2xx response and the instant at which it was asked for.
            deadline: the caller's patience ends at this time on the monotonic clock.
            retry: whether to wait and try again; without, one attempt is all.

        Raises:
            TokenEndpointError: which of its subclasses, the tree in `exceptions` tells.
            OutOfTimeError: another attempt would be due, but not before the deadline.
        """
        failures = limits = 0
        earliest = self.clock().monotonic  # that it can be by now, should the clock stand still, as it may in tests
        while True:
            error: TokenEndpointError
            try:
                return (yield from self._attempt(build, read, deadline))
            except RateLimitError as limit:
                error = limit
                limits += 1
                self.limited(limit)
            except TokenEndpointUnavailableError as outage:
                error = outage
                failures += 1
            if not retry or failures > _RETRIES or error.status_code not in _RETRIED:
                raise error
            wait = error.retry_after or backoff(failures + limits)
            earliest = max(earliest, self.clock().monotonic) + wait
            if earliest > deadline:
                raise OutOfTimeError(error)
            yield Sleep(wait)

    def _attempt(
        self,
        build: Callable[[float], TokenRequest],
        read: Callable[[TokenResponse, Instant], Any],
        deadline: float,
    ) -> Generator[Effect, Any, Any]:
        found = (yield from self.gate.enter()) if self.gate else None
        if found is not None:
            return found
        sent = self.clock()
        self._take(sent)
        failed: TokenEndpointError | None = None
        try:
            response = yield build(min(self.timeout, max(deadline - sent.monotonic, _SHORTEST_TIMEOUT)))
        except NetworkError as failure:
            failed = TokenEndpointUnavailableError(f"{self.provider}: {failure}", provider=self.provider)
            failed.__cause__ = failure.__cause__
        except InvalidTokenResponseError as nonsense:
            failed = nonsense
            failed.provider, failed.__context__ = self.provider, None
        finally:
            self.limiter.answered(sent.monotonic, self.clock().monotonic)
            if self.gate:
                self.gate.answered()
        if failed is None:
            try:
                return read(response, sent)
            except TokenEndpointError as error:
                failed = error
        if failed.retry_after:
            self.limiter.block(failed.retry_after, self.clock().monotonic)
            if self.gate:
                yield from self.gate.blocked(failed.retry_after)
        raise failed  # here, so that no context holds what the client's own error says

    def _take(self, now: Instant) -> None:
        wait = self.limiter.take(now.monotonic)
        if wait:
            raise RateLimitError(
                f"{self.provider}: no token request may be sent for {wait:.1f} s; share one auth object, or wait",
                provider=self.provider,
                retry_after=wait,
            )
