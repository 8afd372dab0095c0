"""A storm of 401s: every call is under way with a token that has just been revoked."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from .contestants import CONTESTANTS, OURS, STATIC, Contestant, Unsupported, ready
from .gateway import Gateway, Stats
from .report import Bar, Column, Options, Row, Table, missing_row

NAME = "storm"

CALLS = 200
COLUMNS = (Column("token requests"), Column("401s that reached callers", chart=True), Column("exceptions"))


def run(options: Options) -> list[Table]:
    """Revoke, then call: from threads over requests, or httpx where that is all there is, and from asyncio."""
    del options
    with Gateway() as gateway:
        gateway.configure(delay=0.05)
        return [
            _table("threads", f"{CALLS} threads, their token revoked", gateway, _from_threads),
            _table("asyncio", f"{CALLS} asyncio tasks, their token revoked", gateway, _from_asyncio),
        ]


def _table(name: str, title: str, gateway: Gateway, storm: Callable[[Contestant], Counter[object]]) -> Table:
    rows, bars = [], []
    for contestant in CONTESTANTS:
        if contestant is STATIC:
            continue
        try:
            statuses = storm(ready(contestant)(gateway))
        except Unsupported as reason:
            rows.append(missing_row(contestant.name, COLUMNS, str(reason)))
            continue
        stats: Stats = gateway.stats()
        failed = statuses.total() - statuses[200] - statuses[401]
        rows.append(Row(contestant.name, (stats.token_requests, statuses[401], failed)))
        if contestant is OURS:
            bars = [
                Bar(f"{title}: token requests", stats.token_requests, 1, 0),
                Bar(f"{title}: 401s and exceptions that reached callers", statuses[401] + failed, 0, 0),
            ]
    note = "A token request takes 50 ms. A contestant without requests support is called over httpx.Client."
    return Table(f"{NAME}-{name}", title, COLUMNS, tuple(rows), note, tuple(bars))


def _from_threads(contestant: Contestant) -> Counter[object]:
    gateway = contestant.gateway
    client = contestant.blocking_client(limits=httpx.Limits(max_connections=CALLS))
    client.get(gateway.api_url).raise_for_status()
    start = threading.Barrier(CALLS)

    def call(_: int) -> object:
        start.wait()
        try:
            status: int = client.get(gateway.api_url).status_code
        except Exception as error:
            return type(error).__name__
        return status

    _revoke(gateway)
    with ThreadPoolExecutor(CALLS) as pool:
        return Counter(pool.map(call, range(CALLS)))


def _from_asyncio(contestant: Contestant) -> Counter[object]:
    return asyncio.run(_storm(contestant))


async def _storm(contestant: Contestant) -> Counter[object]:
    gateway = contestant.gateway
    async with contestant.async_client(timeout=30) as client:
        (await client.get(gateway.api_url)).raise_for_status()

        async def call() -> object:
            try:
                status: int = (await client.get(gateway.api_url)).status_code
            except Exception as error:
                return type(error).__name__
            return status

        _revoke(gateway)
        return Counter(await asyncio.gather(*(call() for _ in range(CALLS))))


def _revoke(gateway: Gateway) -> None:
    gateway.revoke_all()
    gateway.reset()
