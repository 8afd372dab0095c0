"""Cache operations that take effect after their caller gave them up."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import anyio
import pytest
import redis
import requests
from conftest import api_url, make
from redis_servers import (
    LOOPBACK,
    FleetClock,
    Proxy,
    RedisServer,
    until,
)

from baas_auth_plugins import (
    AvistaAuth,
    BS2Auth,
    OAuth2ClientCredentialsAuth,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Sandbox
from fleet.conftest import BACKENDS, LONG_LEASE, PAUSE, Case, FreeAuth, elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_an_abandoned_operation_leaves_no_lease(server: RedisServer, sandbox: Sandbox) -> None:
    """A process that gave up on a hanging Redis holds no lease when Redis goes on: no other process waits."""
    server.freeze()
    assert elsewhere(sandbox, server.port, **LONG_LEASE).get_token()
    server.thaw()
    for _ in range(3):
        assert elsewhere(sandbox, server.port, **LONG_LEASE).get_token()
        until(lambda: "baas-auth" not in {thread.name for thread in threading.enumerate()})  # late retries, too
    assert sandbox.count("token") <= 2


def test_a_late_command_leaves_no_lease(
    server: RedisServer, new_sandbox: Callable[..., Sandbox], cases: list[Case]
) -> None:
    """If a command of a cold call reaches Redis after it was given up, the next process need not wait. Tried for each command."""
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
        seen = len(case.proxy.commands)
        case.proxy.let_go()
        if case.proxy.failed:
            with suppress(AssertionError):  # what is held may be all that was to come
                until(lambda case=case, seen=seen: len(case.proxy.commands) > seen, 0.1)
    sandbox.revoke_all()  # so that whoever finds a token there needs the lead, too
    everywhere(Case.call_elsewhere)
    assert {case.name: set(case.statuses) for case in cases} == {case.name: {200} for case in cases}


@BACKENDS
def test_cancelled_tasks_leave_no_lease(backend: str, server: RedisServer, sandbox: Sandbox) -> None:
    """When tasks are cancelled during operations on Redis, at any moment, the next process need not wait."""
    rng = random.Random(7)  # noqa: S311  # a test, not cryptography
    for number in range(12):
        headers = {"X-Round": str(number)}
        auths = [
            make(
                AvistaAuth,
                sandbox,
                cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port)),
                headers=headers,
                **LONG_LEASE,
            )
            for _ in range(2)
        ]

        async def main(auth: OAuth2ClientCredentialsAuth = auths[0]) -> None:
            async def be_impatient() -> None:
                with anyio.move_on_after(rng.uniform(0, 0.03)):
                    await auth.aget_token()

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(be_impatient)

        anyio.run(main, backend=backend)
        assert auths[1].get_token()


def test_late_write_does_not_pass_for_a_new_token(
    server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock, witness: Proxy
) -> None:
    """A token that reaches Redis after its successor was issued does not replace that one."""
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


def test_lease_that_is_given_after_its_caller_was_cancelled(
    server: RedisServer, sandbox: Sandbox, witness: Proxy
) -> None:
    """A lease that Redis gives only after its caller was cancelled is given back then: no other process waits for it."""
    elsewhere(sandbox, witness.port, headers={"X-Rehearsal": "1"}).get_token()
    taking = [number for number, name in enumerate(witness.commands, 1) if name == "EVAL"][1]
    auth = elsewhere(sandbox, witness.port, **LONG_LEASE)
    witness.fail_at(taking, "hold", for_good=False)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(auth.aget_token)
            while not witness.failed:
                await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    witness.let_go()
    until(server.values)
    assert elsewhere(sandbox, server.port, **LONG_LEASE).get_token()
