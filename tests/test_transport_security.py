"""The token request itself: over verified TLS, with these credentials and no others, and not an inch further."""

from __future__ import annotations

import copy
import gzip
import json
import ssl
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
import requests
import trustme
from conftest import CLIENTS, SECRET, Auth, Client, FakeClock, Send, api_url, make

from baas_auth_plugins import (
    AxiaAuth,
    BaaSAuthError,
    InvalidTokenResponseError,
    NTXPayAuth,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

MIB = 1 << 20

httpx_clients = pytest.mark.parametrize("client", CLIENTS[1:], ids=lambda client: client.name)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's settings are not these tests' business."""
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def today(clock: FakeClock) -> FakeClock:
    """A clock on which waiting takes no time, and whose year urllib3 believes."""
    clock.step_wall(5 * 365 * 86_400)
    return clock


# -- TLS, with a private authority


class Authority(NamedTuple):
    """A certificate authority that nobody trusts unless told to, and what it issued."""

    ca: trustme.CA
    ca_file: str
    client_certificate: str

    def server(self, *names: str, client_certificate: bool = False) -> ssl.SSLContext:
        """Return a server's context, which may insist on a client certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names or ("127.0.0.1",)).configure_cert(context)
        if client_certificate:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @contextmanager
    def open(self, client: Client, auth: Callable[..., Any], *, identified: bool = False) -> Iterator[Send]:
        """Open a client that trusts this authority, with `auth` made for it."""
        if client.module is requests:
            with self.session(identified=identified) as session:
                opened = auth(session=session)

                def send(method: str, url: str, **arguments: Any) -> Any:
                    return session.request(method, url, auth=opened, timeout=10, **arguments)

                yield send
            return
        context = ssl.create_default_context(cafile=self.ca_file)
        if identified:
            context.load_cert_chain(self.client_certificate)
        with client.open(auth(), verify=context) as send:
            yield send

    @contextmanager
    def session(self, *, identified: bool = False) -> Iterator[requests.Session]:
        with requests.Session() as session:
            session.verify = self.ca_file
            session.cert = self.client_certificate if identified else None
            yield session


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca, folder = trustme.CA(), tmp_path_factory.mktemp("ca")
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    ca.issue_cert("the-client.example").private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    return Authority(ca, str(folder / "ca.pem"), str(folder / "client.pem"))


def status(answer: Any) -> int:
    return int(getattr(answer, "status_code", None) or answer.status)


def test_a_certificate_of_an_unknown_authority_is_refused(
    client: Client, today: FakeClock, new_sandbox: Callable[..., Sandbox], authority: Authority
) -> None:
    """Nothing is sent to a gateway that cannot prove who it is; the error is one that a script catches already."""
    sandbox = new_sandbox(ssl_context=authority.server())
    auth = make(AxiaAuth, sandbox)
    options = {} if client.module is requests else {"verify": True}
    with client.open(auth, **options) as send, pytest.raises(client.error) as caught:
        send("GET", api_url(AxiaAuth, sandbox))
    assert client.module is not requests or isinstance(caught.value, TokenEndpointUnavailableError)
    assert sandbox.requests == []


@pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
def test_the_packages_own_connections_verify_too(
    backend: str | None, today: FakeClock, new_sandbox: Callable[..., Sandbox], authority: Authority
) -> None:
    """`get_token`, `aget_token`, `introspect` and `revoke` without a client check the certificate as well."""
    sandbox = new_sandbox(ssl_context=authority.server())
    auth = make(AxiaAuth, sandbox)
    calls: list[Callable[[], Any]] = (
        [auth.get_token, lambda: auth.introspect("t0ken"), lambda: auth.revoke("t0ken")]
        if backend is None
        else [
            lambda: anyio.run(auth.aget_token, backend=backend),
            lambda: anyio.run(auth.aintrospect, "t0ken", backend=backend),
        ]
    )
    for call in calls:
        with pytest.raises(TokenEndpointUnavailableError):
            call()
    assert sandbox.requests == []


def test_a_certificate_for_another_host_is_refused(
    client: Client, today: FakeClock, new_sandbox: Callable[..., Sandbox], authority: Authority
) -> None:
    """A trusted authority's certificate counts for the hosts that it names."""
    sandbox = new_sandbox(ssl_context=authority.server("api.evil.example"))
    with authority.open(client, lambda **kw: make(AxiaAuth, sandbox, **kw)) as send, pytest.raises(client.error):
        send("GET", api_url(AxiaAuth, sandbox))
    assert sandbox.requests == []


@pytest.mark.parametrize("identified", [False, True], ids=["TLS", "mTLS"])
@pytest.mark.pairwise
def test_a_private_authority_is_trusted_where_the_caller_says_so(
    client: Client, auth_class: Auth, new_sandbox: Callable[..., Sandbox], authority: Authority, identified: bool
) -> None:
    """The CA and the client certificate of `session`, or of the httpx client, serve the token request as well."""
    sandbox = new_sandbox(ssl_context=authority.server(client_certificate=identified))
    with authority.open(client, lambda **kw: make(auth_class, sandbox, **kw), identified=identified) as send:
        assert status(send("GET", api_url(auth_class, sandbox))) == 200
    assert [r.kind for r in sandbox.requests] == ["token", "api"]


def test_without_the_client_certificate_nothing_is_sent(
    client: Client, today: FakeClock, new_sandbox: Callable[..., Sandbox], authority: Authority
) -> None:
    """Where the gateway insists on mTLS, a client without a certificate gets an error of the documented kind."""
    sandbox = new_sandbox(ssl_context=authority.server(client_certificate=True))
    with authority.open(client, lambda **kw: make(AxiaAuth, sandbox, **kw)) as send:
        with pytest.raises((client.error, ssl.SSLError)) as caught:  # asyncio lets OpenSSL's own error through
            send("GET", api_url(AxiaAuth, sandbox))
    assert client.module is not requests or isinstance(caught.value, TokenEndpointUnavailableError)
    assert sandbox.requests == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_session_carries_what_is_asked_without_a_client(
    backend: str, new_sandbox: Callable[..., Sandbox], authority: Authority
) -> None:
    """`get_token`, `aget_token`, `introspect` and `arevoke` go through `session`, client certificate included."""
    sandbox = new_sandbox(ssl_context=authority.server(client_certificate=True))
    with authority.session(identified=True) as session:
        auth = make(AxiaAuth, sandbox, session=session)
        token = anyio.run(auth.aget_token, backend=backend)
        assert auth.get_token() is token
        assert auth.introspect().active
        assert anyio.run(auth.arevoke, backend=backend).revoked_at


@contextmanager
def asking(client: Client, auth: Any, context: ssl.SSLContext) -> Iterator[Callable[[], Any]]:
    """Give what introspects a token over a client with this TLS context."""
    if client.backend is None:
        with client.module.Client(verify=context) as opened:
            yield lambda: auth.introspect("t0ken", client=opened)
        return

    async def main() -> Any:
        async with client.module.AsyncClient(verify=context) as opened:
            return await auth.aintrospect("t0ken", client=opened)

    yield lambda: anyio.run(main, backend=client.backend)


@httpx_clients
def test_questions_go_through_the_clients_tls(
    client: Client, today: FakeClock, new_sandbox: Callable[..., Sandbox], authority: Authority
) -> None:
    """`introspect(client=…)` uses the CA and the certificate of that client; without the latter, the error is typed."""
    sandbox = new_sandbox(ssl_context=authority.server(client_certificate=True))
    auth = make(AxiaAuth, sandbox)
    context = ssl.create_default_context(cafile=authority.ca_file)
    with asking(client, auth, context) as ask, pytest.raises(TokenEndpointUnavailableError):
        ask()
    assert sandbox.requests == []
    context.load_cert_chain(authority.client_certificate)
    with asking(client, auth, context) as ask:
        assert ask().reason == "Token not found"


# -- redirects


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.pairwise
def test_a_token_request_is_not_redirected(
    client: Client, auth_class: Auth, new_sandbox: Callable[..., Sandbox], code: int
) -> None:
    """Even a client that follows redirects takes no credentials to another origin, and no token from there."""
    sandbox, foreign = new_sandbox(), new_sandbox()
    bait = json.dumps({"access_token": "bait", "token_type": "Bearer", "expires_in": 3600, "scope": ""}).encode()
    foreign.inject(Fault("body", "*", times=-1, body=bait))
    location = foreign.url + auth_class.provider.token_endpoint
    sandbox.inject(Fault("redirect", "token", times=-1, status=code, headers={"Location": location}))
    auth = make(auth_class, sandbox)
    with client.open(auth, follow_redirects=True) as send, pytest.raises(InvalidTokenResponseError):
        send("GET", api_url(auth_class, sandbox))
    basic = b64encode(f"{sandbox.client_id}:{SECRET}".encode()).decode()
    for request in foreign.requests:
        assert "authorization" not in request.headers
        assert request.body == b""
        assert basic not in repr(request.headers)
    assert client.module is not requests or foreign.requests == []
    assert sandbox.count("api") == 0


@httpx_clients
def test_a_body_is_not_sent_twice_even_at_home(client: Client, sandbox: Sandbox) -> None:
    """A 307 within the origin would send the secret again, too: it is refused as well."""
    sandbox.inject(Fault("redirect", "token", headers={"Location": f"{sandbox.url}/v1/elsewhere"}))
    with client.open(make(NTXPayAuth, sandbox), follow_redirects=True) as send:
        with pytest.raises(InvalidTokenResponseError, match="redirect"):
            send("GET", api_url(NTXPayAuth, sandbox))
    assert SECRET not in repr([r.body for r in sandbox.requests[1:]])


# -- whose credentials, and whose session


def test_netrc_is_never_applied(
    client: Client, auth_class: Auth, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .netrc entry for the gateway's host changes no token request, no API call and no introspection."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password hush\ndefault login somebody password hush\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    wrong = b64encode(b"somebody:hush").decode()
    auth = make(auth_class, sandbox)
    if client.module is requests:
        with requests.Session() as session:
            assert session.get(api_url(auth_class, sandbox), auth=auth).status_code == 200
            assert make(auth_class, sandbox, session=session).get_token()
    else:
        with client.open(auth, trust_env=True) as send:
            assert send("GET", api_url(auth_class, sandbox)).status == 200
    if isinstance(auth, AxiaAuth):
        assert auth.introspect().active
    assert sandbox.requests
    assert wrong not in repr([dict(r.headers) for r in sandbox.requests])


def snapshot(session: requests.Session) -> dict[str, Any]:
    """Return all that a session holds, as values to compare."""
    state = {name: copy.copy(getattr(session, name)) for name in session.__attrs__}
    state["cookies"] = session.cookies.get_dict()
    state["adapters"] = {prefix: id(adapter) for prefix, adapter in session.adapters.items()}
    return state


def test_the_session_is_left_as_it_was(sandbox: Sandbox) -> None:
    """Token requests take the session's connections and nothing else, and leave nothing behind: no cookie either."""
    with requests.Session() as session:
        session.headers["X-Mine"] = "kept"
        session.cookies.set("mine", "kept")
        session.auth = ("somebody", "else")
        session.params = {"mine": "kept"}
        session.hooks["response"].append(
            lambda response, **_: pytest.fail("a hook of the caller's saw a token request")
        )
        before = snapshot(session)
        for target in ("token", "introspect", "revoke"):
            sandbox.inject(Fault("delay", target, headers={"Set-Cookie": "theirs=sticky; Path=/"}))  # type: ignore[arg-type]
        auth = make(AxiaAuth, sandbox, session=session)
        auth.get_token()
        auth.introspect()
        auth.revoke()
        assert snapshot(session) == before
    assert len(sandbox.requests) == 3
    for request in sandbox.requests:
        assert request.headers["authorization"].startswith("Basic ")
        assert not {"cookie", "x-mine"} & set(request.headers)
        assert "mine" not in request.query


@httpx_clients
def test_the_clients_settings_stay_out_of_the_token_request(client: Client, sandbox: Sandbox) -> None:
    """Default headers, cookies and parameters of an httpx client go to the API, not to the token endpoint."""
    options: dict[str, Any] = {
        "headers": {"X-Mine": "kept", "Cookie": "mine=kept"},
        "params": {"mine": "kept"},
    }
    with client.open(make(AxiaAuth, sandbox), **options) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    token, api = sandbox.requests
    assert not {"cookie", "x-mine"} & set(token.headers)
    assert token.query == ""
    assert api.headers["x-mine"] == "kept"


def test_extra_headers_cannot_replace_the_credentials() -> None:
    """`headers` with an Authorization of its own is refused at construction."""
    for name in ("Authorization", "AUTHORIZATION", "Content-Length", "Transfer-Encoding"):
        with pytest.raises(BaaSAuthError, match=name):
            AxiaAuth("id", SECRET, headers={name: "hush"})


# -- what comes back


def peak(call: Callable[[], Any]) -> int:
    """Return the most memory, in bytes, that a call took."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMB = gzip.compress(gzip.compress(bytes(256 * MIB), 9), 9)
SINGLE_BOMB = gzip.compress(bytes(64 * MIB), 9)


@pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # httpx's, when it is not read to its end
@pytest.mark.parametrize(
    "fault",
    [
        Fault("huge"),
        Fault("body", body=SINGLE_BOMB, headers={"Content-Encoding": "gzip"}),
        Fault("body", body=BOMB, headers={"Content-Encoding": "gzip, gzip"}),
        Fault("body", status=401, body=SINGLE_BOMB, headers={"Content-Encoding": "gzip"}),
        Fault("body", body=b"[" * MIB),
        Fault("body", body=b'{"a":' * 100_000),
        Fault("body", body=b'{"access_token": ' + b"9" * 500_000 + b"}"),
    ],
    ids=["huge", "bomb", "nested bomb", "bomb as an error", "deep list", "deep object", "long number"],
)
def test_an_answer_takes_little_memory(client: Client, sandbox: Sandbox, fault: Fault) -> None:
    """Whatever comes for a token: a typed error, for a few times the 1 MiB that is read at most."""
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        sandbox.inject(fault)

        def call() -> None:
            with pytest.raises(BaaSAuthError):
                send("GET", api_url(AxiaAuth, sandbox))

        assert peak(call) < 24 * MIB


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "nonsense"])
def test_an_encoding_that_was_not_asked_for_is_refused(client: Client, sandbox: Sandbox, coding: str) -> None:
    """What a token response is packed in must be gzip or deflate, or nothing."""
    sandbox.inject(Fault("body", body=b"\x28\xb5\x2f\xfd hello", headers={"Content-Encoding": coding}))
    with pytest.raises(InvalidTokenResponseError):
        client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox))


UNSAFE = [
    "hush hush", " hush", "hush\t", "hush\r\nX-Injected: yes", "hush\nhush", "hush\x00", "h\u00fcsh", "hush\u2028",
    "hush,hush", 'hush"', "hush;", "=hush", "hush=hush", "hush\udc80",
]  # fmt: skip


@pytest.mark.parametrize("token", UNSAFE, ids=ascii)
def test_a_token_that_is_unsafe_in_a_header_is_refused(
    client: Client, clock: FakeClock, sandbox: Sandbox, token: str
) -> None:
    """A token with characters that RFC 6750 does not allow is never sent, and is not in the error's message."""
    body = json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 3600}).encode()
    sandbox.inject(Fault("body", body=body))
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        with pytest.raises(InvalidTokenResponseError, match="RFC 6750") as caught:
            send("GET", api_url(AxiaAuth, sandbox))
        assert "hush" not in str(caught.value)
        assert sandbox.count("api") == 0
        clock.advance(5.1)  # the refusal is cached, and no token
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert (sandbox.count("token"), sandbox.count("api")) == (2, 1)


def test_a_mock_transport_is_no_way_around(sandbox: Sandbox) -> None:
    """An answer that a transport brings whole is held to the same bound."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b" " * (MIB + 1)))
    with httpx.Client(transport=transport, auth=make(AxiaAuth, sandbox)) as client:
        with pytest.raises(InvalidTokenResponseError, match="1 MiB"):
            client.get(api_url(AxiaAuth, sandbox))
