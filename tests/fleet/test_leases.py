"""The lease of a leader that vanishes, hangs or is cancelled."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import pytest
import redis
from conftest import NO_TLS, api_url, make
from gate import Gate
from redis_servers import (
    LOOPBACK,
    FleetClock,
    Proxy,
    RedisServer,
    at_once,
    until,
)

from baas_auth_plugins import (
    BS2Auth,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Fault, Sandbox
from fleet.conftest import BACKENDS, LEASE, Join

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def is_waiting(proxy: Proxy) -> bool:
    """Return whether a process behind this proxy found another's lease, and polls."""
    return proxy.commands.count("EVAL") >= 3


def test_leader_is_killed(
    join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy, fleet_clock: FleetClock
) -> None:
    """A process that is killed while it leads delays the others until its lease is over, and no longer."""
    sandbox.inject(Fault("hang", delay=60))
    leader, waiting = join(timeout=40), join(timeout=40, max_wait=40 + LEASE + 20, port=witness.port)
    leader.begin("call")
    until(lambda: sandbox.count("token"))
    waiting.begin("call")
    until(lambda: is_waiting(witness))
    leader.kill()
    looks = len(witness.commands)
    until(lambda: len(witness.commands) > looks + 2)
    assert sandbox.count("token") == 1  # the lease holds
    fleet_clock.advance(40 + LEASE, server)
    assert waiting.result() == 200  # within the 20 s that are left of its `max_wait`
    assert sandbox.count("token") == 2


def test_lease_that_somebody_prolongs(
    join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy, fleet_clock: FleetClock
) -> None:
    """The lease of a leader that was killed ends on time, even if its key is given a longer life."""
    sandbox.inject(Fault("hang", delay=60))
    leader, waiting = join(timeout=2), join(timeout=2, max_wait=30, port=witness.port)
    leader.begin("call")
    until(lambda: sandbox.count("token"))
    leader.kill()
    with server.client() as client:
        for key in server.values():
            client.pexpire(key, 10_000_000)
    fleet_clock.advance(2 + LEASE, server)
    assert waiting.do("call") == 200
    assert sandbox.count("token") == 2


def test_leader_is_frozen(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """A leader that is frozen until its lease is over adopts the token that another process published meanwhile."""
    sandbox.single_active_token = True
    with Gate(sandbox.url) as gate:
        place = {"timeout": 40, "base_url": gate.url, "allowed_origins": [sandbox.url]}
        frozen, other = join(**place), join(**place)
        at_once([frozen, other], "ready")
        gate.shut()
        frozen.begin("call")
        assert gate.held.wait(30)
        frozen.freeze()
        gate.open()
        until(lambda: sandbox.count("token"))
        fleet_clock.advance(40 + LEASE, server)
        assert other.do("call") == 200
        frozen.thaw()
        assert frozen.result() == 200
        assert len({member.do("token") for member in (frozen, other, join(**place))}) == 1
        assert sandbox.count("token") == 2


def test_leader_that_lives_is_waited_for(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """While a token request takes nearly all of its time, no other process sends a second one."""
    sandbox.inject(Fault("delay", delay=0.7))
    leader, *others = members = [join(timeout=20) for _ in range(4)]
    at_once(members, "ready")
    leader.begin("call")
    until(lambda: sandbox.count("token"))
    fleet_clock.advance(19, server)
    assert at_once(others, "call") == [200] * 3
    assert leader.result() == 200
    assert sandbox.count("token") == 1


@BACKENDS
def test_leader_is_cancelled(backend: str, join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy) -> None:
    """A leader whose task is cancelled in the middle of its token request lets another process lead at once."""
    sandbox.inject(Fault("hang", delay=60))
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)), timeout=30)
    waiting = join(port=witness.port, max_wait=25)  # less than the lease

    async def main() -> None:
        async with httpx.AsyncClient(auth=auth, verify=NO_TLS, timeout=60) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.get, api_url(BS2Auth, sandbox))
                while not sandbox.count("token"):
                    await anyio.sleep(0.005)
                waiting.begin("call")
                while not is_waiting(witness):
                    await anyio.sleep(0.005)
                tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert waiting.result() == 200
    assert sandbox.count("token") == 2


def test_leader_loses_its_connection(join: Join, server: RedisServer, sandbox: Sandbox, witness: Proxy) -> None:
    """With httpx, a leader whose token request meets a network error lets another process lead at once."""
    sandbox.inject(Fault("drop", delay=0.5))
    auth = make(BS2Auth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)), timeout=30)
    waiting = join(port=witness.port, max_wait=25)  # less than the lease
    with ThreadPoolExecutor(1) as pool, httpx.Client(auth=auth, verify=NO_TLS, timeout=60) as client:
        leading = pool.submit(client.get, api_url(BS2Auth, sandbox))
        until(lambda: sandbox.count("token"))
        waiting.begin("call")
        assert isinstance(leading.exception(30), httpx.RemoteProtocolError)
    assert waiting.result() == 200
    assert sandbox.count("token") == 2


def test_nobody_waits_past_max_wait(join: Join, sandbox: Sandbox) -> None:
    """While another process leads in vain, a caller gets a typed error after its own `max_wait`."""
    sandbox.inject(Fault("hang", delay=60, times=-1))
    leader, waiting = join(timeout=30), join(timeout=30, max_wait=0.7)
    leader.begin("call")
    until(lambda: sandbox.count("token"))
    started = time.monotonic()
    assert isinstance(waiting.do("token"), TokenEndpointUnavailableError)
    assert time.monotonic() - started < 20  # the leader's request goes on for 30 s
    assert sandbox.count("token") == 1
