"""What clients do by themselves: send again, raise in hooks, redirect, keep connections and cookies."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
import requests
from conftest import CLIENTS, NO_TLS, SECRET, Auth, Client, FakeClock, Send, api_url, make, sent_tokens
from raw_gateway import Exchange, RawGateway, SharedStore, StoreFace, elapsed, http, until

from baas_auth_plugins import AvistaAuth, AxiaAuth, BS2Auth, MemoryTokenCache, NTXPayAuth, TokenEndpointError
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

_numbers = itertools.count()

HTTPX = [client for client in CLIENTS if client.module is not requests]
each_httpx = pytest.mark.parametrize("client", HTTPX, ids=lambda client: client.name)
EACH_WITH_PROVIDER = pytest.mark.parametrize(
    ("client", "auth_class"),
    list(zip(HTTPX, [AvistaAuth, BS2Auth, AxiaAuth, NTXPayAuth, AxiaAuth, BS2Auth], strict=True)),
    ids=[client.name for client in HTTPX],
)


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    with RawGateway() as gateway:
        yield gateway


@pytest.fixture
def other() -> Iterator[RawGateway]:
    with RawGateway() as gateway:
        yield gateway


def raw_auth(gateway: RawGateway, name: str, **parameters: Any) -> Any:
    if gateway.auth_class.provider.scope == "required":
        parameters.setdefault("scope", "cob.read")
    options: dict[str, Any] = {"base_url": gateway.url, "cache": MemoryTokenCache(), "timeout": 5}
    return gateway.auth_class(f"machinery-{name}", SECRET, **(options | parameters))


# -- transports that send again


def resending(module: ModuleType, *, is_async: bool, send_again: Callable[[Any], bool]) -> Any:
    """Return a transport that sends a request again on a network error, or on a response that `send_again` names."""
    if is_async:

        class AsyncResending(module.AsyncHTTPTransport):
            resent = 0

            async def handle_async_request(self, request: Any) -> Any:
                for _ in range(3):
                    try:
                        response = await super().handle_async_request(request)
                    except module.TransportError:
                        type(self).resent += 1
                        continue
                    if not send_again(response):
                        return response
                    await response.aclose()
                    type(self).resent += 1
                return await super().handle_async_request(request)

        return AsyncResending(verify=NO_TLS)

    class Resending(module.HTTPTransport):
        resent = 0

        def handle_request(self, request: Any) -> Any:
            for _ in range(3):
                try:
                    response = super().handle_request(request)
                except module.TransportError:
                    type(self).resent += 1
                    continue
                if not send_again(response):
                    return response
                response.close()
                type(self).resent += 1
            return super().handle_request(request)

    return Resending(verify=NO_TLS)


def transport_for(client: Client, send_again: Callable[[Any], bool] = lambda response: False) -> Any:
    return resending(client.module, is_async=client.backend is not None, send_again=send_again)


@EACH_WITH_PROVIDER
@pytest.mark.parametrize("follow_redirects", [False, True])
def test_a_transport_that_retries_a_503_works(
    client: Client, auth_class: Auth, follow_redirects: bool, sandbox: Sandbox
) -> None:
    """A retrying transport sends the token request again, body included, and the call succeeds."""
    transport = transport_for(client, lambda response: response.status_code == 503)
    sandbox.inject(Fault("status", status=503, times=2))
    auth = make(auth_class, sandbox)
    with client.open(auth, transport=transport, follow_redirects=follow_redirects) as send:
        assert send("GET", api_url(auth_class, sandbox)).status == 200
    assert transport.resent == 2
    assert [r.status for r in sandbox.requests if r.kind == "token"] == [503, 503, 200]
    bodies = {r.body for r in sandbox.requests if r.kind == "token"}
    assert len(bodies) == 1


@EACH_WITH_PROVIDER
def test_a_transport_that_sends_again_after_a_drop_works(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """So does one that sends again after a connection was dropped."""
    transport = transport_for(client)
    sandbox.inject(Fault("drop", times=2))
    auth = make(auth_class, sandbox)
    with client.open(auth, transport=transport) as send:
        assert send("GET", api_url(auth_class, sandbox)).status == 200
    assert transport.resent == 2


@EACH_WITH_PROVIDER
def test_a_renewal_over_a_transport_that_sends_again_works(
    client: Client, auth_class: Auth, clock: FakeClock, sandbox: Sandbox
) -> None:
    """With a valid token the renewal succeeds through it, too, and so does the renewal after a 401."""
    sandbox.expires_in = 3600
    transport = transport_for(client, lambda response: response.status_code == 503)
    auth = make(auth_class, sandbox)
    with client.open(auth, transport=transport) as send:
        assert send("GET", api_url(auth_class, sandbox)).status == 200
        clock.advance(3310)
        sandbox.inject(Fault("status", status=503))
        assert send("GET", api_url(auth_class, sandbox)).status == 200
        sandbox.revoke_all()
        sandbox.inject(Fault("status", status=503))
        assert send("GET", api_url(auth_class, sandbox)).status == 200
    assert len(set(sent_tokens(sandbox))) == 3
    assert transport.resent == 2


@each_httpx
def test_a_keep_alive_connection_that_was_dropped_is_no_redirect(client: Client, gateway: RawGateway) -> None:
    """A gateway that closes idle connections costs a re-send by the transport, and no call."""

    def once_per_connection(exchange: Exchange) -> bytes | None:
        exchange.send(gateway.check(exchange))
        exchange.close()
        return None

    gateway.on_api = once_per_connection
    auth = raw_auth(gateway, f"dropped-{client.name}")
    with client.open(auth, transport=transport_for(client)) as send:
        for _ in range(3):
            assert send("GET", gateway.url + "/a").status == 200
            gateway.valid.clear()
    assert gateway.count("token") == 3


@EACH_WITH_PROVIDER
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_a_token_request_is_still_refused(client: Client, auth_class: Auth, status: int) -> None:
    """A client that follows redirects and a transport that re-sends: no other origin sees the secret or gives a token."""
    with RawGateway(auth_class) as here, RawGateway(auth_class) as there:
        here.on_token = lambda exchange: http(status, headers={"Location": there.url + exchange.target})
        auth = raw_auth(here, f"redirect-{status}-{client.name}")
        with client.open(auth, transport=transport_for(client), follow_redirects=True) as send:
            with pytest.raises(client.error) as caught:
                send("GET", here.url + "/a")
        assert isinstance(caught.value, TokenEndpointError)
        assert not [e for e in there.exchanges if SECRET.encode() in e.body or "authorization" in e.headers]
        assert here.count("api") == 0


@each_httpx
def test_a_refused_redirect_is_known_to_all_processes(client: Client, clock: FakeClock) -> None:
    """A client that follows redirects closes the flow at one. Another process gets the refusal, and waits for no lease."""
    store = SharedStore(time.time)
    with RawGateway(on_token=lambda _: http(307, b"", {"Location": "/elsewhere"})) as gateway:
        for _ in range(2):
            auth = AxiaAuth("redirect in a fleet", SECRET, base_url=gateway.url, cache=StoreFace(store))
            with elapsed() as spent, client.open(auth, follow_redirects=True) as send:
                with pytest.raises(TokenEndpointError):
                    send("GET", f"{gateway.url}/v1/accounts")
            assert spent.seconds < 4
            until(lambda: store.values)
            threading.Event().wait(0.1)  # the record is written while nobody waits for it
        assert [e.path for e in gateway.exchanges] == [AxiaAuth.provider.token_endpoint]


# -- hooks that raise


class TeapotError(Exception):
    """A hook's own exception."""


@contextmanager
def hooked(client: Client, auth: Any, *, own_error: bool) -> Iterator[Send]:
    """Open a client whose response hook raises on 4xx and 5xx."""

    def hook(response: Any, *_: Any, **__: Any) -> None:
        if own_error and response.status_code >= 400:
            raise TeapotError(response.status_code)
        response.raise_for_status()

    async def ahook(response: Any) -> None:
        hook(response)

    if client.module is requests:
        with requests.Session() as session:
            session.auth, session.trust_env = auth, False
            session.hooks["response"].append(hook)
            yield lambda method, url, **kw: session.request(method, url, timeout=5, **kw)  # type: ignore[misc,return-value]
        return
    with client.open(auth, event_hooks={"response": [ahook if client.backend else hook]}) as send:
        yield send


@pytest.mark.parametrize("own_error", [False, True], ids=["raise_for_status", "own exception"])
def test_a_hook_that_raises_costs_one_call_after_a_revocation(
    client: Client, own_error: bool, sandbox: Sandbox
) -> None:
    """With a response hook that raises on 401, the call with the revoked token may fail; the next 30 succeed with a new one."""
    auth = make(AxiaAuth, sandbox)
    outcomes = []
    with hooked(client, auth, own_error=own_error) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        sandbox.revoke_all()
        for _ in range(31):
            try:
                send("GET", api_url(AxiaAuth, sandbox))
                outcomes.append("ok")
            except (client.error, TeapotError):
                outcomes.append("failed")
    assert outcomes[1:] == ["ok"] * 30
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("client", [HTTPX[1], HTTPX[2], HTTPX[4]], ids=lambda client: client.name)
def test_many_tasks_under_a_hook_that_raises(client: Client, sandbox: Sandbox) -> None:
    """Twenty concurrent tasks with a revoked token fail once each at most; then all succeed, with one new token."""
    auth = make(NTXPayAuth, sandbox)
    url = api_url(NTXPayAuth, sandbox)

    async def ahook(response: Any) -> None:
        response.raise_for_status()

    async def main() -> list[str]:
        outcomes: list[str] = []
        options: Any = {"auth": auth, "verify": NO_TLS, "trust_env": False, "event_hooks": {"response": [ahook]}}
        async with client.module.AsyncClient(**options) as opened:

            async def call() -> None:
                try:
                    await opened.get(url)
                    outcomes.append("ok")
                except client.module.HTTPStatusError:
                    outcomes.append("failed")

            await opened.get(url)
            sandbox.revoke_all()
            for _ in range(2):
                async with anyio.create_task_group() as group:
                    for _ in range(20):
                        group.start_soon(call)
        return outcomes

    outcomes = anyio.run(main, backend=client.backend)
    assert outcomes[20:] == ["ok"] * 20
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
@each_httpx
def test_a_hook_that_raises_on_another_status_drops_no_token(client: Client, status: int, sandbox: Sandbox) -> None:
    """An API's 4xx or 5xx that a hook raises for says nothing against the token: at most one renewal in ten calls."""
    auth = make(AxiaAuth, sandbox)
    with hooked(client, auth, own_error=False) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        for _ in range(10):
            sandbox.inject(Fault("status", "api", status=status))
            with pytest.raises(client.error):
                send("GET", api_url(AxiaAuth, sandbox))
    assert sandbox.count("token") <= 2


@each_httpx
def test_a_path_that_always_rejects_under_a_hook_is_no_hammer(
    client: Client, clock: FakeClock, sandbox: Sandbox
) -> None:
    """Calls that always end with the hook's exception for a 401 do not request a token each."""
    auth = make(AxiaAuth, sandbox)
    with hooked(client, auth, own_error=False) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        sandbox.inject(Fault("status", "api", status=401, times=-1))
        for _ in range(30):
            with pytest.raises(client.error):
                send("GET", api_url(AxiaAuth, sandbox))
            clock.advance(0.1)
    assert sandbox.count("token") <= 5


@pytest.mark.parametrize("own_error", [False, True], ids=["raise_for_status", "own exception"])
@pytest.mark.parametrize("status", [400, 401, 429, 503])
@each_httpx
def test_a_hook_that_raises_at_the_token_endpoints_answer_is_no_hammer(
    client: Client, status: int, own_error: bool, clock: FakeClock
) -> None:
    """A hook raises for what the token endpoint answers: callers get the typed error, from the cache in the pause."""
    errors = []
    with RawGateway(on_token=lambda _: http(status, b"{}", {"Retry-After": "120"})) as gateway:
        auth = AxiaAuth(f"hook-{next(_numbers)}", SECRET, base_url=gateway.url, cache=MemoryTokenCache())
        with hooked(client, auth, own_error=own_error) as send:
            for _ in range(10):
                with pytest.raises(TokenEndpointError) as caught:
                    send("GET", f"{gateway.url}/v1/accounts")
                errors.append(caught.value)
        assert (gateway.count("token"), gateway.count("api")) == (1, 0)
    assert errors[0].status_code == status
    assert {type(error) for error in errors} == {type(errors[0])}


@each_httpx
def test_a_hook_that_raises_during_a_renewal_pauses_it(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """Where a hook raises for the answer to a renewal, one call fails; those after it get the valid token."""
    auth, url = make(NTXPayAuth, sandbox), api_url(NTXPayAuth, sandbox)
    with hooked(client, auth, own_error=False) as send:
        send("GET", url)
        clock.advance(3310)
        sandbox.inject(Fault("status", "token", status=503, times=-1))
        with pytest.raises(TokenEndpointError):
            send("GET", url)
        for _ in range(5):
            assert send("GET", url).status == 200
    assert sandbox.count("token") == 2


# -- redirects inside the allowed origins


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_to_an_allowed_origin_arrives_with_the_token(
    client: Client, status: int, gateway: RawGateway, other: RawGateway
) -> None:
    """A redirect from `base_url` to one of `allowed_origins` ends in the API's answer, with one token request."""
    gateway.on_api = lambda exchange: http(status, headers={"Location": other.url + "/moved"})
    other.valid = gateway.valid
    auth = raw_auth(gateway, f"allowed-{status}-{client.name}", allowed_origins=[other.url])
    with client.open(auth, follow_redirects=True) as send:
        answer = send("GET", gateway.url + "/a")
    assert (answer.status, answer.content) == (200, b"ok")
    assert gateway.count("token") == 1
    assert other.count("api") <= 2
    assert [e.target for e in other.api] == ["/moved"] * other.count("api")
    assert other.api[-1].token == "token-1"


def test_a_redirect_to_an_allowed_origin_that_always_rejects_ends(
    client: Client, gateway: RawGateway, other: RawGateway
) -> None:
    """Where the redirect target rejects the token as well, the caller gets that 401, after one replay."""
    gateway.on_api = lambda exchange: http(302, headers={"Location": other.url + "/moved"})
    auth = raw_auth(gateway, f"always-{client.name}", allowed_origins=[other.url])
    with client.open(auth, follow_redirects=True) as send:
        assert send("GET", gateway.url + "/a").status == 401
    assert other.count("api") <= 3


def test_a_redirect_to_a_foreign_origin_arrives_without_the_token(
    client: Client, gateway: RawGateway, other: RawGateway
) -> None:
    """An origin that is not allowed never sees the token, and its 401 is the answer."""
    gateway.on_api = lambda exchange: http(302, headers={"Location": other.url + "/moved"})
    auth = raw_auth(gateway, f"foreign-{client.name}")
    with client.open(auth, follow_redirects=True) as send:
        assert send("GET", gateway.url + "/a").status == 401
    assert [e.headers.get("authorization") for e in other.api] == [None]
    assert gateway.count("token") == 1


def test_a_redirect_chain_through_a_foreign_origin_ends_with_the_token(
    client: Client, gateway: RawGateway, other: RawGateway
) -> None:
    """A redirect out of the allowed origins and back again: only the foreign one is spared the token."""
    gateway.on_api = lambda exchange: (
        gateway.check(exchange) if exchange.path == "/back" else http(302, headers={"Location": other.url + "/through"})
    )
    other.on_api = lambda exchange: http(302, headers={"Location": gateway.url + "/back"})
    auth = raw_auth(gateway, f"chain-{client.name}")
    with client.open(auth, follow_redirects=True) as send:
        assert send("GET", gateway.url + "/a").status == 200
    assert {e.headers.get("authorization") for e in other.api} == {None}
    assert gateway.count("token") == 1


def test_netrc_and_a_redirect_on_one_host(gateway: RawGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Requests puts a `.netrc` entry in place of the token on a redirect: one replay with the token heals it."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password something\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "*")
    gateway.on_api = lambda exchange: (
        gateway.check(exchange) if exchange.path == "/b" else http(302, headers={"Location": "/b"})
    )
    with requests.Session() as session:
        session.auth = raw_auth(gateway, "netrc")
        response = session.get(gateway.url + "/a", timeout=5)
    assert response.status_code == 200
    assert gateway.count("token") == 1
    assert gateway.api[-1].token == "token-1"
    assert not [e for e in gateway.tokens if "someone" in str(e.headers)]


# -- connections of the private session


@pytest.mark.parametrize("how", ["get_token", "aget_token", "requests", "background"])
def test_each_token_request_of_the_private_session_has_a_new_connection(
    how: str, clock: FakeClock, gateway: RawGateway
) -> None:
    """A connection that idled for most of an hour is not used again for the next token request."""
    auth = raw_auth(gateway, f"idle-{how}", background_renewal=how == "background")
    for number in (1, 2, 3):
        if how == "aget_token":
            anyio.run(auth.aget_token)
        elif how == "requests":
            requests.get(gateway.url + "/a", auth=auth, timeout=5)
        else:
            auth.get_token()
        if how == "background":
            until(lambda number=number: gateway.count("token") >= number)
        clock.advance(3310)
    connections = [e.connection for e in gateway.tokens]
    assert len(set(connections)) == len(connections) == 3


def test_the_private_session_leaves_no_connection_open(gateway: RawGateway) -> None:
    """After a token request its connection is closed: the gateway sees the end of it."""
    ended: list[bytes] = []

    def issue_and_watch(exchange: Exchange) -> None:
        exchange.send(gateway.issue(exchange))
        exchange.socket.settimeout(10)
        try:
            ended.append(exchange.socket.recv(1))
        except OSError as error:
            ended.append(repr(error).encode())

    gateway.on_token = issue_and_watch
    auth = raw_auth(gateway, "closed")
    assert auth.get_token().access_token
    until(lambda: ended)
    assert ended in ([b""], [b"ConnectionResetError(104, 'Connection reset by peer')"])


# -- proxies of the environment


@pytest.mark.parametrize("how", ["get_token", "aget_token", "requests", "background", "introspect"])
def test_a_loopback_base_url_goes_through_no_proxy_of_the_environment(
    how: str, clock: FakeClock, gateway: RawGateway, other: RawGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HTTP_PROXY set, a plain http request that the package sends to loopback goes there directly."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url)
    other.on_api = gateway.on_api
    other.valid = gateway.valid
    auth = raw_auth(gateway, f"proxy-{how}", background_renewal=how == "background")
    if how == "aget_token":
        anyio.run(auth.aget_token)
    elif how == "requests":
        requests.get(gateway.url + "/a", auth=auth, timeout=5)
    elif how == "introspect":
        gateway.on_api = lambda exchange: http(200, b'{"active": true}', {"Content-Type": "application/json"})
        assert auth.introspect("t0ken").active
    else:
        auth.get_token()
    if how == "background":
        clock.advance(3310)
        auth.get_token()
        until(lambda: gateway.count("token") + other.count("token") >= 2)
    assert other.count("token") == 0
    assert not [e for e in other.exchanges if "Basic" in e.headers.get("authorization", "")]
    assert gateway.count("token") + (how == "introspect") >= 1


# -- cookies of a 401


@pytest.mark.parametrize("own", [{}, {"session": "s1"}, {"session": "s1", "lb": "old"}], ids=["none", "one", "same"])
def test_cookies_of_a_401_go_with_the_replay(own: dict[str, str], gateway: RawGateway) -> None:
    """A load balancer's cookie that the 401 sets reaches the replay, beside the session's own cookies."""

    def sticky(exchange: Exchange) -> bytes:
        if exchange.token in gateway.valid:
            return http(200, b"ok")
        return http(401, b"no", {"Set-Cookie": "lb=node-2; Path=/"})

    gateway.on_api = sticky
    with requests.Session() as session:
        session.trust_env = False
        session.auth = raw_auth(gateway, f"cookies-{len(own)}")
        assert session.get(gateway.url + "/a", timeout=5).status_code == 200
        gateway.valid.clear()
        for name, value in own.items():
            session.cookies.set(name, value, domain="127.0.0.1", path="/")
        response = session.get(gateway.url + "/a", timeout=5)
        assert response.status_code == 200
        assert session.cookies.get("lb") == "node-2"
    sent = dict(pair.split("=") for pair in gateway.api[-1].headers["cookie"].split("; "))
    assert sent == own | {"lb": "node-2"}


def test_cookies_of_a_401_go_with_the_replay_of_a_call_with_cookies(gateway: RawGateway) -> None:
    """The same for cookies that are passed with the call."""
    gateway.on_api = lambda exchange: (
        http(200, b"ok") if exchange.token in gateway.valid else http(401, b"", {"Set-Cookie": "lb=node-2"})
    )
    auth = raw_auth(gateway, "call-cookies")
    auth.get_token()
    gateway.valid.clear()
    response = requests.get(gateway.url + "/a", auth=auth, cookies={"mine": "1"}, timeout=5)
    assert response.status_code == 200
    assert sorted(gateway.api[-1].headers["cookie"].split("; ")) == ["lb=node-2", "mine=1"]


def test_a_cookie_that_the_401_deletes_is_not_sent_again(gateway: RawGateway) -> None:
    """A 401 that ends a cookie, as the end of a session, is obeyed by the replay."""
    gateway.on_api = lambda exchange: (
        http(200, b"ok")
        if exchange.token in gateway.valid
        else http(401, b"", {"Set-Cookie": "session=; Path=/; Max-Age=0"})
    )
    with requests.Session() as session:
        session.trust_env = False
        session.auth = raw_auth(gateway, "deleted")
        session.get(gateway.url + "/a", timeout=5)
        gateway.valid.clear()
        session.cookies.set("session", "s1", domain="127.0.0.1", path="/")
        session.cookies.set("keep", "k", domain="127.0.0.1", path="/")
        assert session.get(gateway.url + "/a", timeout=5).status_code == 200
    assert gateway.api[-1].headers["cookie"] == "keep=k"


def test_other_cookies_of_a_foreign_path_stay_away(gateway: RawGateway) -> None:
    """The replay's cookies follow the jar's rules: one for another path is not sent."""
    gateway.on_api = lambda exchange: (
        http(200, b"ok") if exchange.token in gateway.valid else http(401, b"", {"Set-Cookie": "x=1; Path=/elsewhere"})
    )
    with requests.Session() as session:
        session.trust_env = False
        session.cookies.set("keep", "k", domain="127.0.0.1", path="/")
        session.auth = raw_auth(gateway, "foreign-path")
        session.get(gateway.url + "/a", timeout=5)
        gateway.valid.clear()
        assert session.get(gateway.url + "/a", timeout=5).status_code == 200
    assert gateway.api[-1].headers["cookie"] == "keep=k"
