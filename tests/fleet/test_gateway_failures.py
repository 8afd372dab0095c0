"""The gateway rejects tokens, refuses credentials or is down: a fleet backs off together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import NO_TLS, Auth, api_url
from redis_servers import (
    FleetClock,
    RedisServer,
    at_once,
)

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BaaSAuthError,
    BS2Auth,
    InvalidClientError,
    OAuth2ClientCredentialsAuth,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox
from fleet.conftest import LONG_LEASE, Join, elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_backoff_holds_for_the_fleet(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """When a token that was requested because of a 401 is rejected, too, no process requests another during the back-off."""
    members = [join() for _ in range(3)]
    at_once(members, "token")
    sandbox.inject(Fault("status", "api", status=401, times=-1))
    assert members[0].do("call") == 401
    assert sandbox.count("token") == 2
    assert [member.do("call") for member in members * 2] == [401] * 6
    assert join().do("call") == 401
    assert sandbox.count("token") == 2
    fleet_clock.advance(5.5, server)
    assert at_once(members, "call") == [401] * 3
    assert sandbox.count("token") == 3
    assert [member.do("call") for member in members] == [401] * 3
    fleet_clock.advance(5.5, server)
    assert [member.do("call") for member in members] == [401] * 3
    assert sandbox.count("token") == 3
    sandbox.clear_faults()
    assert [member.do("call") for member in members] == [200] * 3
    assert sandbox.count("token") == 3


def test_rejected_replacement_backs_the_fleet_off(join: Join, sandbox: Sandbox) -> None:
    """If a process's replacement for a rejected token is rejected, too, no process requests another one."""
    first = join()
    first.do("token")
    sandbox.inject(Fault("status", "api", status=401, times=-1))
    assert first.do("call_once") == 401
    first.do("token")
    assert sandbox.count("token") == 2
    assert [join().do("call"), first.do("call"), join().do("call")] == [401] * 3
    assert sandbox.count("token") == 2


def test_rejection_while_the_fleet_is_rate_limited(join: Join, sandbox: Sandbox) -> None:
    """Where other processes have used up the token requests, a 401 is returned as it is, and the token stays."""
    member, other = join(), join(max_wait=0.05)
    for _ in range(10):
        assert member.do("mint") is None
    token = other.do("token")
    sandbox.inject(Fault("status", "api", status=401))
    assert other.do("call") == 401
    assert other.do("call") == 200
    assert other.do("token") == token
    assert sandbox.count("token") == 10


@pytest.mark.parametrize("auth_class", [AxiaAuth, AvistaAuth, BS2Auth], ids=lambda auth_class: auth_class.provider.name)
def test_refusal_holds_for_the_fleet(
    auth_class: Auth, join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """A wrong secret costs 8 cold processes one token request, and each gets its error; one more after 5 s."""
    members = [join(auth_class, client_secret="wrong") for _ in range(8)]
    for asked in (1, 2):
        errors = at_once(members, "token")
        assert {type(error) for error in errors} == {InvalidClientError}
        assert {error.status_code for error in errors} == {401}
        assert {error.provider for error in errors} == {auth_class.provider.name}
        assert sandbox.count("token") == asked
        assert isinstance(members[0].do("token"), InvalidClientError)
        assert sandbox.count("token") == asked
        fleet_clock.advance(5.5, server)


def test_gateway_that_is_down_is_asked_by_one(join: Join, sandbox: Sandbox) -> None:
    """Where every token request is answered 503, 8 cold processes send four in all, and all fail alike."""
    sandbox.inject(Fault("status", status=503, times=-1))
    members = [join() for _ in range(8)]
    errors = at_once(members, "token")
    assert {type(error) for error in errors} == {TokenEndpointUnavailableError}
    assert {error.status_code for error in errors} == {503}
    assert sandbox.count("token") == 4


def test_lost_connections_of_httpx_leave_no_lease(server: RedisServer, sandbox: Sandbox) -> None:
    """With httpx, each process sends one token request and gets a network error of httpx's own: no lease is left behind.

    The lease that a request needs is longer than `max_wait`.
    """
    sandbox.inject(Fault("drop", times=-1))
    url = api_url(BS2Auth, sandbox)

    def call(auth: OAuth2ClientCredentialsAuth) -> Exception | None:
        with httpx.Client(auth=auth, verify=NO_TLS) as client:
            try:
                client.get(url)
            except Exception as error:
                return error
        return None

    auths = [elsewhere(sandbox, server.port, **LONG_LEASE) for _ in range(6)]
    with ThreadPoolExecutor(len(auths)) as pool:
        errors = list(pool.map(call, auths))
    assert all(isinstance(error, httpx.TransportError) for error in errors)
    assert not any(isinstance(error, BaaSAuthError) for error in errors)
    assert sandbox.count("token") == 6
    sandbox.clear_faults()
    assert elsewhere(sandbox, server.port, **LONG_LEASE).get_token()


def test_outage_of_the_gateway_pauses_the_fleet(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """While the gateway is down, the processes with a valid token try one renewal together after each pause."""
    members = [join() for _ in range(4)]
    at_once(members, "token")
    fleet_clock.advance(151, server)
    sandbox.inject(Fault("status", status=503, times=-1))
    for tried in (1, 2, 3):
        for _ in range(2):
            assert at_once(members, "call") == [200] * 4
        assert sandbox.count("token") == 1 + tried
        fleet_clock.advance((5.5, 10.5, 20.5)[tried - 1], server)
