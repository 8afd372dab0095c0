"""How a client proves who it is: the methods of the four gateways, for Authlib's `ClientAuth`.

Each takes and returns what Authlib's own methods do. The body that comes in is the form of
RFC 6749 section 4.4.2; a gateway that documents another body replaces it.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from ._provider import Provider
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from authlib.oauth2.auth import ClientAuth

__all__ = [
    "basic_authorization",
    "client_secret_basic",
    "client_secret_basic_without_body",
    "client_secret_json",
    "credential",
    "prepare",
    "sends_basic",
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Headers = MutableMapping[str, str]
Prepared = tuple[str, Headers, str]


def basic_authorization(client_id: str, client_secret: str) -> str:
    """Return the Basic header's value: both halves raw, as UTF-8, as the gateways' pages show it.

    RFC 6749 section 2.3.1 would form-encode the halves first; Axia and BS2 do not, and Authlib's
    own method stops at latin-1.
    """
    return "Basic " + b64encode(f"{client_id}:{client_secret}".encode()).decode("ascii")


def client_secret_basic(client: ClientAuth, method: str, uri: str, headers: Headers, body: str) -> Prepared:
    """Basic beside the standard form body (BS2)."""
    headers["Authorization"] = basic_authorization(client.client_id, client.client_secret)
    return uri, headers, body


def client_secret_basic_without_body(
    client: ClientAuth, method: str, uri: str, headers: Headers, body: str
) -> Prepared:
    """Basic, a JSON content type and no body at all (Axia)."""
    headers["Content-Type"] = "application/json"
    return client_secret_basic(client, method, uri, headers, "")


def client_secret_json(client: ClientAuth, method: str, uri: str, headers: Headers, body: str) -> Prepared:
    """Both credentials in a JSON body, and no Authorization header (NTX Pay, Avista)."""
    headers["Content-Type"] = "application/json"
    return uri, headers, json.dumps({"clientId": client.client_id, "clientSecret": client.client_secret})


_BASIC = ("client_secret_basic", client_secret_basic, client_secret_basic_without_body)


def sends_basic(provider: Provider) -> bool:
    """Tell whether the client_id travels in a Basic header, where it must not hold a colon."""
    return provider.token_endpoint_auth_method in _BASIC


def prepare(
    provider: Provider, token_endpoint: str, client_id: str, client_secret: str, scope: str | None
) -> tuple[str, dict[str, str], bytes]:
    """Return the token request's URL, headers and body (RFC 6749 section 4.4.2)."""
    from authlib.oauth2.auth import ClientAuth  # at the first token request, which takes longer than this
    from authlib.oauth2.rfc6749.parameters import prepare_token_request

    method = provider.token_endpoint_auth_method
    if method == "client_secret_basic":  # by name or not, never Authlib's latin-1 one
        method = client_secret_basic
    auth = ClientAuth(client_id, client_secret, method)
    form = prepare_token_request("client_credentials", scope=scope if provider.scope == "required" else None)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    url, headers, body = auth.prepare("POST", token_endpoint, headers, form)
    return url, headers, body.encode()


def credential(parameter: str, value: object, *, in_basic: bool = False) -> str:
    """Return a client_id or client_secret that can travel, or raise a `ConfigurationError` that says why it cannot."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{parameter} must be a non-empty str, not {type(value).__name__}")
    if not value.strip():
        raise ConfigurationError(f"{parameter} must be a non-empty str; pass the value that the gateway gave you")
    if _CONTROL.search(value):
        raise ConfigurationError(f"{parameter} has a control character, such as a line break at its end: strip it")
    if in_basic and ":" in value:
        raise ConfigurationError(f"{parameter} must not have a colon: it ends there in a Basic header (RFC 7617)")
    if any("\ud800" <= character <= "\udfff" for character in value):  # asked, not tried: the error would hold it
        raise ConfigurationError(f"{parameter} has characters that UTF-8 cannot encode")
    return value
