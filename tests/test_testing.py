"""`testing.reset()`: what it forgets, what stays, and what becomes of calls that are under way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import requests
from conftest import NO_TLS, SECRET, Auth, Client, FakeClock, api_url, make
from raw_gateway import Exchange, RawGateway, SharedStore, http, token_body

from baas_auth_plugins import (
    AxiaAuth,
    BS2Auth,
    InvalidClientError,
    MemoryTokenCache,
    NTXPayAuth,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
    TokenMinted,
    events,
    testing,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)


# -- what is forgotten


def test_a_token_is_forgotten(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """After a reset the next call requests a token, over the same client and with the same auth object."""
    auth, url = make(auth_class, sandbox), api_url(auth_class, sandbox)
    with client.open(auth) as send:
        send("GET", url)
        testing.reset()
        assert send("GET", url).status == 200
        assert send("GET", url).status == 200
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("cache", [None, MemoryTokenCache()], ids=["process", "own"])
def test_old_and_new_auth_objects_share_again(cache: MemoryTokenCache | None, sandbox: Sandbox) -> None:
    """An auth object from before the reset and one from after it share one token, in the process's cache and in one's own."""
    old = make(AxiaAuth, sandbox, cache=cache)
    old.get_token()
    testing.reset()
    new = make(AxiaAuth, sandbox, cache=cache)
    assert new.get_token().access_token == old.get_token().access_token
    assert sandbox.count("token") == 2


def test_a_refusal_is_forgotten(sandbox: Sandbox) -> None:
    """After a reset a client that was refused is tried at once."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=401))
    with pytest.raises(InvalidClientError):
        auth.get_token()
    testing.reset()
    assert auth.get_token().access_token


def test_an_outage_is_forgotten(clock: FakeClock, sandbox: Sandbox) -> None:
    """After a reset nothing waits for the pause of an outage, and a new outage is retried as the first."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=503, times=4))
    with pytest.raises(TokenEndpointUnavailableError):
        auth.get_token()
    testing.reset()
    sandbox.inject(Fault("status", status=503, times=3))
    assert auth.get_token().access_token
    assert sandbox.count("token") == 8


def test_a_retry_after_is_forgotten(sandbox: Sandbox) -> None:
    """After a reset a Retry-After that is longer than `max_wait` holds up nobody."""
    auth = make(AxiaAuth, sandbox, max_wait=5)
    sandbox.inject(Fault("status", status=429, retry_after=200))
    with pytest.raises(RateLimitError):
        auth.get_token()
    testing.reset()
    assert auth.get_token().access_token


def test_the_rate_limit_is_forgotten(new_sandbox: Callable[..., Sandbox]) -> None:
    """After a reset BS2's 10 token requests in 60 s can be sent again."""
    sandbox = new_sandbox(enforce_rate_limits=False)
    auth = make(BS2Auth, sandbox, max_wait=1)
    for _ in range(2):
        for _ in range(10):
            auth.invalidate()
            auth.get_token()
        auth.invalidate()
        with pytest.raises(RateLimitError):
            auth.get_token()
        testing.reset()
    assert sandbox.count("token") == 20


def test_the_back_off_of_rejections_is_forgotten(sandbox: Sandbox) -> None:
    """After a reset a 401 is healed, though the API rejected every token before."""
    auth, url = make(NTXPayAuth, sandbox), api_url(NTXPayAuth, sandbox)
    sandbox.inject(Fault("status", "api", status=401, times=-1))
    assert requests.get(url, auth=auth, timeout=5).status_code == 401
    testing.reset()
    sandbox.clear_faults()
    auth.get_token()
    sandbox.revoke()
    assert requests.get(url, auth=auth, timeout=5).status_code == 200


# -- what stays


def test_subscribers_stay(sandbox: Sandbox) -> None:
    """A subscriber, and the `on_event` of an auth object, hear what happens after a reset."""
    heard: list[events.Event] = []
    own: list[events.Event] = []
    unsubscribe = events.subscribe(heard.append)
    try:
        auth = make(AxiaAuth, sandbox, on_event=own.append)
        testing.reset()
        auth.get_token()
    finally:
        unsubscribe()
    assert [type(event) for event in heard] == [type(event) for event in own] == [TokenMinted]


def test_a_shared_cache_stays(sandbox: Sandbox) -> None:
    """A token in a shared cache is used again after a reset: other processes have it, too."""
    auth = make(AxiaAuth, sandbox, cache=SharedStore(time.monotonic).face())
    token = auth.get_token()
    testing.reset()
    assert auth.get_token().access_token == token.access_token
    assert sandbox.count("token") == 1


# -- what is under way


class Held:
    """A gateway's answer to its first token request, held up until the test releases it."""

    def __init__(self, gateway: RawGateway, answer: Callable[[Exchange], bytes | None]) -> None:
        self._gateway, self._answer = gateway, answer
        self.arrived, self.released = threading.Event(), threading.Event()
        gateway.on_token = self

    def __call__(self, exchange: Exchange) -> bytes | None:
        if self._gateway.count("token") > 1:
            return self._gateway.issue(exchange)
        self.arrived.set()
        assert self.released.wait(30)
        return self._answer(exchange)


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    with RawGateway(BS2Auth) as gateway:
        yield gateway


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def drop(exchange: Exchange) -> None:
    exchange.close()


OUTCOMES = {
    "token": lambda exchange: http(200, token_body("from-before")),
    "refusal": lambda exchange: http(401, b"{}"),
    "rate limit": lambda exchange: http(429, b"{}", {"Retry-After": "250"}),
    "outage": lambda exchange: http(503, b"{}", {"Retry-After": "40"}),
    "lost": drop,
}


def auth_for(gateway: RawGateway, **options: Any) -> BS2Auth:
    return BS2Auth(gateway.url.rpartition(":")[2], SECRET, scope="cob.read", base_url=gateway.url, **options)


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("how", ["requests", "httpx", "httpx-async", "get_token"])
def test_what_is_under_way_ends_and_leaves_nothing(
    how: str, outcome: str, gateway: RawGateway, pool: ThreadPoolExecutor
) -> None:
    """A call that waits for a token request at the reset ends. Its token, refusal or Retry-After is not kept."""
    held = Held(gateway, OUTCOMES[outcome])
    auth, url = auth_for(gateway, max_wait=20), gateway.url + "/a"

    def call() -> object:
        try:
            if how == "get_token":
                return auth.get_token()
            if how == "requests":
                return requests.get(url, auth=auth, timeout=30)
            if how == "httpx":
                return httpx.get(url, auth=auth, verify=NO_TLS, timeout=30, trust_env=False)
            return asyncio.run(acall())
        except (TokenEndpointError, httpx.HTTPError) as error:
            return error

    async def acall() -> httpx.Response:
        async with httpx.AsyncClient(auth=auth, verify=NO_TLS, timeout=30, trust_env=False) as client:
            return await client.get(url)

    under_way = pool.submit(call)
    assert held.arrived.wait(20)
    testing.reset()
    second = pool.submit(auth.get_token).result(10)  # waits for no one
    held.released.set()
    under_way.result(30)
    assert auth.get_token().access_token == second.access_token
    for _ in range(8):  # with the one after the reset, nine of the ten in 60 s
        auth.invalidate()
        assert auth.get_token().access_token != "from-before"


def test_waiters_end_too(gateway: RawGateway, pool: ThreadPoolExecutor) -> None:
    """Callers that wait for another one's token request at the reset end with a token."""
    held = Held(gateway, OUTCOMES["token"])
    auth = auth_for(gateway)
    calls = [pool.submit(auth.get_token) for _ in range(6)]
    assert held.arrived.wait(20)
    testing.reset()
    held.released.set()
    tokens = {call.result(30).access_token for call in calls}
    assert tokens <= {"from-before", "token-2"}
    assert gateway.count("token") <= 2


def test_a_retry_goes_on_and_leaves_no_pause(gateway: RawGateway, pool: ThreadPoolExecutor) -> None:
    """A call that backs off at the reset gets its token; others do not back off with it."""
    held = Held(gateway, lambda exchange: http(503, b"{}"))
    auth = auth_for(gateway)
    call = pool.submit(auth.get_token)
    assert held.arrived.wait(20)
    testing.reset()
    held.released.set()
    assert call.result(30).access_token
    assert auth.get_token().access_token


def test_a_background_renewal_ends(clock: FakeClock, sandbox: Sandbox) -> None:
    """With `background_renewal` an auth object works after a reset, too."""
    auth = make(AxiaAuth, sandbox, background_renewal=True)
    auth.get_token()
    clock.advance(3400)
    auth.get_token()
    testing.reset()
    first = auth.get_token()
    assert auth.get_token().access_token == first.access_token


def test_an_api_call_under_way_is_healed(gateway: RawGateway, pool: ThreadPoolExecutor) -> None:
    """A 401 that arrives after a reset is healed as usual, with the token from after the reset."""
    arrived, released = threading.Event(), threading.Event()
    check = gateway.on_api

    def hold(exchange: Exchange) -> bytes | None:
        if exchange.token == "token-1":
            arrived.set()
            assert released.wait(30)
            return http(401, b"{}")
        return check(exchange)

    gateway.on_api = hold
    auth = auth_for(gateway)
    call = pool.submit(lambda: requests.get(gateway.url + "/a", auth=auth, timeout=30).status_code)
    assert arrived.wait(20)
    testing.reset()
    after = auth.get_token()
    released.set()
    assert call.result(30) == 200
    assert gateway.api[-1].token == after.access_token
    assert gateway.count("token") == 2


def test_a_reset_in_a_shared_cache_under_way(gateway: RawGateway, pool: ThreadPoolExecutor) -> None:
    """With a shared cache, too, a call that is under way at the reset ends, and later calls work."""
    held = Held(gateway, OUTCOMES["token"])
    auth = auth_for(gateway, cache=SharedStore(time.monotonic).face())
    call = pool.submit(auth.get_token)
    assert held.arrived.wait(20)
    testing.reset()
    second = pool.submit(auth.get_token).result(20)
    held.released.set()
    call.result(30)
    assert auth.get_token().access_token == second.access_token
