"""A token endpoint that drips its answer: `timeout` bounds a sent token request in total."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
import requests
from conftest import CLIENTS, SECRET, Client, FakeClock
from raw_gateway import Exchange, RawGateway, elapsed, until

from baas_auth_plugins import AxiaAuth, MemoryTokenCache, TokenEndpointError, TokenEndpointUnavailableError

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings(
        "ignore:Async generator .* was garbage collected:ResourceWarning"
    ),  # httpx leaves its own behind
]

LONG = 12.0  # seconds that an answer drips
BOUND = 7.0  # seconds that no bounded call needs, however busy the machine


def drip_headers(exchange: Exchange) -> None:
    """Send a header line that never ends."""
    exchange.send(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    exchange.drip(b"a", 0.05, LONG)


def drip_status_line(exchange: Exchange) -> None:
    """Send a status line, byte by byte."""
    exchange.send(b"HTTP/1.1 200 ")
    exchange.drip(b"O", 0.05, LONG)


def drip_informational(exchange: Exchange) -> None:
    """Send one 1xx response after the other."""
    exchange.drip(b"HTTP/1.1 100 Continue\r\n\r\n", 0.05, LONG)


def drip_chunk_size(exchange: Exchange) -> None:
    """Send a chunk size with ever more leading zeros."""
    exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    exchange.drip(b"0", 0.05, LONG)


def drip_chunks(exchange: Exchange) -> None:
    """Send a body in chunks of one byte."""
    exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    exchange.drip(b"1\r\n{\r\n", 0.05, LONG)


def drip_body(exchange: Exchange) -> None:
    """Send a body of declared length, byte by byte."""
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    exchange.drip(b" ", 0.05, LONG)


DRIPS = [drip_headers, drip_status_line, drip_informational, drip_chunk_size, drip_chunks, drip_body]
EACH_DRIP = pytest.mark.parametrize("drip", DRIPS, ids=lambda drip: drip.__name__)


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    with RawGateway() as gateway:
        yield gateway


def auth_for(gateway: RawGateway, name: str, **parameters: Any) -> AxiaAuth:
    options: dict[str, Any] = {"timeout": 0.5, "max_wait": 1.0, "cache": MemoryTokenCache()}
    return AxiaAuth(f"drip-{name}", SECRET, base_url=gateway.url, **(options | parameters))


def call(how: str, gateway: RawGateway, auth: AxiaAuth) -> None:
    """Get a token in one of the ways in which the package sends the token request."""
    if how == "requests":
        requests.get(gateway.url + "/a", auth=auth, timeout=5)
    elif how == "get_token":
        auth.get_token()
    elif how == "aget_token":
        anyio.run(auth.aget_token)
    else:
        next(client for client in CLIENTS if client.name == how).call(auth, "GET", gateway.url + "/a")


@EACH_DRIP
@pytest.mark.parametrize("how", ["requests", "aget_token"])
def test_a_dripping_answer_ends_after_the_timeout(
    how: str, drip: Callable[[Exchange], None], gateway: RawGateway
) -> None:
    """However an answer drips, a call with `timeout=0.5, max_wait=1` fails with a typed error in a few seconds."""
    gateway.on_token = drip
    auth = auth_for(gateway, f"{how}-{drip.__name__}")
    with elapsed() as spent, pytest.raises(TokenEndpointUnavailableError):
        call(how, gateway, auth)
    assert spent.seconds < BOUND


@pytest.mark.parametrize(
    ("how", "drip"),
    [
        ("get_token", drip_headers),
        ("httpx", drip_informational),
        ("httpx-asyncio", drip_headers),
        ("httpx2-trio", drip_chunk_size),
    ],
)
def test_a_session_bounds_it_for_every_client(how: str, drip: Callable[[Exchange], None], gateway: RawGateway) -> None:
    """With `session=` the same holds for token requests of httpx callers."""
    gateway.on_token = drip
    with requests.Session() as session:
        auth = auth_for(gateway, f"session-{how}", session=session)
        with elapsed() as spent, pytest.raises(TokenEndpointUnavailableError):
            call(how, gateway, auth)
    assert spent.seconds < BOUND


@EACH_DRIP
def test_a_renewal_that_drips_costs_its_caller_the_timeout(
    drip: Callable[[Exchange], None], clock: FakeClock, gateway: RawGateway
) -> None:
    """With a valid token the call succeeds after `timeout` at most, with the old token, in one attempt."""
    auth = auth_for(gateway, f"renewal-{drip.__name__}")
    auth.get_token()
    clock.advance(3310)
    gateway.on_token = drip
    with elapsed() as spent:
        assert requests.get(gateway.url + "/a", auth=auth, timeout=5).status_code == 200
    assert spent.seconds < BOUND
    assert gateway.count("token") == 2
    assert gateway.api[-1].token == "token-1"


def test_others_are_not_held_up_by_a_dripping_leader(gateway: RawGateway) -> None:
    """Eight threads on a cold cache all end, with one error each, while the answer still drips."""
    gateway.on_token = drip_headers
    auth = auth_for(gateway, "leader")

    def attempt(_: int) -> Exception | None:
        try:
            auth.get_token()
        except TokenEndpointError as error:
            return error
        return None

    with elapsed() as spent, ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(attempt, range(8)))
    assert spent.seconds < BOUND
    assert None not in errors
    assert len({id(error) for error in errors}) == 8


@pytest.mark.parametrize("client", [CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name)
def test_a_dripping_yielded_token_request_holds_up_only_its_caller(client: Client, gateway: RawGateway) -> None:
    """Where httpx sends the token request, only that caller may wait longer; another one ends within `max_wait`."""
    gateway.on_token = drip_headers
    auth = auth_for(gateway, f"yielded-{client.name}")
    pool = ThreadPoolExecutor(1)

    def leader() -> None:
        with pytest.raises(client.error):
            client.call(auth, "GET", gateway.url + "/a")

    led = pool.submit(leader)
    until(lambda: gateway.tokens)
    with elapsed() as spent, pytest.raises(TokenEndpointError):
        auth.get_token()
    assert spent.seconds < BOUND
    gateway.__exit__()
    led.result(30)
    pool.shutdown()


def test_a_caller_after_a_drip_is_served(gateway: RawGateway) -> None:
    """A thread that still reads a dripping answer holds nothing: once the gateway recovers, tokens come."""
    gateway.on_token = drip_headers
    auth = auth_for(gateway, "after")
    with pytest.raises(TokenEndpointUnavailableError):
        auth.get_token()
    gateway.on_token = gateway.issue
    other = auth_for(gateway, "after", cache=MemoryTokenCache())
    assert other.get_token().access_token
