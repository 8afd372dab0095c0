"""The journeys of one API request, stepped by hand without any network: which effects, in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from by_hand import Steps, answer, issued
from conftest import FakeClock
from processes import Dict, Gateway, Process, Request

from baas_auth_plugins import InvalidClientError, RateLimitError, TokenEndpointUnavailableError
from baas_auth_plugins._http.flow import (
    Answer,
    ClosedAtAnswerError,
    SendRequest,
    after_answer,
    attach,
    authenticate,
    closed_at_answer,
)
from baas_auth_plugins._lifecycle.credentials import Acquired
from baas_auth_plugins._lifecycle.effects import (
    ConnectionLostError,
    ReadResponse,
    RunInThread,
    SendTokenRequest,
    Sleep,
    Wait,
)
from baas_auth_plugins._oauth.messages import NetworkError


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def process(clock: FakeClock, gateway: Gateway) -> Process:
    return Process(clock, gateway)


@pytest.fixture
def member(clock: FakeClock, gateway: Gateway) -> Process:
    """A process that shares a cache."""
    return Process(clock, gateway, Dict(lambda: clock.monotonic))


def effects(process: Process, request: Request | None = None) -> list[str]:
    """Return the names of the effects of one call, in order."""
    steps, found = process.start(request), []
    while not steps.is_over:
        found.append(steps.kind)
        process.step(steps)
    if steps.error is not None:
        raise steps.error
    return [name for name in found if name is not None]


def events(process: Process) -> list[tuple[str, Any]]:
    """Return what was emitted since this was asked last: the kind of each event, and its reason."""
    found = [(type(event).__name__, getattr(event, "reason", None)) for event in process.events]
    process.events.clear()
    return found


# -- the four journeys


def test_cached(process: Process) -> None:
    """With a fresh token the request is sent, and that is all."""
    process.call()
    events(process)
    assert effects(process) == ["SendRequest"]
    assert events(process) == []


def test_cold(process: Process) -> None:
    """Without a token one is requested, and then the request is sent with it."""
    request = Request()
    assert effects(process, request) == ["SendTokenRequest", "SendRequest"]
    assert request.sent == ["token-1"]
    assert events(process) == [("TokenMinted", "cold")]


def test_401(process: Process, gateway: Gateway) -> None:
    """After a 401 its body is read before anything is waited for; then a token is requested, and the request replayed."""
    process.call()
    gateway.revoke()
    events(process)
    request = Request()
    assert effects(process, request) == ["SendRequest", "ReadResponse", "SendTokenRequest", "SendRequest"]
    assert (request.sent, request.statuses) == (["token-1", "token-2"], [401, 200])
    assert events(process) == [("TokenRejected", None), ("TokenMinted", "rejected"), ("RequestReplayed", None)]


def test_renewal(process: Process, clock: FakeClock) -> None:
    """The first call after half of BS2's 300 s renews inline, in one attempt, and is sent with the new token."""
    process.call()
    clock.advance(151)
    events(process)
    request = Request()
    assert effects(process, request) == ["SendTokenRequest", "SendRequest"]
    assert request.sent == ["token-2"]
    assert events(process) == [("TokenMinted", "due")]


def test_cold_in_a_fleet(member: Process) -> None:
    """The cold call takes the lease first, and publishes the token before the request is sent."""
    assert effects(member) == ["RunInThread", "SendTokenRequest", "RunInThread", "SendRequest"]


def test_401_in_a_fleet(member: Process, gateway: Gateway) -> None:
    """The 401 is read before the cache is; then lease, token request, publication, replay, and its acceptance."""
    member.call()
    gateway.revoke()
    assert effects(member) == [
        "SendRequest",
        "ReadResponse",
        "RunInThread",
        "ReadResponse",
        "RunInThread",
        "SendTokenRequest",
        "RunInThread",
        "SendRequest",
        "RunInThread",
    ]


def test_rejected_response_is_read_before_any_wait(member: Process, gateway: Gateway) -> None:
    """A 401 that is not read keeps its connection, and a crowd of them would starve the renewal."""
    member.call()
    gateway.revoke()
    names = effects(member)
    after = names[names.index("SendRequest") + 1 :]
    assert after[0] == "ReadResponse"


# -- other ends


def test_foreign_origin_passes_through(process: Process) -> None:
    """A request to another origin gets no token, and its 401 is no concern of ours."""
    request = Request()
    request.origin = ("https", "evil.example", 443)
    steps = process.start(request)
    assert isinstance(steps.effect, SendRequest)
    assert (steps.effect.acquired, request.authorization) == (None, None)
    steps.go(Answer(401, request))
    assert steps.is_over
    assert process.gateway.requests == 0


def redirected_elsewhere(request: Request) -> None:
    request.origin = ("https", "evil.example", 443)


def other_authorization(request: Request) -> None:
    request.authorization = "Bearer somebody-else"


@pytest.mark.parametrize("change", [redirected_elsewhere, other_authorization])
def test_401_that_is_not_ours(process: Process, change: Callable[[Request], None]) -> None:
    """A 401 of another origin, or to another token than ours, is returned as it is."""
    process.call()
    steps = process.start()
    last = Request()
    last.authorization = "Bearer token-1"
    change(last)
    steps.go(Answer(401, last))
    assert steps.is_over
    assert process.local.value.token is not None
    assert process.gateway.requests == 1


@pytest.mark.parametrize("left", [None, "Basic bmV0cmM6cGFzc3dvcmQ="], ids=["a redirect", ".netrc"])
def test_token_that_was_taken_off_is_put_on_again(process: Process, left: str | None) -> None:
    """Where a redirect or ``.netrc`` took the token off, the 401 is answered by one replay with the same token."""
    process.call()
    steps = process.start()
    last = Request()
    last.authorization = left
    steps.go(Answer(401, last))
    assert isinstance(steps.effect, ReadResponse)
    steps.go()
    assert isinstance(steps.effect, SendRequest)
    assert last.authorization == "Bearer token-1"
    steps.go(Answer(401, last))
    assert steps.is_over, "there is one replay at most"
    assert (process.gateway.requests, process.local.value.rejection.count) == (1, 0)


@pytest.mark.parametrize("second", [200, 401, 403, 500])
def test_second_answer_is_the_last(process: Process, gateway: Gateway, second: int) -> None:
    """Whatever the replay's answer is, it is returned."""
    process.call()
    gateway.revoke()
    steps = process.until(process.start(), ReadResponse)
    steps = process.until(steps, SendRequest)
    assert isinstance(steps.effect, SendRequest)
    request = steps.effect.request
    steps.go(Answer(second, request))
    assert steps.is_over
    assert (process.local.value.rejection.count == 1) is (second == 401)


@pytest.mark.parametrize("status", [200, 400, 403, 404, 429, 500, 503])
def test_other_statuses_are_returned(process: Process, status: int) -> None:
    """Only a 401 says anything about the token."""
    process.call()
    steps = process.start()
    assert isinstance(steps.effect, SendRequest)
    steps.go(Answer(status, steps.effect.request))
    assert steps.is_over
    assert process.gateway.requests == 1


def test_body_that_cannot_be_sent_again(process: Process, gateway: Gateway) -> None:
    """The 401 is returned unread, and the token is dropped for the calls that follow."""
    process.call()
    gateway.revoke()
    events(process)
    request = Request()
    request.is_replayable = False
    assert effects(process, request) == ["SendRequest"]
    assert events(process) == [("TokenRejected", "body")]
    assert process.local.value.token is None
    assert process.call() == 200


def test_token_of_another_caller_is_replayed_with(process: Process, gateway: Gateway) -> None:
    """Where another token is cached by now, the replay takes it, without a token request."""
    process.call()
    slow = process.start(request := Request())
    gateway.revoke()
    process.call()
    process.finish(slow)
    assert (request.sent, request.statuses) == (["token-1", "token-2"], [401, 200])
    assert gateway.requests == 2


def test_error_of_the_token_request_is_raised(process: Process, gateway: Gateway) -> None:
    """If there is no other token to be had, the caller gets the error, for the 401 would hide the cause."""
    process.call()
    gateway.revoke()
    gateway.answers = [answer(401, error="invalid_client")]
    with pytest.raises(InvalidClientError):
        process.call()


@pytest.mark.parametrize(
    ("status", "is_dropped"), [(401, True), (403, False), (0, False)], ids=["401", "403", "no answer"]
)
def test_hook_that_raises_at_the_answer(process: Process, status: int, is_dropped: bool) -> None:
    """A response hook that raises closes the flow: at a 401 the token is dropped for the calls that follow."""
    process.call()
    events(process)
    steps = process.start()
    steps.fail(ClosedAtAnswerError(status))
    assert isinstance(steps.error, ClosedAtAnswerError)
    assert (process.local.value.token is None) is is_dropped
    assert events(process) == ([("TokenRejected", "body")] if is_dropped else [])


def test_hook_that_raises_at_the_replay(process: Process, gateway: Gateway) -> None:
    """A hook that raises at the second 401 starts the back-off, as a 401 that is returned does."""
    process.call()
    gateway.revoke()
    steps = process.until(process.start(), ReadResponse)
    steps = process.until(steps, SendRequest)
    steps.fail(ClosedAtAnswerError(401))
    assert isinstance(steps.error, ClosedAtAnswerError)
    assert process.local.value.rejection.count == 1
    assert process.local.value.token is not None


def test_journey_in_two_halves(process: Process, gateway: Gateway) -> None:
    """Requests runs the same flow in two parts: what is before the answer, and what is after it."""
    request = Request()
    acquired = process.run(attach(process.parts, request, None))
    assert request.authorization == "Bearer token-1"
    gateway.revoke()
    process.run(after_answer(process.parts, acquired, Answer(401, request), None))
    assert request.sent == ["token-2"]
    assert acquired == Acquired(acquired.token, is_minted=True)
    closed_at_answer(process.parts, acquired, 401)
    assert process.local.value.token is not None, "a late 401 does not drop the successor"


# -- renewals while a token is valid


@pytest.mark.parametrize(
    "failure",
    [answer(503), answer(400), answer(429, {"Retry-After": "9"}), NetworkError("no route")],
    ids=["503", "400", "429", "network"],
)
@pytest.mark.parametrize("age", [160, 280], ids=["stale", "critical"])
def test_failed_renewal_costs_nothing_but_one_attempt(
    process: Process, gateway: Gateway, clock: FakeClock, failure: Any, age: float
) -> None:
    """The old token is served, the failure is an event, and the next attempt waits for its pause."""
    process.call()
    clock.advance(age)
    events(process)
    gateway.answers = [failure]
    before = clock.monotonic
    assert effects(process, request := Request()) == ["SendTokenRequest", "SendRequest"]
    assert (request.sent, clock.monotonic) == (["token-1"], before)
    assert ("RenewalFailed", None) in events(process)
    assert effects(process, request := Request()) == ["SendRequest"]
    clock.advance(10)
    process.call(request := Request())
    assert request.sent == ["token-2"]


def test_stale_token_is_renewed_by_one(process: Process, clock: FakeClock) -> None:
    """While one caller renews, all others are served the old token at once."""
    process.call()
    clock.advance(160)
    renewing = process.start()
    assert isinstance(renewing.effect, SendTokenRequest)
    for _ in range(3):
        assert effects(process, request := Request()) == ["SendRequest"]
        assert request.sent == ["token-1"]
    process.finish(renewing)


def test_critical_token_is_waited_for(process: Process, clock: FakeClock) -> None:
    """In the last 30 s of 300 everybody joins one renewal, and is sent with its token."""
    process.call()
    clock.advance(275)
    renewing, waiting = process.start(), process.start(request := Request())
    assert isinstance(renewing.effect, SendTokenRequest)
    assert isinstance(waiting.effect, Wait)
    process.finish(renewing)
    waiting.go()
    process.finish(waiting)
    assert request.sent == ["token-2"]
    assert process.gateway.requests == 2


def test_expired_token_is_never_sent(process: Process, gateway: Gateway, clock: FakeClock) -> None:
    """From 5 s before expiry, no failure makes the old token be sent: the error is raised."""
    process.call()
    clock.advance(295.1)
    gateway.answers = [gateway.down()] * 4
    request = Request()
    with pytest.raises(TokenEndpointUnavailableError):
        process.call(request)
    assert request.sent == []


def test_crowd_gets_one_token(process: Process) -> None:
    """Of a hundred callers without a token one requests it, and all are sent with it."""
    requests = [Request() for _ in range(100)]
    leader, *waiting = [process.start(request) for request in requests]
    assert {steps.kind for steps in waiting} == {"Wait"}
    process.finish(leader)
    for steps in waiting:
        steps.go()
        process.finish(steps)
    assert {token for request in requests for token in request.sent} == {"token-1"}
    assert process.gateway.requests == 1


def test_crowd_of_401s_gets_one_token(process: Process, gateway: Gateway) -> None:
    """Of a hundred requests that got a 401 at once, one has a token requested, and all are replayed with it."""
    process.call()
    requests = [Request() for _ in range(100)]
    flying = [process.start(request) for request in requests]
    gateway.revoke()
    for steps in flying:
        process.step(steps)  # each gets its 401
    assert {steps.kind for steps in flying} == {"ReadResponse"}
    for steps in flying:
        steps.go()
    assert sorted(str(steps.kind) for steps in flying) == ["SendTokenRequest", *["Wait"] * 99]
    leader = next(steps for steps in flying if steps.kind == "SendTokenRequest")
    process.finish(leader)
    for steps in flying:
        if not steps.is_over:
            steps.go()
            process.finish(steps)
    assert all(request.statuses == [401, 200] for request in requests)
    assert gateway.requests == 2


# -- flows that end early


@pytest.mark.parametrize("end", [Steps.close, lambda steps: steps.fail(ConnectionLostError())], ids=["closed", "lost"])
@pytest.mark.parametrize("kind", [SendTokenRequest, Sleep, RunInThread], ids=lambda kind: kind.__name__)
def test_no_end_leaves_a_lead_behind(
    process: Process, member: Process, gateway: Gateway, end: Callable[[Steps], object], kind: type
) -> None:
    """Wherever a caller is cancelled or loses its connection, the next one gets its token without waiting for a lead."""
    caller = member if kind is RunInThread else process
    gateway.answers = [answer(429, {"Retry-After": "3"})] if kind is Sleep else []
    steps = caller.until(caller.start(), kind)
    end(steps)
    assert not caller.source._flights.is_busy
    assert caller.call() == 200


def test_rate_limit_is_waited_for_within_max_wait(process: Process, gateway: Gateway, clock: FakeClock) -> None:
    """A Retry-After that fits in `max_wait` is slept, one that does not is raised at once."""
    gateway.answers = [answer(429, {"Retry-After": "30"})]
    assert effects(process) == ["SendTokenRequest", "Sleep", "SendTokenRequest", "SendRequest"]
    process.source.reset()
    gateway.answers = [answer(429, {"Retry-After": "61"})]
    before = clock.monotonic
    with pytest.raises(RateLimitError):
        process.call()
    assert clock.monotonic == before


def test_401_during_a_rate_limit_is_returned(process: Process, gateway: Gateway, clock: FakeClock) -> None:
    """While token requests are rate-limited no new token can be had: the 401 is returned, and the token stays."""
    process.call()
    clock.advance(160)
    gateway.answers = [answer(429, {"Retry-After": "100"})]
    process.call()
    gateway.revoke()
    events(process)
    assert effects(process, request := Request()) == ["SendRequest"]
    assert request.statuses == [401]
    assert events(process)[-1:] == [("TokenRejected", "rate limit")]
    assert process.local.value.token is not None


def test_flow_needs_no_client(process: Process) -> None:
    """The flow of a request is a generator that any driver can step."""
    flow = authenticate(process.parts, request := Request(), None)
    effect = next(flow)
    assert isinstance(effect, SendTokenRequest)
    effect = flow.send(issued("by-hand"))
    assert isinstance(effect, SendRequest)
    assert request.authorization == "Bearer by-hand"
    with pytest.raises(StopIteration):
        flow.send(Answer(200, request))
