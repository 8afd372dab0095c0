"""Single flight, stepped by hand: who works, who waits, and what happens when whoever works is gone."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from conftest import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import BaaSAuthError, RateLimitError, TokenEndpointError, TokenEndpointUnavailableError, _fork
from baas_auth_plugins._flight import FULL, ONCE, SingleFlight
from baas_auth_plugins._flow import ConnectionLostError, Join, OutOfTimeError, Sleep, TokenRequest, Waiter
from baas_auth_plugins._token import Instant

WORK = TokenRequest("https://gateway.example/token", {}, b"", 1000)  # what a leader is at while it leads


class Airport:
    """A single flight and a clock to run it by; counts the leaders."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.flights = SingleFlight("axia", lambda: Instant(self.clock.wall, self.clock.monotonic))
        self.led = 0
        self.steps = [WORK]

    def work(self) -> Generator[Any, Any, None]:
        self.led += 1
        yield from self.steps


class Caller:
    """One caller of the flight, stopped wherever it yields."""

    def __init__(self, airport: Airport, *, effort: int = FULL, patience: float = 60, join: bool = True) -> None:
        deadline = airport.clock.monotonic + patience
        self.flow = airport.flights.run(airport.work, effort, deadline, join=join)
        self.effect: Any = None
        self.done = False
        self.error: BaseException | None = None
        self.go()

    def go(self, error: BaseException | None = None, *, stuck: bool = False) -> None:
        """Let it go on to its next yield or to its end: with an error, or from a wait that was over, or in vain."""
        try:
            if error is not None:
                self.effect = self.flow.throw(error)
            else:
                self.effect = self.flow.send(stuck or None)
        except StopIteration:
            self.done = True
        except Exception as raised:
            self.done, self.error = True, raised
        if self.done:
            self.effect = None

    def leave(self) -> None:
        """Go away without a word, as a cancelled task or a closed flow does."""
        self.flow.close()
        self.done, self.effect = True, None

    @property
    def leads(self) -> bool:
        return isinstance(self.effect, TokenRequest)

    @property
    def waits(self) -> bool:
        return isinstance(self.effect, Join) and not self.effect.waiter.woken

    @property
    def woken(self) -> bool:
        return isinstance(self.effect, Join) and self.effect.waiter.woken


@pytest.fixture
def airport() -> Airport:
    return Airport()


def callers(airport: Airport, number: int, **options: Any) -> list[Caller]:
    return [Caller(airport, **options) for _ in range(number)]


def test_one_works_and_all_get_it(airport: Airport) -> None:
    """Of a hundred callers one works; when it is done, all others are woken and go on."""
    leader, *waiters = callers(airport, 100)
    assert leader.leads
    assert all(caller.waits for caller in waiters)
    leader.go()
    assert leader.done
    assert all(caller.woken for caller in waiters)
    for caller in waiters:
        caller.go()
    assert all(caller.done and caller.error is None for caller in waiters)
    assert airport.led == 1
    assert not airport.flights.busy


def test_next_flight_is_a_new_one(airport: Airport) -> None:
    """What was done before is not done for later callers: they work anew."""
    Caller(airport).go()
    assert Caller(airport).leads
    assert airport.led == 2


def test_failure_is_shared(airport: Airport) -> None:
    """Fifty callers learn of one failure together, each with an exception of its own, and nobody tries again."""
    leader, *waiters = callers(airport, 50)
    leader.go(TokenEndpointUnavailableError("down", provider="axia", status_code=503))
    assert all(caller.woken for caller in waiters)
    for caller in waiters:
        caller.go()
    errors = [caller.error for caller in (leader, *waiters)]
    assert all(type(e) is TokenEndpointUnavailableError and e.status_code == 503 and str(e) == "down" for e in errors)
    assert len({id(error) for error in errors}) == 50
    assert airport.led == 1
    assert not airport.flights.busy


def test_caller_that_need_not_wait_does_not(airport: Airport) -> None:
    """Whoever has a token that still lives returns at once while another works."""
    leader = Caller(airport)
    bystander = Caller(airport, join=False)
    assert bystander.done
    assert bystander.error is None
    assert leader.leads


def test_caller_that_need_not_wait_leads(airport: Airport) -> None:
    """With nobody at work it is the one that works."""
    assert Caller(airport, join=False).leads


# -- a leader's end


@pytest.mark.parametrize(
    "end", [Caller.leave, lambda c: c.go(KeyboardInterrupt()), lambda c: c.go(ZeroDivisionError())]
)
def test_leader_that_goes_hands_over(airport: Airport, end: Any) -> None:
    """A leader that is cancelled, interrupted or has a bug hands over to the longest waiting; the others wait on."""
    leader, second, third = callers(airport, 3)
    try:
        end(leader)
    except KeyboardInterrupt:
        leader.done = True
    assert second.woken
    assert third.waits
    second.go()
    assert second.leads
    second.go()
    third.go()
    assert (second.error, third.error, third.done, airport.led) == (None, None, True, 2)


def test_leader_that_goes_alone_ends_the_flight(airport: Airport) -> None:
    """With nobody waiting nothing is left behind."""
    Caller(airport).leave()
    assert not airport.flights.busy
    assert Caller(airport).leads


def test_any_number_of_cancellations_costs_nobody_anything(airport: Airport) -> None:
    """Impatient callers never cost a patient one its token, however many of them come and go."""
    *impatient, patient = callers(airport, 41)
    for caller in impatient:
        if not caller.leads:
            caller.go()
        assert caller.leads
        caller.leave()
    patient.go()
    assert patient.leads
    patient.go()
    assert patient.error is None


def test_waiter_that_goes_is_forgotten(airport: Airport) -> None:
    """A waiter that was cancelled before is not promoted."""
    leader, second, third = callers(airport, 3)
    second.leave()
    leader.leave()
    assert third.woken
    third.go()
    assert third.leads


def test_promoted_waiter_that_goes_passes_it_on(airport: Airport) -> None:
    """A waiter that is cancelled after its promotion, but before it runs, promotes the next."""
    leader, second, third = callers(airport, 3)
    leader.leave()
    assert second.woken
    assert third.waits
    second.leave()
    assert third.woken
    third.go()
    assert third.leads
    assert airport.led == 2


def test_promoted_waiter_that_is_late_passes_it_on(airport: Airport) -> None:
    """One whose patience ended meanwhile gets its error, and the next one leads."""
    leader = Caller(airport)
    second, third = Caller(airport, patience=5), Caller(airport)
    leader.leave()
    airport.clock.advance(5)
    second.go()
    assert isinstance(second.error, TokenEndpointUnavailableError)
    third.go()
    assert third.leads


def test_loop_that_is_closed_is_passed_over(airport: Airport) -> None:
    """A waiter whose event loop is gone cannot be woken, so the next one is promoted."""
    leader, second, third = callers(airport, 3)

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    second.effect.waiter.notify = closed
    leader.leave()
    third.go()
    assert third.leads


def test_closed_loops_do_not_keep_the_news_from_others(airport: Airport) -> None:
    """Nor does it hinder the end of the flight, or its error, from reaching everybody else."""
    leader, second, third = callers(airport, 3)

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    second.effect.waiter.notify = closed
    leader.go()
    assert leader.error is None
    assert third.woken


def test_wake_before_the_driver_is_ready_is_not_lost() -> None:
    """A waiter may be woken from another thread before its driver knows how to be told."""
    waiter = Waiter(60)
    waiter.wake()
    assert waiter.woken


# -- network errors


def test_first_network_error_hands_over_and_second_is_told(airport: Airport) -> None:
    """A flow whose send failed is closed by httpx: one more caller may try, then all get the typed error at once."""
    first, second, *others = callers(airport, 10)
    first.go(ConnectionLostError())
    assert isinstance(first.error, ConnectionLostError)
    assert second.woken
    assert all(caller.waits for caller in others)
    second.go()
    second.go(ConnectionLostError())
    for caller in others:
        assert caller.woken
        caller.go()
    assert {type(caller.error) for caller in others} == {TokenEndpointUnavailableError}
    assert airport.led == 2
    assert not airport.flights.busy


def test_cancellations_do_not_count_as_network_errors(airport: Airport) -> None:
    """Between two network errors any number of leaders may be cancelled."""
    queue = callers(airport, 12)
    for number, caller in enumerate(queue[:-1]):
        if not caller.leads:
            caller.go()
        assert caller.leads, number
        if number == 4:
            caller.go(ConnectionLostError())
        else:
            caller.leave()
    queue[-1].go()
    assert queue[-1].leads
    queue[-1].go()
    assert queue[-1].error is None


def test_network_errors_are_counted_per_flight(airport: Airport) -> None:
    """A later flight starts with a clean sheet."""
    alone = Caller(airport)
    alone.go(ConnectionLostError())
    assert not airport.flights.busy
    first, second, third = callers(airport, 3)
    first.go(ConnectionLostError())
    second.go()
    second.go()
    third.go()
    assert (third.done, third.error) == (True, None)


def test_network_error_of_a_renewal_is_not_tried_again(airport: Airport) -> None:
    """While a token lives one attempt is all: those who wait for it are told at once, and serve the old token."""
    leader, waiter = callers(airport, 2, effort=ONCE)
    leader.go(ConnectionLostError())
    waiter.go()
    assert isinstance(waiter.error, TokenEndpointUnavailableError)
    assert airport.led == 1


# -- effort


def test_failure_of_a_lesser_effort_is_not_told_to_the_needy(airport: Airport) -> None:
    """Who has no token at all does not make do with the failure of one attempt: it is free to look again, and work."""
    renewing, needy = Caller(airport, effort=ONCE), Caller(airport, effort=FULL)
    renewing.go(TokenEndpointUnavailableError("down"))
    needy.go()
    assert (needy.done, needy.error) == (True, None)
    assert Caller(airport).leads


def test_success_of_a_lesser_effort_is_good_for_all(airport: Airport) -> None:
    """A token is a token."""
    renewing, needy = Caller(airport, effort=ONCE), Caller(airport, effort=FULL)
    renewing.go()
    needy.go()
    assert (needy.done, needy.error, airport.led) == (True, None, 1)


def test_promoted_leader_brings_its_own_effort(airport: Airport) -> None:
    """Once a caller without a token leads, its failure counts for others without one."""
    renewing, needy, other = Caller(airport, effort=ONCE), Caller(airport), Caller(airport)
    renewing.leave()
    needy.go()
    needy.go(TokenEndpointUnavailableError("down"))
    other.go()
    assert isinstance(other.error, TokenEndpointUnavailableError)
    assert airport.led == 2


# -- time


@pytest.mark.parametrize("elapsed", [30, 31, 3000])
def test_nobody_waits_past_its_patience(airport: Airport, elapsed: float) -> None:
    """A waiter asks to be woken by its deadline at the latest, and then gets the typed error."""
    leader, waiter = Caller(airport), Caller(airport, patience=30)
    assert 0 < waiter.effect.timeout <= 30
    airport.clock.advance(elapsed)
    waiter.go()
    assert isinstance(waiter.error, TokenEndpointUnavailableError)
    assert leader.leads


def test_early_wake_is_slept_over(airport: Airport) -> None:
    """A waiter that is resumed before there is news waits on, and never beyond its deadline."""
    _, waiter = Caller(airport), Caller(airport, patience=30)
    for elapsed in (0, 10, 19):
        airport.clock.advance(elapsed)
        waiter.go()
        assert waiter.waits
    assert waiter.effect.timeout == 1


def test_landing_at_the_deadline_counts(airport: Airport) -> None:
    """What came in time is not refused because the waiter was slow to look."""
    leader, waiter = Caller(airport), Caller(airport, patience=30)
    leader.go()
    airport.clock.advance(31)
    waiter.go()
    assert waiter.error is None


def test_out_of_time_is_handed_to_the_most_patient(airport: Airport) -> None:
    """A leader whose own patience ends gets the error alone; whoever has the most time goes on."""
    leader = Caller(airport, patience=2)
    short, long, medium = (Caller(airport, patience=p) for p in (2.5, 60, 30))
    leader.go(OutOfTimeError(RateLimitError("wait", retry_after=20)))
    assert isinstance(leader.error, RateLimitError)
    assert leader.error.retry_after == 20
    assert long.woken
    assert short.waits
    assert medium.waits
    long.go()
    assert long.leads
    long.go()
    for caller in (short, medium):
        caller.go()
        assert caller.error is None
    assert airport.led == 2


def test_out_of_time_among_equals_is_shared(airport: Airport) -> None:
    """Those with no more time than the leader had are told at once: no serial convoy of attempts."""
    leader, *others = callers(airport, 20, patience=5)
    leader.go(OutOfTimeError(RateLimitError("wait", retry_after=20)))
    for caller in others:
        assert caller.woken
        caller.go()
    assert {type(caller.error) for caller in others} == {RateLimitError}
    assert airport.led == 1


def test_out_of_time_error_keeps_its_cause(airport: Airport) -> None:
    """What the network said stays the cause of what the caller sees."""
    error, cause = TokenEndpointUnavailableError("down"), OSError("no route")
    error.__cause__ = cause
    leader, waiter = callers(airport, 2)
    leader.go(OutOfTimeError(error))
    waiter.go()
    assert leader.error is not None
    assert waiter.error is not None
    assert leader.error.__cause__ is waiter.error.__cause__ is cause


def test_vanished_leader_holds_a_lease_only(airport: Airport) -> None:
    """A leader whose event loop was stopped for good is given up: nothing hangs for ever, and nobody fails for it."""
    airport.steps = [TokenRequest("https://gateway.example/token", {}, b"", 10)]
    vanished = Caller(airport)
    airport.clock.advance(10)
    waiting = Caller(airport, patience=300)
    assert waiting.waits
    airport.clock.advance(50)
    newcomer = Caller(airport)
    assert newcomer.leads
    assert waiting.woken
    waiting.go()
    assert (waiting.done, waiting.error) == (True, None)  # and free to look again
    vanished.go()  # and should it come back, it does no harm to the flight that followed
    assert vanished.error is None
    assert newcomer.leads
    assert Caller(airport).waits


def test_interrupt_before_the_lead_is_taken(airport: Airport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is interrupted, as by a signal, before its first step leaves no flight that nobody leads for ever."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SingleFlight, "_lead", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Caller(airport)
    waiting = Caller(airport)
    assert waiting.waits
    airport.clock.advance(waiting.effect.timeout + 0.1)
    waiting.go()
    assert (waiting.done, waiting.error) == (True, None)
    assert Caller(airport).leads


def test_interrupt_while_the_news_is_told(airport: Airport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is interrupted while it wakes the waiters leaves nobody waiting for a flight that is over."""
    leader, waiting = Caller(airport), Caller(airport)

    def interrupted(_: Waiter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Waiter, "wake", interrupted)
        with pytest.raises(KeyboardInterrupt):
            leader.go()
    assert not waiting.woken
    waiting.go()  # as it looks again by itself
    assert (waiting.done, waiting.error) == (True, None)


def test_waiters_notice_by_themselves(airport: Airport) -> None:
    """Nobody new need come by: those who wait look whether there is still somebody to wait for."""
    airport.steps = [TokenRequest("https://gateway.example/token", {}, b"", 1)]
    Caller(airport)
    waiting = Caller(airport)
    for _ in range(10):
        airport.clock.advance(waiting.effect.timeout)
        waiting.go()
        if waiting.done:
            break
    assert (waiting.done, waiting.error) == (True, None)
    assert Caller(airport).leads


def test_slow_leader_keeps_its_lead(airport: Airport) -> None:
    """A leader that goes on, step by step, is not given up, however long it takes in all."""
    airport.steps = [TokenRequest("https://gateway.example/token", {}, b"", 10), Sleep(30)] * 5
    leader, waiting = Caller(airport), Caller(airport, patience=1000)
    while not leader.done:
        airport.clock.advance(10 if leader.leads else 30)
        waiting.go()
        assert waiting.waits
        leader.go()
    waiting.go()
    assert (waiting.error, airport.led) == (None, 1)


def test_heir_that_does_not_take_over_is_passed_over(airport: Airport) -> None:
    """A promoted waiter whose loop was stopped is not waited for: the next one leads before long."""
    leader, heir, third = callers(airport, 3)
    leader.leave()
    assert heir.woken
    for _ in range(3):
        airport.clock.advance(third.effect.timeout)
        third.go()
        if third.leads:
            break
    assert third.leads
    heir.go()
    assert not heir.leads
    third.go()
    assert third.error is None


def test_waiting_in_the_leaders_own_thread_is_no_use(airport: Airport) -> None:
    """A sync call within the leader's own thread would wait for ever: it works by itself, and both succeed."""
    leader, nested = callers(airport, 2)
    nested.go(stuck=True)
    assert nested.leads
    nested.go()
    leader.go()
    assert (nested.done, nested.error, leader.done, leader.error) == (True, None, True, None)
    assert not airport.flights.busy


def test_forked_child_starts_afresh(airport: Airport) -> None:
    """In a child process the parent's leader does not exist, so nobody waits for it."""
    Caller(airport)
    _fork._after_fork_in_child()
    assert Caller(airport).leads


def test_other_errors_of_the_package_are_shared(airport: Airport) -> None:
    """Whatever the work tells, its kind and fields reach everyone."""
    leader, waiter = callers(airport, 2)
    leader.go(TokenEndpointError("no", provider="axia", error="E00001"))
    waiter.go()
    assert isinstance(waiter.error, BaaSAuthError)
    assert waiter.error is not leader.error
    for field in (
        "args",
        "provider",
        "status_code",
        "error",
        "error_description",
        "retry_after",
        "request",
        "response",
    ):
        assert getattr(waiter.error, field) == getattr(leader.error, field)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "leave", "fail", "lose", "late", "done", "run", "time"]),
            st.integers(0, 99),
        ),
        max_size=80,
    )
)
def test_nobody_is_ever_forgotten(events: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order, at most one works, and whoever waits has somebody at work or to be woken."""
    airport = Airport()
    alive: list[Caller] = []
    for event, number in events:
        alive = [caller for caller in alive if not caller.done]
        leaders = [caller for caller in alive if caller.leads]
        waiting = [caller for caller in alive if not caller.leads]
        assert len(leaders) <= 1
        if any(caller.waits for caller in waiting):
            assert leaders or any(caller.woken for caller in waiting)
        if event == "come":
            alive.append(Caller(airport, effort=(ONCE, FULL)[number % 2], patience=(5, 60)[number % 3 // 2]))
        elif event == "time":
            airport.clock.advance(number / 20)
        elif event == "run" and waiting:
            waiting[number % len(waiting)].go()
        elif event == "leave" and alive:
            alive[number % len(alive)].leave()
        elif leaders and event in ("fail", "lose", "late", "done"):
            error = TokenEndpointUnavailableError("down")
            outcome = {"fail": error, "lose": ConnectionLostError(), "late": OutOfTimeError(error), "done": None}
            leaders[0].go(outcome[event])
    for _ in range(3 * len(alive) + 3):
        for caller in alive:
            if not caller.done:
                caller.go()
    assert all(caller.done for caller in alive)
    assert not airport.flights.busy
