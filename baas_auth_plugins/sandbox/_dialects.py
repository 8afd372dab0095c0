"""What each family of gateways answers: its tokens and its error bodies, from the gateways' pages.

Nothing here comes from the client, which it checks independently. The family is found by what a declaration says
of the token request, so a fifth gateway of the same family needs no change here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._oauth.provider import Provider
from ._refusal import RefusedError
from ._shapes import shape_of

__all__ = ["STANDARD", "Dialect", "dialect_of"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one family of gateways answers.

    Args:
        error: returns the JSON of an error, from the refusal, its ISO time and the provider.
        opaque_tokens: UUIDs rather than JWTs.
        shows_issued_at: the token response has ``issued_at``.
        challenges_client: the 401 to a client has ``WWW-Authenticate: Basic``.
    """

    error: Callable[[RefusedError, str, Provider | None], dict[str, Any]]
    opaque_tokens: bool = False
    shows_issued_at: bool = False
    challenges_client: bool = False


_AXIA_CODES = {400: "E00100", 401: "E00101", 403: "E00102", 404: "E00103", 429: "E00102"}
_AXIA_MESSAGES = {
    "invalid_request": "Invalid request format",
    "invalid_client": "Invalid client credentials",
    "missing_token": "Token not provided",
    "invalid_token": "Invalid token",
    "expired_token": "Token has expired",
    "unknown_token": "Token not found or already revoked",
}
_AXIA_EXPIRED = "The access token is no longer valid. Please request a new token."
_AVISTA_MESSAGES = {
    "missing_token": "Token not provided",
    "invalid_token": "Invalid token",
    "expired_token": "Expired token",
}
_BS2_CLIENT = "The given client credentials were not valid"
_BS2_ERRORS = {"missing_token": "invalid_token", "expired_token": "invalid_token"}


def _axia_error(refusal: RefusedError, timestamp: str, provider: Provider | None) -> dict[str, Any]:
    """Axia's page: 401, 404 and 429 as in its examples, codes from its table."""
    code = _AXIA_CODES.get(refusal.status, f"E00{refusal.status}")
    if refusal.status == 429:
        limit = provider.token_rate_limit[0] if provider and provider.token_rate_limit else 0
        message = f"Rate limit exceeded: max {limit} token requests per minute"
        seconds = {} if isinstance(refusal.retry_after, str | None) else {"retry_after": refusal.retry_after}
        return {"error": code, "message": message, **seconds}
    body = {"error": code, "message": _AXIA_MESSAGES.get(refusal.problem, refusal.detail)}
    if refusal.problem == "unknown_token":
        return body
    if refusal.problem == "expired_token":
        body["error_description"] = _AXIA_EXPIRED
    elif refusal.problem == "invalid_request":
        body["error_description"] = refusal.detail
    return {**body, "timestamp": timestamp}


def _avista_error(refusal: RefusedError, _timestamp: str, _provider: Provider | None) -> dict[str, Any]:
    """NTX Pay and Avista: the public shape, the messages of the page's table."""
    return {
        "statusCode": refusal.status,
        "message": _AVISTA_MESSAGES.get(refusal.problem, refusal.detail),
    }


def _standard_error(refusal: RefusedError, _timestamp: str, _provider: Provider | None) -> dict[str, Any]:
    """BS2, and RFC 6749 section 5.2."""
    return {
        "error": _BS2_ERRORS.get(refusal.problem, refusal.problem),
        "error_description": _BS2_CLIENT if refusal.problem == "invalid_client" else refusal.detail,
    }


STANDARD = Dialect(_standard_error, opaque_tokens=True, challenges_client=True)
"""RFC 6749's own answers, which are BS2's, too."""

_WITHOUT_BASIC = Dialect(_standard_error, opaque_tokens=True)
_AXIA = Dialect(_axia_error, shows_issued_at=True)
_AVISTA = Dialect(_avista_error)


def dialect_of(provider: Provider | None) -> Dialect:
    """Return how a gateway answers; the standard way if there is none."""
    shape = shape_of(provider) if provider else None
    if shape is None:
        return STANDARD if provider is None else _WITHOUT_BASIC
    if shape.format == "empty" and shape.basic:
        return _AXIA
    if shape.client_id == "clientId":
        return _AVISTA
    return STANDARD if shape.basic else _WITHOUT_BASIC
