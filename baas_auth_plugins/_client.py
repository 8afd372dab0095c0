"""The OAuth client (RFC 6749 section 2): who asks for a token, for what, and how patiently.

Frozen data, plus the pure functions that make its requests and read the answers to them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ._client_auth import basic_authorization, prepare
from ._flow import TokenRequest, TokenResponse
from ._provider import Provider
from ._response import read_json
from ._token import Instant, State, Token, digest
from .exceptions import InvalidScopeError, InvalidTokenResponseError, RateLimitError

if TYPE_CHECKING:
    from ._seal import Seal
    from .events import Event

__all__ = ["Client", "Headers", "logger"]

logger = logging.getLogger("baas_auth_plugins")

Headers = Mapping[str, Any]
"""A request's, as its library keeps them: requests has str or bytes, httpx its own class."""

_SALT = b"baas-auth-plugins v1"


class Client(NamedTuple):
    """Everything that an auth object was given, checked, but for its secret."""

    provider: Provider
    client_id: str
    base_url: str
    scope: str | None
    leeway: float
    timeout: float
    max_wait: float
    headers: Mapping[str, str]
    on_event: Callable[[Event], object] | None = None

    def __repr__(self) -> str:
        return f"Client(provider={self.name!r}, client_id={self.client_id!r}, base_url={self.base_url!r})"

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.provider.name

    @property
    def token_endpoint(self) -> str:
        """The token endpoint's URL."""
        return self.base_url + self.provider.token_endpoint

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes asked for, or required where the gateway assigns them."""
        return frozenset((self.scope or "").split())

    def tell(self, kind: str, token: Token | None, fields: Callable[[], Mapping[str, Any]]) -> None:
        """Tell `on_event`, if anybody listens; what a listener raises stays out of the caller's request."""
        if self.on_event is None:
            return
        from . import events

        token_digest = digest(token.access_token) if token else None
        try:
            self.on_event(getattr(events, kind)(provider=self.name, token_digest=token_digest, **fields()))
        except Exception:
            logger.exception("%s: on_event raised an exception", self.name)

    def tell_limited(self, error: RateLimitError) -> None:
        """Tell `on_event` of a rate limit."""
        self.tell("RateLimited", None, lambda: {"retry_after": error.retry_after})

    def key(self, secret: str) -> str:
        """Return the cache key: a digest over all that a token depends on, keyed with the secret."""
        headers = sorted((name.lower(), value) for name, value in self.headers.items())
        return _cache_key(secret, [self.name, self.token_endpoint, self.client_id, sorted(self.scopes), headers])

    def limits_key(self, secret: str) -> str:
        """Return the cache key of what holds for the client whatever its scopes: how often it may ask for a token."""
        return _cache_key(secret, [self.token_endpoint, self.client_id])

    def seal(self, secret: str) -> Seal:
        """Return what seals this client's tokens where they leave the process."""
        from ._seal import Seal  # cryptography takes its time to import

        return Seal(_derive(secret, b"token-at-rest"))

    def token_request(
        self, secret: str, headers: Headers, endpoint: str | None = None
    ) -> Callable[[float], TokenRequest]:
        """Return what makes the token request, or the same to another endpoint, from its timeout in seconds.

        Args:
            secret: the client's.
            headers: of the request that needs it.
            endpoint: another than the token endpoint.
        """
        url = self.base_url + (endpoint or self.provider.token_endpoint)
        url, own, body = prepare(self.provider, url, self.client_id, secret, self.scope)
        return partial(TokenRequest, url, self._with_extra(own, headers.get("User-Agent")), body)

    def _with_extra(self, headers: Mapping[str, str], user_agent: str | bytes | None) -> dict[str, str]:
        if isinstance(user_agent, bytes):  # as requests lets it be
            user_agent = user_agent.decode("latin-1")
        merged = {"User-Agent": user_agent, **headers} if user_agent else dict(headers)
        for name, value in self.headers.items():
            for present in [key for key in merged if key.lower() == name.lower()]:
                del merged[present]
            merged[name] = value
        return merged

    def read_token(self, secret: str, now: Callable[[], Instant], response: TokenResponse, sent: Instant) -> Token:
        """Return the token that a response holds.

        Raises:
            TokenEndpointError: it holds none, or one that cannot be used.
        """
        payload = read_json(response, self.name, now(), secret, basic_authorization(self.client_id, secret)[6:])
        assigned = self.provider.scope == "assigned"
        token = Token.from_response(
            payload,
            sent,
            provider=self.name,
            default_expires_in=self.provider.default_expires_in,
            requested="" if assigned else self.scope or "",
        )
        if token.state(now(), self.leeway) is State.DEAD:
            raise InvalidTokenResponseError(f"{self.name}: the token expired before it arrived", provider=self.name)
        missing = self.scopes - token.scopes
        if assigned and missing and isinstance(payload.get("scope"), str):
            error = InvalidScopeError(
                f"{self.name}: the gateway did not grant {' '.join(sorted(missing))}; ask it to, or drop them from `scope`",
                provider=self.name,
                status_code=response.status_code,
                error="invalid_scope",
            )
            error.missing_scopes = missing
            raise error
        return token


def _cache_key(secret: str, identity: list[Any]) -> str:
    return f"v1:{hmac.digest(_derive(secret, b'key-id'), json.dumps(identity).encode(), hashlib.sha256).hex()}"


def _derive(secret: str, purpose: bytes) -> bytes:
    """Return 32 bytes that only the secret gives, for one purpose only: HKDF-SHA256 (RFC 5869)."""
    extracted = hmac.digest(_SALT, secret.encode(), hashlib.sha256)
    return hmac.digest(extracted, purpose + b"\x01", hashlib.sha256)
