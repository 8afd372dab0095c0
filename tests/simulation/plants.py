"""Bugs planted into the core one at a time, to prove that the invariants find them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

from baas_auth_plugins._fleet import store
from baas_auth_plugins._fleet.codec import Codec
from baas_auth_plugins._fleet.coordinator import FleetCoordinator
from baas_auth_plugins._lifecycle import call, coordinator, single_flight, source, state
from baas_auth_plugins._lifecycle.credentials import ClientCredentials
from baas_auth_plugins._lifecycle.effects import Waiter
from baas_auth_plugins._lifecycle.fetch import Attempt
from baas_auth_plugins._lifecycle.rate_limit import RateLimiter, RateLimits
from baas_auth_plugins._lifecycle.single_flight import SingleFlight
from baas_auth_plugins._lifecycle.source import TokenSource
from baas_auth_plugins._lifecycle.state import TokenState
from baas_auth_plugins._oauth.origins import AllowedOrigins
from baas_auth_plugins._oauth.token import Phase, Token
from baas_auth_plugins.exceptions import BaaSAuthError

from .scenario import Scenario
from .simulate import InvariantError, simulate

__all__ = ["PLANTS", "Plant", "hunt", "hunt_all"]

_MOST_SEEDS = 300


@dataclass(frozen=True)
class Plant:
    """A bug: what replaces what, and where the hunt begins, for one that few seeds find."""

    name: str
    target: Any
    attribute: str
    bug: Any
    is_fleets: bool = False
    first: int = 0

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant it for a while."""
        with ExitStack() as stack:
            stack.enter_context(patch.object(self.target, self.attribute, self.bug))
            yield


def _nothing(*_arguments: Any, **_options: Any) -> None:
    pass


def _flow_of_nothing(*_arguments: Any, **_options: Any) -> Any:
    return
    yield


def _each_for_itself(self: SingleFlight, work: Any, *, is_urgent: bool, deadline: float, joins: bool = True) -> Any:
    yield from self._lead(single_flight.Flight(Waiter(deadline), is_urgent=is_urgent), work)


def _keep_the_lead(self: SingleFlight, flight: Any) -> None:
    flight.lease_until = math.inf


def _fail_all(self: SingleFlight, flight: Any) -> None:
    self._land(flight, single_flight.no_token("gateway", "its leader was cancelled"))


def _never_expired(self: Token, at: Any, leeway: float) -> Phase:
    return min(_phase(self, at, leeway), Phase.CRITICAL)


def _no_margin(self: Token, leeway: float) -> float:
    return leeway


def _applies_first(self: FleetCoordinator, transition: Any, epoch: Any, *, ends_lead: bool) -> Any:
    """The lost publication: what is to be published counts as seen before it was written."""
    decide = _applied(self, transition, epoch, ends_lead=ends_lead)
    if self._seen is not None:
        self._seen = self._seen._replace(value=self._local.value)
    return decide


def _failing_publish(self: FleetCoordinator, transition: Any, epoch: Any = None, *, ends_lead: bool = False) -> Any:
    self._applied(transition, epoch, ends_lead=ends_lead)
    return
    yield


def _forgetful(self: FleetCoordinator, work: Any, owner: str, shared: Any) -> Any:
    """No process respects the lease of another."""
    return _leased(self, work, owner, shared and replace(shared, lease=None))


def _blind(self: FleetCoordinator, work: Any, owner: str, shared: Any) -> Any:
    return state.merged(self._local.value, None, state._NEVER).leased(
        owner, work.call.client.timeout + 5, coordinator.now()
    )


def _reborn(self: Codec[Any], raw: object, ttl: float, now: Any) -> Any:
    found = _decrypt(self, raw, ttl, now)
    if isinstance(found, TokenState) and found.token is not None:
        token = replace(found.token, issued_at=now.wall, monotonic=now.monotonic)
        return replace(found, token=token)
    return found


def _any_401_rejects(self: TokenSource, call: Any, token: Token, *, is_replayable: bool) -> Any:
    at = source.now()
    self.local.apply(lambda known: known.with_rejection(at))
    return (yield from _rejected(self, call, token, is_replayable=is_replayable))


def _only_the_window(self: RateLimits, limit: Any, now: Any) -> float:
    return _wait(replace(self, blocked=state.NO_BACKOFF), limit, now)


def _only_retry_after(self: RateLimits, limit: Any, now: Any) -> float:
    return self.blocked.remaining(now)


def _always(*_arguments: Any, **_options: Any) -> bool:
    return True


def _same_error(self: BaaSAuthError) -> BaaSAuthError:
    return self


def _future_counts(self: state.Backoff, now: Any) -> float:
    return max(0.0, self.seconds - (now.wall - self.since.wall))


_phase, _applied, _leased = Token.phase, FleetCoordinator._applied, FleetCoordinator._leased
_decrypt, _rejected, _wait = Codec.decrypt, TokenSource.rejected, RateLimits.wait

PLANTS = (
    Plant("no single flight", SingleFlight, "run", _each_for_itself),
    Plant("a cancelled leader keeps the lead", SingleFlight, "_hand_over", _keep_the_lead),
    Plant("a cancellation fails those who wait", SingleFlight, "_hand_over", _fail_all),
    Plant("an expired token is sent", Token, "phase", _never_expired),
    Plant("the leeway is not capped at half the life", Token, "renew_before", _no_margin),
    Plant("each 401 counts as a rejected replay", TokenSource, "rejected", _any_401_rejects),
    Plant("the back-off of rejections is missing", state, "AFTER_REJECTION", (0.0,)),
    Plant("the back-off of rejections never ends", state, "AFTER_REJECTION", (1e9,)),
    Plant("a failed renewal is not paused", state, "AFTER_FAILURE", (0.0,)),
    Plant("a refusal is not cached", state, "AFTER_REFUSAL", (0.0,)),
    Plant("the first pause never ends", state, "AFTER_FAILURE", (1e9,)),
    Plant("a moment in the future counts", state.Backoff, "remaining", _future_counts),
    Plant("Retry-After is ignored", RateLimits, "wait", _only_the_window),
    Plant("the rate limit is ignored", RateLimits, "wait", _only_retry_after),
    Plant("requests are not counted at their answer", RateLimiter, "count", _nothing),
    Plant("token requests without end", call, "_Budget", partial(call._Budget, requests=10**9)),
    Plant("a token request that a cancelled leader left is sent again", Attempt, "is_under_way", False),
    Plant("one error object for all waiters", BaaSAuthError, "own_copy", _same_error),
    Plant("every origin gets the token", AllowedOrigins, "allow", _always),
    Plant("a closed flow says nothing of its 401", ClientCredentials, "closed_after_401", _nothing, first=1000),
    Plant(
        "news counts as published before it was written", FleetCoordinator, "_applied", _applies_first, True, first=1100
    ),
    Plant("nothing is published", FleetCoordinator, "publish", _failing_publish, True),
    Plant("another's lease is not respected", FleetCoordinator, "_leased", _forgetful, True),
    Plant("no process looks before it leads", FleetCoordinator, "_leased", _blind, True),
    Plant("a shared token is reborn at each reading", Codec, "decrypt", _reborn, True),
    Plant("a record is not read after a 401", FleetCoordinator, "look", _flow_of_nothing, True, first=2000),
    Plant("a cache that hangs is waited for without bound", store.SharedStore, "_failed", _nothing, True),
)


def hunt(plant: Plant) -> tuple[int, str] | None:
    """Return the first seed that catches a plant, and by which invariant; None if none does."""
    seeds = (seed for seed in range(plant.first, 100_000) if Scenario.draw(seed).is_shared == plant.is_fleets)
    for seed, _ in zip(seeds, range(_MOST_SEEDS), strict=False):
        with plant.planted():
            broken = _broken(seed)
        if broken and not _broken(seed):  # because of the plant alone
            return seed, broken
    return None


def _broken(seed: int) -> str | None:
    try:
        simulate(seed)
    except InvariantError as error:
        return error.invariant
    except Exception as error:
        return type(error).__name__
    return None


def hunt_all(say: Callable[[str], object]) -> int:
    """Plant each bug; return how many were not caught."""
    missed = 0
    for plant in PLANTS:
        found = hunt(plant)
        missed += found is None
        seed, invariant = found or ("-", "NOT CAUGHT")
        say(f"{plant.name:50} seed {seed!s:>5}  {invariant}")
    return missed
