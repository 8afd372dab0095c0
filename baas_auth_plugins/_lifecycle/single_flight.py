"""Single flight: one caller works, and all others wait for the outcome, in threads, asyncio and trio at once.

The rules:

- All waiters get the leader's error. A cancelled or interrupted leader, or one that runs out of its own `max_wait`,
  hands over to one waiter instead.
- A leader always lands the flight in `_lead`, or hands over in `_leave`, even if it has not begun.
- A leader holds a lease and extends it before each slow step. A leader that vanished (its event loop was stopped for
  good) is replaced when the lease lapses. One that shares its thread with a blocking waiter is not waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .._oauth.token import now
from .._process import lock, process_id
from ..exceptions import BaaSAuthError, TokenEndpointUnavailableError
from .effects import BlockedError, ConnectionLostError, Flow, Wait, Waiter

_MOST_LOST_CONNECTIONS = 2
_LOOK_AGAIN = 3.0  # seconds after which a waiter checks whether the leader still holds its lease
_MARGIN = 5.0  # seconds that a leader may need beside its slow step
_MORE_PATIENT = 1.0  # seconds


class OutOfTimeError(Exception):
    """The leader's own `max_wait` ends, though not that of all waiters.

    Attributes:
        error: what the leader raises.
    """

    def __init__(self, error: BaaSAuthError) -> None:
        super().__init__(str(error))
        self.error = error


class Flight:
    """One piece of work, the caller that leads it, and its waiters."""

    def __init__(self, leader: Waiter, *, is_urgent: bool) -> None:
        self.leader = leader
        self.is_urgent = is_urgent
        self.waiters: dict[Waiter, None] = {}
        self.thread = 0
        self.lost_connections = 0
        self.process_id = process_id()
        self.is_over = False
        self.error: BaaSAuthError | None = None
        self.hold(0)

    def hold(self, seconds: float) -> None:
        """Extend the leader's lease over a step that takes so many seconds at most."""
        self.lease_until = now().monotonic + seconds + _MARGIN


class SingleFlight:
    """Runs one flow at a time for all callers.

    Args:
        provider: the provider's name, for errors.
    """

    __slots__ = ("_flight", "_provider")

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._flight: Flight | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a flight is under way."""
        if self._flight is None:
            return False
        with lock():
            return self._current() is not None

    def run(
        self, work: Callable[[Flight], Flow[None]], *, is_urgent: bool, deadline: float, joins: bool = True
    ) -> Flow[None]:
        """Do the work, or wait for the caller that does it.

        Args:
            work: makes the flow, if this caller leads. It gets the flight, to hold its lease.
            is_urgent: whether there is no valid token. The error of a flight that is less urgent is not raised.
            deadline: moment on the monotonic clock at which this caller's `max_wait` ends.
            joins: False to wait for no other caller.

        Raises:
            BaaSAuthError: the work failed, here or for the leader. Each caller gets an object of its own.
        """
        caller, flight = Waiter(deadline), None
        try:
            with lock():
                flight = self._current()
                if flight is None:
                    flight = self._flight = Flight(caller, is_urgent=is_urgent)
                elif not joins:
                    return
                else:
                    flight.waiters[caller] = None
            try:
                yield from self._wait(flight, caller)
            except BlockedError:
                with lock():
                    if not flight.is_over and flight.leader is not caller:  # a flight of its own
                        joined, flight = flight, Flight(caller, is_urgent=is_urgent)
                        joined.waiters.pop(caller, None)
                        if self._flight is joined:
                            self._flight = flight
            with lock():
                leads = flight.leader is caller
                if leads:
                    flight.is_urgent, flight.thread = is_urgent, threading.get_ident()
                    flight.hold(0)
            if leads:
                yield from self._lead(flight, work)
            elif not flight.is_over and now().monotonic >= deadline:
                raise no_token(self._provider, "none came within max_wait")
            elif flight.error is not None and flight.is_urgent >= is_urgent:
                raise flight.error.own_copy()
        finally:
            if flight is not None:
                self._leave(flight, caller)

    def _current(self) -> Flight | None:
        """Return the flight under way, after giving up a leader that vanished. Called with the lock."""
        flight = self._flight
        if flight is not None and flight.process_id != process_id():
            self._flight = None  # its leader stayed in the parent process
        elif flight is not None and now().monotonic > flight.lease_until:
            self._hand_over(flight)
        return self._flight

    def _wait(self, flight: Flight, caller: Waiter) -> Flow[None]:
        """Wait until the flight is over, or this caller leads it, or its time is up."""
        while not (caller.is_woken or flight.is_over or flight.leader is caller):
            left = caller.deadline - now().monotonic
            if left <= 0:
                return
            yield from Wait(caller, min(left, _LOOK_AGAIN), flight.thread)
            if not caller.is_woken:
                with lock():
                    self._current()

    def _leave(self, flight: Flight, caller: Waiter) -> None:
        """End a caller's part in a flight. A leader that was cancelled, closed or interrupted hands over."""
        with lock():
            flight.waiters.pop(caller, None)
            if flight.leader is caller and not flight.is_over:
                self._hand_over(flight)

    def _lead(self, flight: Flight, work: Callable[[Flight], Flow[None]]) -> Flow[None]:
        try:
            yield from work(flight)
        except OutOfTimeError as late:
            self._hand_over_to_the_most_patient(flight, late.error)
            raise late.error from late.error.__cause__
        except ConnectionLostError as lost:
            flight.lost_connections += 1
            if lost.error or not flight.is_urgent or flight.lost_connections >= _MOST_LOST_CONNECTIONS:
                self._land(flight, lost.error or no_token(self._provider, "the token endpoint cannot be reached"))
            raise
        except BaaSAuthError as error:
            self._land(flight, error)
            raise
        else:
            self._land(flight, None)

    def _land(self, flight: Flight, error: BaaSAuthError | None) -> None:
        """End the flight and wake everyone."""
        with lock():
            flight.error = error and error.own_copy()
            flight.is_over = True
            if self._flight is flight:
                self._flight = None
            waiters = list(flight.waiters)
        for waiter in waiters:
            waiter.wake()

    def _hand_over(self, flight: Flight) -> None:
        """Let the caller lead that waits longest. Without waiters the flight is over."""
        with lock():
            while flight.waiters and not flight.is_over:
                waiter = next(iter(flight.waiters))
                del flight.waiters[waiter]
                flight.leader, flight.thread = waiter, 0
                flight.hold(0)
                if waiter.wake():
                    return
            flight.is_over = True
            if self._flight is flight:
                self._flight = None

    def _hand_over_to_the_most_patient(self, flight: Flight, error: BaaSAuthError) -> None:
        """Let the waiter lead that has most time left. If no waiter has more than the leader had, all fail alike."""
        with lock():
            successor = max(flight.waiters, key=lambda waiter: waiter.deadline, default=None)
            if successor is None or successor.deadline < flight.leader.deadline + _MORE_PATIENT:
                self._land(flight, error)
                return
            del flight.waiters[successor]
            flight.waiters = {successor: None, **flight.waiters}
            self._hand_over(flight)


def no_token(provider: str, why: str) -> TokenEndpointUnavailableError:
    """Return the error of callers that wait in vain."""
    return TokenEndpointUnavailableError(f"{provider}: no token, {why}", provider=provider)
