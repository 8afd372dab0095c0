"""Asking the gateway about a token (RFC 7662) and revoking it (RFC 7009), as Axia documents both.

Axia wants the token in the query string. It is percent-encoded there, and kept out of the logs of
the HTTP libraries and out of every exception.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from ._http.drivers import arun, run
from ._http.httpx_messages import aclient_sender, client_sender
from ._http.log_redaction import redacted_logs
from ._http.session_sender import SessionSender
from ._lifecycle.call import Call, Sender
from ._lifecycle.effects import Flow
from ._oauth.messages import TokenRequest, TokenResponse
from ._oauth.responses import read_json, redact
from ._oauth.token import Token, now
from .auth import OAuth2ClientCredentialsAuth
from .exceptions import ConfigurationError, InvalidTokenResponseError

__all__ = ["Introspection", "IntrospectionMixin", "Revocation"]

T = TypeVar("T")

_LONGEST_TOKEN = 16_384  # it must fit in a URL


class Introspection(NamedTuple):
    """What the gateway says of a token (RFC 7662 section 2.2). Times are epoch seconds.

    Attributes:
        active: whether the token may be used.
        client_id: whose it is.
        token_type: ``"Bearer"``.
        scopes: what it allows.
        expires_at: when it expires.
        issued_at: when it was issued.
        reason: why it is not active, in the gateway's words.
    """

    active: bool
    client_id: str | None = None
    token_type: str | None = None
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None
    issued_at: float | None = None
    reason: str | None = None


class Revocation(NamedTuple):
    """What became of a revocation.

    Attributes:
        status: the gateway's words.
        revoked_at: when, in epoch seconds; None where the token was revoked before.
        token_id: the gateway's name for the token; None likewise.
    """

    status: str
    revoked_at: float | None = None
    token_id: str | None = None


class IntrospectionMixin(OAuth2ClientCredentialsAuth):
    """Introspection and revocation, for a provider that declares both endpoints."""

    def introspect(self, token: Token | str | None = None, *, client: Any = None) -> Introspection:
        """Ask the gateway about a token (RFC 7662).

        Args:
            token: which one; by default the cached one; requested if there is none.
            client: a `requests.Session`, `httpx.Client` or `httpx2.Client` to ask through; by default
                the auth object's `session`, or one of the package's own.

        Raises:
            TokenEndpointError: the gateway refused, failed or could not be reached.
        """
        return self._run(self._introspect, token, client)

    async def aintrospect(self, token: Token | str | None = None, *, client: Any = None) -> Introspection:
        """Do as `introspect`; `client` is an `httpx.AsyncClient` or `httpx2.AsyncClient`."""
        return await self._arun(self._introspect, token, client)

    def revoke(self, token: Token | str | None = None, *, client: Any = None) -> Revocation:
        """Revoke a token (RFC 7009). Axia ends all associated grants with it. The next call requests a new token.

        A token that was revoked before, or that the gateway does not know, is no error.

        Args:
            token: which one; by default the cached one.
            client: as for `introspect`.

        Raises:
            ConfigurationError: no token was given and none is cached.
            TokenEndpointError: the gateway refused, failed or could not be reached; the token is kept.
        """
        return self._run(self._revoke, token, client)

    async def arevoke(self, token: Token | str | None = None, *, client: Any = None) -> Revocation:
        """Do as `revoke`; `client` is an `httpx.AsyncClient` or `httpx2.AsyncClient`."""
        return await self._arun(self._revoke, token, client)

    def _run(self, ask: Callable[[Call, str], Flow[T]], token: Token | str | None, client: Any) -> T:
        call = self._credentials.call(_sender(client) or self._sender, self._sender.user_agent)
        value = _value(token) if token is not None else run(self._own_token(ask))
        with redacted_logs(value):
            return run(ask(call, value))

    async def _arun(self, ask: Callable[[Call, str], Flow[T]], token: Token | str | None, client: Any) -> T:
        send = _asender(client)
        call = self._credentials.call(self._sender if send is None else None, self._sender.user_agent)
        value = _value(token) if token is not None else await arun(self._own_token(ask))
        with redacted_logs(value):
            return await arun(ask(call, value), send)

    def _own_token(self, ask: object) -> Flow[str]:
        call = self._call()
        token = yield from self._credentials.current(call)
        if token is None and ask == self._revoke:
            raise ConfigurationError("token: there is none in the cache to revoke; pass the one that you mean")
        if token is None:
            token = (yield from self._credentials.acquire(call, in_background=True)).token
        return token.access_token

    def _introspect(self, call: Call, token: str) -> Flow[Introspection]:
        response, secrets = yield from self._ask(call, self.provider.introspection_endpoint, token)
        return self._read_introspection(response, secrets)

    def _revoke(self, call: Call, token: str) -> Flow[Revocation]:
        response, secrets = yield from self._ask(call, self.provider.revocation_endpoint, token)
        revocation = self._read_revocation(response, secrets)
        yield from self._credentials.invalidate(call, token)
        return revocation

    def _ask(self, call: Call, endpoint: str | None, token: str) -> Flow[tuple[TokenResponse, tuple[str, ...]]]:
        if endpoint is None:
            raise ConfigurationError(f"{self.provider.name} has no such endpoint: its `provider` names none")
        response, secrets = yield from self._credentials.request_about(call, endpoint, f"token={quote(token, safe='')}")
        return response, (*secrets, token)

    def _read_introspection(self, response: TokenResponse, secrets: tuple[str, ...]) -> Introspection:
        client = self._credentials.client
        payload = read_json(client, response, now(), *secrets)
        active = payload.get("active")
        if not isinstance(active, bool):
            raise InvalidTokenResponseError(
                f"{client.name}: the introspection response has no `active`",
                provider=client.name,
                status_code=response.status_code,
            )
        reason = _text(payload, "reason")
        return Introspection(
            active=active,
            client_id=_text(payload, "client_id"),
            token_type=_text(payload, "token_type"),
            scopes=frozenset((_text(payload, "scope") or "").split()),
            expires_at=_moment(payload, "exp", "expires_at"),
            issued_at=_moment(payload, "iat", "issued_at"),
            reason=None if reason is None else redact(reason, secrets),
        )

    def _read_revocation(self, response: TokenResponse, secrets: tuple[str, ...]) -> Revocation:
        if response.status_code == 404:
            return Revocation("Token not found or already revoked")
        payload = read_json(self._credentials.client, response, now(), *secrets)
        token_id = _text(payload, "token_id")
        return Revocation(
            status=redact(_text(payload, "status") or "", secrets),
            revoked_at=_moment(payload, "revoked_at"),
            token_id=None if token_id and any(secret in token_id for secret in secrets) else token_id,
        )


def _sender(client: Any) -> Sender | None:
    if client is None:
        return None
    if isinstance(client, type):
        raise ConfigurationError("client must be an open client, not a class")
    if hasattr(client, "get_adapter"):
        return SessionSender(client)
    if hasattr(client, "build_request") and not inspect.iscoroutinefunction(client.send):
        return client_sender(client)
    raise ConfigurationError("client must be a requests.Session, httpx.Client or httpx2.Client")


def _asender(client: Any) -> Callable[[TokenRequest], Awaitable[TokenResponse]] | None:
    if client is None:
        return None
    if not isinstance(client, type) and inspect.iscoroutinefunction(getattr(client, "send", None)):
        return aclient_sender(client)
    raise ConfigurationError("client must be an httpx.AsyncClient or httpx2.AsyncClient")


def _value(token: object) -> str:
    value = token.access_token if isinstance(token, Token) else token
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_TOKEN or not value.isprintable():
        raise ConfigurationError(f"token must be a Token, or a printable str of at most {_LONGEST_TOKEN} characters")
    return value


def _text(payload: Mapping[str, Any], name: str) -> str | None:
    value = payload.get(name)
    return value if isinstance(value, str) and value.isprintable() else None


def _moment(payload: Mapping[str, Any], *names: str) -> float | None:
    """Return the first of these members that is a time: epoch seconds, or ISO 8601."""
    for name in names:
        value = payload.get(name)
        try:
            if isinstance(value, str):
                return datetime.fromisoformat(value).timestamp()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except (ValueError, OverflowError, OSError):
            continue
    return None
