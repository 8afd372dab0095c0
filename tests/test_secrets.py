"""Client secrets that come from a vault, and the scopes that a gateway grants."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from conftest import NO_TLS, SECRET, Auth, Client, FakeClock, api_url, make

from baas_auth_plugins import (
    AxiaAuth,
    BaaSAuthError,
    ConfigurationError,
    InvalidClientError,
    InvalidScopeError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

GARBAGE = [None, "", " ", 7, b"bytes", "surrogate\udc80", "newline\n"]
RENEWAL_DUE = 3300.0


class Vault:
    """A callable secret that records the threads it is called in, and can be made to fail."""

    def __init__(self, secret: Any = SECRET) -> None:
        self.secret = secret
        self.threads: list[threading.Thread] = []

    def __call__(self) -> Any:
        self.threads.append(threading.current_thread())
        if isinstance(self.secret, Exception):
            raise self.secret
        return self.secret

    @property
    def calls(self) -> int:
        return len(self.threads)


@pytest.fixture
def vault() -> Vault:
    return Vault()


def statuses(sandbox: Sandbox, kind: str = "token") -> list[int | None]:
    return [r.status for r in sandbox.requests if r.kind == kind]


# -- when it is read


def test_the_secret_is_read_at_first_use_and_at_each_mint(
    client: Client, auth_class: Auth, clock: FakeClock, sandbox: Sandbox, vault: Vault
) -> None:
    """The constructor does not read the secret, and a cached token does not need it. Each token request reads it once."""
    auth = make(auth_class, sandbox, client_secret=vault)
    assert vault.calls == 0
    with client.open(auth) as send:
        for mints in (1, 2, 3):
            for _ in range(3):
                assert send("GET", api_url(auth_class, sandbox)).status == 200
            assert (vault.calls, sandbox.count("token")) == (mints, mints)
            clock.advance(3600)


def test_the_secret_is_read_in_a_daemon_thread(client: Client, sandbox: Sandbox, vault: Vault) -> None:
    """A callable that blocks, blocks no event loop, and does not keep the process from ending."""
    auth = make(AxiaAuth, sandbox, client_secret=vault)
    if client.backend is None:
        assert client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status == 200
        assert [thread.daemon for thread in vault.threads] == [True]
        assert threading.current_thread() not in vault.threads
        return
    loop = threading.Event()

    def slow() -> Any:
        assert loop.wait(10)  # set by the loop's own thread, which goes on meanwhile
        return vault()

    auth = make(AxiaAuth, sandbox, client_secret=slow)

    async def main() -> threading.Thread:
        async with client.module.AsyncClient(auth=auth, verify=NO_TLS, trust_env=False) as opened:
            async with anyio.create_task_group() as group:
                group.start_soon(opened.get, api_url(AxiaAuth, sandbox))
                await anyio.sleep(0)
                loop.set()
        return threading.current_thread()

    here = anyio.run(main, backend=client.backend)
    assert [thread.daemon for thread in vault.threads] == [True]
    assert here not in vault.threads


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_cold_tasks_read_the_secret_once_or_twice(backend: str, sandbox: Sandbox, vault: Vault) -> None:
    """A thousand tasks that start together make one token request, and hardly more reads."""
    auth = make(AxiaAuth, sandbox, client_secret=vault)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(auth.aget_token)

    anyio.run(main, backend=backend)
    assert sandbox.count("token") == 1
    assert vault.calls <= 2


def test_many_cold_threads_read_the_secret_once_or_twice(sandbox: Sandbox, vault: Vault) -> None:
    """The same with threads."""
    auth = make(AxiaAuth, sandbox, client_secret=vault)
    with ThreadPoolExecutor(32) as pool:
        tokens = list(pool.map(lambda _: auth.get_token().access_token, range(64)))
    assert len(set(tokens)) == sandbox.count("token") == 1
    assert vault.calls <= 2


# -- rotation


def test_a_rotation_is_healed_by_one_retry(
    client: Client, auth_class: Auth, clock: FakeClock, sandbox: Sandbox
) -> None:
    """A secret that was rotated just after it was read is read again, and the call goes through."""
    secrets = iter([SECRET, SECRET])
    auth = make(auth_class, sandbox, client_secret=lambda: next(secrets, "rotated"))
    with client.open(auth) as send:
        assert send("GET", api_url(auth_class, sandbox)).status == 200
        sandbox.rotate_secret("rotated")
        clock.advance(3600)
        assert send("GET", api_url(auth_class, sandbox)).status == 200
    assert statuses(sandbox) == [200, 401, 200]


def test_an_unchanged_secret_is_not_tried_again(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """A refused secret is read once more; being the same, it is not sent again."""
    vault = Vault("wrong")
    auth = make(auth_class, sandbox, client_secret=vault)
    with pytest.raises(InvalidClientError):
        client.call(auth, "GET", api_url(auth_class, sandbox))
    assert statuses(sandbox) == [401]
    assert vault.calls == 2


def test_a_secret_that_changes_at_every_call_is_given_up(client: Client, sandbox: Sandbox) -> None:
    """A callable that never gives the same secret twice ends in an error, not in a loop."""
    numbers = iter(range(1000))
    auth = make(AxiaAuth, sandbox, client_secret=lambda: f"secret-{next(numbers)}")
    with pytest.raises(BaaSAuthError):
        client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert len(statuses(sandbox)) <= 5


def test_a_rotation_that_the_gateway_does_not_know_yet_costs_no_call(
    client: Client, clock: FakeClock, sandbox: Sandbox, vault: Vault
) -> None:
    """While the old token is valid, a new secret that is refused is logged, and no call fails."""
    auth = make(AxiaAuth, sandbox, client_secret=vault)
    with client.open(auth) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
        vault.secret = "too new"
        clock.advance(RENEWAL_DUE)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
        sandbox.rotate_secret("too new")
        clock.advance(240)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert statuses(sandbox) == [200, 401, 200]


# -- a vault that fails


def test_a_vault_that_raises_is_an_outage(client: Client, sandbox: Sandbox) -> None:
    """An OSError of the callable is an outage, with that cause. It is not cached: the next call calls it again."""
    vault = Vault(OSError("vault sealed"))
    auth = make(AxiaAuth, sandbox, client_secret=vault)
    with client.open(auth) as send:
        with pytest.raises(client.error) as caught:
            send("GET", api_url(AxiaAuth, sandbox))
        assert isinstance(caught.value, TokenEndpointUnavailableError)
        assert caught.value.__cause__ is vault.secret
        assert (caught.value.provider, str(caught.value)) == ("axia", "axia: the callable client_secret raised OSError")
        assert sandbox.requests == []
        vault.secret = SECRET
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200


@pytest.mark.parametrize("garbage", GARBAGE, ids=ascii)
def test_a_vault_that_gives_no_secret_is_misconfigured(client: Client, sandbox: Sandbox, garbage: Any) -> None:
    """Anything but text that can be sent is a ConfigurationError, which does not quote it."""
    auth = make(AxiaAuth, sandbox, client_secret=Vault(garbage))
    with pytest.raises(ConfigurationError, match="client_secret") as caught:
        client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert not (isinstance(garbage, str) and garbage.strip() and garbage.strip() in str(caught.value))
    assert sandbox.requests == []


@pytest.mark.parametrize("failure", [OSError("down"), *GARBAGE], ids=ascii)
@pytest.mark.parametrize("age", [RENEWAL_DUE, 3560.0], ids=["stale", "critical"])
@pytest.mark.pairwise
def test_a_failing_vault_costs_no_call_while_the_token_lives(
    client: Client, clock: FakeClock, sandbox: Sandbox, vault: Vault, failure: Any, age: float
) -> None:
    """A renewal that fails because of the vault serves the old token, as any failed renewal does."""
    auth = make(AxiaAuth, sandbox, client_secret=vault)
    with client.open(auth) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
        vault.secret = failure
        clock.advance(age)
        for _ in range(3):
            assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
        assert vault.calls == 2  # the pause after a failure holds for the vault, too
        vault.secret = SECRET
        clock.advance(30)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert statuses(sandbox) == [200, 200]


class Asynchronous:
    async def __call__(self) -> str:
        return SECRET


async def coroutine_function() -> str:
    return SECRET


@pytest.mark.parametrize(
    "secret",
    [coroutine_function, Asynchronous(), partial(coroutine_function)],
    ids=["function", "object", "partial"],
)
def test_a_coroutine_function_is_refused(secret: Any) -> None:
    """The callable is plain: sync code could not await it."""
    with pytest.raises(ConfigurationError, match="client_secret"):
        AxiaAuth("id", secret)


# -- the README's recipes, with modules that stand in for the vaults'


def read_hvac() -> Callable[[], str]:
    import hvac  # type: ignore[import-not-found]

    vault = hvac.Client()

    def client_secret() -> str:
        answer = vault.secrets.kv.v2.read_secret_version(path="axia", raise_on_deleted_version=True)
        return answer["data"]["data"]["client_secret"]

    return client_secret


def read_boto3() -> Callable[[], str]:
    import boto3  # type: ignore[import-not-found]

    manager = boto3.client("secretsmanager")

    def client_secret() -> str:
        return manager.get_secret_value(SecretId="prod/axia")["SecretString"]

    return client_secret


def read_keyring() -> Callable[[], str]:
    import keyring  # type: ignore[import-not-found]

    return partial(keyring.get_password, "axia", "your-client-id")


@pytest.fixture
def fake_vaults(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> list[Any]:
    """Install stand-ins for hvac, boto3 and keyring that hold the sandbox's secret, and record what they are asked."""
    calls: list[Any] = []

    def answer(make: Callable[[str], Any]) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            return make(sandbox.client_secret)

        return method

    kv = SimpleNamespace(
        v2=SimpleNamespace(read_secret_version=answer(lambda s: {"data": {"data": {"client_secret": s}}}))
    )
    manager = SimpleNamespace(get_secret_value=answer(lambda s: {"SecretString": s}))
    fakes = {
        "hvac": SimpleNamespace(Client=lambda: SimpleNamespace(secrets=SimpleNamespace(kv=kv))),
        "boto3": SimpleNamespace(client={"secretsmanager": manager}.__getitem__),
        "keyring": SimpleNamespace(get_password=answer(str)),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return calls


@pytest.mark.parametrize(
    ("recipe", "asked"),
    [
        (read_hvac, ((), {"path": "axia", "raise_on_deleted_version": True})),
        (read_boto3, ((), {"SecretId": "prod/axia"})),
        (read_keyring, (("axia", "your-client-id"), {})),
    ],
    ids=["hvac", "boto3", "keyring"],
)
def test_a_recipe_follows_its_vault(
    recipe: Callable[[], Callable[[], str]],
    asked: Any,
    fake_vaults: list[Any],
    clock: FakeClock,
    sandbox: Sandbox,
) -> None:
    """Each recipe reads its vault before each token request, and takes up a rotated secret."""
    auth = make(AxiaAuth, sandbox, client_secret=recipe())
    with httpx.Client(auth=auth, verify=NO_TLS, trust_env=False) as client:
        assert client.get(api_url(AxiaAuth, sandbox)).status_code == 200
        sandbox.rotate_secret("rotated")
        clock.advance(3600)
        assert client.get(api_url(AxiaAuth, sandbox)).status_code == 200
    assert fake_vaults[:2] == [asked, asked]
    assert statuses(sandbox) == [200, 200]


# -- scopes


def test_missing_scopes_are_named(client: Client, sandbox: Sandbox) -> None:
    """The error names the required scopes that were not granted, and no others."""
    auth = make(AxiaAuth, sandbox, scope="cards:write accounts:read bills:read")
    with pytest.raises(InvalidScopeError, match="bills:read cards:write") as caught:
        client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert caught.value.missing_scopes == {"bills:read", "cards:write"}
    assert "accounts:read" not in str(caught.value)
    assert sandbox.count("api") == 0


def test_scopes_are_checked_once_per_mint(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """The refusal of a scope is cached for all callers; then one token request is sent."""
    auth = make(AxiaAuth, sandbox, scope="cards:write")
    with client.open(auth) as send:
        for mints in (1, 2):
            for _ in range(3):
                with pytest.raises(InvalidScopeError, match="cards:write"):
                    send("GET", api_url(AxiaAuth, sandbox))
            assert sandbox.count("token") == mints
            clock.advance(5)


def test_a_scope_that_was_withdrawn_costs_no_call_while_the_token_lives(
    client: Client, clock: FakeClock, sandbox: Sandbox
) -> None:
    """A renewal that grants less is a failed renewal: the old token, which has the scope, is served."""
    auth = make(AxiaAuth, sandbox, scope="accounts:read")
    with client.open(auth) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
        clock.advance(RENEWAL_DUE)
        less = b'{"access_token": "t0ken", "expires_in": 3600, "scope": "pix:send"}'
        sandbox.inject(Fault("body", "token", body=less))
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert sandbox.count("token") == 2


def test_a_403_of_the_api_is_the_callers(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """Insufficient scope for one operation (Axia's E00102) is returned as it is: no token request, no replay, no error."""
    auth = make(auth_class, sandbox)
    sandbox.inject(Fault("status", "api", status=403))
    with client.open(auth) as send:
        answer = send("GET", api_url(auth_class, sandbox))
        assert answer.status == 403
        assert answer.json.get("error") == {"axia": "E00102", "bs2": "access_denied"}.get(auth_class.provider.name)
        assert send("GET", api_url(auth_class, sandbox)).status == 200
    assert (sandbox.count("token"), sandbox.count("api")) == (1, 2)
