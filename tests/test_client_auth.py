"""How a client authenticates: what is on the wire for each method, and assertions that a gateway can verify."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from by_hand import CLIENT
from conftest import SECRET, FakeClock
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from baas_auth_plugins import ConfigurationError, client_auth
from baas_auth_plugins._oauth.client import OAuthClient, basic_value
from baas_auth_plugins._oauth.messages import TokenRequest

URL = "https://gateway.example/auth/oauth/v2/token"
RSA = RSAKey.generate_key(2048, {"kid": "rsa-1"})
EC = ECKey.generate_key("P-256", {"kid": "ec-1"})
ED = OKPKey.generate_key("Ed25519")
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def pem(key: Any) -> str:
    found: bytes = key.as_pem(private=True)
    return found.decode()


def jwk(key: Any, *, private: bool = True) -> str:
    return json.dumps(key.as_dict(private=private))


def client_with(method: Any, **fields: Any) -> OAuthClient:
    fields = {"token_endpoint_auth_method": method, "scope": "optional"} | fields
    return CLIENT._replace(provider=replace(CLIENT.provider, **fields), scope=None)


def sent(method: Any, secret: str = SECRET, **fields: Any) -> TokenRequest:
    return client_with(method, **fields).token_request(secret, None)


def form(request: TokenRequest) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.body.decode(), strict_parsing=True).items()}


# -- Basic


@pytest.mark.parametrize(
    ("method", "client_id", "secret", "expected"),
    [
        ("client_secret_basic", "your-client-id", SECRET, b"your-client-id:your-client-secret"),
        (client_auth.client_secret_basic, "your-client-id", SECRET, b"your-client-id:your-client-secret"),
        ("client_secret_basic", "id", "sénha€%:x", "id:sénha€%:x".encode()),
        (client_auth.client_secret_basic_encoded, "id", "a b%:é", b"id:a+b%25%3A%C3%A9"),
        (client_auth.client_secret_basic_encoded, "i:d", "x", b"i%3Ad:x"),
    ],
)
def test_basic(method: Any, client_id: str, secret: str, expected: bytes) -> None:
    """The credentials are raw UTF-8 as Axia and BS2 document it, or form-encoded first (RFC 6749 section 2.3.1)."""
    client = client_with(method)._replace(client_id=client_id)
    request = client.token_request(secret, None)
    scheme, _, value = request.headers["Authorization"].partition(" ")
    assert (scheme, b64decode(value)) == ("Basic", expected)
    assert request.body == b"grant_type=client_credentials"
    assert (request.url, request.headers["Content-Type"]) == (URL, "application/x-www-form-urlencoded")


def test_basic_value_is_what_errors_must_not_show() -> None:
    """The string that is redacted is the one that is sent."""
    request = sent("client_secret_basic")
    assert request.headers["Authorization"] == f"Basic {basic_value(CLIENT, SECRET)}"


# -- parameters


def test_post() -> None:
    """The credentials are among the parameters, and there is no Authorization header."""
    request = sent("client_secret_post")
    assert form(request) == {
        "grant_type": "client_credentials",
        "client_id": "your-client-id",
        "client_secret": SECRET,
    }
    assert "Authorization" not in request.headers


@pytest.mark.parametrize("secret", ["a&b=c", "ç+ d%", "x" * 200])
def test_post_is_encoded(secret: str) -> None:
    """Whatever characters a secret has, it arrives whole, in a form and in JSON."""
    assert form(sent("client_secret_post", secret))["client_secret"] == secret
    in_json = json.loads(sent("client_secret_post", secret, token_request_format="json").body)
    assert in_json["client_secret"] == secret


def test_none() -> None:
    """A client without a secret sends its id alone (RFC 8705: its certificate authenticates it)."""
    request = sent("none", "")
    assert form(request) == {"grant_type": "client_credentials", "client_id": "your-client-id"}
    assert "Authorization" not in request.headers


def test_json_credentials() -> None:
    """NTX Pay and Avista get their own two names, and nothing else."""
    request = sent(client_auth.client_secret_json)
    assert json.loads(request.body) == {"clientId": "your-client-id", "clientSecret": SECRET}
    assert request.headers["Content-Type"] == "application/json"


# -- signed assertions


def claims_of(request: TokenRequest, key: Any, alg: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of the assertion, verified as a gateway would."""
    parameters = form(request)
    assert parameters["client_assertion_type"] == JWT_BEARER
    assert parameters["grant_type"] == "client_credentials"
    assert "client_secret" not in parameters
    assert "Authorization" not in request.headers
    token = jwt.decode(parameters["client_assertion"], key, algorithms=[alg])
    return token.header, token.claims


SIGNED = [
    pytest.param("private_key_jwt", pem(RSA), RSA, "RS256", None, id="RS256 by name, PEM"),
    pytest.param("private_key_jwt", jwk(RSA), RSA, "RS256", "rsa-1", id="RS256 by name, JWK"),
    pytest.param(client_auth.private_key_jwt(alg="PS256"), jwk(RSA), RSA, "PS256", "rsa-1", id="PS256, JWK"),
    pytest.param(
        client_auth.private_key_jwt(alg="PS256", headers={"kid": "of-1"}),
        pem(RSA),
        RSA,
        "PS256",
        "of-1",
        id="PS256, PEM",
    ),
    pytest.param(
        client_auth.private_key_jwt(headers={"kid": "mine"}), jwk(RSA), RSA, "RS256", "mine", id="a kid of one's own"
    ),
    pytest.param(client_auth.private_key_jwt(alg="ES256"), pem(EC), EC, "ES256", None, id="ES256, PEM"),
    pytest.param(client_auth.private_key_jwt(alg="ES256"), jwk(EC), EC, "ES256", "ec-1", id="ES256, JWK"),
    pytest.param(client_auth.private_key_jwt(alg="Ed25519"), pem(ED), ED, "Ed25519", None, id="Ed25519, PEM"),
    pytest.param("client_secret_jwt", SECRET * 3, OctKey.import_key(SECRET * 3), "HS256", None, id="HS256 by name"),
    pytest.param(
        client_auth.client_secret_jwt(alg="HS512", headers={"kid": "k"}),
        SECRET * 4,
        OctKey.import_key(SECRET * 4),
        "HS512",
        "k",
        id="HS512",
    ),
]


@pytest.mark.parametrize(("method", "secret", "key", "alg", "kid"), SIGNED)
def test_assertion_is_signed(method: Any, secret: str, key: Any, alg: str, kid: str | None) -> None:
    """The gateway verifies the signature; issuer and subject are the client, and the audience is the token endpoint."""
    header, claims = claims_of(sent(method, secret), key, alg)
    assert (header["alg"], header.get("kid")) == (alg, kid)
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("your-client-id", "your-client-id", URL)
    assert 0 < claims["exp"] - time.time() <= 3600
    assert claims["jti"]


def test_each_assertion_is_used_once() -> None:
    """Two token requests have two assertions: a gateway may refuse a `jti` that it has seen."""
    one, other = (claims_of(sent("private_key_jwt", pem(RSA)), RSA, "RS256")[1] for _ in range(2))
    assert one["jti"] != other["jti"]


def test_assertion_follows_the_clock(clock: FakeClock) -> None:
    """An assertion is good from now on, by this machine's clock."""
    claims = claims_of(sent("client_secret_jwt", SECRET * 3), OctKey.import_key(SECRET * 3), "HS256")[1]
    assert claims["iat"] == clock.wall
    assert claims["exp"] > clock.wall


@pytest.mark.parametrize(
    ("method", "secret"),
    [
        ("private_key_jwt", SECRET),
        ("private_key_jwt", "{"),
        ("private_key_jwt", "{}"),
        ("private_key_jwt", '{"kty": "RSA"}'),
        ("private_key_jwt", jwk(RSA, private=False)),
        ("private_key_jwt", pem(EC)),
        ("private_key_jwt", jwk(EC)),
        ("private_key_jwt", pem(RSA)[:200]),
        ("private_key_jwt", pem(RSA).replace("A", "!", 5)),
        (client_auth.private_key_jwt(alg="ES256"), pem(RSA)),
    ],
    ids=[
        "no key",
        "half JSON",
        "empty JWK",
        "JWK without numbers",
        "public",
        "another kind",
        "another kind, JWK",
        "cut",
        "other characters",
        "RSA for EC",
    ],
)
def test_secret_that_is_no_key(method: Any, secret: str) -> None:
    """A secret that cannot sign is a ConfigurationError that names the algorithm, and does not contain the key."""
    with pytest.raises(ConfigurationError, match=r"client_secret must be a PEM or a JWK .* for (RS|ES)256") as caught:
        sent(method, secret)
    seen = repr(caught.value) + repr(caught.value.__cause__)
    assert caught.value.__suppress_context__
    assert not any(line in seen for line in secret.split() if len(line) > 12)


def test_secret_is_back_after_signing() -> None:
    """A function that composes with a signed assertion still sees the secret as it was given."""

    class Client:
        client_id = "your-client-id"
        client_secret = pem(RSA)

    client: Any = Client()
    client_auth.private_key_jwt()(client, "x", URL, {}, "grant_type=client_credentials")
    assert client.client_secret == pem(RSA)


@pytest.mark.parametrize("alg", ["none", "", "rs256", "HS256", "XS256"])
def test_algorithm_is_checked_when_it_is_declared(alg: str) -> None:
    """An algorithm that no private key signs with is an error in the declaration, not in the first call."""
    with pytest.raises(ConfigurationError, match="private_key_jwt: alg must be one of RS256"):
        client_auth.private_key_jwt(alg=alg)
    if alg != "HS256":
        with pytest.raises(ConfigurationError, match="client_secret_jwt: alg must be one of HS256"):
            client_auth.client_secret_jwt(alg=alg)


def test_methods_have_stable_reprs() -> None:
    """A method is a part of the cache key: equal methods have equal reprs, in the order of nothing but their content."""
    one = client_auth.private_key_jwt(alg="PS256", headers={"kid": "1", "typ": "JWT"})
    other = client_auth.private_key_jwt(alg="PS256", headers={"typ": "JWT", "kid": "1"})
    assert (one, repr(one), hash(one)) == (other, repr(other), hash(other))
    assert " at 0x" not in repr(one)
    different = {repr(client_auth.private_key_jwt()), repr(client_auth.client_secret_jwt()), repr(one)}
    assert len(different) == 3


# -- what all methods have in common


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", client_auth.client_secret_json])
def test_extra_headers_and_user_agent(method: Any) -> None:
    """The User-Agent of the API request goes along; the user's own headers override it, in any case."""
    client = client_with(method)
    assert client.token_request(SECRET, "shop/1").headers["User-Agent"] == "shop/1"
    assert "User-Agent" not in client.token_request(SECRET, None).headers
    own = client._replace(headers={"user-agent": "own/1", "X-Env": "h"}).token_request(SECRET, "shop/1").headers
    assert {name: value for name, value in own.items() if name.lower() in ("user-agent", "x-env")} == {
        "user-agent": "own/1",
        "X-Env": "h",
    }


def test_requests_about_a_token_are_authenticated_alike() -> None:
    """Introspection and revocation go to their own path, with the token in the query and the same credentials."""
    request = client_with("client_secret_basic").request_about("/introspect", "token=a%20b", SECRET, "shop/1")
    parts = urlsplit(request.url)
    assert (parts.path, parts.query) == ("/introspect", "token=a%20b")
    assert request.headers["Authorization"].startswith("Basic ")
    in_query = client_with("client_secret_basic", token_request_format="query")
    assert in_query.request_about("/x", "token=a", SECRET, None).url.endswith(
        "/x?grant_type=client_credentials&token=a"
    )


@pytest.mark.parametrize("secret", [SECRET, pem(RSA)])
def test_client_does_not_show_the_secret(secret: str) -> None:
    """Neither the client nor its request has the secret in its repr, nor has a cache key."""
    client = client_with("private_key_jwt" if "BEGIN" in secret else "client_secret_basic")
    shown = (
        repr(client) + repr(client.token_request(secret, None)) + client.cache_key(secret) + client.limits_key(secret)
    )
    assert secret not in shown
    assert secret.split("\n")[1 if "\n" in secret else 0] not in shown
