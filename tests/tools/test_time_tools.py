"""freezegun and time-machine: tests that freeze or move time, and what they leave to the next test."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import requests
from conftest import CLIENTS, NO_TLS, SECRET, Client
from raw_gateway import RawGateway, http

from baas_auth_plugins import AxiaAuth, InvalidClientError, MemoryTokenCache, RateLimitError

freezegun = pytest.importorskip("freezegun")
time_machine = pytest.importorskip("time_machine")

pytestmark = pytest.mark.timeout(60)

PAST, FUTURE = dt.datetime(2012, 3, 16, tzinfo=dt.UTC), dt.datetime(2096, 1, 1, tzinfo=dt.UTC)
SYNC = [client for client in CLIENTS if client.backend is None]


@contextmanager
def frozen(tool: str, when: dt.datetime) -> Iterator[Any]:
    """Freeze time with one of the tools; the value moves it."""
    if tool == "freezegun":
        with freezegun.freeze_time(when.replace(tzinfo=None), real_asyncio=True) as clock:
            yield clock.tick
    else:
        with time_machine.travel(when, tick=False) as clock:
            yield clock.shift


TOOLS = pytest.mark.parametrize("tool", ["freezegun", "time-machine"])


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    """A gateway that refuses after 60 token requests, so that an endless loop ends."""
    with RawGateway() as gateway:
        yield gateway


def auth_for(gateway: RawGateway, name: str) -> AxiaAuth:
    return AxiaAuth(f"time-{name}", SECRET, base_url=gateway.url, cache=MemoryTokenCache())


@pytest.mark.parametrize("when", [PAST, FUTURE], ids=["past", "future"])
@pytest.mark.parametrize("client", SYNC, ids=lambda client: client.name)
@TOOLS
def test_a_frozen_test_leaves_a_token_that_does_no_harm(
    tool: str, client: Client, when: dt.datetime, gateway: RawGateway
) -> None:
    """A token that was issued under a frozen clock is used or replaced once by the next test."""
    auth = auth_for(gateway, f"{tool}-{client.name}-{when.year}")
    with client.open(auth) as send:
        with frozen(tool, when):
            assert send("GET", gateway.url + "/a").status == 200
        for _ in range(3):
            assert send("GET", gateway.url + "/a").status == 200
        with frozen(tool, when):
            assert send("GET", gateway.url + "/a").status == 200
    assert gateway.count("token") <= 3


@TOOLS
def test_an_async_client_after_a_frozen_test(tool: str, gateway: RawGateway) -> None:
    """The same with an AsyncClient, in the frozen test and after it."""
    auth = auth_for(gateway, f"async-{tool}")

    async def main() -> int:
        async with httpx.AsyncClient(auth=auth, verify=NO_TLS, trust_env=False) as client:
            return (await client.get(gateway.url + "/a")).status_code

    with frozen(tool, PAST):
        assert asyncio.run(main()) == 200
    assert asyncio.run(main()) == 200
    assert gateway.count("token") == 2


@TOOLS
def test_a_moved_clock_renews(tool: str, gateway: RawGateway) -> None:
    """A test that moves its frozen clock past the renewal sees one more token request, past the expiry another."""
    auth = auth_for(gateway, f"moved-{tool}")
    with frozen(tool, PAST) as move:
        for seconds, tokens in ((0, 1), (3200, 1), (200, 2), (3700, 3)):
            move(seconds)
            assert requests.get(gateway.url + "/a", auth=auth, timeout=5).status_code == 200
            assert gateway.count("token") == tokens


@pytest.mark.parametrize("kind", [InvalidClientError, RateLimitError], ids=["refused", "rate-limited"])
@pytest.mark.parametrize("when", [PAST, FUTURE], ids=["past", "future"])
@TOOLS
def test_a_failure_in_a_frozen_test_holds_up_nobody_after_it(
    tool: str, when: dt.datetime, kind: type[Exception], gateway: RawGateway
) -> None:
    """A refusal or a Retry-After that was noted under a frozen clock is void when time runs again."""
    gateway.on_token = lambda exchange: (
        http(401, b"{}") if kind is InvalidClientError else http(429, b"{}", {"Retry-After": "250"})
    )
    auth = auth_for(gateway, f"failure-{tool}-{when.year}-{kind.__name__}")
    with frozen(tool, when), pytest.raises(kind):
        auth.get_token()
    gateway.on_token = gateway.issue
    assert auth.get_token().access_token


def test_a_frozen_clock_ends_no_call_in_a_loop(gateway: RawGateway) -> None:
    """Under freezegun an outage ends in its error, though time stands still."""
    gateway.on_token = lambda exchange: http(503, b"{}")
    auth = auth_for(gateway, "stands-still")
    with frozen("freezegun", PAST), pytest.raises(requests.RequestException):
        auth.get_token()
    assert gateway.count("token") <= 6
