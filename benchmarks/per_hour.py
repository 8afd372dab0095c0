"""How many token requests an hour of one call a second takes, by the lifetime of the tokens: on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import requests

from .clock import moved
from .contestants import CONTESTANTS, OURS, STATIC, Contestant, Unsupported, ready
from .gateway import Gateway
from .report import Bar, Column, Options, Row, Table, missing_row

NAME = "per-hour"

LIFETIMES = {3600: 2, 420: 18, 300: 25}
"""In seconds, with the most token requests in an hour that the package may make."""

COLUMNS = tuple(Column(f"{life} s", chart=life == 300) for life in LIFETIMES)


def run(options: Options) -> list[Table]:
    """Simulate an hour for each contestant and each lifetime, the default margins all."""
    calls = 3600  # seconds; a quick run has no shorter hour
    del options
    rows = []
    with Gateway() as gateway:
        for contestant in CONTESTANTS:
            if contestant is STATIC:
                continue
            try:
                counts = tuple(_count(ready(contestant)(gateway), gateway, life, calls) for life in LIFETIMES)
            except Unsupported as reason:
                rows.append(missing_row(contestant.name, COLUMNS, str(reason)))
            else:
                rows.append(Row(contestant.name, counts))
    ours = next(row for row in rows if row.label == OURS.name)
    bars = tuple(
        Bar(f"token requests in an hour, tokens of {life} s", float(str(count)), limit, 0)
        for (life, limit), count in zip(LIFETIMES.items(), ours.values, strict=True)
    )
    title = "Token requests in an hour at one call a second, by the tokens' lifetime"
    return [
        Table(
            NAME, title, COLUMNS, tuple(rows), "Default margins. The clock is simulated, the requests are real.", bars
        )
    ]


def _count(contestant: Contestant, gateway: Gateway, life: int, calls: int) -> int:
    gateway.configure(expires_in=life)
    gateway.reset()
    call = _caller(type(contestant)(gateway))  # a new one, whose token nobody has yet
    with moved() as clock:
        for _ in range(calls):
            call()
            clock.advance(1)
        stats = gateway.stats()
    gateway.configure()
    return stats.token_requests


def _caller(contestant: Contestant) -> Callable[[], object]:
    """Return what gives one request a token, and sends token requests only."""
    url = contestant.gateway.api_url
    prepared = requests.Request("GET", url).prepare()
    try:
        auth = contestant.requests_auth()
    except Unsupported:
        try:
            return _httpx_caller(contestant.httpx_auth(), url)
        except Unsupported:
            hook = contestant.hook()
            return lambda: hook(prepared.copy())
    return lambda: auth(prepared.copy())


def _httpx_caller(auth: httpx.Auth, url: str) -> Callable[[], object]:
    def call() -> None:
        flow = auth.sync_auth_flow(httpx.Request("GET", url))
        next(flow)
        flow.close()

    return call
