"""`testing.stub_token`: one line stands for a provider's token endpoint in responses, requests-mock, respx, pytest-httpx."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import pytest_httpx
import requests
import requests_mock
import responses
import respx
from conftest import SECRET, Auth

from baas_auth_plugins import (
    AxiaAuth,
    BS2Auth,
    ConfigurationError,
    InvalidClientError,
    MemoryTokenCache,
    NTXPayAuth,
    OAuth2ClientCredentialsAuth,
    Provider,
    RateLimitError,
    TokenEndpointUnavailableError,
    testing,
)
from baas_auth_plugins.sandbox import Sandbox

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("baas_auth_reset")]

API = "https://{}/v1/accounts"


class Tool:
    """One tool, with which a test mocks HTTP for its client."""

    def __init__(
        self, mock: Any, api: Callable[[str], object], get: Callable[..., Any], sent: Callable[[], Any]
    ) -> None:
        self.mock, self.api, self.get, self.sent = mock, api, get, sent


@contextmanager
def with_responses() -> Iterator[Tool]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield Tool(mock, lambda url: mock.get(url, json={}), requests.get, lambda: mock.calls[-1].request)


@contextmanager
def with_requests_mock() -> Iterator[Tool]:
    with requests_mock.Mocker() as mock:
        yield Tool(mock, lambda url: mock.get(url, json={}), requests.get, lambda: mock.request_history[-1])


@contextmanager
def with_respx() -> Iterator[Tool]:
    with respx.mock(assert_all_called=False) as mock:
        yield Tool(mock, lambda url: mock.get(url).respond(json={}), httpx.get, lambda: mock.calls[-1].request)


@pytest.fixture(params=["responses", "requests_mock", "respx", "pytest_httpx"])
def tool(request: pytest.FixtureRequest) -> Iterator[Tool]:
    if request.param == "pytest_httpx":
        mock = request.getfixturevalue("httpx_mock")
        yield Tool(
            mock,
            lambda url: mock.add_response(url=url, json={}, is_optional=True),
            httpx.get,
            lambda: mock.get_requests()[-1],
        )
    else:
        with {"responses": with_responses, "requests_mock": with_requests_mock, "respx": with_respx}[
            request.param
        ]() as tool:
            yield tool


@pytest.fixture
def assert_all_responses_were_requested() -> bool:
    return False


def auth_for(auth_class: Auth, **options: Any) -> OAuth2ClientCredentialsAuth:
    if auth_class.provider.scope == "required":
        options = {"scope": "cob.read pix.read"} | options
    return auth_class("your-client-id", SECRET, **options)


def host_of(auth_class: Auth) -> str:
    return auth_class.provider.environments["production"]


def test_one_line_and_the_call_is_authenticated(tool: Tool, auth_class: Auth) -> None:
    """The API request carries the token that the stub issued; the stub counts one token request for two calls."""
    stub = testing.stub_token(tool.mock, auth_class)
    auth, url = auth_for(auth_class), host_of(auth_class) + "/v1/accounts"
    for _ in range(2):
        tool.api(url)
        assert tool.get(url, auth=auth).status_code == 200
    assert tool.sent().headers["Authorization"] == f"Bearer {stub.access_tokens[0]}"
    assert (stub.requests, len(stub.access_tokens)) == (1, 1)


def test_the_answer_is_the_gateways(tool: Tool, auth_class: Auth) -> None:
    """The stub's answer has the names, the scope and the lifetime that the sandbox of that gateway answers with."""
    stub = testing.stub_token(tool.mock, auth_class)
    provider = auth_class.provider
    shape: dict[str, Any] = {"data": {"scope": "cob.read pix.read"}} if provider.scope == "required" else {"json": {}}
    post = requests.post if tool.get is requests.get else httpx.post
    answer = post(stub.url, **shape)
    with Sandbox() as sandbox:
        pass
    assert answer.headers["Content-Type"] == "application/json"
    content = answer.json()
    assert content.pop("access_token") == stub.access_tokens[0]
    assert ("issued_at" in content) == (auth_class is AxiaAuth)
    content.pop("issued_at", None)
    assert content == {
        "token_type": "Bearer",
        "expires_in": provider.default_expires_in,
        "scope": {
            "axia": "accounts:read accounts:write pix:send webhooks:manage",
            "bs2": "cob.read pix.read",
        }.get(provider.name, "pix:read pix:write balance:read"),
    }
    assert sandbox.requests == []


def test_lifetime_scope_and_base_url(tool: Tool, auth_class: Auth) -> None:
    """`expires_in`, `scope` and `base_url` are the token's and the endpoint's."""
    stub = testing.stub_token(tool.mock, auth_class, base_url="https://gateway.test", expires_in=120, scope="one two")
    auth = auth_for(auth_class, base_url="https://gateway.test")
    tool.api("https://gateway.test/a")
    tool.get("https://gateway.test/a", auth=auth)
    assert stub.url == "https://gateway.test" + auth_class.provider.token_endpoint
    token = cached(auth)
    assert (token.expires_in, token.scopes) == (120, {"one", "two"})


def cached(auth: OAuth2ClientCredentialsAuth) -> Any:
    """Return the token that the calls have left; nothing is sent."""
    return auth.get_token()


def test_another_environment(tool: Tool) -> None:
    """`environment` names the endpoint, as it does for the auth object."""
    stub = testing.stub_token(tool.mock, BS2Auth, environment="homologation")
    url = BS2Auth.provider.environments["homologation"] + "/a"
    tool.api(url)
    tool.get(url, auth=auth_for(BS2Auth, environment="homologation"))
    assert stub.requests == 1


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [(401, InvalidClientError, "E00101"), (429, RateLimitError, "E00102"), (503, TokenEndpointUnavailableError, None)],
)
def test_failures_are_the_gateways(tool: Tool, status: int, error: type[Exception], code: str | None) -> None:
    """`status` gives the typed error with the code of the gateway's page, and no token."""
    stub = testing.stub_token(tool.mock, AxiaAuth, status=status, retry_after=30)
    with pytest.raises(error) as raised:
        tool.get(host_of(AxiaAuth) + "/a", auth=AxiaAuth("your-client-id", SECRET, max_wait=0.01))
    assert raised.value.status_code == status
    assert code in (None, raised.value.error)
    assert (stub.requests, stub.access_tokens) == (1, [])


def test_a_401_is_healed_with_another_token(tool: Tool) -> None:
    """Each answer has a new token, so a replay after a 401 succeeds."""
    stub = testing.stub_token(tool.mock, NTXPayAuth)
    auth, url = auth_for(NTXPayAuth), host_of(NTXPayAuth) + "/a"
    tool.api(url)
    tool.get(url, auth=auth)
    auth.invalidate()
    tool.api(url)
    tool.get(url, auth=auth)
    assert stub.requests == len(set(stub.access_tokens)) == 2


def test_a_declaration_with_names_of_its_own(tool: Tool) -> None:
    """A further gateway can be stubbed, by its class or by its declaration."""
    stub = testing.stub_token(tool.mock, FifthAuth.provider)
    tool.api("https://fifth.test/a")
    assert tool.get("https://fifth.test/a", auth=FifthAuth("your-client-id", SECRET)).status_code == 200
    assert stub.requests == 1


def read_fifth(content: Any) -> Any:
    return {"access_token": content["accessToken"], "token_type": "Bearer", "expires_in": content["expiresIn"]}


class FifthAuth(OAuth2ClientCredentialsAuth):
    provider = Provider(
        name="fifth",
        env_prefix="FIFTH",
        environments={"production": "https://fifth.test"},
        token_endpoint="/oauth/token",
        token_endpoint_auth_method="client_secret_basic",
        default_expires_in=600,
        read_token_response=read_fifth,
    )


# -- the forms of each tool


@responses.activate
def test_the_module_responses() -> None:
    """`responses` itself is accepted, where a test is decorated with `activate`."""
    stub = testing.stub_token(responses, AxiaAuth)
    responses.get(host_of(AxiaAuth) + "/a", json={})
    assert requests.get(host_of(AxiaAuth) + "/a", auth=auth_for(AxiaAuth), timeout=5).status_code == 200
    assert stub.requests == 1


@respx.mock
def test_the_module_respx() -> None:
    """`respx` itself is accepted, where a test is decorated with `mock`."""
    stub = testing.stub_token(respx, AxiaAuth)
    respx.get(host_of(AxiaAuth) + "/a").respond(json={})
    assert httpx.get(host_of(AxiaAuth) + "/a", auth=auth_for(AxiaAuth)).status_code == 200
    assert stub.requests == 1


def test_a_respx_router_of_the_same_base_url() -> None:
    """A router with a `base_url` takes the stub, too."""
    with respx.mock(base_url=host_of(AxiaAuth)) as mock:
        stub = testing.stub_token(mock, AxiaAuth)
        mock.get("/a").respond(json={})
        assert httpx.get(host_of(AxiaAuth) + "/a", auth=auth_for(AxiaAuth)).status_code == 200
    assert stub.requests == 1


def test_an_adapter_of_requests_mock() -> None:
    """An adapter that is mounted on the session takes the stub."""
    adapter = requests_mock.Adapter()
    stub = testing.stub_token(adapter, AxiaAuth)
    adapter.register_uri("GET", host_of(AxiaAuth) + "/a", json={})
    with requests.Session() as session:
        session.mount("https://", adapter)
        session.auth = auth_for(AxiaAuth, session=session)
        assert session.get(host_of(AxiaAuth) + "/a").status_code == 200
    assert stub.requests == 1


def test_an_async_client(httpx_mock: pytest_httpx.HTTPXMock) -> None:
    """The stubs for httpx answer async clients as well."""
    stub = testing.stub_token(httpx_mock, AxiaAuth)
    httpx_mock.add_response(url=host_of(AxiaAuth) + "/a")

    async def main() -> int:
        async with httpx.AsyncClient(auth=auth_for(AxiaAuth)) as client:
            return (await client.get(host_of(AxiaAuth) + "/a")).status_code

    assert asyncio.run(main()) == 200
    assert stub.requests == 1


def test_a_subclass_of_a_tool() -> None:
    """A project's own subclass counts as the tool."""

    class Ours(responses.RequestsMock):
        pass

    with Ours() as mock:
        testing.stub_token(mock, AxiaAuth)
        assert AxiaAuth("your-client-id", SECRET, cache=MemoryTokenCache()).get_token().expires_in == 3600


@pytest.mark.parametrize("mock", [object(), pytest, "responses", None])
def test_anything_else_is_an_error(mock: object) -> None:
    """What is of no such tool is named in the error."""
    with pytest.raises(ConfigurationError, match="mock must come from responses, respx, pytest-httpx or requests-mock"):
        testing.stub_token(mock, AxiaAuth)


def test_no_tool_is_imported() -> None:
    """Importing `testing` imports none of the tools, nor the sandbox."""
    code = (
        "import sys, baas_auth_plugins.testing;"
        "print([name for name in ('responses', 'respx', 'pytest_httpx', 'requests_mock', 'pytest',"
        " 'baas_auth_plugins.sandbox') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
