"""The sandbox: strict about what gateways document, tolerant of what clients and tracers add, closed to web pages."""

from __future__ import annotations

import base64
import json
import socket
from typing import Any

import pytest
import requests
from conftest import Auth, make

from baas_auth_plugins import PROVIDERS, AvistaAuth, AxiaAuth, NTXPayAuth
from baas_auth_plugins.sandbox import Sandbox

pytestmark = pytest.mark.timeout(60)

ADDED = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "vendor=1",
    "baggage": "tenant=1",
    "b3": "0",
    "x-request-id": "7",
    "accept-language": "pt-BR,pt;q=0.9",
    "cookie": "session=1",
    "via": "1.1 proxy",
    "x-forwarded-for": "10.0.0.1",
    "forwarded": "for=10.0.0.1",
    "sec-fetch-mode": "cors",
    "sec-ch-ua": '"Chromium";v="120"',
    "cache-control": "no-cache",
    "pragma": "no-cache",
    "priority": "u=1",
    "dnt": "1",
    "te": "trailers",
    "x-b3-traceid": "80f198ee56343ba864fe8b2a57d3eff7",
    "uber-trace-id": "1:1:0:1",
    "sentry-trace": "1-1-1",
}


@pytest.mark.parametrize(
    ("auth_class", "name"),
    [(PROVIDERS[number % 4], name) for number, name in enumerate(ADDED)],
    ids=lambda value: value if isinstance(value, str) else value.provider.name,
)
def test_a_token_request_may_have_a_header_that_clients_add(name: str, auth_class: Auth, sandbox: Sandbox) -> None:
    """Tracers, browsers and proxies add headers to a token request; each gateway of the sandbox takes them."""
    auth = make(auth_class, sandbox, headers={name: ADDED[name]})
    assert auth.get_token().access_token
    assert sandbox.count("token") == 1


def test_all_of_them_at_once(auth_class: Auth, sandbox: Sandbox) -> None:
    """So they may come together."""
    assert make(auth_class, sandbox, headers=ADDED).get_token().access_token


def basic(sandbox: Sandbox) -> str:
    return "Basic " + base64.b64encode(f"{sandbox.client_id}:{sandbox.client_secret}".encode()).decode()


def token_url(auth_class: Auth, sandbox: Sandbox) -> str:
    return sandbox.url + auth_class.provider.token_endpoint


def test_what_is_documented_is_still_demanded(sandbox: Sandbox) -> None:
    """Method, content type, body and credentials stay strict: tolerance is for further headers only."""
    axia, avista = token_url(AxiaAuth, sandbox), token_url(AvistaAuth, sandbox)
    json_type = {"Content-Type": "application/json"}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", axia, {"headers": json_type | {"Authorization": basic(sandbox)}}),
        ("POST", axia, {"headers": json_type}),
        ("POST", avista, {"data": json.dumps({"clientId": sandbox.client_id}), "headers": json_type}),
        ("POST", avista, {"data": "not json", "headers": json_type}),
    ]
    for method, url, options in wrong:
        assert 400 <= requests.request(method, url, timeout=5, **options).status_code < 500


def exchange(sandbox: Sandbox, request: bytes) -> bytes:
    """Send bytes, and return what comes back until the connection ends or is silent."""
    host, port = sandbox.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        connection.settimeout(3)
        answer = b""
        try:
            while piece := connection.recv(65_536):
                answer += piece
                if b"\r\n\r\n" in answer:
                    break
        except OSError:
            pass
        return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["negative", "letters", "two lengths", "nonsense", "version", "header", "chunk"],
)
def test_malformed_http_is_a_400(request_bytes: bytes, sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    """Malformed HTTP gets a 400 or a 505, no traceback, and the sandbox goes on."""
    answer = exchange(sandbox, request_bytes)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 505", b"HTTP/1.0 505"))
    assert "Traceback" not in capfd.readouterr().err
    assert make(AxiaAuth, sandbox).get_token().access_token


@pytest.mark.parametrize("length", ["99999999999999999999", "1099511627776"])
def test_an_absurd_content_length_is_refused(length: str, sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    """A body of a terabyte is refused without waiting for it."""
    request = f"POST /oauth/token HTTP/1.1\r\nHost: {sandbox.url.split('/')[-1]}\r\nContent-Length: {length}\r\n\r\n"
    answer = exchange(sandbox, request.encode())
    assert answer.split(b" ")[1:2] in ([b"400"], [b"413"])
    assert "Traceback" not in capfd.readouterr().err
    assert make(AxiaAuth, sandbox).get_token().access_token


@pytest.mark.parametrize("delay", [1e300, -1, float("inf"), float("nan")])
def test_an_absurd_delay_is_refused(delay: float, sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    """A fault with an absurd delay, asked for by a header or over the control API, gives no traceback."""
    response = requests.post(
        sandbox.url + "/_sandbox/faults",
        data=json.dumps({"kind": "delay", "delay": delay}),
        headers={"Content-Type": "application/json"},
        timeout=5,
    )
    assert 400 <= response.status_code < 500
    assert "Traceback" not in capfd.readouterr().err
    assert make(AxiaAuth, sandbox).get_token().access_token


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Origin": "http://localhost.evil.example", "Sec-Fetch-Site": "cross-site"},
    ],
    ids=["origin", "null", "rebinding", "look-alike"],
)
def test_a_web_page_cannot_control_the_sandbox(headers: dict[str, str], sandbox: Sandbox) -> None:
    """A control request with a foreign Origin, or a Host that is not the sandbox's, is refused and does nothing."""
    fault = json.dumps({"kind": "status", "status": 503, "times": -1})
    for content_type in ("application/json", "text/plain"):
        response = requests.post(
            sandbox.url + "/_sandbox/faults", data=fault, headers={"Content-Type": content_type} | headers, timeout=5
        )
        assert 400 <= response.status_code < 500
    assert make(AxiaAuth, sandbox).get_token().access_token


def test_each_gateway_has_an_origin_of_its_own(sandbox: Sandbox) -> None:
    """`url_for(NTXPayAuth)` serves that gateway alone: its requests count as `ntxpay`, not as `avista`."""
    ntx, avista = (sandbox.url_for(each) for each in (NTXPayAuth, AvistaAuth))  # type: ignore[attr-defined]
    assert len({ntx, avista, sandbox.url}) == 3
    make(NTXPayAuth, sandbox, base_url=ntx).get_token()
    assert {r.provider for r in sandbox.requests if r.kind == "token"} == {"ntxpay"}
    make(AvistaAuth, sandbox, base_url=avista).get_token()
    assert [r.provider for r in sandbox.requests if r.kind == "token"] == ["ntxpay", "avista"]
