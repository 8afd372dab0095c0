"""The flows, stepped by hand without any network: what is sent, retried, waited for and given up."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Generator, Sequence
from email.utils import formatdate
from typing import Any

import pytest
from conftest import SECRET, FakeClock
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import (
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins._flow import (
    MAX_RESPONSE_BYTES,
    ConnectionLostError,
    Exchange,
    NetworkError,
    OutOfTimeError,
    Sleep,
    TokenRequest,
    TokenResponse,
    backoff,
)
from baas_auth_plugins._limiter import RateLimiter
from baas_auth_plugins._response import error_from, read_json
from baas_auth_plugins._token import Instant

GOOD = TokenResponse(200, {}, b"{}")
LOST = NetworkError("no route")


def answer(status: int, headers: dict[str, str] | None = None, **content: Any) -> TokenResponse:
    return TokenResponse.of(status, headers or {}, json.dumps(content).encode())


class Gateway:
    """Steps a flow: gives it one prepared answer for each request, and lets it sleep without waiting."""

    def __init__(self, limit: tuple[int, float] | None = None) -> None:
        self.clock = FakeClock()
        self.limiter = RateLimiter(limit)
        self.requests: list[TokenRequest] = []
        self.slept: list[float] = []
        self.limits: list[RateLimitError] = []
        self.latency = 0.0

    def now(self) -> Instant:
        return Instant(self.clock.wall, self.clock.monotonic)

    def flow(self, *, retry: bool = True, max_wait: float = 60, timeout: float = 10) -> Generator[Any, Any, Any]:
        def build(seconds: float) -> TokenRequest:
            return TokenRequest("https://gateway.example/token", {}, b"", seconds)

        def read(response: TokenResponse, sent: Instant) -> tuple[int, Instant]:
            if not 200 <= response.status_code < 300:
                raise error_from(response, "axia", self.now(), SECRET)
            return response.status_code, sent

        exchange = Exchange("axia", self.now, self.limiter, self.limits.append, timeout)
        return exchange.run(build, read, deadline=self.clock.monotonic + max_wait, retry=retry)

    def run(self, answers: Sequence[TokenResponse | Exception], **options: Any) -> Any:
        flow, left = self.flow(**options), list(answers)
        step: Callable[[], Any] = lambda: next(flow)  # noqa: E731  # replaced at each step
        try:
            while True:
                effect = step()
                if isinstance(effect, Sleep):
                    self.slept.append(effect.seconds)
                    self.clock.advance(effect.seconds)
                    step = lambda: flow.send(None)  # noqa: E731
                    continue
                self.requests.append(effect)
                self.clock.advance(self.latency)
                result = left.pop(0)
                if isinstance(result, Exception):
                    step = lambda error=result: flow.throw(error)  # noqa: E731
                else:
                    step = lambda result=result: flow.send(result)  # noqa: E731
        except StopIteration as stop:
            assert not left, "the flow ended before it had seen everything"
            return stop.value


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


# -- one attempt


def test_answer_comes_with_the_moment_of_sending(gateway: Gateway) -> None:
    """What is read counts from when the request was sent, not from when the answer came."""
    gateway.latency = 2.5
    before = gateway.now()
    assert gateway.run([GOOD]) == (200, before)


def test_sending_is_that_of_the_last_attempt(gateway: Gateway) -> None:
    """After retries, the life counts from the request that was answered."""
    gateway.latency = 1
    _, sent = gateway.run([answer(503), LOST, GOOD])
    assert sent == Instant(gateway.clock.wall - 1, gateway.clock.monotonic - 1)


@pytest.mark.parametrize(("timeout", "max_wait", "expected"), [(10, 60, 10), (10, 4, 4), (0.5, 60, 0.5)])
def test_attempt_is_bounded_by_timeout_and_patience(
    gateway: Gateway, timeout: float, max_wait: float, expected: float
) -> None:
    """One attempt takes `timeout` at most, and no more than is left of the caller's patience."""
    gateway.run([GOOD], timeout=timeout, max_wait=max_wait)
    assert gateway.requests[0].timeout == expected


def test_later_attempts_have_less_time(gateway: Gateway) -> None:
    """Each attempt is given what the earlier ones and the pauses left."""
    gateway.latency = 8
    with pytest.raises(OutOfTimeError):
        gateway.run([LOST, LOST, LOST], max_wait=20)
    patience = 20.0
    for request, pause in zip(gateway.requests, [*gateway.slept, 0], strict=False):
        assert request.timeout == pytest.approx(min(10, patience))
        patience -= 8 + pause


# -- retries


@pytest.mark.parametrize("failure", [answer(500), answer(502), answer(503), answer(504), LOST], ids=str)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_outage_is_retried(gateway: Gateway, failure: Any, times: int) -> None:
    """Up to three retries after 500, 502, 503, 504 and network errors; the fourth attempt may still succeed."""
    assert gateway.run([failure] * times + [GOOD])[0] == 200
    assert len(gateway.requests) == times + 1
    assert all(0 <= slept <= 0.5 * 2**n for n, slept in enumerate(gateway.slept))
    assert len(gateway.slept) == times


@pytest.mark.parametrize(("failure", "status"), [(answer(500), 500), (answer(503), 503), (LOST, None)])
def test_outage_is_given_up(gateway: Gateway, failure: Any, status: int | None) -> None:
    """After the fourth attempt the error is told, with the gateway's status if there was one."""
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        gateway.run([failure] * 4)
    assert (caught.value.provider, caught.value.status_code, len(gateway.requests)) == ("axia", status, 4)


@pytest.mark.parametrize("status", [501, 505, 511, 599])
def test_other_server_errors_are_not_retried(gateway: Gateway, status: int) -> None:
    """A 5xx that will not go away by itself is told at once."""
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        gateway.run([answer(status)])
    assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (answer(500), TokenEndpointUnavailableError),
        (LOST, TokenEndpointUnavailableError),
        (answer(429), RateLimitError),
    ],
    ids=["500", "network", "429"],
)
def test_without_retry_one_attempt_is_all(gateway: Gateway, failure: Any, kind: type[Exception]) -> None:
    """While a token lives, a failed renewal costs one attempt and no pause."""
    with pytest.raises(kind):
        gateway.run([failure], retry=False)
    assert gateway.slept == []


def test_network_error_keeps_its_cause(gateway: Gateway) -> None:
    """What the client raised is the cause of what the caller sees."""
    error, cause = NetworkError("no route"), OSError(113, "No route to host")
    error.__cause__ = cause
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        gateway.run([error], retry=False)
    assert caught.value.__cause__ is cause


def test_closed_flow_yields_nothing_more(gateway: Gateway) -> None:
    """Once the client has closed the flow, it must not ask for anything."""
    with pytest.raises(ConnectionLostError):
        gateway.run([ConnectionLostError()])
    assert gateway.limiter.delay(gateway.clock.monotonic) == 0


def test_retry_beyond_the_deadline_is_not_begun(gateway: Gateway) -> None:
    """No caller sleeps for something that it would not live to see."""
    gateway.latency = 1
    with pytest.raises(OutOfTimeError) as caught:
        gateway.run([answer(503)], max_wait=1)
    assert isinstance(caught.value.error, TokenEndpointUnavailableError)
    assert gateway.slept == []


@given(st.integers(1, 60))
def test_backoff_is_exponential_with_full_jitter(failures: int) -> None:
    """Anything between nothing and 0.5 s doubled with each failure."""
    samples = [backoff(failures) for _ in range(200)]
    longest = 0.5 * 2 ** (failures - 1)
    assert all(0 <= sample <= longest for sample in samples)
    assert 0.3 * longest < statistics.mean(samples) < 0.7 * longest
    assert min(samples) < 0.2 * longest < 0.8 * longest < max(samples)


# -- refusals


@pytest.mark.parametrize(
    ("response", "kind", "error", "description"),
    [
        pytest.param(
            answer(401, error="E00101", message="Invalid client credentials", timestamp="2024-03-15T10:00:05Z"),
            InvalidClientError,
            "E00101",
            "Invalid client credentials",
            id="axia 401",
        ),
        pytest.param(
            answer(400, error="INVALID_REQUEST", code="E00001", message="Invalid request format"),
            TokenEndpointError,
            "E00001",
            "Invalid request format",
            id="axia's other pages",
        ),
        pytest.param(
            answer(403, error="E00102", error_description="Forbidden", message="No"),
            TokenEndpointError,
            "E00102",
            "Forbidden",
            id="axia 403 with the code of a 429",
        ),
        pytest.param(
            answer(401, statusCode=401, message="Unauthorized"),
            InvalidClientError,
            None,
            "Unauthorized",
            id="avista 401",
        ),
        pytest.param(
            answer(401, error="invalid_client", error_description="The given client credentials were not valid"),
            InvalidClientError,
            "invalid_client",
            "The given client credentials were not valid",
            id="bs2 401",
        ),
        pytest.param(
            answer(400, error="invalid_client"), InvalidClientError, "invalid_client", None, id="invalid_client as 400"
        ),
        pytest.param(answer(400, error="invalid_scope"), InvalidScopeError, "invalid_scope", None, id="invalid_scope"),
        pytest.param(answer(404), TokenEndpointError, None, None, id="404"),
        pytest.param(answer(400, error=7, message=["no"]), TokenEndpointError, None, None, id="fields of other types"),
        pytest.param(TokenResponse(403, {}, b"<html>WAF</html>"), TokenEndpointError, None, None, id="not JSON"),
        pytest.param(TokenResponse(400, {}, b"[" * 10**5), TokenEndpointError, None, None, id="nested too deep"),
        pytest.param(TokenResponse(401, {}, b""), InvalidClientError, None, None, id="empty 401"),
        pytest.param(TokenResponse(307, {}, b""), InvalidTokenResponseError, None, None, id="redirect"),
        pytest.param(TokenResponse(304, {}, b""), InvalidTokenResponseError, None, None, id="304"),
    ],
)
def test_refusal_is_told_at_once(
    gateway: Gateway, response: TokenResponse, kind: type[TokenEndpointError], error: str, description: str
) -> None:
    """A refusal is never retried; the status decides what it is, and the gateway's words are kept as fields."""
    with pytest.raises(TokenEndpointError) as caught:
        gateway.run([response])
    assert type(caught.value) is kind
    assert caught.value.provider == "axia"
    assert caught.value.status_code == response.status_code
    assert (caught.value.error, caught.value.error_description) == (error, description)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"abc"', b"<html>", b"{", b'{"a": 1}x', b"\xff\xfe", b"[" * 10**5]
)
def test_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    """Only a JSON object can be a token response, and the error does not show what came instead."""
    with pytest.raises(InvalidTokenResponseError, match="no JSON object") as caught:
        read_json(TokenResponse(200, {}, body), "axia", Instant(0, 0))
    assert (caught.value.provider, caught.value.status_code) == ("axia", 200)
    assert "html" not in str(caught.value)


def test_long_body_is_refused() -> None:
    """More than 1 MiB is not read as a token response; 1 MiB is."""
    assert TokenResponse.of(200, {"X-A": "1"}, bytes(MAX_RESPONSE_BYTES)).headers == {"x-a": "1"}
    with pytest.raises(InvalidTokenResponseError, match="1 MiB"):
        TokenResponse.of(200, {}, bytes(MAX_RESPONSE_BYTES + 1))
    assert MAX_RESPONSE_BYTES == 1024 * 1024


BASIC = "eW91ci1jbGllbnQtaWQ6eW91ci1jbGllbnQtc2VjcmV0"


@pytest.mark.parametrize("field", ["error", "error_description", "message", "code"])
@pytest.mark.parametrize("secret", [SECRET, BASIC, "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"])
def test_echoed_credentials_are_blanked(field: str, secret: str) -> None:
    """A gateway that repeats what it was sent does not bring it into an exception."""
    response = answer(400, **{field: f"bad: {secret}", "error" if field == "message" else "message": secret})
    error = error_from(response, "axia", Instant(0, 0), SECRET, BASIC)
    assert secret not in f"{error} {error!r} {error.error} {error.error_description} {vars(error)}"


@given(
    st.integers(300, 599),
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: json.dumps({"error": text, "message": text}).encode()),
    st.text(max_size=30),
)
def test_any_answer_makes_an_error(status: int, body: bytes, retry_after: str) -> None:
    """Whatever a gateway answers, there is one printable error with a bounded wait."""
    error = error_from(TokenResponse(status, {"retry-after": retry_after}, body), "axia", Instant(1e9, 0), SECRET)
    assert isinstance(error, TokenEndpointError)
    assert str(error).isprintable()
    assert len(str(error)) < 400
    assert error.retry_after is None or 0 <= error.retry_after <= 86_400


# -- Retry-After

NOW = FakeClock().wall


@pytest.mark.parametrize(
    ("headers", "content", "seconds"),
    [
        pytest.param({"Retry-After": "30"}, {}, 30, id="seconds"),
        pytest.param({"retry-after": " 30 "}, {}, 30, id="spaces"),
        pytest.param({"Retry-After": "1.5"}, {}, 1.5, id="fraction"),
        pytest.param({"Retry-After": formatdate(NOW + 20, usegmt=True)}, {}, 20, id="date"),
        pytest.param({"Retry-After": "Friday, 15-Mar-24 10:00:20 GMT"}, {}, 20, id="RFC 850 date"),
        pytest.param({"Retry-After": "Fri Mar 15 10:00:20 2024"}, {}, 20, id="asctime date"),
        pytest.param(
            {"Retry-After": formatdate(NOW - 3580, usegmt=True), "Date": formatdate(NOW - 3600, usegmt=True)},
            {},
            20,
            id="their clock, which is late",
        ),
        pytest.param(
            {"Retry-After": formatdate(NOW + 20, usegmt=True), "Date": "yesterday"}, {}, 20, id="no clock of theirs"
        ),
        pytest.param({}, {"retry_after": 30}, 30, id="body"),
        pytest.param({}, {"retry_after": "30"}, 30, id="body, text"),
        pytest.param({"Retry-After": "5"}, {"retry_after": 30}, 5, id="header first"),
        pytest.param({"Retry-After": "soon"}, {"retry_after": 30}, 30, id="body after nonsense"),
        pytest.param({"Retry-After": "-1"}, {"retry_after": 30}, 30, id="body after negative"),
        pytest.param({"Retry-After": ""}, {"retry_after": 30}, 30, id="body after empty"),
    ],
)
def test_retry_after_is_waited_for(
    gateway: Gateway, headers: dict[str, str], content: dict[str, Any], seconds: float
) -> None:
    """A 429 is retried after exactly the time it names: header, as seconds or date, then body."""
    assert gateway.run([answer(429, headers, error="E00102", **content), GOOD])[0] == 200
    assert gateway.slept == [pytest.approx(seconds)]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Retry-After": "nonsense"}, {"Retry-After": "0"}, {"Retry-After": formatdate(0, usegmt=True)}],
    ids=["none", "nonsense", "zero", "past"],
)
@pytest.mark.parametrize("body", [None, True, -5, [], {}, "x", 1e400])
def test_without_a_usable_retry_after_it_backs_off(gateway: Gateway, headers: dict[str, str], body: object) -> None:
    """A 429 that does not say when is retried like an outage."""
    assert gateway.run([answer(429, headers, retry_after=body), GOOD])[0] == 200
    assert len(gateway.slept) == 1
    assert gateway.slept[0] <= 0.5


@pytest.mark.parametrize(("retry_after", "shown"), [("61", 61), ("1800000000000", 86_400), ("9" * 400, 86_400)])
def test_retry_after_that_does_not_fit_is_told_at_once(gateway: Gateway, retry_after: str, shown: float) -> None:
    """A wait longer than the caller's patience is not begun; the error says how long it is."""
    with pytest.raises(OutOfTimeError) as caught:
        gateway.run([answer(429, {"Retry-After": retry_after})], max_wait=60)
    error = caught.value.error
    assert isinstance(error, RateLimitError)
    assert (error.retry_after, error.status_code, gateway.slept) == (shown, 429, [])


def test_server_error_with_retry_after_is_obeyed(gateway: Gateway) -> None:
    """A 503 may name its time, too (RFC 9110 section 10.2.3)."""
    gateway.run([answer(503, {"Retry-After": "17"}), GOOD])
    assert gateway.slept == [17]


def test_clock_that_stands_still_ends_the_flow_all_the_same(gateway: Gateway) -> None:
    """In a test that freezes all clocks, a wait that is never over is not waited for again and again."""
    flow = gateway.flow(max_wait=60)
    next(flow)
    waits = [flow.send(answer(429, {"Retry-After": "25"})), flow.send(None)]
    assert waits == [Sleep(25), Sleep(25)]
    with pytest.raises(OutOfTimeError):
        flow.send(None)


def test_every_limit_is_told(gateway: Gateway) -> None:
    """Whoever listens hears of each 429, and of the limiter holding a flow back."""
    with pytest.raises(OutOfTimeError):
        gateway.run([answer(429, {"Retry-After": "3"}), answer(429, {"Retry-After": "90"})])
    with pytest.raises(OutOfTimeError):
        gateway.run([])
    assert [limit.retry_after for limit in gateway.limits] == [3, 90, 90]


@pytest.mark.parametrize("retry", [True, False])
def test_running_retry_after_holds_for_everyone(gateway: Gateway, retry: bool) -> None:
    """While a Retry-After runs, no other flow sends: it waits, or is told how long it would have to."""
    with pytest.raises(RateLimitError):
        gateway.run([answer(429, {"Retry-After": "30"})], retry=False)
    gateway.clock.advance(10)
    gateway.requests.clear()
    if retry:
        gateway.run([GOOD])
        assert gateway.slept == [20]
    else:
        with pytest.raises(RateLimitError) as caught:
            gateway.run([], retry=False)
        assert caught.value.retry_after == 20
        assert gateway.requests == []


def test_wall_clock_does_not_shorten_a_retry_after(gateway: Gateway) -> None:
    """A Retry-After is waited for in real time, however the wall clock is stepped."""
    with pytest.raises(RateLimitError):
        gateway.run([answer(429, {"Retry-After": "30"})], retry=False)
    gateway.clock.step_wall(3600)
    gateway.run([GOOD])
    assert gateway.slept == [30]


@given(st.text(max_size=30) | st.integers(-(10**12), 10**12).map(str) | st.floats().map(str) | st.datetimes().map(str))
def test_any_retry_after_is_bounded(text: str) -> None:
    """No header, however odd, makes a wait that is negative, endless or a crash."""
    error = error_from(TokenResponse(429, {"retry-after": text}, b""), "axia", Instant(NOW, 0))
    assert error.retry_after is None or 0 <= error.retry_after <= 86_400


@given(st.integers(0, 10**10 - 1))
def test_seconds_are_read_exactly(seconds: int) -> None:
    """A number of seconds means that many, up to a day."""
    error = error_from(TokenResponse(429, {"retry-after": str(seconds)}, b""), "axia", Instant(NOW, 0))
    assert error.retry_after == min(seconds, 86_400)


@given(st.integers(0, 86_400))
def test_dates_are_read_exactly(seconds: int) -> None:
    """An HTTP date means the seconds from now until then."""
    headers = {"retry-after": formatdate(NOW + seconds, usegmt=True)}
    assert error_from(TokenResponse(429, headers, b""), "axia", Instant(NOW, 0)).retry_after == seconds


# -- the provider's limit


@given(
    st.integers(1, 12),
    st.floats(1, 60),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5), st.booleans()), max_size=60),
)
def test_limit_holds_in_every_window(most: int, window: float, callers: list[tuple[float, float, bool]]) -> None:
    """However callers come, and however late the gateway counts them, no window sees more than the limit."""
    limiter, now, counted = RateLimiter((most, window)), 0.0, []
    for pause, latency, patient in callers:
        now += pause
        wait = limiter.take(now)
        if wait and not patient:
            continue
        if wait:
            now += wait + 1e-9
            wait = limiter.take(now)
            assert wait == 0, "what delay said was true"
        earliest = now
        now += latency
        limiter.answered(earliest, now)
        counted.append((earliest, now))
    for first, last in zip(counted, counted[most:], strict=False):
        assert last[0] >= first[1] + window - 1e-6


def test_limit_counts_retries_and_failures() -> None:
    """Retries are token requests, too: ten of them within a minute, and the eleventh waits for its turn."""
    gateway = Gateway((10, 60))
    for _ in range(2):
        with pytest.raises(TokenEndpointUnavailableError):
            gateway.run([answer(500)] * 4)
    gateway.run([LOST, GOOD])
    started, gateway.slept = gateway.clock.monotonic, []
    gateway.run([GOOD], max_wait=120)
    assert gateway.slept != []
    assert 50 < gateway.clock.monotonic - started <= 60
    assert len(gateway.requests) == 11


def test_limit_that_does_not_fit_is_told_at_once() -> None:
    """The local limit is an error like the gateway's, without a status, and costs no request."""
    gateway = Gateway((1, 60))
    gateway.run([GOOD])
    with pytest.raises(OutOfTimeError) as caught:
        gateway.run([], max_wait=30)
    assert isinstance(caught.value.error, RateLimitError)
    assert caught.value.error.status_code is None
    assert caught.value.error.retry_after == pytest.approx(60)
    assert len(gateway.requests) == 1


def test_limit_reads_the_monotonic_clock_only() -> None:
    """A wall clock stepped forward by an hour makes no room."""
    gateway = Gateway((1, 60))
    gateway.run([GOOD])
    gateway.clock.step_wall(3600)
    gateway.run([GOOD])
    assert gateway.slept == [pytest.approx(60)]


def test_unlimited_provider_is_not_slowed() -> None:
    """Without a declared limit nothing is counted, but a Retry-After holds all the same."""
    limiter = RateLimiter(None)
    assert all(limiter.take(0.0) == 0 for _ in range(10_000))
    limiter.block(5, 0.0)
    assert limiter.take(1.0) == 4


def test_answer_that_takes_longer_than_the_window_counts_from_when_it_came() -> None:
    """However late the answer, the next request waits a whole window from there: the gateway may have counted it so."""
    limiter = RateLimiter((1, 60))
    wait = limiter.take(0)
    assert wait == 0
    assert limiter.delay(61) == 0
    limiter.answered(0, 70)
    assert limiter.delay(71) == 59


def test_a_block_of_no_length_holds_nobody_up() -> None:
    """A wait of 0 s is none, even for a caller that looked at the clock before it was told."""
    limiter = RateLimiter((10, 60))
    limiter.block(0.0, 100.0)
    assert limiter.delay(99.9) == 0
