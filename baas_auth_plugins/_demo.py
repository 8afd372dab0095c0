"""The demo: every gateway through every client that is installed, on sandboxes, held to what is promised.

The figures are the sandbox's own records; events only confirm them. A row is one gateway through
one client, with sandboxes of its own, so that no row uses up another's rate limit.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import requests
from requests.adapters import HTTPAdapter

from .auth import OAuth2ClientCredentialsAuth
from .cache import MemoryTokenCache
from .events import Event, RequestReplayed, TokenMinted
from .exceptions import BaaSAuthError
from .providers import PROVIDERS
from .sandbox import Fault, Sandbox

__all__ = ["CLIENTS", "DEMO_SCOPE", "Client", "demo"]

DEMO_SCOPE = "cob.read pix.read"

_CACHED_CALLS = 100
_COLD_CALLERS = 32
_SLOW_MINT = 0.05  # seconds that the token endpoint takes, so that cold callers do meet
_SHORT_LIFE = 2.0  # seconds: such a token is due for renewal after half of them
_HTTPX = [import_module(name) for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
_ERRORS = (BaaSAuthError, OSError, *(module.HTTPError for module in _HTTPX))  # requests' errors are OSErrors


class Client(Protocol):
    """An HTTP client, sync or async, as the demo needs it."""

    session: requests.Session | None

    def call(self, url: str, **options: Any) -> tuple[int, float]:
        """Return the status of one GET, and the seconds it took."""

    def call_together(self, callers: int, url: str, **options: Any) -> list[int]:
        """Return the statuses of so many GETs at the same time."""

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
    session.trust_env = False  # a proxy or a .netrc of this machine has no business on loopback
    session.mount("http://", HTTPAdapter(pool_maxsize=_COLD_CALLERS))
    return _SyncClient(session, session)


def _sync_client(module: Any) -> Client:
    return _SyncClient(module.Client(trust_env=False))


def _async_client(module: Any) -> Client:
    return _AsyncClient(module.AsyncClient(trust_env=False))


CLIENTS: dict[str, Callable[[], Client]] = {"requests": _requests_client}
for _module in _HTTPX:
    CLIENTS[_module.__name__] = partial(_sync_client, _module)
    CLIENTS[f"{_module.__name__} async"] = partial(_async_client, _module)
"""What is installed, by name."""


@dataclass(slots=True)
class _Row:
    """The figures of one gateway through one client; None until measured."""

    cls: type[OAuth2ClientCredentialsAuth]
    client: str
    sandbox: Callable[..., Sandbox]
    api_calls: int | None = None
    token_requests: int | None = None
    renewals: int | None = None
    replays: int | None = None
    cold: int | None = None
    added: float | None = None  # seconds
    problems: list[str] = field(default_factory=list)

    def open_sandbox(self, **options: Any) -> Sandbox:
        return self.sandbox(providers=[self.cls.provider], **options)

    def auth(self, gateway: Sandbox, client: Client, events: list[Event]) -> OAuth2ClientCredentialsAuth:
        """Return an auth object that has no token yet."""
        return self.cls(
            gateway.client_id,
            gateway.client_secret,
            scope=DEMO_SCOPE if self.cls.provider.scope == "required" else None,
            base_url=gateway.url,
            cache=MemoryTokenCache(),
            session=client.session,
            on_event=events.append,
        )

    def attempt(self, part: Callable[[_Row], None]) -> None:
        """Do a part of the measurements; what it runs into is a problem of this row."""
        try:
            part(self)
        except _ERRORS as error:
            self.problems.append(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def expect(self, what: str, found: object, promised: object) -> None:
        if found != promised:
            self.problems.append(f"{what}: {found}, promised: {promised}")

    def expect_ok(self, *statuses: int) -> None:
        self.expect("API answers", sorted(set(statuses)), [200])


def demo(
    *,
    classes: Iterable[type[OAuth2ClientCredentialsAuth]] = PROVIDERS,
    clients: Iterable[str] = CLIENTS,
    sandbox: Callable[..., Sandbox] = Sandbox,
) -> int:
    """Run the demo: progress goes to standard error, the table to standard output.

    Args:
        classes: the auth classes of the gateways to show.
        clients: names of `CLIENTS` to show them with.
        sandbox: makes each row's sandboxes.

    Returns:
        The exit status: 0 if every figure is what the package promises.
    """
    started = time.perf_counter()
    names = list(clients)
    rows: list[_Row] = []
    for cls in classes:
        _progress(f"{cls.provider.name:8}")
        for name in names:
            _progress(f" {name} ...")
            rows.append(_Row(cls, name, sandbox))
            for part in (_cache_and_replay, _start_cold):
                rows[-1].attempt(part)
        _progress("\n")
    _progress(f"renewals: {len(rows)} tokens of {_SHORT_LIFE:g} s near their end ...")
    with ThreadPoolExecutor(max(1, len(rows))) as pool:
        for _ in pool.map(lambda row: row.attempt(_renew), rows):
            pass
    _progress("\n\n")
    _print_table(rows)
    print(f"\n{len(rows)} rows in {time.perf_counter() - started:.1f} s, ", end="")
    problems = [f"{row.cls.provider.name}, {row.client}: {problem}" for row in rows for problem in row.problems]
    print("with figures that are not what is promised:" if problems else "every figure as promised.", flush=True)
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def _progress(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def _cache_and_replay(row: _Row) -> None:
    """A first call, many with the cached token, and one after that token was revoked."""
    events: list[Event] = []
    with row.open_sandbox() as gateway, closing(CLIENTS[row.client]()) as client:
        url, auth = f"{gateway.url}/v1/accounts", row.auth(gateway, client, events)
        row.expect_ok(client.call(url, auth=auth)[0])
        ready_made = {"Authorization": gateway.requests[-1].headers.get("authorization", "")}
        cached: list[tuple[int, float]] = []
        plain: list[tuple[int, float]] = []
        for _ in range(_CACHED_CALLS):
            cached.append(client.call(url, auth=auth))
            plain.append(client.call(url, headers=ready_made))
        row.expect_ok(*(status for status, _ in cached + plain))
        row.api_calls = gateway.count("api") - len(plain)
        row.token_requests = gateway.count("token")
        row.added = statistics.median(
            with_auth - without for (_, with_auth), (_, without) in zip(cached, plain, strict=True)
        )
        row.expect("API calls", row.api_calls, 1 + _CACHED_CALLS)
        row.expect("token requests", row.token_requests, 1)
        row.expect("tokens minted, by event", _number(events, TokenMinted), 1)

        gateway.revoke_all()
        before = gateway.count("api")
        row.expect_ok(client.call(url, auth=auth)[0])
        row.replays = gateway.count("api") - before - 1
        row.expect("replays", row.replays, 1)
        row.expect("replays, by event", _number(events, RequestReplayed), 1)
        row.expect("token requests after a revocation", gateway.count("token") - row.token_requests, 1)


def _start_cold(row: _Row) -> None:
    """Many callers at once, none of whom has a token."""
    with row.open_sandbox() as gateway, closing(CLIENTS[row.client]()) as client:
        gateway.inject(Fault("delay", "token", delay=_SLOW_MINT))
        auth = row.auth(gateway, client, [])
        row.expect_ok(*client.call_together(_COLD_CALLERS, f"{gateway.url}/v1/accounts", auth=auth))
        row.cold = gateway.count("token")
        row.expect(f"token requests of {_COLD_CALLERS} cold callers", row.cold, 1)


def _renew(row: _Row) -> None:
    """Calls while a token lives, but not for long."""
    events: list[Event] = []
    with row.open_sandbox(expires_in=_SHORT_LIFE) as gateway, closing(CLIENTS[row.client]()) as client:
        url, auth = f"{gateway.url}/v1/accounts", row.auth(gateway, client, events)
        statuses = [client.call(url, auth=auth)[0]]
        gateway.expires_in = None
        time.sleep(_SHORT_LIFE * 0.55)
        statuses += [client.call(url, auth=auth)[0] for _ in range(5)]
        row.expect_ok(*statuses)
        row.renewals = gateway.count("token") - 1
        row.expect("renewals", row.renewals, 1)
        row.expect("renewals, by event", _number(events, TokenMinted) - 1, 1)


def _number(events: list[Event], kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in events)


def _print_table(rows: list[_Row]) -> None:
    titles = ("gateway", "client", "API calls", "token requests", "renewals", "replays", "cold start", "added per call")
    widths = (8, 12, *(len(title) for title in titles[2:]))
    print("  ".join(f"{title:{'<' if n < 2 else '>'}{widths[n]}}" for n, title in enumerate(titles)))
    for row in rows:
        counts = (row.api_calls, row.token_requests, row.renewals, row.replays, row.cold)
        cells = ["-" if count is None else str(count) for count in counts]
        cells.append("-" if row.added is None else f"{row.added * 1000:.3f} ms")
        names = f"{row.cls.provider.name:{widths[0]}}  {row.client:{widths[1]}}"
        print(names, *(f"{cell:>{width}}" for cell, width in zip(cells, widths[2:], strict=True)), sep="  ")
    print(
        f"""
token requests: for these API calls.  renewals: in {_SHORT_LIFE:g} s of life, by calls near its end.
replays: of one call whose token had been revoked.  cold start: token requests of {_COLD_CALLERS} callers at once.
added per call: to a cached call, over the same call with a ready-made header (median of {_CACHED_CALLS} pairs)."""
    )
