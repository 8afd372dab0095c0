"""httpx-retries, httpx-auth, respx and pytest-httpx."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from conftest import CLIENTS, NO_TLS, SECRET, Auth, Client, api_url, make

from baas_auth_plugins import AvistaAuth, AxiaAuth, BS2Auth, MemoryTokenCache, NTXPayAuth
from baas_auth_plugins.sandbox import Fault, Sandbox

httpx_retries = pytest.importorskip("httpx_retries")
httpx_auth = pytest.importorskip("httpx_auth")
respx = pytest.importorskip("respx")
pytest.importorskip("pytest_httpx")

pytestmark = pytest.mark.timeout(60)

HTTPX = [client for client in CLIENTS if client.module is httpx]
EACH = pytest.mark.parametrize("client", HTTPX, ids=lambda client: client.name)
HOSTS = {"axia": "https://baas-gtw.axiadigitalsolutions.com", "avista": "https://api.avista.global"}


# -- httpx-retries, which sleeps in asyncio only

NO_TRIO = pytest.mark.parametrize("client", HTTPX[:2], ids=lambda client: client.name)


def retrying(client: Client) -> Any:
    transport = httpx.AsyncHTTPTransport(verify=NO_TLS) if client.backend else httpx.HTTPTransport(verify=NO_TLS)
    retry = httpx_retries.Retry(total=3, allowed_methods=["GET", "POST"], status_forcelist=[503], backoff_factor=0)
    return httpx_retries.RetryTransport(transport=transport, retry=retry)


@pytest.mark.parametrize("fault", [Fault("status", status=503, times=2), Fault("drop", times=2)], ids=["503", "drop"])
@NO_TRIO
def test_httpx_retries_rides_out_an_outage(client: Client, fault: Fault, auth_class: Auth, sandbox: Sandbox) -> None:
    """A RetryTransport that may retry POST sends the token request again, whole, and the call succeeds."""
    sandbox.inject(fault)
    auth = make(auth_class, sandbox)
    with client.open(auth, transport=retrying(client)) as send:
        assert send("GET", api_url(auth_class, sandbox)).status == 200
    bodies = {record.body for record in sandbox.requests if record.kind == "token"}
    assert len(bodies) == 1
    assert sandbox.count("token") == 3


@NO_TRIO
def test_httpx_retries_and_a_revocation(client: Client, sandbox: Sandbox) -> None:
    """So does the token request after a 401."""
    auth = make(AvistaAuth, sandbox)
    with client.open(auth, transport=retrying(client)) as send:
        assert send("GET", api_url(AvistaAuth, sandbox)).status == 200
        sandbox.revoke_all()
        sandbox.inject(Fault("status", status=503))
        assert send("POST", api_url(AvistaAuth, sandbox), content=b"payment").status == 200


# -- httpx-auth


@pytest.mark.parametrize("sign", ["+", "&"])
def test_httpx_auth_composes_with_ours(sign: str, auth_class: Auth, sandbox: Sandbox) -> None:
    """`HeaderApiKey("k") + AxiaAuth(...)` sends both the key and the token, cold and cached."""
    auth, key = make(auth_class, sandbox), httpx_auth.HeaderApiKey("k")
    both = key + auth if sign == "+" else key & auth
    with httpx.Client(auth=both, verify=NO_TLS, trust_env=False) as client:
        for _ in range(2):
            assert client.get(api_url(auth_class, sandbox)).status_code == 200
    assert {r.headers.get("x-api-key") for r in sandbox.requests if r.kind == "api"} == {"k"}
    assert sandbox.count("token") == 1


def test_httpx_auth_in_an_event_loop_says_what_to_do(sandbox: Sandbox) -> None:
    """In an AsyncClient the composition is a TypeError that names `async_auth_flow`; nothing is sent."""
    both = httpx_auth.HeaderApiKey("k") + make(AxiaAuth, sandbox)

    async def main() -> None:
        async with httpx.AsyncClient(auth=both, verify=NO_TLS, trust_env=False) as client:
            await client.get(api_url(AxiaAuth, sandbox))

    with pytest.raises(TypeError, match="async_auth_flow"):
        asyncio.run(main())
    assert sandbox.requests == []


# -- respx and pytest-httpx


def auth_for(auth_class: Auth, name: str) -> Any:
    return auth_class(f"mocked-{name}", SECRET, cache=MemoryTokenCache())


def token_json(token: str) -> dict[str, Any]:
    return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}


@pytest.mark.parametrize("auth_class", [AxiaAuth, AvistaAuth], ids=lambda c: c.provider.name)
@EACH
def test_respx_mocks_token_and_api(client: Client, auth_class: Auth) -> None:
    """A respx router stands in for the gateway: a cold call, a 401 and its replay."""
    host = HOSTS[auth_class.provider.name]
    with respx.mock(base_url=host, assert_all_called=True) as router:
        token = router.post(auth_class.provider.token_endpoint).mock(
            side_effect=[httpx.Response(200, json=token_json("one")), httpx.Response(200, json=token_json("two"))]
        )
        api = router.get("/a").mock(side_effect=[httpx.Response(s) for s in (200, 401, 200)])
        with client.open(auth_for(auth_class, f"respx-{client.name}-{auth_class.provider.name}")) as send:
            assert [send("GET", host + "/a").status for _ in range(2)] == [200, 200]
        assert token.call_count == 2
        assert [call.request.headers["authorization"] for call in api.calls] == [
            "Bearer one",
            "Bearer one",
            "Bearer two",
        ]


@EACH
def test_respx_sees_the_token_requests_body(client: Client) -> None:
    """A respx pattern on the body matches: the request that is recorded can be inspected while it is answered."""
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content if hasattr(request, "_content") else b"stream")
        return httpx.Response(200, json=token_json("one"))

    with respx.mock(base_url=HOSTS["avista"]) as router:
        router.post(AvistaAuth.provider.token_endpoint).mock(side_effect=answer)
        router.get("/a").respond(200)
        assert client.call(auth_for(AvistaAuth, f"body-{client.name}"), "GET", HOSTS["avista"] + "/a").status == 200
    assert len(seen) == 1


@pytest.mark.parametrize("auth_class", [AxiaAuth, AvistaAuth], ids=lambda c: c.provider.name)
@EACH
def test_pytest_httpx_mocks_token_and_api(client: Client, auth_class: Auth, httpx_mock: Any) -> None:
    """pytest-httpx stands in for the gateway as well."""
    host = HOSTS[auth_class.provider.name]
    url = host + auth_class.provider.token_endpoint
    httpx_mock.add_response(method="POST", url=url, json=token_json("one"))
    httpx_mock.add_response(method="GET", url=host + "/a", status_code=401)
    httpx_mock.add_response(method="POST", url=url, json=token_json("two"))
    httpx_mock.add_response(method="GET", url=host + "/a", json={"ok": True})
    auth = auth_for(auth_class, f"pytest-httpx-{client.name}-{auth_class.provider.name}")
    assert client.call(auth, "GET", host + "/a").status == 200
    assert [r.method for r in httpx_mock.get_requests()] == ["POST", "GET", "POST", "GET"]
    assert httpx_mock.get_requests()[-1].headers["authorization"] == "Bearer two"


@EACH
def test_pytest_httpx_raises_its_own_timeout(client: Client, httpx_mock: Any) -> None:
    """A mocked network error of the token request reaches the caller as it is."""
    httpx_mock.add_exception(httpx.ReadTimeout("mocked"))
    with pytest.raises(httpx.ReadTimeout, match="mocked"):
        client.call(auth_for(AxiaAuth, f"timeout-{client.name}"), "GET", HOSTS["axia"] + "/a")


@pytest.mark.parametrize("auth_class", [NTXPayAuth, BS2Auth], ids=lambda c: c.provider.name)
def test_a_mock_transport_is_enough(auth_class: Auth) -> None:
    """The MockTransport of httpx works without any of these tools."""
    host = auth_class.provider.environments["production"]
    scope = {"scope": "cob.read"} if auth_class is BS2Auth else {}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == auth_class.provider.token_endpoint:
            return httpx.Response(200, json=token_json("one"))
        return httpx.Response(200 if request.headers.get("authorization") == "Bearer one" else 401)

    auth = auth_class(f"transport-{auth_class.provider.name}", SECRET, cache=MemoryTokenCache(), **scope)
    with httpx.Client(auth=auth, transport=httpx.MockTransport(handler)) as client:
        assert client.get(host + "/a").status_code == 200
