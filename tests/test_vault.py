"""A callable secret: read in a daemon thread, waited for in bounded time, and never by two at once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
import requests
from conftest import CLIENTS, SECRET, Auth, Client, FakeClock, api_url, make, sent_tokens
from raw_gateway import elapsed

from baas_auth_plugins import (
    AxiaAuth,
    BS2Auth,
    ConfigurationError,
    NTXPayAuth,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Sandbox

pytestmark = pytest.mark.timeout(120)

BOUND = 15.0  # seconds that no bounded call needs, however busy the machine
SOME = pytest.mark.parametrize(
    "client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name
)


class HangingVault:
    """A callable secret that hangs while it is told to, and knows how many calls are outstanding."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.calls = 0
        self.most_at_once = 0
        self.threads: list[threading.Thread] = []
        self._outstanding = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.calls += 1
            self._outstanding += 1
            self.most_at_once = max(self.most_at_once, self._outstanding)
            self.threads.append(threading.current_thread())
        assert self.open.wait(60)
        with self._lock:
            self._outstanding -= 1
        return SECRET


@pytest.fixture
def vault() -> Iterator[HangingVault]:
    vault = HangingVault()
    yield vault
    vault.open.set()


# -- a vault that hangs


@SOME
def test_a_hanging_vault_fails_no_call_while_a_token_is_valid(
    client: Client, clock: FakeClock, sandbox: Sandbox, vault: HangingVault
) -> None:
    """With a valid token each call succeeds; the one that renews waits `timeout` at most."""
    vault.open.set()
    auth = make(AxiaAuth, sandbox, client_secret=vault, timeout=0.3)
    with client.open(auth) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
        vault.open.clear()
        clock.advance(3310)
        with elapsed() as spent:
            for _ in range(5):
                assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert spent.seconds < BOUND
    assert vault.calls <= 2
    assert len(set(sent_tokens(sandbox))) == 1


@pytest.mark.parametrize("age", [3310, 3545], ids=["stale", "critical"])
def test_a_hanging_vault_stops_no_worker(age: float, clock: FakeClock, sandbox: Sandbox, vault: HangingVault) -> None:
    """Eight workers that go on calling are all served, whoever of them becomes leader."""
    vault.open.set()
    auth = make(AxiaAuth, sandbox, client_secret=vault, timeout=0.3)
    auth.get_token()
    vault.open.clear()
    clock.advance(age)

    def work(_: int) -> list[int]:
        found = []
        for _ in range(5):
            found.append(requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=10).status_code)
            clock.advance(1)
        return found

    with elapsed() as spent, ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(work, range(8)))
    assert statuses == [[200] * 5] * 8
    assert spent.seconds < BOUND * 2
    assert vault.most_at_once == 1


@SOME
def test_a_hanging_vault_without_a_token_is_a_timeout(client: Client, sandbox: Sandbox, vault: HangingVault) -> None:
    """Without a token the call fails after `timeout` with TokenEndpointUnavailableError; once the vault answers, calls succeed."""
    auth = make(BS2Auth, sandbox, client_secret=vault, timeout=0.3, max_wait=2)
    with client.open(auth) as send:
        with elapsed() as spent, pytest.raises(client.error) as caught:
            send("GET", api_url(BS2Auth, sandbox))
        assert isinstance(caught.value, TokenEndpointUnavailableError)
        assert caught.value.provider == "bs2"
        assert "client_secret" in str(caught.value)
        assert spent.seconds < BOUND
        vault.open.set()
        assert send("GET", api_url(BS2Auth, sandbox)).status == 200
    assert vault.most_at_once == 1


def test_one_call_of_the_vault_is_outstanding_at_most(sandbox: Sandbox, vault: HangingVault) -> None:
    """Callers that come while the vault hangs join the one call that is outstanding, and each ends by itself."""
    auth = make(AxiaAuth, sandbox, client_secret=vault, timeout=0.2, max_wait=1)
    for _ in range(4):
        with pytest.raises(TokenEndpointUnavailableError):
            auth.get_token()
    assert vault.calls == 1
    vault.open.set()
    assert auth.get_token().access_token


def test_a_late_answer_of_the_vault_is_used(sandbox: Sandbox, vault: HangingVault) -> None:
    """A caller that joins an outstanding call gets its answer."""
    auth = make(AxiaAuth, sandbox, client_secret=vault, timeout=0.2, max_wait=1)
    with pytest.raises(TokenEndpointUnavailableError):
        auth.get_token()
    patient = threading.Timer(0.05, vault.open.set)
    patient.start()
    auth2_error: list[Exception] = []
    for _ in range(50):
        try:
            assert auth.get_token().access_token
            break
        except TokenEndpointUnavailableError as error:
            auth2_error.append(error)
    else:
        pytest.fail(f"no token after {len(auth2_error)} calls")
    patient.join()
    assert vault.calls <= 2
    assert vault.most_at_once == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_event_loop_goes_on_and_ends_while_the_vault_hangs(
    backend: str, sandbox: Sandbox, vault: HangingVault
) -> None:
    """The loop runs other tasks meanwhile, and closes without waiting for the vault."""
    auth = make(AxiaAuth, sandbox, client_secret=vault, timeout=0.5, max_wait=2)
    beats: list[int] = []

    async def main() -> None:
        async with anyio.create_task_group() as group:

            async def beat() -> None:
                while True:
                    beats.append(1)
                    await anyio.sleep(0.01)

            group.start_soon(beat)
            with pytest.raises(TokenEndpointUnavailableError):
                await auth.aget_token()
            group.cancel_scope.cancel()

    with elapsed() as spent:
        anyio.run(main, backend=backend)
    assert spent.seconds < BOUND
    assert len(beats) > 5


@pytest.mark.parametrize("how", ["sync", "asyncio", "trio"])
def test_a_process_exits_while_its_vault_hangs(how: str) -> None:
    """The vault's thread is a daemon: a program that has given up on it ends."""
    program = f"""
        import threading, time
        import anyio
        from baas_auth_plugins import AxiaAuth, TokenEndpointUnavailableError

        def vault():
            time.sleep(3600)

        auth = AxiaAuth("id", vault, base_url="http://127.0.0.1:9", timeout=0.3, max_wait=1)
        async def main():
            try:
                await auth.aget_token()
            except TokenEndpointUnavailableError:
                print("given up")
        if {how!r} == "sync":
            try:
                auth.get_token()
            except TokenEndpointUnavailableError:
                print("given up")
        else:
            anyio.run(main, backend={how!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "given up"), done.stderr


# -- where it runs


@SOME
def test_the_vault_is_called_in_a_daemon_thread(client: Client, sandbox: Sandbox, vault: HangingVault) -> None:
    """Sync or async, the callable runs in a daemon thread of its own, never in the caller's."""
    vault.open.set()
    client.call(make(NTXPayAuth, sandbox, client_secret=vault), "GET", api_url(NTXPayAuth, sandbox))
    (thread,) = vault.threads
    assert thread.daemon
    assert thread is not threading.main_thread()


def test_the_vault_sees_the_callers_context(sandbox: Sandbox) -> None:
    """Context variables of the caller are visible to the callable, as tracing and tenants need them."""
    import contextvars

    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")
    seen: list[str] = []

    def vault() -> str:
        seen.append(tenant.get())
        return SECRET

    token = tenant.set("tenant-1")
    try:
        make(AxiaAuth, sandbox, client_secret=vault).get_token()
    finally:
        tenant.reset(token)
    assert seen == ["tenant-1"]


# -- a vault that raises


@pytest.mark.parametrize(
    ("failure", "unavailable"),
    [
        (OSError("vault sealed"), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError("slow"), True),
        (requests.ConnectionError("no route"), True),
        (ValueError("no such path"), False),
        (KeyError("client_secret"), False),
        (PermissionError("denied"), True),
    ],
    ids=lambda value: type(value).__name__,
)
@SOME
def test_what_the_vault_raises_is_the_cause(
    client: Client, failure: Exception, unavailable: bool, sandbox: Sandbox
) -> None:
    """Its exception is the cause of a TokenEndpointError: an unavailable one for an OSError, else a plain one."""

    def vault() -> str:
        raise failure

    auth = make(AxiaAuth, sandbox, client_secret=vault)
    with pytest.raises(client.error) as caught:
        client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert type(caught.value) is (TokenEndpointUnavailableError if unavailable else TokenEndpointError)
    assert caught.value.__cause__ is failure
    assert type(failure).__name__ in str(caught.value)
    assert sandbox.requests == []


@pytest.mark.parametrize("failure", [OSError("sealed"), ValueError("wrong path")], ids=lambda e: type(e).__name__)
def test_failures_of_the_vault_are_not_cached(failure: Exception, clock: FakeClock, sandbox: Sandbox) -> None:
    """The next caller calls it again, at once: a vault that recovers is used without a pause."""
    calls: list[int] = []

    def vault() -> str:
        calls.append(1)
        if len(calls) <= 3:
            raise failure
        return SECRET

    auth = make(AxiaAuth, sandbox, client_secret=vault)
    for _ in range(3):
        with pytest.raises(TokenEndpointError):
            auth.get_token()
    assert auth.get_token().access_token
    assert len(calls) == 4
    assert clock.slept == []


def test_message_of_the_vault_is_not_repeated(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """An exception text of a vault may hold the secret: neither our message nor the log repeats it."""

    def vault() -> str:
        raise ValueError(f"bad value: {SECRET}")

    with pytest.raises(TokenEndpointError) as caught:
        make(AxiaAuth, sandbox, client_secret=vault).get_token()
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_caller_leaves_the_vault_to_others(backend: str, sandbox: Sandbox, vault: HangingVault) -> None:
    """A task that is cancelled while the vault is asked ends at once, and the next one gets its token."""
    auth = make(AxiaAuth, sandbox, client_secret=vault, timeout=30)

    async def main() -> str:
        with anyio.move_on_after(0.1) as scope:
            await auth.aget_token()
        assert scope.cancelled_caught
        vault.open.set()
        return (await auth.aget_token()).access_token

    with elapsed() as spent:
        assert anyio.run(main, backend=backend)
    assert spent.seconds < BOUND
    assert vault.most_at_once == 1


def test_two_auth_objects_have_a_call_each(sandbox: Sandbox, vault: HangingVault) -> None:
    """One outstanding call is the bound of one auth object: another object with another vault is not held up."""
    stuck = make(AxiaAuth, sandbox, client_secret=vault, timeout=0.2, max_wait=1)
    with pytest.raises(TokenEndpointUnavailableError):
        stuck.get_token()
    assert make(AxiaAuth, sandbox, client_secret=lambda: SECRET).get_token().access_token


def test_a_rotated_secret_is_taken_up_once_per_call(auth_class: Auth, sandbox: Sandbox) -> None:
    """A vault that gives another wrong secret each time is read twice by one call, and two token requests are sent."""
    calls: list[int] = []

    def vault() -> str:
        calls.append(1)
        return f"wrong-secret-{len(calls)}"

    with pytest.raises(TokenEndpointError):
        make(auth_class, sandbox, client_secret=vault).get_token()
    assert sandbox.count("token") == 2
    assert len(calls) == 2


@pytest.mark.parametrize("secret", [b"bytes", 7, object()], ids=["bytes", "int", "object"])
def test_a_secret_is_a_str_or_a_callable(secret: Any) -> None:
    """Anything else is a ConfigurationError that names the parameter."""
    with pytest.raises(ConfigurationError, match="client_secret"):
        AxiaAuth("id", secret)


def test_a_coroutine_method_is_refused() -> None:
    """A callable that would have to be awaited is refused when the object is made, bound methods included."""

    class Vault:
        async def read(self) -> str:
            return SECRET

    with pytest.raises(ConfigurationError, match="client_secret"):
        AxiaAuth("id", Vault().read)  # type: ignore[arg-type]
