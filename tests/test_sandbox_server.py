"""The sandbox's HTTP server, and the record of what it was sent."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from sandbox_wire import (
    AVISTA,
    AXIA,
    BASIC,
    INTROSPECT,
    SECRET,
    Clock,
    bearer,
    connect,
    exchange,
    inspect,
    mint,
    plug,
    send,
    status,
    until,
)

from baas_auth_plugins.sandbox import Fault, Sandbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as sandbox:
        yield sandbox


def test_requests_are_recorded_but_not_shown(sandbox: Sandbox) -> None:
    """The record holds the request whole; its repr shows neither headers, body, query nor credentials."""
    token = mint(sandbox, "avista")
    inspect(sandbox, INTROSPECT, token)
    send(sandbox, bearer(token, "/cob/1"))
    records = sandbox.requests
    assert [(r.method, r.path, r.kind, r.provider, r.status) for r in records] == [
        ("POST", "/oauth/token", "token", "avista", 200),
        ("POST", INTROSPECT, "introspect", "axia", 200),
        ("GET", "/cob/1", "api", "avista", 200),
    ]
    assert records[0].body == AVISTA.body
    assert records[1].query == f"token={token}"
    assert records[2].headers["authorization"] == f"Bearer {token}"
    assert all(r.finished is not None and r.started <= r.finished for r in records)
    shown = repr(records) + repr(sandbox)
    assert not any(secret in shown for secret in (SECRET, token, BASIC, "application/json"))


def test_record_is_a_snapshot_until_cleared(sandbox: Sandbox) -> None:
    """A list of requests does not grow afterwards; clear forgets requests, faults, tokens and windows."""
    tokens = [mint(sandbox, "bs2") for _ in range(10)]
    before = sandbox.requests
    sandbox.inject(Fault("drop", times=-1))
    sandbox.clear()
    assert (len(before), sandbox.requests, sandbox.count("token"), sandbox.max_in_flight) == (10, [], 0, 0)
    assert mint(sandbox, "bs2") not in tokens
    assert status(sandbox, tokens[0], "/x") == 401
    assert len(before) == 10


def test_requests_in_flight_are_counted(sandbox: Sandbox) -> None:
    """Token requests that wait together are in flight together, until their clients give up."""

    def drained() -> bool:
        sandbox.clear()
        return sandbox.max_in_flight == 0

    sandbox.inject(Fault("hang", times=20))
    waiting = [connect(sandbox) for _ in range(20)]
    for connection in waiting:
        connection.request("POST", AXIA.target, headers=AXIA.headers)
    until(lambda: sandbox.count("token") == 20)
    assert sandbox.max_in_flight == 20
    for connection in waiting:
        connection.close()
    until(drained)
    mint(sandbox)
    mint(sandbox)
    assert sandbox.max_in_flight == 1


def test_close_is_prompt_and_final() -> None:
    """Neither idle nor hanging connections hold up close, which ends them all and frees the port."""
    with Sandbox() as sandbox:
        idle, hanging = connect(sandbox), connect(sandbox)
        exchange(idle, AXIA)
        sandbox.inject(Fault("hang"))
        hanging.request("POST", AXIA.target, headers=AXIA.headers)
        until(lambda: sandbox.count("token") == 2)
        started = time.monotonic()
        sandbox.close()
        assert time.monotonic() - started < 0.5
    assert idle.sock.recv(1) == b""
    with pytest.raises(http.client.RemoteDisconnected):
        hanging.getresponse()
    idle.close()
    hanging.close()
    with pytest.raises(ConnectionRefusedError):
        send(sandbox, AXIA)
    assert sandbox.count("token") == 2


def test_sandbox_starts_again_and_knows_when_it_never_did() -> None:
    """The origin is known from the start on; starting twice is harmless, as is closing."""
    sandbox = Sandbox()
    with pytest.raises(RuntimeError, match="not running"):
        _ = sandbox.url
    for _ in range(2):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", sandbox.start().url)
        assert sandbox.start().url == sandbox.url
        mint(sandbox)
        sandbox.close()
        sandbox.close()


def test_server_is_silent(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, not even when clients vanish or send nonsense."""
    with closing(connect(sandbox)) as connection:
        sandbox.inject(Fault("huge"))
        connection.request("POST", AXIA.target, headers=AXIA.headers)
        connection.getresponse().read(10)
    with plug(sandbox) as raw:
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        raw.makefile("rb").read()
    with plug(sandbox) as raw:
        raw.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc")
        raw.shutdown(socket.SHUT_WR)
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
    sandbox.close()
    assert [record.path for record in sandbox.requests] == [AXIA.target]
    assert capfd.readouterr() == ("", "")


def test_bug_of_the_sandbox_is_shown(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What no client can have caused ends the connection with a traceback, rather than in silence."""
    monkeypatch.setattr(sandbox, "begin", lambda request, routes: 1 / 0)
    with pytest.raises(http.client.RemoteDisconnected):
        send(sandbox, AXIA)
    sandbox.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_latecomer_is_turned_away(sandbox: Sandbox) -> None:
    """A connection accepted while the sandbox closes is closed unserved."""
    assert sandbox._servers
    sandbox._servers[0].closing.set()
    with plug(sandbox) as raw:
        assert raw.recv(1) == b""


def test_pipelined_requests_are_answered_in_order(sandbox: Sandbox) -> None:
    """A request that waits behind a delayed one is answered after it."""
    sandbox.inject(Fault("delay", "api", delay=0.05))
    with plug(sandbox) as raw:
        raw.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: sandbox.count("api") == 1)
        raw.sendall(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert raw.makefile("rb").read().count(b"HTTP/1.1 401 ") == 3
    first, second, third = sandbox.requests
    assert (first.path, second.path, third.path) == ("/a", "/b", "/c")
    assert first.finished is not None
    assert 0.05 <= first.finished - first.started <= second.started - first.started


def test_sandbox_serves_https() -> None:
    """With a server context the origin is https, and everything else is the same."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    with Sandbox(ssl_context=server) as sandbox:
        assert sandbox.url.startswith("https://")
        sandbox.inject(Fault("delay", delay=0.01))
        with closing(http.client.HTTPSConnection(urlsplit(sandbox.url).netloc, context=client)) as connection:
            assert [exchange(connection, AXIA).status for _ in range(2)] == [200, 200]
        with plug(sandbox) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no handshake: this connection alone fails
        assert sandbox.count("token") == 2
