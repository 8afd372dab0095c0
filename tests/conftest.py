"""What every test needs: a sandbox of its own, every client behind one face, and a clock that can be turned."""

from __future__ import annotations

import asyncio
import itertools
import json as json_module
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest
import requests
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from pairwise import thin_out

from baas_auth_plugins import PROVIDERS, MemoryTokenCache, OAuth2ClientCredentialsAuth
from baas_auth_plugins.sandbox import Sandbox

SECRET = "your-client-secret"
SCOPE = "cob.read pix.read"
API_PATHS = {"axia": "/v1/accounts", "bs2": "/pix/direto/forintegration/v1/cobv/1"}
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading the real CA file takes longer than a test

_numbers = itertools.count()

settings.register_profile("suite", deadline=None)  # how fast one example runs depends on the neighbours
settings.load_profile("suite")

Auth = type[OAuth2ClientCredentialsAuth]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run in parallel by default; `-k` and `file.py::test` run in one process, which starts faster.

    `-n 0` and `-p no:xdist` run everything in one process. Here and not in addopts: there, `-n` would be an error
    wherever pytest-xdist is missing or switched off.
    """
    selected = config.option.keyword or any("::" in argument for argument in config.args)
    if config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput"):
        if config.option.numprocesses is None and config.option.tx == [] and not selected:
            config.option.numprocesses = "auto"
        if config.option.numprocesses and config.option.dist == "no":
            config.option.dist = "loadgroup"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return one process more than there are processors, because now and then a test waits for a server."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # which pytest-xdist reads itself
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the whole of what `pairwise` thins out."""
    parser.addoption("--all-combinations", action="store_true", help="run every combination of tests marked pairwise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thin out what is marked `pairwise`."""
    if not config.option.all_combinations:
        items[:], dropped = thin_out(items)
        if dropped:
            config.hook.pytest_deselected(items=dropped)


@dataclass(frozen=True)
class Answer:
    """A response, whichever client it came through."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    raw: Any

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json_module.loads(self.content)


class Send(Protocol):
    """Sends one request over an open client."""

    def __call__(self, method: str, url: str, **arguments: Any) -> Answer: ...


@dataclass(frozen=True)
class Client:
    """One HTTP client, spoken to in the same way as all others.

    Args:
        module: requests, httpx or httpx2.
        backend: None for a sync client; else the event loop that an async one runs in.
    """

    module: ModuleType
    backend: str | None = None

    @property
    def name(self) -> str:
        return self.module.__name__ + (f"-{self.backend}" if self.backend else "")

    @property
    def error(self) -> type[Exception]:
        """What a script that uses this client catches."""
        error: type[Exception] = requests.RequestException if self.module is requests else self.module.HTTPError
        return error

    def call(self, auth: Any, method: str, url: str, **arguments: Any) -> Answer:
        """Send one request over a client that is made for it."""
        with self.open(auth) as send:
            return send(method, url, **arguments)

    @contextmanager
    def open(self, auth: Any = None, **options: Any) -> Iterator[Send]:
        """Open a client that sends any number of requests; no redirect is followed unless asked for."""
        if self.module is requests:
            yield from self._open_requests(auth, **options)
            return
        options = {"auth": auth, "verify": NO_TLS, "timeout": 10, "trust_env": False} | options
        if self.backend is None:
            with self.module.Client(**options) as client:
                yield lambda method, url, **kw: _answer(client.request(method, url, **kw))
            return
        with start_blocking_portal(self.backend) as portal:
            opening: AbstractContextManager[Any] = portal.wrap_async_context_manager(self.module.AsyncClient(**options))
            with opening as client:

                async def request(method: str, url: str, arguments: dict[str, Any]) -> Answer:
                    if isinstance(content := arguments.get("content"), Iterator):
                        arguments = arguments | {"content": _aiter(content)}
                    return _answer(await client.request(method, url, **arguments))

                yield lambda method, url, **kw: portal.call(request, method, url, kw)

    def _open_requests(
        self, auth: Any, *, follow_redirects: bool = False, timeout: float = 10, trust_env: bool = False
    ) -> Iterator[Send]:
        with requests.Session() as session:
            session.auth = auth
            session.trust_env = trust_env

            def send(method: str, url: str, content: Any = None, **arguments: Any) -> Answer:
                if content is not None:
                    arguments["data"] = content
                return _answer(
                    session.request(method, url, allow_redirects=follow_redirects, timeout=timeout, **arguments)
                )

            yield send


async def _aiter(content: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in content:
        yield chunk


def _answer(response: Any) -> Answer:
    return Answer(response.status_code, response.headers, response.content, response)


CLIENTS = (
    Client(requests),
    Client(httpx),
    Client(httpx, "asyncio"),
    Client(httpx, "trio"),
    Client(httpx2),
    Client(httpx2, "asyncio"),
    Client(httpx2, "trio"),
)


def make(auth_class: Auth, sandbox: Sandbox, **parameters: Any) -> OAuth2ClientCredentialsAuth:
    """Return an auth object for a gateway of the sandbox, with a cache of its own."""
    defaults: dict[str, Any] = {"base_url": sandbox.url, "cache": MemoryTokenCache()}
    if auth_class.provider.scope == "required":
        defaults["scope"] = SCOPE
    parameters = defaults | parameters
    return auth_class(
        parameters.pop("client_id", sandbox.client_id),
        parameters.pop("client_secret", sandbox.client_secret),
        **parameters,
    )


def api_url(auth_class: Auth, sandbox: Sandbox) -> str:
    """Return the URL of one of a gateway's documented API paths."""
    return sandbox.url + API_PATHS.get(auth_class.provider.name, "/cob/abc123")


def sent_tokens(sandbox: Sandbox) -> list[str | None]:
    """Return the token that each API request carried, in order of arrival."""
    values = [r.headers.get("authorization") for r in sandbox.requests if r.kind in ("api", "unknown")]
    return [value and value.removeprefix("Bearer ") for value in values]


class FakeClock:
    """Both clocks of this machine, standing still until they are moved."""

    def __init__(self) -> None:
        self.wall = 1_710_496_800.0  # 2024-03-15T10:00:00Z
        self.monotonic = 5_000.0
        self.slept: list[float] = []

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.monotonic += seconds

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self.wall += seconds

    def suspend(self, seconds: float) -> None:
        """Put the machine to sleep: the monotonic clock stands still meanwhile."""
        self.wall += seconds

    def sleep(self, seconds: float) -> None:
        """Sleep without taking any time."""
        self.slept.append(seconds)
        self.advance(seconds)

    async def asleep(self, seconds: float) -> None:
        """Sleep as `sleep` does, in an event loop."""
        self.sleep(seconds)
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Both clocks, and sleeping, faked together for the whole process."""
    clock, real = FakeClock(), time.monotonic
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: real())  # timers go on, as trio's do by themselves
    monkeypatch.setattr(time, "time", lambda: clock.wall)
    monkeypatch.setattr(time, "monotonic", lambda: clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(anyio, "sleep", clock.asleep)
    return clock


@pytest.fixture(scope="session")
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for what the next test need not wait for: a server takes a moment to notice that it is to end."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def new_sandbox(background: ThreadPoolExecutor) -> Iterator[Callable[..., Sandbox]]:
    """Make sandboxes whose clients nobody else has, since limits hold in the whole process."""
    running: list[Sandbox] = []

    def start(**options: Any) -> Sandbox:
        def now() -> float:
            return time.time()  # looked up at each call: it may be faked later

        options = {"client_id": f"client-{next(_numbers)}", "clock": now} | options
        running.append(Sandbox(**options).start())
        return running[-1]

    yield start
    for sandbox in running:
        background.submit(sandbox.close)


@pytest.fixture
def sandbox(new_sandbox: Callable[..., Sandbox]) -> Sandbox:
    return new_sandbox()


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> Client:
    """Each client that is supported, in each event loop."""
    found: Client = request.param
    return found


@pytest.fixture(params=PROVIDERS, ids=lambda auth_class: auth_class.provider.name)
def auth_class(request: pytest.FixtureRequest) -> Auth:
    """Each gateway's class."""
    found: Auth = request.param
    return found
