"""How often the token endpoint is asked when it refuses, fails or limits: by one call, and by many."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from conftest import CLIENTS, Auth, Client, FakeClock, api_url, make
from raw_gateway import SharedStore, token_body

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    NTXPayAuth,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings(
        "ignore:Async generator .* was garbage collected:ResourceWarning"
    ),  # httpx leaves its own behind
]

EACH = pytest.mark.parametrize(
    ("client", "auth_class"),
    list(zip(CLIENTS, [NTXPayAuth, AvistaAuth, AxiaAuth, AvistaAuth, NTXPayAuth, AxiaAuth, AvistaAuth], strict=True)),
    ids=[client.name for client in CLIENTS],
)
SOME = pytest.mark.parametrize(
    "client", [CLIENTS[0], CLIENTS[1], CLIENTS[5], CLIENTS[6]], ids=lambda client: client.name
)


def body(**members: Any) -> Fault:
    return Fault("body", body=json.dumps(members).encode(), times=-1)


def schedule(
    client: Client, auth: Any, clock: FakeClock, sandbox: Sandbox, url: str, calls: int
) -> tuple[list[float], list[Exception]]:
    """Call every second; return when token requests were sent, in seconds since the first failure, and the errors."""
    sent: list[float] = []
    errors: list[Exception] = []
    start: float | None = None
    with client.open(auth) as send:
        for _ in range(calls):
            before = sandbox.count("token")
            with pytest.raises(client.error) as caught:
                send("GET", url)
            errors.append(caught.value)
            start = clock.monotonic if start is None else start
            sent += [round(clock.monotonic - start)] * (sandbox.count("token") - before)
            clock.advance(1)
    return sent, errors


# -- refused


REFUSED: dict[str, tuple[Fault, type[TokenEndpointError], int]] = {
    "WAF page": (Fault("garbage", times=-1), InvalidTokenResponseError, 200),
    "empty": (Fault("empty", times=-1), InvalidTokenResponseError, 200),
    "too big": (Fault("huge", times=-1), InvalidTokenResponseError, 200),
    "no token": (body(expires_in=3600), InvalidTokenResponseError, 200),
    "nonsense lifetime": (body(access_token="abc", expires_in=-1), InvalidTokenResponseError, 200),
    "not Bearer": (body(access_token="abc", token_type="mac", expires_in=60), InvalidTokenResponseError, 200),
    "a list": (Fault("body", body=b"[1, 2]", times=-1), InvalidTokenResponseError, 200),
    "invalid_client in a 200": (body(error="invalid_client"), InvalidClientError, 200),
    "invalid_scope in a 200": (body(error="invalid_scope"), InvalidScopeError, 200),
    "other error in a 200": (body(error="invalid_grant", access_token="abc", expires_in=60), TokenEndpointError, 200),
    "204": (Fault("status", status=204, body=b"", times=-1), InvalidTokenResponseError, 204),
    "redirect": (Fault("redirect", headers={"Location": "/elsewhere"}, times=-1), TokenEndpointError, 307),
    "302": (Fault("status", status=302, headers={"Location": "/x"}, times=-1), TokenEndpointError, 302),
    "403": (Fault("status", status=403, times=-1), TokenEndpointError, 403),
    "422": (Fault("status", status=422, times=-1), TokenEndpointError, 422),
    "501": (Fault("status", status=501, times=-1), TokenEndpointError, 501),
}


@pytest.mark.parametrize(
    ("client", "auth_class", "kind"),
    [(CLIENTS[n % 7], [NTXPayAuth, AvistaAuth, AxiaAuth][n % 3], kind) for n, kind in enumerate(REFUSED)]
    + [(CLIENTS[(n + 3) % 7], [AvistaAuth, AxiaAuth, NTXPayAuth][n % 3], kind) for n, kind in enumerate(REFUSED)],
    ids=lambda value: getattr(value, "name", None) or getattr(value, "__name__", None) or str(value),
)
def test_a_refusal_is_asked_for_again_after_5_10_20_40_60_seconds(
    client: Client, auth_class: Auth, kind: str, clock: FakeClock, sandbox: Sandbox
) -> None:
    """A 4xx, a 3xx, a 5xx that is not retried and a 2xx without a usable token are refusals: 5, 10, 20, 40, then 60 s apart."""
    fault, error, status = REFUSED[kind]
    sandbox.inject(fault)
    sent, errors = schedule(client, make(auth_class, sandbox), clock, sandbox, api_url(auth_class, sandbox), 200)
    assert sent == [0, 5, 15, 35, 75, 135, 195]
    assert all(isinstance(e, error) for e in errors)
    assert {getattr(e, "status_code", None) for e in errors} == {status}
    assert len({id(e) for e in errors}) == 200
    assert clock.slept == []
    assert sandbox.count("api") == 0


@SOME
def test_two_hundred_calls_and_a_waf_page_are_one_token_request(
    client: Client, clock: FakeClock, sandbox: Sandbox
) -> None:
    """However often callers try, a refusal without a wait costs one token request."""
    sandbox.inject(Fault("garbage", times=-1))
    with client.open(make(AxiaAuth, sandbox)) as send:
        for _ in range(200):
            with pytest.raises(client.error):
                send("GET", api_url(AxiaAuth, sandbox))
    assert sandbox.count("token") == 1


@SOME
def test_a_valid_token_is_served_while_a_page_comes(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """With a valid token a refusal fails no call, and its pauses grow all the same."""
    auth = make(AxiaAuth, sandbox)
    sent: list[float] = []
    with client.open(auth) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        clock.advance(3300)
        sandbox.inject(Fault("garbage", times=-1))
        for second in range(60):
            before = sandbox.count("token")
            assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
            sent += [second] * (sandbox.count("token") - before)
            clock.advance(1)
    assert sent == [0, 5, 15, 35]


def test_an_error_member_says_what_it_says_in_a_400(sandbox: Sandbox) -> None:
    """The code and the text of an error in a 2xx are on the exception, and the token beside it is not used."""
    sandbox.inject(body(error="invalid_client", error_description="Unknown client", access_token="abc", expires_in=9))
    with pytest.raises(InvalidClientError, match="Unknown client") as caught:
        make(AxiaAuth, sandbox).get_token()
    assert (caught.value.error, caught.value.error_description) == ("invalid_client", "Unknown client")
    assert caught.value.status_code == 200


@pytest.mark.parametrize("value", [None, "", False])
def test_an_empty_error_member_is_no_error(value: Any, sandbox: Sandbox) -> None:
    """A gateway that always has the member, and leaves it empty, is not misread."""
    sandbox.inject(Fault("body", body=token_body("abc", error=value)))
    assert make(AxiaAuth, sandbox).get_token().access_token == "abc"


# -- unavailable


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@SOME
def test_an_outage_is_asked_for_again_after_5_10_20_30_seconds(
    client: Client, status: int, clock: FakeClock, sandbox: Sandbox
) -> None:
    """Without a valid token: four attempts, then one after 5, 10, 20, 30 and 30 s; meanwhile callers get the error."""
    sandbox.inject(Fault("status", status=status, times=-1))
    sent, errors = schedule(client, make(AxiaAuth, sandbox), clock, sandbox, api_url(AxiaAuth, sandbox), 130)
    assert sent == [0, 0, 0, 0, 5, 15, 35, 65, 95, 125]
    assert {(type(e), getattr(e, "status_code", None)) for e in errors} == {(TokenEndpointUnavailableError, status)}
    assert len(clock.slept) == 3


@pytest.mark.parametrize("how", ["requests", "get_token", "httpx with session", "aget_token"])
def test_a_network_outage_of_sent_requests_is_cached_too(how: str, clock: FakeClock, sandbox: Sandbox) -> None:
    """Dropped connections count as unavailable where the package sends: 4 attempts, then none for 5 s, then one."""
    import anyio
    import requests

    sandbox.inject(Fault("drop", times=-1))
    with requests.Session() as session:
        auth = make(AxiaAuth, sandbox, session=session if how == "httpx with session" else None)
        client = CLIENTS[1] if how == "httpx with session" else CLIENTS[0]

        def call() -> None:
            if how == "get_token":
                auth.get_token()
            elif how == "aget_token":
                anyio.run(auth.aget_token)
            else:
                client.call(auth, "GET", api_url(AxiaAuth, sandbox))

        counts = []
        for pause in (0.0, 0.0, 4.9, 0.2, 9.9, 0.2):
            clock.advance(pause)
            with pytest.raises(TokenEndpointUnavailableError):
                call()
            counts.append(sandbox.count("token"))
    assert counts == [4, 4, 4, 5, 5, 6]


def test_an_outage_that_ends_is_forgotten(clock: FakeClock, sandbox: Sandbox) -> None:
    """After a success the next outage starts with retries and 5 s again."""
    auth = make(AxiaAuth, sandbox)
    for _ in range(2):
        sandbox.inject(Fault("status", status=503, times=5))
        for pause in (0, 5):
            clock.advance(pause)
            with pytest.raises(TokenEndpointUnavailableError):
                auth.get_token()
        clock.advance(10)
        auth.get_token()
        clock.advance(3600)
    assert sandbox.count("token") == 12


def test_an_error_from_the_cache_says_when_the_next_attempt_is_possible(clock: FakeClock, sandbox: Sandbox) -> None:
    """What a cached error says of the next attempt is true: nothing is sent before, and one request then."""
    import re

    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=503, times=-1))
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        auth.get_token()
    sent = sandbox.count("token")
    promised = re.search(r"next (?:attempt|try|request)\D*?(\d+(?:\.\d+)?) s", str(caught.value))
    assert promised is None or float(promised[1]) == 5
    clock.advance(4.9)
    with pytest.raises(TokenEndpointUnavailableError):
        auth.get_token()
    assert sandbox.count("token") == sent
    clock.advance(0.2)
    with pytest.raises(TokenEndpointUnavailableError):
        auth.get_token()
    assert sandbox.count("token") == sent + 1


# -- rate-limited


@pytest.mark.parametrize("retry_after", ["0.001", "0", "0.1", "-5", "1e-9"])
@EACH
def test_a_tiny_retry_after_is_six_token_requests_at_most(
    client: Client, auth_class: Auth, retry_after: str, clock: FakeClock, sandbox: Sandbox
) -> None:
    """A 429 that says to come back at once is asked six times at most by one call, with pauses in between."""
    sandbox.inject(Fault("status", status=429, retry_after=retry_after, times=-1))
    with pytest.raises(client.error) as caught:
        client.call(make(auth_class, sandbox), "GET", api_url(auth_class, sandbox))
    assert isinstance(caught.value, RateLimitError)
    assert 1 <= sandbox.count("token") <= 6
    assert sum(clock.slept) <= 60


@pytest.mark.parametrize("statuses", [[429, 503] * 20, [503, 429] * 20, [503, 503, 429] * 20, [429] * 5 + [503] * 9])
def test_one_call_sends_six_token_requests_at_most(statuses: list[int], clock: FakeClock, sandbox: Sandbox) -> None:
    """Whatever mixture of limits and outages comes, one call ends after six token requests."""
    for status in statuses:
        sandbox.inject(Fault("status", status=status, retry_after=0.01 if status == 429 else None))
    with pytest.raises(TokenEndpointError):
        make(AxiaAuth, sandbox).get_token()
    assert sandbox.count("token") <= 6


def test_retry_after_is_never_taken_for_less_than_the_back_off(clock: FakeClock, sandbox: Sandbox) -> None:
    """Twenty calls in a row at a gateway that says `Retry-After: 0.001` stay far below a token request each 100 ms."""
    sandbox.inject(Fault("status", status=429, retry_after=0.001, times=-1))
    auth = make(AxiaAuth, sandbox)
    start = clock.monotonic
    for _ in range(20):
        with pytest.raises(RateLimitError):
            auth.get_token()
        clock.advance(0.01)
    assert sandbox.count("token") <= 6 + (clock.monotonic - start) / 0.1


ABSURD = {
    "epoch": {"retry_after": "1710496860"},
    "milliseconds": {"retry_after": "86400000"},
    "a date in 2096": {"retry_after": "Mon, 01 Oct 2096 00:00:00 GMT"},
    "2^63": {"retry_after": str(2**63)},
    "400 digits": {"retry_after": "9" * 400},
    "body": {"body": b'{"retry_after": 1710496860}'},
}


@pytest.mark.parametrize("form", ABSURD)
@SOME
def test_an_absurd_retry_after_counts_for_300_seconds(
    client: Client, form: str, clock: FakeClock, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A Retry-After that is an epoch value, milliseconds or a far date blocks for 300 s, is logged, and is on the error as 300."""
    sandbox.inject(Fault("status", status=429, **ABSURD[form]))
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        with caplog.at_level(logging.WARNING, "baas_auth_plugins"), pytest.raises(client.error) as caught:
            send("GET", api_url(AxiaAuth, sandbox))
        assert isinstance(caught.value, RateLimitError)
        assert caught.value.retry_after == pytest.approx(300, abs=1)
        assert any("300" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        clock.advance(238)
        with pytest.raises(client.error):
            send("GET", api_url(AxiaAuth, sandbox))
        assert sandbox.count("token") == 1
        clock.advance(62.5)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200


def test_a_long_retry_after_within_the_bound_counts_as_it_is(clock: FakeClock, sandbox: Sandbox) -> None:
    """200 s are 200 s, as seconds and as a date, and no token request is sent before."""
    auth = make(AxiaAuth, sandbox, max_wait=1)
    for value in ("200", formatdate(clock.wall + 400.0, usegmt=True)):
        sandbox.inject(Fault("status", status=429, retry_after=value))
        before = sandbox.count("token")
        with pytest.raises(RateLimitError) as caught:
            auth.get_token()
        assert caught.value.retry_after == pytest.approx(200, abs=2)
        clock.advance(195)
        with pytest.raises(RateLimitError):
            auth.get_token()
        assert sandbox.count("token") == before + 1
        clock.advance(5)


def test_a_valid_token_is_served_under_an_absurd_retry_after(clock: FakeClock, sandbox: Sandbox) -> None:
    """A renewal that meets an absurd Retry-After is attempted again 300 s later, and costs no call."""
    auth = make(BS2Auth, sandbox, leeway=1000)
    sandbox.expires_in = 2000
    auth.get_token()
    clock.advance(1001)
    sandbox.inject(Fault("status", status=429, retry_after=time.time()))
    for _ in range(29):
        auth.get_token()
        clock.advance(10)
    assert sandbox.count("token") == 2
    clock.advance(15)
    auth.get_token()
    assert sandbox.count("token") == 3


def test_an_absurd_retry_after_does_not_block_a_fleet_for_longer(clock: FakeClock, sandbox: Sandbox) -> None:
    """Another process, and one that starts later, asks 300 s after the 429."""
    store = SharedStore(lambda: clock.wall)
    sandbox.inject(Fault("status", status=429, retry_after=1_710_496_860))
    with pytest.raises(RateLimitError):
        make(AxiaAuth, sandbox, cache=store.face()).get_token()
    with pytest.raises(RateLimitError) as caught:
        make(AxiaAuth, sandbox, cache=store.face(), max_wait=1).get_token()
    assert caught.value.retry_after == pytest.approx(300, abs=2)
    assert sandbox.count("token") == 1
    clock.advance(301)
    assert make(AxiaAuth, sandbox, cache=store.face(), max_wait=1).get_token().access_token


def test_503_with_an_absurd_retry_after_is_asked_again_within_300_seconds(clock: FakeClock, sandbox: Sandbox) -> None:
    """The bound holds for a Retry-After of an outage as well."""
    auth = make(AxiaAuth, sandbox, max_wait=1)
    sandbox.inject(Fault("status", status=503, retry_after=1_710_496_860, times=-1))
    with pytest.raises(TokenEndpointError):
        auth.get_token()
    sandbox.clear_faults()
    clock.advance(300)
    assert auth.get_token().access_token


def test_a_429_without_retry_after_is_not_hammered(clock: FakeClock, new_sandbox: Callable[..., Sandbox]) -> None:
    """Where the gateway does not say how long to wait, the back-off does: six token requests a call at most."""
    sandbox = new_sandbox()
    sandbox.inject(Fault("status", status=429, times=-1))
    auth = make(NTXPayAuth, sandbox)
    for _ in range(3):
        before = sandbox.count("token")
        with pytest.raises(RateLimitError):
            auth.get_token()
        assert sandbox.count("token") - before <= 6
