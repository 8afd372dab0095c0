"""A cold start: everybody calls at once, and nobody has a token yet.

The threads call over loopback. The tasks call through httpx.AsyncClient with a transport that answers API calls
in memory and sends token requests to the gateway: httpcore's own queue would take minutes for ten thousand
calls at once. The event loop's longest stall is what a task that sleeps for a millisecond at a time sees.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from .contestants import CONTESTANTS, OURS, Contestant, Unsupported, new_session, ready
from .gateway import API_PATH, Gateway
from .report import Bar, Column, Options, Row, Table, missing_row

NAME = "stampede"

THREADS = 64
_DELAY = 0.05  # seconds that the token endpoint takes
THREAD_COLUMNS = (
    Column("token requests", chart=True),
    Column("wall, ms"),
    Column("× one token request and the static run", 2),
    Column("failed calls"),
)
TASK_COLUMNS = (
    Column("token requests"),
    Column("wall, ms"),
    Column("× one token request and the static run", 2),
    Column("longest stall, ms", chart=True),
    Column("failed calls"),
)


def run(options: Options) -> list[Table]:
    """Start cold from threads and from asyncio tasks."""
    with Gateway() as gateway:
        gateway.configure(delay=_DELAY)
        return [
            _threads(gateway, options.pick(3, 1)),
            *(_tasks(gateway, count, options.pick(3, 1)) for count in options.pick((2000, 10_000), (2000,))),
        ]


def _threads(gateway: Gateway, rounds: int) -> Table:
    token_request = _seconds_of_a_token_request(gateway)
    rows, bars = [], []
    allowed = 0.0
    for contestant in CONTESTANTS:
        try:
            runs = [_from_threads(ready(contestant)(gateway)) for _ in range(rounds)]
        except Unsupported as reason:
            rows.append(missing_row(contestant.name, THREAD_COLUMNS, str(reason)))
            continue
        seconds = min(run[0] for run in runs)
        token_requests, failed = (max(run[column] for run in runs) for column in (1, 2))
        allowed = allowed or seconds + token_request  # the static run is the first
        rows.append(Row(contestant.name, (token_requests, seconds * 1e3, seconds / allowed, failed)))
        if contestant is OURS:
            bars = [
                Bar(f"{THREADS} threads start cold: token requests", token_requests, 1, 0),
                Bar(f"{THREADS} threads start cold: failed calls", failed, 0, 0),
            ]
    title = f"{THREADS} threads start cold"
    note = f"A token request takes {_DELAY * 1e3:.0f} ms. Best of {rounds}. {_AUTHLIB}"
    return Table(f"{NAME}-threads", title, THREAD_COLUMNS, tuple(rows), note, tuple(bars))


def _from_threads(contestant: Contestant) -> tuple[float, int, int]:
    gateway = contestant.gateway
    client = contestant.blocking_client()
    start = threading.Barrier(THREADS + 1)

    def call(_: int) -> bool:
        start.wait()
        try:
            return bool(client.get(gateway.api_url).status_code == 200)
        except Exception:
            return False

    gateway.reset()
    with ThreadPoolExecutor(THREADS) as pool:
        calls = [pool.submit(call, number) for number in range(THREADS)]
        start.wait()
        started = time.perf_counter()
        failed = sum(not one.result() for one in calls)
        seconds = time.perf_counter() - started
    return seconds, gateway.stats().token_requests, failed


def _tasks(gateway: Gateway, count: int, rounds: int) -> Table:
    token_request = _seconds_of_a_token_request(gateway)
    rows, bars = [], []
    allowed = static_stall = 0.0
    for contestant in CONTESTANTS:
        try:
            runs = [asyncio.run(_from_tasks(ready(contestant)(gateway), count)) for _ in range(rounds)]
        except Unsupported as reason:
            rows.append(missing_row(contestant.name, TASK_COLUMNS, str(reason)))
            continue
        seconds, stall = (min(run[column] for run in runs) for column in (0, 1))
        token_requests, failed = (max(run[column] for run in runs) for column in (2, 3))
        allowed, static_stall = allowed or seconds + token_request, static_stall or stall
        values = (token_requests, seconds * 1e3, seconds / allowed, stall * 1e3, failed)
        rows.append(Row(contestant.name, values))
        if contestant is OURS:
            bars = [
                Bar(f"{count:,} tasks start cold: token requests", token_requests, 1, 0),
                Bar(f"{count:,} tasks start cold: failed calls", failed, 0, 0),
            ]
    title = f"{count:,} asyncio tasks start cold"
    note = (
        f"A token request takes {_DELAY * 1e3:.0f} ms; API calls are answered in memory. Best of {rounds}. {_AUTHLIB}"
    )
    return Table(f"{NAME}-tasks-{count}", title, TASK_COLUMNS, tuple(rows), note, tuple(bars))


_AUTHLIB = "Authlib starts with an expired token: it does not fetch a first one by itself."


class _InMemory(httpx.AsyncBaseTransport):
    """Answers API calls that carry a token at once, and sends all else to the gateway."""

    def __init__(self) -> None:
        self._network = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != API_PATH:
            return await self._network.handle_async_request(request)
        await asyncio.sleep(0)
        return httpx.Response(200 if request.headers.get("Authorization", "").startswith("Bearer ") else 401)

    async def aclose(self) -> None:
        await self._network.aclose()


async def _from_tasks(contestant: Contestant, count: int) -> tuple[float, float, int, int]:
    gateway = contestant.gateway
    url = gateway.api_url
    async with contestant.async_client(transport=_InMemory(), timeout=60) as client:
        stalls: list[float] = []

        async def call() -> bool:
            try:
                return bool((await client.get(url)).status_code == 200)
            except Exception:
                return False

        async def tick() -> None:
            seen = time.perf_counter()
            while True:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                stalls.append(now - seen)
                seen = now

        gateway.reset()
        ticker = asyncio.create_task(tick())
        await asyncio.sleep(0.01)
        started = time.perf_counter()
        answers = await asyncio.gather(*(call() for _ in range(count)))
        seconds = time.perf_counter() - started
        await asyncio.sleep(0.005)
        ticker.cancel()
    return seconds, max(stalls), gateway.stats().token_requests, count - sum(answers)


def _seconds_of_a_token_request(gateway: Gateway) -> float:
    started = time.perf_counter()
    credentials = gateway.client_id(), gateway.client_secret
    response = new_session().post(gateway.token_url, auth=credentials, data={"grant_type": "client_credentials"})
    response.raise_for_status()
    return time.perf_counter() - started
