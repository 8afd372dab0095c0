"""`call_with_token` and `acall_with_token`: any other client gets a token, and one 401 is healed."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import urllib3
from conftest import Auth, FakeClock, api_url, make
from gate import Gate

from baas_auth_plugins import (
    AxiaAuth,
    BaaSAuthError,
    BS2Auth,
    InvalidClientError,
    MemoryTokenCache,
    OAuth2ClientCredentialsAuth,
    Token,
)
from baas_auth_plugins._http.session_sender import SessionSender
from baas_auth_plugins.sandbox import Fault, Sandbox

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class ApiError(Exception):
    """What a generated client raises, with the status under one of several names."""

    def __init__(self, **fields: int) -> None:
        super().__init__("unauthorized")
        vars(self).update(fields)


class Api:
    """An API that accepts the gateway's current token alone, and what it was called with.

    Args:
        reject: says 401 in one of the ways in which clients do.
    """

    def __init__(self, reject: Callable[[], Any] = lambda: SimpleNamespace(status=401)) -> None:
        self.reject = reject
        self.revoked: set[str] = set()
        self.sent: list[str] = []

    def __call__(self, token: Token) -> Any:
        self.sent.append(token.access_token)
        return self.reject() if token.access_token in self.revoked else SimpleNamespace(status=200)

    async def acall(self, token: Token) -> Any:
        await anyio.sleep(0)
        return self(token)

    def revoke(self) -> None:
        """Accept none of the tokens that were sent so far."""
        self.revoked |= set(self.sent)


def raising(**fields: int) -> Callable[[], Any]:
    def reject() -> Any:
        raise ApiError(**fields)

    return reject


Caller = Callable[..., Any]


def call_sync(auth: OAuth2ClientCredentialsAuth, api: Api, **arguments: Any) -> Any:
    return auth.call_with_token(api, **arguments)


def call_on(backend: str) -> Caller:
    def call(auth: OAuth2ClientCredentialsAuth, api: Api, **arguments: Any) -> Any:
        async def main() -> Any:
            return await auth.acall_with_token(api.acall, **arguments)

        return anyio.run(main, backend=backend)

    return call


@pytest.fixture(params=["sync", "asyncio", "trio"])
def call(request: pytest.FixtureRequest) -> Caller:
    """Each way to call: in a thread, and in each event loop."""
    return call_sync if request.param == "sync" else call_on(request.param)


# -- over the sandbox


def test_urllib3_against_the_sandbox(auth_class: Auth, sandbox: Sandbox) -> None:
    """The token works in a client that the package does not know; after a revocation the second try has a new one."""
    auth, url = make(auth_class, sandbox), api_url(auth_class, sandbox)
    with urllib3.PoolManager() as pool:

        def send(token: Token) -> urllib3.BaseHTTPResponse:
            return pool.request("GET", url, headers={"Authorization": f"Bearer {token.access_token}"}, timeout=10)

        assert [auth.call_with_token(send).status for _ in range(3)] == [200] * 3
        sandbox.revoke_all()
        assert auth.call_with_token(send).status == 200
    assert (sandbox.count("token"), sandbox.count("api")) == (2, 5)


def test_urllib_raises_its_401(sandbox: Sandbox) -> None:
    """The standard library's client raises an HTTPError with a `code`: that is a 401, too."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def send(token: Token) -> int:
        headers = {"Authorization": f"Bearer {token.access_token}"}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the sandbox's own URL
        try:
            with opener.open(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            raise

    assert auth.call_with_token(send) == 200
    sandbox.revoke_all()
    assert auth.call_with_token(send) == 200
    assert sandbox.count("token") == 2


# -- what is sent


def test_cached_token_is_used(call: Caller, sandbox: Sandbox) -> None:
    """Calls share the auth object's token, with its other faces as well."""
    auth, api = make(BS2Auth, sandbox), Api()
    token = auth.get_token().access_token
    assert [call(auth, api).status for _ in range(3)] == [200] * 3
    assert (api.sent, sandbox.count("token")) == ([token] * 3, 1)


@pytest.mark.parametrize(
    "reject",
    [
        lambda: SimpleNamespace(status=401),
        lambda: SimpleNamespace(status_code=401),
        lambda: SimpleNamespace(code=401),
        raising(status=401),
        raising(status_code=401),
        raising(code=401),
    ],
    ids=["status", "status_code", "code", "raised status", "raised status_code", "raised code"],
)
def test_one_401_is_healed(call: Caller, sandbox: Sandbox, reject: Callable[[], Any]) -> None:
    """Whichever way a client says 401, returned or raised, the call is repeated once with another token."""
    auth, api = make(BS2Auth, sandbox), Api(reject)
    call(auth, api)
    api.revoke()
    assert call(auth, api).status == 200
    assert len(api.sent) == 3
    assert len(set(api.sent)) == 2
    assert sandbox.count("token") == 2


@pytest.mark.parametrize(
    "reject", [lambda: SimpleNamespace(status=401), raising(status=401)], ids=["returned", "raised"]
)
def test_second_answer_is_the_callers(call: Caller, sandbox: Sandbox, reject: Callable[[], Any]) -> None:
    """A second 401 is returned, or raised, as the API gave it, and there is no third try."""
    auth, api = make(BS2Auth, sandbox), Api(reject)
    api.revoked = _Everything()
    try:
        assert call(auth, api).status == 401
    except ApiError as error:
        assert vars(error) == {"status": 401}  # noqa: PT017  # one of two ways, by the parameter
    assert len(api.sent) == 2
    assert call_after_a_401_in_a_row(call, auth, api) == 1


class _Everything(set[str]):
    def __contains__(self, item: object) -> bool:
        return True


def call_after_a_401_in_a_row(call: Caller, auth: Any, api: Api) -> int:
    """Return how often the API is called while the back-off of rejections runs."""
    api.sent.clear()
    with suppress(ApiError):
        call(auth, api)
    return len(api.sent)


@pytest.mark.parametrize("error", [ValueError("x"), ApiError(status=500), ApiError(status=403), ApiError()])
def test_other_errors_pass_through(call: Caller, sandbox: Sandbox, error: Exception) -> None:
    """What the function raises is raised as it is, and says nothing about the token."""
    auth, calls = make(BS2Auth, sandbox), 0

    def fail() -> Any:
        nonlocal calls
        calls += 1
        raise error

    api = Api(fail)
    api.revoked = _Everything()
    with pytest.raises(type(error)) as caught:
        call(auth, api)
    assert caught.value is error
    assert (calls, sandbox.count("token")) == (1, 1)


def test_interrupt_is_not_swallowed(sandbox: Sandbox) -> None:
    """A KeyboardInterrupt in the function ends the call, and leaves nothing behind."""
    auth = make(BS2Auth, sandbox)

    def interrupted(_token: Token) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auth.call_with_token(interrupted)
    assert auth.call_with_token(Api()).status == 200
    assert sandbox.count("token") == 1


def test_own_test_of_a_rejection(call: Caller, sandbox: Sandbox) -> None:
    """With `is_rejected` an answer in the body counts, and a status of 401 does not."""
    auth = make(BS2Auth, sandbox)
    api = Api(lambda: SimpleNamespace(status=200, error="token_expired"))
    call(auth, api)
    api.revoke()

    def is_rejected(answer: Any) -> bool:
        return getattr(answer, "error", None) == "token_expired"

    assert not hasattr(call(auth, api, is_rejected=is_rejected), "error")
    assert len(api.sent) == 3
    api.reject = lambda: SimpleNamespace(status=401)
    api.revoke()
    assert call(auth, api, is_rejected=is_rejected).status == 401
    assert len(api.sent) == 4


def test_successor_is_never_dropped(call: Caller, sandbox: Sandbox) -> None:
    """A call whose token was replaced while it was under way is repeated with the successor, which stays."""
    auth = make(BS2Auth, sandbox)

    class Slow(Api):
        def __call__(self, token: Token) -> Any:
            if not self.sent:  # meanwhile another caller has replaced the token
                auth.invalidate(token)
                self.successor = auth.get_token().access_token
                self.revoked.add(token.access_token)
            return super().__call__(token)

    api = Slow()
    assert call(auth, api).status == 200
    assert api.sent[1] == api.successor == auth.get_token().access_token
    assert sandbox.count("token") == 2


def test_crowd_of_401s_is_one_token_request(sandbox: Sandbox) -> None:
    """Fifty calls that are rejected together have one token requested, and each is healed."""
    auth, api = make(BS2Auth, sandbox), Api()
    barrier = threading.Barrier(50)

    class Together(Api):
        def __call__(self, token: Token) -> Any:
            if token.access_token in self.revoked:
                barrier.wait(30)
            return super().__call__(token)

    auth.call_with_token(api)
    together = Together()
    together.revoked = set(api.sent)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(auth.call_with_token(together).status)) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 50
    assert sandbox.count("token") == 2


def test_error_of_the_token_request_is_raised(call: Caller, sandbox: Sandbox) -> None:
    """Without a token the function is not called, and the typed error is raised."""
    auth, api = make(BS2Auth, sandbox, client_secret="wrong"), Api()
    with pytest.raises(InvalidClientError):
        call(auth, api)
    assert api.sent == []


def test_error_after_a_401_hides_the_401(call: Caller, sandbox: Sandbox) -> None:
    """If there is no other token to be had, the cause is raised, not the 401."""
    auth, api = make(BS2Auth, sandbox), Api()
    call(auth, api)
    api.revoke()
    sandbox.inject(Fault("status", "token", status=400))
    with pytest.raises(BaaSAuthError):
        call(auth, api)
    assert len(api.sent) == 2


def test_token_is_renewed_on_the_way(call: Caller, sandbox: Sandbox, clock: FakeClock) -> None:
    """A token that is due is renewed by the call that finds it so."""
    sandbox.expires_in = 300
    auth, api = make(BS2Auth, sandbox), Api()
    call(auth, api)
    clock.advance(151)
    call(auth, api)
    assert len(set(api.sent)) == 2


# -- the event loop


@BACKENDS
def test_no_io_on_the_event_loop(backend: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token requests and cache operations run in other threads; the loop's own does no I/O at all."""
    threads: dict[str, set[int]] = {"send": set(), "cache": set()}
    send = SessionSender.__call__

    def noted(*arguments: Any) -> Any:
        threads["send"].add(threading.get_ident())
        return send(*arguments)

    class Cache(MemoryTokenCache):
        blocking = True

        def get(self, key: str) -> Any:
            threads["cache"].add(threading.get_ident())
            return super().get(key)

        def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
            threads["cache"].add(threading.get_ident())
            return super().swap(key, old, new, ttl)

    monkeypatch.setattr(SessionSender, "__call__", noted)
    auth, api = make(BS2Auth, sandbox, cache=Cache()), Api()

    async def main() -> int:
        await auth.acall_with_token(api.acall)
        api.revoke()
        connect = socket.socket.connect
        loop = threading.get_ident()

        def guarded(self: socket.socket, address: Any) -> None:
            assert threading.get_ident() != loop, "a connection is made on the event loop"
            connect(self, address)

        monkeypatch.setattr(socket.socket, "connect", guarded)
        assert (await auth.acall_with_token(api.acall)).status == 200
        return loop

    loop = anyio.run(main, backend=backend)
    assert threads["send"]
    assert threads["cache"]
    assert loop not in threads["send"] | threads["cache"]
    assert sandbox.count("token") == 2


@BACKENDS
def test_loop_goes_on_while_a_token_is_requested(backend: str, sandbox: Sandbox) -> None:
    """While the token endpoint is slow, other tasks of the loop run."""
    with Gate(sandbox.url) as gate:
        auth, api = make(BS2Auth, sandbox, base_url=gate.url), Api()
        gate.shut()

        async def main() -> Any:
            async with anyio.create_task_group() as tasks:

                async def open_when_held() -> None:
                    while not gate.held.is_set():
                        await anyio.sleep(0.001)
                    gate.open()

                tasks.start_soon(open_when_held)
                return await auth.acall_with_token(api.acall)

        assert anyio.run(main, backend=backend).status == 200
    assert sandbox.count("token") == 1


@BACKENDS
def test_cancelled_call_leaves_nothing_behind(backend: str, sandbox: Sandbox) -> None:
    """A call that is cancelled while its function runs ends there, and the next one works."""
    auth, api = make(BS2Auth, sandbox), Api()

    async def main() -> Any:
        with anyio.CancelScope() as scope:

            async def cancelled(_token: Token) -> None:
                scope.cancel()
                await anyio.sleep_forever()

            await auth.acall_with_token(cancelled)
        assert scope.cancelled_caught
        return await auth.acall_with_token(api.acall)

    assert anyio.run(main, backend=backend).status == 200
    assert sandbox.count("token") == 1


def test_any_awaitable_will_do(sandbox: Sandbox) -> None:
    """The function may return a future or a task instead of a coroutine."""
    auth, api = make(BS2Auth, sandbox), Api()

    async def main() -> Any:
        def send(token: Token) -> Awaitable[Any]:
            return asyncio.ensure_future(api.acall(token))

        return await auth.acall_with_token(send)

    assert asyncio.run(main()).status == 200
