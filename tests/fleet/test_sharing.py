"""A fleet on one Redis shares its tokens: one token request for all processes, and everyone adopts its token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from conftest import make
from redis_servers import (
    LOOPBACK,
    FleetClock,
    RedisServer,
    at_once,
)

from baas_auth_plugins import (
    AxiaAuth,
    BS2Auth,
    Token,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Fault, Sandbox
from fleet.conftest import Join

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.mark.parametrize(("case", "processes"), [("cold", 128), ("cold, slow gateway", 32), ("warm", 32)])
def test_many_processes_start_at_once(case: str, processes: int, join: Join, sandbox: Sandbox) -> None:
    """Processes that start at once send one token request, and none if Redis has a token already."""
    if case == "warm":
        assert join().do("call") == 200
    elif "slow" in case:
        sandbox.inject(Fault("delay", delay=0.5))
    members = [join() for _ in range(processes)]
    at_once(members, "ready")
    assert at_once(members, "call") == [200] * processes
    assert sandbox.count("token") == 1
    assert at_once(members, "cache_log") == [[]] * processes


@pytest.mark.parametrize("single_active", [False, True])
def test_rejected_token_of_a_fleet(single_active: bool, join: Join, sandbox: Sandbox) -> None:
    """A revoked token costs the fleet one token request, also where each new token revokes the one before."""
    sandbox.single_active_token = single_active
    members = [join() for _ in range(8)]
    assert at_once(members, "call") == [200] * 8
    for rounds in (1, 2):
        sandbox.revoke_all()
        assert at_once(members, "call") == [200] * 8
        assert sandbox.count("token") == 1 + rounds
    assert len(set(at_once(members, "token"))) == 1


@pytest.mark.parametrize("call", ["call", "call_async"])
def test_replacement_is_adopted(call: str, join: Join, sandbox: Sandbox) -> None:
    """After a 401, processes adopt the token that another process requested, without a token request of their own."""
    sandbox.single_active_token = True
    members = [join() for _ in range(3)]
    assert at_once(members, call) == [200] * 3
    assert members[0].do("mint") is None
    assert [member.do(call) for member in members] == [200] * 3
    assert sandbox.count("token") == 2


def test_invalidation_holds_for_the_fleet(join: Join, sandbox: Sandbox) -> None:
    """A token that one process invalidated is not handed to a process that joins later."""
    first = join()
    old = first.do("token")
    first.do("invalidate")
    assert join().do("token") not in (None, old)
    assert sandbox.count("token") == 2


def test_steady_state(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """Four processes that call every 10 s for an hour make as many token requests as one would: 25 where L is 300 s."""
    members = [join() for _ in range(4)]
    for _ in range(360):
        tokens = at_once(members, "token")
        assert all(isinstance(token, str) for token in tokens), tokens
        fleet_clock.advance(10, server)
    assert sandbox.count("token") <= 25
    assert at_once(members, "call") == [200] * 4


def test_renewal_of_one_is_adopted_by_all(
    join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """A process whose token is stale adopts the one that another process renewed, and serves it until that one is due."""
    members = [join() for _ in range(3)]
    at_once(members, "token")
    fleet_clock.advance(151, server)
    renewed = members[0].do("token")
    fleet_clock.advance(40, server)
    assert [member.do("token") for member in members] == [renewed] * 3
    assert members[1].do("times")[1] == pytest.approx(260, abs=3)
    assert sandbox.count("token") == 2


def test_one_process_many_auth_objects(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """Threads of a process share its flight in a fleet, too: with one auth object each, over one cache."""
    sandbox.inject(Fault("delay", delay=0.3))
    cache = RedisTokenCache(redis.Redis(LOOPBACK, server.port))
    other = join()
    other.begin("token")
    with ThreadPoolExecutor(16) as pool:
        tokens = [pool.submit(lambda: make(BS2Auth, sandbox, cache=cache).get_token().access_token) for _ in range(16)]
    assert {token.result() for token in tokens} == {other.result()}
    assert sandbox.count("token") == 1


def test_rotation_of_the_secret(
    join: Join, server: RedisServer, sandbox: Sandbox, tmp_path: Path, fleet_clock: FleetClock
) -> None:
    """A rotated secret moves the fleet to a new key by itself, with one token request; the old key does not open for it."""
    vault = tmp_path / "vault"
    vault.write_text(sandbox.client_secret)
    members = [join(client_secret=vault.read_text) for _ in range(3)]
    assert at_once(members, "call") == [200] * 3
    before = set(server.values())
    vault.write_text("another-client-secret")
    sandbox.rotate_secret("another-client-secret")
    fleet_clock.advance(151, server)
    for _ in range(3):
        assert [member.do("call") for member in members] == [200] * 3
        fleet_clock.advance(5, server)
    assert set(server.values()) - before
    assert len(set(at_once(members, "token"))) == 1
    assert sandbox.count("token") == 2


def test_namespaces_and_scopes_are_apart(join: Join, sandbox: Sandbox) -> None:
    """Another namespace, another scope and other headers have tokens of their own."""
    members = [join(), join(namespace="other"), join(scope="cob.read"), join(headers={"X-Tenant": "7"})]
    assert len({member.do("token") for member in members}) == 4
    assert members[2].do("scope") == "cob.read"
    assert sandbox.count("token") == 4


def test_tokens_of_a_fleet_look_alike(server: RedisServer, sandbox: Sandbox) -> None:
    """An adopted token tells the same of itself as the one that was minted."""
    auths = [make(AxiaAuth, sandbox, cache=RedisTokenCache(redis.Redis(LOOPBACK, server.port))) for _ in range(2)]
    minted, adopted = (auth.get_token() for auth in auths)
    assert isinstance(adopted, Token)
    assert adopted.access_token == minted.access_token
    assert (adopted.scopes, adopted.expires_in, adopted.token_type) == (minted.scopes, 3600, "Bearer")
    assert adopted.expires_at == pytest.approx(minted.expires_at, abs=1)
    assert adopted.access_token not in repr(adopted)
    assert sandbox.count("token") == 1
