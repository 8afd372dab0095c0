"""The httpx face: `httpx.Auth` and, where installed, `httpx2.Auth`, with their sync and async drivers.

A token request is yielded through the caller's own client, so that its proxy, TLS, client certificate, transport and
mocks apply. What httpx does to an auth flow:

- It closes the flow when a send fails, and when a response hook raises. Then `sys.exception` gives the reason, outside of the
  ``except GeneratorExit`` clause: the client is handling that exception.
- It reads a response before it sends the next request of the flow. So a rejected response is drained first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx

from .._lifecycle.credentials import CachedHeader, ClientCredentials
from .._lifecycle.effects import ConnectionLostError, Effect, Flow, ReadResponse, SendTokenRequest, Stepper
from .._oauth.messages import TokenResponse
from .._oauth.origins import AllowedOrigins, Origin
from ..exceptions import InvalidTokenResponseError
from .drivers import aperform, perform
from .flow import Answer, AuthParts, ClosedAtAnswerError, SendRequest, after_answer, authenticate, closed_at_answer
from .httpx_messages import (
    BYTE_STREAMS,
    INSTALLED,
    NETWORK_ERRORS,
    RESPONSES,
    Outgoing,
    as_bytes,
    origin_of,
    request_of,
)
from .network import tls_advice
from .requests import LONGEST_DRAINED
from .session_sender import SessionSender

if TYPE_CHECKING:
    import httpx2

    class _Auth(httpx.Auth, httpx2.Auth):  # type: ignore[misc]  # equal but for their own classes; ours takes both
        pass
else:

    class _Auth(*(package.Auth for package in INSTALLED)):
        """An auth object of every client that is installed."""


_DRAIN_SECONDS = 1.0


class HttpxAuth(_Auth):
    """What httpx and httpx2 need of an auth object."""

    _credentials: ClientCredentials
    _origins: AllowedOrigins
    _parts: AuthParts
    _sender: SessionSender

    def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Authenticate one request for another auth object that composes with this one.

        The first yield is the authenticated request. A token that is needed is requested over `session` or a private
        session, in this thread.

        Raises:
            TypeError: an event loop runs in this thread, and would be blocked. Use `async_auth_flow`.
        """
        if _in_event_loop():
            raise TypeError(f"{type(self).__name__}.auth_flow would block the event loop; use async_auth_flow")
        return self.sync_auth_flow(request, self._sender)

    def sync_auth_flow(self, request: Any, sender: SessionSender | None = None) -> Generator[Any, Any, None]:
        """Authenticate one request of a sync client."""
        response: Any = None
        is_closed, cached = False, self._credentials.cached_header()
        if cached is not None and self._origins.is_home_url(request.url):
            request.headers["Authorization"] = cached.header
            try:
                response = yield request
            except GeneratorExit:
                is_closed = True
            if is_closed:
                closed_at_answer(self._parts, cached.acquired, _status_at_close(request))
                return
            if response.status_code != 401:
                return
        exchange = _Exchange(self._parts, request, sender or self._sender.if_given())
        steps = Stepper(exchange.flow(cached, response))
        while (effect := steps.next()) is not None:
            try:
                if isinstance(effect, SendRequest):
                    steps.result = exchange.answered((yield exchange.to_send(effect)))
                elif isinstance(effect, SendTokenRequest):
                    outgoing = exchange.outgoing(effect, is_async=False)
                    steps.result = outgoing.read((yield outgoing.raw))
                elif isinstance(effect, ReadResponse):
                    exchange.drain()
                else:
                    steps.result = perform(effect)
            except GeneratorExit:
                is_closed = True
            except BaseException as raised:
                steps.error = raised
            if is_closed:
                exchange.close(steps.flow, effect)
                return

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Authenticate one request of an async client, under asyncio or trio."""
        response: Any = None
        is_closed, cached = False, self._credentials.cached_header()
        if cached is not None and self._origins.is_home_url(request.url):
            request.headers["Authorization"] = cached.header
            try:
                response = yield request
            except GeneratorExit:
                is_closed = True
            if is_closed:
                closed_at_answer(self._parts, cached.acquired, _status_at_close(request))
                return
            if response.status_code != 401:
                return
        exchange = _Exchange(self._parts, request, self._sender.if_given())
        steps = Stepper(exchange.flow(cached, response))
        while (effect := steps.next()) is not None:
            try:
                if isinstance(effect, SendRequest):
                    steps.result = exchange.answered((yield exchange.to_send(effect)))
                elif isinstance(effect, SendTokenRequest):
                    outgoing = exchange.outgoing(effect, is_async=True)
                    steps.result = await outgoing.aread((yield outgoing.raw))
                elif isinstance(effect, ReadResponse):
                    await exchange.adrain()
                else:
                    steps.result = await aperform(effect)
            except GeneratorExit:
                is_closed = True
            except BaseException as raised:
                steps.error = raised
            if is_closed:
                exchange.close(steps.flow, effect)
                return


class HttpxRequest:
    """A request of httpx, as the flows see it."""

    __slots__ = ("raw",)

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    @property
    def origin(self) -> Origin | None:
        """Where it goes."""
        return origin_of(self.raw.url)

    @property
    def user_agent(self) -> str | None:
        """Its User-Agent."""
        value: str | None = self.raw.headers.get("User-Agent")
        return value

    @property
    def authorization(self) -> str | None:
        """Its Authorization header."""
        value: str | None = self.raw.headers.get("Authorization")
        return value

    @property
    def is_replayable(self) -> bool:
        """Whether the body is in memory, or a form whose files httpx rewinds itself."""
        stream = self.raw.stream
        if isinstance(stream, BYTE_STREAMS):
            return True
        fields = getattr(stream, "fields", None)
        return fields is not None and all(_is_rewound(getattr(field, "file", b"")) for field in fields)

    def authorize(self, access_token: str) -> None:
        """Set the Authorization header."""
        self.raw.headers["Authorization"] = f"Bearer {access_token}"


def _is_rewound(file: Any) -> bool:
    return isinstance(file, str | bytes) or bool(getattr(file, "seekable", bool)())


class _Exchange:
    """One API request on its way through a client, with the token requests and the answers that it needs."""

    def __init__(self, parts: AuthParts, request: Any, sender: SessionSender | None) -> None:
        self._parts = parts
        self._request = request
        self._sender = sender
        self._sent: Any = request
        self._response: Any = None
        self._outgoing: Outgoing | None = None

    def flow(self, cached: CachedHeader | None, response: Any) -> Flow[None]:
        """Return the flow for the request; or the rest of it, after `response` to a request with the cached token."""
        if cached is None or response is None:
            return authenticate(self._parts, HttpxRequest(self._request), self._sender)
        return after_answer(self._parts, cached.acquired, self.answered(response), self._sender)

    def to_send(self, effect: SendRequest) -> Any:
        """Return the request to yield."""
        self._sent = effect.request.raw  # type: ignore[attr-defined]  # flows get no other class here
        return self._sent

    def answered(self, response: Any) -> Answer:
        """Return what the flow must know of a response: after redirects, of the last request."""
        self._response = response
        return Answer(response.status_code, HttpxRequest(request_of(response, self._sent)))

    def outgoing(self, effect: SendTokenRequest, *, is_async: bool) -> Outgoing:
        """Return a token request to yield."""
        self._outgoing = Outgoing(self._request, effect.request, self._parts.credentials.client.name, is_async=is_async)
        return self._outgoing

    def close(self, flow: Flow[None], effect: Effect[Any]) -> None:
        """End a flow that the client has closed, with the reason. The client raises its own error."""
        error = sys.exception()
        reason: Exception | None = None
        if isinstance(effect, SendTokenRequest) and self._outgoing is not None:
            self._outgoing.wipe()
            if isinstance(error, Exception):
                response = self._outgoing.read_at_close(_responses_at_close())
                reason = ConnectionLostError(response, self._outgoing.refusal)
            if error is not None and (advice := tls_advice(str(self._outgoing.raw.url), error)):
                error.add_note(f"{self._parts.credentials.client.name}: {advice}")  # the error stays httpx's own
        elif isinstance(effect, SendRequest):
            reason = ClosedAtAnswerError(_status_at_close(self._sent))
        if reason is not None:
            with suppress(type(reason)):
                flow.throw(reason)
        flow.close()
        if isinstance(reason, ConnectionLostError) and reason.error is not None:
            raise reason.error

    def drain(self) -> None:
        """Free the connection of a rejected response: read a short body as it is, close any other."""
        response, body, until = self._response, bytearray(), time.monotonic() + _DRAIN_SECONDS
        if hasattr(response, "_content"):
            return  # a hook has read it, or a mock brought it along
        with _short_reads(response), suppress(*NETWORK_ERRORS):
            for chunk in response.stream if _is_short(response) else ():
                body += chunk
                if time.monotonic() > until:
                    break
        with suppress(*NETWORK_ERRORS):
            response.stream.close()
        _replace_body(response, bytes(body))

    async def adrain(self) -> None:
        """Do as `drain`."""
        response, body, until = self._response, bytearray(), time.monotonic() + _DRAIN_SECONDS
        if hasattr(response, "_content"):
            return
        with _short_reads(response), suppress(*NETWORK_ERRORS):
            if _is_short(response):
                async for chunk in response.stream:
                    body += chunk
                    if time.monotonic() > until:
                        break
        with suppress(*NETWORK_ERRORS):
            await response.stream.aclose()
        _replace_body(response, bytes(body))


def _is_short(response: Any) -> bool:
    length = response.headers.get("Content-Length", "")
    return length.isdigit() and int(length) <= LONGEST_DRAINED


@contextmanager
def _short_reads(response: Any) -> Iterator[None]:
    """Let no single read of a response last longer than a second."""
    request = request_of(response, None)
    extensions = {} if request is None else request.extensions
    before = extensions.get("timeout")
    extensions["timeout"] = {**(before or {}), "read": _DRAIN_SECONDS}
    try:
        yield
    finally:
        if before is None:
            del extensions["timeout"]
        else:
            extensions["timeout"] = before


def _replace_body(response: Any, raw: bytes) -> None:
    """Give a drained response a body that httpx can read: decoded within bounds, or empty if that fails."""
    try:
        body = TokenResponse.from_raw(response.status_code, response.headers, raw).body
    except InvalidTokenResponseError:
        body = b""
    response.headers.pop("Content-Encoding", None)
    response.stream = as_bytes(body)


def _status_at_close(request: Any) -> int:
    """Return the status of the answer at which a response hook raised; 0 if there was none."""
    sent = request.headers.get("Authorization")
    for one in _responses_at_close():
        if request_of(one, request).headers.get("Authorization") == sent:
            return int(one.status_code)
    return 0


def _responses_at_close() -> list[Any]:
    """Return the responses that the exception has at which the client closed the flow, none for a network error.

    It is an attribute, or in a frame of the traceback: a hook gets the response as an argument.
    """
    error = sys.exception()
    if error is None or isinstance(error, NETWORK_ERRORS):
        return []
    candidates, step = [getattr(error, "response", None)], error.__traceback__
    while step is not None:
        candidates += step.tb_frame.f_locals.values()
        step = step.tb_next
    return [one for one in candidates if isinstance(one, RESPONSES)]


def _in_event_loop() -> bool:
    trio, asyncio = sys.modules.get("trio"), sys.modules.get("asyncio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return True
    return asyncio is not None and asyncio._get_running_loop() is not None
