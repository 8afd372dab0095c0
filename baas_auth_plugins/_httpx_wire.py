"""Token requests as httpx and httpx2 send them, and their answers, read within bounds.

A request is built with the class of the client that is to send it: one code serves both packages.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from ._flow import MAX_RESPONSE_BYTES, NetworkError, TokenRequest, TokenResponse
from ._origin import Origin, origin, origin_of_url
from .exceptions import InvalidTokenResponseError, TokenEndpointError

if TYPE_CHECKING:
    import httpx2

    class _Bytes(httpx.ByteStream, httpx2.ByteStream):
        pass

    INSTALLED = [httpx, httpx2]
else:
    INSTALLED = [httpx]
    try:
        import httpx2
    except ImportError:
        pass
    else:
        INSTALLED.append(httpx2)

    class _Bytes(*(package.ByteStream for package in INSTALLED)):
        """A body that every client that is installed can send, sync and async."""


__all__ = [
    "BYTE_STREAMS",
    "INSTALLED",
    "aanswer",
    "aclient_transport",
    "answer",
    "client_transport",
    "origin_of",
    "outgoing",
    "request_of",
]

BYTE_STREAMS = _Bytes.__bases__
_REQUEST_ERRORS = tuple(package.RequestError for package in INSTALLED)
_INVALID_URLS = tuple(package.InvalidURL for package in INSTALLED)
_PHASES = ("connect", "read", "write", "pool")


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

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._take())


class _Once:
    """Iterates over one thing; no async generator, which trio would warn of where a cancelled send leaves it half used."""

    def __init__(self, thing: bytes) -> None:
        self._left = [thing]

    def __aiter__(self) -> _Once:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def outgoing(like: Any, effect: TokenRequest) -> Any:
    """Build a token request of the class of `like`, whose User-Agent, perhaps not ASCII, it may have inherited."""
    extensions = {"timeout": dict.fromkeys(_PHASES, effect.timeout)}
    headers = type(like.headers)(effect.headers, encoding=like.headers.encoding)
    request = type(like)("POST", effect.url, headers=headers, content=effect.body, extensions=extensions)
    request.stream = _OneShotBody(effect.body)
    return request


def client_transport(client: Any) -> Callable[[TokenRequest], TokenResponse]:
    """Return what sends token requests over an `httpx.Client` or `httpx2.Client`."""

    def send(effect: TokenRequest) -> TokenResponse:
        request = outgoing(client.build_request("POST", effect.url), effect)
        with _network_errors(effect):
            return answer(client.send(request, stream=True, auth=None, follow_redirects=False), effect)

    return send


def aclient_transport(client: Any) -> Callable[[TokenRequest], Awaitable[TokenResponse]]:
    """Return what sends token requests over an `httpx.AsyncClient` or `httpx2.AsyncClient`."""

    async def send(effect: TokenRequest) -> TokenResponse:
        request = outgoing(client.build_request("POST", effect.url), effect)
        with _network_errors(effect):
            return await aanswer(await client.send(request, stream=True, auth=None, follow_redirects=False), effect)

    return send


@contextmanager
def _network_errors(effect: TokenRequest) -> Iterator[None]:
    """Tell flows of a client's own errors; asyncio's TLS lets some through that httpx does not know."""
    try:
        yield
    except TokenEndpointError:  # which is an OSError, too
        raise
    except _INVALID_URLS:
        raise InvalidTokenResponseError("the token endpoint redirects to something that is no URL") from None
    except (*_REQUEST_ERRORS, OSError) as error:
        raise NetworkError.of(error) from effect.presentable(error)


class _Body:
    """A token response's body as it comes in: from the right origin, and only so long and so late."""

    def __init__(self, response: Any, effect: TokenRequest) -> None:
        content = _content(response)
        self._response = response
        self._effect = effect
        self._until = time.monotonic() + effect.timeout
        self._raw = bytearray(content or b"")
        self.stream = response.stream if content is None else _Bytes(b"")
        # What httpx will find, should this go wrong: it reads the response before it sends again.
        response.stream = _Bytes(b"")

    def check_origin(self) -> None:
        answered = request_of(self._response, None)
        if answered is not None and origin_of(answered.url) != origin_of_url(self._effect.url):
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


def answer(response: Any, effect: TokenRequest) -> TokenResponse:
    """Read the answer to a token request, and close it."""
    with _reading(response, effect) as body:
        try:
            body.check_origin()
            for chunk in body.stream:
                body.feed(chunk)
        finally:
            body.stream.close()
        return body.whole()


async def aanswer(response: Any, effect: TokenRequest) -> TokenResponse:
    """Do as `answer`."""
    with _reading(response, effect) as body:
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


def request_of(response: Any, otherwise: Any) -> Any:
    """Return the request that was answered, after redirects; a response made by hand may not know it."""
    try:
        return response.request
    except RuntimeError:
        return otherwise


def origin_of(url: Any) -> Origin | None:
    return origin(url.scheme, url.raw_host.decode("ascii"), url.port)
