"""Token requests as httpx and httpx2 send them, and their answers, read within bounds.

A request is built with the class of the caller's client, so one code serves both packages. httpx keeps requests and
responses in `history` and in errors: once a token request is answered or has failed, its secrets are wiped.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from .._lifecycle.call import Sender
from .._oauth.messages import MAX_RESPONSE_BYTES, NetworkError, TokenRequest, TokenResponse
from .._oauth.origins import Origin, origin, origin_of_url
from ..exceptions import InvalidTokenResponseError, TokenEndpointError
from .network import network_error

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
        """A body for every client that is installed, sync and async."""


BYTE_STREAMS = _Bytes.__bases__
RESPONSES = tuple(package.Response for package in INSTALLED)
NETWORK_ERRORS = (*(package.RequestError for package in INSTALLED), OSError)
_INVALID_URLS = tuple(package.InvalidURL for package in INSTALLED)
_PHASES = ("connect", "read", "write", "pool")


class _Body(_Bytes):
    """A token request's body, until it is wiped. It can be read again: a transport may have to resend it."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self.content)


class _Once:
    """Iterates over one item. An async generator would make trio warn where a cancelled send leaves it half used."""

    def __init__(self, item: bytes) -> None:
        self._items = [item]

    def __aiter__(self) -> _Once:
        return self

    async def __anext__(self) -> bytes:
        if not self._items:
            raise StopAsyncIteration
        return self._items.pop()


class Outgoing:
    """One token request on its way through a client.

    Args:
        like: a request of the client, whose class and headers' encoding it gets.
        request: what to send.
        provider: the provider's name, for errors.
        is_async: whether the client is async.

    Attributes:
        raw: the request as httpx takes it.
        refusal: why it was not sent on to where the gateway, or a tool, redirected it.
    """

    def __init__(self, like: Any, request: TokenRequest, provider: str = "", *, is_async: bool) -> None:
        self._request = request
        self._provider = provider
        self.refusal: InvalidTokenResponseError | None = None
        extensions = {
            "timeout": dict.fromkeys(_PHASES, request.timeout),
            "trace": self._acheck if is_async else self._check,
        }
        headers = type(like.headers)(request.headers, encoding=like.headers.encoding)
        self.raw = type(like)("POST", request.url, headers=headers, content=request.body, extensions=extensions)
        self.raw.stream = _Body(request.body)

    def _check(self, event: str, info: dict[str, Any]) -> None:
        """Let only this very request out: redirects inherit its extensions, and httpcore calls this for each send."""
        request = info.get("request")
        if not event.endswith("send_request_headers.started") or request is None or request.method == b"CONNECT":
            return
        url, own = request.url, self.raw.url
        is_same = (url.scheme, url.host, url.port, url.target) == (
            own.raw_scheme,
            own.raw_host,
            own.port,
            own.raw_path,
        )
        # A proxy for plain http gets the whole URL as the target.
        if request.method != b"POST" or not (is_same or url.target == str(own).encode("ascii")):
            host = self.raw.url.host
            text = f"{self._provider}: {host} redirects the token request; credentials are not sent on"
            self.refusal = InvalidTokenResponseError(text, provider=self._provider)
            raise self.refusal

    async def _acheck(self, event: str, info: dict[str, Any]) -> None:
        self._check(event, info)

    def read(self, response: Any) -> TokenResponse:
        """Read the answer, close it, and wipe the request.

        Raises:
            NetworkError: the body did not end in time.
            InvalidTokenResponseError: it is too long, or comes from another origin.
        """
        with self._reading(response) as body:
            try:
                for chunk in body.stream:
                    body.feed(chunk)
            finally:
                body.stream.close()
            return body.whole()

    async def aread(self, response: Any) -> TokenResponse:
        """Do as `read`."""
        with self._reading(response) as body:
            try:
                async for chunk in body.stream:
                    body.feed(chunk)
            finally:
                await body.stream.aclose()
            return body.whole()

    @contextmanager
    def _reading(self, response: Any) -> Iterator[_Incoming]:
        try:
            with network_errors(self._request):
                incoming = _Incoming(response, self._request)
                answered = request_of(response, None)
                if answered is not None and origin_of(answered.url) != origin_of_url(self._request.url):
                    raise InvalidTokenResponseError("it came from another origin", status_code=response.status_code)
                yield incoming
        finally:
            wipe(response)
            self.wipe()

    def read_at_close(self, responses: list[Any]) -> TokenResponse | None:
        """Return the answer other than 2xx at which a response hook raised, with what was read of it, and wipe it."""
        for response in responses:
            if request_of(response, None) is self.raw and not response.is_success:
                raw = _content(response) or b""
                headers = dict(response.headers)
                wipe(response)
                return TokenResponse(response.status_code, headers, raw)
        return None

    def wipe(self) -> None:
        """Take the credentials out of what httpx keeps of the request."""
        _wipe_request(self.raw)


class _Incoming:
    """A token response's body as it arrives: only so long, and only for so many seconds."""

    def __init__(self, response: Any, request: TokenRequest) -> None:
        content = _content(response)
        self._response = response
        self._until = time.monotonic() + request.timeout
        self._seconds = request.timeout
        self._raw = bytearray(content or b"")
        self.stream = response.stream if content is None else as_bytes(b"")

    def feed(self, chunk: bytes) -> None:
        self._raw += chunk
        if len(self._raw) > MAX_RESPONSE_BYTES:
            raise InvalidTokenResponseError("longer than 1 MiB", status_code=self._response.status_code)
        if time.monotonic() > self._until:
            raise NetworkError(f"no complete answer within {self._seconds:g} s")

    def whole(self) -> TokenResponse:
        return TokenResponse.from_raw(self._response.status_code, self._response.headers, bytes(self._raw))


def as_bytes(content: bytes) -> Any:
    """Return a body that any client can read, sync and async."""
    return _Bytes(content)


def _wipe_request(request: Any) -> None:
    request.headers.pop("Authorization", None)
    if isinstance(request.stream, _Body):
        request.stream.content = b""
    if hasattr(request, "_content"):
        request._content = b""


def wipe(response: Any) -> None:
    """Take the token out of what httpx keeps of the response, and the credentials out of its requests."""
    response.headers.pop("Content-Encoding", None)  # nothing encoded is left to be read
    if hasattr(response, "_content"):
        response._content = b""
    response.stream = as_bytes(b"")
    for one in (*response.history, response):
        for request in (request_of(one, None), one.next_request):
            if request is not None:
                _wipe_request(request)


def _content(response: Any) -> bytes | None:
    """Return the body, decoded, if a response hook has read it or a mock came with it."""
    try:
        content: bytes = response.content
    except RuntimeError:
        return None
    response.headers.pop("Content-Encoding", None)
    return content


@contextmanager
def network_errors(request: TokenRequest) -> Iterator[None]:
    """Turn a client's own errors into `NetworkError`; asyncio's TLS raises some that httpx does not know."""
    try:
        yield
    except TokenEndpointError:  # which is an OSError, too
        raise
    except _INVALID_URLS:
        raise InvalidTokenResponseError("the token endpoint redirects to something that is no URL") from None
    except NETWORK_ERRORS as error:
        found = network_error(request, error)
        raise found from found.__cause__


def client_sender(client: Any) -> Sender:
    """Return what sends requests over an `httpx.Client` or `httpx2.Client`."""

    def send(request: TokenRequest, _is_wanted: Callable[[], bool]) -> TokenResponse:
        outgoing = Outgoing(client.build_request("POST", request.url), request, is_async=False)
        try:
            with network_errors(request):
                response = client.send(outgoing.raw, stream=True, auth=None, follow_redirects=False)
            return outgoing.read(response)
        finally:
            outgoing.wipe()

    return send


def aclient_sender(client: Any) -> Callable[[TokenRequest], Awaitable[TokenResponse]]:
    """Return what sends requests over an `httpx.AsyncClient` or `httpx2.AsyncClient`."""

    async def send(request: TokenRequest) -> TokenResponse:
        outgoing = Outgoing(client.build_request("POST", request.url), request, is_async=True)
        try:
            with network_errors(request):
                response = await client.send(outgoing.raw, stream=True, auth=None, follow_redirects=False)
            return await outgoing.aread(response)
        finally:
            outgoing.wipe()

    return send


def request_of(response: Any, otherwise: Any) -> Any:
    """Return the request that was answered: after redirects, the last one. A response made by hand may not have it."""
    try:
        return response.request
    except RuntimeError:
        return otherwise


def origin_of(url: Any) -> Origin | None:
    """Return the origin of an httpx URL."""
    return origin(url.scheme, url.raw_host.decode("ascii"), url.port)
