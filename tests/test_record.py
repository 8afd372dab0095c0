"""What the processes of a fleet tell each other is read as it was written, and as it is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from baas_auth_plugins import BS2Auth, MemoryTokenCache, _shared
from baas_auth_plugins._brake import Brake
from baas_auth_plugins._client import Client
from baas_auth_plugins._cooldown import Cooldown
from baas_auth_plugins._fleet import Fleet
from baas_auth_plugins._known import Known
from baas_auth_plugins._limiter import RateLimiter
from baas_auth_plugins._record import Limits, Record, open_record, seal_record
from baas_auth_plugins._seal import Seal
from baas_auth_plugins._shared import SharedCache
from baas_auth_plugins._token import Instant, Token
from baas_auth_plugins._turn import Turn
from baas_auth_plugins.exceptions import InvalidClientError, TokenEndpointUnavailableError

NOW = Instant(1_750_000_000.0, 1000.0)
SEAL = Seal(bytes(32))
RECORDS = [Record(leader="a flight", lease=13.0, rejected=32.048), Limits({"a request": 0.0}, 27.951999999999998)]


@pytest.mark.parametrize("record", RECORDS, ids=["record", "limits"])
def test_read_in_the_millisecond_in_which_it_was_written(record: Record | Limits) -> None:
    """A time to live that was rounded to whole milliseconds, a hair above what was written, is no forgery."""
    value, ttl = seal_record(record, SEAL, "key", NOW)
    left = int(ttl * 1000) / 1000
    assert left > ttl
    assert open_record(type(record), SEAL, "key", value, left, NOW) == record


def test_more_time_left_than_there_ever_was() -> None:
    """A value that was put back to live for longer than it was written for tells nothing."""
    value, ttl = seal_record(RECORDS[0], SEAL, "key", NOW)
    assert open_record(Record, SEAL, "key", value, ttl + 1, NOW) == Record()


def test_refusal_of_long_ago() -> None:
    """A pause that has another reason makes no old refusal stand again; the next one still counts as the next."""
    cooldown, refusal = Cooldown(), InvalidClientError("refused", provider="bs2", status_code=401)
    for _ in range(3):
        cooldown.failed(refusal, NOW)
    assert cooldown.verdict(NOW)
    later = Instant(NOW.wall + 100, NOW.monotonic + 100)
    failure = TokenEndpointUnavailableError("down", provider="bs2", status_code=503)
    cooldown.learn(Record(failed="a flight", failure=failure, failures=1, pause=5.0), later)
    assert cooldown.left(later) == 5.0
    assert not cooldown.verdict(later)
    cooldown.rest(0.5, Instant(later.wall + 10, later.monotonic + 10))
    cooldown.failed(refusal, later)
    assert cooldown.left(later) == 40.0


def test_retry_after_that_is_told_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Retry-After ends for the fleet when it ends, however long the cache took to hear of it."""
    errands: list[Callable[[], None]] = []
    monkeypatch.setattr(_shared, "_in_daemon_thread", errands.append)
    now, cache = NOW, MemoryTokenCache()
    monkeypatch.setattr(cache, "blocking", True, raising=False)
    fleet = Fleet(SharedCache(cache, lambda: now), "key", "limits", SEAL, None, lambda: now)
    client = Client(BS2Auth.provider, "id", "https://gateway.example", "a b", 300.0, 10.0, 60.0, headers={})
    turn = Turn(fleet, Known(), RateLimiter(None), client, urgent=True, deadline=now.monotonic + 60)
    telling = turn.blocked(100.0)
    next(telling)
    now = Instant(NOW.wall + 70, NOW.monotonic + 70)
    errands[0]()
    value, left = cache.get("limits") or (None, 0.0)
    limits = open_record(Limits, SEAL, "limits", value, left, now)
    assert limits.blocked == pytest.approx(30, abs=0.1)
    telling.close()


TOKEN = Token("a-token", "Bearer", frozenset(), NOW.wall, 300.0, NOW.monotonic)


def test_brake_that_is_over_elsewhere() -> None:
    """A token that had the brake put on in one process does not have it put on again in another."""
    brake, later = Brake(), Instant(NOW.wall + 30, NOW.monotonic + 30)
    brake.learn(record := Record(token=TOKEN, braked=1, rejected=20.0), later)
    brake.adopted(TOKEN, record)
    brake.note_rejected_replay(TOKEN, later)
    assert not brake.left(later)
    brake = Brake()
    brake.adopted(TOKEN, record._replace(rejected=3500.0))  # of a token long ago, which is forgotten
    brake.note_rejected_replay(TOKEN, later)
    assert brake.left(later)


def test_brake_of_the_token_before() -> None:
    """A token on probation takes the brake off that another one had put on, though the cache was looked at meanwhile."""
    brake, record = Brake(), Record(token=TOKEN, on_probation=True, brake=4.0, braked=1, rejected=1.0)
    brake.learn(record, NOW)
    brake.minted(TOKEN, NOW)
    assert brake.left(NOW)
    brake.adopted(TOKEN, record)
    brake.come_off(TOKEN)
    assert not brake.left(NOW)


def test_dropped_token_is_known_again_however_young_it_seems() -> None:
    """A token that this process dropped is not taken back when a write that was late makes it seem the youngest of all."""
    known, first, second = Known(), replace(TOKEN, access_token="first"), replace(TOKEN, access_token="second")
    for token in (first, second):
        known.drop(token)
        known.drop(token)
    later = Instant(NOW.wall + 100, NOW.monotonic + 100)
    late = replace(first, issued_at=later.wall, monotonic=later.monotonic)
    assert known.is_past(late, later)
    assert not known.is_past(replace(late, access_token="third"), later)
