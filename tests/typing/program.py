"""A user's program. mypy --strict and pyright accept every line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_type

import httpx
import httpx2
import redis
import requests

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    Event,
    Introspection,
    MemoryTokenCache,
    NTXPayAuth,
    OAuth2ClientCredentialsAuth,
    Provider,
    RateLimitError,
    Revocation,
    Token,
    TokenCache,
    TokenEndpointError,
    TokenMinted,
    events,
    testing,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.opentelemetry import instrument
from baas_auth_plugins.sandbox import Fault, Sandbox


class OwnCache:
    """A cache of the user's own: two methods, and no base class."""

    def get(self, key: str) -> tuple[bytes, float] | None:
        return None

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        return False


class FifthAuth(OAuth2ClientCredentialsAuth):
    provider = Provider(
        name="fifth",
        env_prefix="FIFTH",
        environments={"production": "https://fifth.example"},
        token_endpoint="/oauth/token",
        token_endpoint_auth_method="client_secret_basic",
        default_expires_in=600,
    )


def read_secret() -> str:
    return "your-client-secret"


def caches(client: redis.Redis) -> list[OAuth2ClientCredentialsAuth]:
    cache: TokenCache = OwnCache()
    return [
        AxiaAuth("your-client-id", "your-client-secret", cache=MemoryTokenCache()),
        AxiaAuth("your-client-id", "your-client-secret", cache=MemoryTokenCache(maxsize=10)),
        NTXPayAuth("your-client-id", "your-client-secret", cache=RedisTokenCache(client)),
        AvistaAuth("your-client-id", "your-client-secret", cache=RedisTokenCache(client, namespace="ours")),
        BS2Auth("your-client-id", read_secret, scope=["cob.read", "pix.read"], cache=OwnCache()),
        FifthAuth("your-client-id", "your-client-secret", cache=cache),
        AxiaAuth("your-client-id", lambda: "your-client-secret", cache=None),
    ]


def clients(session: requests.Session) -> None:
    auth = AxiaAuth.from_env()
    assert_type(auth, AxiaAuth)
    session.auth = auth
    requests.get("https://api.example", auth=auth, timeout=5)
    httpx.Client(auth=auth).get("https://api.example", auth=BS2Auth.from_env(scope="cob.read"))
    httpx.AsyncClient(auth=auth)
    httpx2.Client(auth=auth)
    httpx2.AsyncClient(auth=auth)


def options(session: requests.Session) -> None:
    AxiaAuth.from_env(leeway=60)
    AxiaAuth.from_env("OURS", leeway=60.5, timeout=5, max_wait=20, cache=MemoryTokenCache(), session=session)
    BS2Auth.from_env(scope=("cob.read",), environment="homologation", background_renewal=True)
    BS2Auth.from_env(base_url="https://gateway.example", allowed_origins=["https://api.example"], headers={"X-A": "b"})
    AxiaAuth.from_env(client_secret=read_secret, on_event=print)


def tokens(auth: AxiaAuth) -> None:
    token = auth.get_token()
    assert_type(token, Token)
    assert_type(token.scopes, frozenset[str])
    assert_type(token.expires_at, float)
    auth.invalidate(token)
    auth.invalidate(token.access_token)
    assert_type(auth.introspect(), Introspection)
    assert_type(auth.revoke(token, client=requests.Session()), Revocation)
    assert_type(auth.introspect(token).expires_at, float | None)


async def async_tokens(auth: AxiaAuth, client: httpx.AsyncClient) -> None:
    assert_type(await auth.aget_token(), Token)
    await auth.ainvalidate()
    assert_type(await auth.aintrospect(client=client), Introspection)

    async def send(token: Token) -> int:
        return len(token.access_token)

    assert_type(await auth.acall_with_token(send), int)
    assert_type(await auth.acall_with_token(send, is_rejected=lambda answer: answer == 401), int)


def other_clients(auth: AvistaAuth) -> Mapping[str, str]:
    def send(token: Token) -> dict[str, str]:
        return {"Authorization": f"Bearer {token.access_token}"}

    return auth.call_with_token(send)


def errors(auth: BS2Auth) -> float | None:
    try:
        auth.get_token()
    except RateLimitError as error:
        return error.retry_after
    except TokenEndpointError as error:
        assert_type(error.status_code, int | None)
        assert_type(error.error, str | None)
    except (requests.RequestException, httpx.HTTPError):
        pass
    return None


def listen(event: Event) -> None:
    assert_type(event.token_digest, str | None)
    if isinstance(event, TokenMinted):
        assert_type(event.duration, float)


def watch() -> list[Callable[[], None]]:
    return [events.subscribe(listen), events.subscribe(print), instrument()]


def test(mock: object) -> None:
    testing.reset()
    stub = testing.stub_token(mock, AxiaAuth, expires_in=60, base_url="https://gateway.example")
    assert_type(stub.requests, int)
    with Sandbox() as sandbox:
        sandbox.inject(Fault("status", status=503))
        AxiaAuth(sandbox.client_id, sandbox.client_secret, base_url=sandbox.url, on_event=listen)
