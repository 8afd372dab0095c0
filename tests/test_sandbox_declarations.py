"""The sandbox serves every declaration from its data alone, each gateway also on an origin of its own."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
import requests
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from sandbox_wire import AVISTA, AXIA, BASIC, BS2, FORM, JSON, SECRET, Answer, Clock, Sent, basic, bearer, mint, send

from baas_auth_plugins import (
    PROVIDERS,
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    MemoryTokenCache,
    NTXPayAuth,
    OAuth2ClientCredentialsAuth,
    Provider,
    client_auth,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

CLIENT = "your-client-id"
POST = {"client_id": CLIENT, "client_secret": SECRET}
GRANT = {"grant_type": "client_credentials"}
SECOND = "credentials belong in the parameters, not in an Authorization header"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as sandbox:
        yield sandbox


def fifth(**fields: Any) -> Provider:
    defaults = {"environments": {"production": "https://fifth.example"}, "token_endpoint": "/token"}
    return Provider(**{"name": "fifth", "env_prefix": "FIFTH", "default_expires_in": 90} | defaults | fields)


def at(url: str, sent: Sent) -> Answer:
    response = requests.request(sent.method, url + sent.target, headers=sent.headers, data=sent.body, timeout=10)
    return Answer(response.status_code, response.headers, response.text)


def served(provider: Provider, sent: Sent) -> tuple[int, str]:
    """Return the status of a token request and why it is not 200."""
    with Sandbox(providers=[provider]) as sandbox:
        answer = send(sandbox, sent)
        (record,) = sandbox.requests
        assert (record.kind, record.provider) == ("token", "fifth")
        return answer.status, record.problem


# -- an origin for each gateway


def test_shared_path_counts_for_the_gateway_served() -> None:
    """NTX Pay's token requests are told from Avista's where only NTX Pay is served; the rest is not found."""
    with Sandbox(providers=("ntxpay",)) as sandbox:
        token = mint(sandbox, "avista")
        assert send(sandbox, bearer(token, "/cob/abc123")).json["provider"] == "ntxpay"
        assert send(sandbox, AXIA).status == 404
        assert [(record.kind, record.provider) for record in sandbox.requests] == [
            ("token", "ntxpay"),
            ("api", "ntxpay"),
            ("unknown", None),
        ]


def test_an_origin_of_one_gateway_counts_and_answers_as_that_gateway(sandbox: Sandbox) -> None:
    """NTX Pay on its own origin never counts as Avista, and neither takes the other's token."""
    own = sandbox.url_for(NTXPayAuth)
    assert own not in (sandbox.url, sandbox.url_for(AvistaAuth))
    token = at(own, AVISTA).json["access_token"]
    assert at(own, bearer(token, "/cob/1")).json["provider"] == "ntxpay"
    assert at(own, bearer(token, "/anything")).json["provider"] == "ntxpay"
    assert at(sandbox.url_for(AvistaAuth), bearer(token, "/cob/1")).status == 401
    assert at(own, bearer(mint(sandbox, "avista"), "/cob/1")).status == 401
    assert at(own, AXIA).status == 404
    assert sandbox.counts() == {
        ("ntxpay", "token"): 1,
        ("ntxpay", "api"): 3,
        ("avista", "token"): 1,
        ("avista", "api"): 1,
        (None, "unknown"): 1,
    }


def test_an_origin_of_one_gateway_stays_the_same_until_close() -> None:
    """A gateway by class, declaration or name has one origin; a sandbox that does not run has none."""
    sandbox = Sandbox()
    with pytest.raises(RuntimeError, match="not running"):
        sandbox.url_for(BS2Auth)
    with sandbox:
        urls = {sandbox.url_for(gateway) for gateway in (BS2Auth, BS2Auth.provider, "bs2")}
        assert len(urls) == 1
        assert at(*urls, BS2).status == 200
    with pytest.raises(requests.ConnectionError):
        at(*urls, BS2)


def test_a_gateway_need_not_be_served_to_have_an_origin(sandbox: Sandbox) -> None:
    """url_for takes any declaration."""
    url = sandbox.url_for(fifth())
    sent = Sent("/token", {"Content-Type": FORM, "Authorization": BASIC}, urlencode(GRANT).encode())
    assert at(url, sent).json["expires_in"] == 90
    assert send(sandbox, sent).status == 401  # an API path there


def test_faults_may_be_for_one_gateway(sandbox: Sandbox) -> None:
    """A fault with a provider spares all other gateways."""
    sandbox.inject(Fault("status", status=503, provider="ntxpay"))
    assert send(sandbox, AVISTA).status == 200
    assert at(sandbox.url_for("ntxpay"), AVISTA).status == 503
    assert sandbox.faults == []


def test_a_fixed_port_is_for_all_gateways() -> None:
    """The port is that of url; an origin of one gateway takes another one that is free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Sandbox(port=port) as sandbox:
        assert sandbox.url == f"http://127.0.0.1:{port}"
        assert {at(sandbox.url_for(name), AVISTA).status for name in ("ntxpay", "avista")} == {200}


def test_an_origin_of_one_gateway_moves_where_its_port_is_taken() -> None:
    """If port + 1 is taken, the first gateway's origin has any port that is free; a taken port itself is an error."""
    for _ in range(50):  # until there are two neighbours
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1] - 1
            try:
                sandbox = Sandbox(port=port).start()
            except OSError:
                continue
            with sandbox:
                assert at(sandbox.url_for("ntxpay"), AVISTA).status == 200
                with pytest.raises(OSError, match=r"in use|Only one usage"):
                    Sandbox(port=port).start()
            return
    pytest.fail("there are no two free ports side by side")


def test_an_origin_of_one_gateway_moves_past_the_last_port() -> None:
    """After port 65535 there is none, so any free port serves."""
    try:
        sandbox = Sandbox(port=65_535).start()
    except OSError:
        pytest.skip("port 65535 is taken")
    with sandbox:
        assert at(sandbox.url_for("ntxpay"), AVISTA).status == 200


def test_unknown_or_no_gateway_is_refused(sandbox: Sandbox) -> None:
    """A name that the package does not declare is an error that names the declared ones; so is no gateway."""
    for fails in (lambda: Sandbox(providers=["acme"]), lambda: sandbox.url_for("acme")):
        with pytest.raises(ValueError, match="no gateway is called 'acme'; there are axia"):
            fails()
    with pytest.raises(ValueError, match="at least one"):
        Sandbox(providers=[])


# -- the environment


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.provider.name)
def test_environment_makes_from_env_work(cls: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a gateway's variables set, from_env() of its class gets a token that counts for that gateway."""
    for name, value in sandbox.environment(cls).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.time", sandbox.now)
    sandbox.client_id = f"client-of-{cls.provider.name}"
    monkeypatch.setenv(f"{cls.provider.env_prefix}_CLIENT_ID", sandbox.client_id)
    cls.from_env().get_token()
    assert sandbox.counts() == {(cls.provider.name, "token"): 1}


def test_environment_is_exact(sandbox: Sandbox) -> None:
    """The variables are the documented ones: no scope where the gateway assigns it, and no secret for method none."""
    assert sandbox.environment(AxiaAuth) == {
        "BAAS_CLIENT_ID": CLIENT,
        "BAAS_CLIENT_SECRET": SECRET,
        "BAAS_BASE_URL": sandbox.url,
    }
    assert sandbox.environment("bs2")["BS2_SCOPE"] == "cob.read pix.read"
    assert sandbox.environment(NTXPayAuth)["NTXPAY_BASE_URL"] == sandbox.url_for(NTXPayAuth)
    without = sandbox.environment(fifth(token_endpoint_auth_method="none"))
    assert without.keys() == {"FIFTH_CLIENT_ID", "FIFTH_BASE_URL"}
    signed = sandbox.environment(fifth(token_endpoint_auth_method="private_key_jwt"))
    assert RSAKey.import_key(signed["FIFTH_CLIENT_SECRET"]).is_private


# -- the shape of a token request, from the declaration


def body_of(form: str, parameters: dict[str, str], **headers: str) -> Sent:
    if form == "query":
        return Sent(f"/token?{urlencode(parameters)}", headers)
    if form == "json":
        return Sent("/token", {"Content-Type": JSON, **headers}, json.dumps(parameters).encode())
    return Sent("/token", {"Content-Type": FORM, **headers}, urlencode(parameters).encode())


def assertion(key: Any = None, alg: str = "HS256", aud: Any = None, **claims: Any) -> str:
    known = {"iss": CLIENT, "sub": CLIENT, "aud": aud, "exp": 4_000_000_000, "jti": "1"} | claims
    return jwt.encode({"alg": alg}, known, key or OctKey.import_key(SECRET.ljust(64, ".")), algorithms=[alg])


@pytest.mark.parametrize(
    ("method", "parameters", "headers", "forms"),
    [
        ("client_secret_basic", {}, {"Authorization": BASIC}, ("form", "json", "query")),
        ("client_secret_post", POST, {}, ("form", "json")),
        ("none", {"client_id": CLIENT}, {}, ("form", "json", "query")),
    ],
)
def test_declared_formats_and_methods_are_served(
    method: str, parameters: dict[str, str], headers: dict[str, str], forms: tuple[str, ...]
) -> None:
    """Each format takes its own request with each method, and refuses those of all others."""
    requests_ = {form: body_of(form, GRANT | parameters, **headers) for form in ("form", "json", "query")}
    for form in forms:
        provider = fifth(token_endpoint_auth_method=method, token_request_format=form)
        assert {each: served(provider, sent)[0] for each, sent in requests_.items()} == {
            each: 200 if each == form else 400 for each in requests_
        }


@pytest.mark.parametrize(
    ("scope", "sent", "status"),
    [
        ("required", "cob.read pix.read", 200),
        ("required", None, 400),
        ("optional", "cob.read", 200),
        ("optional", None, 200),
        ("optional", "", 400),
        ("assigned", None, 200),
        ("assigned", "cob.read", 400),
    ],
)
@pytest.mark.parametrize("form", ["form", "json", "query"])
def test_scope_is_required_optional_or_assigned(form: str, scope: str, sent: str | None, status: int) -> None:
    """The request has a scope as the declaration says, and the answer grants it."""
    parameters = GRANT | ({} if sent is None else {"scope": sent})
    provider = fifth(scope=scope, token_request_format=form)
    with Sandbox(providers=[provider]) as sandbox:
        answer = send(sandbox, body_of(form, parameters, Authorization=BASIC))
    assert answer.status == status
    assert answer.json.get("scope") == (sent if status == 200 else None)


@pytest.mark.parametrize(
    ("method", "form", "sent", "status", "problem"),
    [
        ("client_secret_basic", "empty", replace(AXIA, target="/token"), 200, ""),
        ("client_secret_basic", "empty", replace(AXIA, target="/token?a=b"), 400, "no query is allowed"),
        ("client_secret_basic", "empty", replace(AXIA, target="/token", body=b"{}"), 400, "no body is allowed"),
        (
            "client_secret_basic",
            "form",
            body_of("form", GRANT | POST, Authorization=BASIC),
            400,
            "the form holds exactly grant_type",
        ),
        (
            "client_secret_post",
            "form",
            body_of("form", GRANT | POST, Authorization=BASIC),
            400,
            SECOND,
        ),
        (
            "client_secret_post",
            "json",
            body_of("json", GRANT | POST | {"client_secret": "wrong"}),
            401,
            "the client_secret is not the sandbox's",
        ),
        ("none", "form", body_of("form", GRANT | {"client_id": "x"}), 401, "the client_id is not the sandbox's"),
        ("none", "form", body_of("form", GRANT), 400, "the form holds exactly grant_type and client_id"),
        ("none", "empty", Sent("/token", {"Content-Type": JSON}), 200, ""),
        ("none", "empty", Sent("/token", {"Content-Type": JSON, "Authorization": BASIC}), 400, SECOND),
        (
            "none",
            "form",
            body_of("form", {"grant_type": "password", "client_id": CLIENT}),
            400,
            "grant_type must be client_credentials",
        ),
        ("none", "json", body_of("json", []), 400, "the body is not a JSON object"),  # type: ignore[arg-type]
        ("none", "json", body_of("json", GRANT | {"client_id": 1}), 400, "grant_type and client_id are strings"),  # type: ignore[dict-item]
    ],
)
def test_what_a_declaration_does_not_say_is_refused(
    method: str, form: str, sent: Sent, status: int, problem: str
) -> None:
    """A request with another shape or other credentials is refused, and the record says which rule it broke."""
    assert served(fifth(token_endpoint_auth_method=method, token_request_format=form), sent) == (status, problem)


# -- signed assertions


def signed(url: str, **changes: Any) -> Sent:
    given = {"aud": f"{url}/token", "key": OctKey.import_key(SECRET)} | changes
    return body_of("form", GRANT | {"client_assertion_type": JWT_BEARER, "client_assertion": assertion(**given)})


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"aud": ["https://elsewhere.example", "{url}/token"]}, ""),
        ({"exp": 1}, "exp of client_assertion must be a number in the future"),
        ({"exp": "tomorrow"}, "exp of client_assertion must be a number in the future"),
        ({"iss": "another"}, "iss and sub of client_assertion must be the client_id"),
        ({"iss": [CLIENT]}, "iss and sub of client_assertion must be the client_id"),
        ({"sub": "another"}, "the client_id is not the sandbox's"),
        ({"aud": "{url}"}, "aud of client_assertion must be the token endpoint"),
        ({"aud": "https://[broken/token"}, "aud of client_assertion must be the token endpoint"),
        ({"aud": None}, "aud of client_assertion must be the token endpoint"),
        (
            {"key": OctKey.import_key("another-secret")},
            "the signature of client_assertion does not match the client_secret",
        ),
        ({"alg": "HS512"}, ""),
    ],
)
def test_client_secret_jwt_is_verified(sandbox: Sandbox, changes: dict[str, Any], problem: str) -> None:
    """An assertion needs the right claims and a signature with the client's secret."""
    url = sandbox.url_for(fifth(token_endpoint_auth_method="client_secret_jwt"))
    if "aud" in changes:
        changes = changes | {"aud": json.loads(json.dumps(changes["aud"]).replace("{url}", url))}
    assert at(url, signed(url, **changes)).status == (401 if problem else 200)
    assert sandbox.requests[0].problem == problem


@pytest.mark.parametrize("alg", ["RS256", "PS256"])
def test_private_key_jwt_needs_a_well_formed_assertion(sandbox: Sandbox, alg: str) -> None:
    """The sandbox does not know the client's key, so it checks the claims only; client_id may be sent, too."""
    url = sandbox.url_for(fifth(token_endpoint_auth_method="private_key_jwt"))
    sent = signed(url, alg=alg, key=RSAKey.generate_key(2048))
    assert at(url, sent).status == 200
    assert at(url, replace(sent, body=sent.body + b"&client_id=your-client-id")).status == 200
    assert at(url, replace(sent, body=sent.body + b"&client_id=another")).status == 401


@pytest.mark.parametrize("value", ["", "a", "a.b.c", "e30.e30.", "W10.W10.YQ", "eyJhbGciOiJub25lIn0.e30.", "é.é.é"])
def test_what_is_no_assertion_is_refused(sandbox: Sandbox, value: str) -> None:
    """Anything that is no signed JWT is a 401 without a traceback."""
    url = sandbox.url_for(fifth(token_endpoint_auth_method="private_key_jwt"))
    parameters = GRANT | {"client_id": CLIENT, "client_assertion_type": JWT_BEARER, "client_assertion": value}
    assert at(url, body_of("form", parameters)).status == 401
    assert (
        at(url, body_of("form", {name: parameters[name] for name in parameters if name != "client_id"})).status == 401
    )
    assert at(url, body_of("form", parameters | {"client_assertion_type": "jwt"})).status == 400


# -- functions


def own_function(client: Any, method: str, uri: str, headers: Any, body: str) -> tuple[str, Any, str]:
    """Authenticate as no standard says."""
    return uri, headers, body


@pytest.mark.parametrize(
    ("sent", "scope"),
    [
        (Sent("/token", {"X-Client": CLIENT}), None),
        (Sent("/token?account=your-client-id", {}), None),
        (Sent("/token", {"Authorization": BASIC, "Content-Type": JSON}, b'{"scopes": ["a"]}'), None),
        (Sent("/token", {"Content-Type": "text/plain"}, b'{"clientId": "your-client-id", "scope": "a b"}'), "a b"),
        (Sent("/token", {"Content-Type": FORM}, b"user=your-client-id&scope=a+b"), "a b"),
    ],
)
def test_function_of_a_declaration_may_send_anything_that_names_the_client(
    sandbox: Sandbox, sent: Sent, scope: str | None
) -> None:
    """A gateway with a function of its own accepts any authentication in which the client_id is found."""
    url = sandbox.url_for(fifth(token_endpoint_auth_method=own_function, scope="required"))
    answer = at(url, sent)
    assert (answer.status, answer.json.get("scope")) == (200, scope)


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_assertion_of_a_function_is_checked(sandbox: Sandbox) -> None:
    """Where a function sends an assertion, that names the client, and must be right."""
    url = sandbox.url_for(fifth(token_endpoint_auth_method=own_function))
    assert at(url, signed(url)).status == 200
    assert at(url, signed(url, exp=1)).status == 401
    assert at(url, signed(url, sub=["your-client-id"])).status == 401


@pytest.mark.parametrize("body", [b"user=your-client&scope=a+b", b"\xff\xfe", b"[" * 100_000, b""])
def test_function_of_a_declaration_must_name_the_client(sandbox: Sandbox, body: bytes) -> None:
    """A request in which the client_id is nowhere is a 401."""
    url = sandbox.url_for(fifth(token_endpoint_auth_method=own_function))
    assert at(url, Sent("/token", {"Content-Type": FORM}, body)).status == 401
    assert sandbox.requests[0].problem == "the request does not name the client"


def read_other_names(content: dict[str, Any]) -> dict[str, Any]:
    """Read a response that has the gateway's own names."""
    return {"access_token": content["accessToken"], "expires_in": content["expiresIn"]}


def read_date(content: dict[str, Any]) -> dict[str, Any]:
    """Read a response whose expiry is a date."""
    remaining = datetime.fromisoformat(content["expireAt"]) - datetime.now(UTC)
    return {"access_token": content["token"], "expires_in": round(remaining.total_seconds())}


@pytest.mark.parametrize("function", [read_other_names, read_date])
def test_gateways_with_other_names_answer_with_them(function: Any) -> None:
    """Where a function reads the answer, the token is there under the names that such gateways use."""

    class FifthAuth(OAuth2ClientCredentialsAuth):
        provider = fifth(read_token_response=function)

    with Sandbox(providers=[FifthAuth]) as sandbox:
        token = FifthAuth(CLIENT, SECRET, base_url=sandbox.url, cache=MemoryTokenCache()).get_token()
        assert [issued.access_token for issued in sandbox.tokens] == [token.access_token]
    assert token.expires_at - token.issued_at == pytest.approx(90, abs=2)


# -- the package's own clients


BASIC_METHODS = [
    "client_secret_basic",
    client_auth.client_secret_basic,
    client_auth.client_secret_basic_encoded,
]
SIGNED_METHODS = [
    "private_key_jwt",
    "client_secret_jwt",
    client_auth.private_key_jwt(alg="PS256"),
    client_auth.private_key_jwt(alg="ES384"),
    client_auth.private_key_jwt(alg="EdDSA"),
    client_auth.client_secret_jwt(alg="HS512"),
]
DECLARATIONS = [
    *((method, form) for method in [*BASIC_METHODS, "none"] for form in ("form", "json", "query", "empty")),
    *((method, form) for method in SIGNED_METHODS for form in ("form", "json", "query")),
    ("client_secret_post", "form"),
    ("client_secret_post", "json"),
    (client_auth.client_secret_json, "form"),
]


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.parametrize(("method", "form"), DECLARATIONS, ids=lambda method: getattr(method, "__name__", str(method)))
def test_every_declaration_is_served_to_its_class(
    method: Any, form: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the environment of its declaration a class gets a token and calls the API, in every format and method."""

    class FifthAuth(OAuth2ClientCredentialsAuth):
        provider = fifth(token_endpoint_auth_method=method, token_request_format=form, scope="optional")

    for name, value in sandbox.environment(FifthAuth).items():
        monkeypatch.setenv(name, value)
    auth = FifthAuth.from_env(scope="a b", cache=MemoryTokenCache())
    response = requests.get(f"{sandbox.url_for(FifthAuth)}/payments", auth=auth, timeout=10)
    assert response.json()["provider"] == "fifth"
    assert [(record.kind, record.problem) for record in sandbox.requests] == [("token", ""), ("api", "")]
    if form != "empty" and method is not client_auth.client_secret_json:
        assert response.json()["scope"] == "a b"


def test_encoded_basic_is_decoded(sandbox: Sandbox) -> None:
    """A declaration with form-encoded halves is served a secret that needs it, and refused a raw one."""
    sandbox.client_secret = "a+b%2Fc&d:e"
    url = sandbox.url_for(fifth(token_endpoint_auth_method=client_auth.client_secret_basic_encoded))
    for secret, status in ((quote_plus(sandbox.client_secret), 200), (sandbox.client_secret, 401)):
        sent = body_of("form", GRANT, Authorization=basic(f"{CLIENT}:{secret}"))
        assert at(url, sent).status == status


# -- what the page shows


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("tls", [False, "mutual"])
def test_curl_lines_work_as_they_are(tls: Any) -> None:
    """Each gateway's curl line gets a token, also where it needs the CA and a client certificate."""
    declared = [
        fifth(name="a", token_endpoint="/a", scope="required", token_request_format="json"),
        fifth(name="b", token_endpoint="/b", token_endpoint_auth_method="client_secret_post"),
        fifth(name="c", token_endpoint="/c", token_endpoint_auth_method="none", token_request_format="query"),
        fifth(name="d", token_endpoint="/d", token_endpoint_auth_method=own_function),
    ]
    with Sandbox(providers=[*PROVIDERS, *declared], tls=tls) as sandbox:
        verify, cert = (sandbox.ca_file, sandbox.client_cert) if tls else (True, None)
        shown = requests.get(f"{sandbox.url}/_sandbox/gateways", verify=verify, cert=cert, timeout=10).json()[
            "gateways"
        ]
        assert [gateway["name"] for gateway in shown] == ["axia", "ntxpay", "avista", "bs2", "a", "b", "c", "d"]
        for gateway in shown:
            command = [*shlex.split(gateway["curl"]), "--silent", "--noproxy", "*"]
            done = subprocess.run(command, capture_output=True, check=True, timeout=30)
            assert "access_token" in json.loads(done.stdout), gateway["name"]
            assert sandbox.count("token", gateway["name"]) == 1
