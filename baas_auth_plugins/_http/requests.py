"""The requests face: `requests.auth.AuthBase`, and what a response hook does after a 401.

A response hook survives redirects. So it checks at every response whether the request carried our token, to an origin
that may have it.
"""

from __future__ import annotations

import io
import time
from contextlib import suppress
from typing import Any

import requests
from requests.auth import AuthBase
from requests.cookies import extract_cookies_to_jar, get_cookie_header
from requests.exceptions import UnrewindableBodyError
from requests.utils import rewind_body
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from .._lifecycle.credentials import Acquired, ClientCredentials
from .._lifecycle.effects import Effect, ReadResponse
from .._oauth.origins import AllowedOrigins, Origin, origin_of_url
from .drivers import perform, run
from .flow import Answer, AuthParts, SendRequest, after_answer, attach
from .session_sender import SessionSender, read_raw

LONGEST_DRAINED = 1 << 16
_DRAIN_SECONDS = 1.0


class RequestsAuth(AuthBase):
    """What requests needs of an auth object. Sync sessions of niquests work by duck typing."""

    _credentials: ClientCredentials
    _origins: AllowedOrigins
    _parts: AuthParts
    _sender: SessionSender

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Attach the token, and watch the response for a 401."""
        cached = self._credentials.cached_header()
        if cached is not None and cached.hook is not None:
            try:
                if self._origins.is_home(r.url) and not r.hooks["response"]:  # type: ignore[arg-type]  # caught
                    r.headers["Authorization"] = cached.header
                    # A copy of a prepared request shares its hooks with the original: give it lists of its own.
                    r.hooks = {**r.hooks, "response": [cached.hook]}
                    return r
            except (AttributeError, TypeError):  # not a prepared request, or one without a URL
                pass
        return self._authenticate(r)

    def _authenticate(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if not (hasattr(r, "register_hook") and hasattr(r, "body") and isinstance(getattr(r, "url", None), str)):
            raise TypeError(
                f"{type(self).__name__} authenticates requests.Session, httpx.Client, httpx.AsyncClient and, where"
                f" installed, their httpx2 equals; not {type(r).__module__}.{type(r).__name__}."
                " For another client, use get_token() or call_with_token()"
            )
        r.hooks = {
            event: [one for one in hooks if not isinstance(one, AfterResponse)] for event, hooks in r.hooks.items()
        }
        acquired = run(attach(self._parts, PreparedRequest(r), self._sender))
        if acquired is not None:
            r.register_hook("response", AfterResponse(self._parts, self._sender, acquired))  # type: ignore[no-untyped-call]  # the stubs have no types for it
            cached = self._credentials.cached_header()
            if cached is not None:
                cached.hook = AfterResponse(self._parts, self._sender, cached.acquired)
        return r


class PreparedRequest:
    """A prepared request, as the flows see it."""

    __slots__ = ("raw",)

    def __init__(self, raw: requests.PreparedRequest) -> None:
        self.raw = raw

    @property
    def origin(self) -> Origin | None:
        """Where it goes."""
        return origin_of_url(self.raw.url or "")

    @property
    def user_agent(self) -> str | None:
        """Its User-Agent."""
        value = self.raw.headers.get("User-Agent")
        return value.decode("latin-1") if isinstance(value, bytes) else value

    @property
    def authorization(self) -> str | None:
        """Its Authorization header."""
        value = self.raw.headers.get("Authorization")
        return value.decode("latin-1") if isinstance(value, bytes) else value

    @property
    def is_replayable(self) -> bool:
        """Whether the body is in memory, or a file whose position was noted."""
        body = self.raw.body
        if body is None or isinstance(body, bytes | bytearray | str):
            return True
        return isinstance(self.raw._body_position, int) and hasattr(body, "seek") and not getattr(body, "closed", False)

    def authorize(self, access_token: str) -> None:
        """Set the Authorization header."""
        self.raw.headers["Authorization"] = f"Bearer {access_token}"


class AfterResponse:
    """A response hook: after a 401 it sends the request once more."""

    __slots__ = ("_parts", "_sender", "acquired")

    def __init__(self, parts: AuthParts, sender: SessionSender, acquired: Acquired) -> None:
        self._parts = parts
        self._sender = sender
        self.acquired = acquired

    def __copy__(self) -> AfterResponse:
        return self

    def __deepcopy__(self, memo: object) -> AfterResponse:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return NoHook, ()  # a pickled response keeps neither token nor secret

    def __call__(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        """Return the response, or the answer to the second request."""
        if response.status_code != 401:
            return response
        replay = response.request.copy()
        exchange = _Exchange(self, response, replay, kwargs)
        run(
            after_answer(self._parts, self.acquired, Answer(401, PreparedRequest(replay)), self._sender),
            exchange.perform,
        )
        return exchange.answer

    def with_token(self, acquired: Acquired) -> AfterResponse:
        """Return the hook of a second request, for callers that send that one again."""
        return AfterResponse(self._parts, self._sender, Acquired(acquired.token, is_minted=False))


class _Exchange:
    """One 401 and its second request."""

    def __init__(
        self, hook: AfterResponse, response: requests.Response, replay: requests.PreparedRequest, kwargs: dict[str, Any]
    ) -> None:
        self._hook = hook
        self._response = response
        self._replay = replay
        self._kwargs = kwargs
        self.answer = response

    def perform(self, effect: Effect[Any]) -> Any:
        """Do what the flow yields."""
        if isinstance(effect, SendRequest):
            return self._send(effect.acquired)
        if isinstance(effect, ReadResponse):
            return _drain(self._response)
        return perform(effect)

    def _send(self, acquired: Acquired | None) -> Answer:
        response, replay, hook = self._response, self._replay, self._hook
        try:
            if replay.body is not None and not isinstance(replay.body, bytes | bytearray | str):
                rewind_body(replay)
        except (UnrewindableBodyError, ValueError):
            return Answer(response.status_code, PreparedRequest(replay))
        _add_cookies(replay, response)
        if acquired is not None:
            successor = hook.with_token(acquired)
            after = [successor if one is hook else one for one in replay.hooks["response"]]
            replay.hooks = {**replay.hooks, "response": after}
        answer: requests.Response = response.connection.send(replay, **self._kwargs)
        answer.history.append(response)
        answer.request = replay
        self.answer = answer
        return Answer(answer.status_code, PreparedRequest(replay))


def _add_cookies(replay: requests.PreparedRequest, response: requests.Response) -> None:
    """Send the cookies that the 401 set, unless the caller wrote the Cookie header by hand."""
    jar: Any = replay._cookies  # type: ignore[attr-defined]  # a prepared request has a jar; the stubs do not know it
    sent = replay.headers.pop("Cookie", None)
    if sent is not None and sent != get_cookie_header(jar, replay):  # type: ignore[no-untyped-call]  # the stubs have no types for it
        replay.headers["Cookie"] = sent
    extract_cookies_to_jar(jar, response.request, response.raw)  # type: ignore[no-untyped-call]  # as HTTPDigestAuth does
    replay.prepare_cookies(jar)


def _drain(response: requests.Response) -> None:
    """Free the connection of a 401: read a short body as it is, close any other. Nothing of it can fail."""
    raw: Any = response.raw
    if response._content_consumed or raw is None:  # type: ignore[attr-defined]  # read by the caller's own hook
        return
    body, length = b"", response.headers.get("Content-Length", "")
    is_short = length.isdigit() and int(length) <= LONGEST_DRAINED
    if is_short:
        _limit_reads(raw)
        with suppress(requests.RequestException, HTTPError, OSError):
            until = time.monotonic() + _DRAIN_SECONDS
            body = read_raw(response, LONGEST_DRAINED, lambda: time.monotonic() <= until)
    if is_short and len(body) == int(length) and hasattr(raw, "release_conn"):
        raw.release_conn()
    else:
        response.close()
    response.raw = _as_read(raw, body)


def _limit_reads(raw: Any) -> None:
    """Let no single read of a response last longer than a second."""
    sock = getattr(getattr(raw, "connection", None), "sock", None)
    if sock is not None:
        sock.settimeout(_DRAIN_SECONDS)  # urllib3 sets it again for the next request


def _as_read(raw: Any, body: bytes) -> HTTPResponse:
    """Return a response body that was read, for callers that get the 401 after all."""
    return HTTPResponse(
        io.BytesIO(body),
        headers=getattr(raw, "headers", None),
        status=getattr(raw, "status", 401),
        preload_content=False,
        original_response=getattr(raw, "_original_response", None),
    )


class NoHook:
    """What a pickle keeps of the hook."""

    def __call__(self, response: requests.Response, **_: Any) -> requests.Response:
        """Return the response."""
        return response
