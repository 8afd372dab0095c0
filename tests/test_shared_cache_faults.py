"""A shared cache that is absurd, hostile, slow or down: what it costs, at most."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from conftest import Auth, FakeClock, api_url, make
from raw_gateway import SharedStore, elapsed, token_body
from redis_servers import RedisServer

from baas_auth_plugins import (
    AxiaAuth,
    BaaSAuthError,
    ConfigurationError,
    InvalidClientError,
    NTXPayAuth,
    OAuth2ClientCredentialsAuth,
    Provider,
    TokenEndpointError,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(120)

LIFETIMES = [2**63 - 1, 2**63, 10**30, 2**62, 9_223_372_036_854_775, 10**12]


@pytest.fixture
def store(clock: FakeClock) -> SharedStore:
    """A dict with a time to live, which refuses what Redis refuses."""
    return SharedStore(lambda: clock.wall)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


# -- absurd times to live


@pytest.mark.parametrize("expires_in", LIFETIMES)
def test_an_absurd_lifetime_is_clamped_in_the_cache(
    expires_in: int, store: SharedStore, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The time to live is one that Redis accepts, so that another process adopts the token and nothing is logged."""
    sandbox.inject(Fault("body", body=token_body("abc", expires_in)))
    first = make(AxiaAuth, sandbox, cache=store.face()).get_token()
    second = make(AxiaAuth, sandbox, cache=store.face()).get_token()
    assert first.access_token == second.access_token == "abc"
    assert sandbox.count("token") == 1
    assert "cache" not in caplog.text


@pytest.mark.parametrize("expires_in", [2**63 - 1, 10**30])
def test_real_redis_takes_an_absurd_lifetime(
    expires_in: int, server: RedisServer, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The same with a real Redis, which then serves another tenant, too."""
    sandbox.inject(Fault("body", body=token_body("abc", expires_in)))
    with server.client() as one, server.client() as two:
        tokens = [make(AxiaAuth, sandbox, cache=RedisTokenCache(client)).get_token() for client in (one, two)]
        tenants = [make(NTXPayAuth, sandbox, cache=RedisTokenCache(client)).get_token() for client in (one, two)]
    assert {token.access_token for token in tokens} == {"abc"}
    assert len({token.access_token for token in tenants}) == 1
    assert sandbox.count("token") == 2
    assert "cache" not in caplog.text


# -- a writer without the secret


def replayed(
    store: SharedStore,
    auths: Callable[[], OAuth2ClientCredentialsAuth],
    clock: FakeClock,
    old: dict[str, Any],
    *,
    cold: bool,
) -> list[int]:
    """Put old records back before each of 30 calls, one a second; return the seconds at which calls failed."""
    auth, failed = auths(), []
    for second in range(30):
        auth = auths() if cold else auth
        store.values = {key: (value, store.now() + ttl) for key, (value, ttl) in old.items()}
        try:
            auth.get_token()
        except BaaSAuthError:
            failed.append(second)
        clock.advance(1)
    return failed


@pytest.mark.parametrize(
    ("fault", "lasts"),
    [
        (Fault("status", status=401), 5),
        (Fault("garbage"), 5),
        (Fault("status", status=429, retry_after=10), 10),
        (Fault("status", status=503, times=4), 5),
    ],
    ids=["401", "page", "429", "503"],
)
@pytest.mark.parametrize("later", [20, 3600])
@pytest.mark.parametrize("cold", [False, True], ids=["one process", "cold processes"])
def test_an_old_failure_that_is_put_back_lasts_no_longer_than_it_did(
    cold: bool, later: int, fault: Fault, lasts: int, store: SharedStore, clock: FakeClock, sandbox: Sandbox
) -> None:
    """Whoever writes an old failure into the cache again and again delays processes for as long as it lasted, at most."""
    sandbox.inject(fault)
    with pytest.raises(TokenEndpointError):
        make(AxiaAuth, sandbox, cache=store.face(), max_wait=3).get_token()
    old = {key: (value, until - store.now()) for key, (value, until) in store.values.items()}
    sandbox.clear_faults()
    clock.advance(later)
    failed = replayed(store, lambda: make(AxiaAuth, sandbox, cache=store.face(), max_wait=3), clock, old, cold=cold)
    assert len(failed) <= lasts + 1
    assert all(second <= lasts for second in failed)


def test_a_record_of_another_key_is_not_taken(store: SharedStore, clock: FakeClock, sandbox: Sandbox) -> None:
    """A record that is copied to another tenant's key is a miss: that tenant never gets the first one's token."""
    first = make(AxiaAuth, sandbox, cache=store.face()).get_token().access_token
    records = list(store.values.values())
    store.values = {}
    tenant = {"headers": {"X-Tenant": "2"}}
    make(AxiaAuth, sandbox, cache=store.face(), **tenant).get_token()
    store.values = dict.fromkeys(store.values, records[0])
    assert make(AxiaAuth, sandbox, cache=store.face(), **tenant).get_token().access_token != first


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 10, b"x" * 100_000], ids=["empty", "zeros", "long"])
def test_garbage_in_the_shared_cache_is_a_miss(
    garbage: bytes, store: SharedStore, auth_class: Auth, sandbox: Sandbox
) -> None:
    """What cannot be decrypted is as good as nothing: the call requests a token and succeeds."""
    make(auth_class, sandbox, cache=store.face()).get_token()
    store.values = {key: (garbage, store.now() + 600) for key in store.values}
    auth = make(auth_class, sandbox, cache=store.face())
    assert requests.get(api_url(auth_class, sandbox), auth=auth, timeout=5).status_code == 200


# -- Redis down at the start


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_redis_that_refuses_connections_costs_two_seconds(sandbox: Sandbox) -> None:
    """With an ordinary `redis.Redis(host=…)` and no server, a first call takes at most 2 s more."""
    with redis.Redis(host="127.0.0.1", port=closed_port()) as client:
        auth = make(AxiaAuth, sandbox, cache=RedisTokenCache(client))
        with elapsed() as spent:
            assert requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5).status_code == 200
    assert spent.seconds < 3.5


def test_redis_that_never_answers_costs_two_seconds(sandbox: Sandbox) -> None:
    """The same where the connection is accepted and nothing is answered, without any timeout on the client."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        with redis.Redis(host="127.0.0.1", port=silent.getsockname()[1]) as client:
            auth = make(AxiaAuth, sandbox, cache=RedisTokenCache(client))
            with elapsed() as spent:
                assert requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5).status_code == 200
    assert spent.seconds < 3.5


def test_many_tenants_pay_for_a_redis_that_is_down_once(sandbox: Sandbox) -> None:
    """Ten auth objects with one cache do not wait for it one after the other."""
    with redis.Redis(host="127.0.0.1", port=closed_port()) as client:
        cache = RedisTokenCache(client)
        with elapsed() as spent:
            for number in range(10):
                make(AxiaAuth, sandbox, cache=cache, headers={"X-Tenant": str(number)}).get_token()
    assert spent.seconds < 5


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_auth_objects_that_are_gone_leave_no_connection(server: RedisServer, sandbox: Sandbox) -> None:
    """Fifty one-off auth objects with a Redis client each leave no descriptor behind."""

    def one_off(number: int) -> None:
        cache = RedisTokenCache(redis.Redis("127.0.0.1", server.port))
        make(NTXPayAuth, sandbox, cache=cache, headers={"X-Number": str(number)}).get_token()

    one_off(-1)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        one_off(number)
    for _ in range(100):
        gc.collect()
        if len(os.listdir("/proc/self/fd")) < before + 10:
            break
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) < before + 10


# -- one failed write


@pytest.mark.parametrize("failing", range(1, 9))
def test_one_failed_operation_fails_no_call(failing: int, clock: FakeClock, sandbox: Sandbox) -> None:
    """Whichever cache operation fails, a call, a revocation and the call after it succeed, in both processes."""
    store = SharedStore(lambda: clock.wall)
    counted = [0]

    class Failing:
        def _count(self) -> None:
            counted[0] += 1
            if counted[0] == failing:
                raise OSError("lost")

        def get(self, key: str) -> tuple[bytes, float] | None:
            self._count()
            return store.get(key)

        def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
            self._count()
            return store.swap(key, old, new, ttl)

    first, second = (make(AxiaAuth, sandbox, cache=Failing()) for _ in range(2))
    url = api_url(AxiaAuth, sandbox)
    for auth in (first, second, first, second):
        assert requests.get(url, auth=auth, timeout=5).status_code == 200
        clock.advance(40)
    sandbox.revoke_all()
    for auth in (first, second, first, second):
        assert requests.get(url, auth=auth, timeout=5).status_code == 200


# -- what may not be shared


class PublicAuth(OAuth2ClientCredentialsAuth):
    """A gateway that authenticates its clients by nothing but their id."""

    provider = Provider(
        name="public",
        env_prefix="PUBLIC",
        environments={"production": "https://public.example"},
        token_endpoint="/token",
        token_endpoint_auth_method="none",
    )


def test_a_shared_cache_without_a_secret_is_refused() -> None:
    """With the method `none` nothing could encrypt a shared record: that is a ConfigurationError that says so."""
    store = SharedStore(lambda: 0.0)
    with pytest.raises(ConfigurationError, match="cache"):
        PublicAuth("your-client-id", cache=store.face())
    assert store.operations == 0


def test_without_a_shared_cache_a_client_needs_no_secret() -> None:
    """The same class with the memory cache is made without a secret."""
    assert "your-client-id" in repr(PublicAuth("your-client-id"))


def test_a_wrong_secret_gets_no_token_from_the_cache(store: SharedStore, auth_class: Auth, sandbox: Sandbox) -> None:
    """A process with a wrong secret is refused, whatever its fleet has cached."""
    make(auth_class, sandbox, cache=store.face()).get_token()
    with pytest.raises(InvalidClientError):
        make(auth_class, sandbox, cache=store.face(), client_secret="wrong-secret").get_token()


def test_a_cache_of_just_two_methods_is_taken_for_shared(store: SharedStore, sandbox: Sandbox) -> None:
    """Values in a cache that does not say `blocking = False` are encrypted bytes, and keys reveal nothing."""
    token = make(AxiaAuth, sandbox, cache=store.face()).get_token().access_token
    assert store.values
    for key, (value, _) in store.values.items():
        assert isinstance(value, bytes)
        assert token.encode() not in value
        assert sandbox.client_secret not in key
        assert sandbox.client_id not in key


# -- garbage from an in-memory cache


@pytest.mark.parametrize(
    "garbage",
    [(b"garbage", 10.0), ("text", 10.0), (None, None), 42, "x", (..., 5.0), (b"x", float("nan")), ()],
    ids=repr,
)
def test_garbage_from_an_in_memory_cache_is_a_miss(garbage: Any, sandbox: Sandbox) -> None:
    """A cache of the process that returns something else than was stored fails no call."""

    class Garbage:
        blocking = False

        def get(self, key: str) -> Any:
            return garbage

        def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
            return True

    auth = make(AxiaAuth, sandbox, cache=Garbage())
    assert requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5).status_code == 200
