"""Reading the gateways' answers: each body becomes a token or one typed error, and no secret gets out."""

from __future__ import annotations

import gzip
import json
import logging
import math
import zlib
from dataclasses import replace
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest
from by_hand import CLIENT, answer, client_of, issued
from conftest import SECRET, FakeClock
from hypothesis import given
from hypothesis import strategies as st

from baas_auth_plugins import (
    AxiaAuth,
    ConfigurationError,
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    RateLimitError,
    Token,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins._oauth.client import OAuthClient, basic_value
from baas_auth_plugins._oauth.messages import MAX_RESPONSE_BYTES, TokenResponse
from baas_auth_plugins._oauth.responses import read_json, read_token, redact, retry_after
from baas_auth_plugins._oauth.token import Instant

NOW = Instant(FakeClock().wall, 5_000.0)
BASIC = basic_value(CLIENT, SECRET)
AXIA = client_of(AxiaAuth, scope="pix:send")


def read(response: TokenResponse, client: OAuthClient = CLIENT, sent: Instant = NOW) -> Token:
    return read_token(client, SECRET, response, sent, NOW)


def error_of(response: TokenResponse, client: OAuthClient = CLIENT) -> TokenEndpointError:
    with pytest.raises(TokenEndpointError) as caught:
        read(response, client)
    return caught.value


def outcome(response: TokenResponse, client: OAuthClient) -> Token | TokenEndpointError:
    try:
        return read(response, client)
    except TokenEndpointError as error:
        return error


def body(content: bytes, status: int = 400, headers: dict[str, str] | None = None) -> TokenResponse:
    return TokenResponse.from_raw(status, headers or {}, content)


# -- the meaning of an error

BS2_ARRAY = [
    {"tag": "E0042", "descricao": "Conta bloqueada"},
    {"tag": "E0043", "descricao": "Fale com o gerente"},
]


@pytest.mark.parametrize(
    ("response", "kind", "error", "description"),
    [
        pytest.param(
            answer(401, error="E00101", message="Invalid client credentials", timestamp="2024-03-15T10:00:05Z"),
            InvalidClientError,
            "E00101",
            "Invalid client credentials",
            id="axia 401",
        ),
        pytest.param(
            answer(400, error="INVALID_REQUEST", code="E00001", message="Invalid request format"),
            TokenEndpointError,
            "E00001",
            "Invalid request format",
            id="axia's other pages",
        ),
        pytest.param(
            answer(403, error="E00102", error_description="Forbidden", message="No"),
            TokenEndpointError,
            "E00102",
            "Forbidden",
            id="axia 403 with the code of a 429",
        ),
        pytest.param(
            answer(401, statusCode=401, message="Unauthorized"),
            InvalidClientError,
            None,
            "Unauthorized",
            id="avista 401",
        ),
        pytest.param(
            answer(401, error="invalid_client", error_description="The given client credentials were not valid"),
            InvalidClientError,
            "invalid_client",
            "The given client credentials were not valid",
            id="bs2 401",
        ),
        pytest.param(
            body(json.dumps(BS2_ARRAY).encode()),
            TokenEndpointError,
            "E0042",
            "Conta bloqueada; Fale com o gerente",
            id="bs2 array",
        ),
        pytest.param(
            body(json.dumps([7, "x", None, {"descricao": "Sem tag"}]).encode(), 422),
            TokenEndpointError,
            None,
            "Sem tag",
            id="bs2 array of all sorts",
        ),
        pytest.param(
            answer(403, title="Acesso negado", detail="O certificado expirou", type="about:blank"),
            TokenEndpointError,
            None,
            "O certificado expirou",
            id="title and detail (RFC 9457)",
        ),
        pytest.param(answer(403, title="Proibido"), TokenEndpointError, None, "Proibido", id="title alone"),
        pytest.param(
            answer(400, mensagem="Parâmetro inválido"), TokenEndpointError, None, "Parâmetro inválido", id="mensagem"
        ),
        pytest.param(
            answer(400, error="invalid_client"), InvalidClientError, "invalid_client", None, id="invalid_client as 400"
        ),
        pytest.param(answer(400, error="invalid_scope"), InvalidScopeError, "invalid_scope", None, id="invalid_scope"),
        pytest.param(answer(200, error="invalid_scope"), InvalidScopeError, "invalid_scope", None, id="200 with error"),
        pytest.param(
            answer(200, error="denied", access_token="a"),
            TokenEndpointError,
            "denied",
            None,
            id="200 with error and token",
        ),
        pytest.param(answer(404), TokenEndpointError, None, None, id="404"),
        pytest.param(answer(429, error="E00102"), RateLimitError, "E00102", None, id="429"),
        pytest.param(answer(500, code="E1"), TokenEndpointUnavailableError, "E1", None, id="500"),
        pytest.param(answer(599), TokenEndpointUnavailableError, None, None, id="599"),
        pytest.param(answer(400, error=7, message=["no"]), TokenEndpointError, None, None, id="fields of other types"),
        pytest.param(body(b"<html>WAF</html>", 403), TokenEndpointError, None, None, id="no JSON"),
        pytest.param(body(b"[" * 10**5), TokenEndpointError, None, None, id="nested too deep"),
        pytest.param(body(b"", 401), InvalidClientError, None, None, id="empty 401"),
        pytest.param(body(b"", 307), InvalidTokenResponseError, None, None, id="redirect"),
        pytest.param(body(b"", 304), InvalidTokenResponseError, None, None, id="304"),
    ],
)
def test_error_is_read(
    response: TokenResponse, kind: type[TokenEndpointError], error: str | None, description: str | None
) -> None:
    """The status decides what an answer is; the gateway's code and text are kept as fields, and in the message."""
    found = error_of(response)
    assert type(found) is kind
    assert (found.provider, found.status_code) == ("bs2", response.status_code)
    assert (found.error, found.error_description) == (error, description)
    said = ": ".join(part for part in (error, description) if part)
    assert str(found) == f"bs2: gateway.example answered {response.status_code}" + (f" ({said})" if said else "")


@pytest.mark.parametrize("field", ["error", "error_description", "message", "code", "detail", "mensagem", "tag"])
@pytest.mark.parametrize(
    "secret",
    [
        SECRET,
        SECRET.upper(),
        BASIC,
        quote(SECRET).replace("-", "%2D"),
        SECRET.replace("-", "\\u002d"),
        SECRET.replace("-", "&#45;"),
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
    ids=["plain", "upper", "basic", "percent", "escaped", "html", "token"],
)
def test_echoed_credentials_are_redacted(field: str, secret: str) -> None:
    """A gateway that repeats what it was sent does not bring it into an exception, in any encoding."""
    response = answer(400, **{field: f"bad: {secret}", "error" if field == "message" else "message": secret})
    error = error_of(response)
    assert secret not in f"{error} {error!r} {error.error} {error.error_description} {vars(error)}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
error_members = st.sampled_from(
    ("error", "error_description", "message", "mensagem", "code", "tag", "descricao", "title", "detail", "retry_after")
)
error_objects = st.dictionaries(error_members, json_values, max_size=4)
error_bodies = st.binary(max_size=60) | (error_objects | st.lists(error_objects | json_values, max_size=3)).map(
    lambda found: json.dumps(found).encode()
)


@given(st.integers(300, 599), error_bodies, st.text(max_size=30))
def test_any_answer_makes_an_error(status: int, content: bytes, wait: str) -> None:
    """Whatever a gateway answers, there is one printable error of bounded length with a bounded wait."""
    error = error_of(TokenResponse(status, {"retry-after": wait}, content))
    assert str(error).isprintable()
    assert len(str(error)) < 400
    assert error.retry_after is None or 0 <= error.retry_after <= 300
    for text in (error.error, error.error_description):
        assert text is None or (text.isprintable() and len(text) <= 200)


@given(st.text(max_size=300), st.text(min_size=8, max_size=30))
def test_redacted_text_has_no_secret(text: str, secret: str) -> None:
    """Wherever a secret stands in a text, it does not come out; what comes out is short and printable."""
    shown = redact(f"{text[:50]}{secret}{text[50:]}", (secret,))
    assert secret not in shown
    assert len(shown) <= 200
    assert shown.isprintable()


# -- the token

members = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("access_token", "token_type", "expires_in", "scope"), json_values)
)


@given(members | json_values, st.sampled_from((CLIENT, AXIA)))
def test_any_json_is_a_token_or_a_typed_error(payload: Any, client: OAuthClient) -> None:
    """Whatever JSON comes with a 200, there is a token that can be sent and expires, or an error of the package."""
    found = outcome(body(json.dumps(payload).encode(), 200), client)
    if isinstance(found, Token):
        f"Bearer {found.access_token}".encode("ascii")
        assert 0 < found.expires_in < math.inf
        return
    assert (found.provider, found.status_code) == (client.name, 200)
    is_told = isinstance(payload, dict) and payload.get("error")
    assert is_told or isinstance(found, InvalidTokenResponseError | InvalidScopeError)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'"abc"', b"<html>", b"{", b'{"a": 1}x', b"\xff\xfe", b"[" * 10**5, b"7", b"[{}]"]
)
def test_body_that_is_no_json_object_is_refused(content: bytes) -> None:
    """Only a JSON object can be a token response, and the error does not show what came instead."""
    with pytest.raises(InvalidTokenResponseError, match="no JSON object") as caught:
        read_json(CLIENT, body(content, 200), NOW)
    assert (caught.value.provider, caught.value.status_code) == ("bs2", 200)
    assert "html" not in str(caught.value)


@pytest.mark.parametrize("took", [0, 200, 294, 295.5, 400])
def test_token_that_expired_on_the_way_is_refused(took: float) -> None:
    """A lifetime counts from the moment of sending: an answer that took longer brings no token."""
    sent = Instant(NOW.wall - took, NOW.monotonic - took)
    if took < 295:
        assert read(issued(), sent=sent).age(NOW) == took
    else:
        with pytest.raises(InvalidTokenResponseError, match="expired before it arrived"):
            read(issued(), sent=sent)


def test_requested_scopes_may_be_granted_in_part() -> None:
    """Where scopes are requested, a narrower grant is reported in the token, and not refused."""
    assert read(issued(scope="cob.read")).scopes == {"cob.read"}
    assert read(issued()).scopes == {"cob.read", "pix.read"}


@pytest.mark.parametrize(
    ("granted", "missing"),
    [
        ("pix:send", None),
        ("accounts:read pix:send", None),
        ("", {"pix:send"}),
        ("accounts:read", {"pix:send"}),
        (None, None),
        (["pix:send"], None),
    ],
)
def test_assigned_scopes_must_be_granted(granted: object, missing: set[str] | None) -> None:
    """Where the gateway assigns scopes, each that is needed must be among them; a response that names none says nothing."""
    response = issued() if granted is None else issued(scope=granted)
    if missing is None:
        read(response, AXIA)
        return
    error = error_of(response, AXIA)
    assert isinstance(error, InvalidScopeError)
    assert (error.missing_scopes, error.error, error.status_code) == (missing, "invalid_scope", 200)
    assert "did not grant pix:send" in str(error)


def fitbank(payload: dict[str, Any]) -> dict[str, Any]:
    return {"access_token": payload["accessToken"], "expires_in": payload["lifetime"] * 60}


def nothing(_payload: dict[str, Any]) -> Any:
    return ["no", "mapping"]


def refusing(_payload: dict[str, Any]) -> Any:
    raise InvalidTokenResponseError("own error", provider="own", status_code=200)


@pytest.mark.parametrize(
    ("function", "content", "error", "text"),
    [
        pytest.param(fitbank, {"accessToken": "abc", "lifetime": 5}, None, "", id="other names"),
        pytest.param(fitbank, {"token": "abc"}, ConfigurationError, "read_token_response raised KeyError", id="raises"),
        pytest.param(nothing, {}, ConfigurationError, "read_token_response must return a mapping", id="no mapping"),
        pytest.param(refusing, {}, InvalidTokenResponseError, "own error", id="the package's own error"),
        pytest.param(
            fitbank, {"accessToken": "a b", "lifetime": 5}, InvalidTokenResponseError, "access_token", id="no token"
        ),
    ],
)
def test_function_that_reads_the_response(
    function: Any, content: dict[str, Any], error: type[Exception] | None, text: str
) -> None:
    """`read_token_response` gives the standard names; what it raises is a ConfigurationError with that cause."""
    client = CLIENT._replace(provider=replace(CLIENT.provider, read_token_response=function))
    if error is None:
        token = read(answer(200, **content), client)
        assert (token.access_token, token.expires_in) == ("abc", 300)
        return
    with pytest.raises(error, match=text) as caught:
        read(answer(200, **content), client)
    assert isinstance(caught.value.__cause__, KeyError) is ("KeyError" in text)


# -- when to try again


@pytest.mark.parametrize(
    ("headers", "content", "seconds"),
    [
        pytest.param({"Retry-After": "30"}, {}, 30, id="seconds"),
        pytest.param({"Retry-After": formatdate(NOW.wall + 20, usegmt=True)}, {}, 20, id="date"),
        pytest.param({"Retry-After": "Friday, 15-Mar-24 10:00:20 GMT"}, {}, 20, id="RFC 850 date"),
        pytest.param({"Retry-After": "Fri Mar 15 10:00:20 2024"}, {}, 20, id="asctime date"),
        pytest.param({"Retry-After": formatdate(0, usegmt=True)}, {}, 0, id="past"),
        pytest.param(
            {"Retry-After": formatdate(NOW.wall + 20, usegmt=True), "Date": "yesterday"},
            {},
            20,
            id="no clock of theirs",
        ),
        pytest.param({"Retry-After": "٣٠"}, {"retry_after": 7}, 7, id="other digits"),
        pytest.param({"Retry-After": "-1"}, {"retry_after": 30}, 30, id="body after negative"),
        pytest.param({"Retry-After": ""}, {"retry_after": 30.5}, 30.5, id="body after empty"),
        pytest.param({}, {"retry_after": True}, None, id="boolean"),
        pytest.param({}, {"retry_after": -5}, 0, id="negative in the body"),
        pytest.param({}, {"retry_after": 10**400}, 300, id="endless"),
        pytest.param({}, {"retry_after": "2024-03-15"}, None, id="another date"),
        pytest.param({}, {}, None, id="none"),
    ],
)
def test_retry_after(headers: dict[str, str], content: dict[str, Any], seconds: float | None) -> None:
    """Header as seconds or date, by the gateway's own clock where it sends one; then the body; 300 s at most."""
    response = answer(429, headers)
    found = retry_after(CLIENT, response, content, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.integers(0, 10**10 - 1))
def test_seconds_are_read_exactly(seconds: int) -> None:
    """A number of seconds means that many, up to 300."""
    assert retry_after(CLIENT, TokenResponse(429, {"retry-after": str(seconds)}, b""), {}, NOW) == min(seconds, 300)


@given(st.integers(0, 300))
def test_dates_are_read_exactly(seconds: int) -> None:
    """An HTTP date means the seconds from now until then."""
    headers = {"retry-after": formatdate(NOW.wall + seconds, usegmt=True)}
    assert retry_after(CLIENT, TokenResponse(429, headers, b""), {}, NOW) == seconds


odd = st.text(max_size=30) | st.integers(-(10**12), 10**12).map(str) | st.floats().map(str) | st.datetimes().map(str)


@given(odd, odd, json_values)
def test_any_retry_after_is_bounded(text: str, date: str, in_body: Any) -> None:
    """No header and no body, however odd, makes a wait that is negative, endless or a crash."""
    found = retry_after(
        CLIENT, TokenResponse(429, {"retry-after": text, "date": date}, b""), {"retry_after": in_body}, NOW
    )
    assert found is None or 0 <= found <= 300


def test_long_retry_after_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One that is cut to 300 s is a WARNING, for it may be in milliseconds; 300 s is none."""
    with caplog.at_level(logging.WARNING, "baas_auth_plugins"):
        for value in ("300", "1800000"):
            retry_after(CLIENT, TokenResponse(429, {"retry-after": value}, b""), {}, NOW)
    (record,) = caplog.records
    assert record.getMessage() == "bs2: gateway.example sent Retry-After 1800000 s; 300 s count"


# -- the body as it was transferred

CODINGS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    "": bytes,
    " GZIP ": gzip.compress,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_body_is_decoded(coding: str) -> None:
    """The codings that clients ask for are undone; header names are in lower case."""
    response = TokenResponse.from_raw(200, {"Content-Encoding": coding, "X-A": "1"}, CODINGS[coding](b"hello"))
    assert (response.body, response.headers["x-a"]) == (b"hello", "1")


@pytest.mark.parametrize(
    ("coding", "raw", "problem"),
    [
        ("br", b"x", "content coding not requested"),
        ("gzip, gzip", gzip.compress(b"x"), "content coding not requested"),
        ("gzip", b"no gzip", "cannot be decompressed"),
        ("gzip", gzip.compress(bytes(MAX_RESPONSE_BYTES + 1)), "longer than 1 MiB"),
        ("gzip", gzip.compress(bytes(64 << 20)), "longer than 1 MiB"),
        ("", bytes(MAX_RESPONSE_BYTES + 1), "longer than 1 MiB"),
    ],
    ids=["brotli", "twice", "garbage", "one byte more", "a bomb", "plain"],
)
def test_body_that_cannot_be_read_is_refused(coding: str, raw: bytes, problem: str) -> None:
    """A body in another coding, one that is damaged, and one of more than 1 MiB when decoded are refused."""
    with pytest.raises(InvalidTokenResponseError, match=problem) as caught:
        TokenResponse.from_raw(200, {"content-encoding": coding}, raw)
    assert caught.value.status_code == 200


def test_longest_body_is_read() -> None:
    """1 MiB is allowed, compressed or not."""
    assert MAX_RESPONSE_BYTES == 1024 * 1024
    longest = bytes(MAX_RESPONSE_BYTES)
    assert TokenResponse.from_raw(200, {}, longest).body == longest
    assert TokenResponse.from_raw(200, {"content-encoding": "gzip"}, gzip.compress(longest)).body == longest


@given(st.sampled_from(("gzip", "deflate", "identity", "br", "")), st.binary(max_size=100))
def test_any_body_is_decoded_or_refused(coding: str, raw: bytes) -> None:
    """Whatever bytes come with whatever coding, there is a body or the typed error."""
    try:
        response = TokenResponse.from_raw(200, {"Content-Encoding": coding}, raw)
    except InvalidTokenResponseError:
        return
    assert len(response.body) <= MAX_RESPONSE_BYTES


def test_messages_do_not_show_their_content() -> None:
    """The reprs of a request and of an answer have no URL, no header and no body."""
    request = CLIENT.token_request(SECRET, "agent/1")
    assert repr(request) == "TokenRequest(timeout=10.0)"
    assert repr(issued("a-token")) == "TokenResponse(status_code=200)"
