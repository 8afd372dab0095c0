"""One gateway's answers without a server, for `testing.stub_token`: they accept any client, and keep no state."""

from __future__ import annotations

import time
from urllib.parse import parse_qs

from .._oauth.provider import Provider
from ._dialects import dialect_of
from ._endpoints import issued, refused
from ._messages import Response
from ._refusal import RefusedError
from ._shapes import ASSIGNED_SCOPES
from ._tokens import TokenStore

__all__ = ["error_answer", "token_answer"]

_CLIENT_ID = "your-client-id"  # the pages' own sample, for the claims of a JWT
_PROBLEMS = {400: "invalid_request", 401: "invalid_client", 403: "access_denied", 429: "rate_limit_exceeded"}


def token_answer(provider: Provider, body: bytes, scope: str | None, expires_in: float | None) -> tuple[Response, str]:
    """Return the answer to a token request, and the token in it.

    Args:
        provider: the gateway.
        body: of the request, which may name scopes.
        scope: what is granted; None for what the gateway would grant.
        expires_in: lifetime in seconds; None for the gateway's own.
    """
    if scope is None:
        requested = parse_qs(body.decode(errors="replace")).get("scope", [""])[0]
        scope = ASSIGNED_SCOPES.get(provider.name, "") if provider.scope == "assigned" else requested
    token = TokenStore().issue(
        provider.name,
        _CLIENT_ID,
        scope,
        now=time.time(),
        expires_in=provider.default_expires_in if expires_in is None else expires_in,
        opaque=dialect_of(provider).opaque_tokens,
    )
    return issued(token, provider), token.access_token


def error_answer(provider: Provider, status: int, retry_after: float | None) -> Response:
    """Return the gateway's error of an HTTP status.

    Args:
        provider: the gateway.
        status: 400 or above.
        retry_after: seconds in the ``Retry-After`` header; None for no header.
    """
    refusal = RefusedError(status, _PROBLEMS.get(status, "server_error"), retry_after=retry_after)
    return refused(refusal, "token", provider, time.time())
