"""Single flight: one caller works, all others wait for what comes of it. For threads, asyncio and trio at once.

The rules:

- A leader ends its flight (`_land`), or hands the lead to one waiter (`_hand_over`). Whatever
  happens to it, one of the two runs: in the `except` clauses of `_lead`.
- A waiter that leaves after it was promoted, but before it led, passes the lead on.
- A leader that vanishes without a trace (its event loop was stopped for good) holds a lease only, which
  it renews at each step; an heir that does not take the lead soon is passed over; and a leader
  that cannot go on before its waiter does, since they share a thread, is not waited for.
- Failures are shared; impatience is not: a leader that is cancelled or runs out of its own
  `max_wait` hands over, and what it met is told to nobody else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator
from typing import Any

from ._flow import Call, Clock, ConnectionLostError, Effect, Join, OutOfTimeError, Sleep, Steps, TokenRequest, Waiter
from ._fork import locked, process_id
from .exceptions import BaaSAuthError, TokenEndpointUnavailableError

__all__ = ["FULL", "ONCE", "SingleFlight", "no_token"]

ONCE, FULL = 1, 2
"""How hard a flight tries: one attempt, because a usable token remains; or with retries."""

_MAX_CONNECTIONS_LOST = 2
_PATIENCE_THAT_COUNTS = 1.0
_LOOK_AGAIN = 3.0  # seconds: a waiter looks this often whether there is still somebody to wait for


class Flight:
    """One piece of work under way, and who waits for it."""

    __slots__ = ("deadline", "done", "effort", "error", "heir", "leader", "lease", "lost", "process_id", "waiters")

    def __init__(self, effort: int, deadline: float, lease: float) -> None:
        self.effort = effort
        self.deadline = deadline
        self.waiters: dict[Waiter, None] = {}
        self.heir: Waiter | None = None  # promoted, but not yet leading
        self.leader = 0  # the thread that leads
        self.lease = lease  # when, on the monotonic clock, the leader or the heir is given up
        self.lost = 0
        self.process_id = process_id()
        self.done = False
        self.error: BaaSAuthError | None = None


class SingleFlight:
    """Runs one flow at a time for all who ask.

    Args:
        provider: the provider's name, for errors.
        clock: tells the time.
    """

    __slots__ = ("_clock", "_flight", "_provider")

    def __init__(self, provider: str, clock: Clock) -> None:
        self._provider = provider
        self._clock = clock
        self._flight: Flight | None = None

    @property
    def busy(self) -> bool:
        """Whether someone is at work."""
        if self._flight is None:
            return False
        with locked():
            return self._live_flight() is not None

    def run(
        self, work: Callable[[], Generator[Effect, Any, None]], effort: int, deadline: float, *, join: bool = True
    ) -> Generator[Effect, Any, None]:
        """Do `work`, or wait for whoever does; afterwards, look whether what was wanted is there.

        Args:
            work: makes the flow to run, should this caller lead.
            effort: `ONCE` or `FULL`; the failure of a lesser flight than this is not raised.
            deadline: the caller's patience ends at this time on the monotonic clock.
            join: whether to wait for somebody else's work, or return at once.

        Raises:
            BaaSAuthError: the work failed, here or at the leader's; each caller gets its own copy.
        """
        with locked():
            flight = self._live_flight()
            leads = flight is None
            if flight is None:
                flight = self._flight = self._new_flight(effort, deadline)
            elif not join:
                return
            else:
                waiter = Waiter(deadline)
                flight.waiters[waiter] = None
        to_lead = flight if leads else (yield from self._wait(flight, waiter, effort))
        if to_lead is not None:
            yield from self._lead(to_lead, work)
        elif flight.error is not None and flight.effort >= effort:
            raise flight.error.own_copy()

    def _new_flight(self, effort: int, deadline: float) -> Flight:
        return Flight(effort, deadline, self._clock().monotonic + _LOOK_AGAIN)  # until the leader renews the lease

    def _live_flight(self) -> Flight | None:
        """Return the flight under way, once whoever has vanished from it is given up."""
        flight = self._flight
        if flight is not None and flight.process_id != process_id():
            self._flight = None  # after a fork: its leader is not in this process
        elif flight is not None and self._clock().monotonic > flight.lease:
            if flight.heir is not None:
                flight.heir.promoted = False
                self._hand_over(flight)
            else:
                self._land(flight, None)  # all look again
        return self._flight

    def _wait(self, flight: Flight, waiter: Waiter, effort: int) -> Generator[Effect, Any, Flight | None]:
        """Wait until the flight is over, or return the one that is this caller's to lead."""
        leads = False
        try:
            while not (waiter.woken or flight.done) and (left := waiter.deadline - self._clock().monotonic) > 0:
                stuck = yield Join(waiter, min(left, _LOOK_AGAIN), flight.leader)
                with locked():
                    if stuck and flight.leader and self._flight is flight:
                        self._flight = self._new_flight(effort, waiter.deadline)
                        return self._flight
                    self._live_flight()
            with locked():
                if not flight.done and self._clock().monotonic >= waiter.deadline:
                    raise no_token(self._provider, "none came within max_wait")
                if waiter.promoted:
                    leads = True
                    flight.effort, flight.deadline, flight.heir = effort, waiter.deadline, None
            return flight if leads else None
        finally:
            with locked():
                flight.waiters.pop(waiter, None)
                if waiter.promoted and not leads:
                    self._hand_over(flight)

    def _lead(self, flight: Flight, work: Callable[[], Generator[Effect, Any, None]]) -> Generator[Effect, Any, None]:
        flight.leader = threading.get_ident()
        try:
            yield from self._leased(flight, work())
        except OutOfTimeError as late:
            self._hand_over_to_the_patient(flight, late.error)
            raise late.error from late.error.__cause__
        except ConnectionLostError:
            flight.lost += 1
            if flight.effort == FULL and flight.lost < _MAX_CONNECTIONS_LOST:
                self._hand_over(flight)
            else:
                self._land(flight, no_token(self._provider, "the token endpoint cannot be reached"))
            raise
        except BaaSAuthError as error:
            self._land(flight, error)
            raise
        except BaseException:  # cancelled, closed, interrupted, or a bug: never the waiters' fault
            self._hand_over(flight)
            raise
        else:
            self._land(flight, None)

    def _leased(self, flight: Flight, flow: Generator[Effect, Any, None]) -> Generator[Effect, Any, None]:
        """Do as ``yield from flow``, and renew the lease before each step; stop once it is lost."""
        steps = Steps(flow)
        while (effect := steps.next()) is not None:
            if self._flight is not flight:
                flow.close()
                return
            flight.lease = self._clock().monotonic + _bound(effect) + _LOOK_AGAIN
            try:
                steps.result = yield effect
            except BaseException as raised:
                steps.error = raised

    def _land(self, flight: Flight, error: BaaSAuthError | None) -> None:
        """End the flight and tell everyone."""
        with locked():
            flight.done, flight.error = True, error and error.own_copy()
            if self._flight is flight:
                self._flight = None
            waiters = list(flight.waiters)
        for waiter in waiters:
            waiter.wake()

    def _hand_over(self, flight: Flight) -> None:
        """Let the longest waiting caller lead; without any, the flight is over."""
        with locked():
            if flight.done:
                return
            while flight.waiters:
                waiter = next(iter(flight.waiters))
                del flight.waiters[waiter]
                waiter.promoted = True
                flight.heir, flight.leader = waiter, 0
                flight.lease = self._clock().monotonic + _LOOK_AGAIN
                if waiter.wake():
                    return
            if self._flight is flight:
                self._flight = None

    def _hand_over_to_the_patient(self, flight: Flight, error: BaaSAuthError) -> None:
        """Let the most patient caller lead, if it has more time than the leader had; else all fail alike."""
        with locked():
            heir = max(flight.waiters, key=lambda waiter: waiter.deadline, default=None)
            if heir is None or heir.deadline < flight.deadline + _PATIENCE_THAT_COUNTS:
                self._land(flight, error)
                return
            del flight.waiters[heir]
            flight.waiters = {heir: None, **flight.waiters}
            self._hand_over(flight)


def no_token(provider: str, why: str) -> TokenEndpointUnavailableError:
    """Return what to tell those who wait for a token in vain."""
    return TokenEndpointUnavailableError(f"{provider}: no token, {why}", provider=provider)


def _bound(effect: Effect) -> float:
    """Return the seconds that a step takes at the most, if its driver is alive."""
    match effect:
        case TokenRequest():
            return 4 * effect.timeout  # connecting, writing, reading, and waiting for a connection
        case Sleep():
            return effect.seconds
        case Call() | Join():
            return effect.timeout
    return math.inf
