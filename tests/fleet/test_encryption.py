"""What lies in Redis is encrypted, expires, and is worth nothing to whoever changes it."""

from __future__ import annotations

import base64
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import redis
from redis_servers import (
    FleetClock,
    RedisServer,
    at_once,
    until,
)

from baas_auth_plugins import (
    AvistaAuth,
    InvalidClientError,
    RateLimitError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox
from fleet.conftest import Join

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def assert_encrypted(server: RedisServer, *secrets: str) -> None:
    """Check that Redis holds records, and that none of them shows any of these strings."""
    values = server.values()
    assert values
    everything = b"\n".join([*values, *values.values()])
    for secret in secrets:
        assert secret.encode() not in everything
        assert base64.b64encode(secret.encode()) not in everything
    for key in values:
        assert re.fullmatch(rb"baas-auth:v2:[0-9a-f]{64}", key)


def test_encrypted_at_rest(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """At no moment does Redis hold a token, a client_id, a secret, a scope, or what the gateway said."""
    member = join(max_wait=1)
    hidden = [sandbox.client_id, sandbox.client_secret, f"{sandbox.client_id}:{sandbox.client_secret}"]
    hidden += ["cob.read", "pix.read", sandbox.url, "bs2", "access_token", "leader", "Bearer"]
    sandbox.inject(Fault("delay", delay=0.5))
    member.begin("token")
    until(lambda: sandbox.count("token"))
    assert_encrypted(server, *hidden)
    hidden.append(member.result())
    assert_encrypted(server, *hidden)
    sandbox.revoke_all()
    assert member.do("call") == 200
    hidden.append(member.do("token"))
    assert_encrypted(server, *hidden)
    sandbox.inject(Fault("status", status=400, body=b'{"error": "access_denied", "error_description": "a long story"}'))
    assert isinstance(member.do("mint"), Exception)
    assert_encrypted(server, *hidden, "access_denied", "a long story")
    fleet_clock.advance(120, server)
    sandbox.inject(Fault("status", status=429, retry_after=20))
    assert isinstance(member.do("mint"), RateLimitError)
    assert_encrypted(server, *hidden)


def test_everything_expires(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """Nothing stays in Redis for much longer than the token lives."""
    join().do("call")
    sandbox.revoke_all()
    join().do("call")
    assert server.values()
    fleet_clock.advance(400, server)
    assert not server.values()


def test_wrong_secret_gets_nobody_elses_token(join: Join, sandbox: Sandbox) -> None:
    """Without the secret, no token can be read from Redis, although all other parameters are equal."""
    join().do("token")
    assert isinstance(join(client_secret="wrong").do("token"), InvalidClientError)
    assert isinstance(join(client_secret="wrong").do("token"), InvalidClientError)
    assert sandbox.count("token") == 2


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
    """A value that was changed, cut, moved or replaced by others is a miss: no error, no foreign token, and it is overwritten."""
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
    """No process uses an expired token, also when a writer prolongs its key."""
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
    """A revoked token that a writer puts back into Redis costs the process that finds it a replay, and no other process."""
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


def test_vandal(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """A writer that overwrites every key with garbage, all the time, causes token requests, and no call fails."""
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
