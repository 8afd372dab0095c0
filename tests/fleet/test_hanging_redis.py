"""Redis hangs: calls wait for it in bounded time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import pytest
import redis
import requests
from conftest import NO_TLS, api_url, make
from redis_servers import (
    LOOPBACK,
    FleetClock,
    Proxy,
    RedisServer,
)

from baas_auth_plugins import (
    BS2Auth,
    OAuth2ClientCredentialsAuth,
    Token,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Sandbox
from fleet.conftest import BACKENDS, elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_event_loop_goes_on_while_redis_hangs(server: RedisServer, sandbox: Sandbox) -> None:
    """While Redis does not answer, a call in an event loop succeeds, and the other tasks of the loop go on."""
    server.freeze()

    async def main(auth: OAuth2ClientCredentialsAuth) -> tuple[int, int]:
        ticks, done = 0, anyio.Event()

        async def tick() -> None:
            nonlocal ticks
            while not done.is_set():
                await anyio.sleep(0.01)
                ticks += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            async with httpx.AsyncClient(auth=auth, verify=NO_TLS, timeout=30) as client:
                status = (await client.get(api_url(BS2Auth, sandbox))).status_code
            done.set()
        return status, ticks

    with ThreadPoolExecutor(2) as pool:
        auths = [make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port))) for _ in range(2)]
        loops = [
            pool.submit(anyio.run, main, auth, backend=backend)
            for auth, backend in zip(auths, ("asyncio", "trio"), strict=True)
        ]
    for status, ticks in (loop.result() for loop in loops):
        assert status == 200
        assert ticks > 20  # a loop that waits for Redis itself ticks once per operation


@BACKENDS
def test_rejected_tasks_while_redis_hangs(backend: str, server: RedisServer, sandbox: Sandbox) -> None:
    """When all calls of a process are rejected while Redis does not answer, they wait for Redis together, once."""
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

    assert anyio.run(main, backend=backend) == [200] * 60
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("max_wait", [2, 6])
def test_little_patience_while_redis_hangs(max_wait: float, server: RedisServer, sandbox: Sandbox) -> None:
    """Waiting for a Redis that does not answer takes half of `max_wait` at most: a caller has time for a token request."""
    rejected, cold = (elsewhere(sandbox, server.port, max_wait=max_wait, headers={"X-Number": n}) for n in "12")
    rejected.get_token()
    sandbox.revoke_all()
    server.freeze()
    url = api_url(BS2Auth, sandbox)
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(requests.get, url, auth=auth, timeout=30) for auth in (cold, rejected) for _ in range(10)]
        assert {call.result().status_code for call in calls} == {200}


def test_invalidate_does_not_wait_for_redis(server: RedisServer, sandbox: Sandbox) -> None:
    """While Redis does not answer, `invalidate` drops the token in this process, and waits for a bounded time."""
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)))
    old = auth.get_token()
    server.freeze()
    started = time.monotonic()
    auth.invalidate()
    assert time.monotonic() - started < 20
    assert auth.get_token() != old


@BACKENDS
def test_impatient_tasks_while_redis_hangs(backend: str, server: RedisServer, sandbox: Sandbox) -> None:
    """While Redis hangs, callers that are cancelled after a second do not all fail: the third goes on without Redis."""
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)))
    server.freeze()

    async def main() -> list[Token]:
        tokens: list[Token] = []
        for _ in range(3):
            with anyio.move_on_after(1):
                tokens.append(await auth.aget_token())
        return tokens

    assert anyio.run(main, backend=backend)


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


def test_interpreter_exits_while_redis_hangs(server: RedisServer, sandbox: Sandbox) -> None:
    """A process ends at once, without output, although an operation on Redis hangs in it."""
    server.freeze()
    script = f"""
        import threading
        import redis
        from baas_auth_plugins import BS2Auth
        from baas_auth_plugins.cache.redis import RedisTokenCache
        cache = RedisTokenCache(redis.Redis("{LOOPBACK}", {server.port}))
        auth = BS2Auth({sandbox.client_id!r}, {sandbox.client_secret!r}, scope="cob.read", base_url={sandbox.url!r}, cache=cache)
        threading.Thread(target=auth.get_token, daemon=True).start()
        while not any(thread.name == "baas-auth" for thread in threading.enumerate()):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert (done.returncode, done.stderr) == (0, "")
