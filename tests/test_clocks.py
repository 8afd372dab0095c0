"""Clocks that stop, jump or go back: every call ends, and a moment in the future is void."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from conftest import CLIENTS, SECRET, Auth, Client, FakeClock, make
from raw_gateway import RawGateway, SharedStore, http

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    InvalidClientError,
    MemoryTokenCache,
    NTXPayAuth,
    TokenEndpointError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

FROZEN = 1_331_856_000.0  # 2012-03-16: freezegun shows this on both clocks
EACH = pytest.mark.parametrize(
    ("client", "auth_class"),
    list(zip(CLIENTS, [AxiaAuth, NTXPayAuth, BS2Auth, AvistaAuth, AxiaAuth, BS2Auth, NTXPayAuth], strict=True)),
    ids=[client.name for client in CLIENTS],
)


class TimeMachine:
    """Moves the fake clock between the test's time and a frozen one, as freezegun does."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._real = (clock.wall, clock.monotonic)

    def freeze(self, at: float = FROZEN) -> None:
        self._real = (self._clock.wall, self._clock.monotonic)
        self._clock.wall = self._clock.monotonic = at

    def thaw(self) -> None:
        self._clock.wall, self._clock.monotonic = self._real


@pytest.fixture
def machine(clock: FakeClock) -> TimeMachine:
    return TimeMachine(clock)


@pytest.fixture
def gateway() -> Iterator[Callable[..., RawGateway]]:
    """Start raw gateways that end with the test; each refuses after 60 token requests."""
    running: list[RawGateway] = []

    def start(*arguments: Any, **options: Any) -> RawGateway:
        running.append(RawGateway(*arguments, **options).__enter__())
        return running[-1]

    yield start
    for each in running:
        each.__exit__()


def auth_for(gateway: RawGateway, name: str, **parameters: Any) -> Any:
    """Return an auth object for a raw gateway, under a client id of the test's own."""
    if gateway.auth_class.provider.scope == "required":
        parameters.setdefault("scope", "cob.read")
    parameters = {"cache": MemoryTokenCache()} | parameters
    return gateway.auth_class(name, SECRET, base_url=gateway.url, **parameters)


# -- tokens


@EACH
def test_a_token_of_a_frozen_time_is_replaced_once(
    client: Client, auth_class: Auth, machine: TimeMachine, gateway: Callable[..., RawGateway]
) -> None:
    """A token that was issued under freezegun has expired afterwards, and one token request replaces it."""
    server = gateway(auth_class)
    auth = auth_for(server, f"frozen-{client.name}")
    with client.open(auth) as send:
        machine.freeze()
        assert send("GET", server.url + "/a").status == 200
        machine.thaw()
        for _ in range(3):
            assert send("GET", server.url + "/a").status == 200
    assert server.count("token") == 2
    assert [e.token for e in server.api] == ["token-1", "token-2", "token-2", "token-2"]


@EACH
def test_a_token_of_a_future_is_used_or_replaced_once(
    client: Client, auth_class: Auth, machine: TimeMachine, gateway: Callable[..., RawGateway]
) -> None:
    """A test that froze a time to come leaves a token: afterwards there is at most one token request, then a cached token."""
    server = gateway(auth_class)
    auth = auth_for(server, f"future-{client.name}")
    with client.open(auth) as send:
        machine.freeze(4_000_000_000.0)
        assert send("GET", server.url + "/a").status == 200
        machine.thaw()
        for _ in range(5):
            assert send("GET", server.url + "/a").status == 200
    assert server.count("token") <= 2


@pytest.mark.parametrize(
    ("client", "auth_class"), [(CLIENTS[0], AxiaAuth), (CLIENTS[2], NTXPayAuth)], ids=["sync", "async"]
)
def test_a_token_of_a_future_does_not_last_until_then(
    client: Client, auth_class: Auth, clock: FakeClock, machine: TimeMachine, gateway: Callable[..., RawGateway]
) -> None:
    """The token of a frozen future is renewed within its lifetime, by the clocks that run again."""
    server = gateway(auth_class)
    auth = auth_for(server, f"until-{client.name}")
    with client.open(auth) as send:
        machine.freeze(4_000_000_000.0)
        send("GET", server.url + "/a")
        machine.thaw()
        send("GET", server.url + "/a")
        clock.advance(3600)
        assert send("GET", server.url + "/a").status == 200
    assert len({e.token for e in server.api}) >= 2


@pytest.mark.parametrize("client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name)
def test_a_host_that_wakes_up_takes_the_fleets_newer_token(
    client: Client, clock: FakeClock, gateway: Callable[..., RawGateway]
) -> None:
    """After a suspend the monotonic clock is behind; the token that another host fetched meanwhile is adopted at once."""
    server = gateway()
    store = SharedStore(lambda: clock.wall)
    awake, asleep = (auth_for(server, f"laptop-{client.name}", cache=store.face()) for _ in range(2))
    with client.open(asleep) as send:
        assert send("GET", server.url + "/a").status == 200
        clock.suspend(3700)
        here = clock.monotonic
        clock.monotonic = 100.0  # another host, which started later
        assert awake.get_token().access_token == "token-2"
        clock.advance(10)
        clock.monotonic = here + 10
        before = store.operations
        assert send("GET", server.url + "/a").status == 200
    assert store.operations - before < 50
    assert server.count("token") == 2
    assert server.api[-1].token == "token-2"


def test_an_expired_token_is_replaced_by_any_valid_one(clock: FakeClock, gateway: Callable[..., RawGateway]) -> None:
    """A token of the fleet that another host's clocks make look older is adopted, if ours has expired."""
    server = gateway()
    store = SharedStore(lambda: clock.wall)
    first, second = (auth_for(server, "any-valid", cache=store.face()) for _ in range(2))
    clock.monotonic = 9e8
    first.get_token()
    clock.advance(3600)
    there = clock.monotonic
    clock.monotonic = 50.0
    assert second.get_token().access_token == "token-2"
    clock.monotonic = there
    assert first.get_token().access_token == "token-2"
    assert server.count("token") == 2


# -- refusals, pauses, limits


REFUSALS = {
    "refused": Fault("status", status=401, times=-1),
    "rate-limited": Fault("status", status=429, retry_after=200, times=-1),
    "unavailable": Fault("status", status=503, times=-1),
    "page": Fault("garbage", times=-1),
}


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("when", ["frozen future", "wall clock set back", "wall clock frozen in the past"])
def test_a_failure_noted_in_the_future_is_void(
    when: str, fault: str, clock: FakeClock, machine: TimeMachine, sandbox: Sandbox
) -> None:
    """A refusal, a Retry-After or a pause that was noted at a moment now in the future holds up no call."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(REFUSALS[fault])
    if when == "frozen future":
        machine.freeze(4_000_000_000.0)
    with pytest.raises(TokenEndpointError):
        auth.get_token()
    sandbox.clear_faults()
    slept = len(clock.slept)
    if when == "frozen future":
        machine.thaw()
    else:
        clock.step_wall(-86_400 if when == "wall clock set back" else FROZEN - clock.wall)
    assert auth.get_token().access_token
    assert clock.slept[slept:] == []


def test_a_refusal_before_a_freeze_is_over_by_then(clock: FakeClock, machine: TimeMachine, sandbox: Sandbox) -> None:
    """Under a clock that was frozen far ahead, an old refusal has run out."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=401))
    with pytest.raises(InvalidClientError):
        auth.get_token()
    machine.freeze(4_000_000_000.0)
    assert auth.get_token().access_token


def test_a_shared_refusal_noted_by_a_host_ahead_is_bounded(clock: FakeClock, sandbox: Sandbox) -> None:
    """A host whose clocks are years ahead writes a refusal; another host waits for its 5 s at most."""
    store = SharedStore(lambda: clock.wall)
    ahead, here = (make(AxiaAuth, sandbox, cache=store.face()) for _ in range(2))
    sandbox.inject(Fault("status", status=401))
    clock.monotonic += 1e9
    with pytest.raises(InvalidClientError):
        ahead.get_token()
    clock.monotonic -= 1e9
    clock.advance(5)
    assert here.get_token().access_token


def test_a_renewals_pause_noted_in_the_future_is_void(clock: FakeClock, machine: TimeMachine, sandbox: Sandbox) -> None:
    """The pause after a failed renewal does not go on for ever when the wall clock is set back."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    clock.advance(3310)
    sandbox.inject(Fault("status", status=503))
    auth.get_token()
    assert sandbox.count("token") == 2
    clock.step_wall(-60)
    auth.get_token()
    assert sandbox.count("token") == 3


def test_the_local_rate_limit_of_a_frozen_time_is_void(
    clock: FakeClock, machine: TimeMachine, new_sandbox: Callable[..., Sandbox]
) -> None:
    """Ten token requests under a frozen clock do not hold up the eleventh after it."""
    sandbox = new_sandbox(enforce_rate_limits=False)
    auth = make(BS2Auth, sandbox)
    machine.freeze(4_000_000_000.0)
    for _ in range(10):
        auth.get_token()
        auth.invalidate()
    machine.thaw()
    slept = len(clock.slept)
    auth.get_token()
    assert sum(clock.slept[slept:]) <= 60
    assert sandbox.count("token") == 11


def test_the_back_off_after_rejections_noted_in_the_future_is_void(
    clock: FakeClock, machine: TimeMachine, gateway: Callable[..., RawGateway]
) -> None:
    """An API that rejected every token under a frozen clock is healed at the first 401 after it."""
    server = gateway()
    auth = auth_for(server, "rejections")
    machine.freeze(4_000_000_000.0)
    server.on_api = lambda exchange: http(401)
    assert requests.get(server.url + "/a", auth=auth, timeout=5).status_code == 401
    machine.thaw()
    server.on_api = server.check
    server.valid.clear()
    assert requests.get(server.url + "/a", auth=auth, timeout=5).status_code == 200


@pytest.mark.parametrize("jump", [-1e9, -3600.0, -1.0, 1.0, 3600.0, 1e9])
@pytest.mark.parametrize("which", ["wall", "monotonic", "both", "opposite"])
def test_every_call_ends_whatever_the_clocks_do(
    which: str, jump: float, clock: FakeClock, gateway: Callable[..., RawGateway]
) -> None:
    """Between any two calls either clock may jump by any amount: a call makes one token request at most."""
    server = gateway()
    store = SharedStore(lambda: 1_710_496_800.0 + 3000)
    clock.monotonic = clock.wall = 2e9
    for number, cache in enumerate([MemoryTokenCache(), store.face()]):
        auth = auth_for(server, f"jump-{which}-{jump}-{number}", cache=cache)
        for _ in range(4):
            before = server.count("token")
            assert requests.get(server.url + "/a", auth=auth, timeout=5).status_code == 200
            assert server.count("token") - before <= 1
            if which != "monotonic":
                clock.wall = max(1.0, clock.wall + jump)
            if which != "wall":
                clock.monotonic = max(1.0, clock.monotonic + (-jump if which == "opposite" else jump))
    assert store.operations < 500
