"""Who fetches a token, among processes: stepped by hand over a shared dict whose operations fail, hang or come late."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from by_hand import answer, faked_clock
from conftest import Auth, FakeClock, api_url, make
from hypothesis import given
from hypothesis import strategies as st
from processes import FAULTS, Dict, Faulty, Gateway, Process, Request

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    InvalidClientError,
    RateLimitError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins._fleet.store import SharedStore
from baas_auth_plugins._lifecycle.effects import RunInThread, SendTokenRequest, Sleep
from baas_auth_plugins._lifecycle.state import Verdict
from baas_auth_plugins.sandbox import Sandbox


class Fleet:
    """Some processes on one dict and one gateway."""

    def __init__(self, clock: FakeClock, size: int = 2, **options: Any) -> None:
        self.clock = clock
        self.gateway = Gateway()
        self.dict = Dict(lambda: clock.monotonic)
        self.options = options
        self.processes = [self.join() for _ in range(size)]

    def join(self, **options: Any) -> Process:
        return Process(self.clock, self.gateway, self.dict, **self.options | options)


@pytest.fixture
def fleet(clock: FakeClock) -> Fleet:
    return Fleet(clock)


def operations(process: Process) -> int:
    """Return how many cache operations a process has made since this was asked last."""
    count = len(process.cache.operations)
    process.cache.operations.clear()
    return count


# -- one token for all


def test_one_requests_and_the_others_adopt(clock: FakeClock) -> None:
    """Of ten processes the first requests a token, and nine take it over, with its whole life."""
    fleet = Fleet(clock, 10)
    assert [process.call() for process in fleet.processes] == [200] * 10
    assert fleet.gateway.requests == 1
    tokens = [process.local.value.token for process in fleet.processes]
    assert {(token.access_token, token.issued_at, token.expires_in) for token in tokens} == {
        ("token-1", clock.wall, 300.0)
    }


def test_follower_waits_for_the_leader(fleet: Fleet) -> None:
    """While one process requests a token, another one polls, and adopts it as soon as it is published."""
    first, second = fleet.processes
    leading = first.until(first.start(), SendTokenRequest)
    waiting = second.until(second.start(), Sleep)
    for _ in range(5):
        second.step(waiting)
        second.until(waiting, Sleep)
    first.finish(leading)
    second.finish(waiting)
    assert fleet.gateway.requests == 1


@pytest.mark.parametrize(
    ("after", "holds"), [(0, True), (14.5, True), (15.5, False)], ids=["at once", "in its lease", "after its lease"]
)
def test_lease_of_a_leader_that_died(fleet: Fleet, after: float, holds: bool) -> None:
    """A lease lasts for `timeout` + 5 s; then another process takes it, and no call fails for it."""
    first, second = fleet.processes
    died = first.until(first.start(), SendTokenRequest)  # and it never goes on
    fleet.clock.advance(after)
    started = fleet.clock.monotonic
    assert second.call() == 200
    assert (fleet.clock.monotonic > started) is holds
    assert fleet.clock.monotonic - started <= 16 - after or not holds
    assert not died.is_over


def test_no_lease_is_taken_from_its_holder(fleet: Fleet) -> None:
    """Of two processes that both saw a free record, the slower one's swap fails, and it follows."""
    first, second = fleet.processes
    one, other = first.start(), second.start()
    first.until(one, SendTokenRequest)
    second.until(other, Sleep)
    assert fleet.gateway.requests == 0
    first.finish(one)
    second.finish(other)
    assert fleet.gateway.requests == 1


def test_due_token_is_renewed_by_one(fleet: Fleet) -> None:
    """Where another process renews already, a caller with a valid token serves that, and waits for nothing."""
    first, second = fleet.processes
    assert (first.call(), second.call()) == (200, 200)
    fleet.clock.advance(200)
    renewing = first.until(first.start(), SendTokenRequest)
    request, before = Request(), fleet.clock.monotonic
    second.call(request)
    assert (request.sent, fleet.clock.monotonic) == (["token-1"], before)
    first.finish(renewing)
    fleet.clock.advance(1)
    second.call(later := Request())
    assert later.sent == ["token-2"]
    assert fleet.gateway.requests == 2


@pytest.mark.parametrize("expires_in", [60, 300, 3600])
def test_counts_of_operations(clock: FakeClock, expires_in: float) -> None:
    """Three operations for the process that requests a token, and two at most for each other, in a token's life."""
    fleet = Fleet(clock, 4)
    fleet.gateway.expires_in = expires_in
    for _ in range(5):
        leader, *followers = fleet.processes
        assert leader.call() == 200
        assert operations(leader) == 3
        for follower in followers:
            assert follower.call() == 200
            assert operations(follower) <= 2
        assert fleet.processes[0].call() == 200
        assert sum(map(operations, fleet.processes)) == 0, "a fresh token needs no cache"
        clock.advance(expires_in / 2 if expires_in < 600 else expires_in - 300)
    assert fleet.gateway.requests == 5


def test_counts_of_operations_with_a_rate_limit(clock: FakeClock) -> None:
    """Five operations where the requests are counted in the fleet as well."""
    fleet = Fleet(clock, 2, limit=(10, 60))
    leader, follower = fleet.processes
    assert (leader.call(), operations(leader)) == (200, 5)
    assert (follower.call(), operations(follower) <= 2) == (200, True)


def test_counts_of_operations_after_a_401(fleet: Fleet) -> None:
    """Four operations for the process that has a new token requested after a 401, and one for each that adopts it."""
    first, second = fleet.processes
    assert (first.call(), second.call()) == (200, 200)
    fleet.gateway.revoke()
    operations(first), operations(second)
    assert (first.call(), operations(first)) == (200, 4)
    assert (second.call(), operations(second)) == (200, 1)
    assert fleet.gateway.requests == 2


# -- failures


def test_refusal_is_shared(fleet: Fleet) -> None:
    """What the gateway refused to one process the others get from the cache, for the same pause."""
    first, second = fleet.processes
    fleet.gateway.answers = [answer(401, error="invalid_client")]
    for process in (first, second):
        with pytest.raises(InvalidClientError, match="invalid_client") as caught:
            process.call()
        assert caught.value.status_code == 401
    assert fleet.gateway.requests == 1
    fleet.clock.advance(5.01)
    assert second.call() == 200


def test_outage_is_shared(fleet: Fleet) -> None:
    """After the retries of one process, the others wait out the pause as well."""
    first, second = fleet.processes
    fleet.gateway.answers = [answer(503)] * 4
    for process in (first, second):
        with pytest.raises(TokenEndpointUnavailableError):
            process.call()
    assert fleet.gateway.requests == 4


def test_retry_after_is_shared(fleet: Fleet) -> None:
    """A Retry-After stops the whole fleet: no process sends a token request before it is over."""
    first, second = fleet.processes
    fleet.gateway.answers = [answer(429, {"Retry-After": "200"})]
    for process in (first, second):
        with pytest.raises(RateLimitError):
            process.call()
    assert fleet.gateway.requests == 1
    fleet.clock.advance(201)
    assert second.call() == 200


def test_retry_of_a_leader_is_waited_for(fleet: Fleet) -> None:
    """While a leader waits before a retry, no other process sends, and all of them get its token."""
    first, second = fleet.processes
    fleet.gateway.answers = [answer(429, {"Retry-After": "20"})]
    leading = first.until(first.start(), Sleep)
    started = fleet.clock.monotonic
    waiting = second.until(second.start(), Sleep)
    assert fleet.gateway.requests == 1
    first.finish(leading)
    second.finish(waiting)
    assert fleet.gateway.requests == 2
    assert fleet.clock.monotonic - started >= 20


def test_rate_limit_holds_for_the_fleet(clock: FakeClock) -> None:
    """Three processes together send no more token requests in a window than one may."""
    fleet = Fleet(clock, 3, limit=(2, 60), max_wait=5.0)
    sent = []
    for number in range(6):
        process = fleet.processes[number % 3]
        process.run(process.source.invalidate(None, clock.monotonic + 4))
        try:
            process.call()
        except RateLimitError as error:
            sent.append(error.retry_after)
    assert fleet.gateway.requests == 2
    assert all(wait is not None and 0 < wait <= 61 for wait in sent)
    assert len(sent) == 4


# -- 401s


def test_revoked_token_is_replaced_once(clock: FakeClock) -> None:
    """After a revocation one process requests a token, and the others find it when their 401 comes."""
    fleet = Fleet(clock, 5)
    assert {process.call() for process in fleet.processes} == {200}
    fleet.gateway.revoke()
    for process in fleet.processes:
        request = Request()
        assert process.call(request) == 200
        assert request.statuses == [401, 200]
    assert fleet.gateway.requests == 2


def test_path_that_always_rejects_backs_off_for_the_fleet(fleet: Fleet) -> None:
    """Two rejected tokens in a row make the whole fleet return the 401 for 5, 10, 20, 40, then 60 s."""
    fleet.processes[0].call()
    fleet.gateway.accepts = _Nothing()
    gaps, last = [], None
    for second_number in range(200):
        process = fleet.processes[second_number % 2]
        before = fleet.gateway.requests
        assert process.call() == 401
        if fleet.gateway.requests > before:
            if last is not None:
                gaps.append(round(fleet.clock.monotonic - last))
            last = fleet.clock.monotonic
        fleet.clock.advance(1)
    assert gaps[:4] == [5, 10, 20, 40]
    assert all(gap == 60 for gap in gaps[4:])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rejected_bodies_that_cannot_be_sent_again_back_off_together(clock: FakeClock, size: int) -> None:
    """A token that is dropped after such a 401 counts for the whole fleet, whichever process dropped it."""
    fleet, requested = Fleet(clock, size), []
    fleet.gateway.accepts = _Nothing()
    for second in range(150):
        before, request = fleet.gateway.requests, Request()
        request.is_replayable = False
        assert fleet.processes[second % size].call(request) == 401
        if fleet.gateway.requests > before:
            requested.append(second)
        clock.advance(1)
    # Cold, and after each drop: a process whose turn it is asks a second late at most.
    assert len(requested) == 7
    assert all(abs(at - expected) <= 2 for at, expected in zip(requested, (0, 1, 6, 16, 36, 76, 136), strict=True))


class _Nothing(set[str]):
    """The tokens of a path that accepts none."""

    def __contains__(self, item: object) -> bool:
        return False


def test_accepted_replay_ends_the_back_off(fleet: Fleet) -> None:
    """Once the API accepts a token that was requested because of a 401, the next revocation is healed at once."""
    first, second = fleet.processes
    assert (first.call(), second.call()) == (200, 200)
    for _ in range(6):
        fleet.gateway.revoke()
        assert (first.call(), second.call()) == (200, 200)
        record = first.record()
        assert record is not None
        assert (record.verdict, record.rejection.count) == (Verdict.ACCEPTED, 0)
        fleet.clock.advance(1)


# -- a cache that fails


TIMES = pytest.mark.parametrize("times", [1, 2], ids=["once", "with its repetition"])


@TIMES
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", range(8))
def test_no_call_fails_for_one_operation(fleet: Fleet, number: int, fault: Any, times: int) -> None:
    """Whichever operation fails, hangs or comes late: through start, renewal and revocation each call gets its 200."""
    first, second = fleet.processes
    first.arm(number, fault, times)
    for action in (lambda: None, lambda: fleet.clock.advance(160), fleet.gateway.revoke):
        action()
        for process in (second, first, second) if times == 2 else (first, second, first):
            started = fleet.clock.monotonic
            assert process.call() == 200
            assert fleet.clock.monotonic - started <= 21, "no longer than a lease and a few operations"
            process.do_later()


@TIMES
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("late", [False, True], ids=["done at once", "done after the second revocation"])
def test_lost_publication_costs_no_later_call(fleet: Fleet, number: int, fault: Any, times: int, late: bool) -> None:
    """The gateway revokes, and as the first process publishes its replacement, or that it was accepted, an operation fails.

    Half a minute later the gateway revokes again: all calls get 200, in every process.
    """
    first, second = fleet.processes
    third = fleet.join()
    everybody = (first, second, third)
    assert [process.call() for process in everybody] == [200] * 3
    fleet.gateway.revoke()
    first.arm(number, fault, times)
    assert [process.call() for process in everybody] == [200] * 3
    if not late:
        first.do_later()
    for _ in range(3):
        fleet.clock.advance(30)
        fleet.gateway.revoke()
        # A process that was alone with its token is not the first to find out: see the next test but one.
        order = (second, third, first) if times == 2 else everybody
        assert [process.call() for process in order] == [200] * 3
        first.do_later()


def test_lost_acceptance_is_no_rejection(fleet: Fleet) -> None:
    """The very bug: the acceptance was lost, and the next revocation must not find a token on probation."""
    first, second = fleet.processes
    assert (first.call(), second.call()) == (200, 200)
    fleet.gateway.revoke()
    first.arm(3, "fails", 2)
    assert first.call() == 200
    record = first.record()
    assert record is not None
    assert record.verdict is Verdict.NONE, "its acceptance was not written"
    assert second.call() == 200
    fleet.clock.advance(30)
    fleet.gateway.revoke()
    assert (second.call(), first.call()) == (200, 200)
    record = first.record()
    assert record is not None
    assert record.rejection.count == 0


def test_token_of_a_process_that_was_alone(fleet: Fleet) -> None:
    """Two failures in a row: the process goes on alone with a token of its own. When that is revoked, it replays with
    the fleet's, which is revoked as well: that one call gets the 401, no back-off follows, and the next call a 200.
    """
    first, second = fleet.processes
    assert (first.call(), second.call()) == (200, 200)
    fleet.gateway.revoke()
    first.arm(0, "fails", 2)
    assert (first.call(), second.call(), fleet.gateway.requests) == (200, 200, 3)
    fleet.clock.advance(30)
    fleet.gateway.revoke()
    first.call(request := Request())
    assert (request.statuses, request.sent) == ([401, 401], ["token-2", "token-3"])
    assert (first.call(), second.call()) == (200, 200)
    record = first.record()
    assert record is not None
    assert record.rejection.count == 0


def test_late_lease_is_short(fleet: Fleet) -> None:
    """A lease that was written late and that nobody uses delays others for its own length at most."""
    first, second = fleet.processes
    first.arm(0, "hangs and is done later", 2)
    assert first.call() == 200
    first.do_later()
    fleet.clock.advance(160)
    assert second.call() == 200
    started = fleet.clock.monotonic
    fleet.gateway.revoke()
    assert second.call() == 200
    assert fleet.clock.monotonic - started <= 16


def test_ambiguous_lease_counts_as_taken(fleet: Fleet) -> None:
    """A lease that was written although the operation failed is one's own: the process leads, and waits for nobody."""
    first, _ = fleet.processes
    first.arm(0, "fails after it was done")
    started = fleet.clock.monotonic
    assert first.call() == 200
    assert fleet.clock.monotonic == started


def test_cache_that_is_down_keeps_nobody_waiting(fleet: Fleet) -> None:
    """With the cache down from the start, each process goes on alone, and a first call takes 2 s more at most."""
    for process in fleet.processes:
        process.faults = dict.fromkeys(range(1000), "hangs")
        started = fleet.clock.monotonic
        assert process.call() == 200
        assert fleet.clock.monotonic - started <= 2
    assert fleet.gateway.requests == 2


def test_known_lease_is_waited_out_without_the_cache(fleet: Fleet) -> None:
    """A process that has seen another's lease, and then loses the cache, waits until that lease is over."""
    first, second = fleet.processes
    died = first.until(first.start(), SendTokenRequest)
    waiting = second.until(second.start(), Sleep)
    second.arm(0, "fails", 50)
    started = fleet.clock.monotonic
    second.finish(waiting)
    assert 14 <= fleet.clock.monotonic - started <= 16
    assert (fleet.gateway.requests, died.is_over) == (1, False)


def test_due_token_is_served_when_the_cache_fails_for_the_first_time(fleet: Fleet) -> None:
    """While a token is valid, a cache that has just failed is given its pause: others may have renewed by then."""
    first, second = fleet.processes
    assert (first.call(), second.call()) == (200, 200)
    fleet.clock.advance(200)
    first.arm(0, "fails", 2)
    first.call(request := Request())
    assert (request.sent, fleet.gateway.requests) == (["token-1"], 1)
    second.call()
    fleet.clock.advance(6)
    first.call(request := Request())
    assert (request.sent, fleet.gateway.requests) == (["token-2"], 2)


def test_flush_of_the_cache_costs_one_token(fleet: Fleet) -> None:
    """A cache that forgets everything costs no call, and no back-off."""
    assert [process.call() for process in fleet.processes] == [200, 200]
    fleet.dict.values.clear()
    assert [process.call() for process in fleet.processes] == [200, 200]
    fleet.clock.advance(200)
    assert [process.call() for process in fleet.processes] == [200, 200]
    assert fleet.gateway.requests <= 3


def test_lead_is_given_back(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is cancelled at its token request releases its lease: the next process does not wait for it."""
    first, second = fleet.processes
    leading = first.until(first.start(), SendTokenRequest)
    jobs: list[Any] = []
    monkeypatch.setattr(SharedStore, "change_later", lambda _store, *arguments: jobs.append(arguments))
    leading.close()
    ((codec, decide),) = jobs
    first.store._changed(codec, decide, None)
    started = fleet.clock.monotonic
    assert second.call() == 200
    assert fleet.clock.monotonic == started


def test_reset_forgets_this_process_and_not_the_cache(fleet: Fleet) -> None:
    """After a reset a process finds the fleet's token again, and requests none."""
    first, _ = fleet.processes
    assert first.call() == 200
    first.source.reset()
    assert first.local.value.token is None
    assert first.call() == 200
    assert fleet.gateway.requests == 1


def test_result_of_a_flight_before_a_reset_is_dropped(fleet: Fleet) -> None:
    """What was in flight when everything was forgotten ends, and is not remembered."""
    first, _ = fleet.processes
    flying = first.until(first.start(), SendTokenRequest)
    first.source.reset()
    first.finish(flying)
    assert first.local.value.token is None


def test_single_operation_is_bounded(fleet: Fleet) -> None:
    """An operation waits 1 s at most without a token, and 0.25 s with one."""
    first, _ = fleet.processes
    steps = first.start()
    assert isinstance(steps.effect, RunInThread)
    assert steps.effect.seconds == 1.0
    first.finish(steps)
    fleet.clock.advance(200)
    steps = first.start()
    assert isinstance(steps.effect, RunInThread)
    assert steps.effect.seconds == 0.25


# -- whatever happens

troubles = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "time", "time", "revoke", "revoke", "fault", "fault", "late", "flush"]),
        st.integers(0, 2),
        st.integers(0, 9),
        st.sampled_from(FAULTS),
    ),
    max_size=40,
)


@pytest.mark.parametrize("times", [1, 3], ids=["one at a time", "any"])
@given(events=troubles)
def test_no_trouble_of_the_cache_costs_a_call(times: int, events: list[tuple[str, int, int, Any]]) -> None:
    """Faults of the cache, pauses and revocations in any order: each call gets 200; after a revocation of a token that a
    process got alone, its second call at the latest.
    """
    with faked_clock() as clock:
        fleet = Fleet(clock, 3)
        for kind, who, number, fault in events:
            process = fleet.processes[who]
            match kind:
                case "time":
                    clock.advance((0.3, 1, 4, 11, 31, 62, 100, 170, 290, 400)[number])
                case "revoke":
                    fleet.gateway.revoke()
                    for one in fleet.processes:
                        assert one.call() == 200 or (times > 1 and one.call() == 200)
                case "fault":
                    process.arm(number % 5, fault, 1 + number % times)
                case "late":
                    process.do_later()
                case "flush" if times > 1:
                    fleet.dict.values.clear()
                case _:
                    assert process.call() == 200


# -- over real threads and a gateway on loopback


@pytest.mark.parametrize("failures", [1, 2], ids=["once", "with its repetition"])
@pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done all the same"])
@pytest.mark.parametrize("auth_class", [AxiaAuth, AvistaAuth, BS2Auth], ids=lambda cls: cls.provider.name)
def test_two_auth_objects_over_one_dict(
    auth_class: Auth, is_done: bool, failures: int, sandbox: Sandbox, clock: FakeClock
) -> None:
    """The same through the public face: whichever operation of the first replacement fails, nobody ever sees a 401."""
    for number in range(8):
        store = Dict(lambda: clock.monotonic)
        caches = Faulty(store), Faulty(store)
        headers = {"X-Case": f"{number}-{failures}-{is_done}"}
        one, two = (make(auth_class, sandbox, cache=cache, headers=headers) for cache in caches)
        url = api_url(auth_class, sandbox)

        def status(auth: Any, url: str = url) -> int:
            return requests.get(url, auth=auth, timeout=20).status_code

        assert [status(one), status(two)] == [200, 200]
        sandbox.revoke_all()
        caches[0].fails_afterwards = is_done
        _fail_at(caches[0], number, failures)
        assert [status(one), status(two)] == [200, 200], number
        clock.advance(30)
        sandbox.revoke_all()
        assert [status(two), status(one), status(two)] == [200, 200, 200], number
        clock.advance(61)


def _fail_at(cache: Faulty, number: int, failures: int) -> None:
    """Let the operation of this number, counted from now on, fail, and as many in all as said."""
    begin, maybe = len(cache.operations), cache._maybe

    def counted(operation: Any) -> Any:
        cache.failing = int(number < len(cache.operations) - begin <= number + failures)
        return maybe(operation)

    cache._maybe = counted  # type: ignore[method-assign]
