"""The sandbox is as strict as the gateways' pages, and fails as it is told to."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from joserfc import jwt
from joserfc.jwk import KeySet

from baas_auth_plugins._provider import Provider
from baas_auth_plugins.sandbox import Fault, Sandbox

SECRET = "your-client-secret"
BASIC = "Basic eW91ci1jbGllbnQtaWQ6eW91ci1jbGllbnQtc2VjcmV0"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
INTROSPECT = "/v1/authentication/oauth/introspect"
REVOKE = "/v1/authentication/oauth/revoke"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
COMPACT_JWT = r"[\w-]+\.[\w-]+\.[\w-]+"


class Clock:
    """Epoch seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1_710_496_800.0  # 2024-03-15T10:00:00Z

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Sent:
    """A request to make."""

    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    method: str = "POST"


@dataclass(frozen=True)
class Answer:
    """A response, read."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.text)


AXIA = Sent("/v1/authentication/oauth/access-token", {"Authorization": BASIC, "Content-Type": JSON})
AVISTA = Sent(
    "/oauth/token",
    {"Content-Type": JSON},
    b'{"clientId": "your-client-id", "clientSecret": "your-client-secret"}',
)
BS2 = Sent(
    "/auth/oauth/v2/token",
    {"Authorization": BASIC, "Content-Type": FORM},
    b"grant_type=client_credentials&scope=cob.write+cob.read",
)
TOKEN_REQUESTS = {"axia": AXIA, "avista": AVISTA, "bs2": BS2}
API_PATHS = {"axia": "/v1/accounts", "avista": "/cob/abc123", "bs2": "/pix/direto/forintegration/v1/cobv/1"}

each_gateway = pytest.mark.parametrize("name", TOKEN_REQUESTS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as sandbox:
        yield sandbox


def connect(sandbox: Sandbox) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=10)


def plug(sandbox: Sandbox) -> socket.socket:
    parts = urlsplit(sandbox.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def exchange(connection: http.client.HTTPConnection, sent: Sent) -> Answer:
    connection.request(sent.method, sent.target, sent.body, dict(sent.headers))
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read().decode())


def send(sandbox: Sandbox, sent: Sent) -> Answer:
    with closing(connect(sandbox)) as connection:
        return exchange(connection, sent)


def mint(sandbox: Sandbox, name: str = "axia") -> str:
    answer = send(sandbox, TOKEN_REQUESTS[name])
    assert answer.status == 200, answer.text
    token: str = answer.json["access_token"]
    return token


def bearer(token: str, target: str = API_PATHS["axia"], **headers: str) -> Sent:
    return Sent(target, {"Authorization": f"Bearer {token}", **headers}, method="GET")


def status(sandbox: Sandbox, token: str, target: str = API_PATHS["axia"]) -> int:
    return send(sandbox, bearer(token, target)).status


def inspect(sandbox: Sandbox, endpoint: str, token: str) -> Answer:
    return send(sandbox, Sent(f"{endpoint}?token={quote(token)}", {"Authorization": BASIC}))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


def verified(token: str) -> jwt.Token:
    keys = KeySet.import_key_set(Sandbox.jwks())
    return jwt.decode(token, keys, algorithms=["RS256"])


def with_headers(sent: Sent, **headers: str | None) -> Sent:
    changed = {**sent.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return replace(sent, headers={name: value for name, value in changed.items() if value is not None})


def basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


# -- token requests


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "axia",
            {
                "token_type": "Bearer",
                "expires_in": 3600,
                "issued_at": "2024-03-15T10:00:00Z",
                "scope": "accounts:read accounts:write pix:send webhooks:manage",
            },
        ),
        ("avista", {"token_type": "Bearer", "expires_in": 3600, "scope": "pix:read pix:write balance:read"}),
        ("bs2", {"token_type": "Bearer", "expires_in": 300, "scope": "cob.write cob.read"}),
    ],
)
def test_documented_request_gets_documented_response(sandbox: Sandbox, name: str, expected: dict[str, Any]) -> None:
    """The request on a gateway's page is answered with the fields on that page, and no others."""
    answer = send(sandbox, TOKEN_REQUESTS[name])
    content = answer.json
    token = content.pop("access_token")
    assert (answer.status, content) == (200, expected)
    assert re.fullmatch(UUID if name == "bs2" else COMPACT_JWT, token)
    assert answer.headers["Content-Type"] == JSON


@pytest.mark.parametrize("name", ["axia", "avista"])
def test_jwt_verifies_against_jwks(sandbox: Sandbox, name: str) -> None:
    """A JWT is signed with RS256 by the published key and says what its response says."""
    token = verified(mint(sandbox, name))
    assert token.header["alg"] == "RS256"
    assert token.claims["sub"] == token.claims["client_id"] == "your-client-id"
    assert (token.claims["iat"], token.claims["exp"]) == (1_710_496_800, 1_710_500_400)
    assert token.claims.keys() == {"sub", "client_id", "iat", "exp", "scope", "jti"}


def test_jwks_is_public() -> None:
    """The key set holds nothing of the private key."""
    (key,) = Sandbox.jwks()["keys"]
    assert key.keys() == {"kty", "kid", "alg", "use", "n", "e"}


@pytest.mark.parametrize(
    ("name", "sent", "expected"),
    [
        pytest.param(name, change, expected, id=f"{name}-{label}")
        for name, expected, changes in [
            (
                "axia",
                {"error": "E00100", "message": "Invalid request format"},
                {
                    "body": replace(AXIA, body=b"{}"),
                    "query": replace(AXIA, target=AXIA.target + "?grant_type=client_credentials"),
                    "form content type": with_headers(AXIA, Content_Type=FORM),
                    "charset": with_headers(AXIA, Content_Type=JSON + "; charset=utf-8"),
                    "no content type": with_headers(AXIA, Content_Type=None),
                    "cookie": with_headers(AXIA, Cookie="a=b"),
                },
            ),
            (
                "avista",
                {"statusCode": 400},
                {
                    "extra field": replace(AVISTA, body=AVISTA.body[:-1] + b', "scope": "pix:read"}'),
                    "missing field": replace(AVISTA, body=b'{"clientId": "your-client-id"}'),
                    "number": replace(AVISTA, body=b'{"clientId": "your-client-id", "clientSecret": 1}'),
                    "array": replace(AVISTA, body=b'["clientId", "clientSecret"]'),
                    "not JSON": replace(AVISTA, body=b"clientId=your-client-id"),
                    "not UTF-8": replace(AVISTA, body=b'{"clientId": "\xff", "clientSecret": ""}'),
                    "empty": replace(AVISTA, body=b""),
                    "form content type": with_headers(AVISTA, Content_Type=FORM),
                    "authorization": with_headers(AVISTA, Authorization=BASIC),
                    "query": replace(AVISTA, target="/oauth/token?a=b"),
                    "language": with_headers(AVISTA, Accept_Language="pt-BR"),
                },
            ),
            (
                "bs2",
                {"error": "invalid_request"},
                {
                    "no scope": replace(BS2, body=b"grant_type=client_credentials"),
                    "extra field": replace(BS2, body=BS2.body + b"&client_id=your-client-id"),
                    "repeated field": replace(BS2, body=BS2.body + b"&scope=pix.read"),
                    "no form": replace(BS2, body=b"grant_type"),
                    "not ASCII": replace(BS2, body=BS2.body + "é".encode()),
                    "JSON content type": with_headers(BS2, Content_Type=JSON),
                    "query": replace(BS2, target=BS2.target + "?" + BS2.body.decode(), body=b""),
                    "trace": with_headers(BS2, Traceparent="00"),
                },
            ),
        ]
        for label, change in changes.items()
    ],
)
def test_undocumented_token_request_is_refused(
    sandbox: Sandbox, name: str, sent: Sent, expected: dict[str, Any]
) -> None:
    """Whatever a page does not show is a 400 in that gateway's words, and mints nothing."""
    answer = send(sandbox, sent)
    assert answer.status == 400
    assert answer.json.items() >= expected.items()
    (recorded,) = sandbox.requests
    assert (recorded.kind, recorded.provider, recorded.status) == ("token", name, 400)


def test_chunked_token_request_is_refused(sandbox: Sandbox) -> None:
    """A token request without a length is refused, whatever its body."""
    with closing(connect(sandbox)) as connection:
        connection.request("POST", AVISTA.target, iter([AVISTA.body]), AVISTA.headers, encode_chunked=True)
        assert connection.getresponse().status == 400


@each_gateway
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_token_endpoint_takes_post_only(sandbox: Sandbox, name: str, method: str) -> None:
    """Another method is a 405 that names the right one."""
    answer = send(sandbox, replace(TOKEN_REQUESTS[name], method=method))
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


@each_gateway
def test_custom_and_client_headers_are_accepted(sandbox: Sandbox, name: str) -> None:
    """A registered User-Agent and the documented custom headers do no harm."""
    sent = with_headers(
        TOKEN_REQUESTS[name], User_Agent="acme/1.0", Accept="*/*", X_SSL_Client_Cert="MII", Connection="close"
    )
    assert send(sandbox, sent).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        with_headers(AXIA, Authorization=basic("your-client-id:wrong")),
        replace(AVISTA, body=AVISTA.body.replace(b"secret", b"wrong")),
        with_headers(BS2, Authorization=basic("another:your-client-secret")),
    ],
    ids=TOKEN_REQUESTS,
)
def test_wrong_credentials_get_the_documented_401(sandbox: Sandbox, sent: Sent) -> None:
    """A wrong client_id or secret is a 401 in the gateway's own words, which repeat nothing of it."""
    answer = send(sandbox, sent)
    assert answer.status == 401
    assert answer.json in (
        {"error": "E00101", "message": "Invalid client credentials", "timestamp": "2024-03-15T10:00:00Z"},
        {"statusCode": 401, "message": "Unauthorized"},
        {"error": "invalid_client", "error_description": "The given client credentials were not valid"},
    )
    assert answer.headers["WWW-Authenticate"] == ("Basic" if sent.target == BS2.target else None)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        BASIC.replace("Basic", "basic"),
        BASIC.replace("Basic ", "Basic  "),
        BASIC + "=",
        BASIC[:-4],
        "Basic",
        "Bearer abc",
        basic("your-client-id"),
        basic("your-client-id::your-client-secret"),
        f"Basic {b64encode(b'your-client-id:' + bytes([0xE9])).decode()}",
    ],
)
@pytest.mark.parametrize("sent", [AXIA, BS2], ids=["axia", "bs2"])
def test_basic_is_exact(sandbox: Sandbox, sent: Sent, authorization: str | None) -> None:
    """Only the canonical encoding of the very credentials opens a Basic endpoint."""
    assert send(sandbox, with_headers(sent, Authorization=authorization)).status == 401


@pytest.mark.parametrize("secret", ["sécrêt €", "a:b", "a+b%20c&d=e"])
@each_gateway
def test_secret_is_compared_raw_as_utf8(sandbox: Sandbox, name: str, secret: str) -> None:
    """Any text will do as a secret, unescaped; the old one stops working when it is rotated."""
    old = TOKEN_REQUESTS[name]
    body = json.dumps({"clientId": "your-client-id", "clientSecret": secret}).encode()
    new = with_headers(old, Authorization=basic(f"your-client-id:{secret}"))
    sandbox.rotate_secret(secret)
    assert send(sandbox, old).status == 401
    assert send(sandbox, replace(old, body=body) if name == "avista" else new).status == 200


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ("grant_type=client_credentials&scope=cob.read", 200, None),
        ("scope=dict.read%20dict.write&grant_type=client_credentials", 200, None),
        ("grant_type=client_credentials&scope=cob.delete", 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=cob.read+openid", 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=", 400, "invalid_scope"),
        ("grant_type=client_credentials&scope=cob.read++pix.read", 400, "invalid_scope"),
        ("grant_type=password&scope=cob.read", 400, "unsupported_grant_type"),
    ],
)
def test_bs2_knows_its_scopes(sandbox: Sandbox, form: str, status: int, error: str | None) -> None:
    """BS2 grants the scopes asked for, if it has them all."""
    answer = send(sandbox, replace(BS2, body=form.encode()))
    assert (answer.status, answer.json.get("error")) == (status, error)


@pytest.mark.parametrize(("name", "limit"), [("axia", 100), ("bs2", 10)])
def test_rate_limit_is_a_sliding_window(sandbox: Sandbox, clock: Clock, name: str, limit: int) -> None:
    """One request too many within 60 seconds is a 429 that says how long to wait, and that is true."""
    with closing(connect(sandbox)) as connection:
        sent = TOKEN_REQUESTS[name]
        assert {exchange(connection, sent).status for _ in range(limit)} == {200}
        clock.now += 29.5
        answer = exchange(connection, sent)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "31")
        if name == "axia":
            message = "Rate limit exceeded: max 100 token requests per minute"
            assert answer.json == {"error": "E00102", "message": message, "retry_after": 31}
        clock.now += 30.4
        assert exchange(connection, sent).headers["Retry-After"] == "1"
        clock.now += 0.1
        assert exchange(connection, sent).status == 200


def test_rate_limit_counts_by_client_whatever_its_secret(sandbox: Sandbox) -> None:
    """A wrong secret uses up the limit of the client it names, and of no other."""
    wrong = [with_headers(BS2, Authorization=basic(f"{name}:wrong")) for name in ("another", "your-client-id")]
    assert {send(sandbox, wrong[0]).status for _ in range(10)} == {401}
    assert send(sandbox, BS2).status == 200
    assert {send(sandbox, wrong[1]).status for _ in range(9)} == {401}
    assert send(sandbox, BS2).status == 429


def test_rate_limits_can_be_lifted(sandbox: Sandbox) -> None:
    """Without enforcement there is no 429."""
    sandbox.enforce_rate_limits = False
    assert {send(sandbox, BS2).status for _ in range(11)} == {200}


def test_hundred_threads_get_distinct_tokens() -> None:
    """A hundred simultaneous requests are all answered, with tokens that differ and one key."""
    with Sandbox(enforce_rate_limits=False) as sandbox:
        barrier = threading.Barrier(100)

        def fetch(number: int) -> str:
            barrier.wait()
            return mint(sandbox, list(TOKEN_REQUESTS)[number % 3])

        with ThreadPoolExecutor(100) as pool:
            tokens = list(pool.map(fetch, range(100)))
        assert len(set(tokens)) == 100
        assert sandbox.count("token") == len(sandbox.requests) == 100
        assert sandbox.count("token", "bs2") == 33
        assert all(record.finished is not None for record in sandbox.requests)


# -- the gateways served


def test_shared_path_is_put_down_to_the_gateway_served() -> None:
    """NTX Pay's token requests are told from Avista's where it alone is served; the rest is not found."""
    with Sandbox(providers=("ntxpay",)) as sandbox:
        token = mint(sandbox, "avista")
        assert send(sandbox, bearer(token, "/cob/abc123")).json["provider"] == "ntxpay"
        assert send(sandbox, AXIA).status == 404
        assert [(record.kind, record.provider) for record in sandbox.requests] == [
            ("token", "ntxpay"),
            ("api", "ntxpay"),
            ("unknown", None),
        ]


@pytest.mark.parametrize(
    ("method", "scope", "headers", "body", "expected"),
    [
        ("client_secret_basic", "assigned", {"Authorization": BASIC}, b"grant_type=client_credentials", 200),
        ("client_secret_basic", "required", {"Authorization": BASIC}, BS2.body + b"+anything", 200),
        (
            "client_secret_post",
            "assigned",
            {},
            b"grant_type=client_credentials&client_id=your-client-id&client_secret=your-client-secret",
            200,
        ),
        ("client_secret_post", "assigned", {"Authorization": BASIC}, b"grant_type=client_credentials", 400),
        ("private_key_jwt", "assigned", {}, b"", 501),
    ],
)
def test_fifth_gateway_is_served_from_its_declaration(
    method: str, scope: Any, headers: dict[str, str], body: bytes, expected: int
) -> None:
    """A gateway that uses a known client authentication method needs no code; an unknown one is a 501."""
    fifth = Provider(
        "fifth",
        "FIFTH",
        {"production": "https://fifth.example"},
        "/token",
        method,
        scope,
        default_expires_in=90,
    )
    with Sandbox(providers=(fifth, "axia")) as sandbox:
        answer = send(sandbox, Sent("/token", {"Content-Type": FORM, **headers}, body))
        assert answer.status == expected
        if expected == 200:
            assert answer.json["expires_in"] == 90
            assert send(sandbox, bearer(answer.json["access_token"], "/anything")).json["provider"] == "fifth"


def test_unknown_gateway_is_refused() -> None:
    """Asking for a gateway that is not declared names those that are."""
    with pytest.raises(ValueError, match="no gateway is called 'acme'; there are axia"):
        Sandbox(providers=("acme",))


# -- the APIs


@each_gateway
def test_api_echoes_what_came_and_no_credentials(sandbox: Sandbox, name: str) -> None:
    """An API answers with the request it got, to the byte, and without the token."""
    token = mint(sandbox, name)
    sent = bearer(token, API_PATHS[name] + "?a=1&b=%20")
    answer = send(sandbox, replace(sent, method="PUT", body=b"{}\n"))
    expected = {
        "provider": name,
        "method": "PUT",
        "path": API_PATHS[name],
        "query": "a=1&b=%20",
        "body": "{}\n",
        "body_length": 3,
        "body_sha256": "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356",
    }
    assert answer.json.items() >= expected.items()
    assert token not in answer.text


@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_api_reads_chunked_bodies(sandbox: Sandbox, size: int) -> None:
    """A body in chunks arrives whole, and the connection stays in step."""
    token = mint(sandbox)
    with requests.Session() as session:
        for _ in range(2):
            response = session.post(
                f"{sandbox.url}/v1/pix/payment",
                data=iter([b"x" * size, b"end"]),
                headers={"Authorization": f"Bearer {token}"},
            )
            assert response.json()["body_length"] == size + 3
            assert response.json()["body"].endswith("end")


def test_chunk_extensions_and_trailers_are_skipped(sandbox: Sandbox) -> None:
    """What RFC 9112 allows around chunks is taken neither for the body nor for the next request."""
    chunked = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: 1\r\nB: 2\r\n\r\n"
    with plug(sandbox) as raw:
        raw.sendall(chunked + b"GET /y HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert raw.makefile("rb").read().count(b"HTTP/1.1 401 ") == 2
    assert [(record.path, record.body) for record in sandbox.requests] == [("/x", b"abc"), ("/y", b"")]


@pytest.mark.parametrize("framing", ["Content-Length: x", "Content-Length: -1", "Transfer-Encoding: chunked"])
def test_broken_framing_is_a_400(sandbox: Sandbox, framing: str) -> None:
    """A request whose body cannot be told from what follows is refused and its connection closed."""
    with plug(sandbox) as raw:
        raw.sendall(f"POST /x HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\nnonsense\r\n".encode())
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
    assert sandbox.requests == []


def test_head_has_no_body_and_absolute_targets_work(sandbox: Sandbox) -> None:
    """HEAD leaves the connection in step, and a proxy's absolute target is that path."""
    token = mint(sandbox)
    with closing(connect(sandbox)) as connection:
        assert exchange(connection, replace(bearer(token), method="HEAD")).text == ""
        answer = exchange(connection, bearer(token, "http://api.example/v1/accounts?a=b"))
    assert (answer.json["path"], answer.json["query"]) == ("/v1/accounts", "a=b")


@pytest.mark.parametrize("path", ["/", "/anything", "/v2/pix", "/oauth/tokens"])
@each_gateway
def test_other_paths_take_any_gateways_token(sandbox: Sandbox, name: str, path: str) -> None:
    """A path that is no gateway's own is an API of all of them."""
    answer = send(sandbox, bearer(mint(sandbox, name), path))
    assert (answer.status, answer.json["provider"]) == (200, name)


@pytest.mark.parametrize(
    ("name", "why", "expected"),
    [
        ("axia", "missing", {"error": "E00101", "message": "Token not provided"}),
        ("axia", "invalid", {"error": "E00101", "message": "Invalid token"}),
        (
            "axia",
            "expired",
            {
                "error": "E00101",
                "message": "Token has expired",
                "error_description": "The access token is no longer valid. Please request a new token.",
            },
        ),
        ("avista", "missing", {"statusCode": 401, "message": "Token not provided"}),
        ("avista", "invalid", {"statusCode": 401, "message": "Invalid token"}),
        ("avista", "expired", {"statusCode": 401, "message": "Expired token"}),
        ("bs2", "missing", {"error": "invalid_token", "error_description": "Token not provided"}),
        ("bs2", "invalid", {"error": "invalid_token", "error_description": "Invalid token"}),
        ("bs2", "expired", {"error": "invalid_token", "error_description": "Expired token"}),
    ],
)
def test_api_401_speaks_the_gateways_language(
    sandbox: Sandbox, clock: Clock, name: str, why: str, expected: dict[str, Any]
) -> None:
    """Without a valid token an API answers 401 with a Bearer challenge and that gateway's body."""
    token = mint(sandbox, name)
    clock.now += 3600 if why == "expired" else 0
    sent = {
        "missing": Sent(API_PATHS[name], {}, method="GET"),
        "invalid": bearer(token + "x", API_PATHS[name]),
        "expired": bearer(token, API_PATHS[name]),
    }[why]
    answer = send(sandbox, sent)
    content = answer.json
    content.pop("timestamp", None)
    assert (answer.status, answer.headers["WWW-Authenticate"], content) == (401, "Bearer", expected)


@each_gateway
def test_token_lives_exactly_as_long_as_it_says(sandbox: Sandbox, clock: Clock, name: str) -> None:
    """A token holds until expires_in seconds have passed, and no longer."""
    token = mint(sandbox, name)
    clock.now += (300 if name == "bs2" else 3600) - 0.001
    assert status(sandbox, token, API_PATHS[name]) == 200
    clock.now += 0.001
    assert status(sandbox, token, API_PATHS[name]) == 401


@pytest.mark.parametrize(("expires_in", "shown"), [(2, "2"), (2.0, "2"), (0.5, "0.5")])
def test_expires_in_is_overridden(sandbox: Sandbox, clock: Clock, expires_in: float, shown: str) -> None:
    """An assigned lifetime holds for the next token, and is an integer in JSON where it is one."""
    sandbox.expires_in = expires_in
    answer = send(sandbox, AXIA)
    assert f'"expires_in": {shown},' in answer.text
    clock.now += expires_in
    assert status(sandbox, answer.json["access_token"]) == 401


@pytest.mark.parametrize("issuer", TOKEN_REQUESTS)
@pytest.mark.parametrize("owner", TOKEN_REQUESTS)
def test_a_gateways_api_takes_its_own_tokens_only(sandbox: Sandbox, issuer: str, owner: str) -> None:
    """Another gateway's token is a 401."""
    expected = 200 if issuer == owner else 401
    assert status(sandbox, mint(sandbox, issuer), API_PATHS[owner]) == expected
    assert sandbox.requests[-1].provider == owner


@each_gateway
def test_revoke_all_ends_every_token(sandbox: Sandbox, name: str) -> None:
    """Tokens issued before are refused; one issued afterwards is not."""
    token = mint(sandbox, name)
    sandbox.revoke_all()
    assert status(sandbox, token) == 401
    assert status(sandbox, mint(sandbox, name), API_PATHS[name]) == 200


@pytest.mark.parametrize(("single", "expected"), [(True, 401), (False, 200)])
def test_new_token_may_end_the_one_before(sandbox: Sandbox, single: bool, expected: int) -> None:
    """With single_active_token a new token revokes that gateway's previous one and no other's."""
    sandbox.single_active_token = single
    axia, first, second = mint(sandbox, "axia"), mint(sandbox, "bs2"), mint(sandbox, "bs2")
    assert [status(sandbox, token, "/x") for token in (first, second, axia)] == [expected, 200, 200]


# -- Axia's introspection and revocation


def test_introspection_tells_the_state_of_a_token(sandbox: Sandbox, clock: Clock) -> None:
    """Active, expired, revoked and unknown tokens are described as on Axia's page."""
    token, revoked = mint(sandbox), mint(sandbox)
    assert inspect(sandbox, INTROSPECT, token).json == {
        "active": True,
        "client_id": "your-client-id",
        "token_type": "Bearer",
        "exp": 1_710_500_400,
        "iat": 1_710_496_800,
        "issued_at": "2024-03-15T10:00:00Z",
        "expires_at": "2024-03-15T11:00:00Z",
        "scope": "accounts:read accounts:write pix:send webhooks:manage",
    }
    inspect(sandbox, REVOKE, revoked)
    clock.now += 3600
    for inactive, reason in [
        (token, "Token expired on 2024-03-15T11:00:00Z"),
        (revoked, "Token was revoked"),
        ("unknown", "Token not found"),
        (mint(sandbox, "bs2"), "Token not found"),
    ]:
        answer = inspect(sandbox, INTROSPECT, inactive)
        assert (answer.status, answer.json) == (200, {"active": False, "reason": reason})


def test_revocation_ends_a_token_once(sandbox: Sandbox) -> None:
    """A revoked token is refused by the API, and revoking it again is the documented 404."""
    token, other = mint(sandbox), mint(sandbox)
    first, second = inspect(sandbox, REVOKE, token), inspect(sandbox, REVOKE, token)
    assert first.json == {
        "status": "Token revoked successfully",
        "revoked_at": "2024-03-15T10:00:00Z",
        "token_id": verified(token).claims["jti"],
    }
    assert second.status == 404
    assert second.json == {"error": "E00103", "message": "Token not found or already revoked"}
    assert (status(sandbox, token), status(sandbox, other)) == (401, 200)


@pytest.mark.parametrize("endpoint", [INTROSPECT, REVOKE])
@pytest.mark.parametrize(
    ("query", "change", "expected"),
    [
        ("?token=x&token=y", {}, 400),
        ("?token=x&hint=y", {}, 400),
        ("?token=", {}, 400),
        ("", {}, 400),
        ("?token=x", {"Content_Type": FORM}, 400),
        ("?token=x", {"Cookie": "a=b"}, 400),
        ("?token=x", {"Authorization": None}, 401),
        ("?token=x", {"Authorization": basic("your-client-id:wrong")}, 401),
    ],
)
def test_inspection_is_strict(
    sandbox: Sandbox, endpoint: str, query: str, change: dict[str, Any], expected: int
) -> None:
    """Introspect and revoke want one token in the query, Basic, and nothing else."""
    sent = with_headers(Sent(endpoint + query, {"Authorization": BASIC, "Content-Type": JSON}), **change)
    assert send(sandbox, sent).status == expected
    assert send(sandbox, replace(sent, method="GET")).status == 405
    assert {record.kind for record in sandbox.requests} == {endpoint.rpartition("/")[2]}


@pytest.mark.parametrize("target", ["/v1/authentication/oauth/token", "*"])
def test_what_is_no_path_of_a_gateway_is_not_found(sandbox: Sandbox, target: str) -> None:
    """A path beside Axia's endpoints is no API, even with a token; nor is what is no path."""
    assert status(sandbox, mint(sandbox), target) == 404
    assert sandbox.requests[-1].kind == "unknown"


# -- faults


@pytest.mark.parametrize(
    ("fault", "expected_status", "expected_body"),
    [
        (Fault("status", status=503), 503, r'\{"error": "E00503", "message": "Service Unavailable",.*'),
        (
            Fault("status", status=401),
            401,
            r'\{"error": "E00101", "message": "Invalid client credentials",.*',
        ),
        (Fault("status", status=520), 520, r'\{"error": "E00520".*'),
        (Fault("status", status=418, body=b"tea"), 418, "tea"),
        (Fault("garbage"), 200, "<!DOCTYPE html>.*"),
        (Fault("garbage", status=403), 403, "<!DOCTYPE html>.*"),
        (Fault("empty"), 200, ""),
        (Fault("body", body=b'{"expires_in": 0}'), 200, r'\{"expires_in": 0\}'),
        (Fault("body", body=b"{}", status=201), 201, r"\{\}"),
        (Fault("delay", delay=0.01), 200, r'\{"access_token": .*'),
        (Fault("redirect", headers=(("Location", "https://elsewhere.example/"),)), 307, ""),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_fault_answers_once(sandbox: Sandbox, fault: Fault, expected_status: int, expected_body: str) -> None:
    """A fault that answers does so for one request, on a connection that goes on."""
    sandbox.inject(fault)
    with closing(connect(sandbox)) as connection:
        answer = exchange(connection, AXIA)
        assert answer.status == expected_status
        assert re.fullmatch(expected_body, answer.text)
        assert exchange(connection, AXIA).status == 200
    assert [record.status for record in sandbox.requests] == [expected_status, 200]


@pytest.mark.parametrize(
    ("retry_after", "header", "in_body"),
    [(2, "2", 2), (0.5, "0.5", 0.5), ("Fri, 15 Mar 2024 10:00:05 GMT",) * 2 + (None,), (None, None, None)],
)
def test_retry_after_is_sent_verbatim(
    sandbox: Sandbox, retry_after: str | float | None, header: str | None, in_body: float | None
) -> None:
    """A 429 carries the Retry-After asked for, and Axia's body the same number of seconds."""
    sandbox.inject(Fault("status", status=429, retry_after=retry_after))
    answer = send(sandbox, AXIA)
    assert (answer.headers["Retry-After"], answer.json.get("retry_after")) == (header, in_body)
    assert answer.json["error"] == "E00102"


def test_fault_headers_replace_those_of_the_answer(sandbox: Sandbox) -> None:
    """Extra headers are sent, in place of the sandbox's own where they clash."""
    sandbox.inject(Fault("empty", headers={"content-type": "text/plain", "X-A": "b"}, retry_after=1))  # type: ignore[arg-type]  # a mapping will do
    answer = send(sandbox, AXIA)
    assert answer.headers.get_all("Content-Type") == ["text/plain"]
    assert (answer.headers["X-A"], answer.headers["Retry-After"]) == ("b", "1")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("drop"), http.client.RemoteDisconnected),
        (Fault("hang", delay=0.01), http.client.RemoteDisconnected),
        (Fault("truncate"), http.client.IncompleteRead),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_fault_breaks_the_connection(sandbox: Sandbox, fault: Fault, error: type[http.client.HTTPException]) -> None:
    """A connection is closed before or within the answer; the next request is served."""
    sandbox.inject(fault)
    with pytest.raises(error):
        send(sandbox, AXIA)
    assert send(sandbox, AXIA).status == 200
    assert sandbox.requests[0].status == (200 if fault.kind == "truncate" else None)


def test_huge_body_is_streamed(sandbox: Sandbox) -> None:
    """50 MiB are sent without a length, only as far as they are read."""
    sandbox.inject(Fault("huge", times=2))
    with closing(connect(sandbox)) as connection:
        connection.request("POST", AXIA.target, headers=AXIA.headers)
        response = connection.getresponse()
        assert response.headers["Content-Length"] is None
        assert len(response.read(1_000_000)) == 1_000_000
    assert len(send(sandbox, AXIA).text) == 50 * 2**20


def test_faults_keep_order_count_and_target(sandbox: Sandbox) -> None:
    """Faults happen in the order asked for, each as often as said, to its own kind of request."""
    token = mint(sandbox)
    sandbox.inject(Fault("status", "api", status=500))
    sandbox.inject(Fault("status", "token", status=502, times=2))
    sandbox.inject(Fault("status", "*", status=503))
    sandbox.inject(Fault("status", "introspect", status=504, times=-1))
    assert [send(sandbox, AXIA).status for _ in range(4)] == [502, 502, 503, 200]
    assert [status(sandbox, token) for _ in range(2)] == [500, 200]
    assert [inspect(sandbox, INTROSPECT, token).status for _ in range(3)] == [504] * 3
    assert inspect(sandbox, REVOKE, token).status == 200


def test_dropped_token_request_mints_nothing(sandbox: Sandbox) -> None:
    """A fault that replaces the answer leaves the gateway's state alone."""
    sandbox.single_active_token = True
    token = mint(sandbox)
    sandbox.inject(Fault("status", status=500))
    assert send(sandbox, AXIA).status == 500
    assert status(sandbox, token) == 200


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("401", 401),
        ("429", 429),
        ("503", 503),
        ("expire", 401),
        ("garbage", 200),
        ("delay=0.01", 200),
        ("sometimes", 400),
        ("delay=x", 400),
        ("999", 400),
    ],
)
def test_api_request_may_ask_for_a_fault(sandbox: Sandbox, asked: str, expected: int) -> None:
    """X-Sandbox-Fault applies to the request that carries it, and to no other."""
    token = mint(sandbox)
    sent = with_headers(bearer(token), X_Sandbox_Fault=asked)
    answer = send(sandbox, sent)
    assert answer.status == expected
    assert ("<html>" in answer.text) == (asked == "garbage")
    assert ("Token has expired" in answer.text) == (asked == "expire")
    assert status(sandbox, token) == 200


def test_asked_drop_closes_the_connection(sandbox: Sandbox) -> None:
    """X-Sandbox-Fault: drop ends the connection without an answer."""
    with pytest.raises(http.client.RemoteDisconnected):
        send(sandbox, with_headers(bearer(mint(sandbox)), X_Sandbox_Fault="drop"))


def test_asked_fault_can_spare_the_replay(sandbox: Sandbox) -> None:
    """A value with a semicolon counts once, so that the same request sent again goes through."""
    token = mint(sandbox)
    sent = [with_headers(bearer(token), X_Sandbox_Fault=f"expire; once={key}") for key in "aabb"]
    assert [send(sandbox, each).status for each in sent] == [401, 200, 401, 200]


def test_token_request_cannot_ask_for_a_fault(sandbox: Sandbox) -> None:
    """X-Sandbox-Fault is for API requests alone."""
    assert send(sandbox, with_headers(AXIA, X_Sandbox_Fault="503")).status == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "explode"}, "kind must be one of status, "),
        ({"kind": "drop", "target": "all"}, "target must be one of "),
        ({"kind": "drop", "times": 0}, "times must be"),
        ({"kind": "drop", "times": True}, "times must be"),
        ({"kind": "drop", "delay": -1}, "delay must be"),
        ({"kind": "drop", "delay": float("inf")}, "delay must be"),
        ({"kind": "drop", "delay": "1"}, "delay must be"),
        ({"kind": "drop", "retry_after": [1]}, "retry_after must be"),
        ({"kind": "drop", "body": 1}, "body must be"),
        ({"kind": "drop", "headers": 5}, "headers must be"),
        ({"kind": "drop", "headers": [["a", "b\r\n"]]}, "headers must be"),
        ({"kind": "drop", "when": "now"}, "unknown field: when"),
        ({"kind": "status"}, "needs a status"),
        ({"kind": "status", "status": 1000}, "status must be"),
        ({"kind": "status", "status": "503"}, "status must be"),
        ({"kind": "body"}, "needs a body"),
        ({"kind": "redirect"}, "needs a Location"),
        ({"kind": "expire"}, "for target 'api'"),
        ({}, "a JSON object with a kind"),
        ([], "a JSON object with a kind"),
    ],
)
def test_impossible_fault_is_refused(sandbox: Sandbox, fields: Any, message: str) -> None:
    """A fault that cannot be is refused over HTTP and in Python alike, with the reason."""
    answer = send(sandbox, Sent("/_sandbox/faults", {}, json.dumps(fields).encode()))
    assert answer.status == 400
    assert message in answer.json["error"]
    if fields and "when" not in fields:
        with pytest.raises(ValueError, match=re.escape(message)):
            Fault(**fields)


def test_faults_and_figures_over_http(sandbox: Sandbox) -> None:
    """A sandbox in another process is driven by its own paths, which count as nobody's traffic."""
    fault = {"kind": "body", "target": "api", "times": -1, "body": "{}", "headers": {"X-A": "b"}}
    assert send(sandbox, Sent("/_sandbox/faults", {}, json.dumps(fault).encode())).status == 204
    answer = send(sandbox, bearer(mint(sandbox), "/x"))
    assert (answer.text, answer.headers["X-A"]) == ("{}", "b")
    assert send(sandbox, Sent("/_sandbox/faults", {}, method="DELETE")).status == 204
    assert status(sandbox, "unknown", "/x") == 401
    assert send(sandbox, Sent("/_sandbox/stats", {}, method="GET")).json == {
        "requests": {"axia": {"token": 1, "api": 1}, "other": {"api": 1}},
        "max_in_flight": 1,
    }
    assert len(sandbox.requests) == 3


@pytest.mark.parametrize(
    ("method", "path", "expected", "allow"),
    [
        ("PUT", "/_sandbox/faults", 405, "POST, DELETE"),
        ("POST", "/_sandbox/stats", 405, "GET"),
        ("GET", "/_sandbox/secrets", 404, None),
        ("POST", "/_sandbox/faults", 400, None),
    ],
)
def test_own_paths_are_strict(sandbox: Sandbox, method: str, path: str, expected: int, allow: str | None) -> None:
    """Whatever the sandbox's own paths do not offer is refused."""
    answer = send(sandbox, Sent(path, {}, b"not JSON", method))
    assert (answer.status, answer.headers["Allow"]) == (expected, allow)


# -- the record, and the server


def test_requests_are_recorded_but_not_shown(sandbox: Sandbox) -> None:
    """The record holds the request whole; its repr shows neither headers, body, query nor credentials."""
    token = mint(sandbox, "avista")
    inspect(sandbox, INTROSPECT, token)
    send(sandbox, bearer(token, "/cob/1"))
    records = sandbox.requests
    assert [(r.method, r.path, r.kind, r.provider, r.status) for r in records] == [
        ("POST", "/oauth/token", "token", "avista", 200),
        ("POST", INTROSPECT, "introspect", "axia", 200),
        ("GET", "/cob/1", "api", "avista", 200),
    ]
    assert records[0].body == AVISTA.body
    assert records[1].query == f"token={token}"
    assert records[2].headers["authorization"] == f"Bearer {token}"
    assert all(r.finished is not None and r.started <= r.finished for r in records)
    shown = repr(records) + repr(sandbox)
    assert not any(secret in shown for secret in (SECRET, token, BASIC, "application/json"))


def test_record_is_a_snapshot_until_cleared(sandbox: Sandbox) -> None:
    """A list of requests does not grow afterwards; clear forgets requests, faults, tokens and windows."""
    tokens = [mint(sandbox, "bs2") for _ in range(10)]
    before = sandbox.requests
    sandbox.inject(Fault("drop", times=-1))
    sandbox.clear()
    assert (len(before), sandbox.requests, sandbox.count("token"), sandbox.max_in_flight) == (10, [], 0, 0)
    assert mint(sandbox, "bs2") not in tokens
    assert status(sandbox, tokens[0], "/x") == 401
    assert len(before) == 10


def test_requests_in_flight_are_counted(sandbox: Sandbox) -> None:
    """Token requests that wait together are in flight together, until their clients give up."""

    def drained() -> bool:
        sandbox.clear()
        return sandbox.max_in_flight == 0

    sandbox.inject(Fault("hang", times=20))
    waiting = [connect(sandbox) for _ in range(20)]
    for connection in waiting:
        connection.request("POST", AXIA.target, headers=AXIA.headers)
    until(lambda: sandbox.count("token") == 20)
    assert sandbox.max_in_flight == 20
    for connection in waiting:
        connection.close()
    until(drained)
    mint(sandbox)
    mint(sandbox)
    assert sandbox.max_in_flight == 1


def test_close_is_prompt_and_final() -> None:
    """Neither idle nor hanging connections hold up close, which ends them all and frees the port."""
    with Sandbox() as sandbox:
        idle, hanging = connect(sandbox), connect(sandbox)
        exchange(idle, AXIA)
        sandbox.inject(Fault("hang"))
        hanging.request("POST", AXIA.target, headers=AXIA.headers)
        until(lambda: sandbox.count("token") == 2)
        started = time.monotonic()
        sandbox.close()
        assert time.monotonic() - started < 0.5
    assert idle.sock.recv(1) == b""
    with pytest.raises(http.client.RemoteDisconnected):
        hanging.getresponse()
    idle.close()
    hanging.close()
    with pytest.raises(ConnectionRefusedError):
        send(sandbox, AXIA)
    assert sandbox.count("token") == 2


def test_sandbox_starts_again_and_knows_when_it_never_did() -> None:
    """The origin is known from the start on; starting twice is harmless, as is closing."""
    sandbox = Sandbox()
    with pytest.raises(RuntimeError, match="not running"):
        _ = sandbox.url
    for _ in range(2):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", sandbox.start().url)
        assert sandbox.start().url == sandbox.url
        mint(sandbox)
        sandbox.close()
        sandbox.close()


def test_server_is_silent(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, not even when clients vanish or send nonsense."""
    with closing(connect(sandbox)) as connection:
        sandbox.inject(Fault("huge"))
        connection.request("POST", AXIA.target, headers=AXIA.headers)
        connection.getresponse().read(10)
    with plug(sandbox) as raw:
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        raw.makefile("rb").read()
    with plug(sandbox) as raw:
        raw.sendall(b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc")
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(1) == b""
    sandbox.close()
    assert [record.path for record in sandbox.requests] == [AXIA.target]
    assert capfd.readouterr() == ("", "")


def test_bug_of_the_sandbox_is_shown(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What no client can have caused ends the connection with a traceback, rather than in silence."""
    monkeypatch.setattr(sandbox, "begin", lambda request: 1 / 0)
    with pytest.raises(http.client.RemoteDisconnected):
        send(sandbox, AXIA)
    sandbox.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_latecomer_is_turned_away(sandbox: Sandbox) -> None:
    """A connection accepted while the sandbox closes is closed unserved."""
    assert sandbox._server is not None
    sandbox._server.closing.set()
    with plug(sandbox) as raw:
        assert raw.recv(1) == b""


def test_pipelined_requests_are_answered_in_order(sandbox: Sandbox) -> None:
    """A request that waits behind a delayed one is answered after it."""
    sandbox.inject(Fault("delay", "api", delay=0.05))
    with plug(sandbox) as raw:
        raw.sendall(b"GET /a HTTP/1.1\r\n\r\n")
        until(lambda: sandbox.count("api") == 1)
        raw.sendall(b"GET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert raw.makefile("rb").read().count(b"HTTP/1.1 401 ") == 3
    first, second, third = sandbox.requests
    assert (first.path, second.path, third.path) == ("/a", "/b", "/c")
    assert first.finished is not None
    assert 0.05 <= first.finished - first.started <= second.started - first.started


def test_sandbox_serves_https() -> None:
    """With a server context the origin is https, and everything else is the same."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    with Sandbox(ssl_context=server) as sandbox:
        assert sandbox.url.startswith("https://")
        sandbox.inject(Fault("delay", delay=0.01))
        with closing(http.client.HTTPSConnection(urlsplit(sandbox.url).netloc, context=client)) as connection:
            assert [exchange(connection, AXIA).status for _ in range(2)] == [200, 200]
        with plug(sandbox) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no handshake: this connection alone fails
        assert sandbox.count("token") == 2
