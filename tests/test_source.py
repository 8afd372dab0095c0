"""Whatever happens in whatever order, a token's source keeps its rules: a state machine that Hypothesis drives.

The simulation draws its troubles at random; here Hypothesis searches for the shortest sequence that breaks a rule.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from by_hand import CLIENT, Steps, answer, faked_clock, issued, run_dry, token_at
from conftest import SECRET, FakeClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baas_auth_plugins import InvalidClientError, MemoryTokenCache, RateLimitError, Token, TokenEndpointError
from baas_auth_plugins._lifecycle.call import Call
from baas_auth_plugins._lifecycle.coordinator import LocalCoordinator, LocalState
from baas_auth_plugins._lifecycle.effects import ConnectionLostError, Flow, SendTokenRequest, Sleep, Wait
from baas_auth_plugins._lifecycle.rate_limit import RateLimiter
from baas_auth_plugins._lifecycle.source import TokenSource
from baas_auth_plugins._lifecycle.state import Verdict
from baas_auth_plugins._oauth.client import OAuthClient
from baas_auth_plugins._oauth.messages import NetworkError
from baas_auth_plugins._oauth.token import now

REFUSALS = {
    "401": answer(401, error="invalid_client"),
    "429": answer(429, {"Retry-After": "7"}),
    "503": answer(503),
    "garbage": answer(200),
}
CLIENTS = (CLIENT, CLIENT._replace(leeway=5.0, max_wait=8.0), CLIENT._replace(leeway=0.0, timeout=2.0))


class FixedSecret:
    """A client secret that never changes."""

    def secret_for(self, call: Call) -> Flow[str]:
        return SECRET
        yield

    def check_after_refusal(self, call: Call) -> Flow[None]:
        return
        yield


def call_of(client: OAuthClient = CLIENT, rejected: Token | None = None) -> Call:
    return Call(client, None, None, None, reads_secret=FixedSecret(), rejected=rejected)


def source_of(cache: MemoryTokenCache | None = None, limit: tuple[int, float] | None = None) -> TokenSource:
    """Return the source of one key, over a cache in memory."""
    limiter = RateLimiter(limit)
    local = LocalState(MemoryTokenCache() if cache is None else cache, "key")
    return TokenSource("bs2", "key", local, LocalCoordinator(local, limiter), limiter)


class Caller(Steps):
    """One caller that needs a token."""

    def __init__(self, source: TokenSource, client: OAuthClient, rejected: Token | None = None) -> None:
        self.call = call_of(client, rejected)
        self.due = 0.0
        super().__init__(source.acquire(self.call))


class SourceMachine(RuleBasedStateMachine):
    """One source, callers of three kinds, and a gateway that answers when and what Hypothesis likes."""

    @initialize(life=st.sampled_from((60, 300, 3600)), limit=st.sampled_from((None, (3, 60))))
    def start(self, life: int, limit: tuple[int, float] | None) -> None:
        """A process begins, with nothing cached."""
        self.stack = ExitStack()
        self.clock = self.stack.enter_context(faked_clock())
        self.life, self.limit = life, limit
        self.cache = MemoryTokenCache()
        self.source = source_of(self.cache, limit)
        self.callers: list[Caller] = []
        self.served: list[Token] = []
        self.answered: list[float] = []
        self.blocked_until = 0.0
        self.left_behind: list[Caller] = []
        self.stepped = False
        self.issued = 0
        self.generation = 0

    # What callers do.

    @rule(client=st.sampled_from(CLIENTS))
    def need(self, client: OAuthClient) -> None:
        """A caller needs a token."""
        self._settle(Caller(self.source, client))

    @precondition(lambda self: self.served)
    @rule(client=st.sampled_from(CLIENTS), replayable=st.booleans(), data=st.data())
    def reject(self, client: OAuthClient, replayable: bool, data: st.DataObject) -> None:
        """The API answers 401 to a token that was served, lately or long ago; the caller may need another one."""
        token = data.draw(st.sampled_from(self.served[-3:]))
        before = self.source.local.value.token
        call = call_of(client)
        steps = Steps(self.source.rejected(call, token, is_replayable=replayable))
        assert steps.is_over, "a process alone waits for nothing after a 401"
        after = self.source.local.value.token
        assert after is before or (after is None and before is not None and before.access_token == token.access_token)
        if steps.value:
            assert replayable
            self._settle(Caller(self.source, client, token))

    @precondition(lambda self: self.served)
    @rule(outcome=st.sampled_from(("accepted", "rejected", "closed")), data=st.data())
    def verdict(self, outcome: str, data: st.DataObject) -> None:
        """The replay of a caller that had a token requested is accepted or rejected; late ones, too."""
        token = data.draw(st.sampled_from(self.served[-3:]))
        if outcome == "accepted":
            assert Steps(self.source.accepted(token)).is_over
            state = self.source.local.value
            if state.token is not None and state.token.access_token == token.access_token:
                assert not state.rejection.remaining(now())
        elif outcome == "rejected":
            assert Steps(self.source.replay_rejected(call_of(), token)).is_over
        else:
            self.source.rejected_at_the_end(call_of(), token)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A caller gives up: its flow is closed wherever it stands."""
        caller = data.draw(st.sampled_from(self.callers))
        self.callers.remove(caller)
        caller.close()

    @rule()
    def invalidate(self) -> None:
        """The user drops the token."""
        assert Steps(self.source.invalidate(None, now().monotonic + 4)).is_over
        assert self.source.local.value.token is None

    @precondition(lambda self: self.served)
    @rule(data=st.data())
    def invalidate_one(self, data: st.DataObject) -> None:
        """The user drops a token that was served once: never its successor."""
        token, current = data.draw(st.sampled_from(self.served[-3:])), self.source.local.value.token
        assert Steps(self.source.invalidate(token.access_token, now().monotonic + 4)).is_over
        is_current = current is not None and current.access_token == token.access_token
        assert self.source.local.value.token is (None if is_current else current)

    @rule()
    def forget(self) -> None:
        """A test calls `testing.reset()`: what is in flight ends, and its outcome is dropped."""
        self.source.reset()
        self.left_behind = list(self.callers)
        self.served.clear()
        self.answered.clear()
        self.blocked_until = 0.0
        self.generation = 0

    # What the gateway and the clocks do.

    @precondition(lambda self: self._requesting())
    @rule(outcome=st.sampled_from(("good", "good", "good", "network", "lost", *REFUSALS)), data=st.data())
    def reply(self, outcome: str, data: st.DataObject) -> None:
        """A token request that is under way has an outcome."""
        caller = data.draw(st.sampled_from(self._requesting()))
        self._answer(caller, outcome)

    @rule(seconds=st.one_of(st.floats(0.01, 10), st.sampled_from((29.0, 61.0, 300.0, 4000.0))))
    def advance(self, seconds: float) -> None:
        """Time passes, and timers go off."""
        self.clock.advance(seconds)
        self._wake()

    @rule(seconds=st.sampled_from((-4000.0, -60.0, 60.0, 4000.0)))
    def step_the_wall_clock(self, seconds: float) -> None:
        """The wall clock is set."""
        self.stepped = True
        self.clock.step_wall(seconds)

    @rule()
    def wake(self) -> None:
        """Callers that were woken go on."""
        self._wake()

    # The rules of the source.

    @invariant()
    def one_token_request(self) -> None:
        """At most one token request is under way, but for those that a reset left behind."""
        if hasattr(self, "source"):
            assert len([caller for caller in self._requesting() if caller not in self.left_behind]) <= 1

    @invariant()
    def no_waiter_is_forgotten(self) -> None:
        """No caller waits unless one works, or is woken and about to."""
        waiting = [caller for caller in getattr(self, "callers", ()) if isinstance(caller.effect, Wait)]
        working = [caller for caller in getattr(self, "callers", ()) if not isinstance(caller.effect, Wait)]
        assert not waiting or working or any(caller.effect.waiter.is_woken for caller in waiting)

    @invariant()
    def generation_never_falls(self) -> None:
        """The generation goes up with each token, and never down."""
        if hasattr(self, "source"):
            assert self.source.local.value.generation >= self.generation
            self.generation = self.source.local.value.generation

    @invariant()
    def verdict_is_of_a_token(self) -> None:
        """Without a token there is nothing accepted, and an accepted token runs no back-off."""
        if hasattr(self, "source"):
            state = self.source.local.value
            assert state.verdict is not Verdict.ACCEPTED or (state.token is not None and not state.rejection.count)
            assert state.lease is None, "a process alone needs no lease"

    @invariant()
    def cache_has_the_state(self) -> None:
        """What the source knows is kept in the cache for auth objects that come later."""
        if hasattr(self, "source"):
            kept = self.cache.get("key")
            state = self.source.local.value
            if state.token is not None and state.token.is_valid(now(), 0) and not self.stepped:
                assert kept is not None
                assert kept[0] is state

    def teardown(self) -> None:
        """Once the gateway is well again every caller finishes."""
        try:
            for _ in range(1000):
                if not getattr(self, "callers", None):
                    return
                if self._requesting():
                    self._answer(self._requesting()[0], "good")
                else:
                    self.clock.advance(1.0)
                    self._wake()
            raise AssertionError(f"{len(self.callers)} callers never finish")
        finally:
            if hasattr(self, "stack"):
                self.stack.close()

    # How flows are driven.

    def _requesting(self) -> list[Caller]:
        return [caller for caller in getattr(self, "callers", ()) if isinstance(caller.effect, SendTokenRequest)]

    def _answer(self, caller: Caller, outcome: str) -> None:
        if caller not in self.left_behind:
            self.answered.append(now().monotonic)
        if outcome == "429" and caller not in self.left_behind:
            self.blocked_until = max(self.blocked_until, now().monotonic + 7)
        self._remove(caller)
        if outcome == "network":
            caller.fail(NetworkError("gone"))
        elif outcome == "lost":
            caller.fail(ConnectionLostError())
        elif outcome == "good":
            self.issued += 1
            caller.go(issued(f"token-{self.issued}", self.life))
        else:
            caller.go(REFUSALS[outcome])
        self._settle(caller)

    def _wake(self) -> None:
        # A leader whose timer went off is quicker than a waiter that looks for one that vanished.
        for caller in sorted(self.callers, key=lambda caller: isinstance(caller.effect, Wait)):
            if caller not in self.callers:
                continue
            is_due = caller.due <= now().monotonic
            is_woken = isinstance(caller.effect, Wait) and caller.effect.waiter.is_woken
            if is_woken or (is_due and isinstance(caller.effect, Wait | Sleep)):
                self._remove(caller)
                self._settle(caller.go())
            elif isinstance(caller.effect, SendTokenRequest) and is_due:
                self._answer(caller, "network")

    def _remove(self, caller: Caller) -> None:
        self.callers.remove(caller)

    def _settle(self, caller: Any) -> None:
        """Note what became of a caller's last step."""
        if not caller.is_over:
            self.callers.append(caller)
            seconds = getattr(caller.effect, "seconds", None)
            if isinstance(caller.effect, SendTokenRequest):
                seconds = caller.effect.request.timeout
                if caller not in self.left_behind:
                    self._check_limits()
            assert seconds is not None
            caller.due = now().monotonic + seconds
        elif caller.error is None:
            token, rejected = caller.value, caller.call.rejected
            assert token.is_valid(now(), caller.call.client.leeway), "an expired token is served"
            assert rejected is None or token.access_token != rejected.access_token, "the rejected token is served"
            self.served.append(token)
        elif isinstance(caller.error, TokenEndpointError):
            known = self.source.local.value.usable(caller.call.rejected, caller.call.client.leeway, now())
            assert known is None, "a call failed although there is a valid token"
        else:
            assert isinstance(caller.error, ConnectionLostError), repr(caller.error)

    def _check_limits(self) -> None:
        at = now().monotonic
        assert self.stepped or at >= self.blocked_until - 1e-6, "a token request while a Retry-After runs"
        if self.limit is not None:
            recent = [moment for moment in self.answered if at - moment < self.limit[1] - 1e-6]
            assert len(recent) < self.limit[0], f"a token request over the rate limit: {recent}, and now at {at}"


TestSourceMachine = SourceMachine.TestCase
TestSourceMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """Keep thousands of warnings out of the report."""
    logger = logging.getLogger("baas_auth_plugins")
    logger.disabled = True
    yield
    logger.disabled = False


# -- what the machine does not reach


@pytest.fixture
def source(clock: FakeClock) -> TokenSource:
    return source_of()


def acquire(source: TokenSource, *answers: Any, client: OAuthClient = CLIENT, rejected: Token | None = None) -> Call:
    """Run one caller to its end, and return it."""
    call = call_of(client, rejected)
    run_dry(source.acquire(call), answers)
    return call


def test_later_auth_object_finds_the_state(clock: FakeClock) -> None:
    """A source that is made anew over the same cache knows the token, its back-offs and its refusals."""
    cache = MemoryTokenCache()
    acquire(source_of(cache), issued("kept"))
    assert run_dry(source_of(cache).acquire(call_of())).access_token == "kept"
    cache = MemoryTokenCache()
    with pytest.raises(InvalidClientError):
        acquire(source_of(cache), REFUSALS["401"])
    with pytest.raises(InvalidClientError):
        acquire(source_of(cache))


def test_foreign_value_in_the_cache_is_no_state(clock: FakeClock) -> None:
    """A user who keeps something of their own under the key gets a new token, and no error."""
    cache = MemoryTokenCache()
    cache.swap("key", None, b"bytes", 60)
    assert acquire(source_of(cache), issued("new")).minted


@pytest.mark.parametrize(
    ("outcome", "pauses"),
    [("401", (5, 10, 20, 40, 60, 60)), ("503", (5, 10, 20, 30, 30))],
    ids=["refused", "unavailable"],
)
def test_failure_is_served_for_its_pause(
    source: TokenSource, clock: FakeClock, outcome: str, pauses: tuple[float, ...]
) -> None:
    """Callers get the failure from the cache; after each pause one attempt is made, and the pause grows."""
    for number, seconds in enumerate(pauses):
        attempts = 4 if outcome == "503" and number == 0 else 1
        with pytest.raises(TokenEndpointError):
            acquire(source, *[REFUSALS[outcome]] * attempts)
        clock.advance(seconds - 0.01)
        with pytest.raises(TokenEndpointError):
            acquire(source)
        clock.advance(0.02)
    assert acquire(source, issued()).minted


def test_success_ends_the_schedule(source: TokenSource, clock: FakeClock) -> None:
    """After a token the next failure starts with 5 s again."""
    for _ in range(3):
        with pytest.raises(TokenEndpointError):
            acquire(source, REFUSALS["401"])
        clock.advance(61)
    acquire(source, issued(expires_in=60))
    clock.advance(60)
    with pytest.raises(TokenEndpointError):
        acquire(source, REFUSALS["401"])
    assert source.local.value.renewal.remaining(now()) == 5


@pytest.mark.parametrize("age", [160.0, 275.0], ids=["stale", "critical"])
def test_refusal_of_a_renewal_stands_at_expiry(source: TokenSource, clock: FakeClock, age: float) -> None:
    """A refusal that a renewal met is not asked for again at once when the token expires within its pause."""
    acquire(source, issued())
    clock.advance(age)
    acquire(source, REFUSALS["401"])
    assert source.local.value.failure_now(now()) is not None
    source.local.apply(lambda state: state.without_token(token_at("a-token")))
    with pytest.raises(InvalidClientError):
        acquire(source)


def test_outage_of_a_renewal_is_tried_again_at_expiry(source: TokenSource, clock: FakeClock) -> None:
    """An outage that a renewal met does not keep a caller without a token from trying, with retries."""
    acquire(source, issued())
    clock.advance(294)
    acquire(source, REFUSALS["503"])
    clock.advance(1.5)
    assert acquire(source, REFUSALS["503"], REFUSALS["503"], issued("new")).minted


def test_rejected_token_is_replaced_once(source: TokenSource) -> None:
    """The second of two 401s to one token finds the successor, and does not drop it."""
    token = acquire(source, issued("one")).minted
    assert token is not None
    assert Steps(source.rejected(call_of(), token, is_replayable=True)).value is True
    new = acquire(source, issued("two"), rejected=token).minted
    assert Steps(source.rejected(call_of(), token, is_replayable=True)).value is True
    assert source.local.value.token is new


def test_back_off_of_rejections(source: TokenSource, clock: FakeClock) -> None:
    """A path that always answers 401 has a token requested once in 5, 10, 20, 40, then 60 s."""
    token = acquire(source, issued("token-0")).minted
    requested: list[float] = []
    for _ in range(300):
        assert token is not None
        call = call_of()
        if Steps(source.rejected(call, token, is_replayable=True)).value:
            call.rejected = token
            token = run_dry(source.acquire(call), [issued(f"token-{len(requested) + 1}")])
            requested.append(clock.monotonic)
            assert Steps(source.replay_rejected(call_of(), token)).is_over
        clock.advance(1)
        if token is not None and not token.is_valid(now(), 300.0):
            break
        if clock.monotonic - requested[-1] > 200:
            break
    gaps = [round(later - earlier) for earlier, later in pairwise(requested)]
    assert gaps[:4] == [5, 10, 20, 40]
    assert set(gaps[4:]) <= {60}


def test_reason_of_a_token_request(source: TokenSource, clock: FakeClock) -> None:
    """Each event says why the token was requested: cold, due, expired, rejected or invalidated."""
    reasons: list[str] = []

    def acquire_and_note(answer_: Any, rejected: Token | None = None) -> Token:
        call = Call(CLIENT, None, None, lambda event: reasons.append(event.reason), reads_secret=FixedSecret())
        call.rejected = rejected
        token: Token = run_dry(source.acquire(call), [answer_])
        call.flush()
        return token

    acquire_and_note(issued("one"))
    clock.advance(160)
    acquire_and_note(issued("two"))
    clock.advance(300)
    token = acquire_and_note(issued("three"))
    Steps(source.rejected(call_of(), token, is_replayable=True))
    acquire_and_note(issued("four"), rejected=token)
    Steps(source.invalidate(None, now().monotonic + 4))
    acquire_and_note(issued("five"))
    assert reasons == ["cold", "due", "expired", "rejected", "invalidated"]


def test_background_renewal_is_started_and_not_waited_for(source: TokenSource, clock: FakeClock) -> None:
    """With a renewal in the background a caller whose token is due is served it, and sends nothing."""
    acquire(source, issued("old"))
    clock.advance(160)
    started: list[bool] = []
    call = call_of()
    call.starts_renewal = lambda: started.append(True)
    assert run_dry(source.acquire(call)).access_token == "old"
    assert started == [True]


def test_same_token_again(source: TokenSource) -> None:
    """An issuer may hand out the rejected token once more: it is used, after one request, and known as current."""
    token = acquire(source, issued("same")).minted
    assert token is not None
    Steps(source.rejected(call_of(), token, is_replayable=True))
    again = acquire(source, issued("same"), rejected=token).minted
    assert again is not None
    assert source.local.value.token is again
    assert source.local.value.dropped == ()


def test_limited_callers_are_told_when(clock: FakeClock) -> None:
    """Where the provider's limit does not fit in `max_wait`, the error says when the next request is possible."""
    source = source_of(limit=(1, 60))
    acquire(source, issued())
    Steps(source.invalidate(None, now().monotonic + 4))
    with pytest.raises(RateLimitError) as caught:
        acquire(source, client=CLIENT._replace(max_wait=30.0))
    assert caught.value.retry_after == 60
