"""A gateway on a plain socket: each test writes its answers byte for byte, broken ones included."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Self

from conftest import Auth

from baas_auth_plugins import AxiaAuth

__all__ = ["Exchange", "RawGateway", "SharedStore", "StoreFace", "elapsed", "http", "token_body", "until"]

PATIENCE = 30.0  # seconds after which a connection that a test left behind ends by itself
TOO_MANY = 60  # token requests after which the gateway refuses, so that an endless loop ends


def http(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, length: int | None = None
) -> bytes:
    """Return the bytes of one response; `length` is the declared length, if not the true one."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def token_body(token: str, expires_in: Any = 3600, **members: Any) -> bytes:
    """Return the JSON of a token response."""
    return json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": expires_in} | members).encode()


def until(condition: Callable[[], Any], patience: float = 20.0) -> Any:
    """Wait in real time until the condition holds, and return it."""
    end = time.perf_counter() + patience
    while not (found := condition()):
        assert time.perf_counter() < end, f"it did not come to this in {patience} s"
        threading.Event().wait(0.01)
    return found


@dataclass
class Exchange:
    """One request, and the socket to answer it on."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    socket: socket.socket = field(repr=False)
    sent: int = 0

    @property
    def path(self) -> str:
        return self.target.split("?")[0]

    @property
    def token(self) -> str | None:
        """The access token that the request carried."""
        value = self.headers.get("authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None

    def send(self, data: bytes) -> bool:
        """Send bytes; False if the peer has closed."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        self.sent += len(data)
        return True

    def drip(self, data: bytes, pause: float, seconds: float) -> None:
        """Send these bytes again and again, each time after a pause, until the peer closes or time is up."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and self.send(data):
            threading.Event().wait(pause)

    def close(self) -> None:
        """Close the connection, now."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


Handler = Callable[[Exchange], bytes | None]


class RawGateway:
    """Issues tokens `token-1`, `token-2`, …, and accepts those in `valid` at its API; both answers can be replaced.

    Args:
        auth_class: the provider whose token endpoint this is.
        on_token: answers a token request with bytes, or writes to the socket itself and returns None.
        on_api: the same for all other requests.
    """

    def __init__(self, auth_class: Auth = AxiaAuth, *, on_token: Handler | None = None, on_api: Handler | None = None):
        self.auth_class = auth_class
        self.on_token: Handler = on_token or self.issue
        self.on_api: Handler = on_api or self.check
        self.valid: set[str] = set()
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def issue(self, exchange: Exchange) -> bytes:
        """Answer with the next token."""
        token = f"token-{self.count('token')}"
        self.valid.add(token)
        return http(200, token_body(token), {"Content-Type": "application/json"})

    def check(self, exchange: Exchange) -> bytes:
        """Answer 200 to a valid token, else 401."""
        return http(200, b"ok") if exchange.token in self.valid else http(401, b'{"message": "Invalid token"}')

    def is_token(self, exchange: Exchange) -> bool:
        path = exchange.path.split("://")[-1]
        return path.endswith(self.auth_class.provider.token_endpoint)

    @property
    def tokens(self) -> list[Exchange]:
        """The token requests so far."""
        return [e for e in list(self.exchanges) if self.is_token(e)]

    @property
    def api(self) -> list[Exchange]:
        """The other requests so far."""
        return [e for e in list(self.exchanges) if not self.is_token(e)]

    def count(self, kind: str) -> int:
        return len(self.tokens if kind == "token" else self.api)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
                number = self.connections
            connection.settimeout(PATIENCE)
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as source:
            while (exchange := _read(source, connection, number)) is not None:
                with self._lock:
                    self.exchanges.append(exchange)
                is_token = self.is_token(exchange)
                if is_token and self.count("token") > TOO_MANY:
                    answer: bytes | None = http(400, b"{}")
                else:
                    answer = (self.on_token if is_token else self.on_api)(exchange)
                if answer is None or not exchange.send(answer):
                    return


def _read(source: IO[bytes], connection: socket.socket, number: int) -> Exchange | None:
    line = source.readline()
    if not line.strip():
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while line := source.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(source.readline(), 16):
            body += source.read(size)
            source.readline()
        source.readline()
    else:
        body = source.read(int(headers.get("content-length", "0")))
    return Exchange(method, target, headers, body, number, connection)


class SharedStore:
    """What several processes share, in a dict: values with a time to live, as Redis keeps them.

    Args:
        now: the store's own clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.values: dict[str, tuple[bytes, float]] = {}
        self.now = now
        self.operations = 0
        self.ttls: list[float] = []
        self._lock = threading.Lock()

    def get(self, key: str) -> tuple[bytes, float] | None:
        with self._lock:
            self.operations += 1
            if self.operations > 2000:
                raise OSError("an endless loop")
            value, until = self.values.get(key, (b"", 0.0))
            remaining = until - self.now()
            return (value, remaining) if remaining > 0 else None

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        found = self.get(key)
        with self._lock:
            if (found and found[0]) != old:
                return False
            self.ttls.append(ttl)
            if int(ttl * 1000) + int(self.now() * 1000) >= 2**63:
                raise OSError("ERR invalid expire time in 'set' command")  # as Redis says it
            if new is None:
                self.values.pop(key, None)
            else:
                self.values[key] = (new, self.now() + ttl)
            return True

    def face(self) -> StoreFace:
        """Return the cache object of one more process."""
        return StoreFace(self)


class StoreFace:
    """One process's own view of a `SharedStore`: just the two methods."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    def get(self, key: str) -> tuple[bytes, float] | None:
        return self._store.get(key)

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        return self._store.swap(key, old, new, ttl)


class elapsed:  # noqa: N801  # it reads as a function in a with statement
    """Measure a block in real seconds, whatever the test has done to the clocks."""

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        self.seconds = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
