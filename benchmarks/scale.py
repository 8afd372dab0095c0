"""How costs grow: the hot path with the number of keys in the process, a mint with the number of those who wait."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import time
from typing import Any

import httpx

from .contestants import BenchAuth
from .measure import no_gc
from .report import Bar, Column, Options, Row, Table

NAME = "scale"

KEY_COLUMNS = (
    Column("always the same, µs", 2),
    Column("another each time, µs", 2),
    Column("static header, another each time, µs", 2),
)
WAITER_COLUMNS = (Column("total, ms", 1), Column("per waiter, µs", 1), Column("× per waiter of the first row", 2))

_URL = "http://127.0.0.1:1"  # nothing is sent there
_API_URL = f"{_URL}/v1/accounts"
_LINEAR, _SAME = 1.5, 1.25
_STEPS = 2000
_numbers = itertools.count()


class _Static(httpx.Auth):
    def __init__(self, number: int) -> None:
        self._header = f"Bearer token-{number}"

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = self._header
        yield request


def run(options: Options) -> list[Table]:
    """Walk through keys in a random order, then let more and more tasks wait for one mint."""
    return [
        _keys(options.pick((1, 1000, 100_000), (1, 1000)), options.pick(20, 5)),
        _waiters(options.pick((100, 1000, 10_000), (100, 1000)), options.pick(7, 3)),
    ]


def _keys(sizes: tuple[int, ...], rounds: int) -> Table:
    """Ask one key among many, then others, and as many static headers."""
    ours: list[Any] = []
    static: list[Any] = []
    rows = []
    for size in sizes:
        ours += [_with_token() for _ in range(size - len(ours))]
        static += [_Static(number) for number in range(size - len(static))]
        gc.collect()
        gc.freeze()  # so that the collector does not go through them all again
        chosen = [random.randrange(size) for _ in range(_STEPS)]  # noqa: S311  # any order will do
        walks = (
            [ours[0]] * _STEPS,
            [ours[number] for number in chosen],
            [static[number] for number in chosen],
        )
        spent = [[_walk(walk) for walk in walks] for _ in range(rounds)]
        same, another, anothers = (statistics.median(column) * 1e6 for column in zip(*spent, strict=True))
        rows.append(Row(f"{size:,} key{'s' if size > 1 else ''}", (same, another, anothers)))
    first, last = (float(str(row.values[0])) for row in (rows[0], rows[-1]))
    bars = (Bar(f"the hot path of one key among {sizes[-1]:,}, × alone", last / first, _SAME),)
    note = (
        f"CPU time of one httpx auth flow. Another each time is {_STEPS:,} auth objects in a random order: what they cost"
        " more is memory that is not in the processor's caches, of which a static header's auth object has less."
    )
    return Table(
        f"{NAME}-keys", "The hot path, by the number of keys in the process", KEY_COLUMNS, tuple(rows), note, bars
    )


def _with_token() -> BenchAuth:
    auth = _new_auth()
    request = httpx.Request("GET", _API_URL)
    flow = auth.sync_auth_flow(request)
    token_request = next(flow)
    flow.send(_token_response(token_request))
    flow.close()
    return auth


def _new_auth() -> BenchAuth:
    return BenchAuth(f"your-client-id-{next(_numbers)}", "your-client-secret", base_url=_URL)


def _token_response(request: httpx.Request) -> httpx.Response:
    token = {"access_token": f"token-{next(_numbers)}", "token_type": "Bearer", "expires_in": 3600}
    return httpx.Response(200, json=token, request=request)


def _walk(auths: list[Any]) -> float:
    request, response = httpx.Request("GET", _API_URL), httpx.Response(200)
    with no_gc():
        started = time.thread_time()
        for auth in auths:
            flow = auth.sync_auth_flow(request)
            next(flow)
            try:
                flow.send(response)
            except StopIteration:
                continue
        return (time.thread_time() - started) / len(auths)


def _waiters(sizes: tuple[int, ...], rounds: int) -> Table:
    totals = {size: statistics.median(asyncio.run(_mint(size)) for _ in range(rounds)) for size in sizes}
    each = {size: seconds / size * 1e6 for size, seconds in totals.items()}
    first = each[sizes[0]]
    rows = tuple(Row(f"{size:,} waiters", (totals[size] * 1e3, each[size], each[size] / first)) for size in sizes)
    bars = (Bar(f"a mint with {sizes[-1]:,} waiters, per waiter, × with {sizes[0]}", each[sizes[-1]] / first, _LINEAR),)
    note = "CPU time of asyncio tasks that all wait for one token request, without the garbage collector."
    return Table(f"{NAME}-waiters", "A mint, by the number of tasks that wait", WAITER_COLUMNS, rows, note, bars)


async def _mint(count: int) -> float:
    auth = _new_auth()
    answered = asyncio.Event()

    async def call(request: httpx.Request, response: httpx.Response) -> None:
        flow = auth.async_auth_flow(request)
        outgoing = await flow.__anext__()
        if outgoing is not request:
            await answered.wait()
            await flow.asend(_token_response(outgoing))
        try:
            await flow.asend(response)
        except StopAsyncIteration:
            return

    requests = [httpx.Request("GET", _API_URL) for _ in range(count + 1)]
    responses = [httpx.Response(200, request=request) for request in requests]
    with no_gc():
        started = time.process_time()
        tasks = [asyncio.create_task(call(*pair)) for pair in zip(requests, responses, strict=True)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answered.set()
        await asyncio.gather(*tasks)
        return time.process_time() - started
