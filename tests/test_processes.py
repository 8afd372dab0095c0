"""Processes: fork while a flight is under way, prefork, pickled auth objects, and the interpreter's exit."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import API_PATHS, SECRET, Auth, api_url, make
from gate import Gate
from raw_gateway import RawGateway

from baas_auth_plugins import AxiaAuth, MemoryTokenCache, _process
from baas_auth_plugins.sandbox import Sandbox

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(function: Callable[[], bool]) -> bool:
    """Fork, and return what the function says in the child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@FORKS
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_leads(auth_class: Auth, sandbox: Sandbox) -> None:
    """A child forked while a thread of the parent waits for the gateway requests a token of its own."""
    with Gate(sandbox.url) as gate, ThreadPoolExecutor(1) as pool:
        auth = make(auth_class, sandbox, base_url=gate.url, timeout=25, max_wait=25)
        url = gate.url + API_PATHS.get(auth_class.provider.name, "/cob/abc123")
        gate.shut()
        leading = pool.submit(auth.get_token)
        assert gate.held.wait(30)
        assert in_child(lambda: requests.get(url, auth=auth, timeout=10).status_code == 200)
        gate.open()
        assert leading.result(30)
    assert sandbox.count("token") == 2


@FORKS
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_every_lock_is_held(sandbox: Sandbox) -> None:
    """The package's lock is free in a child, although a thread of the parent holds it at the moment of the fork."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()

    def child() -> bool:
        done = threading.Event()

        def work() -> None:
            auth.invalidate()
            auth.get_token()
            done.set()

        threading.Thread(target=work, daemon=True).start()  # the lock is reentrant: another thread must take it
        return done.wait(10)

    with _process.lock():
        assert in_child(child)


@FORKS
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_prefork(sandbox: Sandbox) -> None:
    """Workers forked from a process that holds a token go on with it, over connections of their own."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    assert requests.get(url, auth=auth, timeout=10).status_code == 200
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(auth, url)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sandbox.count("token") == 1


@FORKS
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_leaves_the_parents_connections_alone() -> None:
    """A child sends token requests over connections of its own, never over one that its parent has opened."""
    with RawGateway() as gateway:
        auth = AxiaAuth("fork", SECRET, base_url=gateway.url, cache=MemoryTokenCache())

        def renew() -> bool:
            auth.invalidate()
            return bool(auth.get_token())

        assert renew()
        assert in_child(renew)
        assert renew()
        connections = [exchange.connection for exchange in gateway.tokens]
    assert len(connections) == len(set(connections)) == 3


def _work(auth: AxiaAuth, url: str) -> None:
    sys.exit(0 if requests.get(url, auth=auth, timeout=10).status_code == 200 else 1)


def test_spawned_process_gets_a_pickled_auth_object(sandbox: Sandbox) -> None:
    """An auth object may be sent to a process that shares nothing; it finds its own token there."""
    auth = make(AxiaAuth, sandbox, cache=None)
    auth.get_token()
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_work, args=(auth, api_url(AxiaAuth, sandbox)))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])  # noqa: S301
def test_session_with_an_auth_object_is_copied(
    duplicate: Callable[[requests.Session], requests.Session], sandbox: Sandbox
) -> None:
    """A requests.Session that holds an auth object can be pickled and deep-copied, in the middle of its work."""
    session, url = requests.Session(), api_url(AxiaAuth, sandbox)
    session.auth = make(AxiaAuth, sandbox, session=requests.Session())
    assert session.get(url, timeout=10).status_code == 200
    assert duplicate(session).get(url, timeout=10).status_code == 200


@pytest.mark.parametrize("renewing", [False, True])
def test_interpreter_exits_with_a_flight_under_way(renewing: bool, sandbox: Sandbox) -> None:
    """A process ends at once, quietly, though a daemon thread of it is waiting for a token."""
    sandbox.expires_in = 2 if renewing else None
    script = f"""
        import threading, time
        from baas_auth_plugins import AxiaAuth, TokenEndpointUnavailableError
        from baas_auth_plugins.sandbox import Fault
        import requests
        auth = AxiaAuth({sandbox.client_id!r}, {sandbox.client_secret!r}, base_url={sandbox.url!r},
                        background_renewal={renewing}, timeout=30)
        faults = {sandbox.url!r} + "/_sandbox/faults"
        hang = {{"kind": "hang", "delay": 60}}
        if {renewing}:
            token = auth.get_token()
            requests.post(faults, json=hang)
            while auth.get_token() is token and token.expires_at - time.time() > 1:
                pass
            auth.get_token()
        else:
            requests.post(faults, json=hang)
            threading.Thread(target=auth.get_token, daemon=True).start()
        while requests.get({sandbox.url!r} + "/_sandbox/stats").json()["max_in_flight"] < 1:
            pass
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=25, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
