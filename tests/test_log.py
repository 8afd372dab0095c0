"""The log at DEBUG: a reader can follow why each token request happened, and no record has a secret or a token."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import SECRET, Auth, Client, FakeClock, api_url, make
from raw_gateway import RawGateway, SharedStore, http, until

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    InvalidClientError,
    OAuth2ClientCredentialsAuth,
    RateLimitError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)


class Log(logging.Handler):
    """The records of the package since the last look, with digests, hosts and fractions of seconds left out."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._start = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "baas_auth_plugins":
            self.records.append(record)

    def new(self) -> list[str]:
        records = self.records[self._start :]
        self._start += len(records)
        lines = [f"{record.levelname} {record.getMessage()}" for record in records]
        lines = [re.sub(r"127\.0\.0\.1:\d+", "HOST", line) for line in lines]
        lines = [re.sub(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{8}\b|\b[a-f]{8}\b", "DIGEST", line) for line in lines]
        return [re.sub(r"\d+\.\d+ s", "N s", line) for line in lines]


@pytest.fixture
def log() -> Iterator[Log]:
    """The package's log at DEBUG. At the end no record of it has a secret or a token."""
    logger, found = logging.getLogger("baas_auth_plugins"), Log()
    before = logger.level
    logger.addHandler(found)
    logger.setLevel(logging.DEBUG)
    yield found
    logger.removeHandler(found)
    logger.setLevel(before)
    text = "\n".join(f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in found.records)
    assert text
    assert SECRET not in text
    assert "Basic " not in text
    assert not re.search(r"eyJ[\w-]+\.|[0-9a-f]{8}-[0-9a-f]{4}-", text)  # the gateways' tokens are JWTs and UUIDs


def requested(name: str, reason: str, why: str) -> list[str]:
    return [
        f"DEBUG {name}: requesting a token from HOST ({reason}): {why}",
        f"DEBUG {name}: sending token request 1 of this call to HOST",
    ]


def got(name: str, reason: str, life: int, requests: str = "1 token request") -> str:
    return f"DEBUG {name}: got token DIGEST ({reason}) after {requests} and N s; it is valid for {life} s"


def test_a_cold_call_and_a_cached_one(client: Client, auth_class: Auth, log: Log, sandbox: Sandbox) -> None:
    """The first call says that there was no token; the second, which uses the cache, says nothing."""
    auth, url = make(auth_class, sandbox), api_url(auth_class, sandbox)
    with client.open(auth) as send:
        send("GET", url)
        name, life = auth_class.provider.name, auth_class.provider.default_expires_in
        assert log.new() == [*requested(name, "cold", "there is none yet"), got(name, "cold", life)]
        send("GET", url)
    assert log.new() == []


def test_a_renewal(clock: FakeClock, log: Log, sandbox: Sandbox) -> None:
    """A renewal says which token is due, and when it expires; so does a token request after its expiry."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    log.new()
    clock.advance(3310)
    auth.get_token()
    why = "token DIGEST is due for renewal: it expires in 290 s"
    assert log.new() == [*requested("axia", "due", why), got("axia", "due", 3600)]
    clock.advance(3600)
    auth.get_token()
    assert log.new() == [*requested("axia", "expired", "token DIGEST has expired"), got("axia", "expired", 3600)]


def test_an_outage_without_a_token(clock: FakeClock, log: Log, sandbox: Sandbox) -> None:
    """Each retry says what failed and how long it waits; the last one when the next attempt is possible."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=503, times=-1))
    with pytest.raises(TokenEndpointUnavailableError):
        auth.get_token()
    first, *rest = log.new()
    assert first == "DEBUG axia: requesting a token from HOST (cold): there is none yet"
    attempts, waits = rest[:-1:2], rest[1:-1:2]
    assert attempts == [f"DEBUG axia: sending token request {n} of this call to HOST" for n in (1, 2, 3, 4)]
    failure = "axia: HOST answered 503 (E00503: Service Unavailable)"
    waited = f"{failure}; waiting N s before the next token request"
    assert {line.partition(" ")[2] for line in waits} == {waited}
    assert rest[-1] == (
        f"WARNING {failure}; the next attempt is possible in N s; there is no valid token, so calls fail until then"
    )
    with pytest.raises(TokenEndpointUnavailableError):
        auth.get_token()
    assert log.new() == ["DEBUG axia: no token request for N s, because the last one failed; raising its error again"]


def test_a_wait_of_a_second_is_info(clock: FakeClock, log: Log, sandbox: Sandbox) -> None:
    """Waits of a second or more are INFO with their length, shorter ones DEBUG."""
    sandbox.inject(Fault("status", status=429, retry_after=7))
    make(AxiaAuth, sandbox).get_token()
    (record,) = [record for record in log.records if "waiting" in record.getMessage()]
    assert record.levelno == logging.INFO
    assert "429" in record.getMessage()
    assert record.getMessage().endswith("; waiting 7.0 s before the next token request")


def test_an_outage_while_a_token_is_valid(clock: FakeClock, log: Log, sandbox: Sandbox) -> None:
    """A renewal that fails says until when the old token is served; each call that gets it says why."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    log.new()
    clock.advance(3310)
    sandbox.inject(Fault("status", status=503, times=-1))
    auth.get_token()
    served = "DEBUG axia: serving token DIGEST, which expires in 290 s: the next renewal is possible in N s"
    assert log.new() == [
        *requested("axia", "due", "token DIGEST is due for renewal: it expires in 290 s"),
        "WARNING axia: HOST answered 503 (E00503: Service Unavailable); the next attempt is possible in N s;"
        " token DIGEST is served meanwhile; it expires in 290 s",
        served,
    ]
    auth.get_token()
    assert log.new() == [served]


def test_a_401(client: Client, log: Log, sandbox: Sandbox) -> None:
    """A 401 says which token was rejected, that the request is sent again, and what the API answered then."""
    auth, url = make(AvistaAuth, sandbox), api_url(AvistaAuth, sandbox)
    with client.open(auth) as send:
        send("GET", url)
        log.new()
        sandbox.revoke()
        send("GET", url)
    assert log.new() == [
        "INFO avista: the API rejected token DIGEST (401), 0 s after it was issued;"
        " the request is sent again with a new token",
        *requested("avista", "rejected", "the API rejected token DIGEST (401)"),
        got("avista", "rejected", 3600),
        "DEBUG avista: the request was sent again with token DIGEST; the API answered 200, N s after the 401",
    ]


def test_a_401_that_is_returned(clock: FakeClock, log: Log, sandbox: Sandbox) -> None:
    """A 401 that is returned says why, and what to do."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.inject(Fault("status", "api", status=401, times=-1))
    log.new()
    requests.post(url, data=iter([b"x"]), auth=auth, timeout=5)
    returned = "INFO axia: the API rejected token DIGEST (401), 0 s after it was issued; the 401 is returned, because"
    assert log.new() == [f"{returned} the request cannot be sent again. Give it a body of bytes, not a stream"]
    clock.advance(61)
    requests.get(url, auth=auth, timeout=5)
    assert log.new()[-1] == (
        "INFO axia: the API rejected the new token DIGEST, too, so new tokens do not help; 401s are returned for 5 s."
        " Check the account's permissions and the path"
    )
    requests.get(url, auth=auth, timeout=5)
    assert log.new() == [f"{returned} new tokens did not help. The next one is requested in 5 s"]


def test_a_rate_limit_wait(clock: FakeClock, log: Log, new_sandbox: Callable[..., Sandbox]) -> None:
    """The package's own limit says what it is, and how long the call waits; where it cannot wait, when to try again."""
    sandbox = new_sandbox(enforce_rate_limits=False)
    patient, hasty = (make(BS2Auth, sandbox, max_wait=seconds) for seconds in (70, 1))
    for _ in range(10):
        patient.invalidate()
        patient.get_token()
    clock.advance(18)
    patient.invalidate()
    log.new()
    limit = "bs2: token limit reached (10 requests in 60 s); next request possible in 42 s"
    with pytest.raises(RateLimitError, match=re.escape(limit)):
        hasty.get_token()
    assert f"DEBUG {limit}; a wait of N s does not fit in this call's time: raising the error" in log.new()
    patient.get_token()
    assert f"INFO {limit}; waiting N s before the next token request" in log.new()


def test_a_refusal(log: Log, sandbox: Sandbox) -> None:
    """A refusal says what the gateway said, and when it is asked again."""
    sandbox.inject(Fault("status", status=401))
    with pytest.raises(InvalidClientError):
        make(AxiaAuth, sandbox).get_token()
    assert log.new()[-1] == (
        "WARNING axia: HOST answered 401 (E00101: Invalid client credentials); the next attempt is possible in N s;"
        " there is no valid token, so calls fail until then"
    )


def test_an_invalidation(log: Log, sandbox: Sandbox) -> None:
    """A token that the program drops is named, and so is the reason of the token request that follows."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    log.new()
    auth.invalidate()
    auth.get_token()
    assert log.new() == [
        "DEBUG axia: invalidate() drops token DIGEST",
        *requested("axia", "invalidated", "invalidate() dropped the last one"),
        got("axia", "invalidated", 3600),
    ]


def test_a_rotated_secret(log: Log, sandbox: Sandbox) -> None:
    """A secret that was rotated is said to be, before the token request with the new one."""
    secrets = ["your-old-secret"]
    auth = make(AxiaAuth, sandbox, client_secret=lambda: secrets[-1])
    sandbox.client_secret = secrets[0]
    auth.get_token()
    secrets.append(SECRET)
    sandbox.rotate_secret(SECRET)
    auth.invalidate()
    auth.get_token()
    assert "DEBUG axia: client_secret was rotated; requesting a token with the new one" in log.new()


def test_waiters(log: Log) -> None:
    """A call that waits for another one's token request says so."""
    arrived, released = threading.Event(), threading.Event()

    def hold(exchange: object) -> bytes:
        arrived.set()
        assert released.wait(30)
        return gateway.issue(exchange)  # type: ignore[arg-type]  # an exchange

    with RawGateway(on_token=hold) as gateway, ThreadPoolExecutor(2) as pool:
        auth = AxiaAuth("your-client-id", SECRET, base_url=gateway.url)
        leader = pool.submit(auth.get_token)
        assert arrived.wait(20)
        waiter = pool.submit(auth.get_token)
        waits = "DEBUG axia: another caller requests a token; waiting for its result"
        lines: list[str] = []
        until(lambda: lines.extend(log.new()) or waits in lines)
        released.set()
        assert leader.result(20) == waiter.result(20)


# -- a fleet


def two_processes(sandbox: Sandbox) -> tuple[OAuth2ClientCredentialsAuth, OAuth2ClientCredentialsAuth]:
    store = SharedStore(time.monotonic)
    return make(AxiaAuth, sandbox, cache=store.face()), make(AxiaAuth, sandbox, cache=store.face())


def test_an_adoption(log: Log, sandbox: Sandbox) -> None:
    """A process that takes over another one's token says which, and sends nothing."""
    one, other = two_processes(sandbox)
    one.get_token()
    assert "DEBUG axia: this process holds the lease, and may send one token request" in log.new()
    other.get_token()
    assert log.new() == [
        "DEBUG axia: requesting a token from HOST (cold): there is none yet",
        "DEBUG axia: adopted token DIGEST, which another process requested; it expires in 3600 s",
    ]


def test_an_adoption_after_a_401(log: Log, sandbox: Sandbox) -> None:
    """After a 401 the other process's new token is used, and named."""
    one, other = two_processes(sandbox)
    url = api_url(AxiaAuth, sandbox)
    for auth in (one, other):
        requests.get(url, auth=auth, timeout=5)
    sandbox.revoke()
    requests.get(url, auth=one, timeout=5)
    log.new()
    requests.get(url, auth=other, timeout=5)
    assert log.new() == [
        "INFO axia: the API rejected token DIGEST (401), 0 s after it was issued;"
        " the request is sent again with token DIGEST, which came meanwhile",
        "DEBUG axia: the request was sent again with token DIGEST; the API answered 200, N s after the 401",
    ]


def test_another_process_is_at_it(log: Log) -> None:
    """A process that waits for another one's token request says so, and then which token it adopts."""
    arrived, released = threading.Event(), threading.Event()

    def hold(exchange: object) -> bytes:
        arrived.set()
        assert released.wait(30)
        return gateway.issue(exchange)  # type: ignore[arg-type]  # an exchange

    store = SharedStore(time.monotonic)
    with RawGateway(on_token=hold) as gateway, ThreadPoolExecutor(2) as pool:
        one, other = (AxiaAuth("your-id", SECRET, base_url=gateway.url, cache=store.face()) for _ in range(2))
        leader = pool.submit(one.get_token)
        assert arrived.wait(20)
        follower = pool.submit(other.get_token)
        lines: list[str] = []
        waits = "DEBUG axia: another process requests a token; looking for it again soon"
        until(lambda: lines.extend(log.new()) or waits in lines)
        released.set()
        assert leader.result(20).access_token == follower.result(20).access_token
    adopted = "DEBUG axia: adopted token DIGEST, which another process requested; it expires in 3600 s"
    assert adopted in [*lines, *log.new()]


def test_another_processs_failure(clock: FakeClock, log: Log) -> None:
    """A refusal that another process got is said to be another's."""
    store = SharedStore(lambda: clock.monotonic)
    with RawGateway(on_token=lambda exchange: http(401, b"{}")) as gateway:
        one, other = (AxiaAuth("your-id", SECRET, base_url=gateway.url, cache=store.face()) for _ in range(2))
        for auth in (one, other):
            with pytest.raises(InvalidClientError):
                auth.get_token()
        assert gateway.count("token") == 1
    assert "DEBUG axia: another process's token request failed; its error counts here, too" in log.new()
