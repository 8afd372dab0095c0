"""What the processes that share a cache know together of one token, and how it lies in the cache.

Spans of time are written as the seconds that are left, and shortened on reading by the time that the
record has lain there, which its remaining time to live tells. So no two clocks need agree. But a token's
age is the larger of that and what the wall clock says, as ever: a record can be put back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from . import exceptions
from ._token import Instant, Token
from .exceptions import TokenEndpointError

if TYPE_CHECKING:
    from ._seal import Seal  # cryptography takes its time to import: who shares nothing does not pay for it

__all__ = ["Limits", "Record", "open_record", "seal_record"]

R = TypeVar("R", "Record", "Limits")

_SPANS = ("lease", "pause", "brake")
_FORGOTTEN = 60.0  # seconds after which a rejection, or a failure that is over, no longer matters
_TICK = 0.001  # seconds: no cache tells the time that is left any more exactly
_ERROR_FIELDS = ("provider", "status_code", "error", "error_description", "retry_after")


class Record(NamedTuple):
    """One token of a fleet, who is renewing it, and what holds a renewal back.

    Attributes:
        token: the token, if there is one.
        on_probation: whether it was minted after a rejection, and not accepted yet.
        leader: the flight under way, or none.
        lease: seconds after which the leader is given up.
        lost: whether the last flight lost its connection.
        failed: the flight that failed last, if no token came since.
        failure: what it failed with.
        refused: whether the gateway said no, rather than not now.
        failures: how many in a row.
        pause: seconds before another renewal, unless there is no token.
        brake: seconds before a rejection (401) causes another mint.
        braked: how often the brake was put on.
        issued_at: when the token was minted, by the wall clock of the host that minted it.
        rejected: seconds since the last rejection.
    """

    token: Token | None = None
    on_probation: bool = False
    leader: str = ""
    lease: float = 0.0
    lost: bool = False
    failed: str = ""
    failure: TokenEndpointError | None = None
    refused: bool = False
    failures: int = 0
    pause: float = 0.0
    brake: float = 0.0
    braked: int = 0
    issued_at: float = 0.0
    rejected: float = math.inf

    def ttl(self, now: Instant) -> float:
        """Return the seconds for which any of it matters."""
        token = self.token  # whose age here is by the monotonic clock alone: this host's wall clock may be wrong
        life = token.expires_in - (now.monotonic - token.monotonic) if token else 0.0
        remembered = self.pause + _FORGOTTEN if self.failures else self.pause
        return max(1.0, life, self.lease, remembered, self.brake, _FORGOTTEN - self.rejected)

    def later(self, seconds: float) -> Self:
        """Return what is true of it some seconds later."""
        left = {name: max(0.0, getattr(self, name) - seconds) for name in _SPANS}
        leader = self.leader if left["lease"] else ""
        return self._replace(leader=leader, rejected=self.rejected + seconds, **left)

    def encode(self, now: Instant) -> dict[str, Any]:
        """Return it as JSON knows it."""
        known = self._asdict()
        if self.token is not None:
            known["token"] = [
                self.token.access_token,
                sorted(self.token.scopes),
                self.token.expires_in,
                now.monotonic - self.token.monotonic,
            ]
        if self.failure is not None:
            told = {name: getattr(self.failure, name) for name in _ERROR_FIELDS}
            missing = sorted(getattr(self.failure, "missing_scopes", ()))
            known["failure"] = [type(self.failure).__name__, str(self.failure), told, missing]
        return {name: value for name, value in known.items() if value and value != math.inf}

    @classmethod
    def decode(cls, known: dict[str, Any], now: Instant, lain: float) -> Self:
        """Return what `encode` gave, after it has lain for some seconds."""
        if "token" in known:
            access_token, scopes, expires_in, age = known["token"]
            minted = now.monotonic - (age + lain)
            issued_at = now.wall - max(age + lain, now.wall - known["issued_at"])  # by this host's wall clock
            known["token"] = Token(access_token, "Bearer", frozenset(scopes), issued_at, expires_in, minted)
        if "failure" in known:
            name, message, told, missing = known["failure"]
            known["failure"] = failure = getattr(exceptions, name)(message, **told)
            if missing:
                failure.missing_scopes = frozenset(missing)
        return cls(**known).later(lain)


class Limits(NamedTuple):
    """How many token requests a client's fleet has sent of late, and whether the gateway told it to wait.

    Attributes:
        sent: the age of each token request, by its id.
        window: seconds for which they count.
        blocked: seconds before another may be sent.
    """

    sent: Mapping[str, float] = MappingProxyType({})
    window: float = 0.0
    blocked: float = 0.0

    def wait(self, limit: tuple[int, float] | None) -> float:
        """Return the seconds before another token request may be sent."""
        requests, seconds = limit or (math.inf, 0.0)
        ages = sorted(age for age in self.sent.values() if age < seconds)
        excess = len(ages) - requests
        return max(self.blocked, seconds - ages[-int(excess) - 1] if excess >= 0 else 0.0)

    def counting(self, request: str, limit: tuple[int, float] | None) -> Self:
        """Return these with a token request that is sent, or answered, now."""
        seconds = limit[1] if limit else 0.0
        recent = {name: age for name, age in self.sent.items() if age < seconds}
        return self._replace(sent={**recent, request: 0.0} if limit else {}, window=seconds)

    def blocking(self, seconds: float) -> Self:
        """Return these with a wait of at least so many seconds."""
        return self._replace(blocked=max(self.blocked, seconds))

    def ttl(self, _now: Instant) -> float:
        """Return the seconds for which any of it matters."""
        return max(1.0, self.window, self.blocked)

    def encode(self, _now: Instant) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {"sent": dict(self.sent), "window": self.window, "blocked": self.blocked}

    @classmethod
    def decode(cls, known: dict[str, Any], _now: Instant, lain: float) -> Self:
        """Return what `encode` gave, after it has lain for some seconds."""
        sent = {name: age + lain for name, age in known["sent"].items()}
        return cls(sent, known["window"], max(0.0, known["blocked"] - lain))


def seal_record(record: Record | Limits, seal: Seal | None, key: str, now: Instant) -> tuple[Any, float]:
    """Return what to keep under `key`, and for how many seconds."""
    ttl = record.ttl(now)
    if seal is None:
        return record.token if isinstance(record, Record) else None, ttl
    return seal.close(key, json.dumps([ttl, record.encode(now)]).encode()), ttl


def open_record(kind: type[R], seal: Seal | None, key: str, value: Any, ttl: float, now: Instant) -> R:
    """Return what is kept under `key`, with `ttl` seconds left to it; nothing known where it is not ours."""
    if seal is None:
        return kind(value) if value is not None else kind()
    content = seal.open(key, value) if isinstance(value, bytes) and ttl > 0 else None
    if content is None:
        return kind()
    try:
        written, known = json.loads(content)
        lain = written - ttl
        return kind.decode(known, now, max(0.0, lain)) if lain > -_TICK else kind()
    except (ValueError, TypeError, KeyError, AttributeError):  # of another version
        return kind()
