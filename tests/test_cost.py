"""What a request costs, counted rather than timed: locks, log records, URLs parsed, modules imported, objects left behind."""

from __future__ import annotations

import gc
import logging
import queue
import subprocess
import sys
import threading
from typing import Any
from unittest.mock import patch

import pytest
import requests
from baas_auth_plugins._registry import Registry
from conftest import SECRET, Auth, Client, FakeClock, api_url, make

from baas_auth_plugins import AxiaAuth, BS2Auth, MemoryTokenCache, OAuth2ClientCredentialsAuth, _fork, _origin
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


def test_fresh_token_costs_nothing_but_two_clocks(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """With a fresh token a call takes no lock, logs nothing, parses no URL and asks no cache."""
    auth, url = make(auth_class, sandbox), api_url(auth_class, sandbox)
    lock = CountingLock()
    with client.open(auth) as send:
        for _ in range(2):
            assert send("GET", url).status == 200
        package = logging.getLogger("baas_auth_plugins")
        with (
            patch.object(_fork, "_lock", lock),
            patch.object(_origin, "urlsplit", side_effect=AssertionError("a URL is parsed")),
            patch.object(package, "isEnabledFor", side_effect=AssertionError("something is logged")),
            patch.object(MemoryTokenCache, "get", side_effect=AssertionError("the cache is asked")),
        ):
            assert send("GET", url).status == 200
    assert lock.taken == 0
    assert sandbox.count("token") == 1


def test_the_lock_is_counted(sandbox: Sandbox) -> None:
    """The count is not blind: a mint takes the lock."""
    lock = CountingLock()
    with patch.object(_fork, "_lock", lock):
        make(AxiaAuth, sandbox).get_token()
    assert lock.taken > 0


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
    for part in ("sandbox", "cli", "_demo", "events", "_seal", "cache.redis"):
        assert not {name for name in package if name.startswith(f"baas_auth_plugins.{part}")}, part
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


def test_what_is_in_use_is_shared_however_many_there_are() -> None:
    """What is recent is kept; what is not any more is still one and the same for all who use it, and gone after that."""
    registry: Registry[CountingLock] = Registry(kept=2)
    used = registry.get(0, CountingLock)
    for key in (1, 2, 3):
        registry.get(key, CountingLock).taken = key
    assert [registry.get(key, CountingLock).taken for key in (2, 3)] == [2, 3]
    assert registry.get(0, CountingLock) is used
    assert registry.get(1, CountingLock).taken == 0


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
