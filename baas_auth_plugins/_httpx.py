"""The httpx face: `httpx.Auth` and, where installed, `httpx2.Auth`, with their sync and async drivers.

A token request is yielded through the caller's own client, so its proxy, TLS, client certificate,
transport and mocks apply. What httpx asks of an auth flow:

- A bare request has no timeout: set it on each.
- The flow is closed when a send fails. What closed it decides who goes on: see `_flight`.
- A rejected response keeps its connection until it is read: read it before waiting for anything.
- A client that follows redirects would send a body again, secret included, to wherever a 307
  points: the body of a token request can be read once only.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from ._drive import aperform, in_trio, perform
from ._flow import ConnectionLostError, Effect, Release, Steps, TokenRequest
from ._fresh import Fresh
from ._grant import Grant
from ._httpx_wire import BYTE_STREAMS, INSTALLED, aanswer, answer, origin_of, outgoing, request_of
from ._origin import AllowedOrigins
from ._token import Token

if TYPE_CHECKING:
    import httpx2

    class _Auth(httpx.Auth, httpx2.Auth):  # type: ignore[misc]  # equal but for their own classes; ours takes both
        pass
else:

    class _Auth(*(package.Auth for package in INSTALLED)):
        """An auth object of every client that is installed."""


__all__ = ["HttpxFace"]


class Send(NamedTuple):
    """Send the caller's own request; the result is the response."""

    request: Any


class HttpxFace(_Auth):
    """What httpx and httpx2 need of an auth object."""

    _grant: Grant
    _origins: AllowedOrigins
    _fresh: Fresh | None = None

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """Authenticate one request of a sync client."""
        token, fresh = None, self._fresh
        response: Any = None
        if (
            fresh is not None
            and fresh.known.token is fresh.token
            and time.time() < fresh.wall
            and time.monotonic() < fresh.monotonic
            and (url := request.url).raw_host == fresh.raw_host
            and url.port == fresh.port
            and url.scheme == fresh.scheme
        ):
            request.headers["Authorization"] = fresh.header
            response = yield request
            if response.status_code != 401:
                return
            token = fresh.token
        steps = Steps(self._flow(request, token, response))
        while (effect := steps.next()) is not None:
            sent: Any = None
            try:
                if isinstance(effect, Send):
                    steps.result = response = yield effect.request
                elif isinstance(effect, TokenRequest):
                    sent = outgoing(request, effect)
                    steps.result = answer((yield sent), effect)
                elif isinstance(effect, Release):
                    response.read()
                else:
                    steps.result = perform(effect)
            except GeneratorExit as closed:
                _close(steps.flow, sent, lost=isinstance(closed.__context__, Exception))
                raise
            except BaseException as raised:
                steps.error = raised

    auth_flow = sync_auth_flow

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Authenticate one request of an async client, under asyncio or trio."""
        token, fresh = None, self._fresh
        response: Any = None
        if (
            fresh is not None
            and fresh.known.token is fresh.token
            and time.time() < fresh.wall
            and time.monotonic() < fresh.monotonic
            and (url := request.url).raw_host == fresh.raw_host
            and url.port == fresh.port
            and url.scheme == fresh.scheme
        ):
            request.headers["Authorization"] = fresh.header
            response = yield request
            if response.status_code != 401:
                return
            token = fresh.token
        steps = Steps(self._flow(request, token, response))
        while (effect := steps.next()) is not None:
            sent: Any = None
            try:
                if isinstance(effect, Send):
                    steps.result = response = yield effect.request
                elif isinstance(effect, TokenRequest):
                    sent, before = outgoing(request, effect), _cancellations()
                    steps.result = await aanswer((yield sent), effect)
                elif isinstance(effect, Release):
                    await response.aread()
                else:
                    steps.result = await aperform(effect)
            except GeneratorExit:
                _close(steps.flow, sent, lost=sent is not None and not _cancelled(before))
                raise
            except BaseException as raised:
                steps.error = raised

    def _flow(
        self, request: Any, token: Token | None = None, response: Any = None
    ) -> Generator[Effect | Send, Any, None]:
        """Authenticate one request, or go on where it was answered `response` to `token`."""
        minted: list[Token] = []
        if token is None:
            if not self._origins.admit(origin_of(request.url)):
                yield Send(request)
                return
            token = yield from self._grant.acquire(request.headers, minted=minted)
            request.headers["Authorization"] = f"Bearer {token.access_token}"
            self._fresh = self._grant.fresh(token, self._origins.home, self._fresh)
            response = yield Send(request)
        sent = request_of(response, request)  # after redirects, the last hop: what came before it is not repeated
        rejected = response.status_code == 401
        if token in minted and not rejected:
            yield from self._grant.accepted(token)
        if (
            not rejected
            or sent.headers.get("Authorization") != f"Bearer {token.access_token}"
            or not self._origins.admit(origin_of(sent.url))
        ):
            return
        replacement = yield from self._grant.recover(token, request.headers, replayable=_is_replayable(sent.stream))
        if replacement is not None:
            sent.headers["Authorization"] = f"Bearer {replacement.token.access_token}"
            answer = yield Send(sent)
            yield from self._grant.replayed(replacement, answer.status_code)


def _close(flow: Generator[Any, Any, None], sent: Any, *, lost: bool) -> None:
    """Tell a flow that the client has closed it, and why; it must not go on."""
    error: Exception | None = sent and (sent.stream.refusal or (ConnectionLostError() if lost else None))
    if error is not None:
        with suppress(Exception):  # the client is raising what happened already
            flow.throw(error)
    flow.close()


def _cancelled(before: int) -> bool:
    """Tell whether the current task is being cancelled, rather than seeing a send fail."""
    if in_trio():
        return bool(sys.modules["trio"].current_effective_deadline() == -math.inf)
    return _cancellations() > before


def _cancellations() -> int:
    """Return how often asyncio was told to cancel the current task, which may have gone on all the same."""
    try:
        task = sys.modules["asyncio"].current_task()
    except (KeyError, RuntimeError):
        return 0
    return task.cancelling() if task is not None else 0


def _is_replayable(stream: Any) -> bool:
    """Tell whether a body can be sent again whole: bytes, or a form whose files httpx rewinds itself."""
    if isinstance(stream, BYTE_STREAMS):
        return True
    fields = getattr(stream, "fields", None)
    return fields is not None and all(_is_rewound(getattr(field, "file", b"")) for field in fields)


def _is_rewound(file: Any) -> bool:
    return isinstance(file, str | bytes) or bool(getattr(file, "seekable", bool)())
