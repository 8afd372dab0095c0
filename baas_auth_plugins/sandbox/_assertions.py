"""Checks the JWT with which a client authenticates (RFC 7523 section 3): its form, and its HMAC signature.

The sandbox knows no public key of the client's, so it accepts any signature of an asymmetric algorithm.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import urlsplit

from ._messages import Request
from ._refusal import RefusedError, unauthorized

__all__ = ["check_assertion", "subject"]

_HMAC = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
_ASYMMETRIC = {f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)} | {"EdDSA", "Ed25519"}


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _parts(assertion: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    try:
        header, payload, signature = (_decoded(part) for part in assertion.split("."))
        contents = json.loads(header), json.loads(payload)
    except (ValueError, RecursionError):
        raise unauthorized("client_assertion is not a JWT") from None
    if not all(isinstance(content, dict) for content in contents):
        raise unauthorized("client_assertion is not a JWT")
    return *contents, signature


def subject(assertion: str) -> str:
    """Return whom an assertion is about; empty if it is no JWT."""
    try:
        found = _parts(assertion)[1].get("sub")
    except RefusedError:
        return ""
    return found if isinstance(found, str) else ""


def check_assertion(assertion: str, request: Request, client_id: str, client_secret: str, now: float) -> None:
    """Check an assertion that was sent with a token request, at `now` in epoch seconds.

    Raises:
        RefusedError: a claim is wrong or missing, or an HMAC signature does not match the secret.
    """
    header, claims, signature = _parts(assertion)
    expires_at, algorithm = claims.get("exp"), header.get("alg")
    for problem, found in {
        "iss and sub of client_assertion must be the client_id": [claims.get("iss"), claims.get("sub")]
        != [client_id] * 2,
        "exp of client_assertion must be a number in the future": not isinstance(expires_at, int | float)
        or not expires_at > now,
        "aud of client_assertion must be the token endpoint": not _is_for(request, claims.get("aud")),
        "alg of client_assertion must be that of a signature": not signature or algorithm not in [*_HMAC, *_ASYMMETRIC],
    }.items():
        if found:
            raise unauthorized(problem)
    if algorithm in _HMAC:
        expected = hmac.digest(client_secret.encode(), assertion.rpartition(".")[0].encode(), _HMAC[algorithm])
        if not hmac.compare_digest(expected, signature):
            raise unauthorized("the signature of client_assertion does not match the client_secret")


def _is_for(request: Request, audience: object) -> bool:
    audiences = audience if isinstance(audience, list) else [audience]
    here = (request.headers.get("host"), request.path)
    return any(isinstance(url, str) and _place(url) == here for url in audiences)


def _place(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    return parts.netloc, parts.path
