"""Single flight with real threads, event loops and sockets: crowds, death of a leader, shared failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import requests
import trio
from conftest import NO_TLS, Auth, api_url, make, sent_tokens
from requests.adapters import HTTPAdapter

from baas_auth_plugins import (
    AxiaAuth,
    BaaSAuthError,
    BS2Auth,
    MemoryTokenCache,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

MODULES = pytest.mark.parametrize("module", [httpx, httpx2], ids=lambda module: module.__name__)
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def at_once(count: int, function: Callable[[], Any]) -> list[Any]:
    """Call a function in so many threads at the same moment; return results and exceptions alike."""
    barrier = threading.Barrier(count)

    def call() -> Any:
        barrier.wait(30)
        try:
            return function()
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return [future.result(60) for future in [pool.submit(call) for _ in range(count)]]


async def gather(count: int, function: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Await a function in so many tasks; return results and exceptions alike."""
    results: list[Any] = []

    async def call() -> None:
        try:
            results.append(await function())
        except Exception as error:
            results.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(call)
    return results


def async_client(module: ModuleType, auth: Any, **options: Any) -> Any:
    return module.AsyncClient(**{"auth": auth, "verify": NO_TLS, "timeout": 30, "trust_env": False} | options)


def test_64_cold_threads(auth_class: Auth, sandbox: Sandbox) -> None:
    """64 threads on a cold cache make one token request, and all their calls succeed."""
    auth, url = make(auth_class, sandbox), api_url(auth_class, sandbox)
    assert at_once(64, lambda: requests.get(url, auth=auth, timeout=30).status_code) == [200] * 64
    assert sandbox.count("token") == 1


@BACKENDS
def test_10_000_cold_tasks(backend: str, sandbox: Sandbox) -> None:
    """10,000 tasks on a cold cache make one token request."""
    auth = make(AxiaAuth, sandbox, timeout=100, max_wait=110)
    tokens = anyio.run(gather, 10_000, auth.aget_token, backend=backend)
    assert len({token.access_token for token in tokens}) == 1
    assert sandbox.count("token") == 1


def test_threads_and_loops_mixed(sandbox: Sandbox) -> None:
    """Threads, two asyncio loops and trio, at once on one object, make one token request."""
    sandbox.inject(Fault("delay", delay=0.3))
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    statuses: list[int] = []

    async def crowd(module: ModuleType) -> None:
        async with async_client(module, auth) as client:

            async def call() -> int:
                return int((await client.get(url)).status_code)

            statuses.extend(await gather(20, call))

    def call() -> None:
        statuses.append(requests.get(url, auth=auth, timeout=30).status_code)

    loops = [(crowd, httpx, "asyncio"), (crowd, httpx2, "asyncio"), (crowd, httpx, "trio")]
    threads = [threading.Thread(target=call) for _ in range(20)]
    threads += [threading.Thread(target=anyio.run, args=(f, m), kwargs={"backend": b}) for f, m, b in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 80
    assert sandbox.count("token") == 1


def test_equal_auth_objects_share_one_flight(sandbox: Sandbox) -> None:
    """Auth objects with equal credentials and the same cache share one flight."""
    cache, url = MemoryTokenCache(), api_url(AxiaAuth, sandbox)
    results = at_once(20, lambda: requests.get(url, auth=make(AxiaAuth, sandbox, cache=cache), timeout=30).status_code)
    assert results == [200] * 20
    assert sandbox.count("token") == 1


def test_one_object_in_many_event_loops_one_after_the_other(sandbox: Sandbox) -> None:
    """`asyncio.run` works any number of times on one object, its state bound to none of the loops."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)

    async def call() -> int:
        async with async_client(httpx, auth) as client:
            return int((await client.get(url)).status_code)

    for _ in range(3):
        assert asyncio.run(call()) == 200
        auth.invalidate()
    assert trio.run(call) == 200
    assert sandbox.count("token") == 4


@MODULES
@BACKENDS
def test_cancelled_leader_hands_over(module: ModuleType, backend: str, sandbox: Sandbox) -> None:
    """When a leader is cancelled while the gateway hangs, a waiter leads at once, and no other call fails."""
    sandbox.inject(Fault("hang", delay=60))
    auth, url = make(AxiaAuth, sandbox, timeout=100), api_url(AxiaAuth, sandbox)

    async def main() -> tuple[list[Any], bool, float]:
        async with async_client(module, auth) as client:

            async def call() -> int:
                return int((await client.get(url)).status_code)

            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()

                async def lead() -> None:
                    with scope:
                        await call()

                tasks.start_soon(lead)
                await arrived(sandbox, 1)
                results: list[Any] = []

                async def wait() -> None:
                    results.extend(await gather(10, call))

                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked() if backend == "trio" else await anyio.sleep(0)
                cancelled = time.monotonic()
                scope.cancel()
            return results, scope.cancelled_caught, time.monotonic() - cancelled

    results, cancelled, took = anyio.run(main, backend=backend)
    assert cancelled
    assert results == [200] * 10
    assert took < 30  # the cancelled request would have gone on for 60 s
    assert sandbox.count("token") == 2


async def arrived(sandbox: Sandbox, count: int, kind: str = "token") -> None:
    """Wait until so many requests have reached the sandbox."""
    with anyio.fail_after(30):
        while sandbox.count(kind) < count:
            await anyio.sleep(0.005)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_token_request_outlives_the_leader_that_was_cancelled(backend: str, sandbox: Sandbox) -> None:
    """Thirty callers give up on a slow token request that a thread sends: the next one waits for its answer."""
    sandbox.inject(Fault("delay", "token", delay=1, times=-1))
    auth = make(BS2Auth, sandbox)

    async def impatient() -> None:
        with anyio.move_on_after(0.03):
            await auth.aget_token()

    async def main() -> str:
        async with anyio.create_task_group() as group:
            for _ in range(15):  # some wait, and others come after the last leader has left
                group.start_soon(impatient)
                await impatient()
        return (await auth.aget_token()).access_token

    assert anyio.run(main, backend=backend)
    assert (sandbox.count("token"), sandbox.max_in_flight) == (1, 1)


def test_wait_for_of_the_impatient_costs_the_patient_nothing(sandbox: Sandbox) -> None:
    """Leaders that give up one after the other, with `asyncio.wait_for`, do not make a patient caller fail."""
    sandbox.inject(Fault("hang", delay=60, times=3))
    auth = make(AxiaAuth, sandbox, timeout=1)

    async def main() -> Any:
        impatient = [asyncio.create_task(asyncio.wait_for(auth.aget_token(), 0.2 * n)) for n in (1, 2, 3)]
        await asyncio.sleep(0)  # so that one of them leads
        *timeouts, token = await asyncio.gather(*impatient, auth.aget_token(), return_exceptions=True)
        return timeouts, token

    timeouts, token = asyncio.run(main())
    assert [type(error) for error in timeouts] == [TimeoutError] * 3
    assert token.access_token
    assert sandbox.count("token") <= 4  # fewer where somebody gave up before its request was sent


@MODULES
@BACKENDS
def test_two_lost_connections_end_a_flight(module: ModuleType, backend: str, sandbox: Sandbox) -> None:
    """With httpx, two callers get a network error of httpx's own; all others get the typed one. There is no third request."""
    sandbox.inject(Fault("hang", delay=0.5))
    sandbox.inject(Fault("drop", times=-1))
    auth, url = make(AxiaAuth, sandbox, timeout=0.4), api_url(AxiaAuth, sandbox)

    async def main() -> list[Any]:
        async with async_client(module, auth) as client:
            return await gather(10, lambda: client.get(url))

    errors = anyio.run(main, backend=backend)
    assert all(isinstance(error, module.TransportError) for error in errors)
    assert sum(isinstance(error, TokenEndpointUnavailableError) for error in errors) == 8
    assert sum(not isinstance(error, BaaSAuthError) for error in errors) == 2
    assert sandbox.count("token") == 2


@MODULES
def test_lost_connections_of_tasks_that_were_cancelled_before(module: ModuleType, sandbox: Sandbox) -> None:
    """A cancelled task that cleans up with a call gets network errors as any other: two of them end a flight."""
    sandbox.inject(Fault("drop", times=-1))
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)

    async def main() -> list[Any]:
        async with async_client(module, auth) as client:

            async def work() -> Any:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    return await client.get(url)

            tasks = [asyncio.create_task(work()) for _ in range(10)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    errors = asyncio.run(main())
    assert sum(isinstance(error, TokenEndpointUnavailableError) for error in errors) == 8
    assert sandbox.count("token") == 2


def test_dead_endpoint_fails_everyone_together(sandbox: Sandbox) -> None:
    """50 callers on a dead token endpoint share one failure: they finish together, not one after the other."""
    sandbox.inject(Fault("status", status=503, times=-1))
    auth = make(AxiaAuth, sandbox)
    started = time.monotonic()
    errors = at_once(50, auth.get_token)
    assert {type(error) for error in errors} == {TokenEndpointUnavailableError}
    assert len({id(error) for error in errors}) == 50  # each has an exception object of its own
    assert time.monotonic() - started < 60  # one after the other, they would take more than 90 s
    assert sandbox.count("token") <= 8  # 4 to a flight; a late caller may have begun a second


def test_thread_whose_call_raises_hands_over(sandbox: Sandbox) -> None:
    """When a leader's own session raises an unknown exception, the waiters do not fail."""
    entered, leave = threading.Event(), threading.Event()

    class Broken(HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> Any:
            entered.set()
            leave.wait(30)
            raise KeyError("a bug in somebody's adapter")

    session = requests.Session()
    session.mount("http://", Broken())
    cache = MemoryTokenCache()
    broken, sound = make(AxiaAuth, sandbox, session=session, cache=cache), make(AxiaAuth, sandbox, cache=cache)
    with ThreadPoolExecutor(6) as pool:
        leader = pool.submit(broken.get_token)
        assert entered.wait(30)
        waiters = [pool.submit(sound.get_token) for _ in range(5)]
        leave.set()
        assert isinstance(leader.exception(30), KeyError)
        assert len({waiter.result(30).access_token for waiter in waiters}) == 1


def test_nobody_waits_past_max_wait(sandbox: Sandbox) -> None:
    """While the gateway hangs, each caller gets a typed error at the end of its own `max_wait`."""
    sandbox.inject(Fault("hang", delay=60, times=-1))
    cache = MemoryTokenCache()
    auths = [make(AxiaAuth, sandbox, max_wait=wait, timeout=30, cache=cache) for wait in (0.3, 0.6, 0.9)]
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        errors = [future.exception(30) for future in [pool.submit(auth.get_token) for auth in auths]]
    assert all(isinstance(error, TokenEndpointError) for error in errors)
    assert time.monotonic() - started < 20  # the gateway hangs for 60 s, and `timeout` is 30 s


@MODULES
@pytest.mark.parametrize(("callers", "connections"), [(150, 100), (20, 1)])
def test_rejected_crowd_larger_than_the_pool_of_httpx(
    module: ModuleType, callers: int, connections: int, sandbox: Sandbox
) -> None:
    """More rejected calls than the pool has connections: one token request, no PoolTimeout, no deadlock."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()

    async def main() -> list[Any]:
        limits = module.Limits(max_connections=connections)
        async with async_client(module, auth, limits=limits, timeout=10) as client:

            async def call() -> int:
                return int((await client.get(url)).status_code)

            return await gather(callers, call)

    assert anyio.run(main) == [200] * callers
    assert sandbox.count("token") == 2


def test_rejected_crowd_larger_than_the_pool_of_requests(sandbox: Sandbox) -> None:
    """20 rejected threads on a blocking pool of one connection: one token request and no deadlock."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1, pool_block=True))
        session.auth = auth
        assert at_once(20, lambda: session.get(url, timeout=10).status_code) == [200] * 20
    assert sandbox.count("token") == 2


@BACKENDS
def test_1_000_simultaneous_rejections(backend: str, sandbox: Sandbox) -> None:
    """1,000 simultaneous 401s cost one token request, and every call is answered at its second try."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()

    async def main() -> list[Any]:
        async with async_client(httpx2, auth, limits=httpx2.Limits(max_connections=20), timeout=None) as client:

            async def call() -> int:
                return int((await client.get(url)).status_code)

            return await gather(1000, call)

    assert anyio.run(main, backend=backend) == [200] * 1000
    assert sandbox.count("token") == 2
    assert sandbox.count("api") <= 2000


def test_gateway_where_a_new_token_kills_the_previous_one(new_sandbox: Callable[..., Sandbox]) -> None:
    """On BS2, 20 threads that call across renewals all succeed, with one token request for each renewal."""
    sandbox = new_sandbox(single_active_token=True)
    auth, url = make(BS2Auth, sandbox), api_url(BS2Auth, sandbox)
    rounds = 4
    for _ in range(rounds):
        with requests.Session() as session:
            session.auth = auth
            assert at_once(20, lambda session=session: session.get(url, timeout=30).status_code) == [200] * 20
        sandbox.revoke_all()
    assert sandbox.count("token") == rounds
    assert len(sent_tokens(sandbox)) <= 2 * 20 * rounds


def test_waiter_in_a_closed_event_loop_does_not_stop_the_others(sandbox: Sandbox) -> None:
    """A waiter whose event loop was closed is skipped when the leader hands over."""
    sandbox.inject(Fault("hang", delay=60))
    auth = make(AxiaAuth, sandbox, timeout=30)
    leading, closing = asyncio.new_event_loop(), asyncio.new_event_loop()
    leader = leading.create_task(auth.aget_token())
    leading.run_until_complete(arrived(sandbox, 1))
    stranded = closing.create_task(auth.aget_token())
    closing.run_until_complete(asyncio.sleep(0.05))
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(auth.get_token)
        closing.close()
        leader.cancel()
        with suppress(asyncio.CancelledError):
            leading.run_until_complete(leader)
        leading.close()
        assert patient.result(30).access_token
    assert not stranded.done()
    stranded._log_destroy_pending = False  # type: ignore[attr-defined]  # that it never ends is what was tested


def test_sync_call_in_the_event_loop_that_leads(sandbox: Sandbox) -> None:
    """A blocking call in a coroutine does not wait for a leader in its own thread, which could never answer."""
    sandbox.inject(Fault("delay", delay=0.3))
    auth, url = make(AxiaAuth, sandbox, max_wait=20), api_url(AxiaAuth, sandbox)

    async def main() -> tuple[int, int]:
        async with async_client(httpx, auth) as client:
            leading = asyncio.create_task(client.get(url))
            await arrived_in_flight(sandbox)
            status = requests.get(url, auth=auth, timeout=10).status_code
            return status, (await leading).status_code

    assert asyncio.run(main()) == (200, 200)


async def arrived_in_flight(sandbox: Sandbox) -> None:
    """Wait until a token request has been sent, answered or not."""
    with anyio.fail_after(30):
        while not sandbox.max_in_flight:
            await anyio.sleep(0.005)
