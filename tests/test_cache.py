"""What every cache promises: one suite for memory, Redis and a backend of a user's own."""

from __future__ import annotations

import pickle
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis
import requests
from conftest import FakeClock, api_url, make
from redis_servers import LOOPBACK, Member, RedisServer, at_once, pass_time

from baas_auth_plugins import AvistaAuth, AxiaAuth, MemoryTokenCache, TokenCache
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Fault, Sandbox

EVERY_BYTE = bytes(range(256))


class SQLiteTokenCache:
    """Keeps tokens in a file, for all processes of this machine: what a user writes who has no Redis."""

    blocking = True

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB, until REAL)")

    def get(self, key: str) -> tuple[bytes, float] | None:
        with self._open() as database:
            now = time.time()
            kept = database.execute("SELECT value, until FROM kept WHERE key = ? AND until > ?", (key, now)).fetchone()
        return kept and (kept[0], kept[1] - now)

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        with self._open() as database:
            known = database.execute("SELECT value FROM kept WHERE key = ? AND until > ?", (key, time.time()))
            if (known.fetchone() or (None,))[0] != old:
                return False
            database.execute("DELETE FROM kept WHERE key = ?", (key,))
            if new is not None:
                database.execute("INSERT INTO kept VALUES (?, ?, ?)", (key, new, time.time() + ttl))
        return True

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as database, database:
            database.execute("BEGIN IMMEDIATE")
            yield database


class Store:
    """A place where values are kept, the caches that look into it, and its time."""

    def __init__(self, connect: Callable[[], Any], pass_time: Callable[[float], None]) -> None:
        self.connect = connect
        self.pass_time = pass_time
        self.cache = connect()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture(params=["memory", "redis", "redis-decoding", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each kind of cache, with time that passes when told."""
    if request.param == "memory":
        now = FakeClock()
        memory = MemoryTokenCache(timer=lambda: now.monotonic)
        return Store(lambda: memory, now.advance)
    if request.param == "sqlite":
        path = tmp_path / "tokens.db"

        def grow_older(seconds: float) -> None:
            with sqlite3.connect(path) as database:
                database.execute("UPDATE kept SET until = until - ?", (seconds,))
            database.close()

        return Store(lambda: SQLiteTokenCache(path), grow_older)
    server: RedisServer = request.getfixturevalue("server")
    decoding = request.param == "redis-decoding"
    return Store(
        lambda: RedisTokenCache(redis.Redis(LOOPBACK, server.port, decode_responses=decoding)),
        lambda seconds: pass_time(seconds, server),
    )


def test_nothing_is_kept_at_first(store: Store) -> None:
    """An empty cache has nothing, and is a `TokenCache`."""
    assert isinstance(store.cache, TokenCache)
    assert store.cache.get("key") is None


@pytest.mark.parametrize("value", [b"x", EVERY_BYTE, b"\r\n*1\r\n$4\r\nPING\r\n", b"7", bytes(100_000)], ids=len)
def test_what_was_put_there_is_there(value: bytes, store: Store) -> None:
    """Whatever bytes are put where nothing was are found by everyone, with their time to live."""
    assert store.cache.swap("key", None, value, 60)
    kept, ttl = store.connect().get("key")
    assert kept == value
    assert 59 < ttl <= 60


def test_time_to_live_counts_down(store: Store) -> None:
    """What is kept tells how long it still will be, and is gone after that, for `get` and for `swap`."""
    store.cache.swap("key", None, b"value", 60)
    store.pass_time(45)
    assert 14 < store.cache.get("key")[1] <= 15
    store.pass_time(15.5)
    assert store.cache.get("key") is None
    assert not store.cache.swap("key", b"value", b"other", 60)
    assert store.cache.swap("key", None, b"other", 60)


def test_swap_of_what_is_there(store: Store) -> None:
    """What the caller has seen is replaced, with a time to live of its own."""
    store.cache.swap("key", None, b"old", 60)
    assert store.cache.swap("key", b"old", b"new", 600)
    kept, ttl = store.cache.get("key")
    assert kept == b"new"
    assert 599 < ttl <= 600


def test_swap_with_the_same_value(store: Store) -> None:
    """A value may be swapped for itself, to live longer."""
    store.cache.swap("key", None, b"value", 60)
    assert store.cache.swap("key", b"value", b"value", 600)
    assert store.cache.get("key")[1] > 599


@pytest.mark.parametrize("old", [None, b"another", b"value ", b"valu", b"VALUE"])
@pytest.mark.parametrize("new", [None, b"new"])
def test_swap_of_something_else(old: bytes | None, new: bytes | None, store: Store) -> None:
    """Where something else is than the caller has seen, nothing is changed."""
    store.cache.swap("key", None, b"value", 60)
    assert not store.cache.swap("key", old, new, 600)
    kept, ttl = store.cache.get("key")
    assert kept == b"value"
    assert ttl <= 60


@pytest.mark.parametrize("new", [None, b"new"])
def test_swap_where_nothing_is(new: bytes | None, store: Store) -> None:
    """Where nothing is, nothing is replaced."""
    assert not store.cache.swap("key", b"old", new, 60)
    assert store.cache.get("key") is None


def test_deletion(store: Store) -> None:
    """What the caller has seen is deleted, and may be put there anew."""
    store.cache.swap("key", None, b"value", 60)
    assert store.cache.swap("key", b"value", None, 60)
    assert store.cache.get("key") is None
    assert store.cache.swap("key", None, b"value", 60)


def test_nothing_for_nothing(store: Store) -> None:
    """To put nothing where nothing is succeeds, and leaves nothing."""
    assert store.cache.swap("key", None, None, 60)
    assert store.cache.get("key") is None


def test_shortest_time_to_live(store: Store) -> None:
    """A time to live of a fraction of a millisecond is no error, and soon over."""
    assert store.cache.swap("key", None, b"value", 0.0004)
    store.pass_time(0.01)
    assert store.cache.get("key") is None


def test_keys_do_not_touch(store: Store) -> None:
    """What is done under one key is not seen under any other."""
    keys = ("key", "key2", "KEY", "key:", "k*", "chave-ção")
    for number, key in enumerate(keys):
        assert store.cache.get(key) is None
        assert store.cache.swap(key, None, b"%d" % number, 60)
    store.cache.swap("key", b"0", None, 60)
    assert [store.cache.get(key) and store.cache.get(key)[0] for key in keys] == [None, b"1", b"2", b"3", b"4", b"5"]


def test_one_winner(store: Store) -> None:
    """Of 16 threads that replace the same value at once, exactly one succeeds, and its value is what is there."""
    rounds, count = 25, 16
    barrier = threading.Barrier(count)
    caches = [store.connect() for _ in range(count)]
    won: list[tuple[int, bytes]] = []

    def compete(number: int) -> None:
        for round_number in range(rounds):
            barrier.wait(30)
            kept = store.cache.get("key")
            mine = b"%d of %d" % (number, round_number)
            barrier.wait(30)
            if caches[number].swap("key", kept and kept[0], mine, 60):
                won.append((round_number, mine))
            barrier.wait(30)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(compete, range(count)))
    assert [number for number, _ in won] == list(range(rounds))
    assert store.cache.get("key")[0] == won[-1][1]


def test_no_change_is_lost(store: Store) -> None:
    """16 threads that look and swap until it works, now and then deleting, count without losing a step."""
    deleted: list[int] = []

    def count(number: int) -> None:
        rng, steps = random.Random(number), 10  # noqa: S311  # a test, not cryptography
        while steps:
            kept = store.cache.get("key")
            total = int(kept[0]) if kept else 0
            if rng.random() < 0.1:
                if store.cache.swap("key", kept and kept[0], None, 60):
                    deleted.append(total)
            elif store.cache.swap("key", kept and kept[0], b"%d" % (total + 1), 60):
                steps -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(count, range(16)))
    left = store.cache.get("key")
    assert (int(left[0]) if left else 0) + sum(deleted) == 160


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_backend_of_a_users_own_makes_a_fleet(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whatever can compare and swap makes processes share one token request: here, 20 lines over a SQLite file."""
    sandbox.inject(Fault("delay", delay=0.3))

    class Caller:
        def __init__(self) -> None:
            self.auth = make(AxiaAuth, sandbox, cache=SQLiteTokenCache(tmp_path / "tokens.db"))

        def token(self) -> str:
            return self.auth.get_token().access_token

    members = [Member(Caller) for _ in range(4)]
    try:
        assert len(set(at_once(members, "token"))) == 1
    finally:
        for member in members:
            member.kill()
    assert sandbox.count("token") == 1
    assert b"eyJ" not in (tmp_path / "tokens.db").read_bytes()  # which every JWT begins with


class SharedMemory(MemoryTokenCache):
    """A cache that is used as one is that does I/O."""

    blocking: ClassVar[bool] = True


def test_slow_backend_costs_time_and_no_token(clock: FakeClock, sandbox: Sandbox) -> None:
    """With a cache so slow that a lead lapses before it is used, a token is minted all the same."""

    class Slow(SharedMemory):
        def get(self, key: str) -> Any:
            clock.advance(1)
            return super().get(key)

        def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
            clock.advance(1)
            return super().swap(key, old, new, ttl)

    started = clock.monotonic
    assert make(AxiaAuth, sandbox, cache=Slow()).get_token()
    assert clock.monotonic - started < 20
    assert sandbox.count("token") == 1


def test_backend_without_enough_connections_warns_once(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """An operation that began before another failed, and succeeds, does not say that the cache is back."""
    begun, go_on = threading.Event(), threading.Event()

    class OneConnection(SharedMemory):
        def get(self, key: str) -> Any:
            if begun.is_set():
                raise ConnectionError
            begun.set()
            go_on.wait(10)
            return super().get(key)

    cache = OneConnection()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(make(AvistaAuth, sandbox, cache=cache, headers={"X-Number": "1"}).get_token)
        begun.wait(10)
        make(AvistaAuth, sandbox, cache=cache, headers={"X-Number": "2"}).get_token()
        go_on.set()
        first.result()
    make(AvistaAuth, sandbox, cache=cache, headers={"X-Number": "3"}).get_token()
    assert [record.levelname for record in caplog.records if "the token cache" in record.message] == ["WARNING"]
    assert sandbox.count("token") == 3


class Hiccup(SharedMemory):
    """Fails as often as it is told to, in front of a store that all have in common."""

    def __init__(self, store: MemoryTokenCache) -> None:
        super().__init__()
        self.store = store
        self.failing = 0

    def get(self, key: str) -> Any:
        if self.failing:
            self.failing -= 1
            raise ConnectionError
        return self.store.get(key)

    def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
        return self.store.swap(key, old, new, ttl)


def test_short_outage_is_no_reason_to_renew_alone(clock: FakeClock, sandbox: Sandbox) -> None:
    """With a valid token, a cache that failed twice in a row is given its pause: others may have renewed by then."""
    cache = Hiccup(MemoryTokenCache())
    auth = make(AxiaAuth, sandbox, cache=cache)
    old = auth.get_token()
    clock.advance(3310)
    cache.failing = 2
    for _ in range(4):
        assert auth.get_token() is old
        clock.advance(1)
    assert sandbox.count("token") == 1
    other = make(AxiaAuth, sandbox, cache=Hiccup(cache.store))
    while other.get_token().access_token == old.access_token:
        assert sandbox.count("token") == 1
    clock.advance(2)
    assert auth.get_token().access_token == other.get_token().access_token
    assert sandbox.count("token") == 2


def test_outage_is_a_reason_to_renew_alone(clock: FakeClock, sandbox: Sandbox) -> None:
    """A cache that is down for longer keeps no token from being renewed in time."""
    cache = Hiccup(MemoryTokenCache())
    auth = make(AxiaAuth, sandbox, cache=cache)
    old = auth.get_token()
    clock.advance(3310)
    cache.failing = 1000
    for _ in range(10):
        auth.get_token()
        clock.advance(1)
    assert auth.get_token() is not old
    assert sandbox.count("token") == 2


def test_hiccup_is_no_reason_to_mint_alone(clock: FakeClock, sandbox: Sandbox) -> None:
    """After a rejection, a cache that failed once is asked once more: another process may have minted already."""
    store = MemoryTokenCache()
    caches = Hiccup(store), Hiccup(store)
    one, two = (make(AxiaAuth, sandbox, cache=cache) for cache in caches)
    url = api_url(AxiaAuth, sandbox)
    assert [requests.get(url, auth=auth, timeout=9).status_code for auth in (one, two)] == [200, 200]
    sandbox.revoke_all()
    assert requests.get(url, auth=one, timeout=9).status_code == 200
    caches[1].failing = 1
    assert requests.get(url, auth=two, timeout=9).status_code == 200
    assert sandbox.count("token") == 2


def test_backend_that_is_back_is_asked_before_the_next_attempt(
    clock: FakeClock, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who found the cache down looks there again before it tries again, and takes what came meanwhile."""
    kept, down = MemoryTokenCache(), True

    class Failing(SharedMemory):
        def get(self, key: str) -> Any:
            if down:
                raise ConnectionError
            return kept.get(key)

        def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
            return kept.swap(key, old, new, ttl)

    others: list[str] = []

    def sleep(seconds: float) -> None:
        nonlocal down
        down = False
        clock.advance(seconds)
        others.append(make(AxiaAuth, sandbox, cache=Failing()).get_token().access_token)

    monkeypatch.setattr(time, "sleep", sleep)
    sandbox.inject(Fault("status", status=429, retry_after=20))
    assert [make(AxiaAuth, sandbox, cache=Failing()).get_token().access_token] == others
    assert sandbox.count("token") == 2


def test_memory_keeps_the_latest(clock: FakeClock) -> None:
    """The cache in memory holds so many values at most, and drops the one that was not used for longest."""
    cache = MemoryTokenCache(maxsize=2)
    for key in ("a", "b"):
        cache.swap(key, None, b"value", 60)
    assert cache.get("a")
    cache.swap("c", None, b"value", 60)
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    clock.advance(61)
    assert [cache.get(key) for key in "abc"] == [None] * 3


def test_namespaces_do_not_touch(server: RedisServer) -> None:
    """Two namespaces on one Redis server see nothing of each other, and keys begin with theirs."""
    client = redis.Redis(LOOPBACK, server.port)
    one, two = (RedisTokenCache(client, namespace=name) for name in ("one", "two"))
    one.swap("key", None, b"value", 60)
    assert two.get("key") is None
    assert two.swap("key", None, b"other", 60)
    assert one.get("key")[0] == b"value"
    assert sorted(server.values()) == [b"one:key", b"two:key"]


@pytest.mark.parametrize("kind", ["list", "hash", "set", "stream"])
def test_redis_value_of_another_type(kind: str, server: RedisServer) -> None:
    """A key that holds no string counts as empty: it can be read, and is replaced."""
    client = redis.Redis(LOOPBACK, server.port)
    cache = RedisTokenCache(client)
    commands = {
        "list": ("RPUSH", "x"),
        "hash": ("HSET", "x", "y"),
        "set": ("SADD", "x"),
        "stream": ("XADD", "*", "x", "y"),
    }
    command, *content = commands[kind]
    client.execute_command(command, "baas-auth:key", *content)
    assert cache.get("key") is None
    assert not cache.swap("key", b"value", b"new", 60)
    assert cache.swap("key", None, b"new", 60)
    assert cache.get("key")[0] == b"new"


def test_redis_value_that_never_expires(server: RedisServer) -> None:
    """A value that somebody made persist is found without any time to live."""
    client = redis.Redis(LOOPBACK, server.port)
    cache = RedisTokenCache(client)
    cache.swap("key", None, b"value", 60)
    client.persist("baas-auth:key")
    value, ttl = cache.get("key")
    assert (value, ttl <= 0) == (b"value", True)
    assert cache.swap("key", b"value", b"new", 60)
    assert cache.get("key")[1] > 59


def test_redis_errors_are_raised(server: RedisServer) -> None:
    """A cache says what went wrong: whoever uses it decides what follows."""
    cache = RedisTokenCache(server.client())
    server.kill()
    with pytest.raises(redis.ConnectionError):
        cache.get("key")
    with pytest.raises(redis.ConnectionError):
        cache.swap("key", None, b"value", 60)


def test_memory_is_pickled_empty() -> None:
    """A cache in memory is pickled with its size alone: no token is ever at rest."""
    cache = MemoryTokenCache(maxsize=7)
    cache.swap("key", None, b"value", 60)
    assert b"value" not in pickle.dumps(cache)
    assert pickle.loads(pickle.dumps(cache)).get("key") is None  # noqa: S301
