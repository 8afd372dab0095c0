"""Interrupts and exceptions of signal handlers: never swallowed, and they end nothing for others."""

from __future__ import annotations

import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import requests
from conftest import FakeClock, api_url, make
from raw_gateway import SharedStore, elapsed

from baas_auth_plugins import AxiaAuth, MemoryTokenCache, NTXPayAuth
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of POSIX"),
]


class SoftTimeLimitExceeded(Exception):  # noqa: N818  # Celery's name
    """What Celery's signal handler raises: an Exception, not a BaseException."""


@pytest.fixture
def soft_limit() -> Iterator[type[Exception]]:
    """Install a signal handler that raises, as Celery does for a soft time limit."""

    def handler(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, handler)
    yield SoftTimeLimitExceeded
    signal.signal(signal.SIGUSR1, before)


class InterruptedCache(MemoryTokenCache):
    """An in-memory cache during which a signal arrives."""

    blocking: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.at: str | None = None

    def get(self, key: str) -> Any:
        self._signal("get")
        return super().get(key)

    def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
        self._signal("swap")
        return super().swap(key, old, new, ttl)

    def _signal(self, where: str) -> None:
        if self.at == where:
            self.at = None
            signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("where", ["get", "swap"])
def test_an_exception_in_the_memory_cache_reaches_the_caller(
    where: str, sandbox: Sandbox, soft_limit: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """A soft time limit that strikes inside the memory cache ends the call, is not logged as a cache failure, and the next call works."""
    cache = InterruptedCache()
    auth = make(AxiaAuth, sandbox, cache=cache)
    cache.at = where
    with pytest.raises(soft_limit):
        requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5)
    assert "cache failed" not in caplog.text
    assert requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5).status_code == 200


def test_an_exception_while_a_shared_cache_is_waited_for_reaches_the_caller(
    sandbox: Sandbox, soft_limit: type[Exception]
) -> None:
    """The same while a thread works on a shared cache."""
    store = SharedStore(time.time)
    striking = threading.Event()

    class Slow:
        def get(self, key: str) -> tuple[bytes, float] | None:
            if striking.is_set():
                striking.clear()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                threading.Event().wait(0.2)
            return store.get(key)

        def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
            return store.swap(key, old, new, ttl)

    auth = make(AxiaAuth, sandbox, cache=Slow())
    striking.set()
    with pytest.raises(soft_limit):
        auth.get_token()
    assert auth.get_token().access_token


def test_an_exception_while_the_vault_is_waited_for_reaches_the_caller(
    sandbox: Sandbox, soft_limit: type[Exception]
) -> None:
    """The same while the secret is read, and the next caller gets its token."""
    strike = [True]

    def vault() -> str:
        if strike.pop() if strike else False:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            threading.Event().wait(0.2)
        return sandbox.client_secret

    auth = make(AxiaAuth, sandbox, client_secret=vault)
    with pytest.raises(soft_limit):
        auth.get_token()
    assert auth.get_token().access_token


@pytest.mark.parametrize("waiting", ["leader", "waiter"])
def test_an_exception_during_a_token_request_leaves_no_lead_behind(
    waiting: str, sandbox: Sandbox, soft_limit: type[Exception]
) -> None:
    """A leader or a waiter that is struck ends at once; the other callers get their token."""
    sandbox.inject(Fault("delay", delay=1.0))
    auth = make(AxiaAuth, sandbox)
    main = threading.main_thread().ident or 0

    def strike() -> None:
        while not sandbox.count("token"):
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
        signal.pthread_kill(main, signal.SIGUSR1)

    with ThreadPoolExecutor(4) as pool:
        others = []
        if waiting == "waiter":
            others = [pool.submit(auth.get_token)]
            while not sandbox.count("token"):
                threading.Event().wait(0.01)
        striker = pool.submit(strike)
        with elapsed() as spent, pytest.raises(soft_limit):
            auth.get_token()
        striker.result(10)
        others.append(pool.submit(auth.get_token))
        assert all(other.result(20).access_token for other in others)
    assert spent.seconds < 10


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SoftTimeLimitExceeded, RuntimeError, MemoryError])
def test_a_thread_that_does_not_start_ends_no_background_renewal(
    kind: type[BaseException], clock: FakeClock, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt or an error in `Thread.start` costs one call at most: the next one has the token renewed."""
    auth = make(AxiaAuth, sandbox, background_renewal=True)
    auth.get_token()
    clock.advance(3310)
    start, struck = threading.Thread.start, []

    def failing(thread: threading.Thread) -> None:
        if threading.current_thread() is threading.main_thread() and not struck:
            struck.append(thread)
            raise kind
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    try:
        auth.get_token()
    except BaseException as error:
        assert type(error) is kind  # noqa: PT017  # it may be raised, or not: nothing else may
    for _ in range(200):
        auth.get_token()
        if sandbox.count("token") == 2:
            break
        clock.advance(1)
        threading.Event().wait(0.02)
    assert sandbox.count("token") == 2


def test_an_interrupt_in_thread_start_is_raised(
    clock: FakeClock, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a call starts a thread and is interrupted there, the caller sees the interrupt."""
    auth = make(AxiaAuth, sandbox, client_secret=lambda: sandbox.client_secret)
    start, struck = threading.Thread.start, []

    def failing(thread: threading.Thread) -> None:
        if threading.current_thread() is threading.main_thread() and not struck:
            struck.append(thread)
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    raised = False
    try:
        auth.get_token()
    except KeyboardInterrupt:
        raised = True
    assert raised == bool(struck)
    assert auth.get_token().access_token


@pytest.mark.parametrize("with_vault", [False, True])
def test_an_interrupt_at_any_call_costs_nobody_else_anything(with_vault: bool, sandbox: Sandbox) -> None:
    """A signal that strikes as any function of the life cycle begins is raised, and the next call is quick."""
    for number in itertools.count(1):
        auth = make(
            NTXPayAuth,
            sandbox,
            client_secret=(lambda: sandbox.client_secret) if with_vault else sandbox.client_secret,
            timeout=4,
        )
        strike, before = Strike(number), sys.gettrace()
        sys.settrace(strike)
        try:
            auth.get_token()
        except SoftTimeLimitExceeded:
            pass
        else:
            assert not strike.place, f"swallowed in {strike.place}"
        finally:
            sys.settrace(before)
        with elapsed() as spent:
            assert auth.get_token().access_token
        assert spent.seconds < 2, f"after a signal in {strike.place}"
        if not strike.place:
            break
    assert number > 50


class Strike:
    """Raises as the nth function of the life cycle begins in this thread, where Python runs a signal handler."""

    def __init__(self, number: int) -> None:
        self.countdown = number
        self.place = ""

    def __call__(self, frame: Any, event: str, _argument: object) -> None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and "_lifecycle" in file:
            self.countdown -= 1
            if self.countdown == 0:
                self.place = f"{file}: {function}"
                raise SoftTimeLimitExceeded


@pytest.mark.filterwarnings("ignore")  # an interrupt may strike inside a finalizer of the standard library
def test_interrupted_calls_end_and_leave_the_next_one_unharmed(sandbox: Sandbox) -> None:
    """Two hundred calls are interrupted at random moments: each ends soon, and an undisturbed call works."""

    class Strike(BaseException):
        pass

    def handler(*_: object) -> None:
        raise Strike

    chance = random.Random(11)  # noqa: S311  # reproducible, not secret
    auth = make(NTXPayAuth, sandbox, timeout=2, max_wait=5)
    before = signal.signal(signal.SIGALRM, handler)
    struck, longest = 0, 0.0
    try:
        for _ in range(200):
            with elapsed() as spent:
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.012))
                    auth.invalidate()
                    requests.get(api_url(NTXPayAuth, sandbox), auth=auth, timeout=5)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Strike:
                    struck += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            longest = max(longest, spent.seconds)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert struck > 0
    assert longest < 20
    assert requests.get(api_url(NTXPayAuth, sandbox), auth=auth, timeout=5).status_code == 200
