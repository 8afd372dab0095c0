"""The httpx face: `httpx.Auth` and, where installed, `httpx2.Auth`, with their sync and async drivers.

A token request is yielded through the caller's own client, so its proxy, TLS, client certificate,
transport and mocks apply. It is built with the class of the caller's request: one driver serves
httpx and httpx2 alike. What httpx asks of an auth flow:

- A bare request has no timeout: set it on each.
- The flow is closed when a send fails. What closed it decides who goes on: see `_flight`.
- A rejected response keeps its connection until it is read: read it before waiting for anything.
- A client that follows redirects would send a body again, secret included, to wherever a 307
  points: the body of a token request can be read once only.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from ._drive import aperform, in_trio, perform
from ._flow import (
    MAX_RESPONSE_BYTES,
    ConnectionLostError,
    Effect,
    NetworkError,
    Release,
    TokenRequest,
    TokenResponse,
)
from ._grant import Grant
from ._origin import AllowedOrigins, Origin, origin, origin_of_url
from .exceptions import InvalidTokenResponseError, TokenEndpointError

if TYPE_CHECKING:
    import httpx2

    class _Auth(httpx.Auth, httpx2.Auth):  # type: ignore[misc]  # equal but for their own classes; ours takes both
        pass

    class _Bytes(httpx.ByteStream, httpx2.ByteStream):
        pass

    _clients = [httpx, httpx2]
else:
    _clients = [httpx]
    try:
        import httpx2
    except ImportError:
        pass
    else:
        _clients.append(httpx2)

    class _Auth(*(client.Auth for client in _clients)):
        """An auth object of every client that is installed."""

    class _Bytes(*(client.ByteStream for client in _clients)):
        """A body that every client that is installed can send, sync and async."""


__all__ = ["HttpxFace", "aclient_transport", "client_transport"]

_BYTE_STREAMS = _Bytes.__bases__
_REQUEST_ERRORS = tuple(client.RequestError for client in _clients)
_PHASES = ("connect", "read", "write", "pool")


@dataclass(frozen=True, slots=True)
class Send:
    """Send the caller's own request; the result is the response."""

    request: Any


class _OneShotBody(_Bytes):
    """A body that is sent once: a redirect that would repeat it is refused."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.refusal: InvalidTokenResponseError | None = None

    def _take(self) -> bytes:
        body, self._body = self._body, None
        if body is None:
            self.refusal = InvalidTokenResponseError("the token endpoint redirects; credentials are not sent on")
            raise self.refusal
        return body

    def __iter__(self) -> Iterator[bytes]:
        yield self._take()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._take()


class HttpxFace(_Auth):
    """What httpx and httpx2 need of an auth object."""

    _grant: Grant
    _origins: AllowedOrigins

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Authenticate one request of a sync client."""
        flow = self._flow(request)
        result: Any = None
        error: BaseException | None = None
        response: Any = None
        while True:
            try:
                effect = flow.send(result) if error is None else flow.throw(error)
            except StopIteration:
                return
            result = error = None
            outgoing: Any = None
            try:
                if isinstance(effect, Send):
                    result = response = yield effect.request
                elif isinstance(effect, TokenRequest):
                    outgoing = _outgoing(type(request), effect)
                    result = _answer((yield outgoing), effect)
                elif isinstance(effect, Release):
                    response.read()
                else:
                    result = perform(effect)
            except GeneratorExit as closed:
                _close(flow, outgoing, lost=isinstance(closed.__context__, Exception))
                raise
            except BaseException as raised:
                error = raised

    auth_flow = sync_auth_flow

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Authenticate one request of an async client, under asyncio or trio."""
        flow = self._flow(request)
        result: Any = None
        error: BaseException | None = None
        response: Any = None
        while True:
            try:
                effect = flow.send(result) if error is None else flow.throw(error)
            except StopIteration:
                return
            result = error = None
            outgoing: Any = None
            try:
                if isinstance(effect, Send):
                    result = response = yield effect.request
                elif isinstance(effect, TokenRequest):
                    outgoing = _outgoing(type(request), effect)
                    result = await _aanswer((yield outgoing), effect)
                elif isinstance(effect, Release):
                    await response.aread()
                else:
                    result = await aperform(effect)
            except GeneratorExit:
                _close(flow, outgoing, lost=not _cancelled())
                raise
            except BaseException as raised:
                error = raised

    def _flow(self, request: Any) -> Generator[Effect | Send, Any, None]:
        if not self._origins.admit(_origin(request.url)):
            yield Send(request)
            return
        user_agent = request.headers.get("User-Agent")
        minted: list[Any] = []
        token = self._grant.fresh_token() or (yield from self._grant.acquire(user_agent, minted=minted))
        request.headers["Authorization"] = f"Bearer {token.access_token}"
        response = yield Send(request)
        sent = _request_of(response, request)  # after redirects, the last hop: what came before it is not repeated
        rejected = response.status_code == httpx.codes.UNAUTHORIZED
        if token in minted and not rejected:
            self._grant.accepted(token)
        if (
            not rejected
            or sent.headers.get("Authorization") != f"Bearer {token.access_token}"
            or not self._origins.admit(_origin(sent.url))
        ):
            return
        replacement = yield from self._grant.recover(
            token, replayable=_is_replayable(sent.stream), user_agent=user_agent
        )
        if replacement is not None:
            sent.headers["Authorization"] = f"Bearer {replacement.token.access_token}"
            answer = yield Send(sent)
            self._grant.replayed(replacement, answer.status_code)


def client_transport(client: Any) -> Callable[[TokenRequest], TokenResponse]:
    """Return what sends token requests over an `httpx.Client` or `httpx2.Client`."""

    def send(effect: TokenRequest) -> TokenResponse:
        outgoing = _outgoing(type(client.build_request("POST", effect.url)), effect)
        with _network_errors(effect):
            response = client.send(outgoing, stream=True, auth=None, follow_redirects=False)
            try:
                return _answer(response, effect)
            finally:
                response.close()

    return send


def aclient_transport(client: Any) -> Callable[[TokenRequest], Awaitable[TokenResponse]]:
    """Return what sends token requests over an `httpx.AsyncClient` or `httpx2.AsyncClient`."""

    async def send(effect: TokenRequest) -> TokenResponse:
        outgoing = _outgoing(type(client.build_request("POST", effect.url)), effect)
        with _network_errors(effect):
            response = await client.send(outgoing, stream=True, auth=None, follow_redirects=False)
            try:
                return await _aanswer(response, effect)
            finally:
                await response.aclose()

    return send


@contextmanager
def _network_errors(effect: TokenRequest) -> Iterator[None]:
    """Tell flows of a client's own errors; asyncio's TLS lets some through that httpx does not know."""
    try:
        yield
    except TokenEndpointError:  # which is an OSError, too
        raise
    except (*_REQUEST_ERRORS, OSError) as error:
        raise NetworkError.of(error) from effect.presentable(error)


class _Body:
    """A token response's body as it comes in: from the right origin, and only so long and so late."""

    def __init__(self, response: Any, effect: TokenRequest) -> None:
        self._response = response
        self._effect = effect
        self._until = time.monotonic() + effect.timeout
        self._raw = bytearray()
        self.stream = response.stream
        # What httpx will find, should this go wrong: it reads the response before it sends again.
        response.stream = _Bytes(b"")

    def check_origin(self) -> None:
        answered = _request_of(self._response, None)
        if answered is not None and _origin(answered.url) != origin_of_url(self._effect.url):
            raise InvalidTokenResponseError("the token response came from another origin, and was refused")

    def feed(self, chunk: bytes) -> None:
        self._raw += chunk
        if len(self._raw) > MAX_RESPONSE_BYTES:
            raise InvalidTokenResponseError("the token response is longer than 1 MiB")
        if time.monotonic() > self._until:
            raise NetworkError("the token response did not end in time")

    def whole(self) -> TokenResponse:
        return TokenResponse.of(self._response.status_code, self._response.headers, bytes(self._raw))


@contextmanager
def _reading(response: Any, effect: TokenRequest) -> Iterator[_Body]:
    try:
        with _network_errors(effect):
            yield _Body(response, effect)
    finally:
        response.headers.pop("Content-Encoding", None)  # nothing encoded is left to be read


def _answer(response: Any, effect: TokenRequest) -> TokenResponse:
    with _reading(response, effect) as body:
        if (content := _content(response)) is not None:
            body.check_origin()
            body.feed(content)
            return body.whole()
        try:
            body.check_origin()
            for chunk in body.stream:
                body.feed(chunk)
        finally:
            body.stream.close()
        return body.whole()


async def _aanswer(response: Any, effect: TokenRequest) -> TokenResponse:
    with _reading(response, effect) as body:
        if (content := _content(response)) is not None:
            body.check_origin()
            body.feed(content)
            return body.whole()
        try:
            body.check_origin()
            async for chunk in body.stream:
                body.feed(chunk)
        finally:
            await body.stream.aclose()
        return body.whole()


def _content(response: Any) -> bytes | None:
    """Return the body, if an event hook has read it already, or a mock brought it along."""
    try:
        content: bytes = response.content
    except RuntimeError:
        return None
    response.headers.pop("Content-Encoding", None)
    return content


def _outgoing(request_class: Any, effect: TokenRequest) -> Any:
    """Build a token request for the client whose class this is."""
    extensions = {"timeout": dict.fromkeys(_PHASES, effect.timeout)}
    outgoing = request_class("POST", effect.url, headers=effect.headers, content=effect.body, extensions=extensions)
    outgoing.stream = _OneShotBody(effect.body)
    return outgoing


def _close(flow: Generator[Any, Any, None], outgoing: Any, *, lost: bool) -> None:
    """Tell a flow that the client has closed it, and why; it must not go on."""
    error: Exception | None = outgoing and (outgoing.stream.refusal or (ConnectionLostError() if lost else None))
    if error is not None:
        with suppress(Exception):  # the client is raising what happened already
            flow.throw(error)
    flow.close()


def _cancelled() -> bool:
    """Tell whether the current task is being cancelled, rather than seeing a send fail."""
    if in_trio():
        return bool(sys.modules["trio"].current_effective_deadline() == -math.inf)
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _request_of(response: Any, otherwise: Any) -> Any:
    """Return the request that was answered, after redirects; a response made by hand may not know it."""
    try:
        return response.request
    except RuntimeError:
        return otherwise


def _origin(url: Any) -> Origin | None:
    return origin(url.scheme, url.raw_host.decode("ascii"), url.port)


def _is_replayable(stream: Any) -> bool:
    """Tell whether a body can be sent again whole: bytes, or a form whose files httpx rewinds itself."""
    if isinstance(stream, _BYTE_STREAMS):
        return True
    fields = getattr(stream, "fields", None)
    return fields is not None and all(_is_rewound(getattr(field, "file", b"")) for field in fields)


def _is_rewound(file: Any) -> bool:
    return isinstance(file, str | bytes) or bool(getattr(file, "seekable", bool)())
