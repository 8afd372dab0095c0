"""`background_renewal`: while a token lives no caller of any client waits for a renewal or sees one fail."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import requests
from conftest import API_PATHS, Auth, Client, FakeClock, api_url, make
from gate import Gate

from baas_auth_plugins import AxiaAuth, RenewalFailed, TokenMinted, TokenServedStale
from baas_auth_plugins.events import Event
from baas_auth_plugins.sandbox import Fault, Sandbox


class Recorder:
    """Keeps events, and lets a test wait for one that comes from another thread."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait_for(self, kind: type[Event], count: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.count(kind) >= count, 30)

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


@pytest.mark.parametrize("age", [3310, 3545], ids=["stale", "critical"])
def test_no_caller_waits_for_a_renewal(client: Client, age: float, sandbox: Sandbox, clock: FakeClock) -> None:
    """While the renewal hangs, every caller is served the old token at once; afterwards the new one."""
    news = Recorder()
    with Gate(sandbox.url) as gate:
        auth = make(AxiaAuth, sandbox, base_url=gate.url, background_renewal=True, on_event=news)
        url = gate.url + API_PATHS["axia"]
        old = auth.get_token()
        clock.advance(age)
        gate.shut()
        with client.open(auth) as send:
            for _ in range(3):
                assert send("GET", url).status == 200
            assert gate.held.wait(30)
            assert send("GET", url).status == 200
            assert news.count(TokenMinted) == 1  # nobody waited for the second
            assert news.count(TokenServedStale) == 4
            gate.open()
            news.wait_for(TokenMinted, 2)
            assert auth.get_token() is not old
            assert send("GET", url).status == 200
    assert sandbox.count("token") == 2


def test_renewal_in_the_background_starts_no_brake(sandbox: Sandbox, clock: FakeClock) -> None:
    """A token that was renewed within a minute of a 401, and is revoked later, is replaced at once."""
    news = Recorder()
    auth, url = make(AxiaAuth, sandbox, background_renewal=True, on_event=news), api_url(AxiaAuth, sandbox)
    sandbox.expires_in = 40
    requests.get(url, auth=auth, timeout=9)
    sandbox.revoke_all()
    assert requests.get(url, auth=auth, timeout=9).status_code == 200
    clock.advance(21)
    requests.get(url, auth=auth, timeout=9)
    news.wait_for(TokenMinted, 3)
    assert requests.get(url, auth=auth, timeout=9).status_code == 200
    sandbox.revoke_all()
    assert requests.get(url, auth=auth, timeout=9).status_code == 200
    assert sandbox.count("token") == 4


def test_no_caller_sees_a_renewal_fail(client: Client, sandbox: Sandbox, clock: FakeClock) -> None:
    """A network error of the renewal reaches no caller, with httpx neither."""
    news = Recorder()
    auth, url = make(AxiaAuth, sandbox, background_renewal=True, on_event=news), api_url(AxiaAuth, sandbox)
    auth.get_token()
    clock.advance(3310)
    sandbox.inject(Fault("drop"))
    with client.open(auth) as send:
        assert send("GET", url).status == 200
        news.wait_for(RenewalFailed)
        assert send("GET", url).status == 200  # in the cool-down
        assert sandbox.count("token") == 2
        clock.advance(5)
        assert send("GET", url).status == 200
        news.wait_for(TokenMinted, 2)


def test_dead_token_is_renewed_inline(auth_class: Auth, sandbox: Sandbox, clock: FakeClock) -> None:
    """Without a valid token, the caller waits for a token request, as without the option."""
    auth = make(auth_class, sandbox, background_renewal=True)
    old = auth.get_token()
    clock.advance(old.expires_in)
    assert auth.get_token().access_token != old.access_token


def test_the_callers_session_sends_the_renewal(new_sandbox: Callable[..., Sandbox], clock: FakeClock) -> None:
    """With `session`, the renewal is sent over it, in a daemon thread that is not the caller's, as each token request is."""
    sandbox, threads = new_sandbox(), list[threading.Thread]()

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, *args: object, **kwargs: object) -> requests.Response:
            threads.append(threading.current_thread())
            return super().send(*args, **kwargs)  # type: ignore[arg-type]

    news, session = Recorder(), requests.Session()
    session.mount("http://", Adapter())
    auth = make(AxiaAuth, sandbox, background_renewal=True, session=session, on_event=news)
    auth.get_token()
    clock.advance(3310)
    auth.get_token()
    news.wait_for(TokenMinted, 2)
    assert [thread.daemon for thread in threads] == [True, True]
    assert threading.current_thread() not in threads


def test_no_thread_to_be_had(sandbox: Sandbox, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, as at the interpreter's exit, the old token is served all the same."""
    auth = make(AxiaAuth, sandbox, background_renewal=True)
    old = auth.get_token()
    clock.advance(3310)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert auth.get_token() is old
    clock.advance(300)
    assert auth.get_token() is not old
