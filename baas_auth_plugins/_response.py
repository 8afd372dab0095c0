"""Reading the gateways' answers: what an error means, what it may say, and when to try again.

Nothing of an answer is trusted. No text of it reaches an error or a log before it went through `blank`.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, unquote_plus

from ._flow import TokenResponse
from ._token import Instant
from .exceptions import (
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)

__all__ = ["blank", "error_from", "read_json"]

_LONGEST_RETRY_AFTER = 86_400.0
_TOKEN_LIKE = re.compile(r"[\w+/=.~-]{20,}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))")
_ERROR_CODE = re.compile(r"[A-Za-z_]{1,40}|[A-Za-z]{0,8}[-_]?\d{1,6}")


def read_json(response: TokenResponse, provider: str, now: Instant, *secrets: str) -> dict[str, Any]:
    """Return the body of a 2xx answer as a JSON object.

    Args:
        response: the answer.
        provider: the provider's name.
        now: for a Retry-After that is a date.
        secrets: what must not appear in the error, should the gateway echo it.

    Raises:
        InvalidTokenResponseError: it is anything else.
        TokenEndpointError: the answer is no 2xx; which of its subclasses, `error_from` tells.
    """
    if not 200 <= response.status_code < 300:
        raise error_from(response, provider, now, *secrets)
    payload = _json(response)
    if payload is None:
        raise InvalidTokenResponseError(
            f"{provider}: the token endpoint answered {response.status_code} with something that is no JSON object",
            provider=provider,
            status_code=response.status_code,
        )
    return payload


def _json(response: TokenResponse) -> dict[str, Any] | None:
    try:
        payload = json.loads(response.body)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def error_from(response: TokenResponse, provider: str, now: Instant, *secrets: str) -> TokenEndpointError:
    """Return the error that a non-2xx answer of an OAuth endpoint means (RFC 6749 section 5.2).

    The HTTP status decides; the gateways' own codes disagree with each other and are kept as data. Arguments as
    for `read_json`.
    """
    payload = _json(response) or {}
    status = response.status_code
    texts = [payload.get(name) for name in ("code", "error", "error_description", "message")]
    code, error, description, message = (text if isinstance(text, str) else None for text in texts)
    error = next((c for c in (code, error) if c and _ERROR_CODE.fullmatch(c) and not _shows(c, secrets)), None)
    text = blank(description or message, secrets)
    kind: type[TokenEndpointError] = TokenEndpointError
    retry_after = None
    if status == 429:
        kind = RateLimitError
    elif status == 401 or error == "invalid_client":
        kind = InvalidClientError
    elif error == "invalid_scope":
        kind = InvalidScopeError
    elif status >= 500:
        kind = TokenEndpointUnavailableError
    elif status < 400:
        kind = InvalidTokenResponseError  # a redirect, which a credential must not follow
    if kind in (RateLimitError, TokenEndpointUnavailableError):
        retry_after = _retry_after(response, payload, now)
    said = ": ".join(part for part in (error, text) if part)
    return kind(
        f"{provider}: the token endpoint answered {status}" + (f" ({said})" if said else ""),
        provider=provider,
        status_code=status,
        error=error,
        error_description=text,
        retry_after=retry_after,
    )


def blank(text: str | None, secrets: tuple[str, ...]) -> str | None:
    """Return a gateway's text as fit for a log: short, printable, and without anything like a credential."""
    if text is None:
        return None
    forms = [form for secret in secrets if secret for form in (secret, b64encode(secret.encode()).decode("ascii"))]
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(re.escape(form), "***", text, flags=re.IGNORECASE)
    if any(form in reading for reading in _readings(text) for form in forms):
        return "***"  # in some encoding of the gateway's own
    text = _TOKEN_LIKE.sub("***", text[:2000])
    return "".join(c if c.isprintable() else " " for c in text)[:200]


def _shows(text: str, secrets: tuple[str, ...]) -> bool:
    return any(secret and secret.casefold() in text.casefold() for secret in secrets)


def _readings(text: str) -> tuple[str, ...]:
    """Return what a text says if it is taken for one that was escaped for a URL, for HTML, or for JSON."""
    unescaped = _ESCAPE.sub(
        lambda found: chr(int(found[1] or found[2], 16)) if found[1] or found[2] else found[3], text
    )
    from html import unescape  # with its table of entities: only errors need it

    return unquote(text), unquote_plus(text), unescape(text), unescaped


def _retry_after(response: TokenResponse, payload: Mapping[str, Any], now: Instant) -> float | None:
    """Return the seconds to wait: the header (RFC 9110 section 10.2.3), else the body's ``retry_after``."""
    header = response.headers.get("retry-after", "").strip()
    for value in (header, payload.get("retry_after")):
        seconds = _seconds(value)
        if seconds is None and isinstance(value, str):
            until = _date(value)
            # Against the gateway's own clock where it tells it: ours may have been stepped.
            if until is not None:
                seconds = until - (_date(response.headers.get("date", "")) or now.wall)
        if seconds is not None:
            return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)
    return None


def _seconds(value: object) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value.strip()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return math.inf


def _date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
