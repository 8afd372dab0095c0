"""A fleet: real processes on a real Redis act as one towards the gateway, and as themselves when Redis is gone."""

from __future__ import annotations

import base64
import logging
import multiprocessing
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import redis
import requests
from conftest import NO_TLS, Auth, Client, api_url, make
from redis.sentinel import Sentinel
from redis_servers import (
    LOOPBACK,
    FleetClock,
    Member,
    Proxy,
    RedisServer,
    at_once,
    cluster_client,
    cluster_of,
    pass_time,
    until,
    watched_by_sentinel,
)
from requests.adapters import HTTPAdapter

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    ConfigurationError,
    InvalidClientError,
    OAuth2ClientCredentialsAuth,
    RateLimitError,
    Token,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

LEASE = 3  # seconds more than `timeout`
PAUSE = 31  # seconds: after that, a cache that failed is tried again
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


# -- one token request


@pytest.mark.parametrize("case", ["cold", "cold, slow gateway", "warm"])
def test_128_cold_processes(case: str, join: Join, sandbox: Sandbox) -> None:
    """128 cold processes make one token request, and none where Redis has a token already."""
    if case == "warm":
        assert join().do("call") == 200
    elif "slow" in case:
        sandbox.inject(Fault("delay", delay=1.5))
    members = [join() for _ in range(128)]
    at_once(members, "ready")
    assert at_once(members, "call") == [200] * 128
    assert sandbox.count("token") == 1
    assert at_once(members, "cache_log") == [[]] * 128


@pytest.mark.parametrize("single_active", [False, True])
def test_rejected_token_of_a_fleet(single_active: bool, join: Join, sandbox: Sandbox) -> None:
    """A token that was revoked costs the fleet one mint, also where each mint kills the token before."""
    sandbox.single_active_token = single_active
    members = [join() for _ in range(8)]
    assert at_once(members, "call") == [200] * 8
    for rounds in (1, 2):
        sandbox.revoke_all()
        assert at_once(members, "call") == [200] * 8
        assert sandbox.count("token") == 1 + rounds
    assert len(set(at_once(members, "token"))) == 1


@pytest.mark.parametrize("call", ["call", "call_async"])
def test_replacement_is_adopted(call: str, join: Join, sandbox: Sandbox) -> None:
    """What one process minted after a rejection, the others take up at theirs, without a mint of their own."""
    sandbox.single_active_token = True
    members = [join() for _ in range(3)]
    assert at_once(members, call) == [200] * 3
    assert members[0].do("mint") is None
    assert [member.do(call) for member in members] == [200] * 3
    assert sandbox.count("token") == 2


def test_invalidation_holds_for_the_fleet(join: Join, sandbox: Sandbox) -> None:
    """A token that one process invalidated is not handed to a process that joins later."""
    first = join()
    old = first.do("token")
    first.do("invalidate")
    assert join().do("token") not in (None, old)
    assert sandbox.count("token") == 2


def test_steady_state(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """Four processes that call every 10 s for an hour make as many token requests as one would: 25 where L is 300 s."""
    members = [join() for _ in range(4)]
    for _ in range(360):
        tokens = at_once(members, "token")
        assert all(isinstance(token, str) for token in tokens), tokens
        fleet_clock.advance(10, server)
    assert sandbox.count("token") <= 25
    assert at_once(members, "call") == [200] * 4


def test_renewal_of_one_is_adopted_by_all(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """Whoever finds its token stale takes what another process renewed, and serves it for the rest of its own life."""
    members = [join() for _ in range(3)]
    at_once(members, "token")
    fleet_clock.advance(151, server)
    renewed = members[0].do("token")
    fleet_clock.advance(40, server)
    assert [member.do("token") for member in members] == [renewed] * 3
    assert members[1].do("times")[1] == pytest.approx(260, abs=3)
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("ahead", [-3600, -30, 30])
def test_hosts_whose_clocks_differ(ahead: float, join: Join, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """A token is adopted by a host whose wall clock is off, and never for longer than it lives."""
    join().do("token")
    other = join(ahead=ahead)
    expires_in, remaining = other.do("times")
    assert expires_in == 300
    assert 300 - max(ahead, 0) - 5 < remaining <= 300
    assert sandbox.count("token") == 1


@pytest.mark.parametrize("spread", [-7200, 7200])
def test_hosts_whose_clocks_differ_widely(spread: float, join: Join, sandbox: Sandbox) -> None:
    """Hosts whose clocks are hours apart all get through, at worst with a token request each."""
    members = [join(), join(ahead=spread), join()]
    assert [member.do("call") for member in members * 2] == [200] * 6
    assert sandbox.count("token") <= 2


@pytest.mark.parametrize("ahead", [-30, 30])
def test_replacement_by_a_host_whose_clock_differs(ahead: float, join: Join, sandbox: Sandbox) -> None:
    """What another host minted after a rejection is younger than what was rejected, whatever their wall clocks say."""
    members = [join(), join(ahead=ahead)]
    for minter, other in (members, members[::-1]):
        assert at_once(members, "call") == [200] * 2
        before = sandbox.count("token")
        sandbox.revoke_all()
        assert [minter.do("call"), other.do("call")] == [200] * 2
        assert sandbox.count("token") == before + 1


def test_one_process_many_auth_objects(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """Threads of a process share its flight in a fleet, too: with one auth object each, over one cache."""
    sandbox.inject(Fault("delay", delay=0.3))
    cache = RedisTokenCache(redis.Redis(LOOPBACK, server.port))
    other = join()
    other.begin("token")
    with ThreadPoolExecutor(16) as pool:
        tokens = [pool.submit(lambda: make(BS2Auth, sandbox, cache=cache).get_token().access_token) for _ in range(16)]
    assert {token.result() for token in tokens} == {other.result()}
    assert sandbox.count("token") == 1


# -- clients of Redis, and of the gateways


Connect = Callable[[], Any]


@pytest.fixture(
    params=[
        "plain",
        "decoding",
        "other encoding",
        "RESP2",
        "socket",
        "blocking pool",
        "Sentinel",
        "cluster",
        "3-node cluster",
    ]
)
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Each kind of Redis and of client."""
    with ExitStack() as running:
        match request.param:
            case "Sentinel":
                sentinel, _ = running.enter_context(watched_by_sentinel(tmp_path))
                yield lambda: sentinel.master_for("fleet")
                return
            case "cluster" | "3-node cluster":
                nodes = running.enter_context(cluster_of(tmp_path, 1 if request.param == "cluster" else 3))
                yield lambda: cluster_client(nodes)
                return
        path = str(tmp_path / "socket")
        port = running.enter_context(RedisServer(tmp_path / "redis", f"unixsocket {path}")).port
        options: dict[str, dict[str, Any]] = {
            "decoding": {"decode_responses": True},
            "other encoding": {"decode_responses": True, "encoding": "ascii", "encoding_errors": "replace"},
            "RESP2": {"protocol": 2},
            "socket": {"unix_socket_path": path},
            "blocking pool": {"connection_pool": redis.BlockingConnectionPool(1, host=LOOPBACK, port=port)},
        }
        yield lambda: redis.Redis(LOOPBACK, port, **options.get(request.param, {}))


def test_kinds_of_redis(connect: Connect, sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """A single node, Sentinel and clusters, whatever the client's options: one token request, one after a rejection."""
    auths = [make(BS2Auth, sandbox, cache=RedisTokenCache(connect())) for _ in range(4)]
    url = api_url(BS2Auth, sandbox)
    for rounds in (1, 2):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda auth: requests.get(url, auth=auth, timeout=30).status_code, auths)) == [200] * 4
        assert len({auth.get_token().access_token for auth in auths}) == 1
        assert sandbox.count("token") == rounds
        sandbox.revoke_all()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_failover(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Sentinel makes another node the master, no call fails, and the fleet goes on there."""
    clock = FleetClock()
    clock.patch(monkeypatch)
    with watched_by_sentinel(tmp_path) as (sentinel, (master, replica)):
        auths = [make(BS2Auth, sandbox, cache=RedisTokenCache(sentinel.master_for("fleet"))) for _ in range(2)]
        url = api_url(BS2Auth, sandbox)
        assert requests.get(url, auth=auths[0], timeout=30).status_code == 200
        until(replica.values)
        until(lambda: _fails_over(sentinel))
        until(lambda: _role(replica) == "master")
        command("REPLICAOF", LOOPBACK, replica.port)(master)  # Sentinel would see to it within seconds
        clock.advance(5, replica)
        sandbox.revoke_all()
        assert [requests.get(url, auth=auth, timeout=30).status_code for auth in auths] == [200] * 2
        until(lambda: sentinel.discover_master("fleet")[1] == replica.port)
        for _ in range(2):  # the first time, connections may have to be made anew
            clock.advance(PAUSE, replica)
            before = sandbox.count("token")
            sandbox.revoke_all()
            assert [requests.get(url, auth=auth, timeout=30).status_code for auth in auths] == [200] * 2
        assert sandbox.count("token") == before + 1
        assert replica.values()


def _role(server: RedisServer) -> str:
    with suppress(redis.ConnectionError), server.client() as client:
        role: str = client.info("replication")["role"]
        return role
    return ""


def _fails_over(sentinel: Sentinel) -> bool:
    with suppress(redis.ResponseError):  # it has not learned enough about the replica yet
        return bool(sentinel.sentinels[0].execute_command("SENTINEL FAILOVER", "fleet"))
    return False


def test_every_client(client: Client, server: RedisServer, sandbox: Sandbox) -> None:
    """One object serves every client, and finds through each what another process left."""
    url = api_url(BS2Auth, sandbox)
    one, two = (make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port))) for _ in range(2))
    assert client.call(one, "GET", url).status == 200
    assert requests.get(url, auth=one, timeout=30).status_code == 200
    assert client.call(two, "GET", url).status == 200
    assert sandbox.count("token") == 1
    sandbox.revoke_all()
    assert client.call(two, "POST", url, content=b"x").status == 200
    assert client.call(one, "POST", url, content=b"x").status == 200
    assert sandbox.count("token") == 2


def test_event_loop_goes_on_while_redis_hangs(server: RedisServer, sandbox: Sandbox) -> None:
    """While Redis does not answer, a call in an event loop waits in bounded time, and everything else there goes on."""
    server.freeze()

    async def main(auth: OAuth2ClientCredentialsAuth) -> tuple[int, float, float]:
        gap, started, done = 0.0, time.monotonic(), anyio.Event()

        async def tick() -> None:
            nonlocal gap
            while not done.is_set():
                before = time.monotonic()
                await anyio.sleep(0.01)
                gap = max(gap, time.monotonic() - before)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            async with httpx.AsyncClient(auth=auth, verify=NO_TLS, timeout=30) as client:
                status = (await client.get(api_url(BS2Auth, sandbox))).status_code
            took = time.monotonic() - started
            done.set()
        return status, took, gap

    with ThreadPoolExecutor(2) as pool:
        auths = [make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port))) for _ in range(2)]
        loops = [
            pool.submit(anyio.run, main, auth, backend=backend)
            for auth, backend in zip(auths, ("asyncio", "trio"), strict=True)
        ]
    for status, took, gap in (loop.result() for loop in loops):
        assert status == 200
        assert took < 8
        assert gap < 1


@BACKENDS
def test_rejected_tasks_while_redis_hangs(backend: str, server: RedisServer, sandbox: Sandbox) -> None:
    """When all of a process's calls are rejected while Redis does not answer, they find that out together, once."""
    auth, url = (
        make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port))),
        api_url(BS2Auth, sandbox),
    )
    auth.get_token()
    sandbox.revoke_all()
    server.freeze()

    async def main() -> list[int]:
        statuses = []
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(auth=auth, verify=NO_TLS, timeout=30, limits=limits) as client:

            async def call() -> None:
                statuses.append((await client.get(url)).status_code)

            async with anyio.create_task_group() as tasks:
                for _ in range(60):
                    tasks.start_soon(call)
        return statuses

    started = time.monotonic()
    assert anyio.run(main, backend=backend) == [200] * 60
    assert time.monotonic() - started < 9
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("max_wait", [1, 3])
def test_little_patience_while_redis_hangs(max_wait: float, server: RedisServer, sandbox: Sandbox) -> None:
    """Waiting for a Redis that does not answer leaves even an impatient caller the time to get a token without it."""
    rejected, cold = (elsewhere(sandbox, server.port, max_wait=max_wait, headers={"X-Number": n}) for n in "12")
    rejected.get_token()
    sandbox.revoke_all()
    server.freeze()
    url = api_url(BS2Auth, sandbox)
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(requests.get, url, auth=auth, timeout=30) for auth in (cold, rejected) for _ in range(10)]
        assert {call.result().status_code for call in calls} == {200}


def test_invalidate_does_not_wait_for_redis(server: RedisServer, sandbox: Sandbox) -> None:
    """While Redis does not answer, a token is dropped here without it: nobody waits for another yet."""
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)))
    old = auth.get_token()
    server.freeze()
    started = time.monotonic()
    auth.invalidate()
    assert time.monotonic() - started < 2
    assert auth.get_token() != old


@BACKENDS
def test_impatient_tasks_while_redis_hangs(backend: str, server: RedisServer, sandbox: Sandbox) -> None:
    """Callers who have less patience than an operation on Redis gets do not all fail for as long as Redis hangs."""
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)))
    server.freeze()

    async def main() -> list[Token]:
        tokens: list[Token] = []
        for _ in range(3):
            with anyio.move_on_after(1):
                tokens.append(await auth.aget_token())
        return tokens

    assert anyio.run(main, backend=backend)


class NoClient:
    """Something that is no Redis client."""


@pytest.mark.parametrize(
    "make_client",
    [
        redis.asyncio.Redis,
        lambda: redis.asyncio.RedisCluster(LOOPBACK, 1),
        lambda: redis.asyncio.Redis().pipeline(),
        lambda: redis.Redis().pipeline(),
        lambda: redis.Redis().pubsub(),
        redis.ConnectionPool,
        lambda: redis.Redis,
        lambda: redis.sentinel.Sentinel([]),
        lambda: "redis://localhost",
        lambda: None,
        dict,
        NoClient,
    ],
)
def test_no_client(make_client: Callable[[], Any]) -> None:
    """An async client, or anything that is no client, is refused at once, with a word on what is wanted."""
    with pytest.raises(ConfigurationError, match=r"redis\.Redis"):
        RedisTokenCache(make_client())


@pytest.mark.parametrize("namespace", ["", None, 7, b"baas"])
def test_no_namespace(namespace: Any) -> None:
    """A namespace is text, and not empty."""
    with pytest.raises(ConfigurationError, match="namespace"):
        RedisTokenCache(redis.Redis(), namespace=namespace)


# -- at rest


def assert_sealed(server: RedisServer, *secrets: str) -> None:
    """See that nothing in Redis shows any of these, and that there is something."""
    values = server.values()
    assert values
    everything = b"\n".join([*values, *values.values()])
    for secret in secrets:
        assert secret.encode() not in everything
        assert base64.b64encode(secret.encode()) not in everything
    for key in values:
        assert re.fullmatch(rb"baas-auth:v1:[0-9a-f]{32,}", key)


def test_encrypted_at_rest(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """At no moment does Redis hold a token, a client_id, a secret, a scope, or what the gateway said."""
    member = join(max_wait=1)
    hidden = [sandbox.client_id, sandbox.client_secret, f"{sandbox.client_id}:{sandbox.client_secret}"]
    hidden += ["cob.read", "pix.read", sandbox.url, "bs2", "access_token", "leader", "Bearer"]
    sandbox.inject(Fault("delay", delay=0.5))
    member.begin("token")
    until(lambda: sandbox.count("token"))
    assert_sealed(server, *hidden)
    hidden.append(member.result())
    assert_sealed(server, *hidden)
    sandbox.revoke_all()
    assert member.do("call") == 200
    hidden.append(member.do("token"))
    assert_sealed(server, *hidden)
    sandbox.inject(Fault("status", status=400, body=b'{"error": "access_denied", "error_description": "a long story"}'))
    assert isinstance(member.do("mint"), Exception)
    assert_sealed(server, *hidden, "access_denied", "a long story")
    fleet_clock.advance(120, server)
    sandbox.inject(Fault("status", status=429, retry_after=20))
    assert isinstance(member.do("mint"), RateLimitError)
    assert_sealed(server, *hidden)


def test_everything_expires(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """Nothing stays in Redis for much longer than the token lives."""
    join().do("call")
    sandbox.revoke_all()
    join().do("call")
    assert server.values()
    fleet_clock.advance(400, server)
    assert not server.values()


def test_rotation_of_the_secret(
    join: Join, server: RedisServer, sandbox: Sandbox, tmp_path: Path, fleet_clock: FleetClock
) -> None:
    """A rotated secret moves the fleet to a new key by itself, with one token request; the old key does not open for it."""
    vault = tmp_path / "vault"
    vault.write_text(sandbox.client_secret)
    members = [join(client_secret=vault.read_text) for _ in range(3)]
    assert at_once(members, "call") == [200] * 3
    before = set(server.values())
    vault.write_text("another-client-secret")
    sandbox.rotate_secret("another-client-secret")
    fleet_clock.advance(151, server)
    for _ in range(3):
        assert [member.do("call") for member in members] == [200] * 3
        fleet_clock.advance(5, server)
    assert set(server.values()) - before
    assert len(set(at_once(members, "token"))) == 1
    assert sandbox.count("token") == 2


def test_wrong_secret_gets_nobody_elses_token(join: Join, sandbox: Sandbox) -> None:
    """Whoever does not know the secret gets no token out of Redis, though everything else is equal."""
    join().do("token")
    assert isinstance(join(client_secret="wrong").do("token"), InvalidClientError)
    assert isinstance(join(client_secret="wrong").do("token"), InvalidClientError)
    assert sandbox.count("token") == 2


def test_namespaces_and_scopes_are_apart(join: Join, sandbox: Sandbox) -> None:
    """Another namespace, another scope and other headers have tokens of their own."""
    members = [join(), join(namespace="other"), join(scope="cob.read"), join(headers={"X-Tenant": "7"})]
    assert len({member.do("token") for member in members}) == 4
    assert members[2].do("scope") == "cob.read"
    assert sandbox.count("token") == 4


def _flip(position: float) -> Callable[[bytes], bytes]:
    def flip(value: bytes) -> bytes:
        at = int(position * (len(value) - 1))
        return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]

    return flip


TAMPERINGS: dict[str, Callable[[bytes], bytes]] = {
    "first byte": _flip(0),
    "a byte of the nonce": _flip(0.02),
    "middle byte": _flip(0.5),
    "last byte": _flip(1),
    "nothing left": lambda _: b"",
    "one byte left": lambda value: value[:1],
    "the nonce left": lambda value: value[:12],
    "half left": lambda value: value[: len(value) // 2],
    "all but one left": lambda value: value[:-1],
    "one too many": lambda value: value + b"\0",
    "twice": lambda value: value * 2,
    "plain": lambda _: b'[300, {"token": ["stolen", [], 3600, 0], "issued_at": 9e9}]',
    "plain after a nonce": lambda _: bytes(12) + b'[300, {"token": ["stolen", [], 3600, 0], "issued_at": 9e9}]',
    "zeros": lambda value: bytes(len(value)),
    "text": lambda _: "não".encode(),
    "huge": lambda _: b"x" * 20_000_000,
}


@pytest.mark.parametrize("tampering", [*TAMPERINGS, "swapped", "list", "hash", "stream"])
def test_tampering(tampering: str, join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """A value that somebody changed, cut, moved or replaced is a miss: no error, no foreign token, and mended at once."""
    old = join().do("token")
    with server.client() as client:
        values = server.values()
        assert len(values) > 1
        for key, value in values.items():
            if tampering in TAMPERINGS:
                client.set(key, TAMPERINGS[tampering](value), ex=300)
            elif tampering == "swapped":
                client.set(key, next(values[other] for other in values if other != key), ex=300)
            else:
                client.delete(key)
                content = {
                    "list": ("RPUSH", key, "x"),
                    "hash": ("HSET", key, "x", "y"),
                    "stream": ("XADD", key, "*", "x", "y"),
                }
                client.execute_command(*content[tampering])
    members = [join() for _ in range(3)]
    assert [member.do("call") for member in members] == [200] * 3
    assert {member.do("token") for member in members}.isdisjoint({old})
    assert sandbox.count("token") == 2
    assert not [request for request in sandbox.requests if request.status == 401]  # nothing stolen was sent
    assert at_once(members, "cache_log") == [[]] * 3


def test_value_copied_from_another_key(join: Join, server: RedisServer) -> None:
    """A token with more rights, copied to the key of one with less, does not open there."""
    less = join(scope="cob.read")
    less.do("token")
    keys = set(server.values())
    join(scope="cob.read cob.write").do("token")
    with server.client() as client:
        for source in set(server.values()) - keys:
            for target in keys:
                client.copy(source, target, replace=True)
    newcomer = join(scope="cob.read")
    assert newcomer.do("scope") == "cob.read"


@pytest.mark.parametrize("trick", ["persists", "lives longer", "put back"])
def test_expired_token_is_not_revived(
    trick: str, join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """A token past its expiry is used by nobody, whatever somebody does to its key."""
    old = join().do("token")
    values = server.values()
    with server.client() as client:
        for key in values:
            client.persist(key) if trick == "persists" else client.pexpire(key, 10_000_000)
        if trick == "put back":
            fleet_clock.advance(10_000, server)
            assert not server.values()
            for key, value in values.items():
                client.set(key, value, ex=300)
        else:
            fleet_clock.advance(301)
    newcomer = join()
    assert newcomer.do("call") == 200
    assert newcomer.do("token") != old
    assert not [request for request in sandbox.requests if request.status == 401]


def test_rejected_token_is_put_back(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """A revoked token that somebody puts back into Redis costs its finder a second try, and nobody more."""
    member = join()
    old = member.do("token")
    values = server.values()
    sandbox.revoke_all()
    assert member.do("call") == 200
    with server.client() as client:
        for key, value in values.items():
            client.set(key, value, ex=300)
    newcomer = join()
    assert [newcomer.do("call"), member.do("call"), newcomer.do("call")] == [200] * 3
    assert newcomer.do("token") != old
    assert sandbox.count("token") <= 3


# -- Redis gone


@dataclass(frozen=True)
class Outage:
    """One way for Redis to be of no use, and how it ends."""

    begin: Callable[[RedisServer], Any]
    end: Callable[[RedisServer], Any]
    readable: bool = False
    """Whether what is there is still found."""


def command(*words: Any) -> Callable[[RedisServer], None]:
    def run(server: RedisServer) -> None:
        with server.client() as client:
            client.execute_command(*words)

    return run


def _fill(server: RedisServer) -> None:
    with server.client() as client:
        client.set("something else", bytes(2_000_000))
        client.config_set("maxmemory", "1mb")
        with pytest.raises(redis.RedisError):
            client.set("x", "y")


def _spin(server: RedisServer) -> None:
    def spin() -> None:
        with suppress(redis.RedisError), server.client() as client:
            client.eval("while true do end", 0)

    command("CONFIG SET", "lua-time-limit", 50)(server)
    threading.Thread(target=spin, daemon=True).start()
    until(lambda: _busy(server))


def _busy(server: RedisServer) -> bool:
    try:
        command("PING")(server)
    except redis.RedisError as error:
        return "busy" in str(error).lower()
    return False


OUTAGES = {
    "hung": Outage(RedisServer.freeze, RedisServer.thaw),
    "killed": Outage(RedisServer.kill, RedisServer.start),
    "paused": Outage(command("CLIENT PAUSE", 1_000_000, "WRITE"), command("CLIENT UNPAUSE")),
    "full": Outage(_fill, command("CONFIG SET", "maxmemory", "0"), readable=True),
    "read-only": Outage(command("REPLICAOF", LOOPBACK, 1), command("REPLICAOF", "NO", "ONE"), readable=True),
    "busy": Outage(_spin, command("SCRIPT KILL")),
}


@dataclass
class Ward:
    """A fleet of two whose Redis goes out: one process with a token, one that starts when Redis is gone."""

    outage: Outage
    server: RedisServer
    sandbox: Sandbox
    old: Member[Caller]
    cold: Member[Caller]

    def said(self) -> list[list[str]]:
        return at_once([self.old, self.cold], "cache_log")


@pytest.fixture
def wards(
    tmp_path: Path, join: Join, new_sandbox: Callable[..., Sandbox], fleet_clock: FleetClock
) -> Iterator[dict[str, Ward]]:
    """One for each kind of outage."""
    with ExitStack() as running:
        made: dict[str, Ward] = {}
        for name, outage in OUTAGES.items():
            server = running.enter_context(RedisServer(tmp_path / name))
            sandbox = new_sandbox()
            made[name] = Ward(outage, server, sandbox, *(join(sandbox=sandbox, port=server.port) for _ in range(2)))
        yield made


def test_outages(wards: dict[str, Ward], join: Join, fleet_clock: FleetClock) -> None:
    """While Redis is of no use, every call succeeds, after one WARNING in silence; then it is used again, says one INFO."""

    def advance(seconds: float, *, out: bool) -> None:
        """Let time pass; keys that nobody can see grow older afterwards."""
        fleet_clock.advance(seconds, *(ward.server for ward in wards.values() if not out or ward.outage.readable))

    def call(*members: str, revoking: bool = False) -> None:
        """Have all of these call at once, in all wards."""
        called = {(name, member): getattr(ward, member) for name, ward in wards.items() for member in members}
        for ward in wards.values() if revoking else ():
            ward.sandbox.revoke_all()
        assert dict(zip(called, at_once(called.values(), "call"), strict=True)) == dict.fromkeys(called, 200)

    call("old")
    for ward in wards.values():
        ward.outage.begin(ward.server)
    advance(151, out=True)
    call("old")  # a renewal
    assert {name: ward.old.do("cache_log") for name, ward in wards.items()} == {name: ["WARNING"] for name in wards}
    call("cold")
    for _ in range(2):
        advance(PAUSE, out=True)
        call("old", "cold", revoking=True)
    assert {name: ward.said() for name, ward in wards.items()} == {name: [[], ["WARNING"]] for name in wards}
    for ward in wards.values():
        ward.outage.end(ward.server)
        pass_time(0 if ward.outage.readable else 151 + 2 * PAUSE, ward.server)
    advance(PAUSE, out=False)
    before = {name: ward.sandbox.count("token") for name, ward in wards.items()}
    at_once([member for ward in wards.values() for member in (ward.old, ward.cold)], "invalidate")
    call("old", "cold")
    for name, ward in wards.items():
        back = ward.said()
        assert ["INFO"] in back, name
        # Who could read all the time, and has had nothing to write since, has nothing to tell yet.
        assert all(said == ["INFO"] or (ward.outage.readable and not said) for said in back), name
        assert join(sandbox=ward.sandbox, port=ward.server.port).do("call") == 200
    assert {name for name, ward in wards.items() if ward.sandbox.count("token") - before[name] > 1} == set()


def test_outage_at_the_limit(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """A process that never met Redis keeps within the rate limit by itself, and so with its pauses and its brake."""
    server.kill()
    member = join(max_wait=1)
    answers = [member.do("mint") for _ in range(14)]
    assert answers[:10] == [None] * 10
    assert all(isinstance(answer, RateLimitError) for answer in answers[10:])
    assert sandbox.count("token") == 10
    fleet_clock.advance(61)
    assert member.do("mint") is None


@pytest.mark.parametrize("event", ["flushed", "restarted"])
def test_redis_forgets_everything(
    event: str, join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """When Redis loses all it had, live tokens are served on, nobody is told, and the next renewal is shared again."""
    members = [join() for _ in range(3)]
    tokens = at_once(members, "token")
    command("FLUSHALL")(server) if event == "flushed" else server.restart()
    assert at_once(members, "token") == tokens
    assert sandbox.count("token") == 1
    fleet_clock.advance(151, server)
    assert at_once(members, "call") == [200] * 3
    fleet_clock.advance(20, server)
    assert len(set(at_once(members, "token"))) == 1
    assert sandbox.count("token") == 2
    assert at_once(members, "cache_log") == [[]] * 3


def test_redis_is_restarted_during_a_lead(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """When Redis is restarted while one process mints, everybody gets a token, at worst after a second request."""
    sandbox.inject(Fault("delay", delay=1))
    members = [join() for _ in range(4)]
    at_once(members, "ready")
    for member in members:
        member.begin("call")
    until(lambda: sandbox.count("token"))
    server.restart()
    assert [member.result() for member in members] == [200] * 4
    assert sandbox.count("token") <= 2
    assert join().do("call") == 200
    assert sandbox.count("token") <= 2


MOMENTS = ("cold", "renewal", "rejection")
FAILURES = (("drop", True), ("lose", False), ("hang", True), ("hang", False), ("mute", False))


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
    took: float = 0.0

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
        auth = make(FreeAuth, self.sandbox, cache=cache, headers={"X-Case": self._tag})
        assert isinstance(auth, FreeAuth)
        return auth

    def call(self, auth: FreeAuth | None = None) -> None:
        threading.current_thread().name = self.name  # so that its log can be told from the others'
        started = time.perf_counter()
        response = requests.get(api_url(BS2Auth, self.sandbox), auth=auth or self.auth, timeout=30)
        self.statuses.append(response.status_code)
        self.took = max(self.took, time.perf_counter() - started)

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


def test_what_was_given_up_leaves_no_lead(server: RedisServer, sandbox: Sandbox) -> None:
    """A process that gives up on a hanging Redis does not take the lead afterwards, when Redis goes on: nobody waits for it."""
    server.freeze()
    assert elsewhere(sandbox, server.port).get_token()
    server.thaw()
    for _ in range(3):
        started = time.monotonic()
        assert elsewhere(sandbox, server.port).get_token()
        assert time.monotonic() - started < 2
        until(lambda: "baas-auth-cache" not in {thread.name for thread in threading.enumerate()})  # late retries, too
    assert sandbox.count("token") <= 2


def test_what_arrives_late_leaves_no_lead(
    server: RedisServer, new_sandbox: Callable[..., Sandbox], cases: list[Case]
) -> None:
    """Whichever command of a cold call arrives only after it was given up: the next process need not wait."""
    sandbox = new_sandbox(providers=[FreeAuth.provider])
    cases.append(Case(0, "", False, server.port, sandbox))
    cases[0].call()
    cases[1:] = [Case(n + 1, "hold", False, server.port, sandbox) for n in range(len(cases[0].proxy.commands))]

    def everywhere(function: Callable[[Case], object]) -> None:
        with ThreadPoolExecutor(len(cases)) as pool:
            list(pool.map(function, cases))

    for case in cases[1:]:
        case.proxy.fail_at(case.number, "hold", for_good=False)
    everywhere(Case.call)
    for case in cases:
        case.took = 0.0
        seen = len(case.proxy.commands)
        case.proxy.let_go()
        if case.proxy.failed:
            with suppress(AssertionError):  # what is held may be all that was to come
                until(lambda case=case, seen=seen: len(case.proxy.commands) > seen, 0.1)
    sandbox.revoke_all()  # so that whoever finds a token there needs the lead, too
    everywhere(Case.call_elsewhere)
    assert {case.name: set(case.statuses) for case in cases} == {case.name: {200} for case in cases}
    assert {case.name: case.took for case in cases if case.took > 3} == {}


@BACKENDS
def test_cancelled_tasks_leave_no_lead(backend: str, server: RedisServer, sandbox: Sandbox) -> None:
    """However tasks are cancelled in the middle of their dealings with Redis, the next process need not wait."""
    rng = random.Random(7)  # noqa: S311  # a test, not cryptography
    for number in range(12):
        headers = {"X-Round": str(number)}
        auth = make(AvistaAuth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)), headers=headers)

        async def main(auth: OAuth2ClientCredentialsAuth = auth) -> None:
            async def be_impatient() -> None:
                with anyio.move_on_after(rng.uniform(0, 0.03)):
                    await auth.aget_token()

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(be_impatient)

        anyio.run(main, backend=backend)
        patient = make(AvistaAuth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)), headers=headers)
        started = time.monotonic()
        assert patient.get_token()
        assert time.monotonic() - started < 3


def test_connections_that_never_answer(
    server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock, witness: Proxy
) -> None:
    """However many connections to Redis hang for ever, new ones are tried, and used as soon as they work."""
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, witness.port, socket_timeout=None)))
    assert auth.get_token()
    witness.fail_at(1, "hang", for_good=True)
    for number in range(10):
        for seconds in (151, 6):  # the second time, Redis is in doubt no more
            fleet_clock.advance(seconds, server)
            assert auth.get_token()
        assert sandbox.count("token") == number + 2
    assert not server.values()
    witness.fail_at(0, "", for_good=False)
    fleet_clock.advance(151, server)
    for _ in range(2):
        assert auth.get_token()
        fleet_clock.advance(151, server)
    assert witness.commands
    assert server.values()


def test_late_write_does_not_pass_for_a_new_token(
    server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock, witness: Proxy
) -> None:
    """A token whose way into Redis took until its successor was minted is not taken for the newer of the two."""
    url = api_url(BS2Auth, sandbox)
    rehearsal, auth = (elsewhere(sandbox, witness.port, headers={"X-Number": number}) for number in "12")
    rehearsal.get_token()
    auth.get_token()
    fleet_clock.advance(151, server)
    witness.fail_at(0, "", for_good=False)
    rehearsal.get_token()
    witness.fail_at(len(witness.commands), "hang", for_good=True)
    late = auth.get_token().access_token
    fleet_clock.advance(3)
    auth.invalidate()
    assert requests.get(url, auth=auth, timeout=30).status_code == 200
    witness.heal()  # which lets the Redis client try again
    until(lambda: "EVAL" in witness.commands)
    fleet_clock.advance(PAUSE, server)
    sandbox.revoke_all()
    assert requests.get(url, auth=auth, timeout=30).status_code == 200
    assert auth.get_token().access_token != late


def test_lead_that_arrives_after_its_caller_was_cancelled(
    server: RedisServer, sandbox: Sandbox, witness: Proxy
) -> None:
    """A lead that Redis hands out only after it was given back is given back once more: nobody waits for it."""
    elsewhere(sandbox, witness.port, headers={"X-Rehearsal": "1"}).get_token()
    taking = [number for number, name in enumerate(witness.commands, 1) if name == "EVAL"][1]
    auth = elsewhere(sandbox, witness.port)
    witness.fail_at(taking, "hold", for_good=False)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(auth.aget_token)
            while not witness.failed:
                await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    with suppress(AssertionError):  # the lead may be given back over the connection that is held
        until(lambda: len(witness.commands) > taking, 0.5)
    witness.let_go()
    until(server.values)
    started = time.monotonic()
    assert elsewhere(sandbox, server.port).get_token()
    assert time.monotonic() - started < 3


def test_fork_while_redis_is_being_used(server: RedisServer, sandbox: Sandbox) -> None:
    """A process forked while threads deal with Redis deals with it itself, at once, over connections of its own."""
    cache = RedisTokenCache(redis.Redis(LOOPBACK, server.port))
    auths = [make(AvistaAuth, sandbox, cache=cache, headers={"X-Thread": str(number)}) for number in range(3)]
    done = threading.Event()

    def mint(auth: OAuth2ClientCredentialsAuth) -> None:
        while not done.is_set():
            auth.invalidate()
            auth.get_token()

    class Child:
        def work(self) -> float:
            started = time.monotonic()
            for auth in auths[:2]:
                auth.get_token()
                auth.invalidate()
                auth.get_token()
            return time.monotonic() - started

    with ThreadPoolExecutor(len(auths)) as pool:
        busy = [pool.submit(mint, auth) for auth in auths]
        try:
            for _ in range(4):
                child = Member(Child)
                assert child.do("work") < 10
                child.kill()
        finally:
            done.set()
    assert [thread.exception() for thread in busy] == [None] * len(auths)


def test_interpreter_exits_while_redis_hangs(server: RedisServer, sandbox: Sandbox) -> None:
    """A process ends at once, quietly, though an operation on Redis has been hanging in it."""
    server.freeze()
    script = f"""
        import threading
        import redis
        from baas_auth_plugins import BS2Auth
        from baas_auth_plugins.cache.redis import RedisTokenCache
        cache = RedisTokenCache(redis.Redis("{LOOPBACK}", {server.port}))
        auth = BS2Auth({sandbox.client_id!r}, {sandbox.client_secret!r}, scope="cob.read", base_url={sandbox.url!r}, cache=cache)
        threading.Thread(target=auth.get_token, daemon=True).start()
        while not any(thread.name == "baas-auth-cache" for thread in threading.enumerate()):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_pickled_auth_object_finds_its_fleet(server: RedisServer, sandbox: Sandbox) -> None:
    """An auth object sent to a process that shares nothing finds the token of its fleet there, by way of Redis."""
    auth = elsewhere(sandbox, server.port)
    auth.get_token()
    worker = multiprocessing.get_context("spawn").Process(target=_call, args=(auth, api_url(BS2Auth, sandbox)))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert sandbox.count("token") == 1


def _call(auth: OAuth2ClientCredentialsAuth, url: str) -> None:
    sys.exit(requests.get(url, auth=auth, timeout=10).status_code != 200)


def test_vandal(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """Somebody who writes garbage over every key all the time costs token requests, and no call."""
    members = [join(AvistaAuth) for _ in range(4)]
    rng, done = random.Random(11), threading.Event()  # noqa: S311  # a test, not cryptography

    def spoil(client: redis.Redis, key: bytes) -> None:
        match rng.randrange(6):
            case 0:
                client.set(key, rng.randbytes(rng.randrange(200)), ex=100)
            case 1:
                client.delete(key)
            case 2:
                client.delete(key)
                client.rpush(key, "x")
            case 3:
                client.persist(key)
            case 4:
                client.pexpire(key, rng.randrange(1, 10_000_000))
            case _:
                client.set(key, (client.get(key) or b"")[:-1], ex=100)

    def rage() -> None:
        with server.client() as client:
            while not done.is_set():
                for key in client.scan_iter():
                    with suppress(redis.ResponseError):  # no string any more
                        spoil(client, key)

    with ThreadPoolExecutor(1) as pool:
        raging = pool.submit(rage)
        try:
            for number in range(25):
                assert at_once(members, "call") == [200] * 4
                if number % 5 == 4:
                    members[number % 4].do("invalidate")
        finally:
            done.set()
    assert raging.exception() is None
    assert at_once(members, "cache_log") == [[]] * 4


@pytest.mark.parametrize("moment", MOMENTS)
def test_redis_fails_at_every_command(
    moment: str,
    server: RedisServer,
    new_sandbox: Callable[..., Sandbox],
    fleet_clock: FleetClock,
    caplog: pytest.LogCaptureFixture,
    cases: list[Case],
) -> None:
    """Wherever Redis fails within a call, the call succeeds in bounded time, with one WARNING at the most, and one mint."""
    caplog.set_level(logging.INFO, "baas_auth_plugins")
    sandbox = new_sandbox(providers=[FreeAuth.provider])
    rehearsal = Case(0, "", False, server.port, sandbox)
    cases.append(rehearsal)

    def everywhere(function: Callable[[Case], object], *, together: int = 100) -> None:
        with ThreadPoolExecutor(together) as pool:
            list(pool.map(function, cases))

    def prepare() -> None:
        if moment == "cold":
            return
        everywhere(Case.call)
        if moment == "renewal":
            fleet_clock.advance(151, server)
        else:
            sandbox.revoke_all()

    prepare()
    rehearsal.proxy.fail_at(0, "", for_good=False)
    rehearsal.call()
    commands = len(rehearsal.proxy.commands)
    assert commands
    cases[:] = [
        Case(number, how, for_good, server.port, sandbox)
        for number in range(1, commands + 1)
        for how, for_good in FAILURES
    ]
    prepare()
    for case in cases:
        case.proxy.fail_at(case.number, case.how, for_good=case.for_good)
    mints = {case.name: case.mints for case in cases}
    everywhere(Case.call)
    if moment == "renewal":  # while a token lives, nobody mints alone before Redis has failed twice
        fleet_clock.advance(6, server)
        everywhere(Case.call)
    assert {case.name: set(case.statuses) for case in cases} == {case.name: {200} for case in cases}
    cases[:] = [case for case in cases if case.proxy.failed]  # how many commands there are depends on who meets whom
    assert {case.number for case in cases} >= set(range(1, commands - 4))
    assert {case.name: case.mints - mints[case.name] for case in cases if case.mints - mints[case.name] != 1} == {}
    assert {case.name: case.took for case in cases if case.took > 8} == {}
    everywhere(Case.invalidate)
    everywhere(Case.call)
    said = [(record.threadName, record.levelname) for record in caplog.records if "cache" in record.getMessage()]
    warned = {case.name: said.count((case.name, "WARNING")) for case in cases}
    assert {name: times for name, times in warned.items() if times > 1} == {}
    assert {case.name for case in cases if case.for_good and not warned[case.name]} == set()
    everywhere(lambda case: case.proxy.heal())
    fleet_clock.advance(PAUSE, server)
    caplog.clear()
    mints = {case.name: case.mints for case in cases}
    everywhere(Case.invalidate, together=4)  # so that nothing here is slow by itself
    everywhere(Case.call, together=4)
    everywhere(Case.call_elsewhere, together=4)
    assert {case.name: set(case.statuses) for case in cases} == {case.name: {200} for case in cases}
    assert {case.name: case.mints - mints[case.name] for case in cases if case.mints - mints[case.name] != 1} == {}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# -- leaders that vanish


def is_waiting(proxy: Proxy) -> bool:
    """Tell whether somebody behind this proxy has found a leader, and gone on looking."""
    return proxy.commands.count("EVAL") >= 3


def test_leader_is_killed(
    join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy, fleet_clock: FleetClock
) -> None:
    """A process that is killed while it leads delays the others until its lease is over, and no longer."""
    sandbox.inject(Fault("hang", delay=60))
    leader, waiting = join(timeout=2), join(timeout=2, port=witness.port)
    leader.begin("call")
    until(lambda: sandbox.count("token"))
    waiting.begin("call")
    until(lambda: is_waiting(witness))
    leader.kill()
    looks = len(witness.commands)
    until(lambda: len(witness.commands) > looks + 2)
    assert sandbox.count("token") == 1  # the lease holds
    started = time.perf_counter()
    fleet_clock.advance(2 + LEASE, server)
    assert waiting.result() == 200
    assert time.perf_counter() - started < 2
    assert sandbox.count("token") == 2


def test_lease_that_somebody_prolongs(
    join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy, fleet_clock: FleetClock
) -> None:
    """The lease of a leader that is gone ends when it was to end, however long its key is made to live."""
    sandbox.inject(Fault("hang", delay=60))
    leader, waiting = join(timeout=2), join(timeout=2, port=witness.port)
    leader.begin("call")
    until(lambda: sandbox.count("token"))
    leader.kill()
    with server.client() as client:
        for key in server.values():
            client.pexpire(key, 10_000_000)
    fleet_clock.advance(2 + LEASE, server)
    started = time.perf_counter()
    assert waiting.do("call") == 200
    assert time.perf_counter() - started < 2 + LEASE + 1
    assert sandbox.count("token") == 2


def test_leader_is_frozen(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """A leader that was frozen past its lease finds another token there, and does not put its own in its place."""
    sandbox.single_active_token = True
    sandbox.inject(Fault("delay", delay=0.5))
    frozen, other = join(timeout=2), join(timeout=2)
    at_once([frozen, other], "ready")
    frozen.begin("call")
    until(lambda: sandbox.count("token"))
    frozen.freeze()
    fleet_clock.advance(2 + LEASE, server)
    assert other.do("call") == 200
    frozen.thaw()
    assert frozen.result() == 200
    assert len({member.do("token") for member in (frozen, other, join())}) == 1
    assert sandbox.count("token") == 2


def test_leader_that_lives_is_waited_for(join: Join, sandbox: Sandbox) -> None:
    """A token request that takes nearly all of its time is not doubled by another process."""
    sandbox.inject(Fault("delay", delay=1.7))
    members = [join(timeout=2) for _ in range(4)]
    assert at_once(members, "call") == [200] * 4
    assert sandbox.count("token") == 1


@BACKENDS
def test_leader_is_cancelled(backend: str, join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy) -> None:
    """A leader whose task is cancelled in the middle of its token request lets another process lead at once."""
    sandbox.inject(Fault("hang", delay=60))
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)), timeout=30)
    waiting = join(port=witness.port)

    async def main() -> float:
        async with httpx.AsyncClient(auth=auth, verify=NO_TLS, timeout=60) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.get, api_url(BS2Auth, sandbox))
                while not sandbox.count("token"):
                    await anyio.sleep(0.005)
                waiting.begin("call")
                while not is_waiting(witness):
                    await anyio.sleep(0.005)
                tasks.cancel_scope.cancel()
        return time.monotonic()

    cancelled = anyio.run(main, backend=backend)
    assert waiting.result() == 200
    assert time.monotonic() - cancelled < 3
    assert sandbox.count("token") == 2


def test_leader_loses_its_connection(join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy) -> None:
    """With httpx, a leader whose token request meets a network error lets another process lead at once."""
    sandbox.inject(Fault("drop", delay=0.5))
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)), timeout=30)
    waiting = join(port=witness.port)
    with ThreadPoolExecutor(1) as pool, httpx.Client(auth=auth, verify=NO_TLS, timeout=60) as client:
        leading = pool.submit(client.get, api_url(BS2Auth, sandbox))
        until(lambda: sandbox.count("token"))
        waiting.begin("call")
        assert isinstance(leading.exception(30), httpx.RemoteProtocolError)
        failed = time.monotonic()
    assert waiting.result() == 200
    assert time.monotonic() - failed < 3
    assert sandbox.count("token") == 2


def test_nobody_waits_past_max_wait(join: Join, sandbox: Sandbox) -> None:
    """While another process leads in vain, a caller gets a typed error at the end of its own patience."""
    sandbox.inject(Fault("hang", delay=60, times=-1))
    leader, waiting = join(timeout=30), join(timeout=30, max_wait=0.7)
    leader.begin("call")
    until(lambda: sandbox.count("token"))
    started = time.monotonic()
    assert isinstance(waiting.do("token"), TokenEndpointUnavailableError)
    assert time.monotonic() - started < 3
    assert sandbox.count("token") == 1


# -- the gateway says no, or not now


def test_retry_after_holds_for_the_fleet(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """While a Retry-After runs that one process was given, no other sends a token request."""
    sandbox.inject(Fault("status", status=429, retry_after=20))
    first, cold = join(max_wait=1), join(max_wait=1)
    assert isinstance(first.do("token"), RateLimitError)
    started = time.monotonic()
    error = cold.do("token")
    assert isinstance(error, RateLimitError)
    assert 15 < error.retry_after <= 20
    assert time.monotonic() - started < 1
    assert sandbox.count("token") == 1
    fleet_clock.advance(20.5, server)
    assert at_once([cold, first], "call") == [200] * 2
    assert sandbox.count("token") == 2


def test_retry_after_is_waited_for_by_the_fleet(join: Join, sandbox: Sandbox) -> None:
    """A Retry-After that fits everybody's patience is waited for, and one process asks again."""
    sandbox.inject(Fault("status", status=429, retry_after=1))
    members = [join() for _ in range(4)]
    assert at_once(members, "call") == [200] * 4
    assert sandbox.count("token") == 2


def test_live_token_is_served_while_limited(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """While a Retry-After runs, whoever has a live token, or finds one in Redis, is served with it."""
    members = [join(max_wait=1) for _ in range(2)]
    at_once(members, "token")
    fleet_clock.advance(160, server)
    sandbox.inject(Fault("status", status=429, retry_after=60, times=-1))
    members.append(join(max_wait=1))
    assert at_once(members, "call") == [200] * 3
    assert at_once(members, "call") == [200] * 3
    assert sandbox.count("token") == 2


def test_brake_holds_for_the_fleet(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """When a token is rejected that was minted after a rejection, nobody in the fleet mints for the next one."""
    members = [join() for _ in range(3)]
    at_once(members, "token")
    sandbox.inject(Fault("status", "api", status=401, times=-1))
    assert members[0].do("call") == 401
    assert sandbox.count("token") == 2
    assert [member.do("call") for member in members * 2] == [401] * 6
    assert join().do("call") == 401
    assert sandbox.count("token") == 2
    fleet_clock.advance(5.5, server)
    assert at_once(members, "call") == [401] * 3
    assert sandbox.count("token") == 3
    assert [member.do("call") for member in members] == [401] * 3
    fleet_clock.advance(5.5, server)
    assert [member.do("call") for member in members] == [401] * 3
    assert sandbox.count("token") == 3
    sandbox.clear_faults()
    assert [member.do("call") for member in members] == [200] * 3
    assert sandbox.count("token") == 3


def test_probation_holds_for_the_fleet(join: Join, sandbox: Sandbox) -> None:
    """A token that was minted after a rejection is on probation everywhere: if it is rejected, too, nobody mints another."""
    first = join()
    first.do("token")
    sandbox.inject(Fault("status", "api", status=401, times=-1))
    assert first.do("call_once") == 401
    first.do("token")
    assert sandbox.count("token") == 2
    assert [join().do("call"), first.do("call"), join().do("call")] == [401] * 3
    assert sandbox.count("token") == 2


def test_rejection_while_the_fleet_may_not_mint(join: Join, sandbox: Sandbox) -> None:
    """Where other processes have used up the token requests, a 401 is returned as it is, and the token stays."""
    member, other = join(), join(max_wait=0.05)
    for _ in range(10):
        assert member.do("mint") is None
    token = other.do("token")
    sandbox.inject(Fault("status", "api", status=401))
    assert other.do("call") == 401
    assert other.do("call") == 200
    assert other.do("token") == token
    assert sandbox.count("token") == 10


def test_rate_limit_holds_for_the_fleet(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """Four processes that mint as often as they can stay within BS2's 10 in any 60 s, together, and make use of them."""
    members = [join(max_wait=0.05) for _ in range(4)]
    for _ in range(30):
        for _ in range(2):
            answers = at_once(members, "mint")
            assert {type(answer) for answer in answers} <= {type(None), RateLimitError, TokenEndpointUnavailableError}
        fleet_clock.advance(7, server)
    assert not [request for request in sandbox.requests if request.status == 429]
    assert 30 <= sandbox.count("token") <= 40
    assert at_once(members, "cache_log") == [[]] * 4


def test_rate_limit_of_different_tokens(join: Join, sandbox: Sandbox) -> None:
    """Token requests for different tokens count together, also while none has been answered yet."""
    sandbox.inject(Fault("delay", delay=0.4, times=10))
    members = [join(max_wait=2, timeout=5, headers={"X-Tenant": str(number)}) for number in range(14)]
    at_once(members, "ready")
    answers = at_once(members, "token")
    assert sum(isinstance(answer, str) for answer in answers) == 10
    assert sum(isinstance(answer, RateLimitError) for answer in answers) == 4
    assert sandbox.count("token") == 10


def test_rate_limit_counts_from_the_answer(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """A token request that was long on its way counts from when it was answered, for the whole fleet."""

    class Slow(HTTPAdapter):
        def send(self, *arguments: Any, **options: Any) -> Any:
            time.sleep(1)
            return super().send(*arguments, **options)

    session = requests.Session()
    session.mount("http://", Slow())
    assert join(session=session).do("mint") is None
    member, newcomer = join(max_wait=0.05), join(max_wait=0.05)
    assert [member.do("mint") for _ in range(9)] == [None] * 9
    fleet_clock.advance(59.3, server)
    assert isinstance(newcomer.do("mint"), RateLimitError)
    assert {request.status for request in sandbox.requests} == {200}


def test_rate_limit_is_told_to_newcomers(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """A process that starts when the fleet has used up its token requests sends none."""
    member = join(max_wait=0.05)
    for _ in range(10):
        assert member.do("mint") is None
    member.do("invalidate")
    assert isinstance(join(max_wait=0.05).do("token"), RateLimitError)
    assert isinstance(join(max_wait=0.05, scope="cob.read").do("token"), RateLimitError)
    assert sandbox.count("token") == 10


@pytest.mark.parametrize("auth_class", [AxiaAuth, AvistaAuth, BS2Auth], ids=lambda auth_class: auth_class.provider.name)
def test_refusal_holds_for_the_fleet(
    auth_class: Auth, join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """A wrong secret costs 8 cold processes one token request, and each gets the verdict; a while later, another one."""
    members = [join(auth_class, client_secret="wrong") for _ in range(8)]
    for asked in (1, 2):
        errors = at_once(members, "token")
        assert {type(error) for error in errors} == {InvalidClientError}
        assert {error.status_code for error in errors} == {401}
        assert {error.provider for error in errors} == {auth_class.provider.name}
        assert sandbox.count("token") == asked
        assert isinstance(members[0].do("token"), InvalidClientError)
        assert sandbox.count("token") == asked
        fleet_clock.advance(5.5, server)


def test_gateway_that_is_down_is_asked_by_one(join: Join, sandbox: Sandbox) -> None:
    """Where every token request is answered 503, 8 cold processes send four in all, and all fail alike."""
    sandbox.inject(Fault("status", status=503, times=-1))
    members = [join() for _ in range(8)]
    errors = at_once(members, "token")
    assert {type(error) for error in errors} == {TokenEndpointUnavailableError}
    assert {error.status_code for error in errors} == {503}
    assert sandbox.count("token") == 4


def test_lost_connections_of_httpx_are_shared(server: RedisServer, sandbox: Sandbox) -> None:
    """With httpx, which lets nobody try again, two processes see the token endpoint hang; all others fail with the second."""
    sandbox.inject(Fault("hang", times=-1))
    url = api_url(BS2Auth, sandbox)

    def call(auth: OAuth2ClientCredentialsAuth) -> Exception | None:
        with httpx.Client(auth=auth, verify=NO_TLS) as client:
            try:
                client.get(url)
            except Exception as error:
                return error
        return None

    auths = [elsewhere(sandbox, server.port, timeout=0.5) for _ in range(6)]
    with ThreadPoolExecutor(len(auths)) as pool:
        errors = list(pool.map(call, auths))
    assert sum(isinstance(error, httpx.ReadTimeout) for error in errors) == 2
    assert sum(isinstance(error, TokenEndpointUnavailableError) for error in errors) == 4
    assert sandbox.count("token") == 2


def test_outage_of_the_gateway_is_sat_out_together(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """While the gateway is down, processes with a live token try one renewal to a pause between them all."""
    members = [join() for _ in range(4)]
    at_once(members, "token")
    fleet_clock.advance(151, server)
    sandbox.inject(Fault("status", status=503, times=-1))
    for tried in (1, 2, 3):
        for _ in range(2):
            assert at_once(members, "call") == [200] * 4
        assert sandbox.count("token") == 1 + tried
        fleet_clock.advance((5.5, 10.5, 20.5)[tried - 1], server)


def test_tokens_of_a_fleet_look_alike(server: RedisServer, sandbox: Sandbox) -> None:
    """An adopted token tells the same of itself as the one that was minted."""
    auths = [make(AxiaAuth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port))) for _ in range(2)]
    minted, adopted = (auth.get_token() for auth in auths)
    assert isinstance(adopted, Token)
    assert adopted.access_token == minted.access_token
    assert (adopted.scopes, adopted.expires_in, adopted.token_type) == (minted.scopes, 3600, "Bearer")
    assert adopted.expires_at == pytest.approx(minted.expires_at, abs=1)
    assert adopted.access_token not in repr(adopted)
    assert sandbox.count("token") == 1
