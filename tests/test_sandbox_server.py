"""The sandbox's HTTP server, and the record of what it was sent."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from sandbox_wire import (
    AVISTA,
    AXIA,
    BASIC,
    BS2,
    INTROSPECT,
    SECRET,
    Clock,
    Sent,
    basic,
    bearer,
    connect,
    exchange,
    inspect,
    mint,
    plug,
    send,
    status,
    until,
    with_headers,
)

from baas_auth_plugins.sandbox import Fault, RecordedRequest, Sandbox, _endpoints, _gateway, _journal, _tokens


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
    """Neither idle connections nor one that hangs for ever hold up close, which ends them all and frees the port."""
    with Sandbox() as sandbox:
        idle, hanging = connect(sandbox), connect(sandbox)
        exchange(idle, AXIA)
        sandbox.inject(Fault("hang"))
        hanging.request("POST", AXIA.target, headers=AXIA.headers)
        until(lambda: sandbox.count("token") == 2)
        sandbox.close()
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
    monkeypatch.setattr(sandbox, "begin", lambda request: 1 / 0)
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


# -- what is no HTTP, or too much of it


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /" + b"x" * 300_000, 431),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
def test_malformed_http_is_turned_away(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str], sent: bytes, status: int
) -> None:
    """What is no HTTP/1.1 gets a 4xx or 5xx and the end of its connection, and is neither recorded nor printed."""
    with plug(sandbox) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        answer = raw.makefile("rb").read()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Connection: close" in answer
    assert send(sandbox, AXIA).status == 200
    sandbox.close()
    assert [record.path for record in sandbox.requests] == [AXIA.target]
    assert capfd.readouterr() == ("", "")


def test_target_that_is_no_url_is_not_found(sandbox: Sandbox) -> None:
    """A target in absolute form that cannot be parsed is a path of no gateway."""
    with plug(sandbox) as raw:
        raw.sendall(b"GET http://[a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 404 ")
    assert sandbox.requests[0].kind == "unknown"


@pytest.mark.parametrize("length", [b"16777217", b"99999999999999999999"])
def test_announced_body_that_is_too_long_is_not_waited_for(sandbox: Sandbox, length: bytes) -> None:
    """An absurd Content-Length is refused before any of the body has come."""
    with plug(sandbox) as raw, raw.makefile("rb") as answer:
        raw.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: " + length + b"\r\n\r\n")
        assert answer.readline().startswith(b"HTTP/1.1 413 ")
    assert sandbox.requests == []


@pytest.mark.parametrize("chunked", [False, True])
def test_too_long_a_body_is_a_413(sandbox: Sandbox, chunked: bool) -> None:
    """A body is read up to 16 MiB; beyond that the request is refused and not recorded."""
    body = bytes((16 << 20) + 1)
    with closing(connect(sandbox)) as connection:
        connection.request("POST", "/x", iter([body]) if chunked else body, encode_chunked=chunked)
        assert connection.getresponse().status == 413
    assert sandbox.requests == []


def test_client_that_waits_for_100_is_told_to_continue(sandbox: Sandbox) -> None:
    """With Expect: 100-continue the body is sent after an interim response."""
    with plug(sandbox) as raw, raw.makefile("rb") as answer:
        raw.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert answer.readline().startswith(b"HTTP/1.1 100")
        raw.sendall(b"abc")
        assert b"HTTP/1.1 401 " in answer.readline() + answer.readline()
    assert sandbox.requests[0].body == b"abc"


def test_http_1_0_is_answered_and_closed(sandbox: Sandbox) -> None:
    """A client of HTTP/1.0 gets its answer and the end of the connection, with a long one as well."""
    sandbox.inject(Fault("huge", "api"))
    for length in (50 << 20, 0):
        with plug(sandbox) as raw:
            raw.sendall(b"GET /x HTTP/1.0\r\n\r\n")
            assert len(raw.makefile("rb").read()) > length


# -- what is recorded, and what a log shows of it


def test_record_forgets_the_oldest(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record holds the latest requests, by number and by the bytes of their bodies; counts go on."""
    monkeypatch.setattr(_journal, "_MOST_RECORDS", 3)
    for number in range(5):
        send(sandbox, Sent(f"/{number}", {}, b"12345678"))
    assert [(record.number, record.path) for record in sandbox.requests] == [(3, "/2"), (4, "/3"), (5, "/4")]
    monkeypatch.setattr(_journal, "_MOST_BYTES", 20)
    send(sandbox, Sent("/5", {}, b"12345678"))
    assert [record.number for record in sandbox.requests] == [5, 6]
    send(sandbox, Sent("/6", {}, b"123456789012345678901"))
    assert [record.number for record in sandbox.requests] == [7]
    assert sandbox.count("api") == 7


def test_windows_and_spent_faults_are_forgotten(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients and faults that only a request names do not fill the memory."""
    monkeypatch.setattr(_endpoints, "_MOST_WINDOWS", 2)
    monkeypatch.setattr(_gateway, "_MOST_SPENT", 2)
    for number in range(5):
        assert send(sandbox, with_headers(AXIA, Authorization=basic(f"client-{number}:x"))).status == 401
        assert send(sandbox, Sent("/x", {"X-Sandbox-Fault": f"503; {number}"}, method="GET")).status == 503
    assert (len(sandbox._windows), len(sandbox._spent)) == (2, 2)


def test_tokens_are_forgotten_in_the_end(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox knows the latest tokens only."""
    monkeypatch.setattr(_tokens, "_MOST_TOKENS", 2)
    tokens = [mint(sandbox) for _ in range(3)]
    assert [status(sandbox, token) for token in tokens] == [401, 200, 200]


@pytest.mark.parametrize(
    ("now", "date"), [(1_710_496_800, "Fri, 15 Mar 2024 10:00:00 GMT"), (1e30, "Thu, 01 Jan 1970 00:00:00 GMT")]
)
def test_date_is_by_the_gateways_clock(sandbox: Sandbox, clock: Clock, now: float, date: str) -> None:
    """A client can see a skew between its clock and the gateway's; a clock that is no time gives some Date."""
    clock.now = now
    assert send(sandbox, AXIA).headers["Date"] == date
    sandbox.inject(Fault("empty", headers=(("Date", "now"),)))
    assert send(sandbox, AXIA).headers.get_all("Date") == ["now"]


def test_close_ends_a_dripping_answer(sandbox: Sandbox) -> None:
    """An answer that drips for hours does not hold up close."""
    sandbox.inject(Fault("drip", delay=3600))
    with closing(connect(sandbox)) as connection:
        connection.request("POST", AXIA.target, headers=AXIA.headers)
        until(lambda: sandbox.count("token") == 1)
        sandbox.close()
        with pytest.raises(http.client.HTTPException):
            connection.getresponse()


def test_listener_hears_each_request_when_it_is_answered(clock: Clock) -> None:
    """on_request gets each record, complete, in order; what it raises is logged, and hurts nobody."""
    heard: list[RecordedRequest] = []
    with Sandbox(clock=clock, on_request=heard.append) as sandbox:
        send(sandbox, AXIA)
        sandbox.inject(Fault("status", status=503))
        send(sandbox, AXIA)
        send(sandbox, with_headers(AXIA, Authorization=basic("your-client-id:wrong")))
        send(sandbox, Sent("/_sandbox/stats", {}, method="GET"))
        assert heard == sandbox.requests
    assert [(record.status, record.fault, record.problem) for record in heard] == [
        (200, None, ""),
        (503, "status", ""),
        (401, None, "the client_secret is not the sandbox's"),
    ]
    assert all(record.finished is not None for record in heard)


def test_listener_that_raises_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of on_request is logged; the request is answered."""
    with Sandbox(on_request=lambda record: 1 / 0) as sandbox:
        assert send(sandbox, AXIA).status == 200
    assert "on_request raised an exception" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (AXIA, {"body": "", "query": ""}),
        (AVISTA, {"body": '{"clientId": "your-client-id", "clientSecret": "***"}'}),
        (BS2, {"body": "grant_type=client_credentials&scope=cob.write cob.read"}),
        (
            replace(AVISTA, body=b'{"clientId": 1, "deep": {"clientId": "s3cret"}}'),
            {"body": '{"clientId": "***", "deep": "***"}'},
        ),
        (replace(AVISTA, body=b'["s3cret"]'), {"body": "(10 bytes)"}),
        (replace(AVISTA, body=b"{"), {"body": "(1 bytes)"}),
        (replace(BS2, body=b"s3cret"), {"body": "***=***"}),
        (replace(BS2, body=b"\xff"), {"body": "***=***"}),
        (with_headers(BS2, Content_Type="text/plain"), {"body": "(54 bytes)"}),
        (replace(AXIA, target="/x?token=abc&s3cret=s3cret"), {"query": "token=*** (token ba7816bf)&***=***"}),
    ],
)
def test_log_shows_no_secret(sandbox: Sandbox, sent: Sent, shown: dict[str, str]) -> None:
    """The masked form has values of harmless names only."""
    send(sandbox, sent)
    masked = sandbox.requests[0].masked()
    assert masked.items() >= shown.items()
    assert not any(secret in json.dumps(masked) for secret in (SECRET, "s3cret", BASIC))
    json.dumps(masked)


@pytest.mark.parametrize(
    ("header", "value", "shown"),
    [
        ("Authorization", BASIC, "Basic *** (client_id your-client-id)"),
        ("Authorization", "Basic abc", "Basic *** (not base64)"),
        ("Authorization", basic("s3cret"), "Basic *** (no colon)"),
        ("Authorization", "Bearer abc", "Bearer *** (token ba7816bf)"),
        ("Authorization", "s3cret", "***"),
        ("Cookie", "s3cret", "***"),
        ("X-Api-Key", "s3cret", "***"),
        ("User-Agent", "acme/1.0", "acme/1.0"),
    ],
)
def test_log_shows_headers_but_no_credential(sandbox: Sandbox, header: str, value: str, shown: str) -> None:
    """Credentials are masked in every header; what explains a difference is shown."""
    send(sandbox, Sent("/x", {header: value}))
    assert sandbox.requests[0].masked()["headers"][header.lower()] == shown


# -- tokens that end early


@pytest.mark.parametrize("how", ["revoke", "expire"])
def test_tokens_end_one_by_one_by_gateway_or_all(sandbox: Sandbox, how: str) -> None:
    """A digest, a provider or nothing chooses the tokens that are revoked or expire; the number says how many did."""
    end = getattr(sandbox, how)
    axia, bs2 = mint(sandbox), mint(sandbox, "bs2")
    for _ in range(3):
        mint(sandbox, "avista")
    digests = [token.digest for token in sandbox.tokens]
    assert digests[0] == hashlib.sha256(axia.encode()).hexdigest()[:8]
    assert (end("00000000"), end(digests[0]), end(digests[0])) == (0, 1, 0)
    assert [send(sandbox, bearer(token, "/x")).status for token in (axia, bs2)] == [401, 200]
    assert sandbox.requests[-2].problem == {"revoke": "the token was revoked", "expire": "Expired token"}[how]
    assert [token.digest for token in sandbox.tokens] == digests[1:]
    assert (end(provider="avista"), end(), end()) == (3, 1, 0)
    assert sandbox.tokens == []
