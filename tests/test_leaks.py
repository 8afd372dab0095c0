"""Nothing that can be seen holds a client secret, a Basic header or a token: every path is driven, and all is searched."""

from __future__ import annotations

import copy
import dataclasses
import html
import json
import logging
import pickle
import re
import traceback
import warnings
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus

import anyio
import httpx
import pytest
import requests
from conftest import CLIENTS, NO_TLS, Auth, Client, FakeClock, api_url, make, sent_tokens
from test_introspection import ask

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BaaSAuthError,
    BS2Auth,
    ConfigurationError,
    Event,
    MemoryTokenCache,
    Token,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

SECRET = 'h\u00fcsh/abra+te=7&"j\u00e0\\<x>'
"""Short pieces between characters that each encoding writes in its own way."""


def forms(value: str) -> set[str]:
    """Return what a secret looks like, raw and in each encoding that a log or a gateway may use."""
    percent = {quote(value, safe=""), quote(value), quote_plus(value)}
    return {
        value,
        *percent,
        *(text.replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d") for text in percent),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        json.dumps(value)[1:-1].replace("/", "\\/"),
        html.escape(value),
        html.escape(value, quote=False),
        repr(value)[1:-1],
        ascii(value)[1:-1],
        b64encode(value.encode()).decode(),
        urlsafe_b64encode(value.encode()).decode().rstrip("="),
    }


def basic(client_id: str) -> str:
    return b64encode(f"{client_id}:{SECRET}".encode()).decode()


class RecordingCache(MemoryTokenCache):
    """A cache that records every key, every value, and every token in the values."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.values: list[Any] = []
        self.tokens: list[Token] = []

    def swap(self, key: str, old: Any | None, new: Any | None, ttl: float) -> bool:
        if new is not None:
            self.keys.append(key)
            self.values.append(new)
            token = new.token
            if token is not None and token not in self.tokens:
                self.tokens.append(token)
        return super().swap(key, old, new, ttl)


class Watch(logging.Handler):
    """Sees all that can be seen, and searches it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))
        self.seen: list[str] = []
        self.events: list[Event] = []
        self.cache = RecordingCache()
        self.given: set[str] = set()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))

    def auth(self, auth_class: Auth, sandbox: Sandbox, **parameters: Any) -> Any:
        """Return an auth object all of whose traces come here."""
        sandbox.rotate_secret(SECRET)
        defaults = {"client_secret": SECRET, "cache": self.cache, "on_event": self.events.append}
        auth = make(auth_class, sandbox, **defaults | parameters)
        self.look_at(auth)
        self.given.add(basic(sandbox.client_id))
        return auth

    def look_at(self, *things: Any) -> None:
        for thing in things:
            self.seen += [repr(thing), str(thing), f"{thing}", ascii(thing)]

    def attempt(self, call: Callable[[], Any]) -> Any:
        """Do something, and look at what comes of it."""
        try:
            result = call()
        except Exception as error:
            self.catch(error)
            return error
        self.look_at(result)
        return result

    def catch(self, error: BaseException) -> None:
        self.errors.append(error)
        self.seen.append("".join(traceback.format_exception(error)))
        for link in chain(error):
            self.look_at(link, link.args, vars(link))
        if isinstance(error, BaaSAuthError):
            for copied in (pickle.dumps(error), copy.copy(error), copy.deepcopy(error)):
                self.look_at(copied)
            self.seen.append(pickle.dumps(error).decode("utf-8", "replace"))

    def check(self) -> None:
        """Search everything for every secret in every form."""
        for event in self.events:
            self.look_at(event, dataclasses.asdict(event))
            self.seen.append(pickle.dumps(event).decode("utf-8", "replace"))
        self.look_at(self.cache, vars(self.cache), self.cache.keys, *self.cache.values, *self.cache.tokens)
        text = "\n".join(self.seen)
        secrets = {SECRET, *self.given}
        for token in self.cache.tokens:
            secrets |= {token.access_token, token.access_token[-24:]}
        found = {form for secret in secrets for form in forms(secret) if form in text}
        assert not found, [line for line in self.seen if any(form in line for form in found)][:3]
        assert len(self.seen) > 5


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an exception and all that led to it, shown in a traceback or not."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        link = todo.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            todo += [link.__cause__, link.__context__]


def parts(thing: Any, depth: int = 6) -> Iterator[Any]:
    """Give an object of the package and all objects of the package that it consists of."""
    if not type(thing).__module__.startswith("baas_auth_plugins") or not depth:
        return
    yield thing
    names = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    values = [getattr(thing, name) for name in names if hasattr(thing, name)]
    for value in (*values, *getattr(thing, "__dict__", {}).values(), *(thing if isinstance(thing, tuple) else ())):
        yield from parts(value, depth - 1)


@pytest.fixture
def watch(capfd: pytest.CaptureFixture[str], clock: FakeClock) -> Iterator[Watch]:
    """Watch one test, with every logger at DEBUG, and search what it left behind."""
    watch, root = Watch(), logging.getLogger()
    level = root.level
    root.addHandler(watch)
    root.setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Async generator 'http", ResourceWarning)  # httpx's, with a name only
        yield watch
    root.setLevel(level)
    root.removeHandler(watch)
    watch.look_at(*(warning.message for warning in warned), *capfd.readouterr())
    watch.check()


# -- when all goes well


def test_a_life_leaves_no_trace(
    client: Client, auth_class: Auth, clock: FakeClock, sandbox: Sandbox, watch: Watch
) -> None:
    """A first token, cached calls, renewal, a 401 with its replay, invalidation: logs show digests of tokens only.

    No repr of anything that an auth object consists of shows more.
    """
    auth, url = watch.auth(auth_class, sandbox), api_url(auth_class, sandbox)
    with client.open(auth) as send:
        for step in (
            lambda: None,
            lambda: clock.advance(auth.get_token().expires_in * 0.95),
            sandbox.revoke_all,
            auth.invalidate,
            lambda: clock.advance(3600),
        ):
            step()
            for _ in range(2):
                answer = watch.attempt(lambda: send("POST", url, content=b"body"))
                assert answer.status == 200
                watch.look_at(answer.raw, answer.raw.request, answer.raw.history, answer.headers)
    watch.look_at(*parts(auth))
    assert len(list(parts(auth))) > 10
    assert sandbox.count("token") == len(watch.cache.tokens) == 5
    assert len(watch.events) >= 5


def test_introspection_and_revocation_leave_no_trace(client: Client, sandbox: Sandbox, watch: Watch) -> None:
    """The token is in the URL, and in no logger of requests, httpx, httpx2, httpcore or urllib3."""
    auth = watch.auth(AxiaAuth, sandbox)
    watch.given.add("by+hand/=")
    for question, token in (
        ("introspect", None),
        ("introspect", "by+hand/="),
        ("revoke", None),
        ("revoke", "by+hand/="),
    ):
        watch.attempt(lambda question=question, token=token: ask(client, auth, question, token))
    assert watch.errors == []
    assert sandbox.count("introspect") == sandbox.count("revoke") == 2
    assert client.module is requests or any(" HTTP Request: POST" in line for line in watch.seen)


@pytest.mark.parametrize("question", ["introspect", "revoke"])
def test_the_packages_own_clients_leave_no_trace(question: str, sandbox: Sandbox, watch: Watch) -> None:
    """Without a client, sync and async."""
    auth = watch.auth(AxiaAuth, sandbox)
    watch.attempt(auth.get_token)
    watch.attempt(getattr(auth, question))
    watch.attempt(lambda: anyio.run(auth.aget_token))
    watch.attempt(lambda: anyio.run(getattr(auth, f"a{question}")))
    assert watch.errors == []


def test_the_callers_own_logs_are_left_alone(client: Client, sandbox: Sandbox, watch: Watch) -> None:
    """Only the package's own calls are redacted in logs. The caller's own requests are logged as before."""
    auth = watch.auth(AxiaAuth, sandbox)
    with client.open(auth) as send:
        for number in range(2):
            send("GET", f"{api_url(AxiaAuth, sandbox)}?number={number}&token=mine")
            ask(client, auth, "introspect", "mine")
    assert sum("number=0&token=mine" in line or "number=1&token=mine" in line for line in watch.seen) == 2


@pytest.mark.parametrize("question", ["introspect", "revoke"])
def test_encoded_header_blocks_are_not_logged(question: str, watch: Watch) -> None:
    """Over HTTP/2, hpack logs what it encodes, where no search would find the token: during questions it is silent."""

    def handle(request: httpx.Request) -> httpx.Response:
        logging.getLogger("hpack.hpack").debug("Encoded header block to %s", b"\x82\x87 encoded")
        return httpx.Response(200, json={"active": True})

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        auth = AxiaAuth("id", SECRET, cache=watch.cache)
        for _ in range(5):
            watch.attempt(lambda: getattr(auth, question)("t0ken", client=client))
    assert watch.errors == []
    assert not any("Encoded header block" in line for line in watch.seen)


def test_a_background_renewal_leaves_no_trace(clock: FakeClock, sandbox: Sandbox, watch: Watch) -> None:
    """A renewal that fails in the background shows no secret and no token."""
    auth = watch.auth(AxiaAuth, sandbox, background_renewal=True)
    url = api_url(AxiaAuth, sandbox)
    with httpx.Client(auth=auth, verify=NO_TLS, trust_env=False) as client:
        client.get(url)
        clock.advance(3300)
        sandbox.inject(Fault("body", "token", status=401, body=json.dumps({"message": SECRET}).encode()))
        client.get(url)
        while len(watch.events) < 3:
            anyio.run(partial(anyio.lowlevel.checkpoint))


def test_no_error_leads_to_the_token_request(watch: Watch) -> None:
    """An exception of an HTTP library holds the request with the credentials. The cause of a package's error does not."""
    for auth_class in (AxiaAuth, AvistaAuth):
        auth = auth_class("id", SECRET, base_url="http://127.0.0.1:1", cache=watch.cache, max_wait=0.1)
        for call in (auth.get_token, partial(anyio.run, auth.aget_token)):
            error = watch.attempt(call)
            links = [vars(link) for link in chain(error)]
            assert len(links) > 2
            assert not any(link.get("request") or link.get("_request") for link in links)


# -- when the gateway refuses, and quotes what it was sent


def echoes(client_id: str) -> list[bytes]:
    """Return error bodies that quote the credentials in all ways."""
    texts = [f"bad {form}, you" for secret in (SECRET, basic(client_id)) for form in sorted(forms(secret))]
    texts += [f"Authorization: Basic {basic(client_id)}", f"{client_id}:{SECRET}", json.dumps({"clientSecret": SECRET})]
    bodies = [{"error": "invalid_client", "error_description": text} for text in texts]
    bodies += [{"statusCode": 401, "message": texts}, {"error": SECRET, "message": SECRET}, {"code": basic(client_id)}]
    bodies += [{"message": f"{'x ' * 90}{SECRET}{SECRET}"}, {"error_description": f"{' ' * 1990}{SECRET}"}]
    return [json.dumps(body, ensure_ascii=False).encode() for body in bodies] + [
        SECRET.encode(),
        basic(client_id).encode(),
    ]


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503, 302, 200])
@pytest.mark.pairwise
def test_a_gateway_that_echoes_gets_nothing_through(
    client: Client, auth_class: Auth, clock: FakeClock, sandbox: Sandbox, watch: Watch, status: int
) -> None:
    """Error bodies that quote the secret, the Basic header or the request are in no message, log or event."""
    auth = watch.auth(auth_class, sandbox, max_wait=5)
    bodies = echoes(sandbox.client_id)
    chosen = (
        bodies if client.name in ("requests", "httpx-asyncio") and auth_class in (AxiaAuth, AvistaAuth) else bodies[::5]
    )
    with client.open(auth) as send:
        for body in chosen:
            sandbox.inject(Fault("body", "token", times=-1, status=status, body=body, retry_after=60))
            error = watch.attempt(lambda: send("GET", api_url(auth_class, sandbox)))
            assert isinstance(error, BaaSAuthError)
            sandbox.clear_faults()
            clock.advance(120)


LETTERS = "Correct" + "HorseBatteryStaple"


@pytest.mark.parametrize("member", ["code", "error", "error_description", "message"])
def test_a_secret_of_letters_is_no_error_code(sandbox: Sandbox, watch: Watch, member: str) -> None:
    """A secret that looks like an error code, alone or within a longer one, is not taken for one."""
    watch.given.add(LETTERS)
    auth = watch.auth(AvistaAuth, sandbox, client_secret=LETTERS)
    for text in (LETTERS, f"bad_{LETTERS}", LETTERS.lower(), LETTERS.upper()):
        sandbox.inject(Fault("body", "token", status=401, body=json.dumps({member: text}).encode()))
        error = watch.attempt(auth.get_token)
        assert LETTERS.lower() not in str(error).lower()
        assert LETTERS.lower() not in str(vars(error)).lower()
        auth = watch.auth(AvistaAuth, sandbox, client_secret=LETTERS, cache=RecordingCache())


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        *(("token", kind) for kind in ("drop", "truncate", "garbage", "empty", "huge", "redirect")),
        *(("api", kind) for kind in ("drop", "truncate", "garbage", "redirect")),
    ],
)
@pytest.mark.pairwise
def test_a_broken_exchange_leaves_no_trace(
    client: Client, auth_class: Auth, clock: FakeClock, sandbox: Sandbox, watch: Watch, kind: Any, target: Any
) -> None:
    """Lost connections, half answers and garbage, for token requests and API calls, without and with a valid token."""
    auth, url = watch.auth(auth_class, sandbox), api_url(auth_class, sandbox)
    fault = Fault(kind, target, times=-1, headers={"Location": f"{sandbox.url}/elsewhere"})
    with client.open(auth) as send:
        sandbox.inject(fault)
        watch.attempt(lambda: send("GET", url))
        sandbox.clear_faults()
        clock.advance(120)
        watch.attempt(lambda: send("GET", url))
        clock.advance(auth.get_token().expires_in * 0.95)
        sandbox.inject(fault)
        watch.attempt(lambda: send("GET", url))
    assert watch.cache.tokens


def test_rejected_tokens_leave_no_trace(client: Client, clock: FakeClock, sandbox: Sandbox, watch: Watch) -> None:
    """401s with and without a replay, the back-off, and a token request that fails after a 401."""
    auth, url = watch.auth(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    with client.open(auth) as send:
        sandbox.inject(Fault("status", "api", status=401, times=5))
        for _ in range(3):
            watch.attempt(lambda: send("GET", url))
        clock.advance(120)
        watch.attempt(lambda: send("POST", url, content=iter([b"once"])))
        sandbox.revoke_all()
        body = json.dumps({"message": f"no {SECRET} {basic(sandbox.client_id)}"}).encode()
        sandbox.inject(Fault("body", "token", times=2, status=401, body=body))
        watch.attempt(lambda: send("GET", url))
        clock.advance(120)
        watch.attempt(lambda: send("GET", url))
    assert any(isinstance(error, BaaSAuthError) for error in watch.errors)


def test_rate_limits_leave_no_trace(client: Client, sandbox: Sandbox, watch: Watch) -> None:
    """The gateway's 429, and the limit that the package keeps."""
    auth = watch.auth(BS2Auth, sandbox, max_wait=1)
    with client.open(auth) as send:
        for _ in range(12):
            auth.invalidate()
            watch.attempt(lambda: send("GET", api_url(BS2Auth, sandbox)))
    assert watch.errors


@pytest.mark.parametrize("question", ["introspect", "revoke"])
def test_a_gateway_that_cannot_be_reached_leaves_no_trace(
    client: Client, sandbox: Sandbox, watch: Watch, question: str
) -> None:
    """A refused connection: the clients' own errors may quote the URL, and so stay out of the chain."""
    auth = watch.auth(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.close()
    watch.attempt(lambda: ask(client, auth, question))
    assert len(watch.errors) == 1


@pytest.mark.parametrize("question", ["introspect", "revoke"])
@pytest.mark.parametrize(
    "fault",
    [
        *(("status", {"status": status}) for status in (400, 401, 403, 404, 429, 500, 503)),
        ("drop", {}),
        ("truncate", {}),
        ("garbage", {}),
        ("empty", {}),
        ("huge", {}),
        ("redirect", {"headers": {"Location": "/elsewhere"}}),
        ("echo", {"status": 400}),
        ("echo", {"status": 401}),
        ("echo", {"status": 200}),
    ],
    ids=lambda fault: "-".join([fault[0], *(str(value) for name, value in fault[1].items() if name == "status")]),
)
@pytest.mark.pairwise
def test_failing_questions_leave_no_trace(
    client: Client, sandbox: Sandbox, watch: Watch, question: Any, fault: tuple[str, dict[str, Any]]
) -> None:
    """Introspection and revocation that fail, and answers that quote the token, for the cached token and for any other."""
    auth = watch.auth(AxiaAuth, sandbox)
    token = auth.get_token().access_token
    kind, options = fault
    for value in (None, "by+hand/="):
        if kind == "echo":
            quoted = f"{value or token} {quote(value or token, safe='')} {SECRET} {basic(sandbox.client_id)}"
            text = dict.fromkeys(("message", "error_description", "reason", "status", "token_id"), quoted)
            body = json.dumps({"active": False} | text).encode()
            sandbox.inject(Fault("body", question, times=-1, body=body, **options))
        else:
            sandbox.inject(Fault(kind, question, times=-1, **options))  # type: ignore[arg-type]
        watch.given.add(value or token)
        watch.attempt(lambda value=value: ask(client, auth, question, value))
        sandbox.clear_faults()
    watch.attempt(lambda: ask(client, auth, question, "surrogate\udc80"))


# -- when the caller is at fault


class BrokenError(Exception):
    """A vault's own error."""


@pytest.mark.parametrize("answer", [BrokenError("sealed"), None, b"hush", f"{SECRET}\udc80", f"{SECRET}\n"], ids=ascii)
def test_a_vault_that_fails_leaves_no_trace(
    client: Client, clock: FakeClock, sandbox: Sandbox, watch: Watch, answer: Any
) -> None:
    """A callable that raises or gives no secret, at first use and at a renewal: nothing of an earlier secret shows."""
    answers: list[Any] = [answer, SECRET]

    def vault() -> Any:
        found = answers.pop(0) if answers else answer
        if isinstance(found, Exception):
            raise found
        return found

    auth = watch.auth(AxiaAuth, sandbox, client_secret=vault)
    with client.open(auth) as send:
        for _ in range(2):
            watch.attempt(lambda: send("GET", api_url(AxiaAuth, sandbox)))
            watch.look_at(*parts(auth))
            clock.advance(120)
        clock.advance(3600)
        watch.attempt(lambda: send("GET", api_url(AxiaAuth, sandbox)))
    watch.look_at(*parts(auth))
    assert len(watch.errors) == 2


@pytest.mark.parametrize(
    ("auth_class", "parameters"),
    [
        (AxiaAuth, {"base_url": f"https://id:{quote(SECRET, safe='')}@api.example.com"}),
        (AxiaAuth, {"base_url": f"https://api.example.com/{SECRET}"}),
        (AxiaAuth, {"base_url": SECRET}),
        (AxiaAuth, {"base_url": [SECRET]}),
        (AxiaAuth, {"base_url": f"http://{SECRET}.example.com"}),
        (AxiaAuth, {"environment": SECRET}),
        (AxiaAuth, {"allowed_origins": SECRET}),
        (AxiaAuth, {"allowed_origins": [SECRET]}),
        (AxiaAuth, {"allowed_origins": [f"https://{SECRET}@api.example.com"]}),
        (AxiaAuth, {"scope": f"{SECRET}\n\x00"}),
        (AxiaAuth, {"scope": [SECRET]}),
        (AxiaAuth, {"leeway": SECRET}),
        (AxiaAuth, {"timeout": SECRET}),
        (AxiaAuth, {"max_wait": [SECRET]}),
        (AxiaAuth, {"cache": SECRET}),
        (AxiaAuth, {"session": SECRET}),
        (AxiaAuth, {"session": {"auth": SECRET}}),
        (AxiaAuth, {"on_event": SECRET}),
        (AxiaAuth, {"headers": SECRET}),
        (AxiaAuth, {"headers": {SECRET: "x"}}),
        (AxiaAuth, {"headers": {"X-Key": SECRET}}),
        (AxiaAuth, {"headers": {"X-Key": f"hush\n{SECRET}"}}),
        (AxiaAuth, {"headers": {"Authorization": SECRET}}),
        (AxiaAuth, {"client_id": f"id:{SECRET}"}),
        (AxiaAuth, {"client_secret": f"{SECRET}\n"}),
        (AxiaAuth, {"client_secret": f"{SECRET}\udc80"}),
        (AxiaAuth, {"client_secret": [SECRET]}),
        (AxiaAuth, {"client_secret": SECRET.encode()}),
        (AxiaAuth, {"client_id": f"id\n{SECRET}"}),
        (BS2Auth, {"scope": None, "client_secret": SECRET}),
    ],
    ids=lambda value: ascii(next(iter(value.items()))) if isinstance(value, dict) else value.provider.name,
)
def test_a_misplaced_secret_is_not_quoted(auth_class: Auth, parameters: dict[str, Any], watch: Watch) -> None:
    """A secret that is passed as another parameter, or an invalid secret, is in no error and in no cause of one."""
    error = watch.attempt(lambda: auth_class(**{"client_id": "id", "client_secret": SECRET} | parameters))
    assert isinstance(error, ConfigurationError)


@pytest.mark.parametrize("value", [" k3y/quiet=1", "k3y/quiet=1 ", "k3y/quiet=1\t", "\u00e9k3y/quiet=1"], ids=ascii)
def test_an_extra_header_that_no_client_would_send_is_refused(sandbox: Sandbox, watch: Watch, value: str) -> None:
    """A value that requests or httpx would refuse, and quote in full, is refused before they see it."""
    watch.given.add(value.strip(" \t\u00e9"))
    assert isinstance(
        watch.attempt(lambda: watch.auth(AxiaAuth, sandbox, headers={"X-Key": value})), ConfigurationError
    )


def test_the_environment_is_not_quoted(monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    """`from_env` names variables, never their values."""
    monkeypatch.setenv("BAAS_CLIENT_SECRET", SECRET)
    monkeypatch.delenv("BAAS_CLIENT_ID", raising=False)
    watch.attempt(AxiaAuth.from_env)
    monkeypatch.setenv("BAAS_CLIENT_ID", "id")
    monkeypatch.setenv("BAAS_BASE_URL", f"https://id:{SECRET}@api.example.com")
    watch.attempt(AxiaAuth.from_env)
    assert len(watch.errors) == 2


def test_a_listener_that_raises_shows_nothing_of_ours(client: Client, sandbox: Sandbox, watch: Watch) -> None:
    """The log of a listener's exception has its traceback, and no secret."""

    def listener(event: Event) -> None:
        raise RuntimeError(f"cannot take {event!r}")

    auth = watch.auth(AxiaAuth, sandbox, on_event=listener)
    assert client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status == 200
    assert any("cannot take TokenMinted" in line for line in watch.seen)


def test_a_failing_cache_shows_nothing_of_ours(client: Client, sandbox: Sandbox, watch: Watch) -> None:
    """The log of a shared cache's exception has its class only: its text may quote the value."""

    class Cache:
        def get(self, key: str) -> None:
            return None

        def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
            raise RuntimeError(f"cannot keep {new!r}")

    auth = watch.auth(AxiaAuth, sandbox, cache=Cache())
    assert client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status == 200
    watch.given |= {str(token) for token in sent_tokens(sandbox)}
    assert any("the token cache failed" in line and "RuntimeError" in line for line in watch.seen)
    assert not any("cannot keep" in line for line in watch.seen)


# -- at rest


def test_a_token_is_not_pickled(sandbox: Sandbox) -> None:
    """Pickling a token is a TypeError, alone or inside a container: so none is stored by accident."""
    token = make(AxiaAuth, sandbox).get_token()
    for thing in (token, [token], {"token": token}):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)


def test_a_pickled_auth_object_holds_no_token(sandbox: Sandbox) -> None:
    """It holds its parameters, the secret among them; tokens stay behind."""
    auth = make(AxiaAuth, sandbox, cache=None)
    token = auth.get_token().access_token
    pickled = pickle.dumps(auth)
    assert token.encode() not in pickled
    assert pickle.loads(pickled).get_token().access_token == token  # noqa: S301  # from this process's cache


def test_a_cache_key_is_a_digest_under_the_secret(sandbox: Sandbox, watch: Watch) -> None:
    """Keys of one client with two secrets have nothing in common, and show nothing but digests."""
    for secret in (SECRET, f"{SECRET}2"):
        auth = watch.auth(AxiaAuth, sandbox, client_secret=secret, scope="accounts:read")
        sandbox.rotate_secret(secret)
        watch.attempt(auth.get_token)
    first, second = dict.fromkeys(watch.cache.keys)
    assert all(re.fullmatch("v2:[0-9a-f]{64}", key) for key in (first, second))


@pytest.mark.parametrize("client", CLIENTS[:2], ids=lambda client: client.name)
def test_the_watch_would_notice(client: Client, sandbox: Sandbox, watch: Watch) -> None:
    """The search finds a secret that is logged, raised or shown, in any encoding."""
    auth = watch.auth(AxiaAuth, sandbox)
    assert client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status == 200
    token = auth.get_token().access_token
    for leak in (*forms(SECRET), basic(sandbox.client_id), quote(token), f"Bearer {token}", token[-24:]):
        other = Watch()
        other.given, other.cache, other.seen = watch.given, watch.cache, ["x"] * 10
        other.emit(logging.LogRecord("any", logging.DEBUG, "", 0, "%s", (leak,), None))
        with pytest.raises(AssertionError):
            other.check()
        other.seen = ["x"] * 10
        try:
            try:
                raise ValueError(leak)
            except ValueError:
                raise KeyError from None
        except KeyError as error:
            other.catch(error)
        with pytest.raises(AssertionError):
            other.check()
