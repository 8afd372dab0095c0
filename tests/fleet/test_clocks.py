"""Hosts of one fleet whose wall clocks differ."""

from __future__ import annotations

import pytest
from redis_servers import (
    FleetClock,
    at_once,
)

from baas_auth_plugins.sandbox import Sandbox
from fleet.conftest import Join

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.mark.parametrize("ahead", [-3600, -30, 30])
def test_hosts_whose_clocks_differ(ahead: float, join: Join, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """A token is adopted by a host whose wall clock is off, and never for longer than it lives."""
    join().do("token")
    other = join(ahead=ahead)
    expires_in, remaining = other.do("times")
    assert expires_in == 300
    assert 300 - max(ahead, 0) - 5 < remaining <= 300
    assert sandbox.count("token") == 1


@pytest.mark.parametrize("spread", [-7200, 7200])
def test_hosts_whose_clocks_differ_widely(spread: float, join: Join, sandbox: Sandbox) -> None:
    """Hosts whose clocks are hours apart all get through, at worst with a token request each."""
    members = [join(), join(ahead=spread), join()]
    assert [member.do("call") for member in members * 2] == [200] * 6
    assert sandbox.count("token") <= 2


@pytest.mark.parametrize("ahead", [-30, 30])
def test_replacement_by_a_host_whose_clock_differs(ahead: float, join: Join, sandbox: Sandbox) -> None:
    """What another host minted after a rejection is younger than what was rejected, whatever their wall clocks say."""
    members = [join(), join(ahead=ahead)]
    for minter, other in (members, members[::-1]):
        assert at_once(members, "call") == [200] * 2
        before = sandbox.count("token")
        sandbox.revoke_all()
        assert [minter.do("call"), other.do("call")] == [200] * 2
        assert sandbox.count("token") == before + 1
