"""What a contestant adds to one request while its token is fresh: the requests hook, and the httpx auth flow.

Each round measures everybody once, and gives each a ratio to the static header of that very round. The clock
is the thread's CPU time, so that a busy machine does less harm.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

import httpx
import requests

from .contestants import CONTESTANTS, OURS, STATIC, Authlib, BenchAuth, Contestant, Flow, Hook, Ours, Unsupported, ready
from .gateway import Gateway
from .measure import median_ratio, no_gc
from .report import Bar, Column, Options, Row, Table, missing_row

NAME = "hot-path"

COLUMNS = (Column("median, µs", 2), Column("least, µs", 2), Column("× static", 2, chart=True))
Timed = Callable[[int], float]
"""Does so many requests, and returns the seconds that they took."""


class OneOff(Ours):
    """This package, with a new auth object for each call, as in `requests.get(url, auth=AxiaAuth.from_env())`."""

    name = "baas-auth-plugins, a new auth object per call"

    def hook(self) -> Hook:
        """Return what makes the object anew, the token fresh."""
        super().hook()
        url, secret = self.gateway.url, self.gateway.client_secret

        def hook(request: requests.PreparedRequest) -> object:
            return BenchAuth(self.client_id, secret, base_url=url)(request)

        return hook


def run(options: Options) -> list[Table]:
    """Measure all three hot paths."""
    repeats, rounds = options.pick(500, 200), options.pick(40, 8)
    with Gateway() as gateway, asyncio.Runner() as runner:
        url = gateway.api_url

        def hook(contestant: Contestant) -> Timed:
            return _hook(contestant.hook(), url)

        def flow(contestant: Contestant) -> Timed:
            return _sync_flow(contestant.flow(), url)

        def async_flow(contestant: Contestant) -> Timed:
            step = runner.run(contestant.async_flow())
            return lambda n: runner.run(_async_flow(step, url, n))

        hooks = _compare((*CONTESTANTS, OneOff), gateway, hook, repeats, rounds)
        flows = _compare(CONTESTANTS, gateway, flow, repeats, rounds)
        async_flows = _compare(CONTESTANTS, gateway, async_flow, repeats, rounds)
    return [
        _table("hook", "requests: the hook call, `auth(prepared_request)`", hooks, 3.0, more=_below_authlib(hooks)),
        _table("flow", "httpx.Client: the auth flow of one request, answered 200", flows, 1.15),
        _table("async-flow", "httpx.AsyncClient: the auth flow of one request, answered 200", async_flows, 1.15),
    ]


def _hook(hook: Hook, url: str) -> Timed:
    def timed(n: int) -> float:
        prepared = [requests.Request("GET", url).prepare() for _ in range(n)]  # none that has been through it before
        with no_gc():
            started = time.thread_time()
            for request in prepared:
                hook(request)
            return time.thread_time() - started

    return timed


def _sync_flow(step: Flow, url: str) -> Timed:
    auth, before = step.auth, step.before

    def timed(n: int) -> float:
        rounds = [(request := httpx.Request("GET", url), httpx.Response(200, request=request)) for _ in range(n)]
        with no_gc():
            started = time.thread_time()
            for request, response in rounds:
                if before is not None:
                    before()
                flow = auth.sync_auth_flow(request)  # from here on as in httpx.Client._send_handling_auth
                try:
                    next(flow)
                    try:
                        flow.send(response)
                    except StopIteration:
                        continue
                finally:
                    flow.close()
            return time.thread_time() - started

    return timed


async def _async_flow(step: Flow, url: str, n: int) -> float:
    auth, before = step.auth, step.before
    rounds = [(request := httpx.Request("GET", url), httpx.Response(200, request=request)) for _ in range(n)]
    with no_gc():
        started = time.thread_time()
        for request, response in rounds:
            if before is not None:
                await before()
            flow = auth.async_auth_flow(request)
            try:
                await flow.__anext__()
                try:
                    await flow.asend(response)
                except StopAsyncIteration:
                    continue
            finally:
                await flow.aclose()
        return time.thread_time() - started


def _compare(
    contestants: tuple[type[Contestant], ...],
    gateway: Gateway,
    prepare: Callable[[Contestant], Timed],
    repeats: int,
    rounds: int,
) -> tuple[Row, ...]:
    """Measure in turns, so that what disturbs the machine disturbs all alike."""
    timed: dict[str, Timed] = {}
    missing: dict[str, str] = {}
    for contestant in contestants:
        try:
            timed[contestant.name] = prepare(ready(contestant)(gateway))
        except Unsupported as reason:
            missing[contestant.name] = str(reason)
    for measure in timed.values():
        measure(repeats)
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, measure in timed.items():
            samples[name].append(measure(repeats) / repeats * 1e6)
    static = samples[STATIC.name]
    return tuple(
        Row(c.name, (statistics.median(samples[c.name]), min(samples[c.name]), median_ratio(samples[c.name], static)))
        if c.name in samples
        else missing_row(c.name, COLUMNS, missing[c.name])
        for c in contestants
    )


def _table(name: str, title: str, rows: tuple[Row, ...], limit: float, more: tuple[Bar, ...] = ()) -> Table:
    ours = _ratio(rows, OURS.name)
    assert ours is not None  # noqa: S101  # we are always there
    bars = (Bar(f"{title}, × static", ours, limit), *more)
    note = "A fresh token, a request that is new each time, no network. Static is an auth object that sets the header."
    return Table(f"{NAME}-{name}", title, COLUMNS, rows, note, bars)


def _ratio(rows: tuple[Row, ...], name: str) -> float | None:
    value = next(row.values[2] for row in rows if row.label == name)
    return value if isinstance(value, float) else None


def _below_authlib(rows: tuple[Row, ...]) -> tuple[Bar, ...]:
    ours, authlib = _ratio(rows, OURS.name), _ratio(rows, Authlib.name)
    return () if ours is None or authlib is None else (Bar("the requests hook, against Authlib's", ours, authlib),)
