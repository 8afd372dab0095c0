"""Fetching one token, stepped by hand: what is sent, retried, waited for and given up."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from by_hand import CLIENT, Steps, answer, issued, run_dry, token_at
from conftest import SECRET, FakeClock
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import (
    InvalidClientError,
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins._lifecycle.call import Call, Work
from baas_auth_plugins._lifecycle.coordinator import Decision, LocalCoordinator, LocalState
from baas_auth_plugins._lifecycle.effects import (
    ConnectionLostError,
    Flow,
    Outcome,
    RunInThread,
    SendTokenRequest,
    Sleep,
    Waiter,
)
from baas_auth_plugins._lifecycle.fetch import RETRIES, backoff, fetch
from baas_auth_plugins._lifecycle.rate_limit import RateLimiter, RateLimits
from baas_auth_plugins._lifecycle.single_flight import Flight, OutOfTimeError
from baas_auth_plugins._oauth.messages import NetworkError, TokenRequest, TokenResponse
from baas_auth_plugins._oauth.token import Instant, now

LOST = NetworkError("no route")


class FixedSecret:
    """A client secret that never changes."""

    def __init__(self) -> None:
        self.checked = 0

    def secret_for(self, call: Call) -> Flow[str]:
        return SECRET
        yield

    def check_after_refusal(self, call: Call) -> Flow[None]:
        self.checked += 1
        return
        yield


class Gateway:
    """Gives a fetch one prepared answer for each request, and lets it sleep without waiting."""

    def __init__(self, clock: FakeClock, limit: tuple[int, float] | None = None) -> None:
        self.clock = clock
        self.limiter = RateLimiter(limit)
        self.local = LocalState(None, "key")
        self.coordinator = LocalCoordinator(self.local, self.limiter)
        self.secret = FixedSecret()
        self.requests: list[TokenRequest] = []
        self.events: list[Any] = []
        self.latency = 0.0
        self.flight = Flight(Waiter(0), is_urgent=True)

    def work(self, *, urgent: bool = True, max_wait: float = 60, timeout: float = 10, retries: int = RETRIES) -> Work:
        provider = replace(CLIENT.provider, token_rate_limit=self.limiter.limit)
        client = CLIENT._replace(max_wait=max_wait, timeout=timeout, provider=provider)
        call = Call(client, None, None, self.events.append, reads_secret=self.secret)
        token = None if urgent else token_at("old")
        return Work(call, self.flight, token, self.clock.monotonic + max_wait, local=self.local, retries=retries)

    def run(self, answers: Sequence[TokenResponse | Exception], work: Work | None = None, **options: Any) -> Any:
        work, left = work or self.work(**options), list(answers)
        steps = Steps(fetch(work, self.coordinator, self.limiter))
        while not steps.is_over:
            effect = steps.effect
            if isinstance(effect, Sleep):
                self.clock.sleep(effect.seconds)
                steps.go()
                continue
            assert isinstance(effect, SendTokenRequest)
            self.requests.append(effect.request)
            self.clock.advance(self.latency)
            result = left.pop(0)
            if isinstance(result, Exception):
                steps.fail(result)
            else:
                steps.go(result)
        work.call.flush()
        if steps.error is not None:
            raise steps.error
        assert not left, "the flow ended before it had seen everything"
        return steps.value

    @property
    def slept(self) -> list[float]:
        return self.clock.slept


@pytest.fixture
def gateway(clock: FakeClock) -> Gateway:
    return Gateway(clock)


# -- one attempt


def test_lifetime_counts_from_the_moment_of_sending(gateway: Gateway) -> None:
    """What a slow answer took is part of the token's age."""
    gateway.latency = 2.5
    before = now()
    token = gateway.run([issued()])
    assert (token.issued_at, token.monotonic) == before


def test_lifetime_counts_from_the_attempt_that_was_answered(gateway: Gateway) -> None:
    """After retries, the life counts from the request that got the token."""
    gateway.latency = 1
    token = gateway.run([answer(503), LOST, issued()])
    assert Instant(token.issued_at, token.monotonic) == Instant(gateway.clock.wall - 1, gateway.clock.monotonic - 1)


@pytest.mark.parametrize(
    ("timeout", "max_wait", "expected"), [(10, 60, 10), (10, 4, 4), (0.25, 60, 0.25), (10, 0.1, 0.5)]
)
def test_attempt_is_bounded_by_timeout_and_max_wait(
    gateway: Gateway, timeout: float, max_wait: float, expected: float
) -> None:
    """One attempt takes `timeout` at most, and no more than the caller's time; but half a second is always tried."""
    gateway.run([issued()], timeout=timeout, max_wait=max_wait)
    assert gateway.requests[0].timeout == expected


def test_later_attempts_have_less_time(gateway: Gateway) -> None:
    """Each attempt gets the time that the earlier ones and the pauses left."""
    gateway.latency = 8
    with pytest.raises(OutOfTimeError):
        gateway.run([LOST, LOST, LOST], max_wait=20)
    patience = 20.0
    for request, pause in zip(gateway.requests, [*gateway.slept, 0], strict=False):
        assert request.timeout == pytest.approx(max(0.5, min(10, patience)))
        patience -= 8 + pause


@pytest.mark.parametrize("step", [SendTokenRequest, Sleep])
def test_lead_is_held_over_each_slow_step(gateway: Gateway, step: type) -> None:
    """The leader's lease in this process outlasts a token request, and a pause."""
    work = gateway.work()
    steps = Steps(fetch(work, gateway.coordinator, gateway.limiter))
    if step is Sleep:
        steps.go(answer(429, {"Retry-After": "40"}))
    assert isinstance(steps.effect, step)
    seconds = 40 if step is Sleep else 10
    assert gateway.flight.lease_until == gateway.clock.monotonic + seconds + 5


@pytest.mark.parametrize(("urgent", "seconds"), [(False, 0.2), (True, 0.5)])
def test_a_renewal_takes_no_longer_than_its_caller_waits(gateway: Gateway, urgent: bool, seconds: float) -> None:
    """Where a slow vault took most of `timeout`, a renewal ends in time; a caller without a token gets half a second."""
    work = gateway.work(urgent=urgent, max_wait=0.2)
    work.call.sender = lambda _request, _is_wanted: issued()
    steps = Steps(fetch(work, gateway.coordinator, gateway.limiter))
    assert isinstance(steps.effect, RunInThread)
    assert steps.effect.seconds == pytest.approx(seconds)


def test_request_is_sent_in_a_bounded_thread(gateway: Gateway) -> None:
    """With a sender, the whole request is a job in a thread, with `timeout` in total; a late one is a network error."""
    work = gateway.work(urgent=False, timeout=7)
    sent: list[TokenRequest] = []
    work.call.sender = lambda request: (sent.append(request), issued())[1]
    steps = Steps(fetch(work, gateway.coordinator, gateway.limiter))
    assert isinstance(steps.effect, RunInThread)
    assert steps.effect.seconds == 7
    assert sent == []
    steps.go(Outcome(is_timeout=True))
    assert isinstance(steps.error, TokenEndpointUnavailableError)
    assert "no complete answer within 7 s" in str(steps.error)


# -- retries


@pytest.mark.parametrize("failure", [answer(500), answer(502), answer(503), answer(504), LOST], ids=str)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_outage_is_retried(gateway: Gateway, failure: Any, times: int) -> None:
    """Up to three retries after 500, 502, 503, 504 and network errors; the fourth attempt may still succeed."""
    assert gateway.run([failure] * times + [issued("new")]).access_token == "new"
    assert len(gateway.requests) == times + 1
    assert len(gateway.slept) == times
    assert all(0 <= slept <= 0.5 * 2**n for n, slept in enumerate(gateway.slept))


@pytest.mark.parametrize(("failure", "status"), [(answer(500), 500), (answer(503), 503), (LOST, None)])
def test_outage_is_given_up(gateway: Gateway, failure: Any, status: int | None) -> None:
    """After the fourth attempt the error is raised, with the gateway's status if there was one."""
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        gateway.run([failure] * 4)
    assert (caught.value.provider, caught.value.status_code, len(gateway.requests)) == ("bs2", status, 4)


@pytest.mark.parametrize("status", [501, 505, 511, 599])
def test_other_server_errors_are_not_retried(gateway: Gateway, status: int) -> None:
    """A 5xx that will not go away by itself is raised at once."""
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        gateway.run([answer(status)])
    assert caught.value.status_code == status


def test_certificate_error_is_not_retried(gateway: Gateway) -> None:
    """TLS would refuse the same certificate again; the message ends with the advice."""
    lost = NetworkError("certificate verify failed", is_certificate=True, advice="Pass your CA as session=")
    with pytest.raises(TokenEndpointUnavailableError, match=r"certificate verify failed.*Pass your CA as session="):
        gateway.run([lost])
    assert gateway.slept == []


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (answer(500), TokenEndpointUnavailableError),
        (LOST, TokenEndpointUnavailableError),
        (answer(429), RateLimitError),
        (answer(429, {"Retry-After": "1"}), RateLimitError),
    ],
    ids=["500", "network", "429", "429 with Retry-After"],
)
def test_renewal_is_one_attempt(gateway: Gateway, failure: Any, kind: type[Exception]) -> None:
    """While a token is valid, a failed renewal costs one attempt and no pause."""
    with pytest.raises(kind):
        gateway.run([failure], urgent=False)
    assert gateway.slept == []


@pytest.mark.parametrize("failure", [answer(500), LOST], ids=["500", "network"])
def test_attempt_after_a_pause_is_one(gateway: Gateway, failure: Any) -> None:
    """After the pause of an outage one attempt is made, without retries."""
    with pytest.raises(TokenEndpointUnavailableError):
        gateway.run([failure], retries=0)
    assert gateway.slept == []


def test_network_error_keeps_its_cause(gateway: Gateway) -> None:
    """What the client raised is the cause of what the caller sees."""
    error, cause = NetworkError("no route"), OSError(113, "No route to host")
    error.__cause__ = cause
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        gateway.run([error], urgent=False)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [ConnectionLostError(), KeyboardInterrupt()], ids=["connection lost", "interrupt"])
def test_flow_that_cannot_go_on_yields_nothing_more(clock: FakeClock, error: BaseException) -> None:
    """Once the client has closed the flow, it asks for nothing; the request counts against the rate limit."""
    gateway = Gateway(clock, (1, 60))
    steps = Steps(fetch(gateway.work(), gateway.coordinator, gateway.limiter))
    with suppress(KeyboardInterrupt):
        steps.fail(error)
    assert steps.error is error
    assert gateway.limiter.wait(now()) == 60


def test_retry_beyond_the_deadline_is_not_begun(gateway: Gateway) -> None:
    """No caller sleeps for an attempt that would come after its `max_wait`."""
    gateway.latency = 1
    with pytest.raises(OutOfTimeError) as caught:
        gateway.run([answer(503)], max_wait=1)
    assert isinstance(caught.value.error, TokenEndpointUnavailableError)
    assert gateway.slept == []


def test_one_call_sends_six_requests_at_most(gateway: Gateway) -> None:
    """Whatever the mix of 429s and outages, the sixth request is the last one."""
    limited, down = answer(429, {"Retry-After": "1"}), answer(503)
    with pytest.raises(RateLimitError):
        gateway.run([limited, down, limited, down, down, limited])
    assert len(gateway.requests) == 6


def test_six_requests_of_one_call_in_several_flights(gateway: Gateway) -> None:
    """What a call sent in an earlier flight counts: a call that leads again has no new budget."""
    work = gateway.work()
    with pytest.raises(TokenEndpointUnavailableError):
        gateway.run([answer(503)] * 4, work)
    with pytest.raises(TokenEndpointUnavailableError):
        gateway.run([answer(503)] * 2, work)
    assert len(gateway.requests) == 6


@given(st.integers(1, 60))
def test_backoff_is_exponential_with_full_jitter(failures: int) -> None:
    """Anything between nothing and 0.5 s doubled with each failure."""
    samples = [backoff(failures) for _ in range(200)]
    longest = 0.5 * 2 ** (failures - 1)
    assert all(0 <= sample <= longest for sample in samples)
    assert 0.3 * longest < statistics.mean(samples) < 0.7 * longest


def test_refusal_is_raised_at_once(gateway: Gateway) -> None:
    """A refusal is never retried; for `invalid_client` the secret is read again, once."""
    for response, kind in ((answer(401), InvalidClientError), (answer(400), TokenEndpointError)):
        with pytest.raises(kind):
            gateway.run([response])
    assert (len(gateway.requests), gateway.slept, gateway.secret.checked) == (2, [], 1)


def test_response_that_was_refused_names_the_gateway(gateway: Gateway) -> None:
    """What a client found wrong with the response, such as its length, is raised with the provider and the host."""
    with pytest.raises(InvalidTokenResponseError, match=r"bs2: the response of gateway\.example .* 1 MiB") as caught:
        gateway.run([InvalidTokenResponseError("longer than 1 MiB", status_code=200)])
    assert (caught.value.provider, caught.value.status_code) == ("bs2", 200)


# -- Retry-After


def retry_after_cases() -> list[Any]:
    wall = FakeClock().wall
    late = {"Retry-After": formatdate(wall - 3580, usegmt=True), "Date": formatdate(wall - 3600, usegmt=True)}
    return [
        pytest.param({"Retry-After": "30"}, {}, 30, id="seconds"),
        pytest.param({"retry-after": " 30 "}, {}, 30, id="blanks"),
        pytest.param({"Retry-After": "1.5"}, {}, 1.5, id="fraction"),
        pytest.param({"Retry-After": formatdate(wall + 20, usegmt=True)}, {}, 20, id="date"),
        pytest.param(late, {}, 20, id="the gateway's own clock, which is late"),
        pytest.param({}, {"retry_after": 30}, 30, id="body"),
        pytest.param({"Retry-After": "5"}, {"retry_after": 30}, 5, id="header first"),
        pytest.param({"Retry-After": "soon"}, {"retry_after": "30"}, 30, id="body after nonsense"),
    ]


@pytest.mark.parametrize(("headers", "content", "seconds"), retry_after_cases())
def test_retry_after_is_waited_for(
    gateway: Gateway, headers: dict[str, str], content: dict[str, Any], seconds: float
) -> None:
    """A 429 is retried after exactly the time that it names: header, as seconds or date, then body."""
    assert gateway.run([answer(429, headers, error="E00102", **content), issued()])
    assert gateway.slept == [pytest.approx(seconds)]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Retry-After": "nonsense"}, {"Retry-After": "0"}, {"Retry-After": formatdate(0, usegmt=True)}],
    ids=["none", "nonsense", "zero", "past"],
)
@pytest.mark.parametrize("body", [None, True, -5, [], {}, "x", 1e400])
def test_without_a_usable_retry_after_it_backs_off(gateway: Gateway, headers: dict[str, str], body: object) -> None:
    """A 429 that does not say when is retried as an outage is."""
    assert gateway.run([answer(429, headers, retry_after=body), issued()])
    assert len(gateway.slept) == 1
    assert gateway.slept[0] <= 0.5


def test_retry_after_is_never_less_than_the_back_off(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that keeps saying 0.1 s is asked ever more rarely."""
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    gateway.run([*[answer(429, {"Retry-After": "0.1"})] * 3, issued()])
    assert gateway.slept == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("retry_after", "shown"), [("61", 61), ("300", 300), ("301", 300), ("9" * 400, 300)])
def test_retry_after_that_does_not_fit_is_raised_at_once(gateway: Gateway, retry_after: str, shown: float) -> None:
    """A wait longer than `max_wait` is not begun; the error says how long it is, 300 s at most."""
    with pytest.raises(OutOfTimeError) as caught:
        gateway.run([answer(429, {"Retry-After": retry_after})], max_wait=60)
    error = caught.value.error
    assert isinstance(error, RateLimitError)
    assert (error.retry_after, error.status_code, gateway.slept) == (shown, 429, [])


def test_server_error_with_retry_after_is_obeyed(gateway: Gateway) -> None:
    """A 503 may name its time, too (RFC 9110 section 10.2.3)."""
    gateway.run([answer(503, {"Retry-After": "17"}), issued()])
    assert gateway.slept == [17]


def test_clock_that_stands_still_ends_the_flow(gateway: Gateway) -> None:
    """In a test that freezes all clocks, a wait that is never over is not repeated for ever."""
    steps = Steps(fetch(gateway.work(max_wait=60), gateway.coordinator, gateway.limiter))
    waits = 0
    while not steps.is_over and waits < 100:
        waits += isinstance(steps.effect, Sleep)
        steps.go(answer(429, {"Retry-After": "25"}) if isinstance(steps.effect, SendTokenRequest) else None)
    assert isinstance(steps.error, OutOfTimeError)
    assert waits == 2


def test_each_limit_is_an_event(gateway: Gateway) -> None:
    """A listener hears of each 429, and of the limiter that holds a call back."""
    with pytest.raises(OutOfTimeError):
        gateway.run([answer(429, {"Retry-After": "3"}), answer(429, {"Retry-After": "90"})])
    with pytest.raises(OutOfTimeError):
        gateway.run([])
    assert [(type(event).__name__, event.retry_after) for event in gateway.events] == [
        ("RateLimited", 3),
        ("RateLimited", 90),
        ("RateLimited", 90),
    ]


@pytest.mark.parametrize("urgent", [True, False])
def test_running_retry_after_holds_for_every_call(gateway: Gateway, urgent: bool) -> None:
    """While a Retry-After runs, no other call sends: it waits, or gets the error with the time to wait."""
    with pytest.raises(RateLimitError):
        gateway.run([answer(429, {"Retry-After": "30"})], urgent=False)
    gateway.clock.advance(10)
    gateway.requests.clear()
    if urgent:
        gateway.run([issued()])
        assert gateway.slept == [20]
    else:
        with pytest.raises(RateLimitError) as caught:
            gateway.run([], urgent=False)
        assert (caught.value.retry_after, caught.value.status_code) == (20, None)
        assert gateway.requests == []


def test_retry_after_of_the_future_is_void(gateway: Gateway) -> None:
    """A wall clock that is set back makes the moment void: no call waits for longer than it should."""
    with pytest.raises(RateLimitError):
        gateway.run([answer(429, {"Retry-After": "30"})], urgent=False)
    gateway.clock.step_wall(-3600)
    gateway.run([issued()])
    assert gateway.slept == []


# -- the provider's limit


def test_limit_counts_retries_and_failures(clock: FakeClock) -> None:
    """Retries are token requests, too: ten of them within a minute, and the eleventh waits for its turn."""
    gateway = Gateway(clock, (10, 60))
    for _ in range(2):
        with pytest.raises(TokenEndpointUnavailableError):
            gateway.run([answer(500)] * 4)
    gateway.run([LOST, issued()])
    started = clock.monotonic
    clock.slept.clear()
    gateway.run([issued()], max_wait=120)
    assert clock.slept != []
    assert 50 < clock.monotonic - started <= 60
    assert len(gateway.requests) == 11


def test_limit_that_does_not_fit_is_raised_at_once(clock: FakeClock) -> None:
    """The local limit is an error like the gateway's, without a status, and costs no request."""
    gateway = Gateway(clock, (1, 60))
    gateway.run([issued()])
    with pytest.raises(OutOfTimeError) as caught:
        gateway.run([], max_wait=30)
    error = caught.value.error
    assert isinstance(error, RateLimitError)
    assert (error.status_code, error.retry_after) == (None, pytest.approx(60))
    assert "token limit reached (1 requests in 60 s); next request possible in 60 s" in str(error)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("step", [3600, -3600])
def test_limit_reads_the_monotonic_clock_alone(clock: FakeClock, step: float) -> None:
    """A wall clock that is stepped by an hour makes no room, and no longer wait."""
    gateway = Gateway(clock, (1, 60))
    gateway.run([issued()])
    clock.step_wall(step)
    gateway.run([issued()])
    assert clock.slept == [pytest.approx(60)]


def test_answer_counts_from_when_it_came(clock: FakeClock) -> None:
    """However late the answer, the next request waits a whole window from there: the gateway may have counted it so."""
    gateway = Gateway(clock, (1, 60))
    gateway.latency = 9
    gateway.run([issued()])
    assert gateway.limiter.wait(now()) == 60


@pytest.mark.parametrize(
    ("answers", "limit", "waited"),
    [
        pytest.param([answer(429, {"Retry-After": "1"}), issued()], None, [1.0], id="Retry-After of a second"),
        pytest.param([answer(429, {"Retry-After": "45"}), issued()], None, [45.0], id="Retry-After"),
        pytest.param([answer(503, {"Retry-After": "2"}), issued()], None, [2.0], id="503 with Retry-After"),
        pytest.param([answer(429), issued()], None, [], id="less than a second"),
    ],
)
def test_waits_are_logged(
    gateway: Gateway,
    answers: list[Any],
    limit: Any,
    waited: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each wait of a second or more is logged at INFO, with its reason and its length; shorter ones are not."""
    with caplog.at_level(logging.INFO, "baas_auth_plugins"):
        gateway.run(answers)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert messages == [
        f"bs2: gateway.example answered {answers[0].status_code}; waiting {seconds:.1f} s before the next token request"
        for seconds in waited
    ]


def test_wait_for_the_local_limit_is_logged(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """The log says that the limit is the reason, and for how long the call waits."""
    gateway = Gateway(clock, (1, 60))
    gateway.run([issued()])
    clock.advance(18)
    with caplog.at_level(logging.INFO, "baas_auth_plugins"):
        gateway.run([issued()])
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert "token limit reached (1 requests in 60 s)" in message
    assert "waiting 42.0 s" in message


def test_retry_after_of_too_long_is_logged(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """A Retry-After of more than 300 s is a WARNING with both numbers."""
    with pytest.raises(OutOfTimeError), caplog.at_level(logging.WARNING, "baas_auth_plugins"):
        gateway.run([answer(429, {"Retry-After": "86400"})])
    assert "Retry-After 86400 s; 300 s count" in caplog.text


@given(
    st.integers(1, 12),
    st.floats(1, 60),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5), st.booleans()), max_size=60),
)
def test_limit_holds_in_every_window(most: int, window: float, calls: list[tuple[float, float, bool]]) -> None:
    """However calls come, and however late the gateway counts them, no window sees more than the limit."""
    limiter, at, counted = RateLimiter((most, window)), 0.0, []
    for pause, latency, is_patient in calls:
        at += pause
        wait = limiter.wait(Instant(0, at))
        if wait and not is_patient:
            continue
        if wait:
            at += wait + 1e-9
            assert limiter.wait(Instant(0, at)) == 0, "the wait that it named was enough"
        number, sent = limiter.new_request(), at
        limiter.count(number, Instant(0, at))
        at += latency
        limiter.count(number, Instant(0, at))
        counted.append((sent, at))
    for first, last in zip(counted, counted[most:], strict=False):
        assert last[0] >= first[1] + window - 1e-6


def test_no_limit_slows_nothing_down() -> None:
    """Without a declared limit nothing is counted, but a Retry-After holds all the same."""
    limiter, at = RateLimiter(None), Instant(0, 0)
    for _ in range(100):
        limiter.count(limiter.new_request(), at)
    assert limiter.wait(at) == 0
    assert not limiter.limits.counted
    limiter.block(5, at)
    assert limiter.wait(Instant(1, 1)) == 4


def test_shorter_retry_after_does_not_replace_a_longer_one() -> None:
    """Of two answers that say when, the later moment counts."""
    limits = RateLimits().blocking(30, Instant(0, 0)).blocking(5, Instant(1, 1))
    assert limits.wait(None, Instant(1, 1)) == 29


instants = st.floats(0, 100).map(lambda seconds: Instant(seconds, seconds))
rate_limits = st.builds(
    lambda counted, seconds, at: RateLimits(counted).blocking(seconds, at),
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 100), max_size=5),
    st.floats(0, 50),
    instants,
)


@given(rate_limits, rate_limits)
def test_merged_limits_wait_for_both(one: RateLimits, other: RateLimits) -> None:
    """What two processes know together never allows a request sooner than what each knows alone."""
    at = Instant(100.0, 100.0)
    wait = one.merged(other, at).wait((2, 60.0), at)
    assert wait >= max(one.wait((2, 60.0), at), other.wait((2, 60.0), at)) - 1e-9
    assert one.merged(None, at) == one


# -- the coordinator's word


def test_adopted_token_needs_no_request(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process got a token, or is about to, nothing is sent."""

    def lead_or_adopt(self: Any, errand: Any) -> Flow[Decision]:
        return Decision.ADOPTED
        yield

    monkeypatch.setattr(LocalCoordinator, "lead_or_adopt", lead_or_adopt)
    assert gateway.run([]) is None


def test_lead_is_asked_for_before_each_attempt(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease covers one token request: before a retry the coordinator decides anew."""
    decisions = [Decision.LEAD, Decision.ADOPTED]

    def lead_or_adopt(self: Any, errand: Any) -> Flow[Decision]:
        return decisions.pop(0)
        yield

    monkeypatch.setattr(LocalCoordinator, "lead_or_adopt", lead_or_adopt)
    assert gateway.run([answer(503)]) is None
    assert decisions == []


def test_wait_before_a_retry_is_published(gateway: Gateway) -> None:
    """Other processes see the pause before a retry in the state, so none of them sends meanwhile."""
    steps = Steps(fetch(gateway.work(), gateway.coordinator, gateway.limiter))
    steps.go(answer(429, {"Retry-After": "40"}))
    assert isinstance(steps.effect, Sleep)
    assert gateway.local.value.blocked.remaining(now()) == 40


def test_flows_are_run_dry_by_the_helper(gateway: Gateway) -> None:
    """The helper for other tests gives answers in order, and lets the clock pass."""
    token = run_dry(fetch(gateway.work(), gateway.coordinator, gateway.limiter), [LOST, issued("x")], gateway.clock)
    assert token.access_token == "x"
