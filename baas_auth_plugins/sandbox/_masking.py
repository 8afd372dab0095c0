"""How the sandbox shows a request in a log: what it needs to explain a difference, and no credential.

Only values of known, harmless names are shown. So a secret in the wrong place is masked, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

__all__ = ["digest", "masked_body", "masked_headers", "masked_query"]

MASK = "***"
_LONGEST = 200  # characters of one value
_NAME = re.compile(r"[A-Za-z_]{1,30}")  # A form that is only a secret looks like a name, but has digits or signs.

_PARAMETERS = {
    "client_assertion_type",
    "client_id",
    "clientid",
    "grant_type",
    "granttype",
    "scope",
    "scopes",
}
_HEADERS = {
    "accept",
    "accept-encoding",
    "accept-language",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "traceparent",
    "transfer-encoding",
    "user-agent",
    "x-sandbox-fault",
}


def digest(access_token: str) -> str:
    """Return the first 8 hex digits of a token's SHA-256, by which logs name the token."""
    return hashlib.sha256(access_token.encode(errors="replace")).hexdigest()[:8]


def masked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with all values masked that may be credentials."""
    return {name: _header(name, value) for name, value in headers.items()}


def _header(name: str, value: str) -> str:
    if name == "authorization":
        return _authorization(value)
    return value[:_LONGEST] if name in _HEADERS else MASK


def _authorization(value: str) -> str:
    scheme, _, credentials = value.partition(" ")
    if scheme == "Bearer":
        return f"Bearer {MASK} (token {digest(credentials)})"
    if scheme == "Basic":
        try:
            client_id, colon, _ = base64.b64decode(credentials).decode().partition(":")
        except ValueError:
            return f"Basic {MASK} (not base64)"
        return f"Basic {MASK} (client_id {client_id[:_LONGEST]})" if colon else f"Basic {MASK} (no colon)"
    return MASK


def masked_query(query: str) -> str:
    """Return a query or a form with all values masked but those of harmless names."""
    return "&".join(f"{_name(name)}={_value(name, value)}" for name, value in parse_qsl(query, keep_blank_values=True))


def _name(name: str) -> str:
    return name if _NAME.fullmatch(name) else MASK


def _value(name: str, value: Any) -> Any:
    if name == "token" and isinstance(value, str):
        return f"{MASK} (token {digest(value)})"
    shown = name.lower() in _PARAMETERS and isinstance(value, str)
    return value[:_LONGEST] if shown else MASK


def masked_body(content_type: str, body: bytes) -> str:
    """Return a form or a JSON object with its values masked, and of other bodies their length."""
    if not body:
        return ""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/x-www-form-urlencoded" and (form := masked_query(body.decode(errors="replace"))):
        return form
    try:
        content = json.loads(body) if media_type == "application/json" and len(body) < 65_536 else None
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return json.dumps({_name(name): _value(name, value) for name, value in content.items()}, ensure_ascii=False)
    return f"({len(body)} bytes)"
