"""Further origins of a gateway's API: which requests get the token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import CLIENTS, SECRET, Client
from raw_gateway import RawGateway

from baas_auth_plugins import AxiaAuth, ConfigurationError, MemoryTokenCache, OAuth2ClientCredentialsAuth, Provider

pytestmark = pytest.mark.timeout(60)

SOME = pytest.mark.parametrize(
    "client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name
)


def declared(**fields: Any) -> type[OAuth2ClientCredentialsAuth]:
    """Return a class for a gateway whose API has an origin of its own."""
    defaults: dict[str, Any] = {
        "name": "split",
        "env_prefix": "SPLIT",
        "environments": {"production": "https://auth.example.com", "homologation": "https://auth-hml.example.com"},
        "api_origins": {"production": ["https://api.example.com"], "homologation": ["https://api-hml.example.com"]},
        "token_endpoint": "/token",
    }
    return type("SplitAuth", (OAuth2ClientCredentialsAuth,), {"provider": Provider(**(defaults | fields))})


def header(auth: Any, url: str) -> str | None:
    """Return the Authorization header that a request to this URL would carry, or None."""
    import httpx

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(200, json={"access_token": "one", "token_type": "Bearer", "expires_in": 60})
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200)

    seen: list[str | None] = []
    with httpx.Client(auth=auth, transport=httpx.MockTransport(handler)) as client:
        client.get(url)
    return seen[0]


def test_the_environments_api_origins_get_the_token() -> None:
    """The token goes to the token endpoint's origin and to the API origins of the environment in use, and no further."""
    auth = declared()("api-origins", SECRET, cache=MemoryTokenCache())
    assert header(auth, "https://api.example.com/a") == "Bearer one"
    assert header(auth, "https://auth.example.com/a") == "Bearer one"
    for foreign in (
        "https://api-hml.example.com/a",
        "https://api.example.com:8443/a",
        "http://api.example.com/a",
        "https://api.example.com.evil.example/a",
        "https://v2.api.example.com/a",
    ):
        assert header(auth, foreign) is None


def test_each_environment_has_its_own() -> None:
    """With `environment="homologation"` the homologation API gets the token, and production does not."""
    auth = declared()("api-origins-hml", SECRET, environment="homologation", cache=MemoryTokenCache())
    assert header(auth, "https://api-hml.example.com/a") == "Bearer one"
    assert header(auth, "https://api.example.com/a") is None


def test_base_url_switches_them_off() -> None:
    """With `base_url` the declared API origins get nothing: a test never sends its token to production."""
    auth = declared()("api-origins-base", SECRET, base_url="http://127.0.0.1:9", cache=MemoryTokenCache())
    assert header(auth, "https://api.example.com/a") is None


def test_allowed_origins_are_added() -> None:
    """`allowed_origins` come on top."""
    auth = declared()("api-more", SECRET, allowed_origins=["https://more.example.com"], cache=MemoryTokenCache())
    assert header(auth, "https://more.example.com/a") == "Bearer one"
    assert header(auth, "https://api.example.com/a") == "Bearer one"


@pytest.mark.parametrize(
    "origins",
    [
        {"production": ["http://api.example.com"]},
        {"production": ["https://api.example.com/path"]},
        {"production": ["https://*.example.com"]},
        {"production": "https://api.example.com"},
        {"staging": ["https://api.example.com"]},
    ],
    ids=["http", "path", "wildcard", "str", "unknown environment"],
)
def test_a_wrong_api_origin_is_refused_at_declaration(origins: Any) -> None:
    """Anything but exact https origins of a declared environment is a ConfigurationError that names the field."""
    with pytest.raises(ConfigurationError, match="api_origins"):
        declared(api_origins=origins)


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    with RawGateway() as gateway:
        yield gateway


@SOME
def test_a_401_of_an_allowed_origin_is_healed(client: Client, gateway: RawGateway) -> None:
    """A 401 from an allowed origin of another port is replayed with a new token, requested from `base_url`."""
    with RawGateway() as api:
        api.valid = gateway.valid
        auth = AxiaAuth(
            f"healed-{client.name}",
            SECRET,
            base_url=gateway.url,
            allowed_origins=[api.url],
            cache=MemoryTokenCache(),
        )
        with client.open(auth) as send:
            assert send("GET", api.url + "/a").status == 200
            gateway.valid.clear()
            assert send("GET", api.url + "/a").status == 200
        assert [e.token for e in api.api] == ["token-1", "token-1", "token-2"]
        assert api.count("token") == 0


def test_a_provider_can_be_derived() -> None:
    """`dataclasses.replace` of a declaration keeps and checks its API origins."""
    with pytest.raises(ConfigurationError, match="api_origins"):
        replace(AxiaAuth.provider, api_origins={"production": ["ftp://x"]})
