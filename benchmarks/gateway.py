"""A gateway in a process of its own: a token endpoint and an API on loopback, fast, and strict about what it counts.

It speaks just enough HTTP/1.1 to stay out of the measurements. Every token request is counted, the
refused ones too; the API takes the tokens that were issued here and not revoked, and no others. A
token lives until it is revoked, however the client's clock is turned.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import secrets
import threading
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

__all__ = ["Gateway", "Stats"]

CLIENT_ID = "your-client-id"
CLIENT_SECRET = "your-client-secret"
TOKEN_PATH = "/oauth2/token"
AXIA_PATH = "/v1/authentication/oauth/access-token"
TENANT = "tenant"
API_PATH = "/v1/accounts"

_TENANT_TOKEN_PATH = f"/{TENANT}/oauth2/v2.0/token"
_DISCOVERY_PATH = f"/{TENANT}/v2.0/.well-known/openid-configuration"
_ACCOUNTS = b'{"accounts":[{"id":"1","balance":"10.00"}]}'


@dataclass(frozen=True, slots=True)
class Stats:
    """What the gateway saw since the last reset."""

    token_requests: int
    refused: int
    calls: int
    rejected: int


class Gateway:
    """The handle on a gateway's process; use it in a with statement."""

    client_secret = CLIENT_SECRET

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._process.start()
        self.url = f"http://127.0.0.1:{self._pipe.recv()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(5)
        self._process.terminate()

    @property
    def api_url(self) -> str:
        """A URL that wants a token."""
        return self.url + API_PATH

    @property
    def token_url(self) -> str:
        """The token endpoint: Basic, and the standard form."""
        return self.url + TOKEN_PATH

    def client_id(self, number: int = 0) -> str:
        """Return a client_id that is known here; another number is another client."""
        return f"{CLIENT_ID}-{number}" if number else CLIENT_ID

    def configure(self, *, delay: float = 0.0, expires_in: int = 3600) -> None:
        """Let the token endpoint take `delay` seconds for each answer, and its tokens live for `expires_in`."""
        self._ask("configure", delay, expires_in)

    def issue(self) -> str:
        """Return a new token without a token request."""
        token: str = self._ask("issue")
        return token

    def revoke_all(self) -> None:
        """Let the API reject every token that was issued until now."""
        self._ask("revoke_all")

    def reset(self) -> None:
        """Count from 0 again."""
        self._ask("reset")

    def stats(self) -> Stats:
        """Return what was counted."""
        return Stats(*self._ask("stats"))

    def _ask(self, *command: Any) -> Any:
        self._pipe.send(command)
        return self._pipe.recv()


class _State:
    """What the gateway knows; touched in the event loop's thread only."""

    def __init__(self) -> None:
        self.port = 0
        self.tokens: set[str] = set()
        self.delay = 0.0
        self.expires_in = 3600
        self.reset()

    def configure(self, delay: float, expires_in: int) -> None:
        self.delay, self.expires_in = delay, expires_in

    def issue(self) -> str:
        token = secrets.token_urlsafe(32)
        self.tokens.add(token)
        return token

    def revoke_all(self) -> None:
        self.tokens.clear()

    def reset(self) -> None:
        self.token_requests = self.refused = self.calls = self.rejected = 0

    def stats(self) -> tuple[int, int, int, int]:
        return self.token_requests, self.refused, self.calls, self.rejected

    def token_response(self, path: str, authorization: str, body: str) -> bytes:
        self.token_requests += 1
        form = {name: values[0] for name, values in parse_qs(body).items()}
        if path == _TENANT_TOKEN_PATH:
            credentials = f"{form.get('client_id')}:{form.get('client_secret')}"
        else:
            credentials = b64decode(authorization.removeprefix("Basic ")).decode()
        form_is_right = body == "" if path == AXIA_PATH else form.get("grant_type") == "client_credentials"
        client_id, _, client_secret = credentials.partition(":")
        known = client_id == CLIENT_ID or client_id.removeprefix(f"{CLIENT_ID}-").isdigit()
        if not (known and client_secret == CLIENT_SECRET and form_is_right):
            self.refused += 1
            return _answer("401 Unauthorized", b'{"error":"invalid_client"}')
        token = {"access_token": self.issue(), "token_type": "Bearer", "expires_in": self.expires_in}
        return _answer("200 OK", json.dumps(token).encode())

    def api_response(self, authorization: str) -> bytes:
        self.calls += 1
        if authorization.removeprefix("Bearer ") in self.tokens:
            return _ACCEPTED
        self.rejected += 1
        return _REJECTED

    def discovery(self) -> bytes:
        origin = f"https://localhost:{self.port}"  # msal takes nothing but https for an authority
        return _answer(
            "200 OK",
            json.dumps(
                {
                    "issuer": f"{origin}/{TENANT}/v2.0",
                    "authorization_endpoint": f"{origin}/{TENANT}/oauth2/v2.0/authorize",
                    "token_endpoint": origin + _TENANT_TOKEN_PATH,
                }
            ).encode(),
        )


def _answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_ACCEPTED = _answer("200 OK", _ACCOUNTS)
_REJECTED = _answer("401 Unauthorized", b'{"error":"invalid_token"}')


class _Connection(asyncio.Protocol):
    """One keep-alive connection: one request at a time."""

    transport: asyncio.Transport

    def __init__(self, state: _State) -> None:
        self._state = state
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # for the type checker
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        request_line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        path = request_line.split(" ")[1].partition("?")[0]
        authorization = headers.get("authorization", "")
        if path in (TOKEN_PATH, AXIA_PATH, _TENANT_TOKEN_PATH):
            answer = self._state.token_response(path, authorization, rest[:length].decode())
            asyncio.get_running_loop().call_later(self._state.delay, self.transport.write, answer)
        elif path == _DISCOVERY_PATH:
            self.transport.write(self._state.discovery())
        else:
            self.transport.write(self._state.api_response(authorization))


def _serve(pipe: Connection) -> None:
    asyncio.run(_serve_until_closed(pipe))


async def _serve_until_closed(pipe: Connection) -> None:
    state = _State()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=4096)
    state.port = server.sockets[0].getsockname()[1]
    pipe.send(state.port)
    closed = asyncio.Event()

    def obey() -> None:
        try:
            while True:
                name, *arguments = pipe.recv()
                pipe.send(asyncio.run_coroutine_threadsafe(_call(getattr(state, name), arguments), loop).result())
        except (EOFError, OSError):
            loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=obey, daemon=True).start()
    await closed.wait()


async def _call(function: Callable[..., Any], arguments: list[Any]) -> Any:
    return function(*arguments)
