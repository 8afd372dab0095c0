"""Bugs of a fleet, planted one at a time into what processes tell each other by way of a shared cache."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from baas_auth_plugins import _fleet, _source
from baas_auth_plugins._fleet import Fleet
from baas_auth_plugins._flow import Sleep
from baas_auth_plugins._known import Known
from baas_auth_plugins._record import Limits, Record
from baas_auth_plugins._shared import SharedCache
from baas_auth_plugins._source import TokenSource
from baas_auth_plugins._turn import Turn

__all__ = ["FLEET_PLANTS"]

_look, _take_lead, _with_token = Turn.look, Turn._take_lead, Turn._with_token
_decode = Record.decode.__func__  # type: ignore[attr-defined]


def _never(*_arguments: Any) -> bool:
    return False


def _nothing(*_arguments: Any, **_options: Any) -> None:
    pass


def _no_effect(*_arguments: Any) -> Generator[Any, Any, None]:
    yield from ()


def _take_no_lease(self: Turn, record: Record) -> Record | None:
    led = _take_lead(self, record)
    return led and led._replace(leader="")


def _take_a_short_lease(self: Turn, record: Record) -> Record | None:
    led = _take_lead(self, record)
    return led and led._replace(lease=0.05)


def _lead_for_ever(self: Turn) -> Generator[Any, Any, Any]:
    found = yield from _look(self)
    self._leads_until = math.inf
    return found


def _lead_at_once(self: Turn) -> Generator[Any, Any, None]:
    self._leads_until = math.inf
    yield from ()


def _mint_instead_of_waiting(self: Turn) -> Generator[Any, Any, Any]:
    flow, result = _look(self), None
    while True:
        try:
            effect = flow.send(result)
        except StopIteration as stop:
            return stop.value
        if isinstance(effect, Sleep):
            self._leads_until = math.inf
            return None
        result = yield effect


def _keep_the_lead(self: Turn, record: Record) -> Record | None:
    return record if record.leader == self.id else None


def _lead_in_spite_of_a_pause(self: Turn, record: Record) -> Record | None:
    return _take_lead(self, record._replace(pause=0.0))


def _only_give_back(self: Turn, _error: Any, record: Record) -> Record | None:
    return self.give_back(record)


def _only_retry_after(self: Limits, _limit: Any) -> float:
    return self.blocked


def _unblocked(self: Limits, _seconds: float) -> Limits:
    return self


def _publish_without_doubt(self: Turn, token: Any, record: Record) -> Record | None:
    told = _with_token(self, token, record)
    return told and told._replace(on_probation=False, rejected=math.inf)


def _publish_late(self: Turn, token: Any, record: Record) -> Record | None:
    return _with_token(self, token, record._replace(leader=self.id))


def _reborn(cls: Any, known: dict[str, Any], now: Any, lain: float) -> Record:
    if "token" in known:
        known = {**known, "token": [*known["token"][:3], 0.0], "issued_at": now.wall}
    record: Record = _decode(cls, known, now, 0.0 if "token" in known else lain)
    return record


def _undated(cls: Any, known: dict[str, Any], now: Any, lain: float) -> Record:
    record: Record = _decode(cls, {**known, "issued_at": math.inf} if "token" in known else known, now, lain)
    return record


FLEET_PLANTS: tuple[tuple[str, tuple[tuple[Any, str, Any], ...]], ...] = (
    ("the lease is not taken", ((Turn, "_take_lead", _take_no_lease),)),
    ("another process's lease is not respected", ((Fleet, "is_elsewhere", _never),)),
    ("nobody looks before minting", ((Turn, "look", _lead_at_once),)),
    ("losers do not wait", ((Turn, "look", _mint_instead_of_waiting),)),
    ("the lease is never given back", ((Turn, "give_back", _keep_the_lead),)),
    (
        "the lease is shorter than a token request",
        ((Turn, "_take_lead", _take_a_short_lease), (Turn, "look", _lead_for_ever)),
    ),
    ("a token is not published", ((Turn, "_with_token", _nothing),)),
    ("a failure is not shared", ((Turn, "_shares_failure", _never), (Turn, "_with_failure", _only_give_back))),
    ("a pause is not shared", ((Turn, "_take_lead", _lead_in_spite_of_a_pause), (Known, "learn", _nothing))),
    ("the fleet's rate limit is ignored", ((Limits, "wait", _only_retry_after),)),
    ("Retry-After is not shared", ((Limits, "blocking", _unblocked),)),
    (
        "the brake is not shared",
        ((TokenSource, "tell_brake", _no_effect), (Turn, "_with_token", _publish_without_doubt)),
    ),
    ("a late publication overwrites a newer token", ((Turn, "_with_token", _publish_late),)),
    ("a shared token's age is not carried over", ((Record, "decode", classmethod(_reborn)),)),
    ("an old value put back is believed", ((Record, "decode", classmethod(_undated)),)),
    ("the rejected token is adopted from the cache", ((Known, "is_past", _never), (_source, "is_past", _never))),
    ("a cache that is down is asked at each call", ((SharedCache, "_went_down", _nothing),)),
    (
        "a cache that hangs is waited for without bound",
        ((_fleet, "_PATIENCE", 1e6), (_fleet, "_PATIENCE_WITHOUT_TOKEN", 1e6)),
    ),
)
