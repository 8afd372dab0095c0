"""The tokens that a sandbox has issued: RS256 JWTs and UUIDs, and the state of each."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from ._masking import digest

__all__ = ["IssuedToken", "TokenStore", "iso", "json_number", "private_key_pem", "public_keys"]

_MOST_TOKENS = 20_000
_LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that datetime knows

_key_lock = threading.Lock()


@cache
def _generate_key() -> RSAKey:
    return RSAKey.generate_key(2048, auto_kid=True)


def _signing_key() -> RSAKey:
    with _key_lock:  # cache alone would let two threads generate two keys
        return _generate_key()


def public_keys() -> dict[str, Any]:
    """Return the JWK set (RFC 7517) that verifies the JWTs of every sandbox in this process."""
    return {"keys": [{**_signing_key().as_dict(private=False), "alg": "RS256", "use": "sig"}]}


_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


@cache
def private_key_pem(alg: str) -> str:
    """Return a private key for a JWS algorithm as PEM, for clients that sign their assertions."""
    key: Any = _signing_key()
    if alg in _CURVES:
        key = ECKey.generate_key(_CURVES[alg])
    elif alg.startswith("Ed"):
        key = OKPKey.generate_key("Ed25519")
    return str(key.as_pem(private=True).decode())


def iso(seconds: float) -> str:
    """Return an epoch time as the gateways write it, such as ``"2024-03-15T10:00:00Z"``."""
    return datetime.fromtimestamp(min(max(seconds, 0), _LATEST), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_number(value: float) -> float:
    """Return an integral number as an int, so that JSON shows it without a fraction."""
    return int(value) if float(value).is_integer() else value


@dataclass(slots=True)
class IssuedToken:
    """A token and its state.

    Args:
        access_token: what travels.
        token_id: the JWT's ``jti``.
        provider: name of the gateway that issued it.
        client_id: for whom.
        scope: as granted.
        issued_at: epoch seconds.
        expires_in: lifetime in seconds.
        revoked: by the revocation endpoint, a newer token or a test.
    """

    access_token: str = field(repr=False)
    token_id: str
    provider: str
    client_id: str
    scope: str
    issued_at: float
    expires_in: float
    revoked: bool = False

    @property
    def digest(self) -> str:
        """The first 8 hex digits of the token's SHA-256."""
        return digest(self.access_token)

    @property
    def expires_at(self) -> float:
        """Epoch seconds from which the token is refused."""
        return self.issued_at + self.expires_in


class TokenStore:
    """The latest 20,000 tokens of one sandbox. Not thread-safe by itself."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, IssuedToken] = OrderedDict()

    def issue(
        self, provider: str, client_id: str, scope: str, *, now: float, expires_in: float, opaque: bool
    ) -> IssuedToken:
        """Return a new token: a UUID if `opaque`, else a signed JWT (RFC 7519)."""
        token_id = f"jti_{uuid.uuid4().hex}"
        if opaque:
            access_token = str(uuid.uuid4())
        else:
            claims = {"sub": client_id, "client_id": client_id, "scope": scope, "jti": token_id}
            times = {"iat": int(now), "exp": json_number(int(now) + expires_in)}
            key = _signing_key()
            access_token = jwt.encode({"alg": "RS256", "kid": key.kid}, {**claims, **times}, key)
        token = IssuedToken(access_token, token_id, provider, client_id, scope, now, expires_in)
        self._tokens[access_token] = token
        if len(self._tokens) > _MOST_TOKENS:
            self._tokens.popitem(last=False)
        return token

    def find(self, access_token: str) -> IssuedToken | None:
        """Return the token in whatever state, or None if it was never issued."""
        return self._tokens.get(access_token)

    def valid(
        self, now: float, *, provider: str | None = None, client_id: str | None = None, digest: str | None = None
    ) -> list[IssuedToken]:
        """Return the valid tokens, or those of one gateway, client or digest, oldest first."""
        return [
            token
            for token in self._tokens.values()
            if not token.revoked
            and now < token.expires_at
            and provider in (None, token.provider)
            and client_id in (None, token.client_id)
            and (digest is None or digest == token.digest)
        ]

    def clear(self) -> None:
        """Forget all tokens."""
        self._tokens.clear()
