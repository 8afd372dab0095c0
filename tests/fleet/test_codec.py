"""What the processes of a fleet write for each other is read as it was meant, aged by its time in the cache."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from by_hand import token_at
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import InvalidClientError, InvalidScopeError, RateLimitError, TokenEndpointUnavailableError
from baas_auth_plugins._fleet.codec import limits_codec, state_codec
from baas_auth_plugins._lifecycle.rate_limit import RateLimits
from baas_auth_plugins._lifecycle.state import EMPTY, Backoff, Failure, Lease, TokenState, Verdict
from baas_auth_plugins._oauth.token import Instant

NOW = Instant(1_750_000_000.0, 1_000.0)
SECRET_KEY = bytes(32)
CODEC = state_codec("key", SECRET_KEY)
LIMITS = limits_codec("key", SECRET_KEY, 60.0)
TOKEN = token_at("a-token", NOW)
REFUSAL = InvalidClientError("refused", provider="bs2", status_code=401, error="invalid_client", error_description="no")


def later(seconds: float) -> Instant:
    return Instant(NOW.wall + seconds, NOW.monotonic + seconds)


def read_after(state: TokenState, seconds: float, *, elsewhere: Instant | None = None) -> TokenState:
    """Write a state now, and read it some seconds later, on this host or another one."""
    raw, ttl = CODEC.encrypt(state, NOW)
    found = CODEC.decrypt(raw, ttl - seconds, elsewhere or later(seconds))
    assert found is not None
    return found


moments = st.floats(0, 1000).map(lambda age: later(-age))
backoffs = st.just(Backoff()) | st.builds(Backoff, st.integers(1, 9), moments, st.floats(1, 300))
errors = st.sampled_from(
    (
        REFUSAL,
        RateLimitError("wait", provider="bs2", status_code=429, retry_after=7.0),
        TokenEndpointUnavailableError("down", provider="bs2", status_code=503),
    )
)
states = st.builds(
    TokenState,
    generation=st.integers(0, 2**40),
    token=st.none() | moments.map(lambda at: token_at("a-token", at, 2000.0)),
    verdict=st.sampled_from(Verdict),
    renewal=backoffs,
    rejection=backoffs,
    rejected_at=moments,
    failure=st.none() | st.builds(Failure, errors, st.booleans(), backoffs),
    blocked=backoffs,
    dropped=st.lists(st.text(alphabet="0123456789abcdef", min_size=8, max_size=8), max_size=4).map(tuple),
    lease=st.none() | st.builds(Lease, st.text(max_size=20), moments, st.floats(0, 100)),
)


@given(states, st.floats(0, 0.9))
def test_state_is_read_as_it_was_written(state: TokenState, seconds: float) -> None:
    """Every field comes back, and each span of time has gone on by the seconds in the cache, on both clocks."""
    found, at = read_after(state, seconds), later(seconds)
    assert (found.generation, found.verdict, found.dropped) == (state.generation, state.verdict, state.dropped)
    assert (found.token is None) is (state.token is None)
    if found.token is not None and state.token is not None:
        assert found.token.access_token == state.token.access_token
        assert found.token.scopes == state.token.scopes
        assert found.token.remaining(at) == pytest.approx(state.token.remaining(at), abs=1e-3)
    for name in ("renewal", "rejection", "blocked"):
        one, other = getattr(found, name), getattr(state, name)
        assert one.count == other.count
        assert one.remaining(at) == pytest.approx(other.remaining(at), abs=1e-3)
    assert at.since(found.rejected_at) == pytest.approx(at.since(state.rejected_at), abs=1e-3)
    assert (found.lease and found.lease.owner) == (state.lease and state.lease.owner)
    if found.lease is not None and state.lease is not None:
        assert found.lease.remaining(at) == pytest.approx(state.lease.remaining(at), abs=1e-3)
    assert (found.failure is None) is (state.failure is None)
    if found.failure is not None and state.failure is not None:
        assert (type(found.failure.error), vars(found.failure.error)) == (
            type(state.failure.error),
            vars(state.failure.error),
        )
        assert str(found.failure.error) == str(state.failure.error)


@pytest.mark.parametrize(
    "elsewhere",
    [Instant(NOW.wall + 40, 5.0), Instant(NOW.wall + 40, 9e9), Instant(NOW.wall - 3600, 50.0)],
    ids=["booted lately", "booted long ago", "its wall clock is slow"],
)
def test_no_monotonic_clock_of_another_host_is_read(elsewhere: Instant) -> None:
    """Ages go with the record, and the host that reads it counts them back on its own clocks."""
    state = TokenState(1, TOKEN, rejection=Backoff(2, NOW, 60.0), lease=Lease("x", NOW, 60.0))
    found = read_after(state, 40, elsewhere=elsewhere)
    assert found.token is not None
    assert found.lease is not None
    assert found.token.remaining(elsewhere) == pytest.approx(260)
    assert found.rejection.remaining(elsewhere) == pytest.approx(20)
    assert found.lease.remaining(elsewhere) == pytest.approx(20)


def test_fast_wall_clock_shortens_a_token_and_never_extends_it() -> None:
    """The wall clock bounds the life of a record that is put back: a host whose clock is ahead renews sooner."""
    ahead = Instant(NOW.wall + 200, 77.0)
    found = read_after(TokenState(1, TOKEN), 0, elsewhere=ahead)
    assert found.token is not None
    assert found.token.remaining(ahead) == pytest.approx(100)


def test_record_that_is_put_back_brings_no_failure_back() -> None:
    """A failure, and a Retry-After, last as long as they would have lasted, however fresh their record seems."""
    state = replace(EMPTY, failure=Failure(REFUSAL, True, Backoff(3, NOW, 20.0)), blocked=Backoff(1, NOW, 100.0))
    raw, ttl = CODEC.encrypt(state, NOW)
    at = later(15)
    found = CODEC.decrypt(raw, ttl, at)
    assert found is not None
    assert found.failure is not None
    assert found.failure.pause.remaining(at) == pytest.approx(5)
    assert found.blocked.remaining(at) == pytest.approx(85)
    found = CODEC.decrypt(raw, ttl, later(101))
    assert found is not None
    assert found.failure_now(later(101)) is None
    assert not found.blocked.remaining(later(101))


def test_void_moments_are_not_written() -> None:
    """A back-off or a lease of the future, which is void here, delays nobody elsewhere."""
    ahead = later(1000)
    state = TokenState(1, renewal=Backoff(1, ahead, 60), rejection=Backoff(1, ahead, 60), blocked=Backoff(1, ahead, 60))
    found = read_after(state, 0)
    for backoff in (found.renewal, found.rejection, found.blocked):
        assert backoff.remaining(NOW) == 0


def test_missing_scopes_travel() -> None:
    """An `InvalidScopeError` names the scopes that were not granted in each process."""
    error = InvalidScopeError("no", provider="axia", status_code=200)
    error.missing_scopes = frozenset({"pix:send"})
    failed = EMPTY.failed(error, is_refusal=True, urgent=True, now=NOW)
    found = read_after(failed, 1).failure_now(later(1))
    assert isinstance(found, InvalidScopeError)
    assert found.missing_scopes == {"pix:send"}


# -- what is no record of this client


def test_another_secret_or_key_reads_nothing() -> None:
    """Only the same secret opens a record, and only under the key that it was written for."""
    raw, ttl = CODEC.encrypt(TokenState(1, TOKEN), NOW)
    assert CODEC.decrypt(raw, ttl, NOW) is not None
    assert state_codec("key", bytes(31) + b"1").decrypt(raw, ttl, NOW) is None
    assert state_codec("key2", SECRET_KEY).decrypt(raw, ttl, NOW) is None
    assert LIMITS.decrypt(raw, ttl, NOW) is None
    assert b"a-token" not in raw


def test_each_record_has_a_nonce_of_its_own() -> None:
    """The same state is encrypted differently each time."""
    assert len({CODEC.encrypt(EMPTY, NOW)[0] for _ in range(100)}) == 100


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_changed_byte_makes_a_miss(position: int, value: int) -> None:
    """A record that was changed anywhere is none."""
    raw, ttl = CODEC.encrypt(TokenState(1, TOKEN), NOW)
    position %= len(raw)
    changed = raw[:position] + bytes([value]) + raw[position + 1 :]
    assert (CODEC.decrypt(changed, ttl, NOW) is None) is (changed != raw)


@pytest.mark.parametrize(
    ("raw", "ttl"),
    [(None, 60.0), ("text", 60.0), (b"", 60.0), (b"short", 60.0), (bytes(100), 60.0), (7, 1.0)],
    ids=repr,
)
def test_anything_else_is_a_miss(raw: Any, ttl: float) -> None:
    """Whatever a cache holds under the key, it is a record or a miss, never an error."""
    assert CODEC.decrypt(raw, ttl, NOW) is None


def encrypted(content: bytes) -> bytes:
    nonce = bytes(12)
    return nonce + CODEC._cipher.encrypt(nonce, content, b"key")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"[60]",
        b"[60, null]",
        b"[60, {}]",
        b'["x", {}]',
        b'[60, {"generation": 1}]',
        b'[60, {"generation": 1, "verdict": 9}]',
        b"\xff",
    ],
)
def test_record_of_another_version_is_a_miss(content: bytes) -> None:
    """What the secret opens, but this version cannot read, is a miss as well."""
    assert CODEC.decrypt(encrypted(content), 60.0, NOW) is None


@pytest.mark.parametrize(("change", "is_read"), [(0, True), (0.0009, True), (0.1, False), (1, False), (1e9, False)])
def test_more_time_than_it_was_written_for(change: float, is_read: bool) -> None:
    """A record whose TTL is longer than it was written with, but for a rounding, was put back, and is a miss."""
    raw, ttl = CODEC.encrypt(TokenState(1, TOKEN), NOW)
    assert (CODEC.decrypt(raw, ttl + change, NOW) is not None) is is_read


@pytest.mark.parametrize("ttl", [0.0, -1.0, -math.inf])
def test_record_without_time_is_a_miss(ttl: float) -> None:
    """A value that never expires, or is over, says nothing about its age."""
    raw, _ = CODEC.encrypt(TokenState(1, TOKEN), NOW)
    assert CODEC.decrypt(raw, ttl, NOW) is None


# -- how long a record is kept


@pytest.mark.parametrize(
    ("state", "ttl"),
    [
        pytest.param(EMPTY, 1.0, id="the shortest"),
        pytest.param(TokenState(1, TOKEN), 300.0, id="a token"),
        pytest.param(TokenState(1, token_at("old", later(-250))), 50.0, id="the rest of its life"),
        pytest.param(TokenState(1, token_at("x", NOW, 1e18)), 365 * 86_400.0, id="the longest"),
        pytest.param(TokenState(lease=Lease("x", NOW, 15.0)), 15.0, id="a lease"),
        pytest.param(TokenState(1, TOKEN, lease=Lease("x", NOW, 15.0)), 300.0, id="both"),
    ],
)
def test_ttl(state: TokenState, ttl: float) -> None:
    """At least a second, at most a year, and as long as any part of it matters."""
    assert CODEC.encrypt(state, NOW)[1] == ttl


def test_ttl_of_a_token_follows_the_monotonic_clock() -> None:
    """This host's wall clock may be wrong: it does not shorten the time in the cache."""
    token = token_at("x", NOW)
    stepped = Instant(NOW.wall + 250, NOW.monotonic + 10)
    assert CODEC.encrypt(TokenState(1, token), stepped)[1] == 290


# -- rate limits


@given(
    st.dictionaries(st.text(max_size=8), st.floats(0, 60).map(lambda age: NOW.monotonic - age), max_size=10),
    st.floats(0, 50),
    st.floats(0, 1),
)
def test_limits_are_read_as_they_were_written(counted: dict[str, float], blocked: float, seconds: float) -> None:
    """Each counted request, and the Retry-After, have aged by the seconds in the cache."""
    limits = RateLimits(counted).blocking(blocked, NOW)
    raw, ttl = LIMITS.encrypt(limits, NOW)
    at = Instant(5.0, 7.0)
    found = LIMITS.decrypt(raw, ttl - seconds, at)
    assert found is not None
    assert found.counted.keys() == counted.keys()
    for request, moment in counted.items():
        assert at.monotonic - found.counted[request] == pytest.approx(NOW.monotonic - moment + seconds, abs=1e-3)
    assert found.blocked.remaining(at) == pytest.approx(max(0, blocked - seconds), abs=1e-3)


@pytest.mark.parametrize(("blocked", "ttl"), [(0, 60.001), (30, 60.001), (300, 300)])
def test_limits_are_kept_for_the_window_or_the_retry_after(blocked: float, ttl: float) -> None:
    """The record lives at least as long as the provider's window, and as long as a Retry-After runs."""
    assert LIMITS.encrypt(RateLimits().blocking(blocked, NOW), NOW)[1] == pytest.approx(ttl)
