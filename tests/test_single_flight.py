"""Single flight, stepped by hand: one caller leads, all others wait, and a leader that is gone has a successor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from by_hand import Steps, faked_clock
from conftest import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import BaaSAuthError, RateLimitError, TokenEndpointError, TokenEndpointUnavailableError, _process
from baas_auth_plugins._lifecycle.effects import (
    BlockedError,
    ConnectionLostError,
    Flow,
    SendTokenRequest,
    Wait,
    Waiter,
)
from baas_auth_plugins._lifecycle.single_flight import Flight, OutOfTimeError, SingleFlight
from baas_auth_plugins._oauth.messages import TokenRequest

SECONDS = 10.0  # for one token request
LEASE = SECONDS + 5  # of a leader that sends one


class Airport:
    """A single flight, the work in it, and a clock; counts the leaders."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.flights = SingleFlight("axia")
        self.led = 0
        self.steps = [SECONDS]

    def work(self, flight: Flight) -> Flow[None]:
        self.led += 1
        for seconds in self.steps:
            flight.hold(seconds)
            yield from SendTokenRequest(TokenRequest("https://gateway.example/token", {}, b"", seconds))


class Caller(Steps):
    """One caller of the flight, stopped wherever it yields."""

    def __init__(self, airport: Airport, *, is_urgent: bool = True, patience: float = 60, joins: bool = True) -> None:
        deadline = airport.clock.monotonic + patience
        super().__init__(airport.flights.run(airport.work, is_urgent=is_urgent, deadline=deadline, joins=joins))

    @property
    def leads(self) -> bool:
        return isinstance(self.effect, SendTokenRequest)

    @property
    def waiter(self) -> Waiter:
        assert isinstance(self.effect, Wait)
        return self.effect.waiter

    @property
    def is_waiting(self) -> bool:
        return isinstance(self.effect, Wait) and not self.waiter.is_woken

    @property
    def is_woken(self) -> bool:
        return isinstance(self.effect, Wait) and self.waiter.is_woken

    @property
    def longest_wait(self) -> float:
        assert isinstance(self.effect, Wait)
        return self.effect.seconds


@pytest.fixture
def airport(clock: FakeClock) -> Airport:
    return Airport(clock)


def callers(airport: Airport, number: int, **options: Any) -> list[Caller]:
    return [Caller(airport, **options) for _ in range(number)]


def closed_loop() -> None:
    raise RuntimeError("Event loop is closed")


def test_one_leads_and_all_get_the_outcome(airport: Airport) -> None:
    """Of a hundred callers one leads; when it is done, all others are woken and go on."""
    leader, *waiters = callers(airport, 100)
    assert leader.leads
    assert all(caller.is_waiting for caller in waiters)
    leader.go()
    assert leader.is_over
    assert all(caller.is_woken for caller in waiters)
    for caller in waiters:
        caller.go()
    assert all(caller.is_over and caller.error is None for caller in waiters)
    assert airport.led == 1
    assert not airport.flights.is_busy


def test_caller_that_joins_nobody_leads_or_goes(airport: Airport) -> None:
    """A caller with a stale token leads a renewal; or it returns at once, also where the other one began just now."""
    leader = Caller(airport, joins=False)
    assert leader.leads
    other = Caller(airport, joins=False)
    assert (other.is_over, other.error) == (True, None)
    waiting = Caller(airport)
    leader.go()
    assert waiting.is_woken


def test_next_flight_is_a_new_one(airport: Airport) -> None:
    """A flight that is over serves no later callers: they start another one."""
    Caller(airport).go()
    assert Caller(airport).leads
    assert airport.led == 2


def test_failure_is_shared(airport: Airport) -> None:
    """Fifty callers get one failure together, each with an exception of its own, and none of them tries again."""
    leader, *waiters = callers(airport, 50)
    leader.fail(TokenEndpointUnavailableError("down", provider="axia", status_code=503))
    assert all(caller.is_woken for caller in waiters)
    for caller in waiters:
        caller.go()
    errors = [caller.error for caller in (leader, *waiters)]
    assert {(type(e), str(e), e.status_code) for e in errors} == {(TokenEndpointUnavailableError, "down", 503)}
    assert len({id(error) for error in errors}) == 50
    assert airport.led == 1
    assert not airport.flights.is_busy


def test_other_errors_of_the_package_are_shared(airport: Airport) -> None:
    """An error's kind and all of its fields reach each waiter."""
    leader, waiter = callers(airport, 2)
    leader.fail(TokenEndpointError("no", provider="axia", error="E00001"))
    waiter.go()
    assert isinstance(waiter.error, BaaSAuthError)
    assert waiter.error is not leader.error
    assert waiter.error.args == ("no",)
    assert vars(waiter.error) == vars(leader.error)


# -- a leader's end


@pytest.mark.parametrize(
    "end",
    [Caller.close, lambda leader: leader.fail(KeyboardInterrupt()), lambda leader: leader.fail(ZeroDivisionError())],
    ids=["closed", "interrupted", "a bug"],
)
def test_leader_that_goes_hands_over(airport: Airport, end: Callable[[Caller], object]) -> None:
    """A leader that is cancelled, interrupted or has a bug hands over to the longest waiting; the others wait on."""
    leader, second, third = callers(airport, 3)
    try:
        end(leader)
    except KeyboardInterrupt:
        assert leader.is_over
    assert second.is_woken
    assert third.is_waiting
    second.go()
    assert second.leads
    second.go()
    third.go()
    assert (second.error, third.error, third.is_over, airport.led) == (None, None, True, 2)


def test_leader_that_goes_alone_ends_the_flight(airport: Airport) -> None:
    """Without waiters nothing of the flight remains."""
    Caller(airport).close()
    assert not airport.flights.is_busy
    assert Caller(airport).leads


def test_any_number_of_cancellations_costs_nobody_anything(airport: Airport) -> None:
    """Impatient callers never cost a patient one its token, however many of them come and go."""
    *impatient, patient = callers(airport, 41)
    for caller in impatient:
        if not caller.leads:
            caller.go()
        assert caller.leads
        caller.close()
    patient.go()
    assert patient.leads
    patient.go()
    assert patient.error is None


def test_waiter_that_goes_is_forgotten(airport: Airport) -> None:
    """A waiter that was cancelled does not become the leader."""
    leader, second, third = callers(airport, 3)
    second.close()
    leader.close()
    assert third.is_woken
    third.go()
    assert third.leads


def test_successor_that_goes_hands_over(airport: Airport) -> None:
    """A waiter that is cancelled after it was chosen, but before it leads, hands over to the next."""
    leader, second, third = callers(airport, 3)
    leader.close()
    assert second.is_woken
    assert third.is_waiting
    second.close()
    assert third.is_woken
    third.go()
    assert third.leads
    assert airport.led == 2


def test_successor_leads_even_at_its_deadline(airport: Airport) -> None:
    """A successor that runs late still ends the flight for those behind it, by leading or by handing over."""
    leader = Caller(airport)
    second, third = Caller(airport, patience=5), Caller(airport)
    leader.close()
    airport.clock.advance(5)
    second.go()
    if second.leads:
        second.go()
    third.go()
    assert third.leads or third.is_over


def test_loop_that_is_closed_is_passed_over(airport: Airport) -> None:
    """A waiter whose event loop is closed cannot be woken, so the next one leads."""
    leader, second, third = callers(airport, 3)
    second.waiter.notify = closed_loop
    leader.close()
    third.go()
    assert third.leads


def test_closed_loops_keep_the_outcome_from_nobody(airport: Airport) -> None:
    """Nor does it keep the end of the flight from reaching all others."""
    leader, second, third = callers(airport, 3)
    second.waiter.notify = closed_loop
    leader.go()
    assert leader.error is None
    assert third.is_woken


def test_wake_before_the_driver_is_ready_is_not_lost() -> None:
    """A waiter can be woken from another thread before its driver has set how."""
    waiter = Waiter(60)
    assert waiter.wake()
    assert waiter.is_woken


# -- lost connections


def test_first_lost_connection_hands_over_and_the_second_ends_the_flight(airport: Airport) -> None:
    """A flow whose send failed is closed by httpx: one more caller may try, then all get the typed error at once."""
    first, second, *others = callers(airport, 10)
    first.fail(ConnectionLostError())
    assert isinstance(first.error, ConnectionLostError)
    assert second.is_woken
    assert all(caller.is_waiting for caller in others)
    second.go()
    second.fail(ConnectionLostError())
    for caller in others:
        assert caller.is_woken
        caller.go()
    assert {type(caller.error) for caller in others} == {TokenEndpointUnavailableError}
    assert airport.led == 2
    assert not airport.flights.is_busy


def test_cancellations_do_not_count_as_lost_connections(airport: Airport) -> None:
    """Beside one lost connection any number of leaders can be cancelled."""
    queue = callers(airport, 12)
    for number, caller in enumerate(queue[:-1]):
        if not caller.leads:
            caller.go()
        assert caller.leads, number
        if number == 4:
            caller.fail(ConnectionLostError())
        else:
            caller.close()
    queue[-1].go()
    assert queue[-1].leads
    queue[-1].go()
    assert queue[-1].error is None


def test_lost_connections_are_counted_per_flight(airport: Airport) -> None:
    """A later flight counts from zero."""
    alone = Caller(airport)
    alone.fail(ConnectionLostError())
    assert not airport.flights.is_busy
    first, second, third = callers(airport, 3)
    first.fail(ConnectionLostError())
    second.go()
    second.go()
    third.go()
    assert (third.is_over, third.error) == (True, None)


def test_lost_connection_of_a_renewal_is_not_tried_again(airport: Airport) -> None:
    """With a valid token there is one attempt: its waiters are woken at once, and serve the old token."""
    leader, waiter = callers(airport, 2, is_urgent=False)
    leader.fail(ConnectionLostError())
    waiter.go()
    assert isinstance(waiter.error, TokenEndpointUnavailableError)
    assert airport.led == 1


# -- urgency


def test_failure_of_a_renewal_is_not_raised_for_the_needy(airport: Airport) -> None:
    """A caller without any token is free to try with all retries after the one attempt of a renewal has failed."""
    renewing, needy = Caller(airport, is_urgent=False), Caller(airport)
    renewing.fail(TokenEndpointUnavailableError("down"))
    needy.go()
    assert (needy.is_over, needy.error) == (True, None)
    assert Caller(airport).leads


def test_failure_of_the_needy_is_raised_for_a_renewal(airport: Airport) -> None:
    """What all retries did not achieve, one attempt will not."""
    needy, renewing = Caller(airport), Caller(airport, is_urgent=False)
    needy.fail(TokenEndpointUnavailableError("down"))
    renewing.go()
    assert isinstance(renewing.error, TokenEndpointUnavailableError)


def test_success_of_a_renewal_is_good_for_all(airport: Airport) -> None:
    """A token is a token."""
    renewing, needy = Caller(airport, is_urgent=False), Caller(airport)
    renewing.go()
    needy.go()
    assert (needy.is_over, needy.error, airport.led) == (True, None, 1)


def test_successor_brings_its_own_urgency(airport: Airport) -> None:
    """Once a caller without a token leads, its failure counts for others without one."""
    renewing, needy, other = Caller(airport, is_urgent=False), Caller(airport), Caller(airport)
    renewing.close()
    needy.go()
    needy.fail(TokenEndpointUnavailableError("down"))
    other.go()
    assert isinstance(other.error, TokenEndpointUnavailableError)
    assert airport.led == 2


# -- patience


@pytest.mark.parametrize("elapsed", [30, 31, 3000])
def test_no_waiter_waits_past_its_deadline(airport: Airport, elapsed: float) -> None:
    """A waiter asks to be woken by its deadline at the latest, and then gets the typed error."""
    airport.steps = [10_000.0]
    leader, waiter = Caller(airport), Caller(airport, patience=30)
    assert 0 < waiter.longest_wait <= 30
    airport.clock.advance(elapsed)
    waiter.go()
    assert isinstance(waiter.error, TokenEndpointUnavailableError)
    assert leader.leads


def test_waiter_that_looks_early_waits_on(airport: Airport) -> None:
    """A waiter that is resumed before the end waits on, and never beyond its deadline."""
    airport.steps = [10_000.0]
    _, waiter = Caller(airport), Caller(airport, patience=30)
    for elapsed in (0, 10, 19):
        airport.clock.advance(elapsed)
        waiter.go()
        assert waiter.is_waiting
    assert waiter.longest_wait == 1


def test_outcome_at_the_deadline_counts(airport: Airport) -> None:
    """An outcome that came in time is not refused because the waiter was slow to look."""
    leader, waiter = Caller(airport), Caller(airport, patience=30)
    leader.go()
    airport.clock.advance(31)
    waiter.go()
    assert waiter.error is None


def test_leader_out_of_time_hands_over_to_the_most_patient(airport: Airport) -> None:
    """A leader whose own `max_wait` ends gets the error alone; the waiter with the most time goes on."""
    leader = Caller(airport, patience=2)
    short, long, medium = (Caller(airport, patience=p) for p in (2.5, 60, 30))
    leader.fail(OutOfTimeError(RateLimitError("wait", retry_after=20)))
    assert isinstance(leader.error, RateLimitError)
    assert leader.error.retry_after == 20
    assert long.is_woken
    assert short.is_waiting
    assert medium.is_waiting
    long.go()
    assert long.leads
    long.go()
    for caller in (short, medium):
        caller.go()
        assert caller.error is None
    assert airport.led == 2


def test_out_of_time_among_equals_is_shared(airport: Airport) -> None:
    """Waiters with no more time than the leader had fail with it: no serial convoy of attempts."""
    leader, *others = callers(airport, 20, patience=5)
    leader.fail(OutOfTimeError(RateLimitError("wait", retry_after=20)))
    for caller in others:
        assert caller.is_woken
        caller.go()
    assert {type(caller.error) for caller in others} == {RateLimitError}
    assert airport.led == 1


def test_out_of_time_keeps_its_cause(airport: Airport) -> None:
    """The network's error stays the cause of the caller's."""
    error, cause = TokenEndpointUnavailableError("down"), OSError("no route")
    error.__cause__ = cause
    leader, waiter = callers(airport, 2)
    leader.fail(OutOfTimeError(error))
    waiter.go()
    assert leader.error is not None
    assert waiter.error is not None
    assert leader.error.__cause__ is waiter.error.__cause__ is cause


# -- leaders that vanish


def test_vanished_leader_is_replaced_when_its_lease_lapses(airport: Airport) -> None:
    """A leader whose event loop was stopped for good is replaced after its step's time and 5 s, by a waiter."""
    vanished = Caller(airport)
    airport.clock.advance(LEASE)
    waiting = Caller(airport, patience=300)
    assert waiting.is_waiting
    airport.clock.advance(0.001)
    assert Caller(airport).is_waiting
    assert waiting.is_woken
    waiting.go()
    assert waiting.leads
    waiting.go()
    vanished.go()  # if it comes back, it does no harm
    assert (vanished.error, waiting.error, airport.led) == (None, None, 2)
    assert not airport.flights.is_busy


def test_vanished_leader_without_waiters_is_given_up(airport: Airport) -> None:
    """A newcomer that finds nobody but a vanished leader leads a flight of its own, which the leader does not end."""
    vanished = Caller(airport)
    airport.clock.advance(LEASE + 1)
    assert not airport.flights.is_busy
    newcomer = Caller(airport)
    assert newcomer.leads
    vanished.go()
    assert newcomer.leads
    assert Caller(airport).is_waiting


def test_waiters_notice_a_vanished_leader_by_themselves(airport: Airport) -> None:
    """No newcomer is needed: each waiter looks every 3 s whether the leader still holds its lease."""
    vanished, waiting = callers(airport, 2)
    for _ in range(10):
        assert waiting.longest_wait <= 3
        airport.clock.advance(waiting.longest_wait)
        waiting.go()
        if waiting.leads:
            break
    assert waiting.leads
    assert vanished.leads
    assert airport.led == 2


def test_slow_leader_keeps_its_lead(airport: Airport) -> None:
    """A leader that goes on, step by step, is not given up, however long it takes in all."""
    airport.steps = [10.0, 30.0] * 5
    leader, waiting = Caller(airport), Caller(airport, patience=1000)
    while not leader.is_over:
        assert isinstance(leader.effect, SendTokenRequest)
        airport.clock.advance(leader.effect.request.timeout)
        waiting.go()
        assert waiting.is_waiting
        leader.go()
    waiting.go()
    assert (waiting.error, airport.led) == (None, 1)


def test_successor_that_does_not_lead_is_passed_over(airport: Airport) -> None:
    """A successor whose loop was stopped is not waited for: the next waiter leads before long."""
    leader, successor, third = callers(airport, 3)
    leader.close()
    assert successor.is_woken
    for _ in range(3):
        airport.clock.advance(third.longest_wait)
        third.go()
        if third.leads:
            break
    assert third.leads
    successor.go()
    assert not successor.leads
    third.go()
    assert third.error is None
    if not successor.is_over:
        successor.go()
    assert (successor.is_over, successor.error, airport.led) == (True, None, 2)


@pytest.mark.parametrize("place", ["_wait", "_lead"])
def test_interrupt_before_the_lead(place: str, airport: Airport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is interrupted before its first step leaves no lead behind: the next caller leads at once."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SingleFlight, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            Caller(airport)
    assert Caller(airport).leads


def test_interrupt_before_the_wait(airport: Airport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter that is interrupted before it waits is forgotten: the lead goes to the next one."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    leader = Caller(airport)
    with monkeypatch.context() as patched:
        patched.setattr(SingleFlight, "_wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Caller(airport)
    waiting = Caller(airport)
    leader.close()
    waiting.go()
    assert waiting.leads


def test_vanished_leader_that_is_cancelled_takes_the_lead_from_nobody(airport: Airport) -> None:
    """A leader that was replaced, and is cancelled afterwards, does not hand over what another caller leads."""
    leader, second, third = callers(airport, 3)
    airport.clock.advance(LEASE + 1)
    second.go()
    assert second.leads
    leader.close()
    assert not third.is_woken


def test_interrupt_while_waiters_are_woken(airport: Airport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is interrupted while it wakes the waiters leaves no waiter behind: each looks by itself."""
    leader, waiting = Caller(airport), Caller(airport)

    def interrupted(_: Waiter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Waiter, "wake", interrupted)
        with pytest.raises(KeyboardInterrupt):
            leader.go()
    assert not waiting.is_woken
    waiting.go()
    assert (waiting.is_over, waiting.error) == (True, None)


def test_blocked_waiter_leads_a_flight_of_its_own(airport: Airport) -> None:
    """A sync call within the leader's own thread would wait for ever: it works by itself, and both succeed."""
    leader, nested = callers(airport, 2)
    nested.fail(BlockedError())
    assert nested.leads
    nested.go()
    leader.go()
    assert (nested.is_over, nested.error, leader.is_over, leader.error) == (True, None, True, None)
    assert not airport.flights.is_busy
    assert airport.led == 2


def test_wait_names_the_leaders_thread(airport: Airport) -> None:
    """A driver can tell that it would block the very thread that the leader runs in, as a successor's is not known."""
    import threading

    leader, waiter, third = callers(airport, 3)
    assert isinstance(waiter.effect, Wait)
    assert waiter.effect.thread == threading.get_ident()
    leader.close()
    third.go()
    assert isinstance(third.effect, Wait)
    assert third.effect.thread == 0


def test_forked_child_starts_afresh(airport: Airport) -> None:
    """In a child process the parent's leader does not exist, so no call waits for it."""
    leader = Caller(airport)
    _process._after_fork_in_child()
    assert not airport.flights.is_busy
    child = Caller(airport)
    assert child.leads
    leader.go()
    assert Caller(airport).is_waiting
    child.go()
    assert not airport.flights.is_busy


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "leave", "fail", "lose", "late", "done", "run", "block", "time"]),
            st.integers(0, 99),
        ),
        max_size=80,
    )
)
def test_no_caller_is_ever_forgotten(events: list[tuple[str, int]]) -> None:
    """In any order of events at most one leads unless it is blocked, and each waiter has a leader or is woken."""
    with faked_clock() as clock:
        airport, alive, blocked = Airport(clock), list[Caller](), 0
        for event, number in events:
            alive = [caller for caller in alive if not caller.is_over]
            leaders = [caller for caller in alive if caller.leads]
            waiting = [caller for caller in alive if not caller.leads]
            assert len(leaders) <= 1 + blocked
            if any(caller.is_waiting for caller in waiting):
                assert leaders or any(caller.is_woken for caller in waiting)
            if event == "come":
                alive.append(Caller(airport, is_urgent=bool(number % 2), patience=(5, 60)[number % 3 // 2]))
            elif event == "time":
                clock.advance(number / 20)
                if number > 80:  # no step of a leader takes as long as its lease
                    for leader in leaders:
                        leader.go()
            elif event == "run" and waiting:
                waiting[number % len(waiting)].go()
            elif event == "block" and waiting:
                caller = waiting[number % len(waiting)]
                blocked += caller.is_waiting
                caller.fail(BlockedError())
            elif event == "leave" and alive:
                alive[number % len(alive)].close()
            elif leaders and event in ("fail", "lose", "late"):
                error = TokenEndpointUnavailableError("down")
                outcome = {"fail": error, "lose": ConnectionLostError(), "late": OutOfTimeError(error)}
                leaders[0].fail(outcome[event])
            elif leaders and event == "done":
                leaders[0].go()
        for _ in range(3 * len(alive) + 3):
            for caller in alive:
                if not caller.is_over:
                    caller.go()
            clock.advance(1)
        assert all(caller.is_over for caller in alive)
        assert not airport.flights.is_busy
