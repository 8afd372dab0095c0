"""`events`: what each event is, and who hears it. What they say of each journey is in test_listeners.py."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from conftest import SECRET, Client, FakeClock, api_url, make

from baas_auth_plugins import (
    AxiaAuth,
    BS2Auth,
    ConfigurationError,
    MemoryTokenCache,
    RateLimited,
    RateLimitError,
    RenewalFailed,
    RequestReplayed,
    TokenMinted,
    TokenRejected,
    TokenServedStale,
    events,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

FIELDS = {
    TokenMinted: {"reason", "attempts", "duration", "expires_in"},
    TokenServedStale: {"remaining"},
    RenewalFailed: {"error", "status_code", "duration", "serving_old_token", "next_attempt_in"},
    TokenRejected: {"age", "replaying", "reason"},
    RequestReplayed: {"status_code", "duration"},
    RateLimited: {"retry_after"},
}


class Heard(list[Any]):
    """A listener that keeps what it hears, in the order of hearing."""

    def __call__(self, event: Any) -> None:
        self.append(event)


@pytest.fixture
def subscribed() -> Iterator[Heard]:
    heard = Heard()
    unsubscribe = events.subscribe(heard)
    yield heard
    unsubscribe()


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_each_event_is_a_frozen_record(kind: type[Any]) -> None:
    """An event has the fields that are documented, beside those of every event, and cannot be changed."""
    names = {field.name for field in dataclasses.fields(kind)}
    assert names == {"provider", "client_id", "token_digest"} | FIELDS[kind]
    event = kind(provider="axia", client_id="your-client-id", **dict.fromkeys(FIELDS[kind], 1))
    assert event.token_digest is None
    assert hash(event) == hash(dataclasses.replace(event))
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.provider = "bs2"


def test_the_list_of_events_is_complete() -> None:
    """`events.__all__` has these six, their base and `subscribe`; each event is an `Event`."""
    assert {*events.__all__} == {kind.__name__ for kind in FIELDS} | {"Event", "subscribe"}
    assert all(issubclass(kind, events.Event) for kind in FIELDS)


def test_each_kind_is_heard_from_each_client(
    client: Client, clock: FakeClock, new_sandbox: Callable[..., Sandbox], subscribed: Heard
) -> None:
    """Whichever client calls, a day with a renewal, an outage, a 401 and a rate limit gives the same events."""
    sandbox = new_sandbox()
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    with client.open(auth) as send:
        send("GET", url)
        clock.advance(3310)
        sandbox.inject(Fault("status", status=503))
        send("GET", url)
        clock.advance(5)
        send("GET", url)
        sandbox.revoke()
        send("GET", url)
        clock.advance(4000)
        sandbox.inject(Fault("status", status=429, retry_after=2))
        send("GET", url)
    assert [type(event) for event in subscribed] == [
        TokenMinted,
        RenewalFailed,
        TokenServedStale,
        TokenMinted,
        TokenRejected,
        TokenMinted,
        RequestReplayed,
        RateLimited,
        TokenMinted,
    ]
    assert subscribed[7].retry_after == 2
    assert subscribed[7].token_digest is None
    minted = [event.token_digest for event in subscribed if isinstance(event, TokenMinted)]
    assert [subscribed[n].token_digest for n in (1, 2, 4, 6)] == [minted[0], minted[0], minted[1], minted[2]]
    assert {(event.provider, event.client_id) for event in subscribed} == {("axia", sandbox.client_id)}


def test_the_packages_own_limit_is_heard(
    clock: FakeClock, new_sandbox: Callable[..., Sandbox], subscribed: Heard
) -> None:
    """`RateLimited` comes for the limit that the package keeps, too, with the seconds until the next token request."""
    auth = make(BS2Auth, new_sandbox(), max_wait=1)
    for _ in range(10):
        auth.invalidate()
        auth.get_token()
    auth.invalidate()
    with pytest.raises(RateLimitError):
        auth.get_token()
    (limited,) = [event for event in subscribed if isinstance(event, RateLimited)]
    assert limited.retry_after == pytest.approx(60, abs=1)


def test_two_objects_that_share_a_token(sandbox: Sandbox, subscribed: Heard) -> None:
    """`on_event` hears what its own object does: the one that requests the token, then the one that meets a 401."""
    cache, one, other = MemoryTokenCache(), Heard(), Heard()
    first = make(AxiaAuth, sandbox, cache=cache, on_event=one)
    second = make(AxiaAuth, sandbox, cache=cache, on_event=other)
    first.get_token()
    second.get_token()
    assert ([type(event) for event in one], other) == ([TokenMinted], [])
    sandbox.revoke()
    requests.get(api_url(AxiaAuth, sandbox), auth=second, timeout=5)
    assert [type(event) for event in other] == [TokenRejected, TokenMinted, RequestReplayed]
    assert subscribed == [*one, *other]


def test_on_event_is_called_before_subscribers_and_in_order(sandbox: Sandbox) -> None:
    """An object's own listener is the first, then subscribers in the order of subscription."""
    calls: list[str] = []
    ends = [events.subscribe(lambda _, n=name: calls.append(n)) for name in ("first", "second")]
    make(AxiaAuth, sandbox, on_event=lambda _: calls.append("own")).get_token()
    for end in ends:
        end()
    assert calls == ["own", "first", "second"]


def test_subscribing_twice_is_two_subscriptions(sandbox: Sandbox) -> None:
    """A function that subscribed twice hears each event twice, until each subscription ends."""
    heard = Heard()
    ends = [events.subscribe(heard), events.subscribe(heard)]
    auth = make(AxiaAuth, sandbox)
    for count in (2, 3, 3):
        auth.invalidate()
        auth.get_token()
        assert len(heard) == count
        if ends:
            ends.pop()()


def test_a_subscriber_may_unsubscribe_itself(sandbox: Sandbox, subscribed: Heard) -> None:
    """A listener that ends its own subscription, or another one's, hears no more; the others hear everything."""
    heard: list[Any] = []

    def once(event: Any) -> None:
        heard.append(event)
        end()

    end = events.subscribe(once)
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    auth.invalidate()
    auth.get_token()
    assert (len(heard), len(subscribed)) == (1, 2)


def test_subscribing_from_many_threads(sandbox: Sandbox) -> None:
    """Subscriptions from many threads at once are all kept, and all end."""
    heard = Heard()
    barrier = threading.Barrier(16)

    def subscribe(_: int) -> Callable[[], None]:
        barrier.wait(20)
        return events.subscribe(heard)

    auth = make(AxiaAuth, sandbox)
    with ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(subscribe, range(16)))
        auth.get_token()
        list(pool.map(lambda end: end(), ends))
    auth.invalidate()
    auth.get_token()
    assert len(heard) == 16


async def listen(_: events.Event) -> None:
    """A coroutine function, which nobody would await."""


class Awaited:
    """An object whose call is a coroutine."""

    async def __call__(self, _: events.Event) -> None: ...


@pytest.mark.parametrize("listener", [listen, Awaited(), None, "print"], ids=["coroutine", "object", "None", "str"])
def test_what_cannot_listen_is_refused(listener: Any) -> None:
    """Both ways to listen refuse a coroutine function and what cannot be called."""
    with pytest.raises(ConfigurationError, match="must be a plain function that takes one event"):
        events.subscribe(listener)
    if listener is not None:
        with pytest.raises(ConfigurationError, match="must be a plain function that takes one event"):
            AxiaAuth("your-client-id", SECRET, on_event=listener)


@pytest.mark.parametrize("how", ["subscriber", "on_event"])
def test_an_exception_of_a_listener_is_logged_with_its_provider(
    how: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """What a listener raises is logged with the provider first and its traceback, and goes no further."""

    def broken(_: events.Event) -> None:
        raise LookupError("broken listener")

    end = events.subscribe(broken) if how == "subscriber" else None
    make(AxiaAuth, sandbox, on_event=None if end else broken).get_token()
    if end is not None:
        end()
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "axia: an event listener raised an exception"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


def test_an_interrupt_in_a_listener_is_not_swallowed(sandbox: Sandbox) -> None:
    """A KeyboardInterrupt that reaches a listener reaches the caller, and the token is kept."""

    def interrupted(_: events.Event) -> None:
        raise KeyboardInterrupt

    auth = make(AxiaAuth, sandbox, on_event=interrupted)
    with pytest.raises(KeyboardInterrupt):
        auth.get_token()
    assert auth.get_token().access_token
    assert sandbox.count("token") == 1


@pytest.mark.parametrize("wait", [0.5, 200])
def test_a_listener_that_calls_at_a_rate_limit_does_not_loop(wait: float, clock: FakeClock, sandbox: Sandbox) -> None:
    """`get_token()` in a listener of `RateLimited` meets the limit again, and hears of that once."""
    heard = Heard()

    def curious(event: Any) -> None:
        heard.append(event)
        if len(heard) < 50:
            auth.get_token()

    sandbox.inject(Fault("status", status=429, retry_after=wait, times=-1))
    auth = make(AxiaAuth, sandbox, max_wait=4, on_event=curious)
    with pytest.raises(RateLimitError):
        auth.get_token()
    assert len(heard) < 10
    assert sandbox.count("token") <= 6
