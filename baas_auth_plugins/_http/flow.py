"""The journey of one API request: get a token, send, and after a 401 send once more. Written once for all clients.

`after_answer` decides whether a 401 is ours: it answers our token, and comes from an origin that may have it. Then
`source.rejected` decides what becomes of the token, and whether another one is worth a request.

httpx runs `authenticate` as a whole. requests runs `attach` before it sends, and `after_answer` in a response hook.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .._lifecycle.call import Sender
from .._lifecycle.credentials import Acquired, ClientCredentials
from .._lifecycle.effects import Effect, Flow, ReadResponse
from .._oauth.origins import AllowedOrigins, Origin
from .._oauth.token import now


class AuthParts(NamedTuple):
    """What the flows need of an auth object. A response hook holds this and not the object, so there is no cycle."""

    credentials: ClientCredentials
    origins: AllowedOrigins


class ApiRequest(Protocol):
    """The caller's own request, as its HTTP client keeps it."""

    @property
    def origin(self) -> Origin | None:
        """Where it goes."""

    @property
    def user_agent(self) -> str | None:
        """Its User-Agent."""

    @property
    def authorization(self) -> str | None:
        """Its Authorization header."""

    @property
    def is_replayable(self) -> bool:
        """Whether it can be sent again, with the whole body."""

    def authorize(self, access_token: str) -> None:
        """Set its Authorization header."""


class Answer(NamedTuple):
    """The API's answer, and the request that it answers: after redirects, the last one."""

    status_code: int
    request: ApiRequest


class SendRequest(Effect[Answer]):
    """Send the caller's own request.

    Args:
        request: the request.
        acquired: the token that it carries, if it carries one.
    """

    __slots__ = ("acquired", "request")

    def __init__(self, request: ApiRequest, acquired: Acquired | None = None) -> None:
        self.request = request
        self.acquired = acquired


class ClosedAtAnswerError(Exception):
    """The API answered, but a response hook of the HTTP client raised: nothing more may be yielded.

    Attributes:
        status_code: HTTP status of the answer.
    """

    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.status_code = status_code


def authenticate(parts: AuthParts, request: ApiRequest, sender: Sender | None) -> Flow[None]:
    """Authenticate one API request from its first to its last answer."""
    acquired = yield from attach(parts, request, sender)
    if acquired is None:
        yield from SendRequest(request)
        return
    try:
        answer = yield from SendRequest(request, acquired)
    except ClosedAtAnswerError as closed:
        closed_at_answer(parts, acquired, closed.status_code)
        raise
    yield from after_answer(parts, acquired, answer, sender)


def attach(parts: AuthParts, request: ApiRequest, sender: Sender | None) -> Flow[Acquired | None]:
    """Put a token on a request, if its origin may have one.

    Raises:
        TokenEndpointError: there is no valid token, and none could be had.
    """
    if not parts.origins.allow(request.origin):
        return None
    acquired = yield from parts.credentials.acquire(parts.credentials.call(sender, request.user_agent))
    request.authorize(acquired.token.access_token)
    return acquired


def after_answer(parts: AuthParts, acquired: Acquired, answer: Answer, sender: Sender | None) -> Flow[None]:
    """After a 401 to our token, from an origin that may have it: send the request once more.

    Raises:
        TokenEndpointError: no other token could be had. A 401 would hide the cause.
    """
    request, token, credentials = answer.request, acquired.token, parts.credentials
    if answer.status_code != 401 or not parts.origins.allow(request.origin):
        return
    rejected_at, call = now(), credentials.call(sender, request.user_agent)
    if request.authorization == f"Bearer {token.access_token}":
        replayable = request.is_replayable
        replacement = yield from credentials.replacement(call, token, is_replayable=replayable)
    elif _was_taken_off(request) and request.is_replayable:
        yield from ReadResponse()
        replacement = Acquired(token, is_minted=False) if token.is_valid(now(), credentials.client.leeway) else None
    else:
        return
    if replacement is None:
        return
    request.authorize(replacement.token.access_token)
    try:
        second = yield from SendRequest(request, replacement)
    except ClosedAtAnswerError as closed:
        closed_at_answer(parts, replacement, closed.status_code, is_replay=True)
        raise
    duration = now().since(rejected_at)
    yield from credentials.replayed(call, replacement, second.status_code, duration)


def closed_at_answer(parts: AuthParts, acquired: Acquired, status_code: int, *, is_replay: bool = False) -> None:
    """After an answer at which a response hook raised: a rejected token is dropped, for the requests that follow."""
    if status_code == 401:
        parts.credentials.closed_after_401(parts.credentials.call(None, None), acquired, is_replay=is_replay)


def _was_taken_off(request: ApiRequest) -> bool:
    """Return whether a redirect or ``.netrc`` took our token off the request."""
    return request.authorization is None or request.authorization.startswith("Basic ")
