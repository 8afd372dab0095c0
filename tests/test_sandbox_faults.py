"""The sandbox fails as its tests want it to."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sandbox_wire import (
    AXIA,
    INTROSPECT,
    REVOKE,
    Clock,
    Sent,
    bearer,
    connect,
    exchange,
    inspect,
    mint,
    send,
    status,
    with_headers,
)

from baas_auth_plugins.sandbox import Fault, Sandbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("fault", "expected_status", "expected_body"),
    [
        (Fault("status", status=503), 503, r'\{"error": "E00503", "message": "Service Unavailable",.*'),
        (
            Fault("status", status=401),
            401,
            r'\{"error": "E00101", "message": "Invalid client credentials",.*',
        ),
        (Fault("status", status=520), 520, r'\{"error": "E00520".*'),
        (Fault("status", status=418, body=b"tea"), 418, "tea"),
        (Fault("garbage"), 200, "<!DOCTYPE html>.*"),
        (Fault("garbage", status=403), 403, "<!DOCTYPE html>.*"),
        (Fault("empty"), 200, ""),
        (Fault("body", body=b'{"expires_in": 0}'), 200, r'\{"expires_in": 0\}'),
        (Fault("body", body=b"{}", status=201), 201, r"\{\}"),
        (Fault("delay", delay=0.01), 200, r'\{"access_token": .*'),
        (Fault("drip", delay=0.0001), 200, r'\{"access_token": .*'),
        (Fault("redirect", headers=(("Location", "https://elsewhere.example/"),)), 307, ""),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_fault_answers_once(sandbox: Sandbox, fault: Fault, expected_status: int, expected_body: str) -> None:
    """A fault that answers does so for one request, on a connection that goes on."""
    sandbox.inject(fault)
    with closing(connect(sandbox)) as connection:
        answer = exchange(connection, AXIA)
        assert answer.status == expected_status
        assert re.fullmatch(expected_body, answer.text)
        assert exchange(connection, AXIA).status == 200
    assert [record.status for record in sandbox.requests] == [expected_status, 200]


@pytest.mark.parametrize(
    ("retry_after", "header", "in_body"),
    [(2, "2", 2), (0.5, "0.5", 0.5), ("Fri, 15 Mar 2024 10:00:05 GMT",) * 2 + (None,), (None, None, None)],
)
def test_retry_after_is_sent_verbatim(
    sandbox: Sandbox, retry_after: str | float | None, header: str | None, in_body: float | None
) -> None:
    """A 429 carries the Retry-After asked for, and Axia's body the same number of seconds."""
    sandbox.inject(Fault("status", status=429, retry_after=retry_after))
    answer = send(sandbox, AXIA)
    assert (answer.headers["Retry-After"], answer.json.get("retry_after")) == (header, in_body)
    assert answer.json["error"] == "E00102"


def test_fault_headers_replace_those_of_the_answer(sandbox: Sandbox) -> None:
    """Extra headers are sent, in place of the sandbox's own where they clash."""
    sandbox.inject(Fault("empty", headers={"content-type": "text/plain", "X-A": "b"}, retry_after=1))  # type: ignore[arg-type]  # a mapping will do
    answer = send(sandbox, AXIA)
    assert answer.headers.get_all("Content-Type") == ["text/plain"]
    assert (answer.headers["X-A"], answer.headers["Retry-After"]) == ("b", "1")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("drop"), http.client.RemoteDisconnected),
        (Fault("hang", delay=0.01), http.client.RemoteDisconnected),
        (Fault("truncate"), http.client.IncompleteRead),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_fault_breaks_the_connection(sandbox: Sandbox, fault: Fault, error: type[http.client.HTTPException]) -> None:
    """A connection is closed before or within the answer; the next request is served."""
    sandbox.inject(fault)
    with pytest.raises(error):
        send(sandbox, AXIA)
    assert send(sandbox, AXIA).status == 200
    assert sandbox.requests[0].status == (200 if fault.kind == "truncate" else None)


def test_huge_body_is_streamed(sandbox: Sandbox) -> None:
    """50 MiB are sent without a length, only as far as they are read."""
    sandbox.inject(Fault("huge", times=2))
    with closing(connect(sandbox)) as connection:
        connection.request("POST", AXIA.target, headers=AXIA.headers)
        response = connection.getresponse()
        assert response.headers["Content-Length"] is None
        assert len(response.read(1_000_000)) == 1_000_000
    assert len(send(sandbox, AXIA).text) == 50 * 2**20


def test_faults_keep_order_count_and_target(sandbox: Sandbox) -> None:
    """Faults happen in the order asked for, each as often as said, to its own kind of request."""
    token = mint(sandbox)
    sandbox.inject(Fault("status", "api", status=500))
    sandbox.inject(Fault("status", "token", status=502, times=2))
    sandbox.inject(Fault("status", "*", status=503))
    sandbox.inject(Fault("status", "introspect", status=504, times=-1))
    assert [send(sandbox, AXIA).status for _ in range(4)] == [502, 502, 503, 200]
    assert [status(sandbox, token) for _ in range(2)] == [500, 200]
    assert [inspect(sandbox, INTROSPECT, token).status for _ in range(3)] == [504] * 3
    assert inspect(sandbox, REVOKE, token).status == 200


def test_dropped_token_request_mints_nothing(sandbox: Sandbox) -> None:
    """A fault that replaces the answer leaves the gateway's state alone."""
    sandbox.single_active_token = True
    token = mint(sandbox)
    sandbox.inject(Fault("status", status=500))
    assert send(sandbox, AXIA).status == 500
    assert status(sandbox, token) == 200


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("401", 401),
        ("429", 429),
        ("503", 503),
        ("expire", 401),
        ("garbage", 200),
        ("delay=0.01", 200),
        ("sometimes", 400),
        ("delay=x", 400),
        ("delay=nan", 400),
        ("delay=-1", 400),
        ("delay=1e300", 400),
        ("drip=0.0001", 200),
        ("999", 400),
    ],
)
def test_api_request_may_ask_for_a_fault(sandbox: Sandbox, asked: str, expected: int) -> None:
    """X-Sandbox-Fault applies to the request that carries it, and to no other."""
    token = mint(sandbox)
    sent = with_headers(bearer(token), X_Sandbox_Fault=asked)
    answer = send(sandbox, sent)
    assert answer.status == expected
    assert ("<html>" in answer.text) == (asked == "garbage")
    assert ("Token has expired" in answer.text) == (asked == "expire")
    assert status(sandbox, token) == 200


def test_asked_drop_closes_the_connection(sandbox: Sandbox) -> None:
    """X-Sandbox-Fault: drop ends the connection without an answer."""
    with pytest.raises(http.client.RemoteDisconnected):
        send(sandbox, with_headers(bearer(mint(sandbox)), X_Sandbox_Fault="drop"))


def test_asked_fault_can_spare_the_replay(sandbox: Sandbox) -> None:
    """A value with a semicolon counts once, so that the same request sent again goes through."""
    token = mint(sandbox)
    sent = [with_headers(bearer(token), X_Sandbox_Fault=f"expire; once={key}") for key in "aabb"]
    assert [send(sandbox, each).status for each in sent] == [401, 200, 401, 200]


def test_token_request_cannot_ask_for_a_fault(sandbox: Sandbox) -> None:
    """X-Sandbox-Fault is for API requests alone."""
    assert send(sandbox, with_headers(AXIA, X_Sandbox_Fault="503")).status == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "explode"}, "kind must be one of status, "),
        ({"kind": "drop", "target": "all"}, "target must be one of "),
        ({"kind": "drop", "times": 0}, "times must be"),
        ({"kind": "drop", "times": True}, "times must be"),
        ({"kind": "drop", "delay": -1}, "delay must be"),
        ({"kind": "drop", "delay": float("inf")}, "delay must be"),
        ({"kind": "drop", "delay": "1"}, "delay must be"),
        ({"kind": "hang", "delay": 1e300}, "delay must be"),
        ({"kind": "hang", "delay": 86_401}, "delay must be"),
        ({"kind": "drop", "provider": 1}, "provider must be"),
        ({"kind": "drop", "retry_after": "ż"}, "retry_after must be"),
        ({"kind": "drop", "headers": {"A": "b "}}, "headers must be"),
        ({"kind": "drop", "headers": {"A B": "b"}}, "valid names"),
        ({"kind": "drop", "headers": {"content-length": "5"}}, "valid names"),
        ({"kind": "drop", "retry_after": [1]}, "retry_after must be"),
        ({"kind": "drop", "body": 1}, "body must be"),
        ({"kind": "drop", "headers": 5}, "headers must be"),
        ({"kind": "drop", "headers": [["a", "b\r\n"]]}, "headers must be"),
        ({"kind": "drop", "when": "now"}, "unknown field: when"),
        ({"kind": "status"}, "needs a status"),
        ({"kind": "status", "status": 1000}, "status must be"),
        ({"kind": "status", "status": "503"}, "status must be"),
        ({"kind": "body"}, "needs a body"),
        ({"kind": "redirect"}, "needs a Location"),
        ({"kind": "expire"}, "for target 'api'"),
        ({}, "a JSON object with a kind"),
        ([], "a JSON object with a kind"),
    ],
)
def test_impossible_fault_is_refused(sandbox: Sandbox, fields: Any, message: str) -> None:
    """A fault that cannot be is refused over HTTP and in Python alike, with the reason."""
    answer = send(sandbox, Sent("/_sandbox/faults", {}, json.dumps(fields).encode()))
    assert answer.status == 400
    assert message in answer.json["error"]
    if fields and "when" not in fields:
        with pytest.raises(ValueError, match=re.escape(message)):
            Fault(**fields)
