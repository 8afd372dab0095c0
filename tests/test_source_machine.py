"""Whatever happens in whatever order, the token's source keeps its rules: a state machine that Hypothesis drives.

The simulation draws its troubles at random; here Hypothesis searches for the shortest sequence that breaks a rule.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from baas_auth_plugins._client import Client, logger
from baas_auth_plugins._flow import (
    ConnectionLostError,
    Exchange,
    Join,
    NetworkError,
    Sleep,
    TokenRequest,
    TokenResponse,
)
from baas_auth_plugins._limiter import RateLimiter
from baas_auth_plugins._shared import SharedCache
from baas_auth_plugins._source import TokenSource
from baas_auth_plugins._token import Instant, State, Token
from baas_auth_plugins._turn import Turn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baas_auth_plugins import BS2Auth, MemoryTokenCache
from baas_auth_plugins._fleet import Fleet
from baas_auth_plugins.exceptions import TokenEndpointError

REFUSALS = {
    "401": TokenResponse.of(401, {}, b'{"error": "invalid_client"}'),
    "429": TokenResponse.of(429, {"Retry-After": "7"}, b"{}"),
    "503": TokenResponse.of(503, {}, b""),
    "garbage": TokenResponse.of(200, {}, b"<html>"),
}
PATIENT = Client(BS2Auth.provider, "id", "https://gateway.example", "a b", 300.0, 10.0, 60.0, headers={})
CLIENTS = (PATIENT, PATIENT._replace(leeway=5.0, max_wait=8.0), PATIENT._replace(leeway=0.0, timeout=2.0))


@dataclass(eq=False)
class Caller:
    """One flow under way, and what it waits for."""

    client: Client
    flow: Generator[Any, Any, Token]
    effect: Any = None
    due: float = 0.0


class SourceMachine(RuleBasedStateMachine):
    """One source, callers of three kinds, and a gateway that answers when and what Hypothesis likes."""

    @initialize(life=st.sampled_from((60, 300, 3600)), limit=st.sampled_from((None, (3, 60))))
    def start(self, life: int, limit: tuple[int, float] | None) -> None:
        """A process begins, with nothing cached."""
        self.now = Instant(1_750_000_000.0, 1_000.0)
        self.life, self.limit = life, limit
        clock = lambda: self.now  # noqa: E731
        cache = SharedCache(MemoryTokenCache(timer=lambda: self.now.monotonic), clock)
        fleet = Fleet(cache, "key", "limits", None, limit, clock)
        self.source = TokenSource("bs2", "key", fleet, RateLimiter(limit), clock)
        self.callers: list[Caller] = []
        self.served: list[Token] = []
        self.answered: list[float] = []
        self.blocked_until = 0.0
        self.minted = 0

    # What callers do.

    @rule(client=st.sampled_from(CLIENTS))
    def ask(self, client: Client) -> None:
        """Somebody needs a token."""
        mint = partial(self._mint, client)
        deadline = self.now.monotonic + client.max_wait
        self._step(Caller(client, self.source.acquire(client, mint, deadline, None)))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Somebody gives up: its flow is closed wherever it stands."""
        caller = data.draw(st.sampled_from(self.callers))
        self.callers.remove(caller)
        caller.flow.close()

    @precondition(lambda self: self.served)
    @rule(client=st.sampled_from(CLIENTS), data=st.data())
    def reject(self, client: Client, data: st.DataObject) -> None:
        """The API answers 401 to a token that somebody was served, lately or long ago."""
        token = data.draw(st.sampled_from(self.served[-3:]))
        before = self.source.known.token
        _, dropped = self.source.reject(client, token, replayable=True)
        assert self.source.known.token is before or (dropped and before is token), "a 401 drops the rejected token only"
        if dropped:
            self._run(self.source.forget(token))

    @rule()
    def invalidate(self) -> None:
        """The user drops the token."""
        self._run(self.source.forget())

    # What the gateway and the clocks do.

    @precondition(lambda self: self._asking())
    @rule(outcome=st.sampled_from(("good", "good", "good", "network", "lost", *REFUSALS)))
    def answer(self, outcome: str) -> None:
        """The token request under way has an outcome."""
        caller = self._asking()[0]
        self.answered.append(self.now.monotonic)
        if outcome == "429":
            self.blocked_until = self.now.monotonic + 7
        error = {"network": NetworkError("gone"), "lost": ConnectionLostError()}.get(outcome)
        self._step(caller, REFUSALS.get(outcome) or self._good(), error)

    @rule(seconds=st.one_of(st.floats(0.01, 10), st.sampled_from((29.0, 61.0, 300.0, 4000.0))))
    def advance(self, seconds: float) -> None:
        """Time passes, and timers go off."""
        self.now = Instant(self.now.wall + seconds, self.now.monotonic + seconds)
        self._wake()

    @rule(seconds=st.sampled_from((-4000.0, -60.0, 60.0, 4000.0)))
    def step_the_wall_clock(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.now = self.now._replace(wall=self.now.wall + seconds)

    @rule()
    def wake(self) -> None:
        """Whoever was woken goes on."""
        self._wake()

    # The rules of the source.

    @invariant()
    def one_token_request(self) -> None:
        """At most one token request is under way."""
        assert len(self._asking()) <= 1

    @invariant()
    def somebody_works(self) -> None:
        """Nobody waits unless somebody works, or was woken and is about to."""
        waiting = [caller for caller in self.callers if isinstance(caller.effect, Join)]
        working = [caller for caller in self.callers if not isinstance(caller.effect, Join)]
        assert not waiting or working or any(caller.effect.waiter.woken for caller in waiting)

    def teardown(self) -> None:
        """Once the gateway is well again every caller finishes."""
        for _ in range(1000):
            if not getattr(self, "callers", None):
                return
            if self._asking():
                self.answer("good")
            else:
                self.advance(1.0)
        raise AssertionError(f"{len(self.callers)} callers never finish")

    # How flows are driven.

    def _mint(self, client: Client, turn: Turn) -> Generator[Any, Any, Token]:
        clock = lambda: self.now  # noqa: E731
        return (
            yield from Exchange("bs2", clock, self.source.limiter, lambda _error: None, client.timeout, turn).run(
                client.token_request("secret", {}),
                partial(client.read_token, "secret", clock),
                deadline=turn.deadline,
                retry=turn.urgent,
            )
        )

    def _good(self) -> TokenResponse:
        self.minted += 1
        payload = {"access_token": f"token-{self.minted}", "expires_in": self.life}
        return TokenResponse.of(200, {}, json.dumps(payload).encode())

    def _asking(self) -> list[Caller]:
        return [caller for caller in getattr(self, "callers", ()) if isinstance(caller.effect, TokenRequest)]

    def _wake(self) -> None:
        for caller in list(self.callers):
            due = caller.due <= self.now.monotonic
            if caller in self.callers and isinstance(caller.effect, Join | Sleep):
                if due or (isinstance(caller.effect, Join) and caller.effect.waiter.woken):
                    self._step(caller)
            elif caller in self.callers and due:
                self.answered.append(caller.due)
                self._step(caller, error=NetworkError("timed out"))

    def _step(self, caller: Caller, value: Any = None, error: Exception | None = None) -> None:
        if caller in self.callers:
            self.callers.remove(caller)
        try:
            caller.effect = caller.flow.throw(error) if error is not None else caller.flow.send(value)
        except StopIteration as stop:
            self._serve(caller, stop.value)
            return
        except TokenEndpointError:
            known = self.source.known.token
            assert known is None or known.state(self.now, caller.client.leeway) is State.DEAD, (
                "failed with a live token"
            )
            return
        except ConnectionLostError:
            return
        self.callers.append(caller)
        if isinstance(caller.effect, TokenRequest):
            self._check_limits()
        caller.due = self.now.monotonic + getattr(caller.effect, "seconds", getattr(caller.effect, "timeout", 0.0))

    def _serve(self, caller: Caller, token: Token) -> None:
        assert token.state(self.now, caller.client.leeway) is not State.DEAD, "a dead token is served"
        self.served.append(token)

    def _check_limits(self) -> None:
        now = self.now.monotonic
        assert now >= self.blocked_until - 1e-6, "a token request while a Retry-After runs"
        if self.limit is not None:
            lately = [at for at in self.answered if now - at < self.limit[1] - 1e-6]
            assert len(lately) < self.limit[0], f"a token request over the rate limit: {lately}, and now at {now}"

    def _run(self, flow: Generator[Any, Any, None]) -> None:
        for effect in flow:
            raise AssertionError(f"the cache needs no {effect}")


TestSourceMachine = SourceMachine.TestCase
TestSourceMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@pytest.fixture(autouse=True)
def _no_log() -> Generator[None, None, None]:
    """Nobody reads thousands of warnings."""
    logger.disabled = True
    yield
    logger.disabled = False
