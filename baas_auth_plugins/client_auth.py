"""How a client authenticates at a token endpoint: the building blocks for `Provider` declarations.

Each is a function as Authlib's `ClientAuth` takes it: it gets the client, the method, the URL, the headers and the body
of the token request, and returns the URL, the headers and the body to send.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote_plus

from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from authlib.oauth2.auth import ClientAuth

__all__ = [
    "basic_authorization",
    "client_secret_basic",
    "client_secret_basic_encoded",
    "client_secret_json",
    "client_secret_jwt",
    "private_key_jwt",
]

Headers = MutableMapping[str, str]
Prepared = tuple[str, Headers, str]

_ALGORITHMS = {
    "private_key_jwt": (
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "EdDSA",
        "Ed25519",
    ),
    "client_secret_jwt": ("HS256", "HS384", "HS512"),
}


def basic_authorization(client_id: str, client_secret: str) -> str:
    """Return the value of a Basic header: both halves raw, as UTF-8, as the pages of Axia and BS2 show it.

    RFC 6749 section 2.3.1 form-encodes the halves first: see `client_secret_basic_encoded`. Authlib's own method fails
    at characters that latin-1 lacks.
    """
    return "Basic " + b64encode(f"{client_id}:{client_secret}".encode()).decode("ascii")


def client_secret_basic(client: ClientAuth, method: str, uri: str, headers: Headers, body: str) -> Prepared:
    """Send the credentials in a Basic header, raw. The method's name does the same."""
    headers["Authorization"] = basic_authorization(client.client_id, client.client_secret)
    return uri, headers, body


def client_secret_basic_encoded(client: ClientAuth, method: str, uri: str, headers: Headers, body: str) -> Prepared:
    """Send the credentials in a Basic header, each form-encoded first (RFC 6749 section 2.3.1)."""
    halves = quote_plus(client.client_id), quote_plus(client.client_secret)
    headers["Authorization"] = basic_authorization(*halves)
    return uri, headers, body


def client_secret_json(client: ClientAuth, method: str, uri: str, headers: Headers, body: str) -> Prepared:
    """Send a JSON body of ``clientId`` and ``clientSecret`` alone (NTX Pay, Avista)."""
    headers["Content-Type"] = "application/json"
    return uri, headers, json.dumps({"clientId": client.client_id, "clientSecret": client.client_secret})


@dataclass(frozen=True)
class SignedAssertion:
    """Send a JWT that the client signs (RFC 7523 section 2.2). Its repr is stable: it is part of the cache key."""

    method: Literal["private_key_jwt", "client_secret_jwt"]
    alg: str
    headers: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.alg not in _ALGORITHMS[self.method]:
            known = ", ".join(_ALGORITHMS[self.method])
            raise ConfigurationError(f"{self.method}: alg must be one of {known}, not {self.alg!r}")

    def __call__(self, client: ClientAuth, method: str, uri: str, headers: Headers, body: str) -> Prepared:
        """Add ``client_assertion_type`` and ``client_assertion`` to the body; the audience is the token endpoint.

        Raises:
            ConfigurationError: the client secret is no key for the algorithm.
        """
        from authlib.oauth2.rfc7523 import ClientSecretJWT, PrivateKeyJWT
        from joserfc.errors import JoseError

        client.client_secret, secret = None, client.client_secret
        try:
            client.client_secret = key = self._key(secret)
            header = ({"kid": key.kid} if key.kid else {}) | dict(self.headers)
            sign = (PrivateKeyJWT if self.method == "private_key_jwt" else ClientSecretJWT)(
                headers=header, alg=self.alg
            )
            prepared: Prepared = sign(client, method, uri, headers, body)
        except (ValueError, JoseError):  # its text and its cause can hold the key
            raise ConfigurationError(f"client_secret must be a PEM or a JWK of a private key for {self.alg}") from None
        finally:
            client.client_secret = secret
        return prepared

    def _key(self, secret: str) -> Any:
        from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

        if self.method == "client_secret_jwt":
            return OctKey.import_key(secret)
        kind = ECKey if self.alg.startswith("ES") else OKPKey if self.alg.startswith("Ed") else RSAKey
        key = kind.import_key(json.loads(secret) if secret.lstrip().startswith("{") else secret)
        if not key.is_private:
            raise ValueError("a public key cannot sign")
        return key


def private_key_jwt(*, alg: str = "RS256", headers: Mapping[str, Any] | None = None) -> SignedAssertion:
    """Return the method ``private_key_jwt`` with another algorithm or with further JWT headers.

    Args:
        alg: the JWS algorithm, such as ``"PS256"`` for Open Finance Brasil.
        headers: further JWT headers, such as ``{"kid": "..."}``. The ``kid`` of a JWK is there by itself.

    Raises:
        ConfigurationError: the algorithm is none that signs with a private key.
    """
    return SignedAssertion("private_key_jwt", alg, tuple(sorted((headers or {}).items())))


def client_secret_jwt(*, alg: str = "HS256", headers: Mapping[str, Any] | None = None) -> SignedAssertion:
    """Return the method ``client_secret_jwt`` with another algorithm or with further JWT headers.

    Args:
        alg: the JWS algorithm.
        headers: further JWT headers.

    Raises:
        ConfigurationError: the algorithm is none that signs with a shared secret.
    """
    return SignedAssertion("client_secret_jwt", alg, tuple(sorted((headers or {}).items())))
