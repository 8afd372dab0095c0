"""What a call is: its body, its request, the flow that it runs, and how its client lets it fail.

The httpx face's flow is the production code's own. The requests face runs its flows to their end
within a callback, which no scheduler could interleave, so `requests_flow` takes the same steps in the same order.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
from requests.exceptions import UnrewindableBodyError

from baas_auth_plugins import _httpx, _requests
from baas_auth_plugins._flow import Join, Sleep, TokenRequest, Waiter
from baas_auth_plugins._grant import Grant
from baas_auth_plugins._httpx import HttpxFace, Send
from baas_auth_plugins._origin import AllowedOrigins, origin_of_url, parse_origin

from .gateway import Exchange, Key, Reply
from .world import Moment, Task

if TYPE_CHECKING:
    from .process import Process

__all__ = ["FOREIGN", "HOME", "Body", "Caller", "CancelledByUser", "Face", "Party", "Request", "requests_flow"]

HOME, FOREIGN = "https://gateway.example", "https://elsewhere.example"
_HTTPX_URLS = {origin: httpx.URL(origin) for origin in (HOME, FOREIGN)}
_ORIGINS = AllowedOrigins([parse_origin("base_url", HOME)[1]])
_CONTENT = b"the whole body"
_OFFSET = 4
_NEVER = Moment(0, 0)
_POLL = 0.4  # seconds: who sleeps for longer waits for a limit


class CancelledByUser(BaseException):
    """What asyncio, trio and Ctrl-C raise: no Exception."""


class Face(HttpxFace):
    """The production code's httpx face over a grant of the simulation's."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._origins = _ORIGINS


@dataclass(eq=False)
class Party:
    """One auth object."""

    name: str
    process: Process
    face: Face
    leeway: float
    timeout: float
    max_wait: float
    background: bool
    key: Key | None
    """Whose tokens it is served. With a callable secret: None until it was served one."""
    rotates: bool = False

    @property
    def grant(self) -> Grant:
        """The production code under test."""
        return self.face._grant


class _Pipe:
    """A file that cannot be rewound."""

    def seekable(self) -> bool:
        return False


class Body:
    """A request body: what production code looks at, and what goes out when it is sent."""

    KINDS = ("bytes", "generator", "file", "pipe")

    def __init__(self, kind: str, client: str) -> None:
        self.kind = kind
        self.stream: Any = httpx.ByteStream(_CONTENT)
        self.data: Any = _CONTENT
        self.position: Any = None
        self._sent = False
        if kind == "generator":
            self.stream = self.data = (part for part in ())
        elif kind == "pipe":
            self.stream, self.data, self.position = SimpleNamespace(fields=[SimpleNamespace(file=_Pipe())]), _Pipe(), ()
        elif kind == "file":
            self.data, self.position = io.BytesIO(b"skip" + _CONTENT), _OFFSET
            self.data.seek(_OFFSET)
            self.stream = SimpleNamespace(fields=[SimpleNamespace(file=self.data)])
        self._client = client

    def send(self) -> bytes:
        """Return what goes over the wire this time."""
        again, self._sent = self._sent, True
        if self.kind == "file":
            if self._client == "httpx":  # which rewinds a multipart form's files by itself
                self.data.seek(_OFFSET)
            return bytes(self.data.read())
        return b"" if again and self.kind in ("generator", "pipe") else _CONTENT

    @property
    def replayable(self) -> bool:
        """Whether it can go out twice."""
        return self.kind in ("bytes", "file")

    @staticmethod
    def whole(sent: bytes) -> bool:
        """Tell whether all of it went out."""
        return sent == _CONTENT


class Request:
    """An API request, with what production code asks of requests' and of httpx's."""

    def __init__(self, client: str, body: Body, path: str, origin: str = HOME) -> None:
        self.client, self.content, self.path, self.origin = client, body, path, origin
        self.url: Any = _HTTPX_URLS[origin] if client == "httpx" else origin + path
        self.headers: dict[str, str] = {"User-Agent": "simulation"}
        self.stream = body.stream
        self.body, self._body_position = body.data, body.position

    def copy(self) -> Request:
        """Return another request that shares the body, as requests does."""
        twin = Request(self.client, self.content, self.path, self.origin)
        twin.headers = dict(self.headers)
        return twin


def requests_flow(face: Face, request: Any) -> Generator[Any, Any, Any]:
    """Do what `RequestsFace.__call__` and its `_Watch` do, step by step."""
    grant = face._grant
    if not face._origins.admit(origin_of_url(request.url)):
        return (yield Send(request))
    minted: list[Any] = []
    token = yield from grant.acquire(request.headers, minted=minted)
    request.headers["Authorization"] = f"Bearer {token.access_token}"
    response = yield Send(request)
    request = response.request
    if token in minted and response.status_code != 401:
        yield from grant.accepted(token)
    if (
        response.status_code != 401
        or request.headers.get("Authorization") != f"Bearer {token.access_token}"
        or not face._origins.admit(origin_of_url(request.url))
    ):
        return response
    replayable = _requests._is_replayable(request)
    replacement = yield from grant.recover(token, request.headers, replayable=replayable)
    if replacement is None:
        return response
    replay = request.copy()
    try:
        _requests._rewind(replay)
    except (UnrewindableBodyError, ValueError):
        return response
    replay.headers["Authorization"] = f"Bearer {replacement.token.access_token}"
    answer = yield Send(replay)
    yield from grant.replayed(replacement, answer.status_code)
    return answer


@dataclass(eq=False)
class Caller(Task):
    """One caller under way: a flow, what it asked for last, and what the referee remembers of it."""

    name: str
    party: Party
    kind: str
    """``requests``, ``httpx``, ``get_token``, ``background`` or ``invalidate``."""
    flow: Generator[Any, Any, Any]
    request: Request | None = None
    effect: Any = None
    exchange: Exchange | None = None
    reply: Reply | None = None
    status: int | None = None
    redirected: bool = False
    sends: int = 0
    outcome: str = ""
    """``returned``, ``failed``, ``cancelled``, ``lost`` (the network under a token request) or ``API lost``."""
    error: BaseException | None = None
    value: Any = None
    served: Any = None
    """The token that its request carries, as the ledger knows it."""
    rejected: bool = False
    """Whether the API answered 401."""
    released: bool = False
    minted: Any = None
    """The token that its own token request gave, since it asked."""
    was_frozen: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    asked: Moment = _NEVER
    asked_true: float = 0.0
    called: float = 0.0
    """Seconds spent in the vault or the cache since it asked."""
    cache_waiter: Waiter | None = None
    """What wakes it when its operation on the cache is done."""
    cache_asked: float = 0.0
    losses_seen: int = 0
    attempts: int = 0

    @property
    def waits_for_token(self) -> bool:
        """Whether it has asked for a token, and neither got one nor given up."""
        return not self.done and not isinstance(self.effect, Send)

    @property
    def waits_for_cache(self) -> bool:
        """Whether it waits for its own operation on a shared cache."""
        return isinstance(self.effect, Join) and self.effect.waiter is self.cache_waiter

    @property
    def waits_for_caller(self) -> bool:
        """Whether it waits for what another caller in its process does."""
        return isinstance(self.effect, Join) and self.effect.waiter is not self.cache_waiter

    @property
    def waits_for_process(self) -> bool:
        """Whether it looks now and then what another process does."""
        return isinstance(self.effect, Sleep) and self.effect.seconds <= _POLL and "failing" not in self.notes

    def advance(self) -> Any:
        """Take one step; return the next effect, or None at the end."""
        how, value = self.action or ("send", None)
        pending, self.effect, self.action = self.effect, None, None
        self.epoch += 1
        try:
            if how == "send":
                return self.flow.send(value)
            if how == "throw":
                return self.flow.throw(value)
            if how == "lost" and self.kind != "httpx" and isinstance(pending, TokenRequest):
                return self.flow.throw(_requests.NetworkError("the network failed"))
            if how == "lost":
                self._end("lost" if isinstance(pending, TokenRequest) else "API lost")
                self._close(pending, lost=True)
            elif self.kind == "httpx" and (pending is None or isinstance(pending, TokenRequest | Send)):
                self._end("cancelled")
                self._close(pending, lost=False)
            else:
                return self.flow.throw(CancelledByUser())
        except StopIteration as stop:
            self._end("returned", value=stop.value)
        except CancelledByUser:
            self._end("cancelled")
        except Exception as error:
            self._end("failed", error=error)
        return None

    def _close(self, pending: Any, *, lost: bool) -> None:
        """Close the flow as httpx does, through the production code that tells it why."""
        outgoing = SimpleNamespace(stream=SimpleNamespace(refusal=None)) if isinstance(pending, TokenRequest) else None
        _httpx._close(self.flow, outgoing, lost=lost)

    def _end(self, outcome: str, value: Any = None, error: BaseException | None = None) -> None:
        self.done, self.outcome, self.error = True, outcome, error
        self.value = value
