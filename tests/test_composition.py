"""`auth_flow`, which other auth classes call to compose with ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from conftest import NO_TLS, Auth, FakeClock, api_url, make, sent_tokens
from raw_gateway import RawGateway

from baas_auth_plugins import AxiaAuth, BS2Auth, InvalidClientError, NTXPayAuth
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

MODULES = pytest.mark.parametrize("module", [httpx, httpx2], ids=lambda module: module.__name__)
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def both(module: ModuleType, inner: Any, *, first_only: bool) -> Any:
    """Return an auth object that adds a header of its own and delegates to another one's `auth_flow`."""

    class Both(module.Auth):
        def auth_flow(self, request: Any) -> Iterator[Any]:
            request.headers["X-Api-Key"] = "k"
            if first_only:  # httpx-auth does so
                next(inner.auth_flow(request))
                yield request
            else:
                yield from inner.auth_flow(request)

    return Both()


@pytest.mark.parametrize("first_only", [False, True], ids=["whole flow", "first yield"])
@MODULES
def test_a_delegating_auth_sends_the_token(module: Any, first_only: bool, auth_class: Auth, sandbox: Sandbox) -> None:
    """An own `Auth` that delegates to `auth_flow` is authenticated, cold and cached, with one token request."""
    auth = make(auth_class, sandbox)
    with module.Client(auth=both(module, auth, first_only=first_only), verify=NO_TLS, trust_env=False) as client:
        for _ in range(3):
            assert client.get(api_url(auth_class, sandbox)).status_code == 200
    assert sent_tokens(sandbox) == [auth.get_token().access_token] * 3
    assert sandbox.count("token") == 1
    assert {r.headers.get("x-api-key") for r in sandbox.requests if r.kind == "api"} == {"k"}


@MODULES
def test_the_first_yield_is_the_authenticated_request(module: Any, sandbox: Sandbox) -> None:
    """`next(auth_flow(request))` is the very request, with the token; no token request is yielded before."""
    auth = make(AxiaAuth, sandbox)
    request = module.Request("GET", api_url(AxiaAuth, sandbox))
    flow = auth.auth_flow(request)
    assert next(flow) is request
    assert request.headers["authorization"] == f"Bearer {auth.get_token().access_token}"
    flow.close()
    assert sandbox.count("token") == 1


@MODULES
def test_sent_a_401_it_replays_once(module: Any, sandbox: Sandbox) -> None:
    """A flow that is sent a 401 yields the request once more, with a new token; then it ends."""
    auth = make(AxiaAuth, sandbox)
    delegating = both(module, auth, first_only=False)
    with module.Client(auth=delegating, verify=NO_TLS, trust_env=False) as client:
        assert client.get(api_url(AxiaAuth, sandbox)).status_code == 200
        sandbox.revoke_all()
        assert client.get(api_url(AxiaAuth, sandbox)).status_code == 200
        sandbox.inject(Fault("status", "api", status=401, times=2))
        assert client.get(api_url(AxiaAuth, sandbox)).status_code == 401
    assert [r.status for r in sandbox.requests if r.kind == "api"] == [200, 401, 200, 401, 401]


@MODULES
def test_a_flow_that_is_stepped_by_hand_ends(module: Any, sandbox: Sandbox) -> None:
    """Sent a 200 the flow ends; sent two 401s it ends after the replay."""
    auth = make(NTXPayAuth, sandbox)
    url = api_url(NTXPayAuth, sandbox)
    for statuses in ([200], [401, 200], [401, 401], [403]):
        flow = auth.auth_flow(module.Request("GET", url))
        request = next(flow)
        for number, status in enumerate(statuses):
            response = module.Response(status, request=request)
            if number + 1 < len(statuses):
                request = flow.send(response)
                assert request.headers["authorization"].startswith("Bearer ")
            else:
                with pytest.raises(StopIteration):
                    flow.send(response)


@MODULES
def test_a_foreign_origin_gets_no_token(module: Any, sandbox: Sandbox) -> None:
    """The flow of a request to another origin yields it as it is, without a token request."""
    request = module.Request("GET", "https://other.example/a")
    flow = make(AxiaAuth, sandbox).auth_flow(request)
    assert next(flow) is request
    assert "authorization" not in request.headers
    with pytest.raises(StopIteration):
        flow.send(module.Response(401, request=request))
    assert sandbox.requests == []


@MODULES
def test_errors_come_at_the_first_yield(module: Any, sandbox: Sandbox) -> None:
    """What is wrong with the credentials is raised where the flow is started."""
    auth = make(AxiaAuth, sandbox, client_secret="wrong-secret")
    with pytest.raises(InvalidClientError):
        next(auth.auth_flow(module.Request("GET", api_url(AxiaAuth, sandbox))))
    with module.Client(auth=both(module, auth, first_only=True), verify=NO_TLS, trust_env=False) as client:
        with pytest.raises(module.HTTPError):
            client.get(api_url(AxiaAuth, sandbox))
    assert sandbox.count("api") == 0


@pytest.mark.parametrize("cached", [False, True], ids=["cold", "cached"])
@BACKENDS
@MODULES
def test_in_an_event_loop_it_says_what_to_call(module: Any, backend: str, cached: bool, sandbox: Sandbox) -> None:
    """In a running event loop `auth_flow` always raises a TypeError that names `async_auth_flow`, and requests no token."""
    auth = make(AxiaAuth, sandbox)
    if cached:
        auth.get_token()
    before = sandbox.count("token")

    async def main() -> None:
        request = module.Request("GET", api_url(AxiaAuth, sandbox))
        with pytest.raises(TypeError, match="async_auth_flow"):
            next(auth.auth_flow(request))
        assert "authorization" not in request.headers

    anyio.run(main, backend=backend)
    assert sandbox.count("token") == before


@BACKENDS
@MODULES
def test_an_async_client_with_a_delegating_auth_says_so(module: Any, backend: str, sandbox: Sandbox) -> None:
    """An AsyncClient whose auth delegates to `auth_flow` raises that TypeError; nothing is sent without the token."""
    delegating = both(module, make(AxiaAuth, sandbox), first_only=True)

    async def main() -> None:
        async with module.AsyncClient(auth=delegating, verify=NO_TLS, trust_env=False) as client:
            with pytest.raises(TypeError, match="async_auth_flow"):
                await client.get(api_url(AxiaAuth, sandbox))

    anyio.run(main, backend=backend)
    assert sandbox.requests == []


@BACKENDS
@MODULES
def test_async_auth_flow_can_be_delegated_to(module: Any, backend: str, sandbox: Sandbox) -> None:
    """What the TypeError names works: an `async_auth_flow` that passes on ours, step by step."""
    auth = make(BS2Auth, sandbox)

    class Both(module.Auth):
        async def async_auth_flow(self, request: Any) -> Any:
            request.headers["X-Api-Key"] = "k"
            flow = auth.async_auth_flow(request)
            step = await flow.__anext__()
            while True:
                response = yield step
                try:
                    step = await flow.asend(response)
                except StopAsyncIteration:
                    return

    async def main() -> None:
        async with module.AsyncClient(auth=Both(), verify=NO_TLS, trust_env=False) as client:
            assert (await client.get(api_url(BS2Auth, sandbox))).status_code == 200
            sandbox.revoke_all()
            assert (await client.get(api_url(BS2Auth, sandbox))).status_code == 200

    anyio.run(main, backend=backend)
    assert sandbox.count("token") == 2
    assert {r.headers.get("x-api-key") for r in sandbox.requests if r.kind == "api"} == {"k"}


def test_a_thread_beside_an_event_loop_may_use_it(sandbox: Sandbox) -> None:
    """The refusal is about the running loop of this thread: a worker thread may step the flow."""
    auth = make(AxiaAuth, sandbox)

    def step() -> str:
        request = next(auth.auth_flow(httpx.Request("GET", api_url(AxiaAuth, sandbox))))
        return str(request.headers["authorization"])

    async def main() -> str:
        return await asyncio.to_thread(step)

    assert asyncio.run(main()).startswith("Bearer ")


def test_flow_goes_over_the_session(sandbox: Sandbox) -> None:
    """With `session=` the token request of `auth_flow` goes over it."""
    import requests

    with requests.Session() as session:
        session.trust_env = False
        session.headers["X-Session"] = "mine"
        auth = make(AxiaAuth, sandbox, session=session)
        next(auth.auth_flow(httpx.Request("GET", api_url(AxiaAuth, sandbox))))
    assert sandbox.count("token") == 1


def test_a_renewal_inside_a_delegated_flow_serves_the_old_token(clock: FakeClock) -> None:
    """A valid token is served if its renewal fails, over a network error, too: `auth_flow` sends by itself."""
    with RawGateway() as gateway:
        auth = AxiaAuth("composition", "your-client-secret", base_url=gateway.url, timeout=2)
        auth.get_token()
        clock.advance(3310)
        gateway.on_token = lambda exchange: exchange.close()  # type: ignore[func-returns-value]
        with httpx.Client(auth=both(httpx, auth, first_only=False), trust_env=False) as client:
            assert client.get(gateway.url + "/a").status_code == 200
        assert gateway.count("token") == 2
