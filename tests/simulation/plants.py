"""Bugs, planted one at a time into the production code: what the simulation does not catch it does not prove.

Each plant undoes one promise by patching a name or a method, as small as a slip of the pen would be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from baas_auth_plugins import _brake, _cooldown, _flight, _flow, _httpx, _requests
from baas_auth_plugins._client import Client
from baas_auth_plugins._flight import SingleFlight
from baas_auth_plugins._grant import Grant
from baas_auth_plugins._known import Known
from baas_auth_plugins._limiter import RateLimiter
from baas_auth_plugins._origin import AllowedOrigins
from baas_auth_plugins._source import TokenSource
from baas_auth_plugins._token import Instant, State, Token
from baas_auth_plugins.exceptions import BaaSAuthError

from . import simulate as simulation
from .fleet_plants import FLEET_PLANTS
from .invariants import InvariantError
from .scenario import Scenario

__all__ = ["MOST_SEEDS", "PLANTS", "Plant", "hunt", "hunt_all"]

MOST_SEEDS = 3000
"""Within so many seeds each planted bug is caught; the slowest need a leader whose event loop hangs, twice."""

_FOUND = {
    "an heir that leaves keeps the lead": 692,
    "a late failure delays the renewal of a newer token": 286,
    "no distance between voluntary renewals": 1075,
    "the fleet's rate limit is ignored": 200,
    "a late publication overwrites a newer token": 494,
}


@dataclass(frozen=True)
class Plant:
    """One bug: what is replaced by what."""

    name: str
    patches: tuple[tuple[Any, str, Any], ...]
    shared: bool = False
    """Whether it takes a shared cache to show; the others show sooner without."""

    @property
    def seeds(self) -> Iterator[int]:
        """Where to look for it: first of all where it was found before."""
        near = _FOUND.get(self.name, 0)
        return (seed % MOST_SEEDS for seed in range(near, near + MOST_SEEDS))

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the bug in the production code."""
        with ExitStack() as stack:
            for target, attribute, bug in self.patches:
                stack.enter_context(patch.object(target, attribute, bug))
            yield


def _no_single_flight(self: Any, work: Any, effort: Any, deadline: Any, *, join: bool = True) -> Any:
    yield from work()


def _uncapped(self: Token, now: Instant, leeway: float) -> State:
    left = self.remaining(now)
    if left > leeway:
        return State.FRESH
    return State.STALE if left > 60 else State.CRITICAL if left > 5 else State.DEAD


_state = Token.state


def _never_dead(self: Token, now: Instant, leeway: float) -> State:
    return min(_state(self, now, leeway), State.CRITICAL)


_reject = TokenSource.reject


def _drop_the_winner(self: TokenSource, client: Client, token: Token, *, replayable: bool) -> Any:
    result = _reject(self, client, token, replayable=replayable)
    self.known.token = None
    return result


def _keep_the_lead(self: SingleFlight, flight: Any) -> None:
    pass


def _drop_the_lead(self: SingleFlight, flight: Any) -> None:
    self._flight = None  # whoever comes next may lead; those who wait are forgotten


_own_failed = TokenSource._failed


def _late_failure(self: TokenSource, client: Any, before: Any, started: Any, error: Any, **options: Any) -> None:
    _own_failed(self, client, self.known.token, started, error, **options)


_own_landed = Known.landed


def _late_success(self: Known, *arguments: Any) -> Any:
    self.token = None
    return _own_landed(self, *arguments)


def _no_spacing(self: Known, token: Token, found: Any, _rest: float, now: Instant) -> Any:
    return _own_landed(self, token, found, 0.0, now)


_read_token = Client.read_token


def _anchored_at_the_response(self: Client, secret: Any, now: Any, response: Any, sent: Instant) -> Token:
    return _read_token(self, secret, now, response, now())


def _cancellations_count(self: SingleFlight, flight: Any) -> None:
    self._land(flight, _flight.no_token(self._provider, "its leader was cancelled"))


_own_leave = SingleFlight._hand_over


def _heir_keeps_the_lead(self: SingleFlight, flight: Any) -> None:
    if sys._getframe(1).f_code.co_name != "_wait":
        _own_leave(self, flight)


def _join_in_stale(self: SingleFlight, work: Any, effort: Any, deadline: Any, *, join: bool = True) -> Any:
    return _own_run(self, work, effort, deadline, join=True)


_own_run = SingleFlight.run


def _recover_without_release(self: Grant, *arguments: Any, **options: Any) -> Any:
    flow = _own_recover(self, *arguments, **options)
    result: Any = None
    error: BaseException | None = None
    while True:
        try:
            effect = flow.send(result) if error is None else flow.throw(error)
        except StopIteration as stop:
            return stop.value
        result = error = None
        try:
            result = None if isinstance(effect, _flow.Release) else (yield effect)
        except BaseException as raised:
            error = raised


_own_recover = Grant.recover


def _always(*_arguments: Any) -> bool:
    return True


def _nothing(*_arguments: Any) -> None:
    pass


def _by_wall_clock(self: Instant, earlier: Instant) -> float:
    return self.wall - earlier.wall


def _by_monotonic_clock(self: Instant, earlier: Instant) -> float:
    return self.monotonic - earlier.monotonic


def _shared_error(self: BaaSAuthError) -> BaaSAuthError:
    return self


_delay = RateLimiter.delay


def _only_the_limit(self: RateLimiter, now: float) -> float:
    blocked, self._blocked_until = self._blocked_until, float("-inf")
    try:
        return _delay(self, now)
    finally:
        self._blocked_until = blocked


def _only_retry_after(self: RateLimiter, now: float) -> float:
    return max(self._blocked_until - now, 0.0)


def _not_a_refusal(_error: Exception) -> bool:
    return False


PLANTS = (
    Plant("no single flight", ((SingleFlight, "run", _no_single_flight),)),
    Plant("the leeway is not capped at half the life", ((Token, "state", _uncapped),)),
    Plant("a dead token is sent", ((Token, "state", _never_dead),)),
    Plant("a late 401 drops the winner's token", ((TokenSource, "reject", _drop_the_winner),)),
    Plant("a cancelled leader keeps the lead", ((SingleFlight, "_hand_over", _keep_the_lead),)),
    Plant("a cancelled leader forgets who waits", ((SingleFlight, "_hand_over", _drop_the_lead),)),
    Plant("an heir that leaves keeps the lead", ((SingleFlight, "_hand_over", _heir_keeps_the_lead),)),
    Plant("a cancellation fails those who wait", ((SingleFlight, "_hand_over", _cancellations_count),)),
    Plant("lost connections are handed over without end", ((_flight, "_MAX_CONNECTIONS_LOST", 10**9),)),
    Plant("the brake is missing", ((_brake, "_SCHEDULE", (0.0,)),)),
    Plant("a late failure delays the renewal of a newer token", ((TokenSource, "_failed", _late_failure),)),
    Plant("a late success overwrites a newer token", ((Known, "landed", _late_success),)),
    Plant("the first cool-down never ends", ((_cooldown, "_AFTER_FAILURE", (1e9,)),)),
    Plant("no cool-down after a failed renewal", ((_cooldown, "_AFTER_FAILURE", (0.0,)),)),
    Plant("a refusal is not remembered", ((_cooldown, "is_refusal", _not_a_refusal),)),
    Plant("no distance between voluntary renewals", ((Known, "landed", _no_spacing),)),
    Plant(
        "stale callers wait for the renewal",
        ((SingleFlight, "run", _join_in_stale), (SingleFlight, "busy", property(lambda _flights: False))),
    ),
    Plant("Retry-After is ignored", ((RateLimiter, "delay", _only_the_limit), (RateLimiter, "block", _nothing))),
    Plant("the rate limit is ignored", ((RateLimiter, "delay", _only_retry_after),)),
    Plant("a request counts from when it was sent", ((RateLimiter, "answered", _nothing),)),
    Plant("retries without end", ((_flow, "_RETRIES", 10**9),)),
    Plant("expiry is anchored at the response", ((Client, "read_token", _anchored_at_the_response),)),
    Plant("age by the wall clock alone", ((Instant, "since", _by_wall_clock),)),
    Plant("age by the monotonic clock alone", ((Instant, "since", _by_monotonic_clock),)),
    Plant("a consumed body is replayed (httpx)", ((_httpx, "_is_replayable", _always),)),
    Plant(
        "a consumed body is replayed (requests)",
        ((_requests, "_is_replayable", _always), (_requests, "_rewind", _nothing)),
    ),
    Plant("a file is not rewound (requests)", ((_requests, "_rewind", _nothing),)),
    Plant("every origin gets the token", ((AllowedOrigins, "admit", _always),)),
    Plant("a 401 is not read before the wait", ((Grant, "recover", _recover_without_release),)),
    Plant("all who wait are raised one exception object", ((BaaSAuthError, "own_copy", _shared_error),)),
    Plant("a fork leaves the flight to the child", ((simulation, "_after_fork_in_child", _nothing),)),
    *(Plant(name, patches, shared=True) for name, patches in FLEET_PLANTS),
)


def hunt(plant: Plant) -> tuple[int, str] | None:
    """Return the first seed that catches a planted bug, and by which invariant; None if none does."""
    for seed in plant.seeds:
        if plant.shared != Scenario.draw(seed).shared_cache:
            continue
        with plant.planted():
            invariant = _broken(seed)
        if invariant and not _broken(seed):  # that is, for the plant's sake alone
            return seed, invariant
    return None


def _broken(seed: int) -> str | None:
    try:
        simulation.simulate(seed)
    except InvariantError as violation:
        return violation.invariant
    return None


def hunt_all(say: Callable[[str], object]) -> int:
    """Plant each bug in turn, and print what caught it; return how many got away."""
    free = 0
    for plant in PLANTS:
        found = hunt(plant)
        free += found is None
        seed, invariant = found or ("-", "NOT CAUGHT")
        say(f"{plant.name:52} seed {seed!s:>5}  {invariant}")
    say(f"\n{len(PLANTS) - free} of {len(PLANTS)} planted bugs were caught")
    return free
