"""What tests of fleets share: one process's auth object, processes that join a fleet, and their clock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import redis
import requests
from conftest import NO_TLS, Auth, api_url, make
from redis_servers import (
    LOOPBACK,
    FleetClock,
    Member,
    Proxy,
    RedisServer,
)

from baas_auth_plugins import (
    BS2Auth,
    OAuth2ClientCredentialsAuth,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Sandbox

LEASE = 3  # seconds more than `timeout`

PAUSE = 31  # seconds: after that, a cache that failed is tried again

LONG_LEASE = {"timeout": 100, "max_wait": 30}  # whoever finds a lease that was left behind fails, instead of waiting
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class FreeAuth(OAuth2ClientCredentialsAuth):
    """BS2 with a limit that many tests at once do not meet."""

    provider = replace(BS2Auth.provider, token_rate_limit=(1000, 60))


class Caller:
    """What one process has: an auth object, and its log."""

    def __init__(self, auth_class: Auth, sandbox: Sandbox, cache: RedisTokenCache, **parameters: Any) -> None:
        self.auth = make(auth_class, sandbox, cache=cache, **parameters)
        self._url = api_url(auth_class, sandbox)
        self._log: list[tuple[str, str]] = []
        handler = logging.Handler(logging.INFO)
        handler.emit = lambda record: self._log.append((record.levelname, record.getMessage()))  # type: ignore[method-assign]
        logger = logging.getLogger("baas_auth_plugins")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

    def ready(self) -> None:
        """Say that the process is up."""

    def call(self) -> int:
        """Call the API."""
        return requests.get(self._url, auth=self.auth, timeout=30).status_code

    def call_async(self) -> int:
        """Call the API in an event loop."""

        async def main() -> int:
            async with httpx.AsyncClient(auth=self.auth, verify=NO_TLS, timeout=30) as client:
                return (await client.get(self._url)).status_code

        return anyio.run(main)

    def call_once(self) -> int:
        """Call the API with a body that cannot be sent again."""
        return requests.post(self._url, data=iter([b"x"]), auth=self.auth, timeout=30).status_code

    def scope(self) -> str:
        """Call the API, and return the scope it found."""
        scope: str = requests.get(self._url, auth=self.auth, timeout=30).json()["scope"]
        return scope

    def token(self) -> str:
        """Return the token."""
        return self.auth.get_token().access_token

    def times(self) -> tuple[float, float]:
        """Return how long the token lives and is to live, by this process's clock."""
        token = self.auth.get_token()
        return token.expires_in, token.expires_at - time.time()

    def mint(self) -> None:
        """Have a new token minted, come what may."""
        self.auth.invalidate()
        self.auth.get_token()

    def invalidate(self) -> None:
        """Drop the token."""
        self.auth.invalidate()

    def cache_log(self) -> list[str]:
        """Return the levels of what was said about the cache since this was asked last."""
        said, self._log[:] = [level for level, message in self._log if "cache" in message], []
        return said


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def fleet_clock(monkeypatch: pytest.MonkeyPatch) -> FleetClock:
    """The clock of this process and of all members that join later."""
    clock = FleetClock()
    clock.patch(monkeypatch)
    return clock


Join = Callable[..., Member[Caller]]


@pytest.fixture
def join(server: RedisServer, sandbox: Sandbox) -> Iterator[Join]:
    """Add processes to a fleet on one Redis server and one gateway."""
    members: list[Member[Caller]] = []

    def start(
        auth_class: Auth = BS2Auth,
        *,
        port: int = server.port,
        sandbox: Sandbox = sandbox,
        ahead: float = 0,
        namespace: str = "baas-auth",
        **parameters: Any,
    ) -> Member[Caller]:
        def make_caller() -> Caller:
            wall = time.time
            if ahead:
                time.time = lambda: wall() + ahead
            cache = RedisTokenCache(redis.Redis(LOOPBACK, port), namespace=namespace)
            return Caller(auth_class, sandbox, cache, **parameters)

        members.append(Member(make_caller))
        return members[-1]

    yield start
    for member in members:
        member.kill()


@pytest.fixture
def witness(server: RedisServer) -> Iterator[Proxy]:
    """A way to Redis that tells whether somebody has been looking there."""
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


def command(*words: Any) -> Callable[[RedisServer], None]:
    def run(server: RedisServer) -> None:
        with server.client() as client:
            client.execute_command(*words)

    return run


@dataclass
class Case:
    """A process whose Redis fails at one command of one call."""

    number: int
    how: str
    for_good: bool
    port: int
    sandbox: Sandbox
    proxy: Proxy = field(init=False)
    statuses: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.proxy = Proxy(self.port)
        self.auth = self._make(self.proxy.port)

    @property
    def name(self) -> str:
        return f"{self.how} at {self.number}{' for good' if self.for_good else ''}"

    @property
    def mints(self) -> int:
        return sum(r.kind == "token" and r.headers.get("x-case") == self._tag for r in self.sandbox.requests)

    @property
    def _tag(self) -> str:
        return self.name.replace(" ", "-")

    def _make(self, port: int) -> FreeAuth:
        cache = RedisTokenCache(redis.Redis(LOOPBACK, port), namespace=f"case-{self._tag}")
        auth = make(FreeAuth, self.sandbox, cache=cache, headers={"X-Case": self._tag}, **LONG_LEASE)
        assert isinstance(auth, FreeAuth)
        return auth

    def call(self, auth: FreeAuth | None = None) -> None:
        threading.current_thread().name = self.name  # so that its log can be told from the others'
        response = requests.get(api_url(BS2Auth, self.sandbox), auth=auth or self.auth, timeout=30)
        self.statuses.append(response.status_code)

    def invalidate(self) -> None:
        threading.current_thread().name = self.name
        self.auth.invalidate()

    def call_elsewhere(self) -> None:
        """Call as a process that joins later."""
        self.call(self._make(self.port))


@pytest.fixture
def cases() -> Iterator[list[Case]]:
    """The cases of a test, whose proxies end with it."""
    made: list[Case] = []
    yield made
    for case in made:
        case.proxy.close()


def elsewhere(sandbox: Sandbox, port: int, **parameters: Any) -> OAuth2ClientCredentialsAuth:
    """Return what another process has: an auth object whose cache and connections are its own."""
    return make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, port)), **parameters)
