"""The life of a token, through every client over real sockets: minted once, renewed in time, never sent dead."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
import requests
import trio
from conftest import (
    API_PATHS,
    CLIENTS,
    NO_TLS,
    PROVIDERS,
    SECRET,
    Auth,
    Client,
    FakeClock,
    api_url,
    make,
    sent_tokens,
)
from gate import Gate
from raw_gateway import until

from baas_auth_plugins import (
    AxiaAuth,
    BS2Auth,
    MemoryTokenCache,
    NTXPayAuth,
    OAuth2ClientCredentialsAuth,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins._lifecycle.single_flight import SingleFlight
from baas_auth_plugins.sandbox import Fault, Sandbox

# lifetime: when it is stale, critical and dead, in seconds after the token request (CONTRACT, section 3)
LIVES = {3600: (3300, 3540, 3595), 300: (150, 270, 295), 420: (210, 378, 415), 60: (30, 54, 59)}

each_life = pytest.mark.parametrize("life", LIVES)


class Session:
    """One open client with one auth object, and the requests that the gateway got."""

    def __init__(self, send: Callable[..., Any], sandbox: Sandbox, auth_class: Auth = AxiaAuth) -> None:
        self.sandbox = sandbox
        self._send = send
        self._url = api_url(auth_class, sandbox)

    def call(self) -> str | None:
        """Make one API call that must succeed, and return the token that it carried."""
        answer = self._send("GET", self._url)
        assert answer.status == 200, answer.content
        return sent_tokens(self.sandbox)[-1]

    @property
    def minted(self) -> int:
        return self.sandbox.count("token")


def breaks(sandbox: Sandbox, times: int = -1) -> None:
    """Have the token endpoint fail in a way that every client survives."""
    sandbox.inject(Fault("status", "token", times=times, status=500))


# -- fresh, stale, critical, dead


def test_fresh_token_is_reused(client: Client, auth_class: Auth, clock: FakeClock, sandbox: Sandbox) -> None:
    """Calls in the first half of a life make one token request, for BS2's short tokens, too."""
    with client.open(make(auth_class, sandbox)) as send:
        session = Session(send, sandbox, auth_class)
        tokens = {session.call()}
        for _ in range(5):
            clock.advance(29)
            tokens.add(session.call())
    assert (session.minted, len(tokens)) == (1, 1)


@each_life
def test_first_call_in_the_stale_state_renews(client: Client, clock: FakeClock, sandbox: Sandbox, life: int) -> None:
    """A token is renewed inline by the first call once it is stale, and not a moment before."""
    sandbox.expires_in = life
    stale, _, _ = LIVES[life]
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        first = session.call()
        clock.advance(stale - 0.01)
        assert session.call() == first
        clock.advance(0.01)
        second = session.call()
        assert second != first
        assert session.call() == second
    assert session.minted == 2


@pytest.mark.parametrize("state", ["stale", "critical"])
@each_life
@pytest.mark.pairwise
def test_failing_renewal_serves_the_old_token(
    client: Client, clock: FakeClock, sandbox: Sandbox, life: int, state: str
) -> None:
    """While the old token is valid, a failing endpoint costs one attempt, no wait, and no failed API call."""
    sandbox.expires_in = life
    stale, critical, _ = LIVES[life]
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        first = session.call()
        clock.advance(stale if state == "stale" else critical)
        breaks(sandbox)
        assert [session.call() for _ in range(5)] == [first] * 5
    assert session.minted == 2
    assert clock.slept == []


@each_life
def test_dead_token_is_never_sent(client: Client, clock: FakeClock, sandbox: Sandbox, life: int) -> None:
    """Shortly before it expires, a token is not sent any more: callers get a new one or the error, which is cached for 5 s."""
    sandbox.expires_in = life
    *_, dead = LIVES[life]
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        first = session.call()
        clock.advance(dead)
        breaks(sandbox, 4)
        with pytest.raises(client.error) as caught:
            session.call()
        assert isinstance(caught.value, TokenEndpointUnavailableError)
        with pytest.raises(client.error):
            session.call()
        assert session.minted == 1 + 4
        assert sent_tokens(sandbox) == [first]
        clock.advance(5.1)
        second = session.call()
    assert (session.minted, second != first) == (1 + 4 + 1, True)
    assert len(clock.slept) == 3


def test_dead_token_is_replaced_after_retries(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """Without a valid token, a token request is retried until the outage ends."""
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        session.call()
        clock.advance(3600)
        breaks(sandbox, 3)
        session.call()
    assert session.minted == 1 + 4
    assert len(clock.slept) == 3
    assert all(0 <= slept <= 0.5 * 2**n for n, slept in enumerate(clock.slept))


def test_second_caller_that_sees_no_renewal_yet(
    clock: FakeClock, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that looked just before another one began the renewal gets the old token at once, too."""
    auth = make(NTXPayAuth, sandbox)
    old = auth.get_token()
    clock.advance(3310)
    sandbox.inject(Fault("delay", "token", delay=2))
    monkeypatch.setattr(SingleFlight, "is_busy", property(lambda _: False))
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(auth.get_token)
        until(lambda: sandbox.count("token") == 2)
        assert auth.get_token() == old
        assert not renewing.done()
        assert renewing.result(20) != old


@pytest.mark.parametrize(("state", "elapsed"), [("stale", 3300), ("critical", 3540)])
def test_second_caller_during_a_renewal(
    client: Client, clock: FakeClock, sandbox: Sandbox, state: str, elapsed: float
) -> None:
    """While one caller renews, others get a stale token at once, and wait for the new token if it is critical."""
    with Gate(sandbox.url) as gate, ThreadPoolExecutor(2) as pool:
        auth = make(AxiaAuth, sandbox, base_url=gate.url)
        old = auth.get_token().access_token
        clock.advance(elapsed)
        gate.shut()
        with client.open(auth) as send:
            renewing = pool.submit(auth.get_token)
            assert gate.held.wait(30)
            calling = pool.submit(send, "GET", gate.url + API_PATHS["axia"])
            if state == "stale":
                assert calling.result(30).status == 200
            else:
                threading.Event().wait(0.05)  # so that the call has most likely begun
            gate.open()
            assert calling.result(30).status == 200
            new = renewing.result(30).access_token
    assert sent_tokens(sandbox) == [old if state == "stale" else new]
    assert new != old
    assert sandbox.count("token") == 2


def test_cool_down_of_failed_renewals(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A renewal that failed is tried again after 5, 10, 20, then every 30 seconds, critical or not."""
    sandbox.expires_in = 3600
    attempts: list[float] = []
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        session.call()
        clock.advance(3300)
        breaks(sandbox)
        for _ in range(59):
            before = session.minted
            session.call()
            if session.minted > before:
                attempts.append(clock.monotonic)
            clock.advance(5)
    gaps = [later - earlier for earlier, later in pairwise(attempts)]
    assert gaps == [5, 10, 20, *[30] * (len(gaps) - 3)]
    assert len(gaps) == 11


def test_recovered_endpoint_starts_afresh(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """After a renewal that succeeds, the next pause is 5 s again."""
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        for _ in range(2):
            session.call()
            clock.advance(3300)
            breaks(sandbox, 2)
            session.call()
            clock.advance(5)
            session.call()
            clock.advance(9.9)
            minted = session.minted
            session.call()
            assert session.minted == minted
            clock.advance(0.1)
            session.call()
            assert session.minted == minted + 1
    assert session.minted == 1 + 3 + 3


def test_issuer_that_repeats_itself_is_not_hammered(clock: FakeClock) -> None:
    """An issuer that returns the same token until it expires gets a few token requests, not one for each call."""
    minted: list[float] = []
    sent: list[tuple[str, float]] = []
    started = clock.wall

    def gateway(request: httpx.Request) -> httpx.Response:
        number, age = divmod(clock.wall - started, 3600)
        if request.method == "POST":
            minted.append(age)
            return httpx.Response(200, json={"access_token": f"t{number:.0f}", "expires_in": 3600 - age})
        sent.append((request.headers["Authorization"], number))
        return httpx.Response(200)

    auth = AxiaAuth("repeating", SECRET, cache=MemoryTokenCache())
    with httpx.Client(auth=auth, transport=httpx.MockTransport(gateway), verify=NO_TLS) as client:
        for _ in range(2 * 3600):
            client.get("https://baas-gtw.axiadigitalsolutions.com/v1/accounts")
            clock.advance(1)
    assert all(token == f"Bearer t{number:.0f}" for token, number in sent)
    assert 4 <= len(minted) <= 24


def test_leeway_of_nothing_renews_at_expiry(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """With `leeway=0` a token is used to its last moment, and not sent at it."""
    with client.open(make(AxiaAuth, sandbox, leeway=0)) as send:
        session = Session(send, sandbox)
        first = session.call()
        clock.advance(3599.5)
        assert session.call() == first
        clock.advance(0.5)
        assert session.call() != first
    assert session.minted == 2


@pytest.mark.parametrize("leeway", [60, 600, 10_000])
def test_leeway_is_the_callers(client: Client, clock: FakeClock, sandbox: Sandbox, leeway: float) -> None:
    """The margin is as long as asked for, and half the life at most."""
    with client.open(make(AxiaAuth, sandbox, leeway=leeway)) as send:
        session = Session(send, sandbox)
        session.call()
        clock.advance(3600 - min(leeway, 1800) - 0.01)
        session.call()
        assert session.minted == 1
        clock.advance(0.01)
        session.call()
    assert session.minted == 2


def test_late_failure_does_not_delay_a_newer_token(clock: FakeClock) -> None:
    """A renewal that fails after another has succeeded leaves no pause behind: the newer token is renewed in time."""
    auth = AxiaAuth("late", SECRET, cache=MemoryTokenCache())

    def flow() -> Any:
        return auth.sync_auth_flow(httpx.Request("GET", "https://baas-gtw.axiadigitalsolutions.com/v1/accounts"))

    def token(value: str, seconds: float) -> httpx.Response:
        return httpx.Response(200, json={"access_token": value, "expires_in": seconds})

    first = flow()
    next(first)
    assert first.send(token("one", 3600)).headers["Authorization"] == "Bearer one"
    clock.advance(3300)
    slow, quick, third = flow(), flow(), flow()
    assert next(slow).method == "POST"
    clock.advance(260)  # nobody waits so long for one that gives no sign of life
    assert next(quick).method == "POST"
    assert quick.send(token("two", 6)).headers["Authorization"] == "Bearer two"
    assert slow.send(httpx.Response(500)).headers["Authorization"] == "Bearer two"
    clock.advance(3.1)
    assert next(third).method == "POST"
    for left in (first, slow, quick, third):
        left.close()


# -- clocks


@pytest.mark.parametrize("step", [-10 * 365 * 86_400, -3600, -60])
def test_wall_clock_set_back_extends_no_life(client: Client, clock: FakeClock, sandbox: Sandbox, step: float) -> None:
    """A clock that is set back does not make a token younger: the monotonic one still counts."""
    gateways_time = clock.wall
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        first = session.call()
        clock.step_wall(step)
        clock.advance(3299)
        assert session.call() == first
        clock.advance(1)
        assert session.call() != first
    assert session.minted == 2
    assert clock.wall == gateways_time + step + 3300


def test_wall_clock_set_forward_costs_one_token(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A clock set forward makes the token look old: it is replaced once, and never sent."""
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        first = session.call()
        clock.step_wall(7200)
        tokens = {session.call() for _ in range(5)}
    assert session.minted == 2
    assert len(tokens) == 1
    assert first not in tokens


def test_suspended_machine_wakes_to_a_dead_token(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """While a laptop sleeps, the monotonic clock stands still, and the token expires all the same."""
    with client.open(make(BS2Auth, sandbox)) as send:
        session = Session(send, sandbox, BS2Auth)
        first = session.call()
        clock.suspend(300)
        assert session.call() != first
    assert (session.minted, sent_tokens(sandbox).count(first)) == (2, 1)


@pytest.mark.parametrize("step", [-3600, 0])
def test_cool_down_survives_a_clock_set_back(client: Client, clock: FakeClock, sandbox: Sandbox, step: float) -> None:
    """A pause is counted on the larger of both clocks: a step back does not prolong it."""
    with client.open(make(AxiaAuth, sandbox)) as send:
        session = Session(send, sandbox)
        session.call()
        clock.advance(3300)
        breaks(sandbox, 1)
        session.call()
        clock.step_wall(step)
        clock.advance(5)
        session.call()
    assert session.minted == 3


@pytest.mark.parametrize(
    "module", [c for c in CLIENTS if c.module is not requests and not c.backend], ids=lambda c: c.name
)
def test_life_counts_from_the_sending(module: Client, clock: FakeClock) -> None:
    """A slow answer does not extend a life: `expires_at` is counted from when the request was sent."""

    def gateway(request: Any) -> Any:
        clock.advance(20)
        return module.module.Response(200, json={"access_token": "abc", "expires_in": 3600})

    started = clock.wall
    auth = AxiaAuth("anchored", SECRET, cache=MemoryTokenCache())
    with module.open(auth, transport=module.module.MockTransport(gateway)) as send:
        send("GET", "https://baas-gtw.axiadigitalsolutions.com/v1/accounts")
        token = auth.get_token()
    assert (token.issued_at, token.expires_at) == (started, started + 3600)


def test_life_counts_from_the_sending_over_sockets(client: Client, sandbox: Sandbox) -> None:
    """The same against a gateway that really takes its time."""
    sandbox.inject(Fault("delay", delay=0.1))
    auth = make(AxiaAuth, sandbox)
    before = time.time()
    client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert before <= auth.get_token().issued_at <= time.time() - 0.1


def test_token_that_expired_on_its_way_is_refused(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """An answer that comes after its token expired is an error: the expired token is not sent, and no loop starts."""
    sandbox.expires_in = 0.2
    auth = make(AxiaAuth, sandbox)
    original = sandbox.begin

    def late(request: Any) -> Any:
        exchange = original(request)
        clock.advance(0.2)
        return exchange

    sandbox.begin = late  # type: ignore[method-assign]
    with pytest.raises(client.error, match="expired"):
        client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert sandbox.count("token") == 1
    assert sent_tokens(sandbox) == []


# -- sharing


@pytest.mark.parametrize("auth_class", PROVIDERS, ids=lambda a: a.provider.name)
def test_one_off_calls_share_one_token(auth_class: Auth, sandbox: Sandbox) -> None:
    """A hundred calls, each with an auth object of its own, make one token request."""
    scope = {"scope": "cob.read"} if auth_class is BS2Auth else {}
    with requests.Session() as session:
        for _ in range(100):
            auth = auth_class(sandbox.client_id, SECRET, base_url=sandbox.url, **scope)
            assert session.get(api_url(auth_class, sandbox), auth=auth, timeout=5).status_code == 200
    assert (sandbox.count("token"), sandbox.count("api")) == (1, 100)


def test_one_off_calls_of_every_client_share_one_token(sandbox: Sandbox) -> None:
    """Scripts of all kinds in one process, each with its own auth object: still one token request."""
    for client in CLIENTS:
        auth = AxiaAuth(sandbox.client_id, SECRET, base_url=sandbox.url)
        assert client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status == 200
    assert requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5).status_code == 200
    assert httpx.get(api_url(AxiaAuth, sandbox), auth=auth, verify=NO_TLS).status_code == 200
    assert sandbox.count("token") == 1


def test_one_object_serves_every_client(sandbox: Sandbox, auth_class: Auth) -> None:
    """One auth object is good for all clients, and they share its token."""
    auth = make(auth_class, sandbox)
    assert {client.call(auth, "GET", api_url(auth_class, sandbox)).status for client in CLIENTS} == {200}
    assert sandbox.count("token") == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scope": "cob.read pix.read"}, {"scope": ["pix.read", "cob.read"]}),
        ({"headers": {"X-A": "1"}}, {"headers": {"x-a": "1"}}),
        ({"leeway": 300}, {"leeway": 10}),
        ({"client_secret": SECRET}, {"client_secret": lambda: SECRET}),
        ({"timeout": 10}, {"timeout": 3, "max_wait": 5}),
        ({"base_url": "{url}"}, {"base_url": "{url}/"}),
        ({"on_event": print}, {"allowed_origins": ["https://api.example.com"]}),
    ],
    ids=["scope in another order", "headers in another case", "leeway", "callable", "patience", "slash", "listeners"],
)
def test_equal_credentials_share(sandbox: Sandbox, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Auth objects that differ only in parameters that do not change the token share it."""
    cache = MemoryTokenCache()
    tokens = set()
    for parameters in (one, other):
        spelt = {k: v.format(url=sandbox.url) if k == "base_url" else v for k, v in parameters.items()}
        tokens.add(make(BS2Auth, sandbox, cache=cache, **spelt).get_token().access_token)
    assert len(tokens) == sandbox.count("token") == 1


@pytest.mark.parametrize(
    "different",
    [
        {"client_secret": "another-secret"},
        {"client_id": "another-client"},
        {"scope": "cob.read"},
        {"scope": "cob.read pix.read cob.write"},
        {"headers": {"X-SSL-Client-Cert": "MII"}},
    ],
    ids=lambda different: next(iter(different)),
)
def test_different_credentials_never_share(sandbox: Sandbox, different: dict[str, Any]) -> None:
    """Another secret, client, scope or header means another token, even where the gateway would not mind."""
    cache = MemoryTokenCache()
    token = make(BS2Auth, sandbox, cache=cache).get_token()
    sandbox.client_id, sandbox.client_secret = (
        different.get("client_id", sandbox.client_id),
        different.get("client_secret", SECRET),
    )
    other = make(BS2Auth, sandbox, cache=cache, **different).get_token()
    assert token.access_token != other.access_token
    assert sandbox.count("token") == 2


def test_wrong_secret_never_gets_a_cached_token(client: Client, sandbox: Sandbox) -> None:
    """A wrong secret is refused, although the cache has a token for that client_id."""
    cache = MemoryTokenCache()
    make(AxiaAuth, sandbox, cache=cache).get_token()
    with pytest.raises(client.error):
        client.call(make(AxiaAuth, sandbox, cache=cache, client_secret="wrong"), "GET", api_url(AxiaAuth, sandbox))
    assert sent_tokens(sandbox) == []


def test_brands_of_one_platform_never_share(new_sandbox: Callable[..., Sandbox]) -> None:
    """NTX Pay and Avista look alike, and are not: neither do two gateways, nor two hosts."""
    cache = MemoryTokenCache()
    sandboxes = [new_sandbox(client_id="same"), new_sandbox(client_id="same")]
    tokens = {make(cls, s, cache=cache).get_token().access_token for cls in PROVIDERS for s in sandboxes}
    assert len(tokens) == 2 * len(PROVIDERS)
    assert sum(s.count("token") for s in sandboxes) == 2 * len(PROVIDERS)


def test_cache_outlives_the_auth_object(sandbox: Sandbox) -> None:
    """A cache that is passed on brings the token along; another cache does not."""
    cache = MemoryTokenCache()
    token = make(AxiaAuth, sandbox, cache=cache).get_token()
    assert make(AxiaAuth, sandbox, cache=cache).get_token() == token
    assert make(AxiaAuth, sandbox).get_token() != token
    assert sandbox.count("token") == 2


# -- asking and dropping


def test_invalidate_makes_the_next_call_mint(client: Client, sandbox: Sandbox) -> None:
    """After `invalidate` no client sends the old token again, nor does another auth object with equal credentials."""
    cache = MemoryTokenCache()
    auth, equal = (make(AxiaAuth, sandbox, cache=cache) for _ in range(2))
    with client.open(auth) as send:
        session = Session(send, sandbox)
        first = session.call()
        equal.invalidate()
        second = session.call()
    assert second != first
    assert equal.get_token().access_token == second
    assert session.minted == 2


def test_invalidate_without_a_token_does_nothing(sandbox: Sandbox) -> None:
    """Before the first call, and twice in a row."""
    auth = make(AxiaAuth, sandbox)
    auth.invalidate()
    auth.get_token()
    auth.invalidate()
    auth.invalidate()
    assert sandbox.count("token") == 1


def aget_in(loop: str, auth: OAuth2ClientCredentialsAuth) -> Any:
    return asyncio.run(auth.aget_token()) if loop == "asyncio" else trio.run(auth.aget_token)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("with_session", [False, True])
def test_token_can_be_asked_for(sandbox: Sandbox, auth_class: Auth, loop: str, with_session: bool) -> None:
    """`get_token` and `aget_token` give the token that requests carry, and mint where there is none."""
    with requests.Session() as session:
        auth = make(auth_class, sandbox, session=session if with_session else None)
        token = aget_in(loop, auth)
        assert auth.get_token() is token
        assert aget_in(loop, auth) is token
        auth.invalidate()
        assert auth.get_token() != token
    assert sandbox.count("token") == 2
    assert token.expires_in == auth_class.provider.default_expires_in
    assert token.scopes


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_asked_token_is_renewed_like_any(sandbox: Sandbox, clock: FakeClock, loop: str) -> None:
    """`aget_token` renews a stale token, and serves it while the endpoint is down."""
    auth = make(AxiaAuth, sandbox)
    first = aget_in(loop, auth)
    clock.advance(3300)
    sandbox.inject(Fault("drop"))
    assert aget_in(loop, auth) is first
    clock.advance(5)
    assert aget_in(loop, auth) is not first
    assert sandbox.count("token") == 3


def test_event_loops_come_and_go(sandbox: Sandbox, clock: FakeClock) -> None:
    """`asyncio.run` and `trio.run`, any number of times on one object, with renewals in between."""
    auth = make(NTXPayAuth, sandbox)

    async def fetch() -> int:
        async with httpx.AsyncClient(auth=auth, verify=NO_TLS) as client:
            response = await client.get(api_url(NTXPayAuth, sandbox))
            return response.status_code

    for _ in range(5):
        assert asyncio.run(fetch()) == 200
        assert trio.run(fetch) == 200
        clock.advance(3300)
    assert sandbox.count("token") == 5


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_secret_from_a_vault_is_read_at_each_mint(backend: str, clock: FakeClock, sandbox: Sandbox) -> None:
    """A callable is called at first use and before each token request, never for a fresh token. A rotated secret is taken up."""
    asked: list[str] = []

    def vault() -> str:
        asked.append(sandbox.client_secret)
        return sandbox.client_secret

    auth = make(AxiaAuth, sandbox, client_secret=vault)
    assert asked == []
    with Client(httpx, backend).open(auth) as send:
        session = Session(send, sandbox)
        for _ in range(3):
            session.call()
        assert asked == [SECRET]
        clock.advance(3300)
        session.call()
        assert asked == [SECRET] * 2
        sandbox.rotate_secret("rotated")
        clock.advance(3300)
        session.call()
        clock.advance(3300)
        session.call()
    assert set(asked) == {SECRET, "rotated"}
    assert [r.status for r in sandbox.requests if r.kind == "token"] == [200] * 4


def test_secret_rotated_under_a_plain_call(clock: FakeClock, sandbox: Sandbox) -> None:
    """If the gateway refuses the secret that was read, it is read once more, and tried again only if it changed."""
    secrets = iter([SECRET, SECRET, "rotated", "rotated", "rotated"])
    auth = make(AxiaAuth, sandbox, client_secret=lambda: next(secrets, "rotated"))
    first = auth.get_token()
    sandbox.rotate_secret("rotated")
    clock.advance(3600)
    assert auth.get_token() != first
    assert [r.status for r in sandbox.requests] == [200, 401, 200]
