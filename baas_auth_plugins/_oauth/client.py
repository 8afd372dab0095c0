"""The OAuth client (RFC 6749 section 2): what an auth object was configured with, and the requests that follow from it."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from ..client_auth import SignedAssertion, basic_authorization, client_secret_basic
from ..exceptions import BaaSAuthError, ConfigurationError
from .messages import TokenRequest
from .origins import origin_of_url
from .provider import Provider

Headers = Mapping[str, Any]
"""A request's headers as its library keeps them: str or bytes in requests, a class of their own in httpx."""

_SALT = b"baas-auth-plugins v2"
_JSON, _FORM = "application/json", "application/x-www-form-urlencoded"
_SIGNED = {
    "private_key_jwt": SignedAssertion("private_key_jwt", "RS256"),
    "client_secret_jwt": SignedAssertion("client_secret_jwt", "HS256"),
}


class OAuthClient(NamedTuple):
    """Everything that an auth object was given, checked, without its secret.

    Attributes:
        provider: the gateway.
        client_id: the client.
        base_url: origin of the token endpoint.
        scope: the requested or required scopes, separated by blanks; None for none.
        leeway: seconds before expiry at which a token is renewed.
        timeout: seconds for one token request.
        max_wait: most seconds that one caller waits for a token.
        headers: extra headers for token, introspection and revocation requests.
    """

    provider: Provider
    client_id: str
    base_url: str
    scope: str | None
    leeway: float
    timeout: float
    max_wait: float
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"OAuthClient(provider={self.name!r}, client_id={self.client_id!r}, base_url={self.base_url!r})"

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.provider.name

    @property
    def host(self) -> str:
        """The token endpoint's host, for errors."""
        return urlsplit(self.base_url).netloc

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that are requested, or required where the gateway assigns them."""
        return frozenset((self.scope or "").split())

    def cache_key(self, secret: str) -> str:
        """Return a digest over all that a token depends on, keyed with the secret."""
        headers = sorted((name.lower(), value) for name, value in self.headers.items())
        return _digest(secret, [self.provider.identity, self.base_url, self.client_id, sorted(self.scopes), headers])

    def limits_key(self, secret: str) -> str:
        """Return the cache key of the client's rate limit, which holds for all of its scopes."""
        return _digest(secret, [self.base_url + self.provider.token_endpoint, self.client_id])

    def token_request(self, secret: str, user_agent: str | None) -> TokenRequest:
        """Return the token request (RFC 6749 section 4.4.2).

        Args:
            secret: the client's.
            user_agent: of the API request that needs the token.

        Raises:
            ConfigurationError: a function of the declaration raised, or returned something else.
        """
        return self._request(self.provider.token_endpoint, secret, user_agent)

    def request_about(self, endpoint: str, query: str, secret: str, user_agent: str | None) -> TokenRequest:
        """Return a request to another of the gateway's OAuth endpoints, authenticated in the same way."""
        request = self._request(endpoint, secret, user_agent)
        return request._replace(url=f"{request.url}{'&' if '?' in request.url else '?'}{query}")

    def _request(self, endpoint: str, secret: str, user_agent: str | None) -> TokenRequest:
        url, headers, body = self._authenticated(self.base_url + endpoint, secret)
        extra = {name.lower() for name in self.headers}
        merged = {"User-Agent": user_agent, **headers} if user_agent else headers
        merged = {name: value for name, value in merged.items() if name.lower() not in extra} | dict(self.headers)
        return TokenRequest(url, merged, body.encode(), self.timeout)

    def _authenticated(self, url: str, secret: str) -> tuple[str, dict[str, str], str]:
        from authlib.oauth2.auth import ClientAuth  # imported at the first token request: it takes long
        from authlib.oauth2.rfc6749.parameters import prepare_token_request

        provider, method = self.provider, self.provider.token_endpoint_auth_method
        scope = None if provider.scope == "assigned" else self.scope
        form = prepare_token_request("client_credentials", scope=scope)
        if method == "client_secret_basic":  # Authlib's own fails at characters that latin-1 lacks
            method = client_secret_basic
        method = _SIGNED.get(method, method) if isinstance(method, str) else method
        auth = ClientAuth(self.client_id, secret, method)
        if isinstance(method, str | SignedAssertion) or method is client_secret_basic:
            _, headers, form = auth.prepare("POST", url, {}, form)
            url, format_headers, body = _formatted(provider.token_request_format, url, form)
            return url, format_headers | dict(headers), body
        endpoint = url
        url, headers, body = _formatted(provider.token_request_format, url, form)
        try:
            url, prepared, body = auth.prepare("POST", url, headers, body)
            headers = {str(name): str(value) for name, value in prepared.items()}
        except BaaSAuthError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"{self.name}: token_endpoint_auth_method raised {type(error).__name__}"
            ) from error
        if origin_of_url(url) != origin_of_url(endpoint) or not isinstance(body, str):
            raise ConfigurationError(f"{self.name}: token_endpoint_auth_method must return (url, headers, body)")
        return url, headers, body


def _formatted(request_format: str, url: str, form: str) -> tuple[str, dict[str, str], str]:
    """Return the URL, the headers and the body that carry the parameters of a form."""
    match request_format:
        case "json":
            return url, {"Content-Type": _JSON}, json.dumps(dict(parse_qsl(form, keep_blank_values=True)))
        case "query":
            return f"{url}?{form}", {"Content-Type": _FORM}, ""
        case "empty":
            return url, {"Content-Type": _JSON}, ""
    return url, {"Content-Type": _FORM}, form


def basic_value(client: OAuthClient, secret: str) -> str:
    """Return the base64 of a Basic header, which must not appear in an error."""
    return basic_authorization(client.client_id, secret).removeprefix("Basic ")


def _digest(secret: str, identity: list[Any]) -> str:
    return f"v2:{hmac.digest(derive_key(secret, b'key-id'), json.dumps(identity).encode(), hashlib.sha256).hex()}"


def derive_key(secret: str, purpose: bytes) -> bytes:
    """Return 32 bytes that only the secret gives, for one purpose: HKDF-SHA256 (RFC 5869)."""
    extracted = hmac.digest(_SALT, secret.encode(), hashlib.sha256)
    return hmac.digest(extracted, purpose + b"\x01", hashlib.sha256)
