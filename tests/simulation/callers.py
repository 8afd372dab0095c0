"""What a call is: its request, the flow that it runs, and how its HTTP client lets it fail."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from baas_auth_plugins._http.flow import (
    Answer,
    AuthParts,
    ClosedAtAnswerError,
    SendRequest,
    after_answer,
    attach,
    authenticate,
    closed_at_answer,
)
from baas_auth_plugins._lifecycle.credentials import Acquired
from baas_auth_plugins._lifecycle.effects import ConnectionLostError, Effect, Flow, SendTokenRequest
from baas_auth_plugins._oauth.origins import Origin, parse_origin
from baas_auth_plugins.exceptions import BaaSAuthError

if TYPE_CHECKING:
    from .process import Party

__all__ = ["FOREIGN", "HOME", "ApiLostError", "Caller", "InterruptError", "Request", "flow_of"]

HOME = parse_origin("base_url", "https://gateway.example")[1]
FOREIGN = parse_origin("base_url", "https://elsewhere.example")[1]


class InterruptError(Exception):
    """What a signal handler raises, in the middle of anything."""


class CancelledByUserError(BaseException):
    """What asyncio and trio throw into a task."""


class ApiLostError(Exception):
    """The API request failed in the network."""


@dataclass(eq=False)
class Request:
    """An API request as the flows see it."""

    path: str
    origin: Origin | None
    is_replayable: bool
    authorization: str | None = None
    user_agent: str | None = "simulation"

    def authorize(self, access_token: str) -> None:
        """Set the Authorization header."""
        self.authorization = f"Bearer {access_token}"


def flow_of(kind: str, party: Party, request: Request | None) -> Flow[Any]:
    """Return the flow of a call."""
    credentials, parts = party.credentials, party.parts
    if kind in ("requests", "httpx") and request is not None:
        sender = None if kind == "httpx" and not party.has_session else party.sender
        return _api_call(parts, request, sender, is_requests=kind == "requests")
    call = credentials.call(party.sender, "simulation")
    return credentials.invalidate(call, None) if kind == "invalidate" else credentials.acquire(call)


def _api_call(parts: AuthParts, request: Request, sender: Any, *, is_requests: bool) -> Flow[Answer | None]:
    """Do what the faces do: the cached header, then the flows for all else."""
    cached = parts.credentials.cached_header() if request.origin == HOME else None
    if cached is not None:
        request.authorization, acquired = cached.header, cached.acquired
    elif not is_requests:
        yield from authenticate(parts, request, sender)
        return
    else:
        found: Acquired | None = yield from attach(parts, request, sender)
        if found is None:
            yield from SendRequest(request)
            return
        acquired = found
    try:
        answer = yield from SendRequest(request, acquired)
    except ClosedAtAnswerError as closed:
        closed_at_answer(parts, acquired, closed.status_code)
        raise
    if answer.status_code == 401:
        yield from after_answer(parts, acquired, answer, sender)


@dataclass(eq=False)
class Caller:
    """One call under way.

    Attributes:
        outcome: ``returned``, ``failed`` (with `error`), ``cancelled``, ``interrupted``, ``lost`` (the network, under a
            yielded token request), ``API lost`` or ``hook`` (a response hook raised).
    """

    name: str
    kind: str
    party: Party
    flow: Flow[Any]
    request: Request | None = None
    has_hook: bool = False
    effect: Effect[Any] | None = None
    epoch: int = 0
    outcome: str = ""
    error: Exception | None = None
    value: Any = None
    notes: dict[str, Any] = field(default_factory=dict)

    def step(self, how: str, value: Any) -> None:
        """Go on until the next effect, or the end."""
        pending, self.effect = self.effect, None
        self.epoch += 1
        try:
            if how == "send":
                self.effect = self.flow.send(value)
            elif how == "throw":
                self.effect = self.flow.throw(value)
            elif self.kind == "httpx" and (pending is None or isinstance(pending, SendRequest | SendTokenRequest)):
                self.outcome = {"cancel": "cancelled", "interrupt": "interrupted"}.get(how, how)
                self._close(pending, how)
            else:
                self.effect = self.flow.throw(CancelledByUserError() if how == "cancel" else InterruptError())
        except StopIteration as end:
            self.outcome, self.value = "returned", end.value
        except BaaSAuthError as error:
            self.outcome, self.error = "failed", error
        except ApiLostError:
            self.outcome = "API lost"
        except CancelledByUserError:
            self.outcome = "cancelled"
        except InterruptError:
            self.outcome = "interrupted"

    def _close(self, pending: Effect[Any] | None, how: str) -> None:
        """Close the flow as the httpx face does."""
        reason: Exception | None = None
        if isinstance(pending, SendTokenRequest):
            reason = ConnectionLostError() if how == "lost" else None
        elif isinstance(pending, SendRequest):
            reason = ClosedAtAnswerError(401 if how == "hook" else 0)
        if reason is not None:
            with suppress(Exception):
                self.flow.throw(reason)
        self.flow.close()
