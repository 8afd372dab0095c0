"""What the processes of a fleet tell each other is read as it was written, and as it is meant."""

from __future__ import annotations

import pytest

from baas_auth_plugins._cooldown import Cooldown
from baas_auth_plugins._record import Limits, Record, open_record, seal_record
from baas_auth_plugins._seal import Seal
from baas_auth_plugins._token import Instant
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
