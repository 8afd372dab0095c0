"""What calls cost the client end to end: its CPU time over keep-alive connections, against a static header.

The gateway is another process. Short bursts with a static header and short bursts with a contestant take turns,
now the one first and now the other; each pair gives one ratio, and the median of them is told.

The async calls share few connections: httpcore looks at each idle one at every call, which with a hundred of
them takes twenty times as long as all else, and would hide whatever an auth object costs.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import httpx

from .contestants import CONTESTANTS, OURS, STATIC, Contestant, Unsupported, ready
from .gateway import Gateway
from .report import Bar, Column, Options, Row, Table, Value, missing_row

NAME = "end-to-end"

COLUMNS = (
    Column("CPU per call, µs", 0),
    Column("× static", 3, chart=True),
    Column("middle half of the ratios", 3),
    Column("pairs"),
)
CONCURRENT = 100
_CONNECTIONS = 10
_AGAIN = f"{STATIC.name}, against itself"
LIMIT = 1.03

Burst = Callable[[], float]
"""Makes some calls, and returns the CPU seconds for each."""


def run(options: Options) -> list[Table]:
    """Compare over requests, over httpx.Client, and over httpx.AsyncClient with a hundred calls at a time."""
    pairs, async_pairs = options.pick(40, 4), options.pick(12, 2)
    calls, async_calls = options.pick(50, 25), options.pick(200, 100)
    with Gateway() as gateway, asyncio.Runner() as runner:

        def session(contestant: Contestant) -> Burst:
            return _burst(contestant.session(), gateway.api_url, calls)

        def client(contestant: Contestant) -> Burst:
            return _burst(contestant.client(), gateway.api_url, calls)

        def async_client(contestant: Contestant) -> Burst:
            opened = runner.run(_opened(contestant))
            return lambda: runner.run(_async_burst(opened, gateway.api_url, async_calls))

        return [
            _table("requests", "requests.Session, one call at a time", gateway, session, pairs),
            _table("httpx", "httpx.Client, one call at a time", gateway, client, pairs),
            _table(
                "httpx-async",
                f"httpx.AsyncClient, {CONCURRENT} calls at a time over {_CONNECTIONS} connections",
                gateway,
                async_client,
                async_pairs,
            ),
        ]


async def _opened(contestant: Contestant) -> Any:
    """Make an async client inside the event loop that it will be used in."""
    limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
    return contestant.async_client(limits=limits, timeout=30)


def _burst(client: Any, url: str, calls: int) -> Burst:
    def burst() -> float:
        started = time.process_time()
        for _ in range(calls):
            response = client.get(url)
        spent = time.process_time() - started
        response.raise_for_status()
        return spent / calls

    return burst


async def _async_burst(client: Any, url: str, calls: int) -> float:
    remaining = iter(range(calls))

    async def worker() -> None:
        for _ in remaining:
            response = await client.get(url)
        response.raise_for_status()

    started = time.process_time()
    await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
    return (time.process_time() - started) / calls


def _table(name: str, title: str, gateway: Gateway, prepare: Callable[[Contestant], Burst], pairs: int) -> Table:
    static = prepare(STATIC(gateway))
    static()
    rows, bars, static_cpu = [], (), []
    for contestant in CONTESTANTS:
        try:
            burst = prepare(ready(contestant)(gateway))
        except Unsupported as reason:
            rows.append(missing_row(contestant.name, COLUMNS, str(reason)))
            continue
        static_spent, spent = _pairs(static, burst, pairs * (4 if contestant is OURS else 1))
        static_cpu += static_spent
        ratios = sorted(ours / theirs for ours, theirs in zip(spent, static_spent, strict=True))
        middle = f"{ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f}"
        values: tuple[Value, ...] = (statistics.median(spent) * 1e6, statistics.median(ratios), middle, len(ratios))
        rows.append(Row(_AGAIN if contestant is STATIC else contestant.name, values))
        if contestant is OURS:
            bars = (Bar(f"{title}: the client's CPU, × static", statistics.median(ratios), LIMIT, 3),)
    rows.insert(0, Row(STATIC.name, (statistics.median(static_cpu) * 1e6, 1.0, "", len(static_cpu))))
    note = (
        "CPU time of the client's process. The static header is among the client's own headers: no auth object at all. How"
        " far it is from 1 against itself is how far to trust the others."
    )
    return Table(f"{NAME}-{name}", title, COLUMNS, tuple(rows), note, bars)


def _pairs(static: Burst, burst: Burst, pairs: int) -> tuple[list[float], list[float]]:
    burst()
    gc.collect()
    static_spent, spent = [], []
    for number in range(pairs):
        if number % 2:
            spent.append(burst())
            static_spent.append(static())
        else:
            static_spent.append(static())
            spent.append(burst())
    return static_spent, spent
