"""Whatever a client sends, the sandbox answers it, records it and can show it: no exception, no secret."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import Provider
from baas_auth_plugins.sandbox import Sandbox
from baas_auth_plugins.sandbox._control import Control
from baas_auth_plugins.sandbox._messages import Request

METHODS = ("client_secret_basic", "client_secret_post", "none", "private_key_jwt", "client_secret_jwt", print)
SECRET = "s3cret-s3cret"

texts = st.text(st.characters(max_codepoint=0xFF), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts | st.just("your-client-id"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["grant_type", "scope", "client_id", "client_secret", "clientId", "clientSecret", "client_assertion", "token", "x"]
)
objects = st.dictionaries(names | texts, json_values, max_size=6)


def segment(content: Any) -> str:
    return b64encode(json.dumps(content).encode()).decode().rstrip("=")


jwts = st.builds(lambda *parts: ".".join(map(segment, parts)), objects, objects, json_values)
forms = st.lists(st.tuples(names, texts | jwts | st.just("client_credentials")), max_size=6).map(
    lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
)
bodies = st.binary(max_size=30) | objects.map(lambda value: json.dumps(value).encode()) | forms.map(str.encode)
headers = st.dictionaries(
    st.sampled_from(["host", "authorization", "content-type", "x-sandbox-fault", "accept", "origin", "cookie"]),
    texts | st.sampled_from(["application/json", "application/x-www-form-urlencoded", "Basic Og==", "text/html"]),
    max_size=4,
)
paths = st.sampled_from(["/", "/0", "/1", "/2", "/3", "/4", "/5", "/oauth/token", "/introspect", "/revoke"]) | texts
control_paths = st.sampled_from(["", "state", "faults", "requests", "revoke", "expire", "secret", "settings", "clear"])


def declared() -> list[Any]:
    fifths = [
        Provider(
            name=f"fifth{number}",
            env_prefix="FIFTH",
            environments={"production": "https://fifth.example"},
            token_endpoint=f"/{number}",
            token_endpoint_auth_method=method,
        )
        for number, method in enumerate(METHODS)
    ]
    inspecting = Provider(
        "inspecting",
        "INSPECTING",
        {"production": "https://inspecting.example"},
        "/token",
        introspection_endpoint="/introspect",
        revocation_endpoint="/revoke",
    )
    return ["avista", inspecting, *fifths]


SANDBOX = Sandbox(providers=declared(), client_secret=SECRET)


@given(method=st.sampled_from(["GET", "POST", "PUT"]), path=paths, query=forms, headers=headers, body=bodies)
def test_every_request_is_answered_recorded_and_shown(
    method: str, path: str, query: str, headers: dict[str, str], body: bytes
) -> None:
    """No request raises an exception; its answer can be sent, and its masked form is JSON without the secret."""
    exchange = SANDBOX.begin(Request(method, path, query, headers, body))
    SANDBOX.finish(exchange)
    assert exchange.response.status is None or 200 <= exchange.response.status < 600
    assert all(value.isascii() for _, value in exchange.response.headers)
    shown = json.dumps(SANDBOX.requests[-1].masked())
    assert SECRET not in shown
    assert SECRET.encode() not in exchange.response.body


@given(method=st.sampled_from(["GET", "POST", "DELETE"]), path=control_paths, query=forms, body=bodies)
def test_every_control_request_is_answered(method: str, path: str, query: str, body: bytes) -> None:
    """No control request raises an exception; it is done, or refused with a JSON error."""
    with Sandbox(providers=["bs2"]) as sandbox:
        host = sandbox.url.removeprefix("http://")
        exchange = Control(sandbox, ("127.0.0.1",)).begin(
            Request(method, f"/_sandbox/{path}", query, {"host": host}, body)
        )
    assert exchange.number is None
    assert exchange.response.status in (200, 204, 400, 405)
    if exchange.response.status != 204:
        json.loads(exchange.response.body)
