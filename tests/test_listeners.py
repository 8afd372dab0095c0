"""Listeners: what events say, and that a slow or a curious listener harms nobody."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
import requests
from conftest import CLIENTS, Auth, Client, FakeClock, api_url, make

from baas_auth_plugins import (
    AxiaAuth,
    BS2Auth,
    NTXPayAuth,
    RateLimited,
    RateLimitError,
    RenewalFailed,
    RequestReplayed,
    TokenEndpointError,
    TokenEndpointUnavailableError,
    TokenMinted,
    TokenRejected,
    TokenServedStale,
    events,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

SOME = pytest.mark.parametrize(
    "client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name
)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:8]


class Heard(list[Any]):
    """A listener that keeps what it hears."""

    def __call__(self, event: Any) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if type(event) is kind]


@pytest.fixture
def heard() -> Heard:
    return Heard()


# -- slow listeners


@pytest.mark.parametrize("outcome", ["token", "refusal"])
def test_waiters_are_woken_before_listeners_run(outcome: str, sandbox: Sandbox) -> None:
    """A listener that blocks delays its own caller only: all who waited for the same token request go on."""
    release, blocked = threading.Event(), threading.Event()

    def slow(_: Any) -> None:
        blocked.set()
        assert release.wait(20)

    sandbox.inject(Fault("delay", delay=0.5))
    if outcome == "refusal":
        sandbox.clear_faults()
        sandbox.inject(Fault("status", status=401, delay=0.5))
    auth = make(AxiaAuth, sandbox, on_event=slow)

    def call(_: int) -> object:
        try:
            return auth.get_token()
        except TokenEndpointError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(call, n) for n in range(8)]
        try:
            assert blocked.wait(20)
            done, pending = wait(futures, timeout=10, return_when="FIRST_EXCEPTION")
            assert len(done) >= 7, f"{len(pending)} calls wait for a listener"
        finally:
            release.set()
    assert sandbox.count("token") == 1


def test_a_subscriber_that_blocks_delays_no_waiter(sandbox: Sandbox) -> None:
    """The same holds for those that hear all auth objects."""
    release, blocked = threading.Event(), threading.Event()

    def slow(event: Any) -> None:
        if isinstance(event, TokenMinted):
            blocked.set()
            release.wait(20)

    sandbox.inject(Fault("delay", delay=0.5))
    auth = make(NTXPayAuth, sandbox)
    unsubscribe = events.subscribe(slow)
    try:
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(auth.get_token) for _ in range(4)]
            try:
                assert blocked.wait(20)
                done, _ = wait(futures, timeout=10)
                assert len(done) >= 3
            finally:
                release.set()
    finally:
        unsubscribe()


def test_a_listener_that_raises_is_logged(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """What a listener raises reaches the log and no caller."""

    def broken(_: Any) -> None:
        raise ValueError("broken listener")

    with caplog.at_level(logging.WARNING, "baas_auth_plugins"):
        assert make(AxiaAuth, sandbox, on_event=broken).get_token().access_token
    assert any("broken listener" in (record.exc_text or "") + record.getMessage() for record in caplog.records)


# -- curious listeners


@pytest.mark.parametrize("fault", ["500", "429", "drop", "401", "page"])
def test_a_listener_that_asks_for_a_token_does_not_multiply_requests(
    fault: str, clock: FakeClock, sandbox: Sandbox
) -> None:
    """`get_token()` in a listener obeys `max_wait` and the six token requests of the call that it listens to."""
    sandbox.inject(
        {
            "500": Fault("status", status=500, times=-1),
            "429": Fault("status", status=429, retry_after=0.5, times=-1),
            "drop": Fault("drop", times=-1),
            "401": Fault("status", status=401, times=-1),
            "page": Fault("garbage", times=-1),
        }[fault]
    )
    depth: list[int] = []

    def curious(_: Any) -> None:
        depth.append(1)
        if len(depth) < 50:
            auth.get_token()

    auth = make(NTXPayAuth, sandbox, max_wait=4, on_event=curious)
    start = clock.monotonic
    with pytest.raises(TokenEndpointError):
        auth.get_token()
    assert sandbox.count("token") <= 6
    assert clock.monotonic - start <= 4
    assert len(depth) < 50


def test_a_task_that_a_listener_starts_has_a_budget_of_its_own(clock: FakeClock, sandbox: Sandbox) -> None:
    """A worker that the first event starts in asyncio lives on: each of its calls may take `max_wait` and 6 requests."""

    async def main() -> int:
        workers: list[asyncio.Task[None]] = []

        async def work() -> None:
            await asyncio.sleep(0)
            for _ in range(8):
                clock.advance(100)
                await auth.ainvalidate()
                await auth.aget_token()

        def on_event(_: object) -> None:
            if not workers:
                workers.append(asyncio.create_task(work()))

        auth = make(NTXPayAuth, sandbox, on_event=on_event)
        await auth.aget_token()
        await workers[0]
        return sandbox.count("token")

    assert asyncio.run(main()) == 9


def test_a_listener_gets_the_token_that_it_hears_of(sandbox: Sandbox) -> None:
    """A listener to `TokenMinted` may call `get_token()`: it gets that token, without a deadlock."""
    found: list[str] = []

    def curious(event: Any) -> None:
        if isinstance(event, TokenMinted):
            found.append(digest(auth.get_token().access_token))
            assert found[-1] == event.token_digest

    auth = make(AxiaAuth, sandbox, on_event=curious)
    token = auth.get_token()
    assert found == [digest(token.access_token)]
    assert sandbox.count("token") == 1


def test_a_listener_that_invalidates_does_not_loop(sandbox: Sandbox) -> None:
    """A listener that drops each new token costs one token request per call, and the call succeeds."""
    auth = make(AxiaAuth, sandbox, on_event=lambda event: auth.invalidate())
    for _ in range(3):
        assert requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5).status_code == 200
    assert sandbox.count("token") <= 6


# -- what events say


@SOME
def test_minted_says_why(client: Client, clock: FakeClock, sandbox: Sandbox, heard: Heard) -> None:
    """`TokenMinted` has reason, attempts, duration, expires_in, and whose token it is."""
    auth = make(AxiaAuth, sandbox, on_event=heard)
    url = api_url(AxiaAuth, sandbox)
    with client.open(auth) as send:
        sandbox.inject(Fault("status", status=503))
        send("GET", url)  # cold
        clock.advance(3310)
        send("GET", url)  # due
        clock.advance(3600)
        send("GET", url)  # expired
        sandbox.revoke_all()
        send("GET", url)  # rejected
        clock.advance(60)
        auth.invalidate()
        send("GET", url)  # invalidated
    minted = heard.of(TokenMinted)
    assert [event.reason for event in minted] == ["cold", "due", "expired", "rejected", "invalidated"]
    assert [event.attempts for event in minted] == [2, 1, 1, 1, 1]
    assert {event.expires_in for event in minted} == {3600}
    assert minted[0].duration == pytest.approx(sum(clock.slept), abs=0.01)
    assert {(event.provider, event.client_id) for event in heard} == {("axia", sandbox.client_id)}
    assert minted[-1].token_digest == digest(auth.get_token().access_token)


@SOME
def test_rejected_says_whether_it_is_replayed(client: Client, sandbox: Sandbox, heard: Heard) -> None:
    """`TokenRejected` names the rejected token, `RequestReplayed` the answer to the replay."""
    auth = make(AxiaAuth, sandbox, on_event=heard)
    with client.open(auth) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        old = digest(auth.get_token().access_token)
        sandbox.revoke_all()
        send("GET", api_url(AxiaAuth, sandbox))
    (rejected,), (replayed,) = heard.of(TokenRejected), heard.of(RequestReplayed)
    assert (rejected.token_digest, rejected.replaying) == (old, True)
    assert rejected.age >= 0
    assert replayed.status_code == 200
    assert replayed.token_digest == digest(auth.get_token().access_token) != old
    assert rejected.client_id == replayed.client_id == sandbox.client_id


def test_rejected_says_why_it_is_not_replayed(clock: FakeClock, sandbox: Sandbox, heard: Heard) -> None:
    """The reasons are `body` and `back-off`."""
    auth = make(AxiaAuth, sandbox, on_event=heard)
    url = api_url(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.inject(Fault("status", "api", status=401, times=-1))
    assert requests.post(url, data=iter([b"x"]), auth=auth, timeout=5).status_code == 401
    clock.advance(61)
    auth.get_token()
    requests.get(url, auth=auth, timeout=5)
    requests.get(url, auth=auth, timeout=5)
    assert [(event.replaying, event.reason) for event in heard.of(TokenRejected) if not event.replaying] == [
        (False, "body"),
        (False, "back-off"),
    ]


def test_rejected_names_the_rate_limit(clock: FakeClock, new_sandbox: Callable[..., Sandbox], heard: Heard) -> None:
    """A 401 while token requests are rate-limited is returned as it is, for the reason `rate limit`."""
    sandbox = new_sandbox(enforce_rate_limits=False)
    auth = make(BS2Auth, sandbox, on_event=heard, max_wait=1)
    for _ in range(9):
        auth.get_token()
        auth.invalidate()
    auth.get_token()
    sandbox.revoke_all()
    assert requests.get(api_url(BS2Auth, sandbox), auth=auth, timeout=5).status_code == 401
    assert sandbox.count("token") == 10
    assert [(event.replaying, event.reason) for event in heard.of(TokenRejected)] == [(False, "rate limit")]


def test_renewal_failed_says_when_the_next_attempt_is(clock: FakeClock, sandbox: Sandbox, heard: Heard) -> None:
    """`RenewalFailed` has error, status_code, duration, serving_old_token and next_attempt_in, and the last is true."""
    auth = make(AxiaAuth, sandbox, on_event=heard)
    auth.get_token()
    clock.advance(3310)
    sandbox.inject(Fault("status", status=503, times=-1))
    auth.get_token()
    (failed,) = heard.of(RenewalFailed)
    assert (failed.status_code, failed.serving_old_token, failed.next_attempt_in) == (503, True, 5)
    assert failed.error
    assert failed.duration >= 0
    assert failed.client_id == sandbox.client_id
    clock.advance(4.9)
    auth.get_token()
    assert sandbox.count("token") == 2
    clock.advance(0.1)
    auth.get_token()
    assert sandbox.count("token") == 3


def test_renewal_failed_without_a_valid_token(clock: FakeClock, sandbox: Sandbox, heard: Heard) -> None:
    """Where no token is valid the event says so, and when the gateway is asked again."""
    auth = make(AxiaAuth, sandbox, on_event=heard)
    sandbox.inject(Fault("status", status=401, times=-1))
    with pytest.raises(TokenEndpointError):
        auth.get_token()
    failed = heard.of(RenewalFailed)[-1]
    assert (failed.status_code, failed.serving_old_token, failed.next_attempt_in) == (401, False, 5)


def test_served_stale_says_how_long_the_token_is_valid(clock: FakeClock, sandbox: Sandbox, heard: Heard) -> None:
    """`TokenServedStale.remaining` is what the old token has left."""
    auth = make(AxiaAuth, sandbox, on_event=heard)
    auth.get_token()
    clock.advance(3400)
    sandbox.inject(Fault("status", status=503, times=-1))
    auth.get_token()
    (served,) = heard.of(TokenServedStale)
    assert served.remaining == pytest.approx(200, abs=1)
    assert served.client_id == sandbox.client_id


def test_rate_limited_says_how_long(clock: FakeClock, sandbox: Sandbox, heard: Heard) -> None:
    """`RateLimited.retry_after` is what counts: 300 s for an absurd one."""
    sandbox.inject(Fault("status", status=429, retry_after=86_400_000))
    with pytest.raises(RateLimitError):
        make(AxiaAuth, sandbox, on_event=heard).get_token()
    limited = heard.of(RateLimited)
    assert limited
    assert limited[0].retry_after == pytest.approx(300, abs=1)


# -- subscribe


@pytest.fixture
def subscribed(heard: Heard) -> Iterator[Heard]:
    unsubscribe = events.subscribe(heard)
    yield heard
    unsubscribe()


def test_a_subscriber_hears_all_auth_objects(auth_class: Auth, sandbox: Sandbox, subscribed: Heard) -> None:
    """`events.subscribe` hears what every object does, beside the object's own `on_event`."""
    own = Heard()
    make(auth_class, sandbox, on_event=own).get_token()
    ours = [event for event in subscribed if event.client_id == sandbox.client_id]
    assert [event.provider for event in ours] == [auth_class.provider.name]
    assert own == ours


def test_who_unsubscribed_hears_nothing(sandbox: Sandbox, heard: Heard) -> None:
    """`subscribe` returns what ends it; ending it twice does no harm."""
    auth = make(AxiaAuth, sandbox)
    unsubscribe = events.subscribe(heard)
    auth.get_token()
    count = len(heard)
    unsubscribe()
    unsubscribe()
    auth.invalidate()
    auth.get_token()
    assert count >= 1
    assert len(heard) == count


def test_a_subscriber_that_raises_keeps_nobody_from_hearing(sandbox: Sandbox, subscribed: Heard) -> None:
    """One broken subscriber is logged; the others hear the event, and the call succeeds."""

    def broken(_: Any) -> None:
        raise ValueError("broken subscriber")

    unsubscribe = events.subscribe(broken)
    try:
        assert make(AxiaAuth, sandbox).get_token().access_token
    finally:
        unsubscribe()
    assert [event for event in subscribed if event.client_id == sandbox.client_id]


def test_events_hold_no_secret(clock: FakeClock, sandbox: Sandbox, subscribed: Heard) -> None:
    """No event's repr has the secret or a token, not even that of a failure which echoes both."""
    auth = make(AxiaAuth, sandbox)
    token = auth.get_token().access_token
    clock.advance(3310)
    sandbox.inject(Fault("status", status=400, body=f"{sandbox.client_secret} {token}".encode()))
    auth.get_token()
    assert subscribed.of(RenewalFailed)
    assert not [event for event in subscribed if token in repr(event) or sandbox.client_secret in repr(event)]


def test_an_unavailable_endpoint_is_told_once_per_call(clock: FakeClock, sandbox: Sandbox, heard: Heard) -> None:
    """Callers that get an error from the cache cause no event: nothing was sent."""
    auth = make(AxiaAuth, sandbox, on_event=heard)
    sandbox.inject(Fault("status", status=503, times=-1))
    for _ in range(5):
        with pytest.raises(TokenEndpointUnavailableError):
            auth.get_token()
    assert len(heard.of(RenewalFailed)) == 1
