"""Declarations over real sockets: what a function raises, whose token is whose, and where a token may go."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from conftest import CLIENTS, Client
from joserfc.jwk import ECKey, RSAKey

from baas_auth_plugins import (
    ConfigurationError,
    MemoryTokenCache,
    OAuth2ClientCredentialsAuth,
    Provider,
    client_auth,
)
from baas_auth_plugins.sandbox import Sandbox

pytestmark = pytest.mark.timeout(60)

SOME = pytest.mark.parametrize(
    "client", [CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[6]], ids=lambda client: client.name
)


def declared(**fields: Any) -> type[OAuth2ClientCredentialsAuth]:
    """Return a class for a gateway whose origin each test gives."""
    defaults: dict[str, Any] = {
        "name": "fifth",
        "env_prefix": "FIFTH",
        "environments": {},
        "token_endpoint": "/token",
    }
    return type("FifthAuth", (OAuth2ClientCredentialsAuth,), {"provider": Provider(**(defaults | fields))})


def for_pix(client: Any, method: str, uri: str, headers: Any, body: str) -> tuple[str, Any, str]:
    """Request a token for one audience."""
    uri, headers, body = client_auth.client_secret_basic(client, method, uri, headers, body)
    return uri, headers, f"{body}&audience=pix"


def for_accounts(client: Any, method: str, uri: str, headers: Any, body: str) -> tuple[str, Any, str]:
    """Request a token for another audience."""
    uri, headers, body = client_auth.client_secret_basic(client, method, uri, headers, body)
    return uri, headers, f"{body}&audience=accounts"


def raises(client: Any, method: str, uri: str, headers: Any, body: str) -> tuple[str, Any, str]:
    """Fail as a function with a mistake does."""
    raise KeyError("audience")


def reads_another_gateway(content: dict[str, Any]) -> dict[str, Any]:
    """Expect a name that the response does not have."""
    return {"access_token": content["jwt"]}


def test_declarations_that_differ_in_their_function_share_no_token(sandbox: Sandbox) -> None:
    """One cache holds a token for each function: a token of one audience is not sent to the other's API."""
    cache, tokens = MemoryTokenCache(), []
    url = sandbox.url_for(declared(token_endpoint_auth_method=for_pix))
    for function in (for_pix, for_accounts, for_pix):
        cls = declared(token_endpoint_auth_method=function)
        auth = cls(sandbox.client_id, sandbox.client_secret, base_url=url, cache=cache)
        tokens.append(auth.get_token().access_token)
    assert tokens[0] == tokens[2] != tokens[1]
    assert sandbox.count("token") == 2


@SOME
@pytest.mark.parametrize(
    ("fields", "sent"),
    [({"token_endpoint_auth_method": raises}, set()), ({"read_token_response": reads_another_gateway}, {"token"})],
    ids=["token_endpoint_auth_method", "read_token_response"],
)
def test_what_a_function_raises_is_the_cause(
    client: Client, fields: dict[str, Any], sent: set[str], sandbox: Sandbox
) -> None:
    """Every caller gets a ConfigurationError that names the field, with the function's exception as its cause."""
    cls = declared(**fields)
    url = sandbox.url_for(cls)
    auth = cls(sandbox.client_id, sandbox.client_secret, base_url=url, cache=MemoryTokenCache())
    (name,) = fields
    with client.open(auth) as send:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=f"fifth: {name} raised KeyError") as caught:
                send("GET", f"{url}/payments")
            assert isinstance(caught.value.__cause__, KeyError)
    assert {record.kind for record in sandbox.requests} == sent


@SOME
def test_an_api_origin_gets_the_token_but_not_with_base_url(client: Client, sandbox: Sandbox) -> None:
    """The API of an environment is called with the token; with `base_url` the very same request goes without."""
    tokens, api = sandbox.url_for(declared()), sandbox.url_for(declared(token_endpoint="/another"))
    cls = declared(environments={"production": tokens}, api_origins={"production": (api,)})
    for options, status in (({}, 200), ({"base_url": tokens}, 401)):
        auth = cls(sandbox.client_id, sandbox.client_secret, cache=MemoryTokenCache(), **options)
        with client.open(auth) as send:
            assert send("GET", f"{api}/payments").status == status
    assert [record.kind for record in sandbox.requests] == ["token", "api", "api"]
    assert ["authorization" in record.headers for record in sandbox.requests[1:]] == [True, False]


def test_a_shared_secret_is_not_sent_in_a_url(sandbox: Sandbox) -> None:
    """With the parameters in the query the credentials are in the header, and the URL has neither."""
    cls = declared(token_request_format="query")
    cls(sandbox.client_id, sandbox.client_secret, base_url=sandbox.url_for(cls), cache=MemoryTokenCache()).get_token()
    (sent,) = sandbox.requests
    assert (sent.query, sent.body) == ("grant_type=client_credentials", b"")


@SOME
@pytest.mark.parametrize(
    ("alg", "key"),
    [
        ("RS256", ECKey.generate_key("P-256")),
        ("ES256", RSAKey.generate_key(2048)),
        ("ES384", ECKey.generate_key("P-256")),
    ],
    ids=["EC for RS256", "RSA for ES256", "P-256 for ES384"],
)
def test_a_key_of_another_kind_is_a_configuration_error(client: Client, alg: str, key: Any, sandbox: Sandbox) -> None:
    """A key that cannot sign with the declared algorithm is named before anything is sent."""
    cls = declared(token_endpoint_auth_method=client_auth.private_key_jwt(alg=alg))
    url = sandbox.url_for(cls)
    auth = cls(sandbox.client_id, key.as_pem(private=True).decode(), base_url=url, cache=MemoryTokenCache())
    with client.open(auth) as send, pytest.raises(ConfigurationError, match=f"private key for {alg}"):
        send("GET", f"{url}/payments")
    assert sandbox.requests == []


@pytest.mark.parametrize("alg", ["none", "HS256", "RS257", ""])
def test_an_assertion_is_signed(alg: str) -> None:
    """An algorithm that does not sign, or not with a private key, is refused where it is declared."""
    with pytest.raises(ConfigurationError, match="alg must be one of RS256"):
        client_auth.private_key_jwt(alg=alg)


@pytest.mark.parametrize("method", ["client_secret_post", "private_key_jwt", "client_secret_jwt"])
def test_an_empty_request_has_no_place_for_parameters(method: str) -> None:
    """A method whose credentials are parameters is refused with the format that sends none."""
    with pytest.raises(ConfigurationError, match="token_request_format must not be empty"):
        declared(token_endpoint_auth_method=method, token_request_format="empty")


def test_from_env_names_a_missing_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the declaration has no environments, `from_env` names the variable of the base URL among the missing."""
    for name in ("CLIENT_ID", "CLIENT_SECRET", "BASE_URL"):
        monkeypatch.delenv(f"FIFTH_{name}", raising=False)
    with pytest.raises(ConfigurationError, match="FIFTH_CLIENT_ID, FIFTH_CLIENT_SECRET, FIFTH_BASE_URL"):
        declared().from_env()


def test_one_session_is_enough_for_a_declaration(sandbox: Sandbox) -> None:
    """Two classes with equal declarations, made in different places, share their token."""
    cache = MemoryTokenCache()
    for cls in (declared(), declared()):
        auth = cls(sandbox.client_id, sandbox.client_secret, base_url=sandbox.url_for(cls), cache=cache)
        assert requests.get(f"{sandbox.url_for(cls)}/payments", auth=auth, timeout=10).status_code == 200
    assert sandbox.count("token") == 1
