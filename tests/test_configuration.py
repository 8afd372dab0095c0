"""Mistakes are told at construction, and an auth object can be copied, printed and imported anywhere."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests
from conftest import PROVIDERS, SECRET, Auth, Client, api_url, make

import baas_auth_plugins
from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    ConfigurationError,
    InsecureTransportError,
    MemoryTokenCache,
    NTXPayAuth,
    OAuth2ClientCredentialsAuth,
    Provider,
)
from baas_auth_plugins.sandbox import Sandbox


async def a_coroutine_function() -> str:
    return SECRET


class CallsAsync:
    async def __call__(self) -> str:
        return SECRET


def build(auth_class: Auth, **parameters: Any) -> OAuth2ClientCredentialsAuth:
    if auth_class is BS2Auth:
        parameters = {"scope": "cob.read"} | parameters
    parameters = {"client_id": "id", "client_secret": SECRET} | parameters
    return auth_class(parameters.pop("client_id"), parameters.pop("client_secret"), **parameters)


# -- mistakes


MISTAKES: dict[str, list[Any]] = {
    "client_id": ["", " ", None, 7, b"id", ["id"], "id\n", "i\x00d", "id\x7f", "\ud800"],
    "client_secret": [
        *("", "  ", None, 7, b"secret", "secret\n", "se\rcret", "\ud800"),
        *(a_coroutine_function, CallsAsync(), functools.partial(a_coroutine_function)),
    ],
    "scope": [7, True, ["cob.read", 7], ["cob.read pix.read"], [""], 'cob"read', "cob\\read", b"cob.read", ["côb"]],
    "environment": ["staging", "Production", "", None, 7, []],
    "base_url": [
        *("", 7, b"https://api.example.com", "api.example.com", "//api.example.com", "https://", "https:///v1"),
        *("https://api.example.com/v1", "https://api.example.com?a=1", "https://api.example.com#a"),
        *("https://user@api.example.com", "https://user:password@api.example.com", "https://@api.example.com"),
        *("https://api.example.com:port", "https://api.example.com:99999", "https://api .example.com"),
        *("ftp://api.example.com", "file:///etc/passwd", "https://api.example.com\\@evil.example", "https://[::1"),
    ],
    "leeway": [-1, -0.001, None, "300", True, float("nan"), float("inf"), 10**400],
    "timeout": [0, -1, None, "10", True, float("nan"), float("inf"), (3, 10), 10**400],
    "max_wait": [0, -1, None, "60", True, float("nan"), float("inf"), 10**400],
    "cache": [{}, 7, "memory", object(), MemoryTokenCache],
    "session": [7, "session", httpx.Client, object()],
    "headers": [
        *("X-A: 1", 7, [("X-A", "1")], {"X-A": 1}, {7: "1"}, {"X A": "1"}, {"": "1"}, {"X-A:": "1"}),
        *({"X-A": "1\r\nX-B: 2"}, {"X-A": "1\n"}, {"X-A": "ção"}, {"X-A": b"1"}, {"X-A\n": "1"}),
        *({"Authorization": "Basic abc"}, {"authorization": "x"}, {"Content-Length": "7"}, {"Transfer-Encoding": "x"}),
    ],
    "allowed_origins": [
        *("https://api.example.com", ["api.example.com"], ["https://api.example.com/v1"], [7], [None], 7, None),
    ],
    "on_event": [7, "print", a_coroutine_function],
}


def _name(value: object) -> str:
    """Return a short name that is the same in every process: no memory address."""
    return re.sub(r" at 0x\w+", "", ascii(value))[:30]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [pytest.param(p, v, id=f"{p}-{_name(v)}") for p, values in MISTAKES.items() for v in values],
)
@pytest.mark.parametrize("auth_class", [AxiaAuth, BS2Auth], ids=lambda a: a.provider.name)
def test_mistake_is_told_at_construction(auth_class: Auth, parameter: str, value: object) -> None:
    """A wrong parameter is a ConfigurationError, thus a ValueError, that names it and shows no secret."""
    with pytest.raises(ConfigurationError, match=parameter) as caught:
        build(auth_class, **{parameter: value})
    assert isinstance(caught.value, ValueError)
    assert SECRET not in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("auth_class", [AxiaAuth, BS2Auth])
def test_colon_does_not_fit_into_basic(auth_class: Auth) -> None:
    """A client_id with a colon would be cut there by the gateway (RFC 7617)."""
    with pytest.raises(ConfigurationError, match=r"client_id.*colon"):
        build(auth_class, client_id="a:b")


@pytest.mark.parametrize("auth_class", [AvistaAuth, NTXPayAuth])
def test_colon_fits_into_json(auth_class: Auth) -> None:
    """In a JSON body it is a character like any other, and in a secret it always is."""
    build(auth_class, client_id="a:b", client_secret="c:d")
    build(AxiaAuth, client_secret="c:d")


@pytest.mark.parametrize("scope", [None, "", "  ", [], ()])
def test_bs2_needs_a_scope(scope: Any) -> None:
    """BS2 grants what is asked for, so something must be."""
    with pytest.raises(ConfigurationError, match=r"scope.*cob\.read"):
        build(BS2Auth, scope=scope)


@pytest.mark.parametrize(
    "origin",
    [
        *("http://api.bs2.com", "http://10.0.0.1", "http://0.0.0.0:8080", "http://127.0.0.1.evil.example"),
        *("http://localhost.evil.example", "http://[2001:db8::1]", "HTTP://API.BS2.COM", "http://2130706433.com"),
    ],
)
@pytest.mark.parametrize("parameter", ["base_url", "allowed_origins"])
def test_plain_http_is_refused(parameter: str, origin: str) -> None:
    """The secret and the token travel over https only."""
    with pytest.raises(InsecureTransportError, match=f"{parameter} must use https"):
        build(AxiaAuth, **{parameter: [origin] if parameter == "allowed_origins" else origin})


@pytest.mark.parametrize(
    "origin",
    ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:8080", "http://127.9.9.9", "HTTP://LOCALHOST:1"],
)
def test_loopback_may_be_plain(origin: str) -> None:
    """Nothing leaves the machine."""
    build(AxiaAuth, base_url=origin, allowed_origins=[origin])


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("scope", {"pix:send", "accounts:read"}),
        ("scope", (s for s in ["pix:send"])),
        ("base_url", "https://API.example.com:443/"),
        ("leeway", 0),
        ("timeout", 0.001),
        ("max_wait", 10**6),
        ("headers", {}),
        ("headers", httpx.Headers({"X-A": "1"})),
        ("allowed_origins", (o for o in ["https://a.example", "https://b.example"])),
        ("client_secret", lambda: SECRET),
        ("client_id", "ação"),
    ],
)
def test_sensible_values_are_taken(parameter: str, value: Any) -> None:
    """Any iterable, number and mapping that makes sense will do."""
    assert build(AxiaAuth, **{parameter: value})


def test_class_without_a_gateway_cannot_be_used() -> None:
    """The base class says that a subclass is needed."""
    with pytest.raises(ConfigurationError, match="provider"):
        OAuth2ClientCredentialsAuth("id", SECRET)


def test_signature_is_the_contract() -> None:
    """Two credentials, then keyword-only parameters with the documented defaults, and nothing that swallows typos."""
    parameters = inspect.signature(AxiaAuth).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == ["client_id", "client_secret"]
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == {
        "scope": None,
        "environment": "production",
        "base_url": None,
        "leeway": 300.0,
        "timeout": 10.0,
        "max_wait": 60.0,
        "cache": None,
        "session": None,
        "headers": None,
        "background_renewal": False,
        "allowed_origins": (),
        "on_event": None,
    }
    with pytest.raises(TypeError, match="time_out"):
        AxiaAuth("id", SECRET, time_out=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("secret", ["", None, 7, b"secret"])
def test_callable_that_gives_no_secret_is_told_at_use(client: Client, sandbox: Sandbox, secret: Any) -> None:
    """What a vault gives is checked when it is asked, and nothing is sent."""
    auth = make(AxiaAuth, sandbox, client_secret=lambda: secret)
    with pytest.raises(ConfigurationError, match="client_secret"):
        client.call(auth, "GET", api_url(AxiaAuth, sandbox))
    assert sandbox.requests == []


def test_caller_keeps_what_it_passed_in(sandbox: Sandbox) -> None:
    """Lists and mappings are copied: changing them later changes nothing, and they are not changed."""
    headers, origins, scope = {"X-A": "1"}, ["https://a.example"], ["cob.read"]
    auth = make(BS2Auth, sandbox, headers=headers, allowed_origins=origins, scope=scope)
    headers["X-B"], scope[0] = "2", "pix.read"
    origins.append("https://b.example")
    auth.get_token()
    assert "x-b" not in sandbox.requests[0].headers
    assert b"scope=cob.read" in sandbox.requests[0].body


# -- from the environment


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables of a gateway, and no others."""
    for prefix in ("BAAS", "NTXPAY", "AVISTA", "BS2", "ACME"):
        for name in ("CLIENT_ID", "CLIENT_SECRET", "SCOPE", "ENVIRONMENT", "BASE_URL"):
            monkeypatch.delenv(f"{prefix}_{name}", raising=False)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("auth_class", "prefix"), [(AxiaAuth, "BAAS"), (NTXPayAuth, "NTXPAY"), (AvistaAuth, "AVISTA"), (BS2Auth, "BS2")]
)
def test_environment_variables(
    auth_class: Auth, prefix: str, sandbox: Sandbox, environment: Callable[..., None]
) -> None:
    """Each gateway reads its own variables."""
    environment(
        **{
            f"{prefix}_CLIENT_ID": sandbox.client_id,
            f"{prefix}_CLIENT_SECRET": SECRET,
            f"{prefix}_BASE_URL": sandbox.url,
            f"{prefix}_SCOPE": "cob.read" if auth_class is BS2Auth else "",
        }
    )
    assert auth_class.from_env().get_token().access_token
    assert sandbox.count("token") == 1


def test_environment_of_bs2(environment: Callable[..., None]) -> None:
    """Its environment may come from the environment, and the base URL wins over it."""
    environment(BS2_CLIENT_ID="id", BS2_CLIENT_SECRET=SECRET, BS2_SCOPE="pix.read", BS2_ENVIRONMENT="homologation")
    assert "https://apihmz.bancobonsucesso.com.br" in repr(BS2Auth.from_env())
    environment(BS2_BASE_URL="http://localhost:8080")
    assert "http://localhost:8080" in repr(BS2Auth.from_env())


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({}, "BAAS_CLIENT_ID, BAAS_CLIENT_SECRET"),
        ({"BAAS_CLIENT_ID": "id"}, "BAAS_CLIENT_SECRET"),
        ({"BAAS_CLIENT_SECRET": SECRET}, "BAAS_CLIENT_ID"),
        ({"BAAS_CLIENT_ID": "", "BAAS_CLIENT_SECRET": SECRET}, "BAAS_CLIENT_ID"),
    ],
    ids=["both", "secret", "id", "empty"],
)
def test_missing_variable_is_named(environment: Callable[..., None], variables: dict[str, str], missing: str) -> None:
    """A variable that is unset or empty is an error. Its message names all of them."""
    environment(**variables)
    with pytest.raises(ConfigurationError, match=f"^missing environment variables: {missing}$") as caught:
        AxiaAuth.from_env()
    assert SECRET not in str(caught.value)


def test_overrides_and_prefix(environment: Callable[..., None]) -> None:
    """A parameter wins over its variable, needs none, and another prefix may be named."""
    environment(ACME_CLIENT_ID="acme", ACME_CLIENT_SECRET=SECRET, ACME_BASE_URL="https://acme.example")
    assert "client_id='acme'" in repr(AxiaAuth.from_env("ACME"))
    assert "https://other.example" in repr(AxiaAuth.from_env("ACME", base_url="https://other.example", leeway=10))
    assert "client_id='mine'" in repr(AxiaAuth.from_env(client_id="mine", client_secret=lambda: SECRET))
    with pytest.raises(ConfigurationError, match="leeway"):
        AxiaAuth.from_env("ACME", leeway=-1)
    with pytest.raises(TypeError, match="lee_way"):
        AxiaAuth.from_env("ACME", lee_way=10)


def test_wrong_variable_is_told(environment: Callable[..., None]) -> None:
    """What is wrong in a variable is wrong in the same way as in a parameter."""
    environment(BS2_CLIENT_ID="id", BS2_CLIENT_SECRET=SECRET, BS2_SCOPE="pix.read", BS2_ENVIRONMENT="staging")
    with pytest.raises(ConfigurationError, match="environment"):
        BS2Auth.from_env()


# -- an object like any other


def test_repr_shows_no_secret(auth_class: Auth) -> None:
    """The repr tells who and where, and neither the secret nor where it comes from."""
    for secret in (SECRET, lambda: SECRET):
        shown = f"{build(auth_class, client_secret=secret)!r} {build(auth_class, client_secret=secret)}"
        assert f"{auth_class.__name__}(client_id='id'" in shown
        assert auth_class.provider.environments["production"] in shown
        assert SECRET not in shown
        assert "lambda" not in shown


def test_auth_object_is_true(auth_class: Auth) -> None:
    """Requests asks `if auth:`, so there is nothing that could make it false."""
    assert bool(build(auth_class)) is True
    assert not {"__len__", "__bool__"} & {name for cls in auth_class.__mro__ for name in vars(cls)}


def test_one_class_is_every_clients(auth_class: Auth) -> None:
    """One object is what requests, httpx and httpx2 each expect."""
    auth = build(auth_class)
    for kind in (requests.auth.AuthBase, httpx.Auth, httpx2.Auth, OAuth2ClientCredentialsAuth):
        assert isinstance(auth, kind)
    assert auth.requires_request_body is False
    assert auth.requires_response_body is False


@pytest.mark.parametrize(
    "thing",
    [
        httpx.Request("GET", "https://api.ntxpay.com/cob/1"),
        httpx2.Request("GET", "https://api.ntxpay.com/cob/1"),
        urllib.request.Request("https://api.ntxpay.com/cob/1"),
        requests.PreparedRequest(),
        None,
        "https://api.ntxpay.com/cob/1",
        {},
    ],
    ids=lambda thing: f"{type(thing).__module__}.{type(thing).__name__}",
)
def test_anything_else_that_calls_it_is_refused(thing: Any) -> None:
    """What would send a request without authentication, or with half of it, is told what is supported."""
    with pytest.raises(TypeError, match=r"requests\.Session, httpx\.Client, httpx\.AsyncClient"):
        build(NTXPayAuth)(thing)


def nothing(_: object) -> None:
    """Listen, and do nothing; at module level, so that it can be pickled."""


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),  # noqa: S301  # our own
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("way", COPIES)
def test_auth_object_can_be_copied(client: Client, sandbox: Sandbox, way: str) -> None:
    """Used or unused, with whatever parameters, a copy works like the original, which works on."""
    parameters = {"on_event": nothing, "headers": {"X-A": "1"}, "allowed_origins": ["https://a.example"], "leeway": 5}
    auth = make(BS2Auth, sandbox, **parameters)
    unused = COPIES[way](auth)
    assert client.call(auth, "GET", api_url(BS2Auth, sandbox)).status == 200
    used = COPIES[way](auth)
    for twin in (unused, used, auth):
        assert type(twin) is BS2Auth
        assert repr(twin) == repr(auth)
        assert client.call(twin, "GET", api_url(BS2Auth, sandbox)).status == 200
    assert {record.headers["x-a"] for record in sandbox.requests if record.kind == "token"} == {"1"}


def test_pickle_holds_no_token(sandbox: Sandbox) -> None:
    """Tokens stay behind, in memory."""
    auth = make(BS2Auth, sandbox)
    token = auth.get_token().access_token
    assert token.encode() not in pickle.dumps(auth)


def test_copies_share_the_process_cache(sandbox: Sandbox) -> None:
    """In one process a copy has equal credentials, and so the same token."""
    auth = AxiaAuth(sandbox.client_id, SECRET, base_url=sandbox.url)
    assert COPIES["pickle"](auth).get_token() is auth.get_token()
    assert sandbox.count("token") == 1


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("own_session", [False, True])
def test_session_that_holds_one_can_be_copied(sandbox: Sandbox, way: str, own_session: bool) -> None:
    """A requests.Session with such an auth can be sent to another process, even one that carries its token requests."""
    with requests.Session() as session:
        session.auth = make(AxiaAuth, sandbox, session=session if own_session else None)
        assert session.get(api_url(AxiaAuth, sandbox), timeout=5).status_code == 200
        with COPIES[way](session) as twin:
            assert isinstance(twin.auth, AxiaAuth)
            assert twin.auth is not session.auth
            assert twin.get(api_url(AxiaAuth, sandbox), timeout=5).status_code == 200


def test_subclass_keeps_its_own_attributes() -> None:
    """What a subclass or a user adds travels along."""
    auth = build(AxiaAuth)
    auth.note = "mine"  # type: ignore[attr-defined]
    assert COPIES["deepcopy"](auth).note == "mine"


# -- a gateway is data


def test_provider_is_frozen_data() -> None:
    """Nobody changes a gateway for everybody else."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        AxiaAuth.provider.token_endpoint = "/elsewhere"  # type: ignore[misc]
    assert {cls.provider.env_prefix for cls in PROVIDERS} == {"BAAS", "NTXPAY", "AVISTA", "BS2"}


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
@pytest.mark.parametrize("scope", ["required", "assigned"])
@pytest.mark.pairwise
def test_fifth_gateway_is_a_declaration(
    client: Client, new_sandbox: Callable[..., Sandbox], method: str, scope: Any
) -> None:
    """A gateway that follows RFC 6749 to the letter needs no code at all; it is asked for scopes if it wants them."""
    fifth = Provider(
        name="fifth",
        env_prefix="FIFTH",
        environments={"production": "https://api.example.com"},
        token_endpoint="/token",
        token_endpoint_auth_method=method,
        scope=scope,
        default_expires_in=900,
    )

    class FifthAuth(OAuth2ClientCredentialsAuth):
        provider = fifth

    sandbox = new_sandbox(providers=[fifth])
    auth = make(FifthAuth, sandbox, scope="payments:read")
    assert client.call(auth, "GET", sandbox.url + "/payments").status == 200
    assert auth.get_token().expires_in == 900
    assert (b"scope=payments%3Aread" in sandbox.requests[0].body) is (scope == "required")


# -- the package


def test_public_names_are_all_there_is() -> None:
    """`__all__` names exactly what the package offers, sorted, and each name can be imported."""
    offered = {
        name
        for name in dir(baas_auth_plugins)
        if (value := getattr(baas_auth_plugins, name)) is not None
        and not name.startswith("_")
        and not inspect.ismodule(value)
        and name != "annotations"
    }
    assert set(baas_auth_plugins.__all__) == offered
    assert len(set(baas_auth_plugins.__all__)) == len(baas_auth_plugins.__all__)
    contract = {"AxiaAuth", "NTXPayAuth", "AvistaAuth", "BS2Auth", "OAuth2ClientCredentialsAuth", "Provider", "Token"}
    assert contract | {"MemoryTokenCache", "TokenCache"} <= offered


MODULES = [
    module.name
    for module in pkgutil.walk_packages(baas_auth_plugins.__path__, "baas_auth_plugins.")
    if not module.name.endswith(("__main__", "httpie_plugin"))  # the one runs, the other needs HTTPie: see tests/tools
]


@pytest.mark.parametrize("name", MODULES)
def test_modules_tell_the_truth(name: str) -> None:
    """Every module says what it is for, and its `__all__` names things that exist and are its own or passed on."""
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), public


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(baas_auth_plugins.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_works_without_httpx2() -> None:
    """Where httpx2 is not installed everything else works, and its exceptions are not missed."""
    shown = run_python(
        """
        import asyncio, sys

        class NotInstalled:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("httpx2", "httpcore2"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, NotInstalled())
        import httpx, pickle, requests
        from baas_auth_plugins import AxiaAuth, InvalidClientError
        from baas_auth_plugins.sandbox import Sandbox

        async def fetch():
            async with httpx.AsyncClient(auth=auth) as client:
                return (await client.get(url)).status_code

        with Sandbox() as sandbox:
            auth = AxiaAuth(sandbox.client_id, sandbox.client_secret, base_url=sandbox.url)
            url = sandbox.url + "/v1/accounts"
            print(requests.get(url, auth=auth).status_code)
            sandbox.revoke_all()
            with httpx.Client(auth=pickle.loads(pickle.dumps(auth))) as client:
                print(client.get(url).status_code)
            print(asyncio.run(fetch()))
            try:
                AxiaAuth("wrong", "wrong", base_url=sandbox.url).get_token()
            except httpx.HTTPError as error:
                print(type(error).__name__, issubclass(InvalidClientError, requests.RequestException))
        print("httpx2" in sys.modules)
        """
    )
    assert shown.split() == ["200", "200", "200", "InvalidClientError", "True", "False"]


def test_import_is_quiet_and_lean() -> None:
    """Importing the package warns of nothing, and loads no event loop's library, web server or HTTP client too many."""
    unwanted = "trio anyio redis opentelemetry httpie niquests http.server authlib.integrations.httpx_client pytest"
    shown = run_python(
        f"""
        import httpx, httpx2, requests, sys
        before = set(sys.modules)
        import baas_auth_plugins
        print(sorted((set(sys.modules) - before) & set("{unwanted}".split())))
        """
    )
    assert shown.strip() == "[]"


def test_cache_is_a_token_cache() -> None:
    """The cache in memory is what the protocol asks for, and copies without its tokens."""
    assert isinstance(MemoryTokenCache(), baas_auth_plugins.TokenCache)
    assert not isinstance({}, baas_auth_plugins.TokenCache)


@pytest.mark.parametrize("name", ["token_endpoint", "introspection_endpoint", "revocation_endpoint"])
def test_endpoint_is_a_path(name: str) -> None:
    """An endpoint that does not begin with a slash would become part of the host's name: it is refused."""
    endpoints = {"token_endpoint": "/token", name: "oauth/token"}
    with pytest.raises(ConfigurationError, match="must be a path that begins with '/'"):
        Provider(
            name="fifth", env_prefix="FIFTH", environments={"production": "https://api.fifth.example"}, **endpoints
        )
