"""Redis itself: single nodes, Sentinel, clusters, and every kind of client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from conftest import Client, api_url, make
from redis.sentinel import Sentinel
from redis_servers import (
    LOOPBACK,
    FleetClock,
    RedisServer,
    cluster_client,
    cluster_of,
    until,
    watched_by_sentinel,
)

from baas_auth_plugins import (
    BS2Auth,
    ConfigurationError,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Sandbox
from fleet.conftest import PAUSE, command

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


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
