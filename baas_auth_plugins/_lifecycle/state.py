"""One token's state: an immutable record, the transitions between records, and how two records are merged.

A process applies a transition under its lock. A fleet applies the same one by compare-and-swap to
``merged(local, shared)``. The generation, and no host's clock, decides which token is newer. These rules passed an
exhaustive search over two and three processes with lost, late and ambiguous writes. Each was needed.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .._oauth.token import Instant, Token, digest
from ..exceptions import TokenEndpointError

AFTER_FAILURE = (5.0, 10.0, 20.0, 30.0)
AFTER_REFUSAL = (5.0, 10.0, 20.0, 40.0, 60.0)
AFTER_REJECTION = (5.0, 10.0, 20.0, 40.0, 60.0)
_REJECTIONS_FORGOTTEN = 60.0
_FAILURES_FORGOTTEN = 60.0  # seconds after the pause
_MOST_DROPPED = 32
_NEVER = Instant(float("-inf"), float("-inf"))


class Verdict(enum.IntEnum):
    """What the API said of a token that was requested because of a 401."""

    NONE = 0
    REJECTED = 1
    ACCEPTED = 2


class Backoff(NamedTuple):
    """Something is not done again for some seconds.

    Attributes:
        count: how often in a row it failed.
        since: the moment at which it was noted. If that lies in the future, the back-off is void.
        seconds: its length.
    """

    count: int = 0  # type: ignore[assignment]  # hides tuple.count, which means nothing for a back-off
    since: Instant = _NEVER
    seconds: float = 0.0

    def remaining(self, now: Instant) -> float:
        """Return the seconds until it ends."""
        return 0.0 if now.is_before(self.since) else max(0.0, self.seconds - now.since(self.since))

    def longer(self, schedule: tuple[float, ...], now: Instant) -> Backoff:
        """Return the back-off after one more failure."""
        return Backoff(self.count + 1, now, schedule[min(self.count, len(schedule) - 1)])


NO_BACKOFF = Backoff()


class Failure(NamedTuple):
    """The last token request failed, and callers without a valid token get this error while `pause` runs."""

    error: TokenEndpointError
    is_refusal: bool
    pause: Backoff


class Lease(NamedTuple):
    """Who may send a token request, in a fleet.

    Attributes:
        owner: the id of a coordinator.
        since: when it was taken or read, on this host.
        seconds: how long it holds from then.
    """

    owner: str
    since: Instant
    seconds: float

    def remaining(self, now: Instant) -> float:
        """Return the seconds until it lapses."""
        return 0.0 if now.is_before(self.since) else max(0.0, self.seconds - now.since(self.since))


@dataclass(frozen=True, slots=True)
class TokenState:
    """All that is known of one token.

    Attributes:
        generation: goes up by one with each token.
        token: the token, unless it was dropped.
        verdict: what the API said of it.
        renewal: back-off of voluntary renewals.
        rejection: back-off of token requests because of 401s.
        rejected_at: when the API last answered 401.
        failure: what callers without a valid token get.
        blocked: no token request is sent while it runs: a Retry-After, or the wait before a retry.
        dropped: digests of the last tokens that were dropped or replaced. None of them is adopted from another process again.
        lease: who may send a token request, in a fleet.
    """

    generation: int = 0
    token: Token | None = None
    verdict: Verdict = Verdict.NONE
    renewal: Backoff = NO_BACKOFF
    rejection: Backoff = NO_BACKOFF
    rejected_at: Instant = field(default=_NEVER, compare=False)
    failure: Failure | None = None
    blocked: Backoff = NO_BACKOFF
    dropped: tuple[str, ...] = ()
    lease: Lease | None = None

    def ttl(self, now: Instant) -> float:
        """Return the seconds for which any of the state matters."""
        life = self.token.remaining(now) if self.token is not None else 0.0
        memory = self.renewal.remaining(now) + _FAILURES_FORGOTTEN if self.renewal.count else 0.0
        rejected = _REJECTIONS_FORGOTTEN - now.since(self.rejected_at)
        lease = self.lease.remaining(now) if self.lease is not None else 0.0
        return max(1.0, life, memory, self.blocked.remaining(now), self.rejection.remaining(now), rejected, lease)

    def failure_now(self, now: Instant) -> TokenEndpointError | None:
        """Return the error that callers without a valid token get, as an object of its own."""
        failure = self.failure
        return failure.error.own_copy() if failure is not None and failure.pause.remaining(now) else None

    def leased_by_other(self, name: str, now: Instant) -> float:
        """Return the seconds for which another coordinator's lease runs; the owner of one's own begins with `name`."""
        return 0.0 if self.lease is None or self.lease.owner.startswith(name) else self.lease.remaining(now)

    def usable(self, rejected: Token | None, leeway: float, now: Instant) -> Token | None:
        """Return the token if it may be sent: it is valid, and not the one that was rejected."""
        token = self.token
        if token is None or not token.is_valid(now, leeway):
            return None
        return None if rejected is not None and token.access_token == rejected.access_token else token

    def renewed(self, token: Token, now: Instant) -> TokenState:
        """The gateway issued a token. The next voluntary renewal waits for min(30, lifetime / 10) seconds."""
        return TokenState(
            generation=self.generation + 1,
            token=token,
            renewal=Backoff(0, now, min(30.0, token.expires_in / 10)),
            rejection=self.rejection,
            rejected_at=self.rejected_at,
            dropped=self._dropping(self.token, again=token),
        )

    def is_failing(self, now: Instant) -> bool:
        """Return whether token requests failed of late: then one attempt is made, without retries."""
        return self.failure is not None and now.since(self.renewal.since) <= self.renewal.seconds + _FAILURES_FORGOTTEN

    def failed(self, error: TokenEndpointError, *, is_refusal: bool, urgent: bool, now: Instant) -> TokenState:
        """A token request failed. Each kind of failure has a schedule that starts anew when the kind changes.

        Args:
            error: what happened.
            is_refusal: whether the gateway refused, rather than was unavailable.
            urgent: whether there was no valid token. An outage that a renewal meets is tried again at expiry.
            now: this moment.
        """
        stands, previous = is_refusal or urgent, self.failure
        same_kind = (previous is not None and previous.is_refusal == is_refusal) if stands else previous is None
        recent = now.since(self.renewal.since) <= self.renewal.seconds + _FAILURES_FORGOTTEN
        count = self.renewal.count if same_kind and recent else 0
        pause = Backoff(count).longer(AFTER_REFUSAL if is_refusal else AFTER_FAILURE, now)
        failure = Failure(error.own_copy(), is_refusal, pause) if stands else None
        return replace(self, failure=failure, renewal=pause)

    def without_token(self, token: Token) -> TokenState:
        """Drop this very token, never a successor."""
        is_ours = self.token is not None and self.token.access_token == token.access_token
        return replace(
            self,
            token=None if is_ours else self.token,
            verdict=Verdict.NONE if is_ours else self.verdict,
            dropped=self._dropping(token),
        )

    def _dropping(self, token: Token | None, again: Token | None = None) -> tuple[str, ...]:
        """Return the dropped tokens with one more, and without the one that the issuer handed out again."""
        last = (digest(token.access_token),) if token is not None else ()
        kept = tuple(one for one in self.dropped if one not in last)
        return tuple(
            one for one in (*kept, *last)[-_MOST_DROPPED:] if again is None or one != digest(again.access_token)
        )

    def with_401(self, now: Instant) -> TokenState:
        """The API answered 401. After 60 s without one, the back-off of rejections starts anew."""
        silent = now.since(self.rejected_at) > _REJECTIONS_FORGOTTEN or now.is_before(self.rejected_at)
        return replace(self, rejected_at=now, rejection=NO_BACKOFF if silent else self.rejection)

    def with_rejection(self, now: Instant) -> TokenState:
        """A new token did not help: token requests because of 401s wait."""
        return replace(self, verdict=Verdict.REJECTED, rejection=self.rejection.longer(AFTER_REJECTION, now))

    def with_acceptance(self) -> TokenState:
        """The API accepted the token of the call that had it requested."""
        return replace(self, verdict=Verdict.ACCEPTED, rejection=NO_BACKOFF)

    def paused(self, seconds: float, now: Instant) -> TokenState:
        """Renew nothing voluntarily for some seconds."""
        if self.renewal.remaining(now) >= seconds:
            return self
        return replace(self, renewal=Backoff(self.renewal.count, now, seconds))

    def waiting(self, seconds: float, now: Instant) -> TokenState:
        """Send no token request for some seconds."""
        return replace(self, blocked=Backoff(0, now, seconds))

    def leased(self, owner: str, seconds: float, now: Instant) -> TokenState:
        """Let this owner send a token request."""
        return replace(self, lease=Lease(owner, now, seconds))

    def released(self, owner: str) -> TokenState:
        """Give up this owner's lease."""
        return replace(self, lease=None) if self.lease is not None and self.lease.owner == owner else self


EMPTY = TokenState()

Transition = Callable[[TokenState], TokenState]


def merged(local: TokenState, shared: TokenState | None, now: Instant) -> TokenState:
    """Return what this process and the shared record know together.

    Args:
        local: this process's state.
        shared: the record's, or None if there is none.
        now: this moment.
    """
    if shared is None:
        return replace(local, lease=None)
    if local.generation != shared.generation:
        newer, older = (local, shared) if local.generation > shared.generation else (shared, local)
        # A record that expired, or was lost, starts anew with a lower generation than some processes know.
        winner = newer
        if _replaces(older, newer, now):
            without = replace(newer, token=None, verdict=Verdict.NONE)
            winner = _united(replace(older, generation=newer.generation), without, now)
        elif not _is_usable(newer, (), now):  # no request has succeeded since: a Retry-After still counts
            winner = replace(newer, blocked=_stronger(newer.blocked, older.blocked, now))
    elif _same(local.token, shared.token) or local.token is None or shared.token is None:
        winner = _united(local, shared, now)
    else:  # both tokens were issued while the cache was down
        dropped = _both_dropped(local, shared)
        winner = local if _is_usable(local, dropped, now) and not _is_usable(shared, dropped, now) else shared
        if _is_gone(winner.token, dropped):
            winner = replace(winner, token=None, verdict=Verdict.NONE)
        winner = replace(winner, dropped=dropped)
    return replace(winner, lease=shared.lease)


def _replaces(older: TokenState, newer: TokenState, now: Instant) -> bool:
    """Return whether only the older state has a valid token, which the newer one does not know."""
    return not _is_usable(newer, (), now) and _is_usable(older, newer.dropped, now)


def _is_usable(state: TokenState, dropped: tuple[str, ...], now: Instant) -> bool:
    """Return whether a state has a token that is valid for callers of any leeway, and that was not dropped."""
    return state.usable(None, math.inf, now) is not None and not _is_gone(state.token, dropped)


def _same(one: Token | None, other: Token | None) -> bool:
    return (one and one.access_token) == (other and other.access_token)


def _is_gone(token: Token | None, dropped: tuple[str, ...]) -> bool:
    return token is None or digest(token.access_token) in dropped


def _both_dropped(local: TokenState, shared: TokenState) -> tuple[str, ...]:
    both = tuple(dict.fromkeys((*local.dropped, *shared.dropped)))
    if len(both) <= _MOST_DROPPED:
        return both
    # What comes before a token that both know is old. Added again at each merge, it would push the last ones out.
    known = [number for number, one in enumerate(shared.dropped, 1) if one in local.dropped]
    return (*local.dropped, *shared.dropped[max(known, default=0) :])[-_MOST_DROPPED:]


def _united(local: TokenState, shared: TokenState, now: Instant) -> TokenState:
    token, dropped = local.token or shared.token, _both_dropped(local, shared)
    if _is_gone(token, dropped):
        token = None
    verdict = Verdict.NONE if token is None else max(local.verdict, shared.verdict)
    rejection = _stronger(local.rejection, shared.rejection, now)
    failures = [failure for failure in (local.failure, shared.failure) if failure is not None]
    return TokenState(
        generation=local.generation,
        token=token,
        verdict=verdict,
        renewal=_stronger(local.renewal, shared.renewal, now),
        rejection=NO_BACKOFF if verdict is Verdict.ACCEPTED else rejection,
        rejected_at=max(local.rejected_at, shared.rejected_at, key=lambda at: at.wall),
        failure=max(failures, key=lambda one: _running(one.pause, now), default=None),
        blocked=_stronger(local.blocked, shared.blocked, now),
        dropped=dropped,
    )


def _running(backoff: Backoff, now: Instant) -> tuple[bool, int, float]:
    """Return what to compare failures by: one whose pause runs, then the count, then the longer pause."""
    remaining = backoff.remaining(now)
    return remaining > 0, backoff.count, remaining


def _stronger(one: Backoff, other: Backoff, now: Instant) -> Backoff:
    return max(one, other, key=lambda backoff: (backoff.count, backoff.remaining(now)))
