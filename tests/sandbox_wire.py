"""Raw requests to the sandbox, as its tests send them: to the byte, and over no client that the package knows."""

from __future__ import annotations

import http.client
import json
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from baas_auth_plugins.sandbox import Sandbox

SECRET = "your-client-secret"
BASIC = "Basic eW91ci1jbGllbnQtaWQ6eW91ci1jbGllbnQtc2VjcmV0"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
INTROSPECT = "/v1/authentication/oauth/introspect"
REVOKE = "/v1/authentication/oauth/revoke"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
COMPACT_JWT = r"[\w-]+\.[\w-]+\.[\w-]+"


class Clock:
    """Epoch seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1_710_496_800.0  # 2024-03-15T10:00:00Z

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Sent:
    """A request to make."""

    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    method: str = "POST"


@dataclass(frozen=True)
class Answer:
    """A response, read."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.text)


AXIA = Sent("/v1/authentication/oauth/access-token", {"Authorization": BASIC, "Content-Type": JSON})
AVISTA = Sent(
    "/oauth/token",
    {"Content-Type": JSON},
    b'{"clientId": "your-client-id", "clientSecret": "your-client-secret"}',
)
BS2 = Sent(
    "/auth/oauth/v2/token",
    {"Authorization": BASIC, "Content-Type": FORM},
    b"grant_type=client_credentials&scope=cob.write+cob.read",
)
TOKEN_REQUESTS = {"axia": AXIA, "avista": AVISTA, "bs2": BS2}
API_PATHS = {"axia": "/v1/accounts", "avista": "/cob/abc123", "bs2": "/pix/direto/forintegration/v1/cobv/1"}

each_gateway = pytest.mark.parametrize("name", TOKEN_REQUESTS)


def connect(sandbox: Sandbox) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)


def plug(sandbox: Sandbox) -> socket.socket:
    parts = urlsplit(sandbox.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def exchange(connection: http.client.HTTPConnection, sent: Sent) -> Answer:
    connection.request(sent.method, sent.target, sent.body, dict(sent.headers))
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read().decode())


def send(sandbox: Sandbox, sent: Sent) -> Answer:
    with closing(connect(sandbox)) as connection:
        return exchange(connection, sent)


def mint(sandbox: Sandbox, name: str = "axia") -> str:
    answer = send(sandbox, TOKEN_REQUESTS[name])
    assert answer.status == 200, answer.text
    token: str = answer.json["access_token"]
    return token


def bearer(token: str, target: str = API_PATHS["axia"], **headers: str) -> Sent:
    return Sent(target, {"Authorization": f"Bearer {token}", **headers}, method="GET")


def status(sandbox: Sandbox, token: str, target: str = API_PATHS["axia"]) -> int:
    return send(sandbox, bearer(token, target)).status


def inspect(sandbox: Sandbox, endpoint: str, token: str) -> Answer:
    return send(sandbox, Sent(f"{endpoint}?token={quote(token)}", {"Authorization": BASIC}))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


def verified(token: str) -> jwt.Token:
    keys = KeySet.import_key_set(Sandbox.jwks())
    return jwt.decode(token, keys, algorithms=["RS256"])


def with_headers(sent: Sent, **headers: str | None) -> Sent:
    changed = {**sent.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return replace(sent, headers={name: value for name, value in changed.items() if value is not None})


def basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"
