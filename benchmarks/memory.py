"""What an auth object weighs, alone and with its cached token, and whether one-off objects leave anything behind."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import requests

from baas_auth_plugins import AxiaAuth

from .contestants import CONTESTANTS, STATIC, Contestant, Ours, Unsupported, new_session, ready
from .gateway import Gateway
from .report import Bar, Column, Options, Row, Table, missing_row

NAME = "memory"

COLUMNS = (Column("auth object, bytes"), Column("with its token, bytes", chart=True), Column("objects"))
LEFT = (Column("objects made"), Column("token requests"), Column("blocks left"), Column("µs per object and call", 1))


def run(options: Options) -> list[Table]:
    """Weigh objects with distinct credentials, then make many with equal ones."""
    with Gateway() as gateway:
        return [_weights(gateway, options), _left_behind(gateway, options)]


def _weights(gateway: Gateway, options: Options) -> Table:
    many, few = options.pick(1000, 300), options.pick(100, 10)
    client, session = httpx.Client(trust_env=False), new_session()

    def axia(contestant: Contestant, **parameters: Any) -> Callable[[], AxiaAuth]:
        client_id, secret = contestant.client_id, gateway.client_secret
        return lambda: AxiaAuth(client_id, secret, base_url=gateway.url, **parameters)

    def over_httpx(auth: Any) -> None:
        client.get(gateway.api_url, auth=auth).raise_for_status()

    def over_requests(auth: Any) -> None:
        session.get(gateway.api_url, auth=auth).raise_for_status()

    ways: tuple[
        tuple[str, type[Contestant], Callable[[Contestant], Callable[[], Any]], Callable[[Any], None], int], ...
    ] = (
        ("baas-auth-plugins, over httpx", Ours, axia, over_httpx, many),
        ("baas-auth-plugins, over requests, session=", Ours, lambda c: axia(c, session=session), over_requests, many),
        ("baas-auth-plugins, over requests, a session of its own", Ours, axia, over_requests, few),
    )
    rows = [
        _weigh(label, [prepare(contestant(gateway)) for _ in range(count)], call)
        for label, contestant, prepare, call, count in ways
    ]
    rows += [
        _weigh_peer(contestant, gateway, few, over_requests, over_httpx)
        for contestant in CONTESTANTS
        if contestant not in (STATIC, Ours)
    ]
    client.close()
    bars = []
    for row in rows[:2]:
        alone, with_token, _ = row.values
        bars += [
            Bar(f"{row.label}: bytes per auth object", float(str(alone)), 1024, 0),
            Bar(f"{row.label}: bytes per auth object with its token", float(str(with_token)), 2560, 0),
        ]
    note = (
        "By tracemalloc, each object with credentials of its own, whose text is not counted. Where a contestant's auth"
        " object is a session, or has one, that is in it."
    )
    return Table(f"{NAME}-weight", "Memory per auth object", COLUMNS, tuple(rows), note, tuple(bars))


def _weigh_peer(
    contestant: type[Contestant],
    gateway: Gateway,
    count: int,
    over_requests: Callable[[Any], None],
    over_httpx: Callable[[Any], None],
) -> Row:
    def by_session(session: requests.Session) -> None:
        session.get(gateway.api_url).raise_for_status()

    try:
        made = [ready(contestant)(gateway) for _ in range(count)]
        for make, call in (
            (lambda c: c.requests_auth, over_requests),
            (lambda c: c.httpx_auth, over_httpx),
            (lambda c: c.session, by_session),
        ):
            try:
                make(made[0])()
            except Unsupported:
                continue
            return _weigh(contestant.name, [make(one) for one in made], call)
        raise Unsupported("has nothing to weigh")
    except Unsupported as reason:
        return missing_row(contestant.name, COLUMNS, str(reason))


def _weigh(label: str, makers: list[Callable[[], Any]], call: Callable[[Any], None]) -> Row:
    """Make and use one that does not count, then weigh the others."""
    call(makers[0]())
    makers = makers[1:]
    gc.collect()
    tracemalloc.start()
    try:
        objects: list[Any] = [None] * len(makers)
        before = _traced()
        for index, make in enumerate(makers):
            objects[index] = make()
        alone = _traced() - before
        for made in objects:
            call(made)
        with_token = _traced() - before
    finally:
        tracemalloc.stop()
    return Row(label, (alone / len(makers), with_token / len(makers), len(makers)))


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _left_behind(gateway: Gateway, options: Options) -> Table:
    """Count the interpreter's memory blocks, which costs nothing, before and after."""
    count = options.pick(100_000, 10_000, full=1_000_000)
    client_id, url = Ours(gateway).client_id, gateway.api_url
    request, response = httpx.Request("GET", url), httpx.Response(200)

    def one_off() -> None:
        flow = AxiaAuth(client_id, gateway.client_secret, base_url=gateway.url).sync_auth_flow(request)
        next(flow)
        try:
            flow.send(response)
        except StopIteration:
            return

    gateway.reset()
    with httpx.Client(trust_env=False) as client:
        client.get(url, auth=AxiaAuth(client_id, gateway.client_secret, base_url=gateway.url)).raise_for_status()
    for _ in range(2000):
        one_off()
    gc.collect()
    before, started = sys.getallocatedblocks(), time.perf_counter()
    for _ in range(count):
        one_off()
    seconds = time.perf_counter() - started
    gc.collect()
    left = sys.getallocatedblocks() - before
    requested = gateway.stats().token_requests
    rows = (Row("baas-auth-plugins", (count, requested, left, seconds / count * 1e6)),)
    bars = (
        Bar(f"blocks of memory left by {count:,} one-off auth objects", left, 100, 0),
        Bar(f"token requests of {count:,} one-off auth objects", requested, 1, 0),
    )
    note = "Equal credentials, a new auth object for each call. A leak of one object in a thousand would show."
    return Table(f"{NAME}-one-off", "One-off auth objects", LEFT, rows, note, bars)
