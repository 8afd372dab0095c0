"""`session=`: what sends the token requests is a twin of it, with its own ways and without its side effects."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import requests
from conftest import CLIENTS, SECRET, Client, FakeClock
from raw_gateway import RawGateway, http, token_body, until
from requests.adapters import HTTPAdapter

from baas_auth_plugins import AxiaAuth, MemoryTokenCache, TokenEndpointError

pytestmark = pytest.mark.timeout(60)

SOME = pytest.mark.parametrize(
    "client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name
)


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    with RawGateway() as gateway:
        yield gateway


@pytest.fixture
def proxy(gateway: RawGateway) -> Iterator[RawGateway]:
    """A forward proxy that answers as the gateway behind it."""
    with RawGateway() as proxy:
        proxy.on_token = lambda exchange: (gateway.on_token)(exchange)  # noqa: PLW0108  # it is replaced later
        yield proxy


def auth_for(gateway: RawGateway, name: str, session: requests.Session, **parameters: Any) -> AxiaAuth:
    options: dict[str, Any] = {"base_url": gateway.url, "cache": MemoryTokenCache(), "timeout": 5}
    return AxiaAuth(f"twin-{name}", SECRET, session=session, **(options | parameters))


class PACLikeSession(requests.Session):
    """Chooses the proxy in `request()`, as pypac's PACSession does."""

    def __init__(self, proxy: str) -> None:
        super().__init__()
        self.trust_env = False
        self.chosen = proxy
        self.asked: list[str] = []

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        self.asked.append(url)
        kwargs["proxies"] = {"http": self.chosen}
        return super().request(method, url, *args, **kwargs)


class CompanySession(requests.Session):
    """Chooses the proxy in `send()`, as many a company's session does."""

    def __init__(self, proxy: str) -> None:
        super().__init__()
        self.trust_env = False
        self.chosen = proxy
        self.asked: list[str] = []

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        self.asked.append(str(request.url))
        kwargs["proxies"] = {"http": self.chosen}
        return super().send(request, **kwargs)


class BothSession(PACLikeSession):
    """Overrides both, and counts on attributes that its own constructor set."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        request.headers["X-Company"] = self.chosen[-4:]
        return super().send(request, **kwargs)


KINDS = pytest.mark.parametrize("kind", [PACLikeSession, CompanySession, BothSession], ids=lambda kind: kind.__name__)


@KINDS
@SOME
def test_a_session_that_chooses_the_proxy_does_so_for_token_requests(
    kind: Any, client: Client, gateway: RawGateway, proxy: RawGateway
) -> None:
    """A session's own `request()` and `send()` carry the token requests of each client."""
    session = kind(proxy.url)
    auth = auth_for(gateway, f"{kind.__name__}-{client.name}", session)
    assert client.call(auth, "GET", gateway.url + "/a").status == 200
    assert [e.target.startswith("http://") for e in proxy.tokens] == [True]
    assert gateway.count("token") == 0


@KINDS
@pytest.mark.parametrize("how", ["get_token", "aget_token", "background"])
def test_so_it_does_for_the_other_ways(
    kind: Any, how: str, clock: FakeClock, gateway: RawGateway, proxy: RawGateway
) -> None:
    """`get_token`, `aget_token` and background renewal go the same way."""
    session = kind(proxy.url)
    auth = auth_for(gateway, f"{kind.__name__}-{how}", session, background_renewal=how == "background")
    if how == "aget_token":
        anyio.run(auth.aget_token)
    else:
        auth.get_token()
    if how == "background":
        clock.advance(3310)
        auth.get_token()
        until(lambda: proxy.count("token") == 2)
    assert gateway.count("token") == 0
    assert proxy.count("token") == 1 + (how == "background")


@KINDS
def test_the_session_is_never_changed(kind: Any, gateway: RawGateway, proxy: RawGateway) -> None:
    """After token requests the session has the same attributes, headers, cookies, adapters and auth as before."""
    session = kind(proxy.url)
    session.headers["X-Mine"] = "1"
    session.cookies.set("mine", "1")
    session.auth = ("user", "password")
    session.max_redirects = 7
    adapters = dict(session.adapters)
    before = {k: copy.copy(v) for k, v in vars(session).items() if k not in ("asked", "adapters", "cookies")}
    gateway.on_token = lambda exchange: http(200, token_body("abc"), {"Set-Cookie": "gateway=1; Path=/"})
    auth = auth_for(gateway, f"unchanged-{kind.__name__}", session)
    auth.get_token()
    auth.invalidate()
    auth.get_token()
    after = {k: v for k, v in vars(session).items() if k not in ("asked", "adapters", "cookies")}
    assert after == before
    assert dict(session.adapters) == adapters
    assert dict(session.cookies) == {"mine": "1"}


def test_cookies_of_the_session_stay_away_from_token_requests(gateway: RawGateway) -> None:
    """The session's cookies, auth and `.netrc` are not sent with a token request; the gateway's cookies stay with the twin."""
    gateway.on_token = lambda exchange: http(
        200, token_body(f"t-{gateway.count('token')}"), {"Set-Cookie": "gateway=1; Path=/"}
    )
    with requests.Session() as session:
        session.trust_env = False
        session.cookies.set("mine", "1", domain="127.0.0.1", path="/")
        session.auth = ("user", "password")
        auth = auth_for(gateway, "cookies", session)
        auth.get_token()
        assert dict(session.cookies) == {"mine": "1"}
    (request,) = gateway.tokens
    assert "mine" not in request.headers.get("cookie", "")
    assert request.headers["authorization"] != requests.auth._basic_auth_str("user", "password")


def test_a_closed_session_is_not_closed_by_us(gateway: RawGateway) -> None:
    """The session's adapters stay open: it can be used after the auth object is gone."""

    class Noted(HTTPAdapter):
        closed = 0

        def close(self) -> None:
            type(self).closed += 1
            super().close()

    session = requests.Session()
    session.mount("http://", Noted())
    auth = auth_for(gateway, "open", session)
    auth.get_token()
    del auth
    import gc

    gc.collect()
    assert Noted.closed == 0
    session.close()


def test_an_adapter_of_the_session_carries_token_requests(gateway: RawGateway) -> None:
    """An adapter that was mounted, even after the auth object was made, sends them, with verify, cert and proxies."""
    seen: list[dict[str, Any]] = []

    class Noted(HTTPAdapter):
        def send(self, request: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            seen.append({"url": request.url} | kwargs)
            kwargs["verify"], kwargs["cert"] = True, None
            return super().send(request, **kwargs)

    with requests.Session() as session:
        session.trust_env = False
        auth = auth_for(gateway, "adapter", session)
        session.mount("http://", Noted())
        session.verify = "/somewhere/ca.pem"
        session.cert = "/somewhere/client.pem"
        auth.get_token()
    (call,) = seen
    assert (call["verify"], call["cert"]) == ("/somewhere/ca.pem", "/somewhere/client.pem")
    assert call["timeout"]


@pytest.mark.parametrize("status", [302, 307])
@KINDS
def test_no_redirect_is_followed(kind: Any, status: int, gateway: RawGateway, proxy: RawGateway) -> None:
    """A session that follows redirects does not for a token request."""
    gateway.on_token = lambda exchange: http(status, headers={"Location": proxy.url + "/elsewhere"})
    with pytest.raises(TokenEndpointError) as caught:
        auth_for(gateway, f"redirect-{status}-{kind.__name__}", kind(proxy.url)).get_token()
    assert caught.value.status_code == status
    assert not [e for e in proxy.exchanges if e.path.endswith("/elsewhere")]


def test_hooks_of_the_session_that_raise_are_no_answer(clock: FakeClock, gateway: RawGateway) -> None:
    """A session whose response hook raises for a status does not hide what the token endpoint said."""
    gateway.on_token = lambda exchange: http(400, b'{"error": "invalid_client"}')
    with requests.Session() as session:
        session.trust_env = False
        session.hooks["response"].append(lambda response, **_: response.raise_for_status())
        with pytest.raises(TokenEndpointError) as caught:
            auth_for(gateway, "hooks", session).get_token()
    assert (caught.value.status_code, caught.value.error) == (400, "invalid_client")


@pytest.mark.parametrize("method", ["request", "send"])
@pytest.mark.parametrize(("status", "error"), [(401, "InvalidClientError"), (400, "TokenEndpointError")])
def test_a_session_whose_own_method_raises_for_a_status_hides_no_answer(
    method: str, status: int, error: str, clock: FakeClock, gateway: RawGateway
) -> None:
    """A session whose `request()` or `send()` calls `raise_for_status()`: the answer is read, and no refusal is retried."""

    def checked(session: Any, *args: Any, **kwargs: Any) -> requests.Response:
        response: requests.Response = getattr(requests.Session, method)(session, *args, **kwargs)
        response.raise_for_status()
        return response

    gateway.on_token = lambda exchange: http(status, b'{"message": "No such client"}')
    session = type("Strict", (requests.Session,), {method: checked})()
    with pytest.raises(TokenEndpointError) as caught:
        auth_for(gateway, f"strict-{method}-{status}", session).get_token()
    assert (type(caught.value).__name__, caught.value.status_code) == (error, status)
    assert caught.value.error_description == "No such client"
    assert gateway.count("token") == 1


def test_a_session_that_requires_constructor_arguments_works(gateway: RawGateway) -> None:
    """The twin is not made by calling the class: a constructor with arguments of its own is no obstacle."""

    class Demanding(requests.Session):
        def __init__(self, tenant: str, *, region: str) -> None:
            super().__init__()
            self.trust_env = False
            self.tenant, self.region = tenant, region

        def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
            request.headers["X-Tenant"] = f"{self.tenant}-{self.region}"
            return super().send(request, **kwargs)

    session = Demanding("acme", region="sa-east-1")
    assert auth_for(gateway, "demanding", session).get_token().access_token
    assert gateway.tokens[0].headers["x-tenant"] == "acme-sa-east-1"


def test_a_session_that_raises_is_a_typed_error(clock: FakeClock, gateway: RawGateway) -> None:
    """What a session's own `send()` raises as a network error is an outage, with that cause."""

    class Broken(requests.Session):
        def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
            raise requests.exceptions.ProxyError("the proxy is down")

    with pytest.raises(requests.ConnectionError) as caught:
        auth_for(gateway, "broken", Broken()).get_token()
    assert isinstance(caught.value, TokenEndpointError)
    assert isinstance(caught.value.__cause__, requests.exceptions.ProxyError)


def test_a_session_whose_default_timeout_is_none_is_bounded(gateway: RawGateway) -> None:
    """A token request over a session has `timeout`, whatever the session's own `request()` defaults to."""
    seen: list[Any] = []

    class Timeless(requests.Session):
        def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
            seen.append(kwargs.get("timeout"))
            return super().send(request, **kwargs)

    auth_for(gateway, "timeless", Timeless(), timeout=5).get_token()
    assert seen
    assert None not in seen
