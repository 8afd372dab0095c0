"""One token's state: each rule of `merged`, and each transition, in a row of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from by_hand import token_at
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import InvalidClientError, TokenEndpointUnavailableError
from baas_auth_plugins._lifecycle.state import (
    EMPTY,
    NO_BACKOFF,
    Backoff,
    Failure,
    Lease,
    TokenState,
    Verdict,
    merged,
)
from baas_auth_plugins._oauth.token import Instant, digest

NOW = Instant(1_750_000_000.0, 1_000.0)
A, B, C = (token_at(name, NOW) for name in ("a", "b", "c"))
OURS, THEIRS = Lease("ours", NOW, 15.0), Lease("theirs", NOW, 15.0)
REFUSAL = InvalidClientError("refused", provider="bs2", status_code=401)
OUTAGE = TokenEndpointUnavailableError("down", provider="bs2", status_code=503)


def later(seconds: float) -> Instant:
    return Instant(NOW.wall + seconds, NOW.monotonic + seconds)


def state(generation: int = 1, **fields: Any) -> TokenState:
    return TokenState(generation=generation, **{"token": A} | fields)


def once(seconds: float, count: int = 1) -> Backoff:
    return Backoff(count, NOW, seconds)


MERGED = [
    # rule, local, shared, expected
    pytest.param(state(lease=OURS), None, state(), id="1 no shared record: the local state without a lease"),
    pytest.param(state(2, lease=OURS), state(1), state(2), id="2 a lease that the record lacks is over"),
    pytest.param(state(2), state(1, lease=THEIRS), state(2, lease=THEIRS), id="2 the record's lease stays beside ours"),
    pytest.param(
        state(1, lease=OURS), state(2, token=B), state(2, token=B), id="2 no lease is carried into a new generation"
    ),
    pytest.param(state(1, lease=OURS), state(1, lease=THEIRS), state(1, lease=THEIRS), id="2 the record's lease wins"),
    pytest.param(
        state(1, token=A, rejection=once(60, 5), dropped=("x",)),
        state(2, token=B),
        state(2, token=B),
        id="3 a higher shared generation wins whole",
    ),
    pytest.param(
        state(2, token=B),
        state(1, verdict=Verdict.ACCEPTED, dropped=("x",)),
        state(2, token=B),
        id="3 a higher local generation wins whole",
    ),
    pytest.param(
        state(2, token=None, dropped=(digest("a"),)),
        state(1, token=B),
        state(2, token=B, dropped=(digest("a"),)),
        id="3 but a valid token of a lower generation replaces one that was dropped or has expired",
    ),
    pytest.param(
        state(2, token=None, dropped=(digest("b"),)),
        state(1, token=B),
        state(2, token=None, dropped=(digest("b"),)),
        id="3 unless it was dropped or replaced itself",
    ),
    pytest.param(
        state(dropped=("x", "y")),
        state(dropped=("y", "z")),
        state(dropped=("x", "y", "z")),
        id="4 dropped tokens unite",
    ),
    pytest.param(
        state(verdict=Verdict.NONE),
        state(verdict=Verdict.REJECTED),
        state(verdict=Verdict.REJECTED),
        id="4 rejected beats none",
    ),
    pytest.param(
        state(verdict=Verdict.ACCEPTED),
        state(verdict=Verdict.REJECTED),
        state(verdict=Verdict.ACCEPTED),
        id="4 accepted beats rejected",
    ),
    pytest.param(
        state(rejection=once(5, 2)), state(rejection=once(60, 1)), state(rejection=once(5, 2)), id="4 more failures win"
    ),
    pytest.param(
        state(rejection=once(5)), state(rejection=once(10)), state(rejection=once(10)), id="4 then the longer back-off"
    ),
    pytest.param(
        state(renewal=once(5)), state(renewal=once(10, 2)), state(renewal=once(10, 2)), id="4 for renewals alike"
    ),
    pytest.param(state(blocked=once(9, 0)), state(), state(blocked=once(9, 0)), id="4 for a Retry-After alike"),
    pytest.param(
        state(failure=Failure(OUTAGE, False, once(5))),
        state(failure=Failure(REFUSAL, True, once(10, 2))),
        state(failure=Failure(REFUSAL, True, once(10, 2))),
        id="4 and for failures",
    ),
    pytest.param(
        state(verdict=Verdict.ACCEPTED),
        state(verdict=Verdict.REJECTED, rejection=once(60, 5)),
        state(verdict=Verdict.ACCEPTED),
        id="5 our acceptance clears their back-off",
    ),
    pytest.param(
        state(verdict=Verdict.REJECTED, rejection=once(60, 5)),
        state(verdict=Verdict.ACCEPTED),
        state(verdict=Verdict.ACCEPTED),
        id="5 their acceptance clears our back-off",
    ),
    pytest.param(
        state(token=A, verdict=Verdict.ACCEPTED),
        state(token=B, verdict=Verdict.REJECTED, rejection=once(5)),
        state(token=B, verdict=Verdict.REJECTED, rejection=once(5)),
        id="6 another shared token stays, with its verdict and back-off",
    ),
    pytest.param(
        state(token=A, dropped=(digest("b"),), verdict=Verdict.ACCEPTED),
        state(token=B),
        state(token=A, dropped=(digest("b"),), verdict=Verdict.ACCEPTED),
        id="6 unless we dropped it, and not ours",
    ),
    pytest.param(
        state(token=A, dropped=(digest("b"),)),
        state(token=B, dropped=(digest("a"),)),
        state(token=None, dropped=(digest("b"), digest("a"))),
        id="6 both dropped: neither is used",
    ),
    pytest.param(
        state(token=None, dropped=(digest("a"),)),
        state(token=A),
        state(token=None, dropped=(digest("a"),)),
        id="6 a token that we dropped does not come back",
    ),
    pytest.param(
        state(token=A),
        state(token=None, dropped=(digest("a"),)),
        state(token=None, dropped=(digest("a"),)),
        id="6 nor one that they dropped",
    ),
    pytest.param(
        state(token=None, dropped=(digest("a"),), rejection=once(5)),
        state(token=A, verdict=Verdict.ACCEPTED),
        state(token=None, dropped=(digest("a"),), rejection=once(5)),
        id="6 a drop after a 401 keeps its back-off",
    ),
]


@pytest.mark.parametrize(("local", "shared", "expected"), MERGED)
def test_merged(local: TokenState, shared: TokenState | None, expected: TokenState) -> None:
    """Each rule of DESIGN's table, by its number."""
    assert merged(local, shared, NOW) == expected


def test_merged_knows_the_last_401() -> None:
    """Of two moments of a 401, the later one counts: the back-off is forgotten 60 s after the last."""
    early, late = state(rejected_at=later(-50)), state(rejected_at=later(-5))
    for one, other in ((early, late), (late, early)):
        assert merged(one, other, NOW).rejected_at == later(-5)


def test_merged_ignores_the_clock() -> None:
    """The generation decides, although the other token expires later and was issued later by some host's clock."""
    young = token_at("young", later(5000), expires_in=86_400)
    assert merged(state(2, token=A), state(1, token=young), NOW).token is A


def consistent(found: TokenState) -> TokenState:
    """Return the state as transitions make it: a token is not dropped, and an accepted one has no back-off."""
    token = None if found.token is not None and digest(found.token.access_token) in found.dropped else found.token
    verdict = Verdict.NONE if token is None else found.verdict
    rejection = NO_BACKOFF if verdict is Verdict.ACCEPTED else found.rejection
    return replace(found, token=token, verdict=verdict, rejection=rejection)


backoffs = st.just(NO_BACKOFF) | st.builds(Backoff, st.integers(1, 3), st.just(NOW), st.sampled_from((5.0, 60.0)))
states = st.builds(
    TokenState,
    generation=st.integers(0, 2),
    token=st.sampled_from((None, A, B)),
    verdict=st.sampled_from(Verdict),
    renewal=backoffs,
    rejection=backoffs,
    dropped=st.sampled_from(((), (digest("a"),), (digest("b"),), (digest("a"), digest("b")))),
    lease=st.sampled_from((None, OURS, THEIRS)),
).map(consistent)


@given(states, states)
def test_merged_is_settled_at_once(local: TokenState, shared: TokenState) -> None:
    """To merge a second time changes nothing: two processes that read each other come to rest."""
    first = merged(local, shared, NOW)
    assert merged(first, shared, NOW) == first
    assert merged(first, first, NOW) == first


@given(states, states)
def test_merged_never_goes_back(local: TokenState, shared: TokenState) -> None:
    """The generation never falls, the lease is the record's, and of one token no acceptance is lost."""
    result = merged(local, shared, NOW)
    assert result.generation == max(local.generation, shared.generation)
    assert result.lease == shared.lease
    if (local.generation, local.token) == (shared.generation, shared.token):
        assert result.verdict == max(local.verdict, shared.verdict)
        assert result.verdict is not Verdict.ACCEPTED or result.rejection == NO_BACKOFF


# -- transitions

FULL_STATE = state(
    3,
    verdict=Verdict.REJECTED,
    renewal=once(30, 4),
    rejection=once(20, 3),
    rejected_at=NOW,
    failure=Failure(OUTAGE, False, once(30, 4)),
    blocked=once(9, 0),
    dropped=(digest("b"), digest("c")),
    lease=OURS,
)

TRANSITIONS: list[Any] = [
    pytest.param(
        lambda s: s.renewed(B, NOW),
        TokenState(
            4,
            B,
            renewal=Backoff(0, NOW, 30.0),
            rejection=once(20, 3),
            rejected_at=NOW,
            dropped=(digest("c"), digest("a")),
        ),
        id="renewed: generation + 1, rejections kept, the old token remembered, renewals, failure, verdict and lease cleared",
    ),
    pytest.param(
        lambda s: s.without_token(A),
        replace(FULL_STATE, token=None, verdict=Verdict.NONE, dropped=(digest("b"), digest("c"), digest("a"))),
        id="dropped: this very token, with its verdict",
    ),
    pytest.param(
        lambda s: s.without_token(B),
        replace(FULL_STATE, dropped=(digest("c"), digest("b"))),
        id="dropped: never its successor",
    ),
    pytest.param(
        lambda s: s.with_rejection(NOW), replace(FULL_STATE, rejection=once(40, 4)), id="replay rejected: count + 1"
    ),
    pytest.param(
        lambda s: s.with_acceptance(),
        replace(FULL_STATE, verdict=Verdict.ACCEPTED, rejection=NO_BACKOFF),
        id="replay accepted: the back-off ends",
    ),
    pytest.param(
        lambda s: s.leased("theirs", 15.0, NOW), replace(FULL_STATE, lease=THEIRS), id="leased: to this owner"
    ),
    pytest.param(lambda s: s.released("ours"), replace(FULL_STATE, lease=None), id="released: one's own lease"),
    pytest.param(lambda s: s.released("theirs"), FULL_STATE, id="released: never another's lease"),
    pytest.param(
        lambda s: s.waiting(7.0, NOW), replace(FULL_STATE, blocked=Backoff(0, NOW, 7.0)), id="waiting: for all callers"
    ),
    pytest.param(lambda s: s.paused(10.0, NOW), FULL_STATE, id="paused: not for less than already"),
    pytest.param(
        lambda s: s.paused(31.0, NOW), replace(FULL_STATE, renewal=once(31.0, 4)), id="paused: longer, the count stays"
    ),
]


@pytest.mark.parametrize(("transition", "expected"), TRANSITIONS)
def test_transition(transition: Callable[[TokenState], TokenState], expected: TokenState) -> None:
    """Each transition changes what it is about, and nothing else."""
    assert transition(FULL_STATE) == expected


@pytest.mark.parametrize(("expires_in", "spacing"), [(3600, 30), (300, 30), (299, 29.9), (60, 6), (1, 0.1)])
def test_voluntary_renewals_are_spaced(expires_in: float, spacing: float) -> None:
    """Successful renewals are at least min(30, lifetime / 10) seconds apart."""
    renewed = EMPTY.renewed(token_at("a", NOW, expires_in), NOW)
    assert renewed.renewal.remaining(NOW) == pytest.approx(spacing)


def test_the_last_32_tokens_are_remembered_as_dropped() -> None:
    """The record stays small: of the dropped tokens the last 32 count."""
    found = EMPTY
    names = [f"token-{number}" for number in range(40)]
    for name in names:
        found = found.without_token(token_at(name, NOW))
    assert found.dropped == tuple(digest(name) for name in names[-32:])


@pytest.mark.parametrize("who", ["local", "shared"])
def test_last_dropped_token_survives_a_merge(who: str) -> None:
    """Of two full lists of dropped tokens, the token that only one process has dropped last stays, however often they merge."""
    old = state(token=None, dropped=tuple(digest(f"token-{number}") for number in range(32)))
    new = old.without_token(token_at("i", NOW))
    local, shared = (new, old) if who == "local" else (old, new)
    for _ in range(10):
        local = merged(local, shared, NOW)
    assert local.dropped[-1] == digest("i")


def fail(found: TokenState, at: Instant, error: Any = OUTAGE, *, urgent: bool = True) -> TokenState:
    return found.failed(error, is_refusal=error is REFUSAL, urgent=urgent, now=at)


@pytest.mark.parametrize(
    ("error", "urgent", "schedule"),
    [
        pytest.param(REFUSAL, True, (5, 10, 20, 40, 60, 60), id="refused without a token"),
        pytest.param(REFUSAL, False, (5, 10, 20, 40, 60, 60), id="refused with a token"),
        pytest.param(OUTAGE, True, (5, 10, 20, 30, 30, 30), id="unavailable without a token"),
        pytest.param(OUTAGE, False, (5, 10, 20, 30, 30, 30), id="unavailable with a token"),
    ],
)
def test_failures_in_a_row(error: Any, urgent: bool, schedule: tuple[float, ...]) -> None:
    """Refusals pause for 5, 10, 20, 40, then 60 s; outages for 5, 10, 20, then 30 s."""
    found, at = EMPTY, NOW
    for seconds in schedule:
        found = fail(found, at, error, urgent=urgent)
        assert found.renewal.remaining(at) == seconds
        if urgent or error is REFUSAL:
            assert type(found.failure_now(at)) is type(error)
        at = Instant(at.wall + seconds, at.monotonic + seconds)
        assert found.failure_now(at) is None


def test_rejections_in_a_row() -> None:
    """Token requests because of 401s pause for 5, 10, 20, 40, then 60 s."""
    found = state()
    for seconds in (5, 10, 20, 40, 60, 60):
        found = found.with_rejection(NOW)
        assert (found.rejection.remaining(NOW), found.verdict) == (seconds, Verdict.REJECTED)


@pytest.mark.parametrize(("first", "second"), [(REFUSAL, OUTAGE), (OUTAGE, REFUSAL)])
def test_another_kind_of_failure_starts_its_own_schedule(first: Any, second: Any) -> None:
    """Two failures of one kind do not lengthen the pause of the other."""
    found = fail(fail(fail(EMPTY, NOW, first), NOW, first), NOW, second)
    assert found.renewal == once(5)
    assert type(found.failure_now(NOW)) is type(second)


def test_outage_of_a_renewal_does_not_stand() -> None:
    """An outage that a renewal meets pauses renewals; at expiry the gateway is tried again at once."""
    found = fail(state(), NOW, urgent=False)
    assert (found.renewal.remaining(NOW), found.failure_now(NOW)) == (5, None)


@pytest.mark.parametrize(("silence", "seconds"), [(59, 10), (61, 5)])
def test_failures_are_forgotten(silence: float, seconds: float) -> None:
    """A minute after the pause ended, the schedule starts anew."""
    found = fail(EMPTY, NOW)
    assert fail(found, later(5 + silence)).renewal.seconds == seconds


@pytest.mark.parametrize(("silence", "kept"), [(59, True), (60, True), (61, False)])
def test_rejections_are_forgotten(silence: float, kept: bool) -> None:
    """After 60 s without a 401 the back-off of rejections starts anew."""
    found = state(rejection=once(60, 5), rejected_at=NOW)
    after = found.with_401(later(silence))
    assert (after.rejection.count == 5) is kept
    assert after.rejected_at == later(silence)


def test_first_401_ever_forgets_what_has_no_moment() -> None:
    """A back-off without a 401 of its own is none of this process's: it starts anew."""
    assert state(rejection=once(60, 5)).with_401(NOW).rejection == NO_BACKOFF


def test_each_caller_gets_an_error_of_its_own() -> None:
    """A failure that stands is an equal exception for each, and not the one that was raised."""
    found = fail(EMPTY, NOW, REFUSAL)
    one, other = found.failure_now(NOW), found.failure_now(NOW)
    assert one is not other
    assert one is not REFUSAL
    assert (str(one), getattr(one, "status_code", None)) == ("refused", 401)


@pytest.mark.parametrize("clocks", [(-1.0, 0.0), (0.0, -1.0), (-1e6, -1e6)], ids=["wall", "monotonic", "both"])
@pytest.mark.parametrize(
    "remaining",
    [
        once(60).remaining,
        state(renewal=once(60)).renewal.remaining,
        lambda at: state(failure=Failure(OUTAGE, False, once(60))).failure_now(at) or 0,
        OURS.remaining,
        lambda at: state(lease=THEIRS).leased_by_other("ours", at),
    ],
    ids=["back-off", "renewal", "failure", "lease", "another's lease"],
)
def test_future_moment_is_void(remaining: Callable[[Instant], Any], clocks: tuple[float, float]) -> None:
    """A moment that lies in the future on either clock holds nobody up: the machine was suspended, or time was frozen."""
    at = Instant(NOW.wall + clocks[0], NOW.monotonic + clocks[1])
    assert remaining(at) == 0
    assert remaining(NOW) != 0


def test_future_401_is_void() -> None:
    """Neither does a 401 of the future keep a back-off alive."""
    found = replace(state(rejection=once(60, 5)), rejected_at=later(100))
    assert found.with_401(NOW).rejection == NO_BACKOFF


@given(st.integers(0, 8), st.sampled_from(((5.0, 10.0), (5.0, 10.0, 20.0, 30.0))))
def test_schedules_end_with_their_last_pause(count: int, schedule: tuple[float, ...]) -> None:
    """However often it fails, the pause is no longer than the last of the schedule, and the count goes on."""
    longer = Backoff(count).longer(schedule, NOW)
    assert (longer.count, longer.seconds) == (count + 1, schedule[min(count, len(schedule) - 1)])


# -- what may be used


@pytest.mark.parametrize(
    ("found", "rejected", "at", "expected"),
    [
        pytest.param(state(), None, NOW, A, id="valid"),
        pytest.param(state(), B, NOW, A, id="not the rejected one"),
        pytest.param(state(), A, NOW, None, id="the rejected one"),
        pytest.param(state(), token_at("a", later(-9)), NOW, None, id="the rejected one, issued again"),
        pytest.param(state(), None, later(295), None, id="expired"),
        pytest.param(EMPTY, None, NOW, None, id="none"),
    ],
)
def test_usable(found: TokenState, rejected: Any, at: Instant, expected: Any) -> None:
    """Only a valid token that is not the rejected one may be sent."""
    assert found.usable(rejected, 300.0, at) is expected


@pytest.mark.parametrize(
    ("found", "ttl"),
    [
        pytest.param(EMPTY, 1, id="nothing: the shortest"),
        pytest.param(state(), 300, id="the token's life"),
        pytest.param(TokenState(renewal=once(30)), 90, id="a pause, and a minute in which its count matters"),
        pytest.param(TokenState(rejection=once(600)), 600, id="a back-off of rejections"),
        pytest.param(TokenState(rejected_at=later(-20)), 40, id="a minute after the last 401"),
        pytest.param(TokenState(blocked=once(250, 0)), 250, id="a Retry-After"),
        pytest.param(TokenState(lease=OURS), 15, id="a lease"),
    ],
)
def test_ttl(found: TokenState, ttl: float) -> None:
    """A record is kept as long as any part of it matters, and no longer."""
    assert found.ttl(NOW) == ttl
    assert math.isfinite(found.ttl(NOW))


def test_state_does_not_show_a_token() -> None:
    """The repr of a state, as in a traceback, has no token in it."""
    assert "very-secret" not in repr(state(token=token_at("very-secret", NOW)))


def test_failure_whose_pause_runs_is_kept_in_a_merge() -> None:
    """Of two failures of one generation, the one that callers still get stays, although the other has a higher count."""
    over = EMPTY
    for _ in range(3):
        over = over.failed(OUTAGE, is_refusal=False, urgent=True, now=Instant(NOW.wall - 100, NOW.monotonic - 100))
    running = EMPTY.failed(REFUSAL, is_refusal=True, urgent=True, now=NOW)
    assert type(merged(over, running, NOW).failure_now(NOW)) is type(REFUSAL)
    assert type(merged(running, over, NOW).failure_now(NOW)) is type(REFUSAL)
