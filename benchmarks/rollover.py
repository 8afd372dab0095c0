"""A token comes of age under load: who waits while the next one is fetched.

Threads call without a pause worth mentioning, the clock is turned to where the contestant renews,
and the token endpoint takes half a second.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import httpx

from .clock import Clock, moved
from .contestants import (
    CONTESTANTS,
    OURS,
    STATIC,
    Contestant,
    GoogleAuthNonBlocking,
    OursInBackground,
    Unsupported,
    ready,
)
from .gateway import Gateway
from .report import Bar, Column, Options, Row, Table, missing_row

NAME = "rollover"

COLUMNS = (
    Column("calls delayed per renewal", 1, chart=True),
    Column("token requests per renewal", 1),
    Column("p99, ms"),
    Column("worst, ms"),
    Column("failed calls"),
)
LIFE = 3600
_TOKEN_DELAY = 0.5
_DELAYED = 0.25
_WATCHED = 0.9  # seconds from the renewal on
_PAUSE = 0.02  # seconds between a thread's calls


def run(options: Options) -> list[Table]:
    """Renew some times under load, contestant by contestant."""
    renewals, threads = options.pick(2, 1), options.pick(32, 8)
    contestants: list[type[Contestant]] = []
    for contestant in CONTESTANTS:
        contestants.append(contestant)
        contestants += {"baas-auth-plugins": [OursInBackground], "google-auth": [GoogleAuthNonBlocking]}.get(
            contestant.name, []
        )
    rows, bars = [], []
    with Gateway() as gateway:
        for contestant in contestants:
            if contestant is STATIC:
                continue
            try:
                row = _measure(ready(contestant)(gateway), renewals, threads)
            except Unsupported as reason:
                row = missing_row(contestant.name, COLUMNS, str(reason))
            rows.append(row)
            if contestant in (OURS, OursInBackground):
                delayed, requested, *_, failed = (float(str(value)) for value in row.values)
                bars += [
                    Bar(f"{row.label}: calls delayed per renewal", delayed, 1 if contestant is OURS else 0, 1),
                    Bar(f"{row.label}: token requests per renewal", requested, 1, 1),
                    Bar(f"{row.label}: failed calls", failed, 0, 0),
                ]
    title = f"A renewal under {threads} threads, the token endpoint taking {_TOKEN_DELAY * 1e3:.0f} ms"
    note = (
        f"Tokens of an hour, default margins, a clock that is turned. Delayed is more than {_DELAYED * 1e3:.0f} ms; p99 is"
        f" of the calls under way within {_WATCHED} s of the renewal."
    )
    return [Table(NAME, title, COLUMNS, tuple(rows), note, tuple(bars))]


def _measure(contestant: Contestant, renewals: int, threads: int) -> Row:
    gateway = contestant.gateway
    client = contestant.blocking_client(limits=httpx.Limits(max_connections=threads + 1))
    gateway.configure(expires_in=LIFE)
    client.get(gateway.api_url).raise_for_status()
    gateway.configure(expires_in=LIFE, delay=_TOKEN_DELAY)
    with moved() as clock, _Load(lambda: client.get(gateway.api_url).status_code, threads) as load:
        taken: list[float] = []
        token_requests = 0
        for _ in range(renewals):
            more, requested = _renewal(gateway, clock, load, LIFE - contestant.margin + 1)
            taken += more
            token_requests += requested
    gateway.configure()
    delayed = sum(seconds > _DELAYED for seconds in taken)
    p99 = statistics.quantiles(taken, n=100)[98]
    values = (delayed / renewals, token_requests / renewals, p99 * 1e3, max(taken) * 1e3, load.failed)
    return Row(contestant.name, values)


def _renewal(gateway: Gateway, clock: Clock, load: _Load, age: float) -> tuple[list[float], int]:
    """Turn the clock to the token's coming of age, and return how long the calls took, and the token requests."""
    time.sleep(0.2)
    gateway.reset()
    started = time.perf_counter()
    clock.advance(age)
    time.sleep(_WATCHED)
    return load.taken(started, started + _WATCHED), gateway.stats().token_requests


class _Load:
    """Threads that call until the end of the with statement."""

    def __init__(self, call: Callable[[], int], threads: int) -> None:
        self._call = call
        self._calls: list[tuple[float, float]] = []
        self._under_way: dict[int, float] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self.failed = 0

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def taken(self, since: float, until: float) -> list[float]:
        """Return the seconds that each call took that was under way in this time, however long that still takes."""
        while any(started < until for started in list(self._under_way.values())):
            time.sleep(0.01)
        return [ended - started for started, ended in list(self._calls) if ended > since and started < until]

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE):
            started = self._under_way[threading.get_ident()] = time.perf_counter()
            try:
                good = self._call() == 200
            except Exception:
                good = False
            self._calls.append((started, time.perf_counter()))
            del self._under_way[threading.get_ident()]
            self.failed += not good
