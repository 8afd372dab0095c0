"""The requests face: `requests.auth.AuthBase`, and the driver that sends token requests over a `Session`.

A response hook survives redirects, so it looks anew at every response: only a 401 from an
origin that may hold the token, to a request that carried it, is answered with a replay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import requests
from requests.cookies import extract_cookies_to_jar
from requests.exceptions import UnrewindableBodyError
from requests.utils import rewind_body
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from ._drive import perform, run
from ._flow import MAX_RESPONSE_BYTES, Effect, NetworkError, Release, TokenRequest, TokenResponse
from ._fork import process_id
from ._fresh import Fresh
from ._grant import Grant
from ._origin import AllowedOrigins, origin_of_url
from ._token import Token
from .exceptions import InvalidTokenResponseError

__all__ = ["RequestsFace", "SessionTransport", "spawn"]

_HEADERS = {"User-Agent": "baas-auth-plugins"}
_MOST_CONNECTIONS = 256  # kept per gateway; more than that would not fail, but urllib3 would warn of each


@lru_cache(maxsize=1)
def _private_session(_process: str) -> requests.Session:
    """Return the session of all in this process who have none: a child leaves its parent's connections alone."""
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS))
    return session


class SessionTransport:
    """Sends token requests over a `requests.Session`: with its proxies, CA, client certificate and adapters.

    It lends its adapter and these settings, and no more. So no redirect is followed, no `.netrc` is read, no hook is
    run, nothing is retried, and the session's cookies, headers and auth stay out of it and as they are.

    Args:
        session: the caller's, or None for a private one, which the whole process shares.
    """

    __slots__ = ("session",)

    def __init__(self, session: requests.Session | None = None) -> None:
        self.session = session

    @property
    def headers(self) -> Mapping[str, Any]:
        """What token requests say they come from, where no API request triggered them."""
        session = self.session
        return session.headers if session is not None and session.headers.get("User-Agent") else _HEADERS

    def __call__(self, request: TokenRequest) -> TokenResponse:
        """Send one token request; raise `NetworkError` if no answer comes."""
        session = self.session or _private_session(process_id())
        body = request.body or None
        prepared = requests.Request("POST", request.url, headers=dict(request.headers), data=body).prepare()
        until = time.monotonic() + request.timeout
        try:
            settings = session.merge_environment_settings(request.url, {}, True, None, None)
            once = _Once(session.get_adapter(request.url))
            with once.send(prepared, timeout=Timeout(total=request.timeout), **settings) as response:
                return TokenResponse.of(response.status_code, response.headers, _read(response, until))
        except InvalidTokenResponseError:  # which is a RequestException, too
            raise
        except (requests.RequestException, HTTPError, OSError) as error:
            raise NetworkError.of(error) from request.presentable(error)


class _Once(requests.Session):
    """Sends a request once, over another session's adapter; a session, so that mocks which replace `Session.send` apply."""

    def __init__(self, adapter: Any) -> None:
        super().__init__()
        retries = getattr(getattr(adapter, "max_retries", None), "total", 0)
        if retries is None or retries > 0:  # but retrying is for the flow, which counts
            twin = object.__new__(type(adapter))  # to copy an adapter would give it connections of its own
            vars(twin).update(vars(adapter), max_retries=Retry(0, read=False))
            adapter = twin
        self.adapters.clear()
        self.mount("", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow no redirect."""


def _read(response: requests.Response, until: float) -> bytes:
    """Read a bounded body in bounded time, however slowly it drips."""
    raw: Any = response.raw
    read = raw.read  # of any file, as adapters for tests give it
    if hasattr(raw, "stream"):  # of urllib3
        read = partial(getattr(raw, "read1", raw.read), decode_content=False)
    body = bytearray()
    while chunk := read(1 << 16):
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise InvalidTokenResponseError("the token response is longer than 1 MiB", status_code=response.status_code)
        if time.monotonic() > until:
            raise requests.ReadTimeout("the token response did not end in time")
    return bytes(body)


def spawn(flow: Generator[Effect, Any, None], send: SessionTransport) -> None:
    """Run a flow in a daemon thread; what goes wrong has been logged by the flow."""

    def target() -> None:
        with suppress(Exception):  # the flow has logged it, and a thread has nobody to raise it to
            run(flow, send)

    threading.Thread(target=target, name="baas-auth-renewal", daemon=True).start()


class RequestsFace(requests.auth.AuthBase):
    """What requests needs of an auth object. niquests' sync sessions work by duck typing."""

    _grant: Grant
    _origins: AllowedOrigins
    _transport: SessionTransport
    _fresh: Fresh | None = None

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Attach the token, and watch the response for a 401."""
        fresh = self._fresh
        if (
            fresh is not None
            and fresh.hook is not None
            and fresh.known.token is fresh.token
            and time.time() < fresh.wall
            and time.monotonic() < fresh.monotonic
        ):
            try:
                hooks = r.hooks
                if r.url.startswith(fresh.prefix) and not hooks["response"]:  # type: ignore[union-attr]  # see below
                    r.headers["Authorization"] = fresh.header
                    # A copy of a prepared request shares its hooks with the original: give it lists of its own.
                    r.hooks = {**hooks, "response": [fresh.hook]}
                    return r
            except (AttributeError, TypeError):  # no prepared request at all, or one without a URL
                pass
        return self._authenticate(r)

    def _authenticate(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if not (hasattr(r, "register_hook") and hasattr(r, "body") and isinstance(getattr(r, "url", None), str)):
            raise TypeError(
                f"{type(self).__name__} authenticates requests.Session, httpx.Client, httpx.AsyncClient"
                f" and, where installed, their httpx2 equals; not {type(r).__module__}.{type(r).__name__}"
            )
        if not self._origins.admit(origin_of_url(r.url or "")):
            return r
        grant, minted = self._grant, list[Token]()
        token = run(grant.acquire(r.headers, minted=minted), self._transport)
        r.headers["Authorization"] = f"Bearer {token.access_token}"
        r.hooks = {event: [hook for hook in hooks if not isinstance(hook, _Watch)] for event, hooks in r.hooks.items()}
        own = token in minted
        r.register_hook("response", _Watch(token, own, grant, self._origins, self._transport))
        self._fresh = fresh = grant.fresh(token, self._origins.home, self._fresh)
        if fresh is not None:
            fresh.hook = _Watch(token, False, grant, self._origins, self._transport)
        return r


class _Watch:
    """Watches the responses to a token for a 401. It knows all of an auth object but the object: so there is no cycle."""

    __slots__ = ("grant", "origins", "own", "token", "transport")

    def __init__(
        self, token: Token, own: bool, grant: Grant, origins: AllowedOrigins, transport: SessionTransport
    ) -> None:
        self.token = token
        self.own = own  # whether the request had it minted
        self.grant = grant
        self.origins = origins
        self.transport = transport

    def __copy__(self) -> _Watch:
        return self

    def __deepcopy__(self, memo: object) -> _Watch:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            _Unwatched,
            (),
        )  # in another process, a response and its request are what they were, without token and secret

    def __call__(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        """Return the response, or the answer to a replay with another token."""
        token, request = self.token, response.request
        rejected = response.status_code == 401
        if self.own and not rejected:
            run(self.grant.accepted(token), self.transport)
        if (
            not rejected
            or request.headers.get("Authorization") != f"Bearer {token.access_token}"
            or not self.origins.admit(origin_of_url(request.url or ""))
        ):
            return response

        def release(effect: Effect) -> Any:
            if not isinstance(effect, Release):
                return perform(effect)
            response.content  # noqa: B018  # reading it gives the connection back to the pool
            return response.close()

        recover = self.grant.recover(token, request.headers, replayable=_is_replayable(request))
        replacement = run(recover, self.transport, release)
        if replacement is None:
            return response
        replay = request.copy()
        try:
            _rewind(replay)
        except (UnrewindableBodyError, ValueError):
            return response
        extract_cookies_to_jar(replay._cookies, request, response.raw)  # type: ignore[arg-type]  # as HTTPDigestAuth does
        replay.prepare_cookies(replay._cookies)
        replay.headers["Authorization"] = f"Bearer {replacement.token.access_token}"
        watch = _Watch(replacement.token, False, self.grant, self.origins, self.transport)  # should it be sent again
        replay.hooks = {
            **replay.hooks,
            "response": [watch if hook is self else hook for hook in replay.hooks["response"]],
        }
        answer: requests.Response = response.connection.send(replay, **kwargs)
        answer.history.append(response)
        answer.request = replay
        run(self.grant.replayed(replacement, answer.status_code), self.transport)
        return answer


class _Unwatched:
    """What is left of a `_Watch` in a pickle."""

    def __call__(self, response: requests.Response, **_: Any) -> requests.Response:
        return response


def _is_replayable(request: requests.PreparedRequest) -> bool:
    """Tell whether the body can be sent again: it is at hand whole, or a file whose place is known."""
    body = request.body
    if body is None or isinstance(body, bytes | bytearray | str):
        return True
    return isinstance(request._body_position, int) and hasattr(body, "seek")


def _rewind(request: requests.PreparedRequest) -> None:
    if request.body is not None and not isinstance(request.body, bytes | bytearray | str):
        rewind_body(request)
