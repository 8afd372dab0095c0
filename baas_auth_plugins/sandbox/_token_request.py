"""Reads a token request: refuses what the gateway's page does not show, and returns what the client claims.

Headers that clients, proxies and tracers add are accepted. Refused are those that change what the request says:
a second credential, another content type, and a body that is encoded or has no length.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from ._assertions import subject
from ._messages import Request
from ._refusal import RefusedError, malformed, unauthorized
from ._shapes import JWT_BEARER, Shape

__all__ = ["Claim", "basic_claim", "check_headers", "read_claim", "read_named_claim"]

_REFUSED_HEADERS = {
    "transfer-encoding": "a token request must have a Content-Length",
    "content-encoding": "a token request's body must not be encoded",
    "proxy-authorization": "a proxy's credentials must not reach the gateway",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """Who a request says it comes from, not verified yet.

    Args:
        client_id: as sent, or None if the declaration sends nothing: then only a client certificate can name it.
        client_secret: as sent, or None if the gateway wants none.
        assertion: the signed JWT (RFC 7523), or None if there is none.
        scope: the scopes that it requests, or None.
    """

    client_id: str | None
    client_secret: str | None = field(default=None, repr=False)
    assertion: str | None = field(default=None, repr=False)
    scope: str | None = None


def check_headers(request: Request) -> None:
    """Refuse the headers that no token request may have."""
    for name, problem in _REFUSED_HEADERS.items():
        if name in request.headers:
            raise malformed(problem)


def basic_claim(request: Request, scope: str | None = None) -> Claim:
    """Return the claim in an HTTP Basic header (RFC 7617): raw halves, as UTF-8, canonical base64."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme != "Basic":
        raise unauthorized("an Authorization header with the scheme Basic is required")
    try:
        decoded = base64.b64decode(encoded)
        client_id, colon, client_secret = decoded.decode().partition(":")
    except ValueError:
        raise unauthorized("the Basic credentials are not base64 of UTF-8") from None
    if not colon or base64.b64encode(decoded).decode() != encoded:
        raise unauthorized("the Basic credentials are not canonical base64 of client_id:client_secret")
    return Claim(client_id, client_secret, scope=scope)


def read_claim(request: Request, shape: Shape) -> Claim:
    """Return the claim of a request that has exactly this shape.

    Raises:
        RefusedError: it has another one.
    """
    if not shape.basic and "authorization" in request.headers:
        raise malformed("credentials belong in the parameters, not in an Authorization header")
    if shape.content_type not in (None, request.headers.get("content-type")):
        raise malformed(f"Content-Type must be {shape.content_type}")
    parameters = _parameters(request, shape)
    scope = parameters.get("scope")
    if shape.basic:
        return _decoded(basic_claim(request, scope)) if shape.encoded else basic_claim(request, scope)
    if shape.format == "empty":
        return Claim(None)
    assertion = _assertion(parameters)
    client_id = parameters.get(shape.client_id)
    if assertion is not None and client_id is None:
        client_id = subject(assertion)
    return Claim(client_id or "", parameters.get(shape.client_secret), assertion, scope)


def _decoded(claim: Claim) -> Claim:
    """Return the claim of a Basic header whose halves were form-encoded."""
    client_id, client_secret = (unquote_plus(half or "") for half in (claim.client_id, claim.client_secret))
    return Claim(client_id, client_secret, scope=claim.scope)


def _parameters(request: Request, shape: Shape) -> dict[str, str]:
    if shape.format != "query" and request.query:
        raise malformed("no query is allowed")
    if shape.format in ("query", "empty") and request.body:
        raise malformed("no body is allowed")
    if shape.format == "empty":
        return {}
    pairs = _json(request.body) if shape.format == "json" else _form(request, shape)
    names = [name for name, _ in pairs]
    allowed = {*shape.required, *shape.optional}
    if len(set(names)) < len(names) or not set(shape.required) <= set(names) <= allowed:
        places = {"form": "form", "json": "body", "query": "query"}
        optional = f", and may have {' and '.join(shape.optional)}" if shape.optional else ""
        raise malformed(f"the {places[shape.format]} holds exactly {' and '.join(shape.required)}{optional}")
    parameters = dict(pairs)
    if not all(isinstance(value, str) for value in parameters.values()):
        raise malformed(f"{' and '.join(shape.required)} are strings")
    if parameters.get("grant_type", "client_credentials") != "client_credentials":
        raise RefusedError(400, "unsupported_grant_type", "grant_type must be client_credentials")
    return parameters


def _assertion(parameters: Mapping[str, str]) -> str | None:
    assertion = parameters.get("client_assertion")
    if assertion is not None and parameters.get("client_assertion_type") != JWT_BEARER:
        raise malformed(f"client_assertion_type must be {JWT_BEARER}")
    return assertion


def _form(request: Request, shape: Shape) -> list[tuple[str, Any]]:
    try:
        text = request.query if shape.format == "query" else request.body.decode("ascii")
        return list(parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict"))
    except ValueError:
        raise malformed(f"the {'query' if shape.format == 'query' else 'body'} is not a form") from None


def _json(body: bytes) -> list[tuple[str, Any]]:
    try:
        content = json.loads(body.decode(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        raise malformed("the body is not JSON") from None
    if not isinstance(content, _Pairs):
        raise malformed("the body is not a JSON object")
    return content


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, repeated ones included."""


def read_named_claim(request: Request, client_id: str) -> Claim:
    """Return the claim of a request to a gateway whose function may send anything, if it names the client.

    Raises:
        RefusedError: no header, parameter or assertion has the client_id.
    """
    pairs = parse_qsl(request.query) + parse_qsl(request.body.decode(errors="replace"))
    with contextlib.suppress(RefusedError):
        pairs += _json(request.body)
    parameters = {name: value for name, value in pairs if isinstance(value, str)}
    assertion = _assertion(parameters)
    named = {*parameters.values(), *request.headers.values(), *_from_authorization(request)}
    if assertion is not None:
        named.add(subject(assertion))
    if client_id not in named:
        raise unauthorized("the request does not name the client")
    return Claim(client_id, assertion=assertion, scope=parameters.get("scope") or parameters.get("scopes"))


def _from_authorization(request: Request) -> Iterable[str | None]:
    try:
        return (basic_claim(request).client_id,)
    except RefusedError:
        return ()
