"""A fleet keeps a gateway's rate limit, and a Retry-After, together."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from redis_servers import (
    FleetClock,
    RedisServer,
    at_once,
)
from requests.adapters import HTTPAdapter

from baas_auth_plugins import (
    RateLimitError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox
from fleet.conftest import Join

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_retry_after_holds_for_the_fleet(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """While a Retry-After runs that one process got, no other process sends a token request."""
    sandbox.inject(Fault("status", status=429, retry_after=20))
    first, cold = join(max_wait=1), join(max_wait=1)
    assert isinstance(first.do("token"), RateLimitError)
    error = cold.do("token")
    assert isinstance(error, RateLimitError)
    assert 5 < error.retry_after <= 20
    assert sandbox.count("token") == 1
    fleet_clock.advance(20.5, server)
    assert at_once([cold, first], "call") == [200] * 2
    assert sandbox.count("token") == 2


def test_retry_after_is_waited_for_by_the_fleet(join: Join, sandbox: Sandbox) -> None:
    """All processes wait for a Retry-After that fits in their `max_wait`, and one sends a token request."""
    sandbox.inject(Fault("status", status=429, retry_after=1))
    members = [join() for _ in range(4)]
    assert at_once(members, "call") == [200] * 4
    assert sandbox.count("token") == 2


def test_live_token_is_served_while_limited(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """While a Retry-After runs, a valid token is served, from this process or from Redis."""
    members = [join(max_wait=1) for _ in range(2)]
    at_once(members, "token")
    fleet_clock.advance(160, server)
    sandbox.inject(Fault("status", status=429, retry_after=60, times=-1))
    members.append(join(max_wait=1))
    assert at_once(members, "call") == [200] * 3
    assert at_once(members, "call") == [200] * 3
    assert sandbox.count("token") == 2


def test_rate_limit_holds_for_the_fleet(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """Four processes that request tokens as often as they can send 10 in any 60 s together, as BS2 allows, and no fewer."""
    members = [join(max_wait=0.05) for _ in range(4)]
    for _ in range(30):
        for _ in range(2):
            answers = at_once(members, "mint")
            assert {type(answer) for answer in answers} <= {type(None), RateLimitError, TokenEndpointUnavailableError}
        fleet_clock.advance(7, server)
    assert not [request for request in sandbox.requests if request.status == 429]
    assert 30 <= sandbox.count("token") <= 40
    assert at_once(members, "cache_log") == [[]] * 4


def test_rate_limit_of_different_tokens(join: Join, sandbox: Sandbox) -> None:
    """Token requests for different tokens count together, also while none has been answered yet."""
    sandbox.inject(Fault("delay", delay=0.4, times=10))
    members = [join(max_wait=2, timeout=5, headers={"X-Tenant": str(number)}) for number in range(14)]
    at_once(members, "ready")
    answers = at_once(members, "token")
    assert sum(isinstance(answer, str) for answer in answers) == 10
    assert sum(isinstance(answer, RateLimitError) for answer in answers) == 4
    assert sandbox.count("token") == 10


def test_rate_limit_counts_from_the_answer(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """A token request that took 9 s counts from its answer, for the whole fleet."""

    class Slow(HTTPAdapter):
        def send(self, *arguments: Any, **options: Any) -> Any:
            fleet_clock.advance(9, server)
            return super().send(*arguments, **options)

    session = requests.Session()
    session.mount("http://", Slow())
    assert join(session=session).do("mint") is None
    member, newcomer = join(max_wait=0.05), join(max_wait=0.05)
    assert [member.do("mint") for _ in range(9)] == [None] * 9
    fleet_clock.advance(55, server)
    assert isinstance(newcomer.do("mint"), RateLimitError)
    assert {request.status for request in sandbox.requests} == {200}


def test_rate_limit_is_told_to_newcomers(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """A process that starts when the fleet has used up its token requests sends none."""
    member = join(max_wait=0.05)
    for _ in range(10):
        assert member.do("mint") is None
    member.do("invalidate")
    assert isinstance(join(max_wait=0.05).do("token"), RateLimitError)
    assert isinstance(join(max_wait=0.05, scope="cob.read").do("token"), RateLimitError)
    assert sandbox.count("token") == 10
