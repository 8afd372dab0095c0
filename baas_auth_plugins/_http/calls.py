"""API calls through any other HTTP client: get a token, call, and after one 401 call once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from .._lifecycle.effects import Effect, Stepper
from .._oauth.origins import Origin
from .._oauth.token import Token
from .drivers import aperform, perform, run
from .flow import Answer, AuthParts, SendRequest, authenticate
from .session_sender import SessionSender

T = TypeVar("T")


class _Call(Generic[T]):
    """A call as the flows see it: the result of a function that gets a token."""

    is_replayable = True
    user_agent: str | None

    def __init__(self, parts: AuthParts, sender: SessionSender, is_rejected: Callable[[T], bool] | None) -> None:
        self.origin: Origin | None = parts.origins.home
        self.user_agent = sender.user_agent
        self.authorization: str | None = None
        self.token: Token | None = None
        self._is_rejected = is_rejected or _has_status_401
        self._result: T | None = None
        self._error: Exception | None = None

    def authorize(self, access_token: str) -> None:
        """Note which token is sent."""
        self.authorization = f"Bearer {access_token}"

    def returned(self, result: T) -> Answer:
        """Note the result of the function."""
        self._result, self._error = result, None
        return Answer(401 if self._is_rejected(result) else 200, self)

    def raised(self, error: Exception) -> Answer:
        """Note what the function raised."""
        self._error = error
        return Answer(401 if _has_status_401(error) else 200, self)

    def result(self) -> T:
        """Return what the function returned the last time, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it was called


def call_with_token(
    parts: AuthParts, sender: SessionSender, send: Callable[[Token], T], is_rejected: Callable[[T], bool] | None
) -> T:
    """Call `send` with a token, and once more with another one if the API rejects the first."""
    call = _Call(parts, sender, is_rejected)

    def perform_effect(effect: Effect[Any]) -> Any:
        if not isinstance(effect, SendRequest) or effect.acquired is None:
            return perform(effect)
        try:
            return call.returned(send(effect.acquired.token))
        except Exception as error:
            return call.raised(error)

    run(authenticate(parts, call, sender), perform_effect)
    return call.result()


async def acall_with_token(
    parts: AuthParts,
    sender: SessionSender,
    send: Callable[[Token], Awaitable[T]],
    is_rejected: Callable[[T], bool] | None,
) -> T:
    """Do as `call_with_token`, in an event loop."""
    call = _Call(parts, sender, is_rejected)
    steps = Stepper(authenticate(parts, call, sender))
    while (effect := steps.next()) is not None:
        try:
            if isinstance(effect, SendRequest) and effect.acquired is not None:
                try:
                    steps.result = call.returned(await send(effect.acquired.token))
                except Exception as error:
                    steps.result = call.raised(error)
            else:
                steps.result = await aperform(effect)
        except BaseException as raised:
            steps.error = raised
    return call.result()


def _has_status_401(answer: object) -> bool:
    return any(getattr(answer, name, None) == 401 for name in ("status_code", "status", "code"))
