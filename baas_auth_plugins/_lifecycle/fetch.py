"""Fetching one token: token requests with their retries, within the caller's `max_wait` and the gateway's limits."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from .._listeners import Listener, emit
from .._oauth.client import OAuthClient
from .._oauth.messages import NetworkError, TokenRequest, TokenResponse
from .._oauth.responses import read_token
from .._oauth.token import Token, digest, now
from ..exceptions import (
    InvalidClientError,
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from .coordinator import Coordinator, Decision
from .effects import ConnectionLostError, Flow, Job, RunInThread, SendTokenRequest, Sleep
from .rate_limit import RateLimiter
from .single_flight import Flight, OutOfTimeError
from .state import TokenState

__all__ = [
    "RETRIED",
    "RETRIES",
    "Call",
    "SecretReader",
    "Sender",
    "Sending",
    "Work",
    "backoff",
    "fetch",
    "refused",
    "send",
    "unreachable",
]

logger = logging.getLogger("baas_auth_plugins")

Sender = Callable[[TokenRequest, Callable[[], bool]], TokenResponse]
"""Sends a token request in the thread that calls it. The second argument returns whether a caller still waits."""

RETRIED = (None, 429, 500, 502, 503, 504)  # None: no answer came
RETRIES = 3
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


class _Budget:
    """What one call may use: time and token requests. A listener that asks for a token uses its caller's.

    A task that the listener starts inherits its context. What it does after the listener has returned is its own.
    """

    __slots__ = ("deadline", "is_of_listener", "requests")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.requests = _MOST_REQUESTS
        self.is_of_listener = False


_budget_of_listener: ContextVar[_Budget | None] = ContextVar("baas_auth_budget", default=None)


class Call:
    """One caller that needs a token.

    Args:
        client: who it is.
        sender: sends its token requests; None to send them through the caller's own httpx client.
        user_agent: of the API request.
        on_event: the auth object's listener.
        rejected: the token that the API answered 401 to, if that is why.
    """

    __slots__ = (
        "_events",
        "budget",
        "client",
        "deadline",
        "has_rotated",
        "key",
        "minted",
        "on_event",
        "reads_secret",
        "rejected",
        "requests",
        "secret",
        "sender",
        "starts_renewal",
        "user_agent",
    )

    def __init__(
        self,
        client: OAuthClient,
        sender: Sender | None,
        user_agent: str | None,
        on_event: Listener | None,
        *,
        reads_secret: SecretReader,
        rejected: Token | None = None,
    ) -> None:
        self.client = client
        self.sender = sender
        self.user_agent = user_agent
        self.on_event = on_event
        self.reads_secret = reads_secret
        self.rejected = rejected
        deadline = now().monotonic + client.max_wait
        callers = _budget_of_listener.get()
        self.budget = callers if callers is not None and callers.is_of_listener else _Budget(deadline)
        self.deadline = min(deadline, self.budget.deadline)
        self.key = ""  # of the source that it asks
        self.requests = 0
        self.secret: str | None = None  # read by this call, and not used yet
        self.has_rotated = False  # the secret is followed once
        self.minted: Token | None = None
        self.starts_renewal: Callable[[], None] | None = None
        self._events: list[tuple[str, dict[str, Any]]] = []

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


class Attempt:
    """One token request.

    Args:
        request: what is sent.
        number: its id, for the rate limit.
        read: makes the token of its answer.
        job: sends it in a thread; None where it is yielded to the caller's own httpx client.
    """

    __slots__ = ("_job", "_until", "number", "read", "request")

    def __init__(
        self,
        request: TokenRequest,
        number: str,
        read: Callable[[TokenResponse], Token],
        job: Job[TokenResponse] | None,
    ) -> None:
        self.request = request
        self.number = number
        self.read = read
        self._job = job
        self._until = now().monotonic + request.timeout

    @property
    def is_under_way(self) -> bool:
        """Whether a thread sends it. A caller that leaves does not end it."""
        job = self._job
        return job is not None and job.is_running and not job.is_abandoned and now().monotonic < self._until

    def answer(self, seconds: float) -> Flow[TokenResponse]:
        """Send it, or wait for the answer if it is under way."""
        if self._job is None:
            return (yield from SendTokenRequest(self.request))
        return (yield from _answer(self._job, min(self._until - now().monotonic, seconds)))


class Sending:
    """The last token request of one token source, for the next leader if the last one has left."""

    __slots__ = ("attempt",)

    def __init__(self) -> None:
        self.attempt: Attempt | None = None


class Work:
    """What the leader of one flight does for its call: the errand of a coordinator.

    Args:
        call: the call.
        flight: the flight that it leads.
        token: the valid token that is due for renewal, if there is one.
        deadline: moment on the monotonic clock until which it may take.
        epoch: of the state. After a reset nothing of this work is kept.
        retries: how often an attempt that failed is repeated.
        sending: the source's last token request.
    """

    __slots__ = (
        "call",
        "deadline",
        "epoch",
        "flight",
        "is_urgent",
        "leeway",
        "rejected",
        "retries",
        "sending",
        "timeout",
        "token",
        "waited",
    )

    def __init__(
        self,
        call: Call,
        flight: Flight,
        token: Token | None,
        deadline: float,
        *,
        epoch: int,
        retries: int,
        sending: Sending | None = None,
    ) -> None:
        self.call = call
        self.token = token
        self.epoch = epoch
        self.is_urgent = token is None
        self.flight = flight
        self.deadline = deadline
        self.rejected = call.rejected
        self.timeout = call.client.timeout
        self.leeway = call.client.leeway
        self.retries = retries
        self.sending = sending or Sending()
        self.waited = 0.0

    @property
    def remaining(self) -> float:
        """The seconds that the next token request may take."""
        shortest = _SHORTEST_TIMEOUT if self.is_urgent else _SHORTEST_RENEWAL
        return max(self.deadline - now().monotonic, shortest)

    def hold(self, seconds: float) -> None:
        """Extend the lead in this process."""
        self.flight.hold(seconds)

    def wait(self, seconds: float, error: TokenEndpointError) -> Flow[None]:
        """Wait before the next token request; or raise the error, if that takes longer than the caller has.

        Sleeping is counted beside the clock, which may stand still.
        """
        self.waited += seconds
        if self.waited > self.call.client.max_wait or now().monotonic + seconds > self.deadline:
            raise OutOfTimeError(error) if self.is_urgent else error
        if seconds >= 1:
            logger.info("%s; waiting %.1f s before the next token request", error, seconds)
        self.hold(seconds)
        yield from Sleep(seconds)


def fetch(work: Work, coordinator: Coordinator, limiter: RateLimiter) -> Flow[Token | None]:
    """Request a token, and retry while that can help.

    Without a valid token it is retried up to 3 times after 500, 502, 503, 504 and network errors, with exponential
    back-off from 0.5 s and full jitter, and after 429. With a valid token, or where such a try failed a moment ago, there
    is one attempt.

    Returns:
        The token; None if another process got one meanwhile, or is about to.

    Raises:
        TokenEndpointError: the gateway gave none.
        OutOfTimeError: the next attempt would come after the deadline.
    """
    call, failures, limits = work.call, 0, 0
    while (yield from coordinator.lead_or_adopt(work)) is Decision.LEAD:
        try:
            return (yield from _attempt(work, coordinator, limiter))
        except RateLimitError as error:
            limits += 1
            raised: TokenEndpointError = error
            call.emit("RateLimited", None, retry_after=error.retry_after)
        except TokenEndpointUnavailableError as error:
            failures += 1
            raised = error
        if _is_final(raised) or failures > work.retries or not (work.is_urgent and call.budget.requests):
            raise raised
        wait = max(raised.retry_after or 0.0, backoff(failures + limits))
        at = now()
        waiting = partial(TokenState.waiting, seconds=wait, now=at)
        yield from coordinator.publish(waiting, work.epoch)
        yield from work.wait(wait, raised)
    return None


def _is_final(error: TokenEndpointError) -> bool:
    return error.status_code not in RETRIED or error._is_local or error._is_final


def backoff(failures: int) -> float:
    return random.uniform(0, 0.5 * 2 ** (failures - 1))  # noqa: S311  # jitter, not cryptography


def _attempt(work: Work, coordinator: Coordinator, limiter: RateLimiter) -> Flow[Token]:
    """Send one token request; or wait for the answer to the one that a leader left behind."""
    client, sending = work.call.client, work.sending
    work.hold(client.timeout)
    attempt = sending.attempt
    if attempt is None or not attempt.is_under_way:
        attempt = sending.attempt = yield from _new_attempt(work, coordinator, limiter)
    work.hold(client.timeout)
    try:
        response = yield from attempt.answer(work.remaining)
    except NetworkError as failure:
        raise unreachable(client, failure) from failure.__cause__
    except InvalidTokenResponseError as problem:
        raise refused(client, problem) from None
    except ConnectionLostError as lost:
        try:
            if lost.response is not None:
                attempt.read(lost.response)
        except TokenEndpointError as error:
            lost.error = error
        raise
    finally:
        limiter.count(attempt.number, now())
    sending.attempt = None
    yield from coordinator.answered(attempt.number)
    try:
        return attempt.read(response)
    except InvalidClientError:
        yield from work.call.reads_secret.check_after_refusal(work.call)
        raise


def _new_attempt(work: Work, coordinator: Coordinator, limiter: RateLimiter) -> Flow[Attempt]:
    """Return a token request that the rate limit allows, and count it."""
    call, client = work.call, work.call.client
    secret = yield from call.reads_secret.secret_for(call)
    request = client.token_request(secret, call.user_agent)
    number = limiter.new_request()
    wait = yield from coordinator.reserve(number)
    if wait:
        raise _limited(client, limiter, wait)
    call.requests += 1
    call.budget.requests -= 1
    sent = now()
    request = request._replace(timeout=min(request.timeout, work.remaining))

    def read(response: TokenResponse) -> Token:
        try:
            return read_token(client, secret, response, sent, now())
        except TokenEndpointError as error:
            if error.retry_after:
                limiter.block(error.retry_after, now(), number)
            raise

    return Attempt(request, number, read, None if call.sender is None else _job(call.sender, request))


def send(sender: Sender | None, request: TokenRequest) -> Flow[TokenResponse]:
    """Send a request in a daemon thread, which bounds it in total; or through the caller's own httpx client.

    Raises:
        NetworkError: no answer came.
    """
    if sender is None:
        return (yield from SendTokenRequest(request))
    return (yield from _answer(_job(sender, request), request.timeout))


def _job(sender: Sender, request: TokenRequest) -> Job[TokenResponse]:
    job: Job[TokenResponse] = Job(
        lambda: sender(request, lambda: not job.is_abandoned), in_thread=not getattr(sender, "is_replaced", False)
    )
    return job


def _answer(job: Job[TokenResponse], seconds: float) -> Flow[TokenResponse]:
    outcome = yield from RunInThread(job, seconds)
    if outcome.is_timeout:
        raise NetworkError(f"no complete answer within {seconds:.3g} s")
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]  # a sender returns a response


def _limited(client: OAuthClient, limiter: RateLimiter, wait: float) -> RateLimitError:
    if limiter.limits.blocked.remaining(now()) >= wait:
        reason = f"{client.host} asked to wait (Retry-After)"
    else:
        requests, seconds = limiter.limit or (0, 0)
        reason = f"token limit reached ({requests} requests in {seconds:g} s)"
    text = f"{client.name}: {reason}; next request possible in {wait:.0f} s"
    return RateLimitError(text, provider=client.name, retry_after=wait)


def refused(client: OAuthClient, problem: InvalidTokenResponseError) -> InvalidTokenResponseError:
    """Return the problem of a response that was not read, with the provider's name and the host."""
    if not problem.provider:
        problem.args = (f"{client.name}: the response of {client.host} is refused: {problem}",)
        problem.provider = client.name
    return problem


def unreachable(client: OAuthClient, failure: NetworkError) -> TokenEndpointUnavailableError:
    text = f"{client.name}: {client.host} cannot be reached: {failure.reason}"
    if failure.advice:
        text += f". {failure.advice}"
    error = TokenEndpointUnavailableError(text, provider=client.name)
    error._is_final = failure.is_certificate
    return error
