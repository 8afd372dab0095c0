"""A gateway is a declaration: checked when it is written, sent as it says, and the whole of it a part of the cache key."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from by_hand import CLIENT, client_of
from conftest import CLIENTS, SECRET, Client, api_url, make
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from baas_auth_plugins import (
    PROVIDERS,
    BS2Auth,
    ConfigurationError,
    InsecureTransportError,
    MemoryTokenCache,
    OAuth2ClientCredentialsAuth,
    Provider,
    TokenEndpointError,
    client_auth,
)
from baas_auth_plugins.sandbox import Sandbox

RSA = RSAKey.generate_key(2048, {"kid": "rsa-1"})
PEM = RSA.as_pem(private=True).decode()
JWK = json.dumps(RSA.as_dict(private=True))
LONG_SECRET = SECRET * 4
FIELDS: dict[str, Any] = {
    "name": "fifth",
    "env_prefix": "FIFTH",
    "environments": {"production": "https://api.fifth.example"},
    "token_endpoint": "/token",
}


def declared(**changes: Any) -> Provider:
    return Provider(**FIELDS | changes)


def class_of(**changes: Any) -> type[OAuth2ClientCredentialsAuth]:
    return type("FifthAuth", (OAuth2ClientCredentialsAuth,), {"provider": declared(**changes)})


class TwoMethods:
    """A user's own cache, which is taken for shared."""

    def get(self, key: str) -> Any:
        return None

    def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
        return True


# Functions at the top level of a module, as a declaration needs them.


def with_audience(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    return uri, headers, f"{body}&client_id={client.client_id}&audience=one"


def with_other_audience(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    return uri, headers, f"{body}&client_id={client.client_id}&audience=two"


def failing(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    raise KeyError("vault")


def redirecting(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    return "https://evil.example/token", headers, body


def returning_bytes(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    return uri, headers, body.encode()


def returning_two(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    return uri, headers


def own_error(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    raise ConfigurationError("client_secret must be two words")


async def coroutine(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
    return uri, headers, body


def read(payload: dict[str, Any]) -> dict[str, Any]:
    return payload | {"access_token": payload["token"]}


def read_otherwise(payload: dict[str, Any]) -> dict[str, Any]:
    return read(payload)


class Stable:
    """An object that can be declared: its repr says all that it does."""

    def __init__(self, audience: str) -> None:
        self.audience = audience

    def __call__(self, client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
        return uri, headers, f"{body}&client_id={client.client_id}&audience={self.audience}"

    def __repr__(self) -> str:
        return f"Stable({self.audience!r})"

    def method(self, client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
        return self(client, method, uri, headers, body)


class Unstable(Stable):
    """One that says where it is in memory, as objects do."""

    __repr__ = object.__repr__


def made(audience: str) -> Callable[..., Any]:
    def function(client: Any, method: str, uri: str, headers: Any, body: str) -> Any:
        return uri, headers, audience

    return function


# -- checks at declaration

WRONG = [
    ("name", "", "non-empty str"),
    ("name", 5, "non-empty str"),
    ("env_prefix", None, "non-empty str"),
    ("environments", {"homologation": "https://hml.fifth.example"}, "must hold 'production', or be empty"),
    ("environments", ["https://api.fifth.example"], "must map names to origins"),
    ("environments", {"production": "api.fifth.example"}, r"environments\['production'\] must be an origin"),
    ("environments", {"production": "https://*.fifth.example"}, "without wildcards"),
    ("environments", {"production": "https://api.fifth.example/v1"}, "without userinfo, path"),
    ("environments", {"production": 443}, "not int"),
    ("api_origins", {"production": ["https://*.x.com"]}, "without wildcards"),
    ("api_origins", {"production": "https://api.x.com"}, "must be a tuple of origins, not a str"),
    ("api_origins", {"prod": ("https://api.x.com",)}, "must map names of environments"),
    ("api_origins", ["https://api.x.com"], "must map names of environments"),
    ("api_origins", {"production": ("https://api.x.com/v1",)}, "without userinfo, path"),
    ("token_endpoint", "oauth/token", "must be a path that begins with '/'"),
    ("token_endpoint", None, "must be a path that begins with '/'"),
    ("token_endpoint", "/a b", "must be a path"),
    ("token_endpoint", "/a\n", "must be a path"),
    ("introspection_endpoint", "https://x.example/i", "must be a path"),
    ("revocation_endpoint", 5, "must be a path"),
    ("token_endpoint_auth_method", "client_secret_basics", "must be one of client_secret_basic, client_secret_post"),
    ("token_endpoint_auth_method", None, "must be one of"),
    ("token_endpoint_auth_method", coroutine, "must be a plain function"),
    ("token_endpoint_auth_method", lambda *a: a, "lambda, closure, partial or bound method"),
    ("token_endpoint_auth_method", made("one"), "lambda, closure, partial or bound method"),
    ("token_endpoint_auth_method", functools.partial(with_audience), "partial or bound method"),
    ("token_endpoint_auth_method", Stable("x").method, "partial or bound method"),
    ("token_endpoint_auth_method", Unstable("x"), "stable repr"),
    ("token_request_format", "xml", "must be one of form, json, query, empty"),
    ("token_request_format", None, "must be one of form"),
    ("scope", "needed", "must be one of required, optional, assigned"),
    ("default_expires_in", 0, "positive number of seconds"),
    ("default_expires_in", True, "positive number of seconds"),
    ("default_expires_in", float("nan"), "positive number of seconds"),
    ("default_expires_in", "300", "positive number of seconds"),
    ("token_rate_limit", 10, r"must be \(requests, seconds\)"),
    ("token_rate_limit", (10,), r"must be \(requests, seconds\)"),
    ("token_rate_limit", [10, 60], r"must be \(requests, seconds\)"),
    ("token_rate_limit", (0, 60), r"must be \(requests, seconds\)"),
    ("token_rate_limit", (10, -1), r"must be \(requests, seconds\)"),
    ("token_rate_limit", ("10", 60), r"must be \(requests, seconds\)"),
    ("read_token_response", "token", "must be a plain function"),
    ("read_token_response", lambda payload: payload, "lambda, closure, partial or bound method"),
]


@pytest.mark.parametrize(
    ("field", "value", "problem"), WRONG, ids=[f"{field}-{n}" for n, (field, *_) in enumerate(WRONG)]
)
def test_mistake_is_found_at_declaration(field: str, value: Any, problem: str) -> None:
    """Each mistake is a ConfigurationError that names the provider and the field, before any auth object is made."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        declared(**{field: value})
    assert "'fifth'" in str(caught.value) or field == "name"
    assert field in str(caught.value)


def test_plain_http_is_refused_at_declaration() -> None:
    """An environment or an API origin that is not https is an error of its own; loopback is allowed."""
    with pytest.raises(InsecureTransportError, match="must use https"):
        declared(environments={"production": "http://api.fifth.example"})
    with pytest.raises(InsecureTransportError, match="must use https"):
        declared(api_origins={"production": ("http://api.fifth.example",)})
    assert declared(environments={"production": "http://127.0.0.1:8080"})


def test_secret_in_a_url_is_refused_at_declaration() -> None:
    """`query` with `client_secret_post` would put the secret into the URL, where servers and proxies log it."""
    with pytest.raises(ConfigurationError, match="token_request_format must not be query with client_secret_post"):
        declared(token_request_format="query", token_endpoint_auth_method="client_secret_post")


@pytest.mark.parametrize("method", [with_audience, Stable("one"), client_auth.private_key_jwt(alg="PS256")])
def test_stable_function_can_be_declared(method: Any) -> None:
    """A module-level function, and an object with a stable repr, are a part of the declaration."""
    assert declared(token_endpoint_auth_method=method).token_endpoint_auth_method is method


def test_declaration_is_frozen() -> None:
    """A declaration cannot be changed, only replaced; the copy is checked as well."""
    with pytest.raises(FrozenInstanceError):
        declared().scope = "required"  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match="scope"):
        replace(declared(), scope="needed")  # type: ignore[arg-type]


def test_class_without_a_declaration() -> None:
    """The base class itself, and a subclass that names no gateway, say so, from the environment as well."""
    for make_auth in (
        lambda: OAuth2ClientCredentialsAuth("id", SECRET),
        OAuth2ClientCredentialsAuth.from_env,
        lambda: type("X", (OAuth2ClientCredentialsAuth,), {"provider": "fifth"})("id", SECRET),
    ):
        with pytest.raises(ConfigurationError, match="has no `provider`"):
            make_auth()


def test_gateway_without_environments_needs_a_base_url() -> None:
    """Where each customer has an origin of its own, `base_url` is required."""
    cls = class_of(environments={})
    with pytest.raises(ConfigurationError, match="base_url is required by fifth"):
        cls("id", SECRET)
    assert "https://own.example" in repr(cls("id", SECRET, base_url="https://own.example"))


# -- formats and methods

METHODS: dict[str, tuple[Any, str]] = {
    "client_secret_basic": ("client_secret_basic", SECRET),
    "client_secret_post": ("client_secret_post", SECRET),
    "none": ("none", ""),
    "private_key_jwt, PEM": ("private_key_jwt", PEM),
    "private_key_jwt, JWK": ("private_key_jwt", JWK),
    "PS256": (client_auth.private_key_jwt(alg="PS256", headers={"kid": "of-1"}), PEM),
    "client_secret_jwt": ("client_secret_jwt", LONG_SECRET),
    "function": (with_audience, SECRET),
}
COMBINATIONS = [
    (request_format, method)
    for request_format in ("form", "json", "query")
    for method in METHODS
    if (request_format, method) != ("query", "client_secret_post")  # which is refused at declaration
    and (request_format == "form" or method != "function")  # ours writes a form
]
SENDERS = {"requests": CLIENTS[0], "httpx": CLIENTS[1], "asyncio": CLIENTS[2]}


@pytest.mark.pairwise
@pytest.mark.parametrize("client", SENDERS.values(), ids=SENDERS)
@pytest.mark.parametrize("scope", ["required", "optional", "assigned"])
@pytest.mark.parametrize(("request_format", "method"), COMBINATIONS)
def test_every_combination_works(request_format: Any, method: str, scope: Any, client: Client) -> None:
    """Formats, client authentication methods, scope modes and clients combine freely, against a strict gateway."""
    auth_method, secret = METHODS[method]
    cls = class_of(token_endpoint_auth_method=auth_method, token_request_format=request_format, scope=scope)
    arguments: dict[str, Any] = {} if scope == "assigned" else {"scope": "a.read b.write"}
    with Sandbox(
        providers=[cls.provider], client_id=f"{method}-{request_format}", client_secret=secret or SECRET
    ) as sandbox:
        auth = cls(sandbox.client_id, secret or None, base_url=sandbox.url, cache=MemoryTokenCache(), **arguments)
        assert client.call(auth, "GET", f"{sandbox.url}/anything").status == 200
        (request,) = [one for one in sandbox.requests if one.kind == "token"]
    sent = _parameters(request_format, request)
    assert sent["grant_type"] == "client_credentials"
    assert sent.get("scope") == (None if scope == "assigned" else "a.read b.write")
    assert (request.headers["content-type"] == "application/json") is (request_format == "json")
    assert (request.query == "") is (request_format != "query")
    if "client_assertion" in sent:
        key = OctKey.import_key(secret) if method == "client_secret_jwt" else RSA
        found = jwt.decode(sent["client_assertion"], key, algorithms=["RS256", "PS256", "HS256"])
        assert found.claims["aud"] == sandbox.url + "/token"
        assert found.header.get("kid") == {"private_key_jwt, JWK": "rsa-1", "PS256": "of-1"}.get(method)
    assert SECRET not in request.query


def _parameters(request_format: str, request: Any) -> dict[str, str]:
    if request_format == "json":
        found: dict[str, str] = json.loads(request.body)
        return found
    text = request.query if request_format == "query" else request.body.decode()
    return {name: values[0] for name, values in parse_qs(text, strict_parsing=True).items()}


@pytest.mark.parametrize("request_format", ["form", "json", "query", "empty"])
def test_format_on_the_wire(request_format: Any) -> None:
    """Each format is exactly this URL, this content type and this body."""
    client = client_of(scope="a b")._replace(
        provider=replace(declared(token_request_format=request_format, scope="optional"))
    )
    request = client.token_request(SECRET, None)
    parts = urlsplit(request.url)
    form, found = (
        "grant_type=client_credentials&scope=a+b",
        (parts.query, request.headers["Content-Type"], request.body),
    )
    as_json = {"grant_type": "client_credentials", "scope": "a b"}
    if request_format == "json":
        assert json.loads(found[2]) == as_json
        found = (*found[:2], b"")
    assert parts.path == "/token"
    assert (
        found
        == {
            "form": ("", "application/x-www-form-urlencoded", form.encode()),
            "json": ("", "application/json", b""),
            "query": (form, "application/x-www-form-urlencoded", b""),
            "empty": ("", "application/json", b""),
        }[request_format]
    )


def test_empty_format_names_the_client_in_the_header_alone(sandbox: Sandbox) -> None:
    """Axia's request: no parameters and no body, `Content-Type: application/json`, and Basic."""
    axia = PROVIDERS[0]
    make(axia, sandbox).get_token()
    (request,) = sandbox.requests
    assert (request.query, request.body, request.headers["content-type"]) == ("", b"", "application/json")
    assert request.headers["authorization"].startswith("Basic ")


# -- functions


def test_a_functions_error_uses_up_no_rate_limit() -> None:
    """A token request that could not be built counts against no limit: each call gets the error, none waits."""
    auth_class = class_of(token_endpoint_auth_method=failing, token_rate_limit=(2, 60))
    auth = auth_class("limited functions", SECRET, cache=MemoryTokenCache(), max_wait=5)
    for _ in range(4):
        with pytest.raises(ConfigurationError):
            auth.get_token()


@pytest.mark.parametrize(
    ("method", "problem", "cause"),
    [
        (failing, "token_endpoint_auth_method raised KeyError", KeyError),
        (redirecting, r"must return \(url, headers, body\)", type(None)),
        (returning_bytes, r"must return \(url, headers, body\)", type(None)),
        (returning_two, "token_endpoint_auth_method raised ValueError", ValueError),
        (own_error, "client_secret must be two words", type(None)),
    ],
)
def test_functions_error_reaches_the_caller(method: Any, problem: str, cause: type) -> None:
    """What a declaration's function raises is a ConfigurationError with that cause, and nothing is sent."""
    sent: list[httpx.Request] = []

    def gateway(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    auth = class_of(token_endpoint_auth_method=method)("functions", SECRET, cache=MemoryTokenCache())
    with httpx.Client(auth=auth, transport=httpx.MockTransport(gateway)) as client:
        for _ in range(2):  # it stands for nobody: the next call tries again
            with pytest.raises(ConfigurationError, match=problem) as caught:
                client.get("https://api.fifth.example/x")
            assert type(caught.value.__cause__) is cause
    assert sent == []


def test_function_of_a_declaration_runs(sandbox: Sandbox) -> None:
    """What a function returns is what is sent."""
    cls = class_of(token_endpoint_auth_method=Stable("pix"))
    with Sandbox(providers=[cls.provider]) as own:
        cls(own.client_id, SECRET, base_url=own.url, cache=MemoryTokenCache()).get_token()
        (request,) = own.requests
    assert request.body == b"grant_type=client_credentials&client_id=your-client-id&audience=pix"


@dataclass(frozen=True)
class Named:
    """Reads a token under another name."""

    name: str

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"access_token": payload[self.name]}


def answering(content: Any) -> httpx.MockTransport:
    def gateway(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(200, json=content)
        return httpx.Response(200, text=request.headers["Authorization"])

    return httpx.MockTransport(gateway)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("function", [read, Named("token")])
def test_response_with_other_names(function: Any, is_async: bool) -> None:
    """`read_token_response` translates the gateway's names, sync and async."""
    auth = class_of(read_token_response=function)(f"names-{is_async}", SECRET, cache=MemoryTokenCache())
    transport = answering({"token": "abc", "expires_in": 60})
    url = "https://api.fifth.example/x"

    async def call() -> str:
        async with httpx.AsyncClient(auth=auth, transport=transport) as client:
            return (await client.get(url)).text

    if is_async:
        assert asyncio.run(call()) == "Bearer abc"
    else:
        with httpx.Client(auth=auth, transport=transport) as client:
            assert client.get(url).text == "Bearer abc"


def test_response_that_the_function_cannot_read() -> None:
    """What it raises is a ConfigurationError with that cause; an error response never reaches it."""
    cls = class_of(read_token_response=read)
    with httpx.Client(auth=cls("broken", SECRET, cache=MemoryTokenCache()), transport=answering({"x": 1})) as client:
        with pytest.raises(ConfigurationError, match="read_token_response raised KeyError") as caught:
            client.get("https://api.fifth.example/x")
    assert isinstance(caught.value.__cause__, KeyError)
    auth = cls("refused", SECRET, cache=MemoryTokenCache())
    with httpx.Client(auth=auth, transport=answering({"error": "invalid_request"})) as client:
        with pytest.raises(TokenEndpointError, match="invalid_request"):
            client.get("https://api.fifth.example/x")


# -- no secret


def test_method_none_needs_no_secret() -> None:
    """With `none` the certificate authenticates the client, so there is no secret, from the environment as well."""
    cls = class_of(token_endpoint_auth_method="none")
    with Sandbox(providers=[cls.provider]) as sandbox:
        auth = cls(sandbox.client_id, base_url=sandbox.url, cache=MemoryTokenCache())
        assert auth.get_token()
        (request,) = sandbox.requests
    assert request.body == f"grant_type=client_credentials&client_id={sandbox.client_id}".encode()


def test_from_env_asks_for_no_secret_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the client_id must be there; where a secret is needed, both are named."""
    monkeypatch.setenv("FIFTH_CLIENT_ID", "your-client-id")
    assert "your-client-id" in repr(class_of(token_endpoint_auth_method="none").from_env())
    with pytest.raises(ConfigurationError, match="FIFTH_CLIENT_SECRET"):
        class_of().from_env()


@pytest.mark.parametrize(
    "method", ["client_secret_basic", "client_secret_post", "private_key_jwt", "client_secret_jwt"]
)
def test_other_methods_need_a_secret(method: str) -> None:
    """A missing secret is found when the auth object is made."""
    with pytest.raises(ConfigurationError, match="client_secret is required by fifth"):
        class_of(token_endpoint_auth_method=method)("id")


def test_shared_cache_without_a_secret_is_refused() -> None:
    """An invented secret would let one client read what another one encrypted; a memory cache is allowed."""
    cls = class_of(token_endpoint_auth_method="none")
    with pytest.raises(ConfigurationError, match="cache: fifth has no client secret"):
        cls("id", cache=TwoMethods())
    assert cls("id", cache=MemoryTokenCache())
    assert class_of()("id", SECRET, cache=TwoMethods())


# -- further origins


def test_api_origins_go_with_their_environment() -> None:
    """Each environment has its own API origins; a `base_url` has none of them; `allowed_origins` adds to both."""
    cls = class_of(
        environments={"production": "https://a.example", "homologation": "https://h.example"},
        api_origins={"production": ("https://api.a.example", "https://pix.a.example:8443")},
    )

    def allowed(**parameters: Any) -> list[str]:
        return cls("id", SECRET, **parameters)._parts.origins.further

    assert allowed() == ["https://api.a.example", "https://pix.a.example:8443"]
    assert allowed(environment="homologation") == []
    assert allowed(base_url="https://a.example") == []
    assert allowed(allowed_origins=["https://x.example"])[-1] == "https://x.example"
    assert allowed(base_url="https://b.example", allowed_origins=["https://x.example"]) == ["https://x.example"]


# -- the cache key

OTHERS: dict[str, Any] = {
    "name": "sixth",
    "env_prefix": "SIXTH",
    "environments": {"production": "https://api.sixth.example"},
    "token_endpoint": "/token2",
    "token_endpoint_auth_method": "client_secret_post",
    "token_request_format": "json",
    "scope": "optional",
    "default_expires_in": 60,
    "token_rate_limit": (5, 60),
    "introspection_endpoint": "/introspect",
    "revocation_endpoint": "/revoke",
    "api_origins": {"production": ("https://pix.fifth.example",)},
    "read_token_response": read,
}


def key_of(provider: Provider, secret: str = SECRET) -> str:
    return CLIENT._replace(provider=provider).cache_key(secret)


@pytest.mark.parametrize("field", [one.name for one in fields(Provider) if one.init])
def test_cache_key_covers_each_field(field: str) -> None:
    """Two declarations that differ in any one field share no token: a new field must come with a value here."""
    assert key_of(declared()) != key_of(declared(**{field: OTHERS[field]}))


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("token_endpoint_auth_method", with_audience, with_other_audience),
        ("token_endpoint_auth_method", Stable("one"), Stable("two")),
        (
            "token_endpoint_auth_method",
            client_auth.private_key_jwt(),
            client_auth.private_key_jwt(alg="PS256"),
        ),
        (
            "token_endpoint_auth_method",
            client_auth.private_key_jwt(headers={"kid": "1"}),
            client_auth.private_key_jwt(headers={"kid": "2"}),
        ),
        ("read_token_response", read, read_otherwise),
        ("read_token_response", Named("token"), Named("accessToken")),
    ],
)
def test_cache_key_covers_functions(field: str, one: Any, other: Any) -> None:
    """Declarations that differ only in what their function does share no token; equal ones do."""
    assert key_of(declared(**{field: one})) != key_of(declared(**{field: other}))
    assert key_of(declared(**{field: one})) == key_of(declared(**{field: one}))


def test_cache_key_is_the_same_in_each_process() -> None:
    """The order in which a mapping was written changes nothing; nor does a second object with the same content."""
    forward = {"production": "https://a.example", "homologation": "https://h.example"}
    backward = dict(reversed(forward.items()))
    assert key_of(declared(environments=forward)) == key_of(declared(environments=backward))
    assert key_of(declared(token_endpoint_auth_method=Stable("x"))) == key_of(
        declared(token_endpoint_auth_method=Stable("x"))
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "other"},
        {"base_url": "https://other.example"},
        {"scope": "cob.read"},
        {"scope": None},
        {"headers": {"X-Tenant": "1"}},
        {"headers": {"X-Tenant": "2"}},
    ],
    ids=repr,
)
def test_cache_key_covers_the_client(changes: dict[str, Any]) -> None:
    """Another client_id, endpoint, scope or extra header is another token."""
    assert CLIENT.cache_key(SECRET) != CLIENT._replace(**changes).cache_key(SECRET)


def test_cache_key_covers_the_secret_and_not_what_changes_no_token() -> None:
    """A wrong secret finds no token; the order of scopes, the case of header names, and patience change nothing."""
    client = CLIENT._replace(headers={"X-Tenant": "1"})
    assert CLIENT.cache_key(SECRET) != CLIENT.cache_key(f"{SECRET}!")
    assert client.cache_key(SECRET) == client._replace(headers={"x-tenant": "1"}).cache_key(SECRET)
    assert CLIENT.cache_key(SECRET) == CLIENT._replace(scope="pix.read cob.read").cache_key(SECRET)
    assert CLIENT.cache_key(SECRET) == CLIENT._replace(timeout=1.0, max_wait=2.0, leeway=3.0).cache_key(SECRET)


def test_two_declarations_request_two_tokens() -> None:
    """In one cache, an auth object of each of two declarations that differ in their function requests its own token."""
    cache, found = MemoryTokenCache(), set[bytes]()
    for method in (with_audience, with_other_audience):
        cls = class_of(token_endpoint_auth_method=method)
        with Sandbox(providers=[cls.provider], client_id="both") as sandbox:
            cls(
                "both", SECRET, base_url="https://api.fifth.example", cache=cache, session=_redirected(sandbox)
            ).get_token()
            found |= {request.body.rpartition(b"=")[2] for request in sandbox.requests}
    assert found == {b"one", b"two"}


def _redirected(sandbox: Sandbox) -> Any:
    """Return a session that sends what is for the gateway to the sandbox."""
    import requests
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            url = request.url
            request.url = url.replace("https://api.fifth.example", sandbox.url)
            try:
                return super().send(request, *args, **kwargs)
            finally:
                request.url = url

    session = requests.Session()
    session.trust_env = False
    session.mount("https://", Adapter())
    return session


@pytest.mark.parametrize("auth_class", PROVIDERS, ids=lambda cls: cls.provider.name)
def test_declared_gateways_pass_their_own_checks(auth_class: Any, sandbox: Sandbox) -> None:
    """The four classes are declarations like any other, and their tokens are accepted by their API."""
    provider = auth_class.provider
    assert replace(provider) == provider
    assert CLIENTS[0].call(make(auth_class, sandbox), "GET", api_url(auth_class, sandbox)).status == 200
    assert BS2Auth.provider.identity != provider.identity or auth_class is BS2Auth
