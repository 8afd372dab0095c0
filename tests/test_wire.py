"""What goes over the wire, byte for byte as the gateways' pages show it, from every client."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
from conftest import CLIENTS, SECRET, Auth, Client, FakeClock, api_url, make, sent_tokens

from baas_auth_plugins import PROVIDERS, AvistaAuth, AxiaAuth, BS2Auth, MemoryTokenCache, NTXPayAuth
from baas_auth_plugins.sandbox import Fault, Sandbox

BS2_SCOPE = "cob.write cob.read dict.write dict.read webhook.read webhook.write pix.read pix.write"
BASIC_OF_BS2 = "bDdkNWQ3OTg1ZDMxMTE0Y2NjYTgzMjlmZWVkZDQ3N2E0NTpmNjBjYzVjMzIxNDA0Y2UyOWQ4Mjg5NGVmNmEzZWI1Ng=="
BASIC_OF_AXIA = "YXhpYV9wcm9kX2FiYzEyM3h5ejpza19saXZlX3N1cGVyX3NlY3JldF9uZXZlcl9jb21taXQ="  # PROVIDERS.md, number 8
JSON_CREDENTIALS = b'{"clientId": "your-client-id", "clientSecret": "your-client-secret"}'

# The documented credentials; what the page shows of the request to the token endpoint: path, headers, body.
DOCUMENTED: dict[Auth, tuple[tuple[str, str], str, dict[str, str], bytes]] = {
    AxiaAuth: (
        ("axia_prod_abc123xyz", "sk_live_super_secret_never_commit"),
        "/v1/authentication/oauth/access-token",
        {"authorization": f"Basic {BASIC_OF_AXIA}", "content-type": "application/json"},
        b"",
    ),
    NTXPayAuth: (
        ("your-client-id", "your-client-secret"),
        "/oauth/token",
        {"content-type": "application/json"},
        JSON_CREDENTIALS,
    ),
    AvistaAuth: (
        ("your-client-id", "your-client-secret"),
        "/oauth/token",
        {"content-type": "application/json"},
        JSON_CREDENTIALS,
    ),
    BS2Auth: (
        ("l7d5d7985d31114ccca8329feedd477a45", "f60cc5c321404ce29d82894ef6a3eb56"),
        "/auth/oauth/v2/token",
        {"authorization": f"Basic {BASIC_OF_BS2}", "content-type": "application/x-www-form-urlencoded"},
        b"grant_type=client_credentials&scope=" + BS2_SCOPE.replace(" ", "+").encode(),
    ),
}
CONNECTION_HEADERS = {"host", "user-agent", "accept", "accept-encoding", "connection"}  # any client's own


def test_every_gateway_has_a_sample() -> None:
    """No gateway is left out of these tests, and BS2's sample is the encoding of the documented credentials."""
    assert set(DOCUMENTED) == set(PROVIDERS)
    assert ":".join(DOCUMENTED[BS2Auth][0]) == base64.b64decode(BASIC_OF_BS2).decode()


def test_token_request_is_the_documented_one(
    client: Client, auth_class: Auth, new_sandbox: Callable[..., Sandbox]
) -> None:
    """Method, path, headers and body are exactly those on the gateway's page, whatever the API request was."""
    credentials, path, headers, body = DOCUMENTED[auth_class]
    sandbox = new_sandbox(client_id=credentials[0], client_secret=credentials[1])
    auth = make(auth_class, sandbox, **({"scope": BS2_SCOPE} if auth_class is BS2Auth else {}))
    api_headers = {"X-Idempotency-Key": "1", "Cookie": "a=b", "Accept-Language": "pt-BR"}
    answer = client.call(
        auth, "PUT", api_url(auth_class, sandbox) + "?q=1", content=b'{"value": 1}', headers=api_headers
    )
    assert answer.status == 200
    token, api = sandbox.requests
    own = {name: value for name, value in token.headers.items() if name not in CONNECTION_HEADERS}
    assert (token.kind, token.method, token.path, token.query) == ("token", "POST", path, "")
    assert own == {**headers, "content-length": str(len(body))}
    assert token.body == body
    assert token.headers["host"] == sandbox.url.removeprefix("http://")
    assert (api.method, api.query, api.body, api.headers["cookie"]) == ("PUT", "q=1", b'{"value": 1}', "a=b")


def test_api_request_carries_the_minted_token(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """The API sees one Bearer header, with the very token, and nothing else of the package."""
    auth = make(auth_class, sandbox, headers={"X-Extra": "1"})
    answer = client.call(auth, "GET", api_url(auth_class, sandbox))
    assert answer.json["path"] == api_url(auth_class, sandbox).removeprefix(sandbox.url)
    assert sent_tokens(sandbox) == [auth.get_token().access_token]
    assert "x-extra" not in sandbox.requests[-1].headers
    assert sandbox.count("token") == 1


@pytest.mark.parametrize("registered", [None, "acme-pix/1.0 (+55 11 0000-0000)"])
def test_user_agent_is_inherited(client: Client, sandbox: Sandbox, registered: str | None) -> None:
    """The token request says it comes from whom the API request comes from, BS2's registered name included."""
    headers = {"User-Agent": registered} if registered else {}
    client.call(make(BS2Auth, sandbox), "GET", api_url(BS2Auth, sandbox), headers=headers)
    token, api = sandbox.requests
    assert token.headers["user-agent"] == api.headers["user-agent"]
    assert registered in (None, token.headers["user-agent"])


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_user_agent_is_inherited_byte_for_byte(client: Client, sandbox: Sandbox, encoding: str) -> None:
    """A User-Agent that is not ASCII, which clients send as the bytes that they are given, is no hindrance."""
    registered = "Padaria São João/1.0".encode(encoding)
    client.call(make(BS2Auth, sandbox), "GET", api_url(BS2Auth, sandbox), headers={"User-Agent": registered})
    assert [r.headers["user-agent"].encode("latin-1") for r in sandbox.requests] == [registered] * 2


def test_headers_override(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """`headers` goes with the token request alone, and wins over what it would inherit, in whichever case."""
    extra = {"user-AGENT": "registered/1", "X-SSL-Client-Cert": "-----BEGIN%20CERTIFICATE-----"}
    auth = make(auth_class, sandbox, headers=extra)
    client.call(auth, "GET", api_url(auth_class, sandbox), headers={"User-Agent": "script/1"})
    token, api = sandbox.requests
    assert token.headers["user-agent"] == "registered/1"
    assert token.headers["x-ssl-client-cert"] == extra["X-SSL-Client-Cert"]
    assert api.headers["user-agent"] == "script/1"
    assert "x-ssl-client-cert" not in api.headers
    assert extra == {"user-AGENT": "registered/1", "X-SSL-Client-Cert": "-----BEGIN%20CERTIFICATE-----"}


def test_user_agent_without_an_api_request(sandbox: Sandbox) -> None:
    """`get_token` names the package, or whom the given session names."""
    make(AxiaAuth, sandbox).get_token()
    with requests.Session() as session:
        session.headers["User-Agent"] = "registered/1"
        make(AxiaAuth, sandbox, session=session).get_token()
    assert [r.headers["user-agent"] for r in sandbox.requests] == ["baas-auth-plugins", "registered/1"]


@pytest.mark.parametrize("with_session", [False, True])
@pytest.mark.pairwise
def test_netrc_is_not_read(
    client: Client,
    auth_class: Auth,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_session: bool,
) -> None:
    """A developer's .netrc that knows the gateway changes neither the token request nor the API request."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with requests.Session() as session:
        assert requests.utils.get_netrc_auth(sandbox.url) == ("somebody", "else")
        auth = make(auth_class, sandbox, session=session if with_session else None)
        with client.open(auth, trust_env=True) as send:
            assert send("GET", api_url(auth_class, sandbox)).status == 200
    assert [r.status for r in sandbox.requests] == [200, 200]


@pytest.mark.parametrize("secret", ["sécrêt € 日本", 'a:b::+c%20d&e="\\ f'])
@pytest.mark.pairwise
def test_credentials_travel_raw_as_utf8(
    client: Client, auth_class: Auth, new_sandbox: Callable[..., Sandbox], secret: str
) -> None:
    """Any printable secret arrives as it is: neither latin-1 nor form-encoded."""
    sandbox = new_sandbox(client_secret=secret)
    assert client.call(make(auth_class, sandbox), "GET", api_url(auth_class, sandbox)).status == 200


@pytest.mark.parametrize("status", [200, 201, 202, 203, 299])
def test_any_2xx_is_a_token_response(client: Client, sandbox: Sandbox, status: int) -> None:
    """The standard Avista API answers 201: so any 2xx will do."""
    issued = make(AvistaAuth, sandbox).get_token()
    body = {"access_token": issued.access_token, "token_type": "Bearer", "expires_in": 1800}
    sandbox.inject(Fault("body", status=status, body=json.dumps(body).encode()))
    auth = make(AvistaAuth, sandbox)
    assert client.call(auth, "GET", api_url(AvistaAuth, sandbox)).status == 200
    assert (auth.get_token().access_token, auth.get_token().expires_in) == (issued.access_token, 1800)


@pytest.mark.parametrize("client", [c for c in CLIENTS if c.module is not requests], ids=lambda c: c.name)
def test_httpx_token_request_has_a_timeout(client: Client) -> None:
    """The yielded request brings its own timeout for every phase; the API request keeps the client's."""
    timeouts: list[dict[str, float]] = []

    def gateway(request: Any) -> Any:
        timeouts.append(request.extensions["timeout"])
        return client.module.Response(200, json={"access_token": "abc", "expires_in": 3600})

    auth = AxiaAuth("timeout", SECRET, timeout=3)
    transport = client.module.MockTransport(gateway)
    with client.open(auth, transport=transport, timeout=7) as send:
        send("GET", "https://baas-gtw.axiadigitalsolutions.com/v1/accounts")
    assert timeouts == [dict.fromkeys(("connect", "read", "write", "pool"), seconds) for seconds in (3, 7)]
    auth.invalidate()


def test_requests_token_request_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter that sends the token request gets the auth object's timeout, and the session's verify, cert and proxies."""
    given: list[dict[str, Any]] = []
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which win over a session's, in requests itself
        monkeypatch.delenv(variable, raising=False)

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, request: Any, **settings: Any) -> Any:
            given.append(settings)
            raise requests.ConnectionError

    with requests.Session() as session:
        session.mount("https://", Adapter())
        session.verify, session.cert, session.proxies = "ca.pem", "client.pem", {"https": "http://proxy.example:3128"}
        auth = AxiaAuth("timeout", SECRET, timeout=3, max_wait=0.001, session=session)
        with pytest.raises(requests.RequestException):
            auth.get_token()
    assert 0 < given[0]["timeout"] <= 3
    assert (given[0]["verify"], given[0]["cert"]) == ("ca.pem", "client.pem")
    assert given[0]["proxies"]["https"] == "http://proxy.example:3128"


def test_hanging_gateway_costs_the_timeout(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A token endpoint that never answers is given up after `timeout`, and the caller's except clause sees it."""
    sandbox.inject(Fault("hang", times=-1))
    auth = make(AxiaAuth, sandbox, timeout=0.1)
    before = time.perf_counter()
    with client.open(auth, timeout=60) as send, pytest.raises(client.error):
        send("GET", api_url(AxiaAuth, sandbox))
    assert time.perf_counter() - before < 30
    assert sent_tokens(sandbox) == []


def test_mocks_of_sessions_see_the_token_request() -> None:
    """What stands in for `Session.send`, as requests-mock does, answers token requests, too: none leaves for the gateway."""
    url = "https://baas-gtw.axiadigitalsolutions.com"
    with requests_mock.Mocker() as mock, requests.Session() as own:
        mock.post(url + AxiaAuth.provider.token_endpoint, json={"access_token": "abc", "expires_in": 3600})
        mock.get(url + "/v1/accounts", json=[])
        for session in (None, own):
            auth = AxiaAuth("mocked", SECRET, session=session, cache=MemoryTokenCache())
            assert requests.get(url + "/v1/accounts", auth=auth, timeout=1).json() == []
        assert [call.method for call in mock.request_history] == ["POST", "GET"] * 2


def test_adapter_may_answer_with_any_file() -> None:
    """An adapter whose response is a plain file, as those that call an application in this process, will do; and keeps count."""

    class InProcess(requests.adapters.HTTPAdapter):
        sent = 0

        def send(self, request: Any, **_: Any) -> requests.Response:
            self.sent += 1
            response = requests.Response()
            response.status_code, response.url, response.request = 200, request.url, request
            response.raw = io.BytesIO(b'{"access_token": "abc", "expires_in": 3600}')
            return response

    with requests.Session() as session:
        session.mount("https://", InProcess())
        auth = AxiaAuth("in-process", SECRET, session=session, cache=MemoryTokenCache())
        assert auth.get_token().access_token == "abc"
        assert session.get_adapter("https://x").sent == 1


@responses.activate
def test_session_is_used_and_left_alone() -> None:
    """Token requests go over the given session; its auth, headers, cookies and hooks neither join in nor change."""
    url = "https://baas-gtw.axiadigitalsolutions.com"
    responses.post(
        url + AxiaAuth.provider.token_endpoint,
        json={"access_token": "abc", "expires_in": 3600},
        headers={"Set-Cookie": "gateway=1"},
    )
    responses.get(url + "/v1/accounts", json=[])
    hooked: list[object] = []
    with requests.Session() as own:
        own.auth = ("somebody", "else")
        own.headers["X-Own"] = "1"
        own.cookies.set("own", "1")
        own.hooks["response"].append(lambda response, **_: hooked.append(response))
        auth = AxiaAuth("session", SECRET, session=own)
        assert requests.get(url + "/v1/accounts", auth=auth, timeout=1).json() == []
        assert (own.auth, own.headers["X-Own"], dict(own.cookies)) == (("somebody", "else"), "1", {"own": "1"})
    token, api = (call.request for call in responses.calls)
    assert token.headers["Authorization"] == "Basic " + base64.b64encode(b"session:" + SECRET.encode()).decode()
    assert "X-Own" not in token.headers
    assert "Cookie" not in token.headers
    assert api.headers["Authorization"] == "Bearer abc"
    assert "Cookie" not in api.headers
    assert hooked == []
    auth.invalidate()


@pytest.mark.parametrize(
    ("environment", "origin"),
    [("production", "https://api.bs2.com"), ("homologation", "https://apihmz.bancobonsucesso.com.br")],
)
@responses.activate
def test_environments_have_origins(environment: str, origin: str) -> None:
    """BS2's two environments are two hosts, and each sees its own token only."""
    responses.post(f"{origin}/auth/oauth/v2/token", json={"access_token": environment, "expires_in": 300})
    responses.get(f"{origin}/pix", json={})
    responses.get("https://api.example.com/", json={})
    auth = BS2Auth(f"at-{environment}", SECRET, scope="pix.read", environment=environment)
    requests.get(f"{origin}/pix", auth=auth, timeout=1)
    requests.get("https://api.example.com/", auth=auth, timeout=1)
    *_, inside, outside = (call.request.headers.get("Authorization") for call in responses.calls)
    assert (inside, outside) == (f"Bearer {environment}", None)
    auth.invalidate()
