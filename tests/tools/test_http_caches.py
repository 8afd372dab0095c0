"""requests-cache and CacheControl: token responses are never cached by them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import SECRET, Auth, make
from raw_gateway import RawGateway, http, token_body

from baas_auth_plugins import AvistaAuth, AxiaAuth, BS2Auth, MemoryTokenCache
from baas_auth_plugins.sandbox import Sandbox

requests_cache = pytest.importorskip("requests_cache")
cachecontrol = pytest.importorskip("cachecontrol")

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    """A gateway whose token responses may be cached, by their headers."""
    with RawGateway() as gateway:
        gateway.on_token = lambda exchange: http(
            200,
            token_body(f"token-{gateway.count('token')}"),
            {"Content-Type": "application/json", "Cache-Control": "public, max-age=3600", "ETag": '"1"'},
        )
        yield gateway


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["AxiaAuth", "AvistaAuth"])
def test_install_cache_caches_no_token_response(order: str, name: str, tmp_path: Path) -> None:
    """With `install_cache` for GET and POST, before or after the import, each token request reaches the gateway, and the file holds no token."""
    path = {"AxiaAuth": "/v1/accounts", "AvistaAuth": "/cob/1"}[name]
    imports = f"from baas_auth_plugins import {name}\nfrom baas_auth_plugins.sandbox import Sandbox"
    install = (
        "import requests_cache\n"
        f"requests_cache.install_cache({str(tmp_path / 'http')!r}, backend='sqlite', allowable_methods=('GET', 'POST'))"
    )
    program = "\n".join([install, imports] if order == "before" else [imports, install])
    program += textwrap.dedent(f"""
        import requests, asyncio
        with Sandbox() as sandbox:
            auth = {name}(sandbox.client_id, sandbox.client_secret, base_url=sandbox.url)
            tokens = []
            for _ in range(3):
                tokens.append(auth.get_token().access_token)
                auth.invalidate()
            tokens.append(asyncio.run(auth.aget_token()).access_token)
            auth.invalidate()
            for number in range(2):
                assert requests.get(sandbox.url + {path!r} + f"?n={{number}}", auth=auth).status_code == 200
                tokens.append(auth.get_token().access_token)
                auth.invalidate()
            assert len(set(tokens)) == 6, tokens
            assert sandbox.count("token") == 6
            cached = [response.url for response in requests_cache.get_cache().responses.values()]
            assert not [url for url in cached if "token" in url], cached
            print("fine")
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr
    assert not [path for path in tmp_path.iterdir() if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("auth_class", [AxiaAuth, AvistaAuth, BS2Auth], ids=lambda c: c.provider.name)
def test_a_cached_session_as_session_caches_no_token_response(
    auth_class: Auth, sandbox: Sandbox, tmp_path: Path
) -> None:
    """A CachedSession that caches POST carries token requests without caching them."""
    with requests_cache.CachedSession(
        str(tmp_path / "http"), backend="sqlite", allowable_methods=("GET", "POST")
    ) as session:
        auth = make(auth_class, sandbox, session=session)
        first = auth.get_token().access_token
        auth.invalidate()
        assert auth.get_token().access_token != first
        assert len(session.cache.responses) == 0
        assert sandbox.count("token") == 2


def test_api_requests_of_a_cached_session_are_still_cached(gateway: RawGateway, tmp_path: Path) -> None:
    """The session itself stays as it is: its API responses are cached."""
    with requests_cache.CachedSession(str(tmp_path / "http"), backend="memory") as session:
        auth = AxiaAuth("cached-api", SECRET, base_url=gateway.url, cache=MemoryTokenCache(), session=session)
        gateway.on_api = lambda exchange: http(200, b"ok")
        for _ in range(3):
            assert session.get(gateway.url + "/a", auth=auth, timeout=5).status_code == 200
    assert gateway.count("api") == 1


@pytest.mark.parametrize("how", ["wrapper", "adapter"])
def test_cachecontrol_caches_no_token_response(how: str, gateway: RawGateway) -> None:
    """Neither does CacheControl, whose adapter caches what may be cached, POST included."""
    with requests.Session() as session:
        session.trust_env = False
        if how == "wrapper":
            cachecontrol.CacheControl(session, cacheable_methods=("GET", "POST"))
        else:
            session.mount("http://", cachecontrol.CacheControlAdapter(cacheable_methods=("GET", "POST")))
        auth = AxiaAuth(f"cachecontrol-{how}", SECRET, base_url=gateway.url, cache=MemoryTokenCache(), session=session)
        tokens = []
        for _ in range(3):
            tokens.append(auth.get_token().access_token)
            auth.invalidate()
    assert tokens == ["token-1", "token-2", "token-3"]
