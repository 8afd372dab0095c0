"""The source of one token: serve it, renew it, and replace it after a 401. All callers with its cache key share it.

The rules:

- While a token is valid no caller fails. A renewal that fails is logged and tried again after a pause.
- A token is requested under single flight. A state changes by a transition, under the lock.
- A 401 drops exactly the rejected token, never its successor.
"""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import Literal

from .._oauth.token import Instant, Phase, Token, digest, now
from ..exceptions import (
    BaaSAuthError,
    ConfigurationError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from . import reports
from .call import Call, Work
from .coordinator import Coordinator, LocalState
from .effects import ConnectionLostError, Flow
from .fetch import RETRIED, RETRIES, fetch
from .rate_limit import RateLimiter
from .single_flight import Flight, OutOfTimeError, SingleFlight, no_token
from .state import TokenState, Transition, Verdict

logger = logging.getLogger("baas_auth_plugins")

_ROUNDS = 20
_LOOK_AGAIN = (0.25, 0.75)  # seconds until another process's renewal is looked at again

Refusal = Literal["body", "back-off", "rate limit"]


class TokenSource:
    """One token's way in and out of this process.

    Args:
        provider: the provider's name, for errors.
        key: the cache key.
        local: the state.
        coordinator: who may send, among processes.
        limiter: the client's rate limit.
    """

    __slots__ = (
        "__weakref__",
        "_coordinator",
        "_flights",
        "_lost_to",
        "_provider",
        "_sending",
        "key",
        "limiter",
        "local",
    )

    def __init__(
        self, provider: str, key: str, local: LocalState, coordinator: Coordinator, limiter: RateLimiter
    ) -> None:
        self.key = key
        self.local = local
        self.limiter = limiter
        self._provider = provider
        self._coordinator = coordinator
        self._flights = SingleFlight(provider)
        self._lost_to = ""  # why there is no token: rejected or invalidated

    def reset(self) -> None:
        """Forget everything. The result of a flight under way is dropped."""
        self._flights = SingleFlight(self._provider)
        self._lost_to = ""
        self.limiter.reset()
        self._coordinator.reset()

    def acquire(self, call: Call) -> Flow[Token]:
        """Return a token that may be sent.

        Raises:
            TokenEndpointError: there is no valid token, and the gateway gave none.
            ConfigurationError: the client secret, or a function of the declaration, is wrong.
        """
        call.key = self.key
        started, tried, generation = now(), False, self.local.value.generation
        failure: BaaSAuthError | None = None
        for _ in range(_ROUNDS):
            state, at, stale = self.local.value, now(), False
            if state.generation > generation:
                call.rejected = None  # an issuer may hand out the rejected token again
            token = state.usable(call.rejected, call.client.leeway, at)
            phase = Phase.EXPIRED if token is None else token.phase(at, call.client.leeway)
            if token is not None and phase is Phase.FRESH:
                return token
            if token is not None:
                stale = phase is Phase.STALE
                if tried or self._must_wait(state, at) or (stale and self._flights.is_busy):
                    return self._serve_stale(call, state, token, at)
                if call.starts_renewal is not None:
                    call.starts_renewal()
                    return self._serve_stale(call, state, token, at)
                deadline = min(call.deadline, started.monotonic + call.client.timeout)
            else:
                failure = failure or state.failure_now(at)
                if failure is not None:
                    self._report_pause(state, at, is_ours=tried)
                    raise failure
                if not call.budget.requests:
                    raise no_token(self._provider, "this call has sent as many token requests as it may")
                deadline = call.deadline
            tried = True
            if self._flights.is_busy:
                reports.waiting(self._provider, has_token=token is not None)
            work = partial(self._renew, call, token, deadline)
            try:
                yield from self._flights.run(work, is_urgent=token is None, deadline=deadline, joins=not stale)
            except (TokenEndpointError, ConfigurationError) as error:
                failure = error if token is None else None
            if call.minted is not None and call.minted.is_valid(
                now(), call.client.leeway
            ):  # the machine may have slept
                return call.minted
        raise no_token(self._provider, "none that is valid came")

    def _report_pause(self, state: TokenState, at: Instant, *, is_ours: bool) -> None:
        if not is_ours and state.failure is not None:
            text = "%s: no token request for %.1f s, because the last one failed; raising its error again"
            logger.debug(text, self._provider, state.failure.pause.remaining(at))

    def _must_wait(self, state: TokenState, at: Instant) -> bool:
        """Return whether a voluntary renewal has to wait."""
        return state.renewal.remaining(at) > 0 or state.blocked.remaining(at) > 0 or self.limiter.wait(at) > 0

    def _serve_stale(self, call: Call, state: TokenState, token: Token, at: Instant) -> Token:
        pause = max(state.renewal.remaining(at), state.blocked.remaining(at), self.limiter.wait(at))
        reports.served(self._provider, token, at, pause)
        call.emit("TokenServedStale", token, remaining=token.remaining(at))
        return token

    def _renew(self, call: Call, token: Token | None, deadline: float, flight: Flight) -> Flow[None]:
        """Do the leader's work: request a token, or adopt another process's."""
        before = self.local.value
        current = before.usable(call.rejected, call.client.leeway, now())
        if current is not None and (token is None or current.access_token != token.access_token):
            return  # another caller was quicker
        reason = self._reason(before, call, token)
        retries = 0 if before.is_failing(now()) else RETRIES
        work = Work(call, flight, token, deadline, self.local, retries)
        request, epoch = _Request(work, reason), work.epoch
        reports.requesting(call.client, reason, token or call.rejected or before.token, request.started)
        try:
            new = yield from fetch(work, self._coordinator, self.limiter)
        except ConnectionLostError as lost:  # nothing may be yielded any more
            error = lost.error or no_token(self._provider, "the connection to the token endpoint was lost")
            is_hiccup = token is None and lost.error is None
            failed = _unchanged if is_hiccup else request.failed(error, is_urgent=token is None)
            self._coordinator.publish_later(failed, epoch, ends_lead=True)
            self._report_failure(request, error)
            raise
        except (TokenEndpointError, ConfigurationError) as error:
            yield from self._coordinator.publish(request.failed(error, is_urgent=token is None), epoch, ends_lead=True)
            self._report_failure(request, error)
            raise
        except OutOfTimeError:
            yield from self._coordinator.publish(_unchanged, epoch, ends_lead=True)
            raise
        except BaseException:  # cancelled, closed or interrupted
            self._coordinator.publish_later(_unchanged, epoch, ends_lead=True)
            raise
        if new is None:
            self._look_again_soon(token)
            return
        call.minted = new
        self._report_success(request, new)
        yield from self._coordinator.publish(request.renewed(new), epoch, ends_lead=True)

    def _reason(self, state: TokenState, call: Call, token: Token | None) -> str:
        if token is not None:
            return "due"
        if call.rejected is not None:
            return "rejected"
        return "expired" if state.token is not None else self._lost_to or "cold"

    def _look_again_soon(self, token: Token | None) -> None:
        if token is not None:  # another process renews it
            pause, at = random.uniform(*_LOOK_AGAIN), now()  # noqa: S311  # jitter, not cryptography
            self.local.apply(lambda state: state.paused(pause, at))

    def _report_success(self, request: _Request, token: Token) -> None:
        duration, call = now().since(request.started), request.call
        reports.minted(call.client, request.reason, token, call.requests, duration)
        fields = {"reason": request.reason, "attempts": call.requests, "duration": duration}
        call.emit("TokenMinted", token, expires_in=token.expires_in, **fields)

    def _report_failure(self, request: _Request, error: TokenEndpointError | ConfigurationError) -> None:
        call, at, state = request.call, now(), self.local.value
        token = state.usable(call.rejected, call.client.leeway, at)
        pause = max(state.renewal.remaining(at), self.limiter.wait(at))
        reports.failed(error, token, at, pause)
        call.emit(
            "RenewalFailed",
            token,
            error=type(error).__name__,
            status_code=getattr(error, "status_code", None),
            duration=at.since(request.started),
            serving_old_token=token is not None,
            next_attempt_in=pause,
        )

    def _report_401(self, call: Call, token: Token, at: Instant, refusal: Refusal | None) -> None:
        state = self.local.value
        limited = max(self.limiter.wait(at), state.blocked.remaining(at))
        pause = state.rejection.remaining(at) if refusal == "back-off" else limited
        reports.rejected(self._provider, token, at, refusal, pause, self._other(call, token))
        call.emit("TokenRejected", token, age=token.age(at), replaying=refusal is None, reason=refusal)

    def rejected(self, call: Call, token: Token, *, is_replayable: bool) -> Flow[bool]:
        """The API answered 401 to a token: return whether to send the request again with another one.

        The token is dropped, unless the back-off of rejections or a rate limit runs: then a new one cannot be had.
        """
        at = now()
        self.local.apply(lambda state: state.with_401(at))
        if self._other(call, token) is None:
            yield from self._coordinator.look(call.deadline)
        refusal = self._refusal(call, token, is_replayable=is_replayable)
        self._report_401(call, token, at, refusal)
        if refusal is None and self._other(call, token) is None:
            self._drop(token, "rejected")  # the request for the next one publishes it
        elif refusal == "body" and self._may_drop(call, token):
            yield from self._coordinator.publish(self._dropping_for_good(token))
        return refusal is None

    def rejected_at_the_end(self, call: Call, token: Token) -> None:
        """Do as `rejected` for a request that cannot be sent again, where the client has closed the flow."""
        at = now()
        self.local.apply(lambda state: state.with_401(at))
        self._report_401(call, token, at, "body")
        if self._may_drop(call, token):
            self._coordinator.publish_later(self._dropping_for_good(token))

    def _other(self, call: Call, token: Token) -> Token | None:
        return self.local.value.usable(token, call.client.leeway, now())

    def _refusal(self, call: Call, token: Token, *, is_replayable: bool) -> Refusal | None:
        """Return why a request that got a 401 is not sent again."""
        state, at = self.local.value, now()
        if not is_replayable:
            return "body"
        if self._other(call, token) is not None or self._flights.is_busy:
            return None
        if state.rejection.remaining(at):
            return "back-off"
        return "rate limit" if self.limiter.wait(at) or state.blocked.remaining(at) else None

    def _may_drop(self, call: Call, token: Token) -> bool:
        return self._other(call, token) is None and self._refusal(call, token, is_replayable=True) is None

    def _drop(self, token: Token, why: str) -> None:
        self._lost_to = why
        self.local.apply(lambda state: state.without_token(token))

    def _dropping_for_good(self, token: Token) -> Transition:
        """Return the transition after a 401 that is not replayed: if this token was current, it counts."""
        self._lost_to, at = "rejected", now()

        def transition(state: TokenState) -> TokenState:
            is_current = state.token is not None and state.token.access_token == token.access_token
            return (state.with_rejection(at) if is_current else state).without_token(token)

        return transition

    def accepted(self, token: Token) -> Flow[None]:
        """The API accepted the replay of the call that had this token requested: the back-off ends."""
        state = self.local.value
        if _holds(state, token) and state.verdict is not Verdict.ACCEPTED:
            yield from self._coordinator.publish(
                lambda state: state.with_acceptance() if _holds(state, token) else state
            )

    def replay_rejected(self, call: Call, token: Token) -> Flow[None]:
        """The API rejected that replay, too: token requests because of 401s back off, unless another token came."""
        at = now()
        self.local.apply(lambda state: state.with_401(at))
        yield from self._coordinator.look(call.deadline)
        self.replay_rejected_at_the_end(token)
        yield from self._coordinator.publish(_unchanged)

    def replay_rejected_at_the_end(self, token: Token) -> None:
        """Do as `replay_rejected`, where the client has closed the flow."""
        at = now()

        def transition(state: TokenState) -> TokenState:
            # Another caller's 401 may have dropped it meanwhile: no other token came for that.
            is_last = _holds(state, token) or (
                state.token is None and state.dropped[-1:] == (digest(token.access_token),)
            )
            if not is_last or state.verdict is not Verdict.NONE or state.rejection.remaining(at):
                return state
            return state if state.lease is not None and state.lease.remaining(at) else state.with_rejection(at)

        before = self.local.value
        self.local.apply(transition)
        if self.local.value is not before:
            reports.still_rejected(self._provider, token, self.local.value.rejection.remaining(at))

    def invalidate(self, token: Token | str | None, deadline: float) -> Flow[None]:
        """Drop a token, here and for all others: this very one, or whichever is current."""
        yield from self._coordinator.look(deadline)
        current = self.local.value.token
        if isinstance(token, Token):
            dropped: Token | None = token
        else:
            dropped = current if token is None or (current is not None and current.access_token == token) else None
        if dropped is not None:
            logger.debug("%s: invalidate() drops %s", self._provider, reports.name_of(dropped))
            self._drop(dropped, "invalidated")
            yield from self._coordinator.publish(_unchanged)

    def current(self, deadline: float) -> Flow[Token | None]:
        """Return the token that is known here or to others."""
        if self.local.value.token is None:
            yield from self._coordinator.look(deadline)
        return self.local.value.token


class _Request:
    """One token request of a leader, with the transitions that its outcome makes.

    A leader that vanished, and comes back after another one led, does not replace a newer token. No failure delays the
    renewal of a newer token.
    """

    def __init__(self, work: Work, reason: str) -> None:
        self.call = work.call
        self._work = work
        self._leader = work.flight.leader
        self.started = now()
        self.reason = reason

    def renewed(self, token: Token) -> Transition:
        """Return the transition after a success."""
        at, leeway, work = now(), self.call.client.leeway, self._work
        is_late = work.flight.is_over or work.flight.leader is not self._leader

        def transition(state: TokenState) -> TokenState:
            if is_late and state.generation > work.generation and state.usable(None, leeway, at) is not None:
                return state
            return state.renewed(token, at)

        return transition

    def failed(self, error: TokenEndpointError | ConfigurationError, *, is_urgent: bool) -> Transition:
        """Return the transition after a failure."""
        at = now()
        is_gateways = isinstance(error, TokenEndpointError) and not error._is_local
        waits = isinstance(error, RateLimitError) and error.retry_after is not None
        seconds = getattr(error, "retry_after", None) or 0.0
        if is_urgent and waits:
            return lambda state: state.waiting(seconds, at)
        if is_urgent and not is_gateways:
            return _unchanged  # another caller's secret may be right

        def transition(state: TokenState) -> TokenState:
            if state.generation > self._work.generation:
                return state
            failed = state.failed(
                error if isinstance(error, TokenEndpointError) else no_token("", "configuration"),
                is_refusal=is_gateways and _is_refusal(error),
                urgent=is_urgent,
                now=at,
            )
            return failed.paused(seconds, at)

        return transition


def _is_refusal(error: Exception) -> bool:
    """Return whether the gateway refused: asking again would get the same answer."""
    if isinstance(error, RateLimitError | TokenEndpointUnavailableError):
        return getattr(error, "status_code", None) not in RETRIED
    return True


def _holds(state: TokenState, token: Token) -> bool:
    return state.token is not None and state.token.access_token == token.access_token


def _unchanged(state: TokenState) -> TokenState:
    return state
