"""The sandbox is as strict as the gateways' pages."""

from __future__ import annotations

import json
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from sandbox_wire import (
    API_PATHS,
    AVISTA,
    AXIA,
    BASIC,
    BS2,
    COMPACT_JWT,
    FORM,
    INTROSPECT,
    JSON,
    REVOKE,
    TOKEN_REQUESTS,
    UUID,
    Clock,
    Sent,
    basic,
    bearer,
    connect,
    each_gateway,
    exchange,
    inspect,
    mint,
    plug,
    send,
    status,
    verified,
    with_headers,
)

from baas_auth_plugins.sandbox import Sandbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as sandbox:
        yield sandbox


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
                    "encoded": with_headers(AXIA, Content_Encoding="identity"),
                    "a proxy's credentials": with_headers(AXIA, Proxy_Authorization=BASIC),
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
                    "repeated field": replace(AVISTA, body=AVISTA.body[:-1] + b', "clientId": "your-client-id"}'),
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
def test_headers_of_clients_and_tracers_are_accepted(sandbox: Sandbox, name: str) -> None:
    """Headers that browsers, tracers, proxies and clients add are no reason to refuse a token request."""
    added = {
        "User-Agent": "acme/1.0",
        "Accept": "*/*",
        "Accept-Language": "pt-BR",
        "Cookie": "a=b",
        "Via": "1.1 proxy.example",
        "Forwarded": "for=192.0.2.1",
        "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "Tracestate": "a=b",
        "Baggage": "a=b",
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Site": "cross-site",
        "Origin": "https://elsewhere.example",
        "Referer": "https://elsewhere.example/",
        "Priority": "u=1",
        "Pragma": "no-cache",
        "X-SSL-Client-Cert": "MII",
        "Expect": "100-continue",
        "Connection": "close",
    }
    assert send(sandbox, with_headers(TOKEN_REQUESTS[name], **added)).status == 200
    assert sandbox.requests[0].problem == ""


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
    chunked = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: 1\r\nB: 2\r\n\r\n"
    )
    with plug(sandbox) as raw:
        raw.sendall(chunked + b"GET /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
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
        ("?token=x", {"Proxy_Authorization": BASIC}, 400),
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


def test_examples_of_the_documentation_run() -> None:
    """Each Python example of docs/sandbox.md runs as it stands there."""
    text = Path(__file__).parent.parent.joinpath("docs", "sandbox.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})  # noqa: S102  # our own text


def test_control_api_is_documented_whole(sandbox: Sandbox) -> None:
    """docs/sandbox.md names every path of the control API."""
    text = Path(__file__).parent.parent.joinpath("docs", "sandbox.md").read_text(encoding="utf-8")
    listed = json.loads(send(sandbox, Sent("/_sandbox/", {}, method="GET")).text)
    assert [line for line in listed if f"/{line.rpartition('/')[2]}" not in text] == []
