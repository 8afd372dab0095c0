"""What a call costs, counted rather than timed: locks, threads, log records, cache operations, imports, objects left."""

from __future__ import annotations

import gc
import logging
import queue
import subprocess
import sys
import threading
import time
import weakref
from typing import Any
from unittest.mock import patch

import pytest
import requests
from conftest import CLIENTS, SECRET, Auth, Client, FakeClock, api_url, make
from processes import Dict, Faulty

from baas_auth_plugins import AxiaAuth, BS2Auth, MemoryTokenCache, OAuth2ClientCredentialsAuth, _process
from baas_auth_plugins._lifecycle.effects import Job
from baas_auth_plugins._lifecycle.source import TokenSource
from baas_auth_plugins._oauth import origins
from baas_auth_plugins.sandbox import Fault, Sandbox


class CountingLock:
    """A lock that counts how often it is taken."""

    def __init__(self) -> None:
        self.taken = 0
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self.taken += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("shares", [False, True], ids=["in memory", "in a shared cache"])
def test_cached_call_costs_nothing_but_two_clocks(
    shares: bool, client: Client, auth_class: Auth, sandbox: Sandbox
) -> None:
    """With a fresh token a call takes no lock, starts no thread, logs nothing, emits nothing and reads no cache."""
    cache = Faulty(Dict(time.monotonic)) if shares else MemoryTokenCache()
    events: list[Any] = []
    auth, url = make(auth_class, sandbox, cache=cache, on_event=events.append), api_url(auth_class, sandbox)
    lock = CountingLock()
    with client.open(auth) as send:
        for _ in range(2):
            assert send("GET", url).status == 200
        events.clear()
        package = logging.getLogger("baas_auth_plugins")
        with (
            patch.object(_process, "_lock", lock),
            patch.object(origins, "urlsplit", side_effect=AssertionError("a URL is parsed")),
            patch.object(package, "isEnabledFor", side_effect=AssertionError("something is logged")),
            patch.object(type(cache), "get", side_effect=AssertionError("the cache is read")),
            patch.object(type(cache), "swap", side_effect=AssertionError("the cache is written")),
            patch.object(Job, "join", side_effect=AssertionError("a thread is started")),
            patch.object(TokenSource, "acquire", side_effect=AssertionError("the source is asked")),
        ):
            assert send("GET", url).status == 200
    assert lock.taken == 0
    assert events == []
    assert sandbox.count("token") == 1


def test_lock_is_counted(sandbox: Sandbox) -> None:
    """The count is not blind: a token request takes the lock."""
    lock = CountingLock()
    with patch.object(_process, "_lock", lock):
        make(AxiaAuth, sandbox).get_token()
    assert lock.taken > 0


def test_cached_httpx_call_allocates_no_flow(sandbox: Sandbox) -> None:
    """A cached call of httpx is one generator of its own: no flow, no stepper, no request object of ours is made."""
    from baas_auth_plugins._http import flow, httpx
    from baas_auth_plugins._lifecycle.effects import Stepper

    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    url = api_url(AxiaAuth, sandbox)
    with CLIENTS[1].open(auth) as send:
        send("GET", url)
        with (
            patch.object(Stepper, "__init__", side_effect=AssertionError("a flow is stepped")),
            patch.object(flow, "authenticate", side_effect=AssertionError("a flow is made")),
            patch.object(httpx, "HttpxRequest", side_effect=AssertionError("a request is wrapped")),
        ):
            assert send("GET", url).status == 200


def test_cached_calls_leave_nothing_behind(sandbox: Sandbox) -> None:
    """A thousand cached headers make no object of the package that stays."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    auth(requests.Request("GET", url).prepare())
    gc.collect()
    before = _objects_of_the_package()
    for _ in range(1000):
        auth(requests.Request("GET", url).prepare())
    gc.collect()
    assert _objects_of_the_package() <= before


def _objects_of_the_package() -> int:
    rooms = ("baas_auth_plugins._", "baas_auth_plugins.auth")  # sandboxes of earlier tests may still be closing
    return sum(str(type(thing).__module__).startswith(rooms) for thing in gc.get_objects())


@pytest.mark.parametrize("life", [3600, 420, 300])
@pytest.mark.parametrize("auth_class", [AxiaAuth, BS2Auth], ids=["axia", "bs2"])
def test_token_requests_of_an_hour(life: int, auth_class: Auth, sandbox: Sandbox, clock: FakeClock) -> None:
    """At one call a second for an hour, a token is renewed at its stale age, and no sooner."""
    sandbox.expires_in = life
    auth = make(auth_class, sandbox)
    for _ in range(3600):
        auth.get_token()
        clock.advance(1)
    stale = min(300, life / 2)
    assert sandbox.count("token") == -(-3600 // (life - stale))


@pytest.mark.parametrize("in_background", [False, True])
def test_a_renewal_delays_one_call_at_most(in_background: bool, sandbox: Sandbox, clock: FakeClock) -> None:
    """While one thread renews over a slow token endpoint, 31 others get their token at once."""
    auth = make(AxiaAuth, sandbox, background_renewal=in_background)
    old = auth.get_token()
    clock.advance(3301)
    sandbox.inject(Fault("hang", "token", delay=60))
    served: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: served.put(auth.get_token())) for _ in range(32)]
    for thread in threads:
        thread.start()
    late = 0 if in_background else 1
    assert [served.get(timeout=10) for _ in range(32 - late)] == [old] * (32 - late)
    assert served.empty()
    sandbox.close()  # the renewal fails, and its caller, too, is served the old token
    assert [served.get(timeout=10) for _ in range(late)] == [old] * late
    for thread in threads:
        thread.join()


def imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_nothing_is_imported_before_it_is_used() -> None:
    """Importing the package imports no sandbox, CLI, Redis, event loop, and nothing of what only a mint or a fleet needs."""
    found = imported("import requests, httpx, baas_auth_plugins")
    package = {name for name in found if name.startswith("baas_auth_plugins.")}
    for part in ("sandbox", "cli", "events", "_fleet", "cache.redis", "opentelemetry", "testing"):
        assert not {name for name in package if f"{name}.".startswith(f"baas_auth_plugins.{part}.")}, part
    added = found - imported("import requests, httpx, httpx2")
    for name in ("asyncio", "authlib", "trio", "redis", "opentelemetry", "cryptography.hazmat.primitives.ciphers"):
        assert name not in added, name


def test_events_are_there_when_asked_for() -> None:
    """What is imported late is as public as the rest: by name, by star, in dir()."""
    code = "import baas_auth_plugins as p; assert p.TokenMinted.__name__ in dir(p); from baas_auth_plugins import *; TokenMinted"
    assert "baas_auth_plugins.events" in imported(code)


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there is missing as in any module."""
    import baas_auth_plugins

    with pytest.raises(AttributeError, match="no attribute 'TokenStolen'"):
        baas_auth_plugins.TokenStolen  # noqa: B018


class Counter:
    """An object that a process shares."""

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1


def test_shared_objects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones of an owner stay, in order of their use; the others go, and so do all with their owner."""
    monkeypatch.setattr(_process, "_MOST_SHARED", 2)
    owner, other = MemoryTokenCache(), MemoryTokenCache()
    first = _process.shared(owner, "a", Counter)
    second = _process.shared(owner, "b", Counter)
    assert _process.shared(owner, "a", Counter) is first
    _process.shared(owner, "c", Counter)
    assert _process.shared(owner, "a", Counter) is first
    assert _process.shared(owner, "b", Counter) is not second
    assert _process.shared(other, "a", Counter) is not first
    gone, key = weakref.ref(first), id(owner)
    del first, owner
    gc.collect()
    assert gone() is None
    assert key not in _process._by_owner


def test_reset_reaches_shared_objects() -> None:
    """`testing.reset` empties each object that the process shares, once."""
    owner = MemoryTokenCache()
    counter = _process.shared(owner, "a", Counter)
    _process.reset()
    assert counter.resets == 1
    assert _process.shared(owner, "a", Counter) is counter


def test_one_off_auth_objects_leave_nothing(sandbox: Sandbox) -> None:
    """2,000 auth objects for one call each make one token request, and none of them stays, without the garbage collector."""
    url = api_url(AxiaAuth, sandbox)
    cache = MemoryTokenCache()
    gc.collect()
    gc.disable()
    try:
        for _ in range(2000):
            prepared = requests.Request("GET", url).prepare()
            AxiaAuth(sandbox.client_id, SECRET, base_url=sandbox.url, cache=cache)(prepared)
        left = [thing for thing in gc.get_objects() if isinstance(thing, OAuth2ClientCredentialsAuth)]
        mine = [auth for auth in left if sandbox.client_id in repr(auth)]
    finally:
        gc.enable()
    assert mine == []
    assert sandbox.count("token") == 1
