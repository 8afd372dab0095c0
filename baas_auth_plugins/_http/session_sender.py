"""Sending token requests over a `requests.Session`: a twin of the caller's, or a private one.

The twin has the session's adapters, proxies, verify, cert and attributes, and runs its class's own `request()` and
`send()`, as sessions that choose a proxy by PAC need it. It follows no redirect, retries nothing, reads no `.netrc`, has
no response cache, and has cookies, headers, hooks and auth of its own. The session itself stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.hooks import default_hooks
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from .._oauth.messages import MAX_RESPONSE_BYTES, TokenRequest, TokenResponse
from ..exceptions import InvalidTokenResponseError
from .network import network_error

_USER_AGENT = "baas-auth-plugins"
# Not `requests.Session`: requests_cache.install_cache() replaces that one.
_Session: type[requests.Session] = next(
    cls for cls in requests.Session.__mro__ if cls.__module__ == "requests.sessions"
)


class SessionSender:
    """Sends token requests, each bounded in size.

    Args:
        session: the caller's; None for a private one, new for each token request: a firewall may have forgotten a
            connection that was idle for an hour.
    """

    __slots__ = ("session",)

    def __init__(self, session: requests.Session | None = None) -> None:
        self.session: requests.Session | None = session

    @property
    def is_replaced(self) -> bool:
        """Whether a test tool has replaced what sends: some, such as requests-mock, want it in the caller's thread."""
        replaceable = (_Session.send, _Session.get_adapter, HTTPAdapter.send)
        return any(not function.__module__.startswith("requests.") for function in replaceable)

    def if_given(self) -> SessionSender | None:
        """Return this sender if the caller gave a session; None for the caller's own httpx client."""
        return self if self.session is not None else None

    @property
    def user_agent(self) -> str:
        """The User-Agent of token requests that no API request needs."""
        value = self.session.headers.get("User-Agent") if self.session is not None else None
        return value.decode("latin-1") if isinstance(value, bytes) else value or _USER_AGENT

    def __call__(self, request: TokenRequest, is_wanted: Callable[[], bool]) -> TokenResponse:
        """Send one request, in this thread.

        Args:
            request: the request.
            is_wanted: whether a caller still waits for the answer.

        Raises:
            NetworkError: no answer came.
            InvalidTokenResponseError: the answer cannot be read.
        """
        if self.session is not None:
            return _send(_twin(self.session), request, is_wanted)
        with closing(_Session()) as session:
            _isolate(session)
            return _send(session, request, is_wanted)


def _send(session: requests.Session, request: TokenRequest, is_wanted: Callable[[], bool]) -> TokenResponse:
    if request.url.startswith("http://"):  # loopback: a proxy of the environment must not see the secret
        session.trust_env = False
    try:
        with _answer(session, request) as response:
            raw = read_raw(response, MAX_RESPONSE_BYTES + 1, is_wanted)
            if len(raw) > MAX_RESPONSE_BYTES:
                raise InvalidTokenResponseError("longer than 1 MiB", status_code=response.status_code)
            return TokenResponse.from_raw(response.status_code, response.headers, raw)
    except InvalidTokenResponseError:  # which is a RequestException, too
        raise
    except (requests.RequestException, HTTPError, OSError) as error:
        found = network_error(request, error, has_certificate=_has_certificate(session))
        raise found from found.__cause__


def _answer(session: requests.Session, request: TokenRequest) -> requests.Response:
    try:
        return session.request(
            "POST",
            request.url,
            headers=dict(request.headers),
            data=request.body or None,
            timeout=request.timeout,
            allow_redirects=False,
            auth=_no_auth,
            stream=True,
        )
    except requests.HTTPError as error:
        if error.response is None:
            raise
        return error.response  # the class's own method called raise_for_status()


def _has_certificate(session: requests.Session) -> bool | None:
    """Return whether a session has a client certificate; None where an adapter's SSL context may have one."""
    if session.cert:
        return True
    pools = (getattr(adapter, "poolmanager", None) for adapter in session.adapters.values())
    return None if any("ssl_context" in getattr(pool, "connection_pool_kw", ()) for pool in pools) else False


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Take the place of an auth object, so that requests reads no ``.netrc``."""
    return request


def _twin(session: requests.Session) -> requests.Session:
    twin = object.__new__(type(session))
    vars(twin).update(vars(session))
    _isolate(twin)
    adapters: Any = type(session.adapters)  # the class's own mapping: an OrderedDict, or a tool's
    twin.adapters = adapters((prefix, _once(adapter)) for prefix, adapter in session.adapters.items())
    return twin


def _isolate(session: Any) -> None:
    """Take away all that must not touch a token request."""
    session.headers = CaseInsensitiveDict()
    session.cookies = RequestsCookieJar()
    session.hooks = default_hooks()
    session.auth = None
    session.params = {}
    cache: Any = getattr(session, "cache", None)
    if hasattr(cache, "_settings"):  # requests-cache: neither read nor write it
        session.cache = copy.copy(cache)
        session.cache._settings = copy.copy(cache._settings)
        session.cache._settings.disabled = True
    session.get_redirect_target = lambda _response: None


def _once(adapter: Any) -> Any:
    """Return an adapter that sends a request once, over the same connections: retrying is for the flow, which counts."""
    retries = getattr(getattr(adapter, "max_retries", None), "total", 0)
    attributes: dict[str, Any] = {}
    if retries is None or retries > 0:
        attributes["max_retries"] = Retry(0, read=False)
    if hasattr(adapter, "cacheable_methods"):  # CacheControl
        attributes["cacheable_methods"] = ()
    if not attributes:
        return adapter
    twin = object.__new__(type(adapter))  # a copy would open connections of its own
    vars(twin).update(vars(adapter), **attributes)
    return twin


def read_raw(response: requests.Response, most: int, is_wanted: Callable[[], bool]) -> bytes:
    """Read a body as it was transferred.

    Args:
        response: whose `raw` may be urllib3's, or what a tool puts in its place.
        most: bytes to read at most.
        is_wanted: whether to go on, asked after each chunk.

    Raises:
        requests.ReadTimeout: the body did not end in time.
    """
    if response._content_consumed:  # type: ignore[attr-defined]  # a session of the caller's has read it
        return response.content
    body, read = bytearray(), _reader(response.raw)
    while len(body) < most and (chunk := read(1 << 16)):
        body += chunk
        if not is_wanted():
            raise requests.ReadTimeout("the response did not end in time")
    return bytes(body)


def _reader(raw: Any) -> Callable[[int], bytes]:
    """Return a function that reads what has arrived. Stand-ins lack urllib3's `read1`, or its parameters."""
    for name, arguments in (("read1", {"decode_content": False}), ("read", {"decode_content": False}), ("read", {})):
        read = getattr(raw, name, None)
        if read is None:
            continue
        try:
            read(0, **arguments)
        except TypeError:
            continue
        return partial(_read, read, arguments)
    raise requests.exceptions.ContentDecodingError("the response has no body that can be read")


def _read(read: Callable[..., bytes], arguments: dict[str, Any], size: int) -> bytes:
    return bytes(read(size, **arguments))
