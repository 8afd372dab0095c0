"""What people read and catch when something is wrong: kinds, fields, reasons, and log lines for waits."""

from __future__ import annotations

import json
import logging
import pickle
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import requests
import trustme
from conftest import CLIENTS, SECRET, Auth, Client, FakeClock, api_url, make
from raw_gateway import token_body

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    ConfigurationError,
    InvalidClientError,
    InvalidTokenResponseError,
    MemoryTokenCache,
    NTXPayAuth,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings(
        "ignore:Async generator .* was garbage collected:ResourceWarning"
    ),  # httpx leaves its own behind
]

SESSION_CLIENTS = pytest.mark.parametrize(
    "client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[4], CLIENTS[6]], ids=lambda client: client.name
)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- kinds


@pytest.mark.parametrize(
    "base", [requests.ConnectionError, httpx.TransportError, httpx2.TransportError, TokenEndpointError, OSError]
)
def test_an_unavailable_endpoint_is_a_connection_error(base: type[Exception]) -> None:
    """TokenEndpointUnavailableError is what retry predicates look for; the other errors are not."""
    assert issubclass(TokenEndpointUnavailableError, base)
    if base not in (TokenEndpointError, OSError):
        for kind in (TokenEndpointError, InvalidClientError, RateLimitError, InvalidTokenResponseError):
            assert not issubclass(kind, base)


@SESSION_CLIENTS
def test_each_clients_transient_error_catches_an_outage(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """`except requests.ConnectionError` and `except httpx.TransportError` catch an outage of the token endpoint."""
    kind = requests.ConnectionError if client.module is requests else client.module.TransportError
    sandbox.inject(Fault("status", status=503, times=-1))
    with pytest.raises(kind) as caught:
        client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox))
    assert isinstance(caught.value, TokenEndpointUnavailableError)
    assert (caught.value.status_code, caught.value.request, caught.value.response) == (503, None, None)


@SESSION_CLIENTS
def test_with_a_session_network_errors_are_typed_for_every_client(
    client: Client, clock: FakeClock, sandbox: Sandbox
) -> None:
    """With `session=` httpx callers get retries and typed errors for network errors, too."""
    sandbox.inject(Fault("drop", times=-1))
    with requests.Session() as session:
        auth = make(AxiaAuth, sandbox, session=session)
        with pytest.raises(client.error) as caught:
            client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert isinstance(caught.value, TokenEndpointUnavailableError)
    assert sandbox.count("token") == 4


@SESSION_CLIENTS
def test_with_a_session_a_drop_is_ridden_out_for_every_client(
    client: Client, clock: FakeClock, sandbox: Sandbox
) -> None:
    """Two dropped connections cost an httpx caller with `session=` a wait, and no error."""
    sandbox.inject(Fault("drop", times=2))
    with requests.Session() as session:
        auth = make(AxiaAuth, sandbox, session=session)
        assert client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status == 200
    assert sandbox.count("token") == 3


def test_an_unavailable_error_can_be_pickled_and_is_each_callers_own(clock: FakeClock, sandbox: Sandbox) -> None:
    """It survives pickling with its fields, and two callers never share one object."""
    sandbox.inject(Fault("status", status=503, times=-1))
    auth = make(AxiaAuth, sandbox)
    errors = []
    for _ in range(2):
        with pytest.raises(TokenEndpointUnavailableError) as caught:
            auth.get_token()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    twin = pickle.loads(pickle.dumps(errors[0]))  # noqa: S301  # our own
    assert (type(twin), twin.status_code, twin.provider, str(twin)) == (
        TokenEndpointUnavailableError,
        503,
        "axia",
        str(errors[0]),
    )


# -- reasons


@pytest.mark.parametrize("auth_class", [AxiaAuth, BS2Auth], ids=lambda c: c.provider.name)
def test_a_refused_connection_is_named(auth_class: Auth, clock: FakeClock) -> None:
    """The message has the provider, the host and the reason."""
    port = closed_port()
    scope = {"scope": "cob.read"} if auth_class is BS2Auth else {}
    auth = auth_class("refused", SECRET, base_url=f"http://127.0.0.1:{port}", cache=MemoryTokenCache(), **scope)
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        auth.get_token()
    message = str(caught.value)
    assert auth_class.provider.name in message
    assert "127.0.0.1" in message
    assert "connection refused" in message.lower()
    assert SECRET not in message
    assert "?" not in message


def test_a_host_that_does_not_resolve_is_named(clock: FakeClock) -> None:
    """So is a host name that DNS does not know."""
    auth = AxiaAuth("dns", SECRET, base_url="https://no-such-host.invalid", cache=MemoryTokenCache())
    with pytest.raises(TokenEndpointUnavailableError, match=r"no-such-host\.invalid") as caught:
        auth.get_token()
    assert re.search(r"(?i)name|resol|getaddrinfo", str(caught.value).replace("no-such-host.invalid", ""))


@pytest.mark.parametrize("fault", ["hang", "drop"])
def test_a_lost_answer_is_named(fault: Any, clock: FakeClock, sandbox: Sandbox) -> None:
    """A timeout is called one; a dropped connection is, too."""
    sandbox.inject(Fault(fault, times=-1))
    with pytest.raises(TokenEndpointUnavailableError, match=r"127\.0\.0\.1") as caught:
        make(AxiaAuth, sandbox, timeout=0.2, max_wait=1).get_token()
    expected = (
        r"(?i)tim(ed|e)[ -]?out|no (complete )?answer|within"
        if fault == "hang"
        else r"(?i)closed|disconnect|aborted|reset|dropped"
    )
    assert re.search(expected, str(caught.value))


@pytest.mark.parametrize("how", ["get_token", "aget_token", "requests"])
def test_a_certificate_error_is_not_retried_and_says_what_to_do(
    how: str, clock: FakeClock, new_sandbox: Callable[..., Sandbox]
) -> None:
    """The message of an unknown CA names the host, the reason and `session=`; nothing is retried."""
    clock.step_wall(5 * 365 * 86_400)  # a year that urllib3 believes
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    sandbox = new_sandbox(ssl_context=context)
    auth = make(AxiaAuth, sandbox)
    call: dict[str, Callable[[], Any]] = {
        "get_token": auth.get_token,
        "aget_token": lambda: anyio.run(auth.aget_token),
        "requests": lambda: requests.get(api_url(AxiaAuth, sandbox), auth=auth, timeout=5),
    }
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        call[how]()
    message = str(caught.value)
    assert "certificate verify failed" in message.lower()
    assert "127.0.0.1" in message
    assert "session=" in message
    assert clock.slept == []


def test_a_message_has_no_query(clock: FakeClock) -> None:
    """Axia's introspection has the token in its URL: its network errors name the host and not the query."""
    auth = AxiaAuth("query", SECRET, base_url=f"http://127.0.0.1:{closed_port()}", cache=MemoryTokenCache())
    with pytest.raises(TokenEndpointError) as caught:
        auth.introspect("t0ken-of-the-page")
    error: BaseException | None = caught.value
    assert "127.0.0.1" in str(error)
    assert "t0ken-of-the-page" not in f"{error} {error!r}"


# -- fields


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        (Fault("garbage"), InvalidTokenResponseError, 200),
        (Fault("empty"), InvalidTokenResponseError, 200),
        (Fault("garbage", status=201), InvalidTokenResponseError, 201),
        (Fault("body", body=b'{"access_token": "abc", "expires_in": 0}'), InvalidTokenResponseError, 200),
        (Fault("huge"), InvalidTokenResponseError, 200),
        (Fault("status", status=429, retry_after=200), RateLimitError, 429),
        (Fault("status", status=501), TokenEndpointError, 501),
        (Fault("redirect", headers={"Location": "/x"}), TokenEndpointError, 307),
    ],
    ids=["page", "empty", "201", "nonsense", "huge", "429", "501", "redirect"],
)
def test_every_error_has_the_status_that_it_came_from(
    client: Client, fault: Fault, kind: type[TokenEndpointError], status: int, clock: FakeClock, sandbox: Sandbox
) -> None:
    """`status_code` is that of the answer, whichever client sent the token request."""
    sandbox.inject(fault)
    with pytest.raises(client.error) as caught:
        client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox))
    assert isinstance(caught.value, kind)
    assert caught.value.status_code == status
    assert caught.value.provider == "axia"
    assert "axia" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


BODIES: dict[str, Any] = {
    "BS2 array": [{"tag": "scope", "descricao": "Escopo inválido para o cliente"}],
    "BS2 array of two": [
        {"tag": "a", "descricao": "Primeiro motivo"},
        {"tag": "b", "descricao": "Escopo inválido para o cliente"},
    ],
    "title and detail": {"title": "Requisição inválida", "detail": "Escopo inválido para o cliente", "status": 400},
    "title alone": {"title": "Escopo inválido para o cliente"},
    "mensagem": {"mensagem": "Escopo inválido para o cliente"},
    "message": {"message": "Escopo inválido para o cliente"},
    "RFC 6749": {"error": "invalid_request", "error_description": "Escopo inválido para o cliente"},
}


@pytest.mark.parametrize("form", BODIES)
def test_the_gateways_own_words_are_kept(form: str, auth_class: Auth, sandbox: Sandbox) -> None:
    """An error's text is on the exception and in its message, in whichever form gateways send it."""
    sandbox.inject(Fault("status", status=400, body=json.dumps(BODIES[form]).encode()))
    with pytest.raises(TokenEndpointError) as caught:
        make(auth_class, sandbox).get_token()
    assert "Escopo inválido para o cliente" in (caught.value.error_description or "")
    assert "Escopo inválido para o cliente" in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        [],
        [1, 2],
        [{"tag": 7, "descricao": None}],
        [[[]]],
        {"title": {"a": 1}, "detail": [1]},
        {"mensagem": 7},
        {"detail": {"msg": "x"}},
        [{"descricao": "x" * 100_000}],
        [{"descricao": f"segredo {SECRET}"}],
        {"mensagem": "linha 1\r\nlinha 2\x1b[31m"},
    ],
    ids=lambda body: repr(body)[:30],
)
def test_odd_error_bodies_are_still_typed_errors(body: Any, sandbox: Sandbox) -> None:
    """Bodies of the wrong shape, too long, or with a secret or control characters end in a short, clean, typed error."""
    sandbox.inject(Fault("status", status=400, body=json.dumps(body).encode()))
    with pytest.raises(TokenEndpointError) as caught:
        make(BS2Auth, sandbox).get_token()
    message = str(caught.value)
    assert caught.value.status_code == 400
    assert len(message) < 2000
    assert SECRET not in message
    assert not re.search(r"[\x00-\x1f\x7f]", message)


# -- tokens that cannot be sent


@pytest.mark.parametrize("length", [16 * 1024 + 1, 200_000])
def test_a_token_of_more_than_16_kib_is_refused(length: int, auth_class: Auth, sandbox: Sandbox) -> None:
    """No API would accept the header: the token response is invalid, and no API request is sent."""
    sandbox.inject(Fault("body", body=token_body("a" * length)))
    with pytest.raises(InvalidTokenResponseError) as caught:
        requests.get(api_url(auth_class, sandbox), auth=make(auth_class, sandbox), timeout=5)
    assert "a" * 100 not in str(caught.value)
    assert sandbox.count("api") == 0


def test_a_token_of_16_kib_is_accepted(sandbox: Sandbox) -> None:
    """The bound itself is still a token."""
    sandbox.inject(Fault("body", body=token_body("a" * 16 * 1024)))
    assert len(make(AxiaAuth, sandbox).get_token().access_token) == 16 * 1024


# -- waits are logged


def waits(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.INFO and r.name.startswith("baas_auth")]


@SESSION_CLIENTS
def test_a_wait_for_retry_after_is_logged(
    client: Client, clock: FakeClock, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that waits 7 s for a Retry-After says so at INFO, with the reason and the length."""
    sandbox.inject(Fault("status", status=429, retry_after=7))
    with caplog.at_level(logging.INFO, "baas_auth_plugins"):
        assert client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox)).status == 200
    assert 7 <= sum(clock.slept) < 9
    matching = [m for m in waits(caplog) if re.search(r"\b7(\.\d+)? s", m) and "axia" in m]
    assert matching
    assert re.search(r"(?i)429|rate|limit|retry", matching[0])


def test_a_wait_for_the_local_rate_limit_is_logged(
    clock: FakeClock, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The eleventh BS2 token within a minute waits up to 60 s: the log says how long and why."""
    auth = make(BS2Auth, sandbox)
    for _ in range(10):
        auth.get_token()
        auth.invalidate()
        clock.advance(0.4)
    with caplog.at_level(logging.INFO, "baas_auth_plugins"):
        auth.get_token()
    assert 50 < sum(clock.slept) <= 60
    (message,) = [m for m in waits(caplog) if re.search(r"\b5\d(\.\d+)? s", m)]
    assert "bs2" in message
    assert re.search(r"(?i)limit", message)


def test_a_long_back_off_is_logged(
    clock: FakeClock, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A back-off of a second or more is logged with its length; one below a second is not."""
    import random

    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(random, "random", lambda: 0.999)
    sandbox.inject(Fault("status", status=503, times=3))
    with caplog.at_level(logging.INFO, "baas_auth_plugins"):
        make(AxiaAuth, sandbox).get_token()
    long = [slept for slept in clock.slept if slept >= 1]
    logged = [m for m in waits(caplog) if re.search(r"\d s\b", m) and "503" in m]
    assert len(logged) == len(long)


# -- configuration


@pytest.mark.parametrize(
    ("auth_class", "prefix"), [(AxiaAuth, "BAAS"), (NTXPayAuth, "NTXPAY"), (AvistaAuth, "AVISTA"), (BS2Auth, "BS2")]
)
def test_missing_environment_variables_are_listed(
    auth_class: Auth, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two missing variables are two in the message, one is one."""
    for name in ("CLIENT_ID", "CLIENT_SECRET"):
        monkeypatch.delenv(f"{prefix}_{name}", raising=False)
    with pytest.raises(ConfigurationError, match=rf"environment variables.*{prefix}_CLIENT_ID, {prefix}_CLIENT_SECRET"):
        auth_class.from_env()
    monkeypatch.setenv(f"{prefix}_CLIENT_ID", "your-client-id")
    with pytest.raises(ConfigurationError, match=rf"environment variables?\b.*{prefix}_CLIENT_SECRET") as caught:
        auth_class.from_env()
    assert f"{prefix}_CLIENT_ID" not in str(caught.value)


def test_the_redis_cache_without_redis_names_the_extra() -> None:
    """Where redis-py is not installed the import says which extra to install."""
    program = "import sys; sys.modules['redis'] = None; import baas_auth_plugins.cache.redis"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr
    assert "baas-auth-plugins[redis]" in done.stderr.splitlines()[-1]


# -- invalidate(token)


@pytest.mark.parametrize("as_str", [False, True], ids=["Token", "str"])
def test_invalidate_drops_that_very_token(as_str: bool, auth_class: Auth, sandbox: Sandbox) -> None:
    """`invalidate(token)` drops the token that is given, never its successor."""
    auth = make(auth_class, sandbox)
    first = auth.get_token()
    auth.invalidate(first.access_token if as_str else first)
    second = auth.get_token()
    assert second.access_token != first.access_token
    auth.invalidate(first.access_token if as_str else first)
    auth.invalidate("unknown")
    assert auth.get_token().access_token == second.access_token
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ainvalidate_does_the_same(backend: str, sandbox: Sandbox) -> None:
    """So does `await ainvalidate(token)`, and without a token it drops whatever is cached."""
    auth = make(AxiaAuth, sandbox)

    async def main() -> list[str]:
        first = await auth.aget_token()
        await auth.ainvalidate(first)
        second = await auth.aget_token()
        await auth.ainvalidate(first)
        third = await auth.aget_token()
        await auth.ainvalidate()
        return [t.access_token for t in (first, second, third, await auth.aget_token())]

    first, second, third, fourth = anyio.run(main, backend=backend)
    assert first != second == third != fourth
    assert sandbox.count("token") == 3
