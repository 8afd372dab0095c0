"""A token response is believed only as far as it makes sense, and a token's life has four phases."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins._oauth.token import Instant, Phase, Token, digest

SENT = Instant(1_710_496_800.0, 5_000.0)
FRESH, STALE, CRITICAL, EXPIRED = Phase

seconds = st.floats(0.01, 1e6)
leeways = st.floats(0, 1e6)


def parse(default_expires_in: float = 3600, requested: str = "", **payload: Any) -> Token:
    return Token.from_response(payload, SENT, default_expires_in=default_expires_in, requested=requested)


def at(age: float, monotonic_age: float | None = None) -> Instant:
    """Return the moment at which a token sent for at SENT has this age."""
    return Instant(SENT.wall + age, SENT.monotonic + (age if monotonic_age is None else monotonic_age))


# -- reading the response


def test_documented_response_is_read() -> None:
    """Axia's sample: the life is `expires_in` from our own sending; `issued_at` and the JWT's times are not believed."""
    token = parse(
        access_token="eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3MTA3ODY0MDB9.xyz",
        token_type="Bearer",
        expires_in=3600,
        issued_at="2020-01-01T10:00:00Z",
        scope="accounts:read accounts:write pix:send webhooks:manage",
    )
    assert token.access_token == "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3MTA3ODY0MDB9.xyz"
    assert token.scopes == {"accounts:read", "accounts:write", "pix:send", "webhooks:manage"}
    assert (token.issued_at, token.expires_in, token.expires_at) == (SENT.wall, 3600, SENT.wall + 3600)


@pytest.mark.parametrize(
    ("expires_in", "expected"),
    [
        (300, 300),
        ("300", 300),
        ("0300", 300),
        (299.5, 299.5),
        (0.001, 0.001),
        (1e18, 1e18),
        (None, 1680),
    ],
)
def test_lifetime_is_read(expires_in: object, expected: float) -> None:
    """Numbers and strings of digits are lifetimes; a null is as good as none, so the provider's default holds."""
    assert parse(1680, access_token="abc", expires_in=expires_in).expires_in == expected


def test_missing_lifetime_is_the_default() -> None:
    """Another Axia page shows a response without `expires_in`."""
    assert parse(3600, access_token="abc").expires_in == 3600


@pytest.mark.parametrize(
    "expires_in",
    [
        *(0, -1, -0.5, 0.0, True, False, math.nan, math.inf, -math.inf, 10**400),
        *("", "0", "-300", "+300", "3e2", "300.0", "300s", " 300", "٣٠٠", "²", "9" * 5000, "nan"),
        *([], [300], {}, {"seconds": 300}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_nonsense_lifetime_is_refused(expires_in: object) -> None:
    """A lifetime that is no positive number of seconds is an error, not a token that never expires."""
    with pytest.raises(ValueError, match="expires_in"):
        parse(access_token="abc", expires_in=expires_in)


@pytest.mark.parametrize(
    "access_token",
    [
        None,
        "",
        1,
        True,
        ["abc"],
        {},
        "a b",
        "abc\r\nX-Evil: 1",
        "abc\n",
        "ábc",
        "a=b",
        "=",
        '"abc"',
        "a,b",
        "Bearer abc",
    ],
    ids=repr,
)
def test_token_that_cannot_travel_is_refused(access_token: object) -> None:
    """What RFC 6750 does not allow in a header is no token; the error does not repeat it."""
    with pytest.raises(ValueError, match="access_token") as caught:
        parse(access_token=access_token)
    assert "Evil" not in str(caught.value)


def test_missing_token_is_refused() -> None:
    """A response without `access_token` is none."""
    with pytest.raises(ValueError, match="no access_token"):
        parse(expires_in=300)


@pytest.mark.parametrize("access_token", ["a", "a.b.c", "aZ09-._~+/", "abc=", "abc==", "x" * 9000])
def test_any_b64token_is_taken(access_token: str) -> None:
    """All of RFC 6750's alphabet, of any length."""
    assert parse(access_token=access_token).access_token == access_token


@pytest.mark.parametrize("token_type", ["Bearer", "bearer", "BEARER"])
def test_token_type_has_no_case(token_type: str) -> None:
    """RFC 6749 section 5.1: the type is case-insensitive."""
    assert parse(access_token="abc", token_type=token_type).token_type == "Bearer"


def test_missing_token_type_is_bearer() -> None:
    """All four gateways issue Bearer tokens only, so one that forgets to say so means it."""
    assert parse(access_token="abc").token_type == "Bearer"


@pytest.mark.parametrize("token_type", ["mac", "DPoP", "Bearer ", "", 1, 0, ["Bearer"], []], ids=repr)
def test_other_token_types_are_refused(token_type: object) -> None:
    """A token that is not Bearer would be sent in the wrong way."""
    with pytest.raises(ValueError, match="token_type"):
        parse(access_token="abc", token_type=token_type)


@pytest.mark.parametrize(
    ("payload", "granted"),
    [
        ({"scope": "cob.read pix.read"}, {"cob.read", "pix.read"}),
        ({"scope": "  cob.read   pix.read cob.read "}, {"cob.read", "pix.read"}),
        ({"scope": ""}, set()),
        ({}, {"asked.for"}),
        ({"scope": None}, {"asked.for"}),
        ({"scope": ["cob.read"]}, {"asked.for"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),  # a set prints in any order
)
def test_scopes_are_those_granted(payload: dict[str, Any], granted: set[str]) -> None:
    """What the response names was granted; where it names nothing, what was asked for (RFC 6749 section 5.1)."""
    assert parse(access_token="abc", requested="asked.for", **payload).scopes == granted


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("access_token", "token_type", "expires_in", "scope"), json_values)
    )
)
def test_any_json_is_a_usable_token_or_refused(payload: dict[str, Any]) -> None:
    """Whatever JSON a gateway sends, there is either a token that can be sent and expires, or an error."""
    try:
        token = parse(**payload)
    except ValueError:
        return
    f"Bearer {token.access_token}".encode("ascii")
    assert not set(token.access_token) & set(" \r\n\t")
    assert 0 < token.expires_in < math.inf
    assert token.phase(at(token.expires_in * 1.001 + 1e-3), 300) is EXPIRED


# -- the four phases


@pytest.mark.parametrize(
    ("life", "leeway", "stale", "critical", "expired"),
    [
        pytest.param(3600, 300, 3300, 3540, 3595, id="one hour: as documented, at 55 minutes"),
        pytest.param(300, 300, 150, 270, 295, id="BS2 production"),
        pytest.param(420, 300, 210, 378, 415, id="BS2 homologation"),
        pytest.param(1680, 300, 1380, 1620, 1675, id="BS2's other products"),
        pytest.param(1800, 300, 1500, 1740, 1795, id="the standard Avista API"),
        pytest.param(600, 300, 300, 540, 595, id="leeway of half the life"),
        pytest.param(3600, 60, 3540, 3570, 3595, id="leeway of a minute"),
        pytest.param(3600, 4, 3596, 3598, 3599, id="leeway shorter than the last seconds"),
        pytest.param(3600, 10**6, 1800, 3540, 3595, id="leeway longer than the life"),
        pytest.param(3600, 0, 3600, 3600, 3600, id="no leeway"),
        pytest.param(60, 300, 30, 54, 59, id="a minute"),
        pytest.param(6, 300, 3, 5.4, 5.9, id="six seconds"),
        pytest.param(1, 300, 0.5, 0.9, 1 - 1 / 60, id="one second"),
        pytest.param(86_400, 300, 86_100, 86_340, 86_395, id="a day"),
    ],
)
def test_phases_begin_where_the_contract_says(
    life: float, leeway: float, stale: float, critical: float, expired: float
) -> None:
    """Stale from min(leeway, L/2) before expiry, critical from min(60, L/10, m/2), expired from min(5, L/60, c/2)."""
    token = parse(access_token="abc", expires_in=life)
    bounds = [(0.0, FRESH), (stale, STALE), (critical, CRITICAL), (expired, EXPIRED)]
    epsilon = 1e-4
    for (start, phase), (end, _) in zip(bounds, [*bounds[1:], (math.inf, None)], strict=True):
        if start < end:
            assert token.phase(at(start + epsilon), leeway) is phase
            assert token.phase(at(min(end, start + 1e6) - epsilon), leeway) is phase
    assert token.phase(at(life), leeway) is EXPIRED


@given(seconds, leeways, st.floats(0, 2), st.floats(0, 2))
def test_phases_only_advance(life: float, leeway: float, one: float, other: float) -> None:
    """No token grows younger, and none is valid at its expiry, whatever the lifetime and the leeway."""
    token = parse(access_token="abc", expires_in=life)
    earlier, later = sorted((one * life, other * life))
    assert token.phase(at(earlier), leeway) <= token.phase(at(later), leeway)
    assert token.phase(at(life + 1e-3), leeway) is EXPIRED


@given(seconds, leeways)
def test_every_token_is_cached_for_half_its_life(life: float, leeway: float) -> None:
    """However short the life and long the leeway, a token is fresh for nearly the first half of it."""
    token = parse(access_token="abc", expires_in=life)
    assert token.phase(at(life * 0.499), leeway) is FRESH


@given(seconds, leeways, st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_age_is_the_larger_of_two_clocks(life: float, leeway: float, wall: float, monotonic: float) -> None:
    """A wall clock set back, and a monotonic one that stood still, leave a token as old as the other clock says."""
    token = parse(access_token="abc", expires_in=life)
    oldest = max(wall, monotonic)
    assert token.phase(at(wall, monotonic), leeway) >= token.phase(at(max(oldest - 1e-3, 0)), leeway)
    assert token.phase(at(wall, monotonic), leeway) <= token.phase(at(oldest + 1e-3), leeway)
    assert token.remaining(at(wall, monotonic)) == pytest.approx(life - oldest, abs=1e-3)


@pytest.mark.parametrize(
    ("wall", "monotonic", "phase"),
    [(-1, -1, EXPIRED), (-1, 0, FRESH), (0, -1, FRESH), (0, 0, FRESH)],
    ids=["both clocks", "the wall clock", "the monotonic clock", "neither"],
)
def test_token_of_the_future_is_not_sent(wall: float, monotonic: float, phase: Phase) -> None:
    """A token that was issued in the future of both clocks comes from a frozen time, and is replaced."""
    assert parse(access_token="abc", expires_in=3600).phase(at(wall, monotonic), 300) is phase


@given(seconds, leeways, st.floats(0, 2))
def test_fresh_until_is_where_fresh_ends(life: float, leeway: float, age: float) -> None:
    """The moment that the cached call compares with is the one at which the phase changes, on both clocks."""
    token = parse(access_token="abc", expires_in=life)
    until, moment = token.fresh_until(leeway), at(age * life)
    if abs(moment.wall - until.wall) > 1e-3:
        is_before = moment.wall < until.wall and moment.monotonic < until.monotonic
        assert is_before is (token.phase(moment, leeway) is FRESH)


@pytest.mark.parametrize(
    ("wall", "monotonic", "age"),
    [(30, 30, 30), (30, 0.1, 30), (0.1, 30, 30), (-3600, 30, 30), (-3600, -5, 0)],
    ids=["both", "suspended", "wall stood still", "wall set back", "both in the future"],
)
def test_age(wall: float, monotonic: float, age: float) -> None:
    """A token is as old as the clock says that says more, and never younger than new."""
    assert parse(access_token="t").age(at(wall, monotonic)) == pytest.approx(age)


# -- what a token shows


def test_token_is_not_in_its_repr() -> None:
    """The repr helps, and does not show the token."""
    shown = repr(parse(access_token="very-secret-token", scope="pix:read"))
    assert "very-secret" not in shown
    assert "pix:read" in shown
    assert f"{parse(access_token='very-secret-token')}" == repr(parse(access_token="very-secret-token"))


def test_token_is_frozen_and_stays_in_memory() -> None:
    """A token cannot be changed, nor be pickled to where it would be at rest."""
    token = parse(access_token="abc")
    with pytest.raises(dataclasses.FrozenInstanceError):
        token.expires_in = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match="pickle the auth object"):
        pickle.dumps(token)
    with pytest.raises(TypeError):
        json.dumps(token)


def test_digest_is_the_documented_one() -> None:
    """The first 8 hex digits of the SHA-256, as anyone can recompute."""
    assert digest("abc") == "ba7816bf"
