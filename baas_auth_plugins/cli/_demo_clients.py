"""The HTTP clients that the demo calls the gateways with: those that are installed."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import requests
from requests.adapters import HTTPAdapter

__all__ = ["CLIENTS", "HTTPX", "Client"]

HTTPX = [import_module(name) for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
_MOST_CONNECTIONS = 32


class Client(Protocol):
    """An HTTP client, sync or async."""

    session: requests.Session | None

    def call(self, url: str, **options: Any) -> tuple[int, float]:
        """Return the status of one GET, and the seconds it took."""

    def call_together(self, callers: int, url: str, **options: Any) -> list[int]:
        """Return the statuses of some GETs that are sent at the same time."""

    def close(self) -> None:
        """Close the connections."""


class _SyncClient:
    def __init__(self, client: Any, session: requests.Session | None = None) -> None:
        self._client = client
        self.session = session
        self.close = client.close

    def call(self, url: str, **options: Any) -> tuple[int, float]:
        started = time.perf_counter()
        response = self._client.get(url, **options)
        return response.status_code, time.perf_counter() - started

    def call_together(self, callers: int, url: str, **options: Any) -> list[int]:
        start = threading.Barrier(callers)

        def one(_: int) -> int:
            start.wait()
            return self.call(url, **options)[0]

        with ThreadPoolExecutor(callers) as pool:
            return list(pool.map(one, range(callers)))


class _AsyncClient:
    session: requests.Session | None = None

    def __init__(self, client: Any) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    async def _call(self, url: str, **options: Any) -> tuple[int, float]:
        started = time.perf_counter()
        response = await self._client.get(url, **options)
        return response.status_code, time.perf_counter() - started

    async def _call_together(self, callers: int, url: str, **options: Any) -> list[int]:
        answers = await asyncio.gather(*(self._call(url, **options) for _ in range(callers)))
        return [status for status, _ in answers]

    def call(self, url: str, **options: Any) -> tuple[int, float]:
        return self._runner.run(self._call(url, **options))

    def call_together(self, callers: int, url: str, **options: Any) -> list[int]:
        return self._runner.run(self._call_together(callers, url, **options))

    def close(self) -> None:
        with self._runner as runner:
            runner.run(self._client.aclose())


def _requests_client() -> Client:
    session = requests.Session()
    session.trust_env = False  # proxies and .netrc are not for loopback
    session.mount("http://", HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS))
    return _SyncClient(session, session)


def _sync_client(module: Any) -> Client:
    return _SyncClient(module.Client(trust_env=False))


def _async_client(module: Any) -> Client:
    return _AsyncClient(module.AsyncClient(trust_env=False))


CLIENTS: dict[str, Callable[[], Client]] = {"requests": _requests_client}
for _module in HTTPX:
    CLIENTS[_module.__name__] = partial(_sync_client, _module)
    CLIENTS[f"{_module.__name__} async"] = partial(_async_client, _module)
"""Name to client, for those that are installed."""
