"""Axia's introspect and revoke: typed answers, through every client, and revoked means forgotten."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from functools import partial
from io import BytesIO
from math import isfinite
from typing import Any

import anyio
import httpx
import pytest
import requests
from conftest import NO_TLS, Client, FakeClock, make
from hypothesis import given
from hypothesis import strategies as st
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from baas_auth_plugins import (
    AxiaAuth,
    BaaSAuthError,
    ConfigurationError,
    Introspection,
    InvalidClientError,
    InvalidTokenResponseError,
    MemoryTokenCache,
    NTXPayAuth,
    RateLimitError,
    Revocation,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

PATHS = {
    "introspect": "/v1/authentication/oauth/introspect",
    "revoke": "/v1/authentication/oauth/revoke",
}

both = pytest.mark.parametrize("question", ["introspect", "revoke"])


def ask(client: Client, auth: Any, question: str, token: Any = None, **options: Any) -> Any:
    """Introspect or revoke over a client that is opened for it."""
    if client.module is requests:
        with requests.Session() as session:
            session.trust_env = False
            return getattr(auth, question)(token, client=session)
    options = {"verify": NO_TLS, "trust_env": False} | options
    if client.backend is None:
        with client.module.Client(**options) as opened:
            return getattr(auth, question)(token, client=opened)

    async def aask() -> Any:
        async with client.module.AsyncClient(**options) as opened:
            return await getattr(auth, f"a{question}")(token, client=opened)

    return anyio.run(aask, backend=client.backend)


def answer(sandbox: Sandbox, question: Any, body: bytes | str, status: int = 200, **fields: Any) -> None:
    """Have the gateway answer the next question with this."""
    content = body.encode() if isinstance(body, str) else body
    sandbox.inject(Fault("body", question, status=status, body=content, **fields))


# -- what the page documents

ACTIVE = """{"active": true, "client_id": "axia_prod_abc123xyz", "token_type": "Bearer", "exp": 1710786400,
    "iat": 1710782800, "issued_at": "2024-03-15T10:00:00Z", "expires_at": "2024-03-15T11:00:00Z",
    "scope": "accounts:read accounts:write pix:send webhooks:manage"}"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            ACTIVE,
            Introspection(
                active=True,
                client_id="axia_prod_abc123xyz",
                token_type="Bearer",
                scopes=frozenset({"accounts:read", "accounts:write", "pix:send", "webhooks:manage"}),
                expires_at=1710786400.0,
                issued_at=1710782800.0,
            ),
        ),
        (
            '{"active": false, "reason": "Token expired on 2024-03-15T11:00:00Z"}',
            Introspection(active=False, reason="Token expired on 2024-03-15T11:00:00Z"),
        ),
        (
            '{"active": false, "reason": "Token was revoked"}',
            Introspection(active=False, reason="Token was revoked"),
        ),
        (
            '{"active": true, "issued_at": "2024-03-15T10:00:00Z", "expires_at": "2024-03-15T11:00:00Z"}',
            Introspection(active=True, issued_at=1710496800.0, expires_at=1710500400.0),
        ),
    ],
    ids=["active", "expired", "revoked", "times only as text"],
)
def test_the_documented_introspections_are_typed(
    client: Client, sandbox: Sandbox, body: str, expected: Introspection
) -> None:
    """Each sample on the page becomes an `Introspection`, times in epoch seconds."""
    answer(sandbox, "introspect", body)
    assert ask(client, make(AxiaAuth, sandbox), "introspect", "t0ken") == expected


def test_the_documented_revocation_is_typed(client: Client, sandbox: Sandbox) -> None:
    """The sample on the page becomes a `Revocation`."""
    body = {"status": "Token revoked successfully", "revoked_at": "2024-03-15T10:30:00Z", "token_id": "jti_xyz123"}
    answer(sandbox, "revoke", json.dumps(body))
    assert ask(client, make(AxiaAuth, sandbox), "revoke", "t0ken") == Revocation(
        "Token revoked successfully", 1710498600.0, "jti_xyz123"
    )


@both
def test_the_request_is_the_documented_one(client: Client, sandbox: Sandbox, question: str) -> None:
    """POST with Basic and a JSON content type, the token percent-encoded in the query, and no body."""
    ask(client, make(AxiaAuth, sandbox), question, "a/b+c=&d")
    request = sandbox.requests[-1]
    basic = b64encode(f"{sandbox.client_id}:{sandbox.client_secret}".encode()).decode()
    assert (request.method, request.path, request.body) == ("POST", PATHS[question], b"")
    assert request.query == "token=a%2Fb%2Bc%3D%26d"
    assert request.headers["authorization"] == f"Basic {basic}"
    assert request.headers["content-type"] == "application/json"


@both
def test_extra_headers_go_along(client: Client, sandbox: Sandbox, question: str) -> None:
    """`headers` apply to introspection and revocation as they do to token requests."""
    ask(client, make(AxiaAuth, sandbox, headers={"X-Tenant": "t1"}), question, "t0ken")
    assert sandbox.requests[-1].headers["x-tenant"] == "t1"


# -- on the cached token


def test_introspecting_without_a_token_takes_the_cached_one(client: Client, sandbox: Sandbox) -> None:
    """Without an argument, the cached token is introspected. If there is none, one is requested."""
    auth = make(AxiaAuth, sandbox)
    assert ask(client, auth, "introspect").active
    assert ask(client, auth, "introspect").client_id == sandbox.client_id
    assert sandbox.count("token") == 1


def test_revoking_forgets_the_token_everywhere(client: Client, sandbox: Sandbox) -> None:
    """After a revocation, the next call requests a token: of this object, and of any other with equal credentials."""
    cache = MemoryTokenCache()
    auth, twin = (make(AxiaAuth, sandbox, cache=cache) for _ in range(2))
    url = f"{sandbox.url}/v1/accounts"
    assert client.call(auth, "GET", url).status == client.call(twin, "GET", url).status == 200
    old = auth.get_token().access_token
    assert ask(client, auth, "revoke").status == "Token revoked successfully"
    assert client.call(twin, "GET", url).status == 200
    assert auth.get_token() is twin.get_token()
    assert auth.get_token().access_token != old
    assert [r.status for r in sandbox.requests if r.kind == "api"] == [200, 200, 200]
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("as_text", [True, False])
def test_revoking_a_token_given_by_hand_forgets_it_too(client: Client, sandbox: Sandbox, as_text: bool) -> None:
    """The cached token, passed as a `Token` or as text, is forgotten like any other; a foreign one is not."""
    auth = make(AxiaAuth, sandbox)
    token = auth.get_token()
    assert ask(client, auth, "revoke", "some-other-token").token_id is None
    assert auth.get_token() is token
    ask(client, auth, "revoke", token.access_token if as_text else token)
    assert auth.get_token().access_token != token.access_token
    assert not ask(client, auth, "introspect", token).active


def test_revoking_twice_is_no_error(client: Client, sandbox: Sandbox) -> None:
    """A 404 means that the token is revoked already, and it is forgotten all the same."""
    auth = make(AxiaAuth, sandbox)
    token = auth.get_token()
    sandbox.revoke_all()
    assert ask(client, auth, "revoke") == Revocation("Token not found or already revoked", None, None)
    assert sandbox.requests[-1].status == 404
    assert auth.get_token() is not token


def test_there_must_be_a_token_to_revoke(client: Client, sandbox: Sandbox) -> None:
    """Without a cached token, none is requested only to be revoked."""
    with pytest.raises(ConfigurationError, match="token"):
        ask(client, make(AxiaAuth, sandbox), "revoke")
    assert sandbox.requests == []


def test_a_dead_token_is_not_the_cached_one(sandbox: Sandbox, clock: FakeClock) -> None:
    """An expired token in the cache is not introspected; a new one is."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    clock.advance(3600)
    assert auth.introspect().active
    assert sandbox.count("token") == 2


@both
def test_no_client_is_needed(sandbox: Sandbox, question: str) -> None:
    """Without `client`, the auth object's own connections serve, sync and async alike."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    first = getattr(auth, question)()
    auth.get_token()
    second = anyio.run(getattr(auth, f"a{question}"))
    assert type(first) is type(second)
    assert sandbox.count(question) == 2


def test_the_session_of_the_auth_object_is_used(sandbox: Sandbox) -> None:
    """Where a `session` was given and no `client`, questions travel over it as token requests do."""
    with requests.Session() as session:
        session.headers["User-Agent"] = "registered/1.0"
        make(AxiaAuth, sandbox, session=session).introspect()
    assert [r.headers["user-agent"] for r in sandbox.requests] == ["registered/1.0", "registered/1.0"]


# -- when it goes wrong


@both
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, TokenEndpointError),
        (401, InvalidClientError),
        (403, TokenEndpointError),
        (429, RateLimitError),
        (500, TokenEndpointUnavailableError),
        (503, TokenEndpointUnavailableError),
        (307, InvalidTokenResponseError),
    ],
)
@pytest.mark.pairwise
def test_refusals_are_typed_and_the_token_is_kept(
    client: Client, clock: FakeClock, sandbox: Sandbox, question: Any, status: int, kind: type[TokenEndpointError]
) -> None:
    """Each status has the error it has at the token endpoint, and a failed revocation drops nothing."""
    auth = make(AxiaAuth, sandbox)
    token = auth.get_token()
    sandbox.inject(Fault("status", question, status=status, times=-1, headers={"Location": "http://127.0.0.1:9/"}))
    with pytest.raises(kind) as caught:
        ask(client, auth, question)
    assert (caught.value.provider, caught.value.status_code) == ("axia", status)
    assert auth.get_token() is token


@pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # httpx's, when it is not read to its end
@both
@pytest.mark.parametrize("kind", ["drop", "truncate", "garbage", "empty", "huge"])
@pytest.mark.pairwise
def test_broken_answers_are_typed(client: Client, clock: FakeClock, sandbox: Sandbox, question: Any, kind: Any) -> None:
    """A lost connection, half an answer, HTML, nothing or 50 MiB: a `TokenEndpointError`, in every client."""
    auth = make(AxiaAuth, sandbox)
    token = auth.get_token()
    sandbox.inject(Fault(kind, question, times=-1))
    with pytest.raises(TokenEndpointError) as caught:
        ask(client, auth, question)
    assert isinstance(caught.value, InvalidTokenResponseError | TokenEndpointUnavailableError)
    assert caught.value.provider == "axia"
    assert auth.get_token() is token


@both
def test_an_outage_is_retried(client: Client, clock: FakeClock, sandbox: Sandbox, question: Any) -> None:
    """One bad moment costs a retry, not the call."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.inject(Fault("status", question, status=503))
    sandbox.inject(Fault("drop", question))
    assert ask(client, auth, question) is not None
    assert sandbox.count(question) == 3


def test_a_client_that_follows_redirects_does_not_here(client: Client, sandbox: Sandbox) -> None:
    """A redirect would carry the token on in its query: it is refused, whatever the client is set to."""
    if client.module is requests:
        pytest.skip("the session's adapter is called, which follows nothing")
    auth = make(AxiaAuth, sandbox)
    token = auth.get_token()
    sandbox.inject(Fault("redirect", "introspect", headers={"Location": f"{sandbox.url}/v1/elsewhere"}))
    with pytest.raises(InvalidTokenResponseError):
        ask(client, auth, "introspect", token, follow_redirects=True)
    assert sandbox.count("api") == 0


@both
def test_a_malformed_redirect_is_typed(client: Client, clock: FakeClock, sandbox: Sandbox, question: Any) -> None:
    """A client looks at a Location even where it does not follow it: one that makes no sense is the gateway's fault."""
    sandbox.inject(Fault("redirect", question, times=-1, headers={"Location": "https:evil"}))
    with pytest.raises(TokenEndpointError):
        ask(client, make(AxiaAuth, sandbox), question, "t0ken")


@both
@pytest.mark.parametrize("token", ["", b"bytes", 7, "surrogate\udc80"], ids=["empty", "bytes", "number", "surrogate"])
@pytest.mark.pairwise
def test_what_is_no_token_is_a_configuration_error(client: Client, sandbox: Sandbox, question: str, token: Any) -> None:
    """A token given by hand must be text that can be sent."""
    with pytest.raises(ConfigurationError, match="token") as caught:
        ask(client, make(AxiaAuth, sandbox), question, token)
    assert "surrogate" not in str(caught.value)
    assert sandbox.requests == []


@both
def test_a_token_too_long_for_a_url_is_a_typed_error(client: Client, sandbox: Sandbox, question: str) -> None:
    """What a client or the gateway would choke on is one of the package's errors."""
    with pytest.raises(BaaSAuthError):
        ask(client, make(AxiaAuth, sandbox, max_wait=1), question, "A" * 70_000)


@both
def test_the_wrong_client_is_a_configuration_error(sandbox: Sandbox, question: str) -> None:
    """A sync client for `await`, an async one without, or something else altogether."""
    auth = make(AxiaAuth, sandbox)
    opened = httpx.AsyncClient(verify=NO_TLS)
    for wrong in (opened, object(), httpx.Client, "requests"):
        with pytest.raises(ConfigurationError, match="client must be"):
            getattr(auth, question)("t0ken", client=wrong)
    with httpx.Client(verify=NO_TLS) as sync, requests.Session() as session:
        for wrong in (sync, session, object()):
            with pytest.raises(ConfigurationError, match="client must be"):
                anyio.run(partial(getattr(auth, f"a{question}"), "t0ken", client=wrong))
    assert sandbox.requests == []


@both
def test_a_callable_secret_that_raises_is_typed(client: Client, sandbox: Sandbox, question: str) -> None:
    """A vault that is down is the same error here as at a token request."""

    def vault() -> str:
        raise OSError("down")

    with pytest.raises(TokenEndpointUnavailableError, match="client_secret"):
        ask(client, make(AxiaAuth, sandbox, client_secret=vault), question, "t0ken")
    assert sandbox.requests == []


def test_only_gateways_that_have_it_offer_it() -> None:
    """NTX Pay, Avista and BS2 document neither endpoint."""
    assert not hasattr(NTXPayAuth, "introspect")
    assert not hasattr(NTXPayAuth, "arevoke")


# -- answers are not trusted


class Canned(BaseAdapter):
    """Gives one answer to all, as a gateway over requests would."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        super().__init__()
        self.body = body
        self.status = status

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.request, response.url = self.status, request, request.url or ""
        response.raw = HTTPResponse(body=BytesIO(self.body), preload_content=False)
        return response

    def close(self) -> None:
        pass


def canned(body: bytes, status: int = 200) -> requests.Session:
    session = requests.Session()
    session.mount("https://", Canned(body, status))
    return session


texts = st.text(max_size=30) | st.text(max_size=10).map(lambda text: f"\x1b[31m{text}\x07")
moments = st.sampled_from(
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "2024-03-15", "NaT", 10**400, -(10**30), 1e308, "1e400"]
)
scalars: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers() | st.floats() | texts | moments
members = [
    "client_id",
    "token_type",
    "exp",
    "iat",
    "issued_at",
    "expires_at",
    "scope",
    "reason",
    "status",
    "revoked_at",
    "token_id",
]
objects = st.fixed_dictionaries({}, optional={name: scalars | st.lists(scalars, max_size=2) for name in members})
bodies = (
    st.tuples(objects, st.booleans() | scalars).map(lambda pair: json.dumps({**pair[0], "active": pair[1]}).encode())
    | objects.map(lambda members: json.dumps({**members, "active": True}).encode())
    | st.binary(max_size=60)
)


@both
@given(body=bodies)
def test_any_answer_is_a_result_or_a_typed_error(question: str, body: bytes) -> None:
    """Whatever JSON or bytes come: finite times, printable text, or an `InvalidTokenResponseError`."""
    auth = AxiaAuth("id", "secret", cache=MemoryTokenCache())
    try:
        result = getattr(auth, question)("t0ken", client=canned(body))
    except InvalidTokenResponseError:
        return
    if question == "revoke":
        times, texts = [result.revoked_at], [result.status, result.token_id]
    else:
        assert isinstance(result.active, bool)
        times = [result.expires_at, result.issued_at]
        texts = [result.client_id, result.token_type, result.reason, *result.scopes]
    assert all(time is None or (isinstance(time, float) and isfinite(time)) for time in times)
    assert all(text is None or (isinstance(text, str) and text.isprintable()) for text in texts)


def test_the_answer_does_not_give_the_token_back(sandbox: Sandbox, client: Client) -> None:
    """A gateway that quotes the token or the credentials in its answer does not get them into the results."""
    auth = make(AxiaAuth, sandbox, client_secret="hush=hush/hush")
    sandbox.rotate_secret("hush=hush/hush")
    answer(sandbox, "introspect", json.dumps({"active": False, "reason": "t0ken/x= of hush=hush/hush is dead"}))
    answer(sandbox, "revoke", json.dumps({"status": "t0ken/x= is gone", "token_id": "t0ken/x="}))
    said = repr(ask(client, auth, "introspect", "t0ken/x=")) + repr(ask(client, auth, "revoke", "t0ken/x="))
    assert "t0ken" not in said
    assert "hush" not in said


@pytest.mark.parametrize("question", ["introspect", "revoke"])
def test_provider_without_the_endpoint(question: str) -> None:
    """Where the provider declares no such endpoint, nothing is sent."""

    class Bare(AxiaAuth):
        provider = replace(AxiaAuth.provider, introspection_endpoint=None, revocation_endpoint=None)

    def refuse(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"asked {request.url.host}")

    with httpx.Client(transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(ConfigurationError, match="no such endpoint"):
            getattr(Bare("id", "your-client-secret"), question)("t0ken", client=client)
