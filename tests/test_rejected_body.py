"""The body of a 401: whatever is wrong with it, the request is replayed, soon and in little memory."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
import requests
from conftest import CLIENTS, NO_TLS, SECRET, Client
from raw_gateway import Exchange, RawGateway, elapsed, http

from baas_auth_plugins import AxiaAuth, MemoryTokenCache

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings(
        "ignore:Async generator .* was garbage collected:ResourceWarning"
    ),  # httpx leaves its own behind
]

MIB = 1 << 20
BOUND = 12.0  # seconds that no replay needs, however busy the machine
LONG = 20.0  # seconds that a body drips
BOMB = gzip.compress(bytes(60 * MIB))
SMALL_BOMB = gzip.compress(bytes(30 * MIB))


def gzip_header(body: bytes, encoding: str = "gzip") -> bytes:
    return http(401, body, {"Content-Encoding": encoding})


def cut_short(exchange: Exchange) -> None:
    """Declare more than is sent."""
    exchange.send(http(401, b"only this", length=1000))
    exchange.close()


def cut_chunked(exchange: Exchange) -> None:
    """End a chunked body in the middle of a chunk."""
    exchange.send(b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nonly this")
    exchange.close()


def bad_chunk(exchange: Exchange) -> None:
    """Send a chunk size that is no number."""
    exchange.send(b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nwhat\r\n")
    exchange.close()


def huge(exchange: Exchange) -> None:
    """Declare 400 MB, and send it."""
    exchange.send(http(401, length=400 * MIB))
    sent = 0
    while sent < 400 and exchange.send(bytes(MIB)):
        sent += 1


def endless(exchange: Exchange) -> None:
    """Send chunks for ever."""
    exchange.send(b"HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    exchange.drip(b"10000\r\n" + bytes(0x10000) + b"\r\n", 0, LONG)


def until_closed(exchange: Exchange) -> None:
    """Send a body that ends with the connection, and does not end."""
    exchange.send(b"HTTP/1.1 401 X\r\nConnection: close\r\n\r\n")
    exchange.drip(b"x", 0.05, LONG)


def dripping(exchange: Exchange) -> None:
    """Send a short declared body, one byte at a time."""
    exchange.send(http(401, length=60_000))
    exchange.drip(b"x", 0.05, LONG)


def silent(exchange: Exchange) -> None:
    """Declare a short body, and send nothing of it."""
    exchange.send(http(401, length=100))
    exchange.drip(b"", 0.5, LONG)


BODIES: dict[str, Callable[[Exchange], bytes | None]] = {
    "not gzip": lambda exchange: gzip_header(b"this is no gzip"),
    "gzip, cut short": lambda exchange: gzip_header(gzip.compress(b"x" * 5000)[:20]),
    "not deflate": lambda exchange: gzip_header(b"no zlib either", "deflate"),
    "gzip twice": lambda exchange: gzip_header(zlib.compress(gzip.compress(b"x")), "gzip, deflate"),
    "unknown encoding": lambda exchange: gzip_header(b"x", "x-nonsense"),
    "cut short": cut_short,
    "cut chunked": cut_chunked,
    "bad chunk": bad_chunk,
    "huge": huge,
    "endless": endless,
    "until closed": until_closed,
    "dripping": dripping,
    "silent": silent,
    "bomb": lambda exchange: gzip_header(BOMB),
    "small bomb": lambda exchange: gzip_header(SMALL_BOMB),
    "empty gzip": lambda exchange: gzip_header(b""),
}


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    with RawGateway() as gateway:
        yield gateway


def revoked(gateway: RawGateway, name: str, body: Callable[[Exchange], bytes | None]) -> AxiaAuth:
    """Return an auth object whose cached token this gateway rejects with such a body."""
    auth = AxiaAuth(f"body-{name}", SECRET, base_url=gateway.url, cache=MemoryTokenCache(), timeout=5)
    auth.get_token()
    gateway.valid.clear()
    gateway.on_api = lambda exchange: http(200, b"ok") if exchange.token in gateway.valid else body(exchange)
    return auth


@pytest.mark.parametrize("body", BODIES)
def test_a_broken_401_is_replayed(client: Client, body: str, gateway: RawGateway) -> None:
    """Broken, cut, endless or dripping: the caller gets the answer to the replay, soon, after one token request."""
    auth = revoked(gateway, f"{body}-{client.name}", BODIES[body])
    with client.open(auth, timeout=30) as send, elapsed() as spent:
        answer = send("POST", gateway.url + "/a", content=b"payment")
    assert (answer.status, answer.content) == (200, b"ok")
    assert spent.seconds < BOUND
    assert gateway.count("token") == 2
    assert [e.body for e in gateway.api] == [b"payment"] * 2


@pytest.mark.parametrize("body", ["not gzip", "cut short", "huge", "endless", "dripping", "small bomb"])
@pytest.mark.parametrize("module", [requests, httpx, httpx2], ids=lambda module: module.__name__)
def test_a_broken_401_of_a_streamed_call_is_replayed(module: Any, body: str, gateway: RawGateway) -> None:
    """The same with `stream=True`, where the caller reads the answer to the replay."""
    auth = revoked(gateway, f"stream-{body}-{module.__name__}", BODIES[body])
    with elapsed() as spent:
        if module is requests:
            with requests.get(gateway.url + "/a", auth=auth, stream=True, timeout=30) as response:
                assert response.raw.read() == b"ok"
        else:
            with module.Client(auth=auth, verify=NO_TLS, trust_env=False, timeout=30) as opened:
                with opened.stream("GET", gateway.url + "/a") as response:
                    assert response.read() == b"ok"
    assert spent.seconds < BOUND


@pytest.mark.parametrize("body", ["huge", "bomb", "small bomb", "endless"])
@pytest.mark.parametrize("client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name)
def test_a_big_401_takes_little_memory(client: Client, body: str, gateway: RawGateway) -> None:
    """A body of 400 MB, or one that expands to 60 MB, is never held in memory."""
    auth = revoked(gateway, f"memory-{body}-{client.name}", BODIES[body])
    with client.open(auth, timeout=30) as send:
        tracemalloc.start()
        try:
            answer = send("GET", gateway.url + "/a")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer.status == 200
    assert peak < 12 * MIB
    assert gateway.api[0].sent < 64 * MIB


def test_the_connection_of_a_small_401_is_used_again(client: Client, gateway: RawGateway) -> None:
    """A 401 of ordinary size is read, so that the replay goes over the same connection."""
    auth = revoked(gateway, f"reused-{client.name}", lambda exchange: http(401, b'{"message": "Invalid token"}'))
    with client.open(auth) as send:
        assert send("GET", gateway.url + "/a").status == 200
    assert len({e.connection for e in gateway.api}) == 1


@pytest.mark.parametrize("module", [httpx, httpx2], ids=lambda module: module.__name__)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_replay_has_the_callers_timeouts(module: Any, is_async: bool, gateway: RawGateway) -> None:
    """Reading the 401 in bounded time changes no timeout of the request that is sent again."""
    import anyio

    seen: list[Any] = []
    auth = revoked(gateway, f"timeouts-{module.__name__}-{is_async}", BODIES["cut short"])
    timeout = module.Timeout(connect=11, read=12, write=13, pool=14)

    def note(request: Any) -> None:
        if request.url.path == "/a":
            seen.append(dict(request.extensions["timeout"]))

    async def anote(request: Any) -> None:
        note(request)

    async def main() -> None:
        async with module.AsyncClient(
            auth=auth, verify=NO_TLS, timeout=timeout, trust_env=False, event_hooks={"request": [anote]}
        ) as opened:
            assert (await opened.get(gateway.url + "/a")).status_code == 200

    if is_async:
        anyio.run(main)
    else:
        with module.Client(
            auth=auth, verify=NO_TLS, timeout=timeout, trust_env=False, event_hooks={"request": [note]}
        ) as opened:
            assert opened.get(gateway.url + "/a").status_code == 200
    assert seen == [{"connect": 11, "read": 12, "write": 13, "pool": 14}] * 2


def test_a_401_that_is_returned_has_its_body(client: Client, gateway: RawGateway) -> None:
    """A 401 that cannot be replayed reaches the caller as the API sent it, gzip included."""
    text = b'{"message": "Invalid token", "detail": "revoked"}'
    auth = revoked(gateway, f"returned-{client.name}", lambda exchange: gzip_header(gzip.compress(text)))
    with client.open(auth) as send:
        answer = send("POST", gateway.url + "/a", content=iter([b"once"]))
    assert (answer.status, answer.content) == (401, text)


def test_a_401_of_the_replay_has_its_body(client: Client, gateway: RawGateway) -> None:
    """The second 401 is the answer, body and all, and so is the third under the back-off."""
    auth = revoked(gateway, f"second-{client.name}", lambda exchange: http(401, b"no"))
    gateway.on_api = lambda exchange: gzip_header(gzip.compress(b"rejected"))
    with client.open(auth) as send:
        for _ in range(3):
            answer = send("GET", gateway.url + "/a")
            assert (answer.status, answer.content) == (401, b"rejected")
    assert gateway.count("token") == 2


def test_a_failed_renewal_after_a_broken_401_is_the_error(client: Client, gateway: RawGateway) -> None:
    """If no new token is to be had, the token endpoint's error is raised, not the body's."""
    auth = revoked(gateway, f"failed-{client.name}", BODIES["not gzip"])
    gateway.on_token = lambda exchange: http(403, b"{}")
    with client.open(auth) as send, pytest.raises(client.error) as caught:
        send("GET", gateway.url + "/a")
    assert getattr(caught.value, "status_code", None) == 403


def test_the_history_of_a_replay_has_the_401(gateway: RawGateway) -> None:
    """Requests: `history` holds the 401, with the body as far as it was read, and `elapsed` is the replay's."""
    auth = revoked(gateway, "history", lambda exchange: http(401, b"rejected"))
    response = requests.get(gateway.url + "/a", auth=auth, timeout=5)
    assert [(r.status_code, r.content) for r in response.history] == [(401, b"rejected")]
    assert response.elapsed.total_seconds() >= 0
