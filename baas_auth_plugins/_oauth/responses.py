"""Reading the gateways' answers: the token, the meaning of an error, and the Retry-After.

Nothing in an answer is trusted. No text of it reaches an error or a log before `redact` has checked it.
"""

from __future__ import annotations

import json
import logging
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, unquote_plus

from ..exceptions import (
    BaaSAuthError,
    ConfigurationError,
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from .client import OAuthClient, basic_value
from .messages import TokenResponse
from .token import Instant, Token

logger = logging.getLogger("baas_auth_plugins")

_LONGEST_RETRY_AFTER = 300.0
_TOKEN_LIKE = re.compile(r"[\w+/=.~-]{20,}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))")
_ERROR_CODE = re.compile(r"[A-Za-z_]{1,40}|[A-Za-z]{0,8}[-_]?\d{1,6}")
_NO_CERTIFICATE = "it requires a client certificate: pass a requests.Session with cert as session="
_CODES = ("code", "error", "tag")
_TEXTS = ("error_description", "message", "mensagem", "descricao", "detail", "title")


def read_token(client: OAuthClient, secret: str, response: TokenResponse, sent: Instant, now: Instant) -> Token:
    """Return the token of a response (RFC 6749 section 5.1).

    Args:
        client: the client that requested it.
        secret: its secret, which must not appear in an error.
        response: the answer.
        sent: when the token request was sent: the lifetime counts from there.
        now: this moment.

    Raises:
        TokenEndpointError: the answer has no token that can be used.
        ConfigurationError: the provider's `read_token_response` raised.
    """
    payload = _with_standard_names(client, read_json(client, response, now, secret, basic_value(client, secret)))
    assigned = client.provider.scope == "assigned"
    try:
        token = Token.from_response(
            payload,
            sent,
            default_expires_in=client.provider.default_expires_in,
            requested="" if assigned else client.scope or "",
        )
        if not token.is_valid(now, client.leeway):
            raise ValueError("a token that expired before it arrived")
    except ValueError as problem:
        raise InvalidTokenResponseError(
            f"{client.name}: the token response of {client.host} has {problem}",
            provider=client.name,
            status_code=response.status_code,
        ) from None
    missing = client.scopes - token.scopes
    if assigned and missing and isinstance(payload.get("scope"), str):
        error = InvalidScopeError(
            f"{client.name}: {client.host} did not grant {' '.join(sorted(missing))}."
            " Have the gateway assign them, or remove them from `scope`",
            provider=client.name,
            status_code=response.status_code,
            error="invalid_scope",
        )
        error.missing_scopes = missing
        raise error
    return token


def _with_standard_names(client: OAuthClient, payload: dict[str, Any]) -> Mapping[str, Any]:
    read = client.provider.read_token_response
    if read is None:
        return payload
    try:
        renamed = read(payload)
    except BaaSAuthError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{client.name}: read_token_response raised {type(error).__name__}") from error
    if not isinstance(renamed, Mapping):
        raise ConfigurationError(f"{client.name}: read_token_response must return a mapping")
    return renamed


def read_json(client: OAuthClient, response: TokenResponse, now: Instant, *secrets: str) -> dict[str, Any]:
    """Return the JSON object of a 2xx answer.

    Args:
        client: the client that sent the request.
        response: the answer.
        now: this moment, for a Retry-After that is a date.
        secrets: strings that must not appear in an error, although the gateway may echo them.

    Raises:
        InvalidTokenResponseError: the body is no JSON object.
        TokenEndpointError: the status is not 2xx, or the object has an ``error`` member (RFC 6749 section 5.2).
    """
    payload = _decoded(response)
    if not 200 <= response.status_code < 300 or (isinstance(payload, dict) and payload.get("error")):
        raise _error_from(client, response, payload, now, secrets)
    if not isinstance(payload, dict):
        raise InvalidTokenResponseError(
            f"{client.name}: {client.host} answered {response.status_code} with a body that is no JSON object",
            provider=client.name,
            status_code=response.status_code,
        )
    return payload


def _decoded(response: TokenResponse) -> Any:
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        return None


def _error_from(
    client: OAuthClient, response: TokenResponse, payload: Any, now: Instant, secrets: tuple[str, ...]
) -> TokenEndpointError:
    """Return the error that an answer means.

    The HTTP status decides. The gateways' own codes contradict each other, so they are only data.
    """
    items = [item for item in (payload if isinstance(payload, list) else [payload]) if isinstance(item, dict)]
    code = next((code for item in items for code in _strings(item, _CODES) if _is_code(code, secrets)), None)
    texts = [texts[0] for item in items if (texts := _strings(item, _TEXTS))]
    text = redact("; ".join(texts), secrets) if texts else None
    kind = _kind_of(response.status_code, code)
    wait = None
    if kind in (RateLimitError, TokenEndpointUnavailableError):
        wait = retry_after(client, response, items[0] if items else {}, now)
    # The words of nginx, as HTML: it accepts the connection, and refuses the request.
    lacks_certificate = b"SSL certificate" in response.body and payload is None
    said = _NO_CERTIFICATE if lacks_certificate else ": ".join(part for part in (code, text) if part)
    return kind(
        f"{client.name}: {client.host} answered {response.status_code}" + (f" ({said})" if said else ""),
        provider=client.name,
        status_code=response.status_code,
        error=code,
        error_description=text,
        retry_after=wait,
    )


def _kind_of(status: int, code: str | None) -> type[TokenEndpointError]:
    if status == 429:
        return RateLimitError
    if status == 401 or code == "invalid_client":
        return InvalidClientError
    if code == "invalid_scope":
        return InvalidScopeError
    if status >= 500:
        return TokenEndpointUnavailableError
    # A redirect, which must not get the credentials.
    return InvalidTokenResponseError if 300 <= status < 400 else TokenEndpointError


def _strings(item: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [item[name] for name in names if isinstance(item.get(name), str) and item[name]]


def _is_code(code: str, secrets: tuple[str, ...]) -> bool:
    if not _ERROR_CODE.fullmatch(code):
        return False
    return not any(secret and secret.casefold() in code.casefold() for secret in secrets)


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """Return a gateway's text as fit for a log: short, printable, and without anything like a credential."""
    forms = [form for secret in secrets if secret for form in (secret, b64encode(secret.encode()).decode("ascii"))]
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(re.escape(form), "***", text, flags=re.IGNORECASE)
    if any(form in reading for reading in _unescaped(text) for form in forms):
        return "***"  # the gateway encoded the secret in its own way
    text = _TOKEN_LIKE.sub("***", text[:2000])
    return "".join(c if c.isprintable() else " " for c in text)[:200]


def _unescaped(text: str) -> tuple[str, ...]:
    """Return a text with the escapes of URLs, of HTML or of JSON undone."""
    from html import unescape  # imported for errors alone: its table of entities takes long

    plain = _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)) if found[1] or found[2] else found[3], text)
    return unquote(text), unquote_plus(text), unescape(text), plain


def retry_after(client: OAuthClient, response: TokenResponse, payload: Mapping[str, Any], now: Instant) -> float | None:
    """Return the seconds to wait: of the header (RFC 9110 section 10.2.3), else of the body's ``retry_after``.

    At most 300 s count: a gateway that says more sends milliseconds or a date, and would stop a whole fleet.
    """
    header = response.headers.get("retry-after", "").strip()
    for value in (header, payload.get("retry_after")):
        seconds = _seconds(value)
        if seconds is None and isinstance(value, str) and (until := _date(value)) is not None:
            # Compared with the gateway's own clock where it sends one: ours may have been stepped.
            seconds = until - (_date(response.headers.get("date", "")) or now.wall)
        if seconds is None:
            continue
        if seconds > _LONGEST_RETRY_AFTER:
            logger.warning(
                "%s: %s sent Retry-After %.0f s; %.0f s count", client.name, client.host, seconds, _LONGEST_RETRY_AFTER
            )
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
