"""Stepping flows by hand: what they need, each effect as it comes, and a clock that only tests turn."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from conftest import FakeClock

from baas_auth_plugins import BS2Auth
from baas_auth_plugins._lifecycle.effects import Effect, Flow, SendTokenRequest, Sleep
from baas_auth_plugins._oauth.client import OAuthClient
from baas_auth_plugins._oauth.messages import TokenResponse
from baas_auth_plugins._oauth.token import Instant, Token, now

__all__ = ["CLIENT", "Steps", "answer", "client_of", "faked_clock", "issued", "joined_threads", "run_dry", "token_at"]


def client_of(auth_class: Any = BS2Auth, **changes: Any) -> OAuthClient:
    """Return a client as an auth object of this class would make it."""
    defaults: dict[str, Any] = {
        "provider": auth_class.provider,
        "client_id": "your-client-id",
        "base_url": "https://gateway.example",
        "scope": "cob.read pix.read",
        "leeway": 300.0,
        "timeout": 10.0,
        "max_wait": 60.0,
        "headers": {},
    }
    return OAuthClient(**defaults | changes)


CLIENT = client_of()


@contextmanager
def faked_clock() -> Iterator[FakeClock]:
    """Both clocks, standing still; for tests that Hypothesis runs many times, which fixtures are not made for."""
    clock = FakeClock()
    with patch.object(time, "time", lambda: clock.wall), patch.object(time, "monotonic", lambda: clock.monotonic):
        yield clock


@contextmanager
def joined_threads() -> Iterator[None]:
    """Wait at the end for the daemon threads that the package started meanwhile."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def token_at(name: str, at: Instant | None = None, expires_in: float = 300.0) -> Token:
    """Return a token that was requested at this moment."""
    at = at or now()
    return Token(name, "Bearer", frozenset({"cob.read", "pix.read"}), at.wall, expires_in, at.monotonic)


def answer(status: int, headers: dict[str, str] | None = None, **content: Any) -> TokenResponse:
    """Return a gateway's answer with a JSON body."""
    return TokenResponse.from_raw(status, headers or {}, json.dumps(content).encode())


def issued(name: str = "a-token", expires_in: float = 300, **more: Any) -> TokenResponse:
    """Return a token response."""
    return answer(200, access_token=name, token_type="Bearer", expires_in=expires_in, **more)


class Steps:
    """A flow that is stopped at each effect.

    Attributes:
        effect: what it yielded last; None at its end.
        value: what it returned.
        error: what it raised.
    """

    def __init__(self, flow: Flow[Any]) -> None:
        self.flow = flow
        self.effect: Effect[Any] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        self._advance(lambda: next(flow))

    def go(self, result: Any = None) -> Steps:
        """Give it the effect's result, and let it go on to the next effect."""
        return self._advance(lambda: self.flow.send(result))

    def fail(self, error: BaseException) -> Steps:
        """Let the effect fail."""
        return self._advance(lambda: self.flow.throw(error))

    def close(self) -> Steps:
        """Leave it, as a cancelled task or a closed flow does."""
        self.flow.close()
        self.effect, self.is_over = None, True
        return self

    @property
    def kind(self) -> str | None:
        """The name of the effect's class."""
        return None if self.effect is None else type(self.effect).__name__

    def _advance(self, step: Callable[[], Effect[Any]]) -> Steps:
        try:
            self.effect = step()
        except StopIteration as end:
            self.effect, self.value, self.is_over = None, end.value, True
        except BaseException as raised:
            self.effect, self.error, self.is_over = None, raised, True
            if not isinstance(raised, Exception):
                raise
        return self


def run_dry(flow: Flow[Any], answers: Any = (), clock: FakeClock | None = None) -> Any:
    """Run a flow to its end: token requests get these answers in order, and sleeping takes no time but the clock's.

    Raises:
        AssertionError: it yields something else, or does not need every answer.
    """
    steps, left = Steps(flow), list(answers)
    while not steps.is_over:
        effect = steps.effect
        if isinstance(effect, Sleep):
            if clock is not None:
                clock.sleep(effect.seconds)
            steps.go()
            continue
        assert isinstance(effect, SendTokenRequest), f"nothing here needs a {steps.kind}"
        result = left.pop(0)
        if isinstance(result, BaseException):
            steps.fail(result)
        else:
            steps.go(result)
    if steps.error is not None:
        raise steps.error
    assert not left, "the flow ended before it had seen everything"
    return steps.value
