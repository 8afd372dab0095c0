"""Redis is down, forgets, or fails at any command of a call: no call fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis_servers import (
    LOOPBACK,
    FleetClock,
    Member,
    RedisServer,
    at_once,
    pass_time,
    until,
)

from baas_auth_plugins import (
    RateLimitError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox
from fleet.conftest import PAUSE, Caller, Case, FreeAuth, Join, command

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@dataclass(frozen=True)
class Outage:
    """One way for Redis to be of no use, and how it ends."""

    begin: Callable[[RedisServer], Any]
    end: Callable[[RedisServer], Any]
    readable: bool = False
    """Whether what is there is still found."""


def _fill(server: RedisServer) -> None:
    with server.client() as client:
        client.set("something else", bytes(2_000_000))
        client.config_set("maxmemory", "1mb")
        with pytest.raises(redis.RedisError):
            client.set("x", "y")


def _spin(server: RedisServer) -> None:
    def spin() -> None:
        with suppress(redis.RedisError), server.client() as client:
            client.eval("while true do end", 0)

    command("CONFIG SET", "lua-time-limit", 50)(server)
    threading.Thread(target=spin, daemon=True).start()
    until(lambda: _busy(server))


def _busy(server: RedisServer) -> bool:
    try:
        command("PING")(server)
    except redis.RedisError as error:
        return "busy" in str(error).lower()
    return False


OUTAGES = {
    "hung": Outage(RedisServer.freeze, RedisServer.thaw),
    "killed": Outage(RedisServer.kill, RedisServer.start),
    "paused": Outage(command("CLIENT PAUSE", 1_000_000, "WRITE"), command("CLIENT UNPAUSE")),
    "full": Outage(_fill, command("CONFIG SET", "maxmemory", "0"), readable=True),
    "read-only": Outage(command("REPLICAOF", LOOPBACK, 1), command("REPLICAOF", "NO", "ONE"), readable=True),
    "busy": Outage(_spin, command("SCRIPT KILL")),
}


@dataclass
class Ward:
    """A fleet of two whose Redis goes out: one process with a token, one that starts when Redis is gone."""

    outage: Outage
    server: RedisServer
    sandbox: Sandbox
    old: Member[Caller]
    cold: Member[Caller]

    def said(self) -> list[list[str]]:
        return at_once([self.old, self.cold], "cache_log")


@pytest.fixture
def wards(
    tmp_path: Path, join: Join, new_sandbox: Callable[..., Sandbox], fleet_clock: FleetClock
) -> Iterator[dict[str, Ward]]:
    """One for each kind of outage."""
    with ExitStack() as running:
        made: dict[str, Ward] = {}
        for name, outage in OUTAGES.items():
            server = running.enter_context(RedisServer(tmp_path / name))
            sandbox = new_sandbox()
            made[name] = Ward(outage, server, sandbox, *(join(sandbox=sandbox, port=server.port) for _ in range(2)))
        yield made


def test_outages(wards: dict[str, Ward], join: Join, fleet_clock: FleetClock) -> None:
    """While Redis fails, every call succeeds, with one WARNING; when Redis works again, it is used, with one INFO."""

    def advance(seconds: float, *, out: bool) -> None:
        """Let time pass; keys that nobody can see grow older afterwards."""
        fleet_clock.advance(seconds, *(ward.server for ward in wards.values() if not out or ward.outage.readable))

    def call(*members: str, revoking: bool = False) -> None:
        """Have all of these call at once, in all wards."""
        called = {(name, member): getattr(ward, member) for name, ward in wards.items() for member in members}
        for ward in wards.values() if revoking else ():
            ward.sandbox.revoke_all()
        assert dict(zip(called, at_once(called.values(), "call"), strict=True)) == dict.fromkeys(called, 200)

    call("old")
    for ward in wards.values():
        ward.outage.begin(ward.server)
    advance(151, out=True)
    call("old")  # a renewal
    assert {name: ward.old.do("cache_log") for name, ward in wards.items()} == {name: ["WARNING"] for name in wards}
    call("cold")
    for _ in range(2):
        advance(PAUSE, out=True)
        call("old", "cold", revoking=True)
    assert {name: ward.said() for name, ward in wards.items()} == {name: [[], ["WARNING"]] for name in wards}
    for ward in wards.values():
        ward.outage.end(ward.server)
        pass_time(0 if ward.outage.readable else 151 + 2 * PAUSE, ward.server)
    advance(PAUSE, out=False)
    before = {name: ward.sandbox.count("token") for name, ward in wards.items()}
    at_once([member for ward in wards.values() for member in (ward.old, ward.cold)], "invalidate")
    call("old", "cold")
    for name, ward in wards.items():
        back = ward.said()
        assert ["INFO"] in back, name
        # Who could read all the time, and has had nothing to write since, has nothing to tell yet.
        assert all(said == ["INFO"] or (ward.outage.readable and not said) for said in back), name
        assert join(sandbox=ward.sandbox, port=ward.server.port).do("call") == 200
    assert {name for name, ward in wards.items() if ward.sandbox.count("token") - before[name] > 1} == set()


def test_outage_at_the_limit(join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock) -> None:
    """A process that could never reach Redis keeps the rate limit, the pauses and the back-off by itself."""
    server.kill()
    member = join(max_wait=1)
    answers = [member.do("mint") for _ in range(14)]
    assert answers[:10] == [None] * 10
    assert all(isinstance(answer, RateLimitError) for answer in answers[10:])
    assert sandbox.count("token") == 10
    fleet_clock.advance(61)
    assert member.do("mint") is None


@pytest.mark.parametrize("event", ["flushed", "restarted"])
def test_redis_forgets_everything(
    event: str, join: Join, server: RedisServer, sandbox: Sandbox, fleet_clock: FleetClock
) -> None:
    """When Redis loses its data, valid tokens are served, nothing is logged, and the next renewal is shared again."""
    members = [join() for _ in range(3)]
    tokens = at_once(members, "token")
    command("FLUSHALL")(server) if event == "flushed" else server.restart()
    assert at_once(members, "token") == tokens
    assert sandbox.count("token") == 1
    fleet_clock.advance(151, server)
    assert at_once(members, "call") == [200] * 3
    fleet_clock.advance(20, server)
    assert len(set(at_once(members, "token"))) == 1
    assert sandbox.count("token") == 2
    assert at_once(members, "cache_log") == [[]] * 3


def test_redis_is_restarted_during_a_lead(join: Join, server: RedisServer, sandbox: Sandbox) -> None:
    """When Redis is restarted during a token request, every process gets a token, at worst after a second request."""
    sandbox.inject(Fault("delay", delay=1))
    members = [join() for _ in range(4)]
    at_once(members, "ready")
    for member in members:
        member.begin("call")
    until(lambda: sandbox.count("token"))
    server.restart()
    assert [member.result() for member in members] == [200] * 4
    assert sandbox.count("token") <= 2
    assert join().do("call") == 200
    assert sandbox.count("token") <= 2


MOMENTS = ("cold", "renewal", "rejection")

FAILURES = (("drop", True), ("lose", False), ("hang", True), ("hang", False), ("mute", False))


@pytest.mark.parametrize("moment", MOMENTS)
def test_redis_fails_at_every_command(
    moment: str,
    server: RedisServer,
    new_sandbox: Callable[..., Sandbox],
    fleet_clock: FleetClock,
    caplog: pytest.LogCaptureFixture,
    cases: list[Case],
) -> None:
    """Wherever Redis fails within a call, the call succeeds within its `max_wait`, with one WARNING at the most, and one mint."""
    caplog.set_level(logging.INFO, "baas_auth_plugins")
    sandbox = new_sandbox(providers=[FreeAuth.provider])
    rehearsal = Case(0, "", False, server.port, sandbox)
    cases.append(rehearsal)

    def everywhere(function: Callable[[Case], object], *, together: int = 100) -> None:
        with ThreadPoolExecutor(together) as pool:
            list(pool.map(function, cases))

    def prepare() -> None:
        if moment == "cold":
            return
        everywhere(Case.call)
        if moment == "renewal":
            fleet_clock.advance(151, server)
        else:
            sandbox.revoke_all()

    prepare()
    rehearsal.proxy.fail_at(0, "", for_good=False)
    rehearsal.call()
    commands = len(rehearsal.proxy.commands)
    assert commands
    cases[:] = [
        Case(number, how, for_good, server.port, sandbox)
        for number in range(1, commands + 1)
        for how, for_good in FAILURES
    ]
    prepare()
    for case in cases:
        case.proxy.fail_at(case.number, case.how, for_good=case.for_good)
    mints = {case.name: case.mints for case in cases}
    everywhere(Case.call)
    if moment == "renewal":  # while a token lives, nobody mints alone before Redis has failed twice
        fleet_clock.advance(6, server)
        everywhere(Case.call)
    assert {case.name: set(case.statuses) for case in cases} == {case.name: {200} for case in cases}
    cases[:] = [case for case in cases if case.proxy.failed]  # how many commands there are depends on who meets whom
    assert {case.number for case in cases} >= set(range(1, commands - 4))
    assert {case.name: case.mints - mints[case.name] for case in cases if case.mints - mints[case.name] != 1} == {}
    everywhere(Case.invalidate)
    everywhere(Case.call)
    said = [(record.threadName, record.levelname) for record in caplog.records if "cache" in record.getMessage()]
    warned = {case.name: said.count((case.name, "WARNING")) for case in cases}
    assert {name: times for name, times in warned.items() if times > 1} == {}
    assert {case.name for case in cases if case.for_good and not warned[case.name]} == set()
    everywhere(lambda case: case.proxy.heal())
    fleet_clock.advance(PAUSE, server)
    caplog.clear()
    mints = {case.name: case.mints for case in cases}
    everywhere(Case.invalidate, together=4)  # so that nothing here is slow by itself
    everywhere(Case.call, together=4)
    everywhere(Case.call_elsewhere, together=4)
    assert {case.name: set(case.statuses) for case in cases} == {case.name: {200} for case in cases}
    assert {case.name: case.mints - mints[case.name] for case in cases if case.mints - mints[case.name] != 1} == {}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
