"""How each family of gateways is spoken to: what its token endpoint accepts, and its error bodies.

Written from the gateways' pages and from nothing of the client's, whose independent check this is.
A dialect is found by the name of a provider's client authentication method, so that a fifth gateway
which uses one of them is served without a change here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import responses
from typing import Any
from urllib.parse import parse_qsl

from .._oauth.provider import Provider
from ._messages import Request

__all__ = ["STANDARD", "Claim", "Dialect", "RefusedError", "basic_claim", "check_headers", "dialect_of"]

_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"
_PLAIN_HEADERS = {"host", "user-agent", "accept", "accept-encoding", "connection", "content-length"}
_DOCUMENTED_HEADERS = _PLAIN_HEADERS | {"content-type", "authorization"}


@dataclass(frozen=True, slots=True)
class Claim:
    """Who a request says it comes from, not yet believed, and the scope it asks for."""

    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None = None


class RefusedError(Exception):
    """A request that a gateway turns down.

    Args:
        status: HTTP status.
        problem: in the words of RFC 6749 and RFC 6750, or this package's own.
        detail: the rule that was broken; never anything that was sent.
        retry_after: seconds, where trying again helps; or text for the header alone.
    """

    def __init__(self, status: int, problem: str, detail: str = "", retry_after: str | float | None = None) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.detail = detail or responses.get(status, "")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one family of gateways understands and answers.

    Args:
        read: returns the claim in a token request, or raises `RefusedError`.
        error: returns the JSON of an error, from the refusal, its ISO time and the provider.
        opaque_tokens: UUIDs rather than JWTs.
        shows_issued_at: the token response carries ``issued_at``.
        challenges_client: a refused client is sent ``WWW-Authenticate: Basic``.
    """

    read: Callable[[Request, Provider], Claim]
    error: Callable[[RefusedError, str, Provider | None], dict[str, Any]]
    opaque_tokens: bool = False
    shows_issued_at: bool = False
    challenges_client: bool = False


# -- what a request must look like


def check_headers(request: Request) -> None:
    """Refuse headers that no page documents, the custom ``X-`` ones excepted."""
    for name in request.headers:
        if name not in _DOCUMENTED_HEADERS and not name.startswith("x-"):
            raise _malformed(f"the header {name} is not documented")


def _malformed(detail: str) -> RefusedError:
    return RefusedError(400, "invalid_request", detail)


def _check_content_type(request: Request, expected: str) -> None:
    if request.headers.get("content-type") != expected:
        raise _malformed(f"Content-Type must be {expected}")


def _check_no_authorization(request: Request) -> None:
    if "authorization" in request.headers:
        raise _malformed("credentials belong in the body, not in an Authorization header")


def basic_claim(request: Request, scope: str | None = None) -> Claim:
    """Return the claim in an HTTP Basic header (RFC 7617): raw halves, as UTF-8, canonical base64."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    try:
        decoded = base64.b64decode(encoded)
        client_id, colon, client_secret = decoded.decode().partition(":")
    except ValueError:
        raise RefusedError(401, "invalid_client") from None
    if scheme != "Basic" or not colon or base64.b64encode(decoded).decode() != encoded:
        raise RefusedError(401, "invalid_client")
    return Claim(client_id, client_secret, scope)


def _form(request: Request, *names: str) -> dict[str, str]:
    _check_content_type(request, _FORM)
    try:
        pairs = parse_qsl(request.body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise _malformed("the body is not a form") from None
    if sorted(name for name, _ in pairs) != sorted(names):
        raise _malformed(f"the form holds exactly {' and '.join(names)}")
    fields = dict(pairs)
    if fields["grant_type"] != "client_credentials":
        raise RefusedError(400, "unsupported_grant_type", "grant_type must be client_credentials")
    return fields


def _grant_fields(provider: Provider) -> tuple[str, ...]:
    return ("grant_type", "scope") if provider.scope == "required" else ("grant_type",)


def _read_basic_form(request: Request, provider: Provider) -> Claim:
    """BS2: Basic, and grant_type and scope in a form."""
    fields = _form(request, *_grant_fields(provider))
    return basic_claim(request, fields.get("scope"))


def _read_post_form(request: Request, provider: Provider) -> Claim:
    """RFC 6749 section 2.3.1: everything in the form."""
    _check_no_authorization(request)
    fields = _form(request, *_grant_fields(provider), "client_id", "client_secret")
    return Claim(fields["client_id"], fields["client_secret"], fields.get("scope"))


def _read_basic_alone(request: Request, _provider: Provider) -> Claim:
    """Axia: Basic, a JSON content type and "No body required"."""
    _check_content_type(request, _JSON)
    if request.body:
        raise _malformed("no body is allowed")
    return basic_claim(request)


def _read_json(request: Request, _provider: Provider) -> Claim:
    """NTX Pay and Avista: clientId and clientSecret in a JSON body."""
    _check_no_authorization(request)
    _check_content_type(request, _JSON)
    try:
        fields = json.loads(request.body.decode())
    except (ValueError, RecursionError):
        raise _malformed("the body is not JSON") from None
    if not isinstance(fields, dict) or fields.keys() != {"clientId", "clientSecret"}:
        raise _malformed("the body holds exactly clientId and clientSecret")
    if not all(isinstance(value, str) for value in fields.values()):
        raise _malformed("clientId and clientSecret are strings")
    return Claim(fields["clientId"], fields["clientSecret"])


# -- what an error looks like

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


STANDARD = Dialect(_read_basic_form, _standard_error, opaque_tokens=True, challenges_client=True)
"""RFC 6749's own dialect, which BS2 speaks."""

_DIALECTS: Mapping[str, Dialect] = {
    "client_secret_basic": STANDARD,
    "client_secret_post": Dialect(_read_post_form, _standard_error, opaque_tokens=True),
    "client_secret_basic_without_body": Dialect(_read_basic_alone, _axia_error, shows_issued_at=True),
    "client_secret_json": Dialect(_read_json, _avista_error),
}


def dialect_of(provider: Provider) -> Dialect | None:
    """Return the dialect of a provider, or None where the sandbox cannot check its clients."""
    method = provider.token_endpoint_auth_method
    return _DIALECTS.get(method if isinstance(method, str) else getattr(method, "__name__", ""))
