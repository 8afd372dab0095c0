"""What goes wrong at the token endpoint, and what the caller of each client sees of it."""

from __future__ import annotations

import copy
import gzip
import io
import json
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import httpx2
import pytest
import requests
import responses
from conftest import CLIENTS, SECRET, Auth, Client, FakeClock, api_url, make, sent_tokens
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

import baas_auth_plugins
from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BaaSAuthError,
    BS2Auth,
    ConfigurationError,
    InsecureTransportError,
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    MemoryTokenCache,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

LEAVES = (
    InvalidClientError,
    InvalidScopeError,
    RateLimitError,
    TokenEndpointUnavailableError,
    InvalidTokenResponseError,
)
HTTPX = [client for client in CLIENTS if client.module is not requests]
BROKEN = {
    "500": Fault("status", status=500, times=-1),
    "503 for a while": Fault("status", status=503, retry_after=3, times=-1),
    "429": Fault("status", status=429, retry_after=3, times=-1),
    "400": Fault("status", status=400, times=-1),
    "401": Fault("status", status=401, times=-1),
    "WAF": Fault("garbage", times=-1),
    "empty": Fault("empty", times=-1),
    "truncated": Fault("truncate", times=-1),
    "redirect": Fault("redirect", headers={"Location": "/elsewhere"}, times=-1),
    "nonsense": Fault("body", body=b'{"access_token": "abc", "expires_in": 0}', times=-1),
}


# -- the tree


def test_tree_is_the_documented_one() -> None:
    """Every error is a BaaSAuthError, and where the contract puts it."""
    assert ConfigurationError.__bases__ == (BaaSAuthError, ValueError)
    assert InsecureTransportError.__bases__ == (ConfigurationError,)
    assert issubclass(TokenEndpointError, BaaSAuthError)
    assert all(leaf.__bases__[0] is TokenEndpointError for leaf in LEAVES)
    assert {leaf for leaf in LEAVES if len(leaf.__bases__) > 1} == {TokenEndpointUnavailableError}
    errors = [
        value
        for name in baas_auth_plugins.__all__
        if name.endswith("Error")
        for value in [getattr(baas_auth_plugins, name)]
    ]
    assert set(errors) == {BaaSAuthError, ConfigurationError, InsecureTransportError, TokenEndpointError, *LEAVES}


@pytest.mark.parametrize("base", [requests.RequestException, httpx.HTTPError, httpx2.HTTPError, OSError])
def test_existing_except_clauses_catch_it(base: type[Exception]) -> None:
    """A token endpoint's error is caught by what scripts catch already; a configuration error is not."""
    assert issubclass(TokenEndpointError, base)
    assert not issubclass(ConfigurationError, base)


@pytest.mark.parametrize("kind", [TokenEndpointError, *LEAVES])
def test_error_carries_fields_and_survives_copying(kind: type[TokenEndpointError]) -> None:
    """Fields, message and kind survive pickle, copy and deepcopy; `request` and `response` are None for handlers."""
    error = kind(
        "axia: no", provider="axia", status_code=429, error="E00102", error_description="too many", retry_after=30.0
    )
    if isinstance(error, InvalidScopeError):
        error.missing_scopes = frozenset({"pix:send"})
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error), error.own_copy()):  # noqa: S301  # our own
        assert type(twin) is kind
        assert twin is not error
        assert str(twin) == "axia: no"
        assert (twin.provider, twin.status_code, twin.error) == ("axia", 429, "E00102")
        assert (twin.error_description, twin.retry_after) == ("too many", 30.0)
        assert twin.request is None
        assert twin.response is None
        assert getattr(twin, "missing_scopes", None) == getattr(error, "missing_scopes", None)


def test_error_needs_a_message_only() -> None:
    """Fields that are not known are None."""
    error = TokenEndpointError("no")
    fields = (error.provider, error.status_code, error.error, error.error_description, error.retry_after)
    assert fields == (None,) * 5


@pytest.mark.parametrize(
    "error", [ConfigurationError("leeway"), InsecureTransportError("base_url"), BaaSAuthError("x")]
)
def test_other_errors_survive_pickling(error: Exception) -> None:
    """So do those without fields."""
    twin = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    assert (type(twin), twin.args) == (type(error), error.args)


# -- refusals


EXPECTED_401 = {
    "axia": ("E00101", "Invalid client credentials"),
    "ntxpay": (None, "Unauthorized"),
    "avista": (None, "Unauthorized"),
    "bs2": ("invalid_client", "The given client credentials were not valid"),
}


def test_wrong_secret(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """A refused client is an InvalidClientError with the gateway's words, after one token request. The API is not called."""
    auth = make(auth_class, sandbox, client_secret="wrong-secret")
    with pytest.raises(client.error) as caught:
        client.call(auth, "POST", api_url(auth_class, sandbox), content=b"payment")
    error = caught.value
    assert isinstance(error, InvalidClientError)
    assert (error.provider, error.status_code, error.retry_after) == (auth_class.provider.name, 401, None)
    assert (error.error, error.error_description) == EXPECTED_401[auth_class.provider.name]
    assert [record.kind for record in sandbox.requests] == ["token"]
    assert "wrong-secret" not in f"{error} {error!r}"


def test_refused_scope(client: Client, sandbox: Sandbox) -> None:
    """A scope that BS2 does not know is its invalid_scope."""
    with pytest.raises(client.error) as caught:
        client.call(make(BS2Auth, sandbox, scope="cob.delete"), "GET", api_url(BS2Auth, sandbox))
    assert isinstance(caught.value, InvalidScopeError)
    assert (caught.value.status_code, caught.value.error) == (400, "invalid_scope")
    assert caught.value.missing_scopes == frozenset()


def test_ungranted_scope(client: Client, sandbox: Sandbox) -> None:
    """A required scope that the gateway did not assign is an error that names it, and the token is not used."""
    auth = make(AxiaAuth, sandbox, scope=["pix:send", "boletos:write", "cards:read"])
    with client.open(auth) as send:
        for _ in range(3):
            with pytest.raises(client.error, match="boletos:write cards:read") as caught:
                send("GET", api_url(AxiaAuth, sandbox))
            assert isinstance(caught.value, InvalidScopeError)
            assert caught.value.missing_scopes == {"boletos:write", "cards:read"}
    assert [record.kind for record in sandbox.requests] == ["token"]


def test_granted_scope(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """Granted scopes may come in any order, and may be more than the required ones."""
    scope = {"axia": "pix:send accounts:read", "bs2": "pix.read cob.write"}.get(
        auth_class.provider.name, "balance:read"
    )
    auth = make(auth_class, sandbox, scope=scope)
    assert client.call(auth, "GET", api_url(auth_class, sandbox)).status == 200
    assert auth.get_token().scopes >= set(scope.split())


def test_unstated_scope_is_not_missing(sandbox: Sandbox) -> None:
    """A response without scopes grants the required ones."""
    sandbox.inject(Fault("body", body=b'{"access_token": "abc", "expires_in": 3600}'))
    assert make(AxiaAuth, sandbox, scope="pix:send").get_token().access_token == "abc"


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_refusal_is_cached(client: Client, clock: FakeClock, sandbox: Sandbox, status: int) -> None:
    """After a refusal, callers get its error for 5, 10, 20, 40, then 60 s, without a token request."""
    sandbox.inject(Fault("status", status=status, times=-1))
    asked: list[float] = []
    errors: list[Exception] = []
    with client.open(make(AxiaAuth, sandbox)) as send:
        for _ in range(40):
            before = sandbox.count("token")
            with pytest.raises(client.error) as caught:
                send("GET", api_url(AxiaAuth, sandbox))
            errors.append(caught.value)
            asked += [clock.monotonic - 5000] * (sandbox.count("token") - before)
            clock.advance(5)
    assert asked == [0, 5, 15, 35, 75, 135, 195]
    assert {(type(e), e.status_code) for e in errors if isinstance(e, TokenEndpointError)} == {
        (InvalidClientError if status == 401 else TokenEndpointError, status)
    }
    assert len({id(error) for error in errors}) == 40
    assert clock.slept == []
    assert sandbox.count("api") == 0


def test_cached_verdict_lasts_to_the_second(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """No token request is sent before the pause ends, and one is sent as soon as it ends."""
    sandbox.inject(Fault("status", status=401))
    with client.open(make(AxiaAuth, sandbox)) as send:
        for pause in (0, 4.9):
            clock.advance(pause)
            with pytest.raises(client.error):
                send("GET", api_url(AxiaAuth, sandbox))
        assert sandbox.count("token") == 1
        clock.advance(0.1)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200


def test_verdict_is_the_secrets_own(client: Client, sandbox: Sandbox) -> None:
    """A refusal of a wrong secret does not delay callers with the right secret."""
    with pytest.raises(client.error):
        client.call(make(AxiaAuth, sandbox, client_secret="wrong"), "GET", api_url(AxiaAuth, sandbox))
    assert client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox)).status == 200


def test_refusal_while_a_token_lives(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A valid token is served after a refusal; token requests follow the schedule of refusals."""
    asked: list[float] = []
    with client.open(make(AxiaAuth, sandbox)) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        clock.advance(3300)
        sandbox.rotate_secret("changed")
        for _ in range(58):
            before = sandbox.count("token")
            assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
            asked += [clock.monotonic - 8300] * (sandbox.count("token") - before)
            clock.advance(5)
        assert asked == [0, 5, 15, 35, 75, 135, 195, 255]
        clock.advance(5)
        with pytest.raises(client.error) as caught:
            send("GET", api_url(AxiaAuth, sandbox))
    assert isinstance(caught.value, InvalidClientError)


# -- outages


@pytest.mark.parametrize("fault", BROKEN)
def test_outage_costs_no_call_while_a_token_lives(
    client: Client, clock: FakeClock, sandbox: Sandbox, fault: str
) -> None:
    """A valid token serves every call without a wait, for every failure of the token endpoint."""
    with client.open(make(AxiaAuth, sandbox)) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        clock.advance(3300)
        sandbox.inject(BROKEN[fault])
        for _ in range(10):
            assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
            clock.advance(29)
        assert sandbox.count("token") > 2
        sandbox.clear_faults()
        clock.advance(60)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert clock.slept == []
    assert len(set(sent_tokens(sandbox))) == 2


@pytest.mark.parametrize("kind", ["drop", "hang"])
def test_network_error_while_a_token_lives(client: Client, clock: FakeClock, sandbox: Sandbox, kind: Any) -> None:
    """With requests no call fails. With httpx, only the call that renews gets httpx's own error."""
    failed = 0
    with client.open(make(AxiaAuth, sandbox, timeout=0.1)) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        clock.advance(3300)
        sandbox.inject(Fault(kind, times=-1))
        for _ in range(10):
            try:
                assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
            except client.error as error:
                failed += 0 if isinstance(error, TokenEndpointError) else 1
    assert sandbox.count("token") == 2
    assert failed == (0 if client.module is requests else 1)


def test_network_errors_without_a_token_are_retried_by_requests(clock: FakeClock, sandbox: Sandbox) -> None:
    """After three lost answers, the fourth token request succeeds."""
    sandbox.inject(Fault("drop", times=3))
    assert requests.get(api_url(AxiaAuth, sandbox), auth=make(AxiaAuth, sandbox), timeout=5).status_code == 200
    assert sandbox.count("token") == 4
    assert len(clock.slept) == 3


def test_network_errors_are_given_up_by_requests(clock: FakeClock, sandbox: Sandbox) -> None:
    """After the fourth lost answer, the typed error is raised, with requests' own as its cause. The API is not called."""
    sandbox.inject(Fault("drop", times=-1))
    with pytest.raises(requests.RequestException) as caught:
        requests.get(api_url(AxiaAuth, sandbox), auth=make(AxiaAuth, sandbox), timeout=5)
    assert type(caught.value) is TokenEndpointUnavailableError
    assert (caught.value.status_code, caught.value.provider) == (None, "axia")
    assert isinstance(caught.value.__cause__, requests.ConnectionError)
    assert [record.kind for record in sandbox.requests] == ["token"] * 4


@pytest.mark.parametrize(
    ("fault", "kind", "sent"),
    [
        (Fault("status", status=503, times=-1), TokenEndpointUnavailableError, 4),
        (Fault("drop", times=-1), TokenEndpointUnavailableError, 4),
        (Fault("status", status=401, times=-1), InvalidClientError, 1),
        (Fault("status", status=429, retry_after=100, times=-1), RateLimitError, 1),
    ],
    ids=["503", "drop", "401", "429"],
)
def test_sessions_own_retries_stay_out_of_it(
    fault: Fault, kind: type[TokenEndpointError], sent: int, clock: FakeClock, sandbox: Sandbox
) -> None:
    """A session that retries API calls does not retry token requests, because the limits count each. It is not changed."""
    sandbox.inject(fault)
    retries = Retry(5, status_forcelist=[401, 429, 503], allowed_methods=None, backoff_factor=0.01)
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retries))
        with pytest.raises(kind) as caught:
            make(AxiaAuth, sandbox, session=session).get_token()
        assert caught.value.status_code == fault.status
        assert session.get_adapter("http://x").max_retries is retries
    assert sandbox.count("token") == sent


@pytest.mark.parametrize("client", HTTPX, ids=lambda client: client.name)
def test_network_error_of_httpx_stays_its_own(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A network error of httpx reaches the caller as it is. The next call sends a new token request."""
    sandbox.inject(Fault("drop"))
    with client.open(make(AxiaAuth, sandbox)) as send:
        with pytest.raises(client.module.RemoteProtocolError):
            send("GET", api_url(AxiaAuth, sandbox))
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert [record.kind for record in sandbox.requests] == ["token", "token", "api"]


def test_truncated_answer_is_retried(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """An answer that breaks off is read by the package, so with httpx, too, it is retried."""
    sandbox.inject(Fault("truncate", times=2))
    assert client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox)).status == 200
    assert sandbox.count("token") == 3


def test_nobody_listening(client: Client, clock: FakeClock, new_sandbox: Callable[..., Sandbox]) -> None:
    """A gateway that is not there is an error that the script's except clause catches."""
    sandbox = new_sandbox()
    sandbox.close()
    with pytest.raises(client.error):
        client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox))


def test_outage_is_told_with_its_status(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """After the retries, the error has the gateway's words. The API is not called."""
    sandbox.inject(Fault("status", status=503, times=-1))
    with pytest.raises(client.error) as caught:
        client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox))
    assert type(caught.value) is TokenEndpointUnavailableError
    assert caught.value.status_code == 503
    assert [record.kind for record in sandbox.requests] == ["token"] * 4


def test_each_waiter_gets_an_exception_of_its_own(sandbox: Sandbox) -> None:
    """Twenty threads on one failure: twenty exceptions, twenty tracebacks, one token request."""
    sandbox.inject(Fault("delay", delay=0.2, times=1))
    auth = make(AxiaAuth, sandbox, client_secret="wrong")

    def fail(_: int) -> BaseException:
        with pytest.raises(InvalidClientError) as caught:
            auth.get_token()
        return caught.value

    with ThreadPoolExecutor(20) as pool:
        errors = list(pool.map(fail, range(20)))
    assert len({id(error) for error in errors}) == 20
    assert len({id(error.__traceback__) for error in errors}) == 20
    assert len({str(error) for error in errors}) == 1
    assert sandbox.count("token") == 1


# -- limits


def test_limit_of_the_gateway_is_waited_out(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """Without a token, a caller waits for a Retry-After that fits in `max_wait`."""
    sandbox.inject(Fault("status", status=429, retry_after=7))
    assert client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox)).status == 200
    assert clock.slept == [7]
    assert sandbox.count("token") == 2


def test_limit_of_the_gateway_that_is_too_long(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A Retry-After longer than `max_wait` is an error at once. No token request is sent until it ends."""
    sandbox.inject(Fault("status", status=429, retry_after=100))
    with client.open(make(AxiaAuth, sandbox, max_wait=30)) as send:
        for elapsed in (0, 40, 29.9):
            clock.advance(elapsed)
            with pytest.raises(client.error) as caught:
                send("GET", api_url(AxiaAuth, sandbox))
            assert isinstance(caught.value, RateLimitError)
        assert caught.value.retry_after == pytest.approx(30.1)
        assert sandbox.count("token") == 1
        clock.advance(10)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert clock.slept == [pytest.approx(20.1)]


def test_limit_of_the_gateway_holds_for_every_auth_object(clock: FakeClock, sandbox: Sandbox) -> None:
    """A Retry-After is the client's, so another auth object of the same client_id waits, too."""
    sandbox.inject(Fault("status", status=429, retry_after=100))
    for auth in (make(AxiaAuth, sandbox), make(AxiaAuth, sandbox, headers={"X-A": "1"})):
        with pytest.raises(RateLimitError):
            auth.get_token()
    assert sandbox.count("token") == 1


@pytest.mark.parametrize(("auth_class", "limit"), [(AxiaAuth, 100), (BS2Auth, 10)], ids=["axia", "bs2"])
def test_limit_of_the_provider_is_kept(
    client: Client, clock: FakeClock, sandbox: Sandbox, auth_class: Auth, limit: int
) -> None:
    """The gateway never gets more token requests than it allows: callers wait, or get an error."""
    hasty = make(auth_class, sandbox, max_wait=5)
    for _ in range(limit):
        hasty.invalidate()
        hasty.get_token()
    hasty.invalidate()
    with pytest.raises(client.error) as caught:
        client.call(hasty, "GET", api_url(auth_class, sandbox))
    assert isinstance(caught.value, RateLimitError)
    assert caught.value.status_code is None
    assert caught.value.retry_after == pytest.approx(60)
    patient = make(auth_class, sandbox, max_wait=61)
    assert client.call(patient, "GET", api_url(auth_class, sandbox)).status == 200
    assert clock.slept == [pytest.approx(60)]
    assert {record.status for record in sandbox.requests} == {200}


def test_limit_costs_no_call_while_a_token_lives(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """With the limit used up, a stale or critical token is served."""
    auth, others = make(BS2Auth, sandbox), make(BS2Auth, sandbox)
    with client.open(auth) as send:
        send("GET", api_url(BS2Auth, sandbox))
        clock.advance(280)
        for _ in range(10):
            others.invalidate()
            others.get_token()
        assert send("GET", api_url(BS2Auth, sandbox)).status == 200
    assert len(set(sent_tokens(sandbox))) == 1
    assert clock.slept == []


# -- answers that are no token


GARBAGE = {
    "WAF page": Fault("garbage"),
    "nothing": Fault("empty"),
    "endless": Fault("huge"),
    **{
        content.decode(): Fault("body", body=content)
        for content in (
            b"null",
            b"[]",
            b'"abc"',
            b"{}",
            b'{"token": "abc"}',
            b'{"access_token": ""}',
            b'{"access_token": null, "expires_in": 3600}',
            b'{"access_token": "a b"}',
            b'{"access_token": "a\\r\\nX-Evil: 1"}',
            b'{"access_token": "abc", "token_type": "mac"}',
            b'{"access_token": "abc", "expires_in": -1}',
            b'{"access_token": "abc", "expires_in": true}',
            b'{"access_token": "abc", "expires_in": NaN}',
            b'{"access_token": "abc", "expires_in": 1e999}',
            b'{"access_token": "abc", "expires_in": "soon"}',
            b'{"access_token": "abc", "expires_in"',
        )
    },
    "bomb": Fault("body", body=gzip.compress(bytes(50 << 20)), headers={"Content-Encoding": "gzip"}),
    "no gzip": Fault("body", body=b'{"access_token": "abc"}', headers={"Content-Encoding": "gzip"}),
    "just too long": Fault("body", body=b'{"access_token": "abc", "expires_in": 3600}'.ljust((1 << 20) + 1)),
}


# With trio, httpx leaves its own generators behind wherever a stream is not read to its end.
leaves_stream_unread = pytest.mark.filterwarnings(
    "ignore:.*<async_generator object:pytest.PytestUnraisableExceptionWarning",
    "ignore:Async generator 'http:ResourceWarning",
)


@leaves_stream_unread
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_no_token(client: Client, clock: FakeClock, sandbox: Sandbox, garbage: str) -> None:
    """A 200 without a usable token is the typed error, for 5 s: no token is cached, and no API request is sent."""
    sandbox.inject(GARBAGE[garbage])
    with client.open(make(AxiaAuth, sandbox)) as send:
        with pytest.raises(client.error) as caught:
            send("POST", api_url(AxiaAuth, sandbox), content=b"payment")
        assert type(caught.value) is InvalidTokenResponseError
        assert caught.value.provider == "axia"
        assert "abc" not in str(caught.value)
        with pytest.raises(client.error) as again:
            send("POST", api_url(AxiaAuth, sandbox), content=b"payment")
        assert (type(again.value), str(again.value)) == (InvalidTokenResponseError, str(caught.value))
        assert (sandbox.count("token"), sandbox.count("api")) == (1, 0)
        assert clock.slept == []
        clock.advance(5.1)
        assert send("POST", api_url(AxiaAuth, sandbox), content=b"payment").status == 200
    assert sandbox.count("token") == 2
    assert sandbox.count("api") == 1


@leaves_stream_unread
def test_endless_answer_is_not_read_to_its_end(client: Client) -> None:
    """Little more than 1 MiB of an endless answer is read before it is refused."""
    taken = 0

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            nonlocal taken
            if taken >= 50 << 20:
                return 0
            taken += len(buffer)
            return len(buffer)

    url = "https://baas-gtw.axiadigitalsolutions.com"
    auth = AxiaAuth("endless", SECRET, cache=MemoryTokenCache())
    if client.module is requests:
        with responses.RequestsMock() as mock:
            mock.post(url + AxiaAuth.provider.token_endpoint, body=io.BufferedReader(Endless()))
            with pytest.raises(InvalidTokenResponseError):
                client.call(auth, "GET", url + "/v1/accounts")
    else:

        def chunks() -> Iterator[bytes]:
            yield from iter(partial(Endless().read, 1 << 16), b"")

        async def achunks() -> AsyncIterator[bytes]:
            for chunk in chunks():
                yield chunk

        def gateway(_: Any) -> Any:
            return client.module.Response(200, content=achunks() if client.backend else chunks())

        with client.open(auth, transport=client.module.MockTransport(gateway)) as send:
            with pytest.raises(InvalidTokenResponseError):
                send("GET", url + "/v1/accounts")
    assert 1 << 20 <= taken < 2 << 20


@pytest.mark.parametrize("padding", [0, 1 << 10, (1 << 20) - 200])
def test_long_answer_within_bounds_is_read(client: Client, sandbox: Sandbox, padding: int) -> None:
    """Anything up to 1 MiB is a token response, if it is one."""
    issued = make(AxiaAuth, sandbox).get_token().access_token
    body = json.dumps({"access_token": issued, "expires_in": 3600}).encode()
    sandbox.inject(Fault("body", body=body + b" " * min(padding, (1 << 20) - len(body))))
    assert client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox)).status == 200


def test_compressed_answer_is_read(client: Client, sandbox: Sandbox) -> None:
    """A proxy that compresses does no harm."""
    issued = make(AxiaAuth, sandbox).get_token().access_token
    body = gzip.compress(json.dumps({"access_token": issued, "expires_in": 3600}).encode())
    sandbox.inject(Fault("body", body=body, headers={"Content-Encoding": "gzip"}))
    assert client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox)).status == 200
    assert sandbox.count("token") == 2


# -- redirects of the token endpoint


def secrets_seen(sandbox: Sandbox) -> list[str]:
    return [
        record.path
        for record in sandbox.requests
        if SECRET.encode() in record.body or "authorization" in record.headers or record.kind == "token"
    ]


@pytest.mark.parametrize(("status", "follow_redirects"), [(302, True), (303, True), (307, True), (307, False)])
@pytest.mark.pairwise
def test_token_request_follows_no_redirect_elsewhere(
    client: Client,
    clock: FakeClock,
    sandbox: Sandbox,
    new_sandbox: Callable[..., Sandbox],
    auth_class: Auth,
    status: int,
    follow_redirects: bool,
) -> None:
    """A redirect to a foreign host takes no secret there and brings no token back, whatever the client's settings are."""
    foreign = new_sandbox(client_id=sandbox.client_id)
    token = make(auth_class, foreign).get_token()
    foreign.clear()
    foreign.inject(Fault("body", "*", body=json.dumps({"access_token": token.access_token}).encode(), times=-1))
    location = foreign.url + auth_class.provider.token_endpoint
    sandbox.inject(Fault("redirect", status=status, headers={"Location": location}))
    auth = make(auth_class, sandbox)
    with client.open(auth, follow_redirects=follow_redirects) as send:
        with pytest.raises(client.error) as caught:
            send("GET", api_url(auth_class, sandbox))
        assert isinstance(caught.value, InvalidTokenResponseError)
        assert not any(SECRET.encode() in record.body for record in foreign.requests)
        assert not any("authorization" in record.headers for record in foreign.requests)
        assert [record.kind for record in sandbox.requests] == ["token"]
        clock.advance(5.1)  # a refusal is not asked for again before
        assert send("GET", api_url(auth_class, sandbox)).status == 200
    assert token.access_token not in sent_tokens(sandbox)


@pytest.mark.parametrize("follow_redirects", [False, True])
def test_token_request_body_goes_out_once(client: Client, sandbox: Sandbox, follow_redirects: bool) -> None:
    """A redirect within the same host does not send the body with the secret again."""
    sandbox.inject(Fault("redirect", status=307, headers={"Location": "/elsewhere"}))
    with client.open(make(AvistaAuth, sandbox), follow_redirects=follow_redirects) as send:
        with pytest.raises(client.error) as caught:
            send("GET", api_url(AvistaAuth, sandbox))
    assert isinstance(caught.value, InvalidTokenResponseError)
    assert [SECRET.encode() in record.body for record in sandbox.requests].count(True) == 1
    assert sandbox.count("api") == 0 or sandbox.requests[-1].body == b""
