"""Fetching one token: token requests with their retries, within the caller's `max_wait` and the gateway's limits."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from functools import partial

from .._oauth.client import OAuthClient
from .._oauth.messages import NetworkError, TokenRequest, TokenResponse
from .._oauth.responses import read_token
from .._oauth.token import Instant, Token, now
from ..exceptions import (
    InvalidClientError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from .call import Sender, Work
from .coordinator import Coordinator, Decision
from .effects import ConnectionLostError, Flow, Job, RunInThread, SendTokenRequest
from .rate_limit import RateLimiter
from .state import TokenState

logger = logging.getLogger("baas_auth_plugins")


RETRIED = (None, 429, 500, 502, 503, 504)  # None: no answer came
RETRIES = 3


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
            if call.budget.announces(error):
                call.emit("RateLimited", None, retry_after=error.retry_after)
        except TokenEndpointUnavailableError as error:
            failures += 1
            raised = error
        if _is_final(raised) or failures > work.retries or not (work.is_urgent and call.budget.requests):
            raise raised
        wait = max(raised.retry_after or 0.0, backoff(failures + limits))
        yield from coordinator.publish(partial(TokenState.waiting, seconds=wait, now=now()), work.epoch)
        yield from work.wait(wait, raised)
    return None


def _is_final(error: TokenEndpointError) -> bool:
    return error.status_code not in RETRIED or error._is_local or error._is_final


def backoff(failures: int) -> float:
    return random.uniform(0, 0.5 * 2 ** (failures - 1))  # noqa: S311  # jitter, not cryptography


@dataclass(slots=True, eq=False)
class Attempt:
    """One token request. One that a thread sends outlives a leader that was cancelled: the next leader waits for it.

    Attributes:
        request: what is sent.
        number: its id, for the rate limit.
        job: sends it in a thread; None where it is yielded to the caller's own httpx client.
        sent: when.
        secret: the client secret that it has.
    """

    request: TokenRequest
    number: str
    job: Job[TokenResponse] | None
    sent: Instant
    secret: str = field(repr=False)

    @property
    def remaining(self) -> float:
        """The seconds until it is given up."""
        return self.sent.monotonic + self.request.timeout - now().monotonic

    @property
    def is_under_way(self) -> bool:
        """Whether a thread still sends it."""
        job = self.job
        return job is not None and job.is_running and not job.is_abandoned and self.remaining > 0

    def answer(self, seconds: float) -> Flow[TokenResponse]:
        """Send it, or wait for the answer if it is under way; at most so many seconds."""
        if self.job is None:
            return (yield from SendTokenRequest(self.request))
        return (yield from _answer(self.job, min(self.remaining, seconds)))


def _attempt(work: Work, coordinator: Coordinator, limiter: RateLimiter) -> Flow[Token]:
    """Send one token request; or wait for the answer to the one that a leader left behind."""
    client, attempt = work.call.client, work.local.attempt
    work.flight.hold(client.timeout)
    if attempt is None or not attempt.is_under_way:
        attempt = work.local.attempt = yield from _new_attempt(work, coordinator, limiter)
    work.flight.hold(client.timeout)
    try:
        response = yield from attempt.answer(work.remaining)
        work.local.attempt = None
        yield from coordinator.answered(attempt.number)
        return read_token(client, attempt.secret, response, attempt.sent, now())
    except NetworkError as failure:
        raise unreachable(client, failure) from failure.__cause__
    except ConnectionLostError as lost:
        lost.error = lost.error or _error_of(attempt, client, lost.response)
        if lost.error is not None and lost.error.retry_after:
            limiter.block(lost.error.retry_after, now(), attempt.number)
        raise
    except InvalidClientError:
        yield from work.call.reads_secret.check_after_refusal(work.call)
        raise
    except TokenEndpointError as error:
        if error.retry_after:
            limiter.block(error.retry_after, now(), attempt.number)
        raise refused(client, error) from error.__cause__
    finally:
        limiter.count(attempt.number, now())


def _new_attempt(work: Work, coordinator: Coordinator, limiter: RateLimiter) -> Flow[Attempt]:
    """Return a token request that the rate limit allows, and count it."""
    call, client = work.call, work.call.client
    secret = yield from call.reads_secret.secret_for(call)
    request, number = client.token_request(secret, call.user_agent), limiter.new_request()
    wait = yield from coordinator.reserve(number)
    if wait:
        raise _limited(client, limiter, wait)
    call.requests += 1
    call.budget.requests -= 1
    work.generation, sent = work.local.value.generation, now()
    request = request._replace(timeout=min(request.timeout, work.remaining))
    logger.debug("%s: sending token request %d of this call to %s", client.name, call.requests, client.host)
    return Attempt(request, number, None if call.sender is None else _job(call.sender, request), sent, secret)


def _error_of(attempt: Attempt, client: OAuthClient, response: TokenResponse | None) -> TokenEndpointError | None:
    """Return what an answer means at which a response hook of the client raised."""
    if response is not None:
        try:
            read_token(client, attempt.secret, response, attempt.sent, now())
        except TokenEndpointError as error:
            return error
    return None


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


def refused(client: OAuthClient, problem: TokenEndpointError) -> TokenEndpointError:
    """Return the problem of a response; of one that was not read, with the provider's name and the host."""
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
