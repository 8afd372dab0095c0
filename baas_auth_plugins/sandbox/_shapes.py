"""The exact shape of a gateway's token request, from its declaration alone (RFC 6749 sections 2.3.1 and 4.4.2).

The same shape checks requests, and shows them on the page. It uses nothing of the client's flow, which it checks.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote_plus, urlencode

from .._oauth.provider import ClientAuthMethod, Provider

__all__ = [
    "ASSIGNED_SCOPES",
    "FORM",
    "JSON",
    "JWT_BEARER",
    "OFFERED_SCOPES",
    "Example",
    "Shape",
    "method_name",
    "scopes_of",
    "shape_of",
]

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

Format = Literal["form", "json", "query", "empty"]

_ASSERTION = ("client_assertion_type", "client_assertion")
_AUTHENTICATION: Mapping[str, tuple[str, ...]] = {
    "client_secret_basic": (),
    "client_secret_basic_encoded": (),
    "client_secret_post": ("client_id", "client_secret"),
    "none": ("client_id",),
    "private_key_jwt": _ASSERTION,
    "client_secret_jwt": _ASSERTION,
}

ASSIGNED_SCOPES: Mapping[str, str] = {
    "axia": "accounts:read accounts:write pix:send webhooks:manage",
    "ntxpay": "pix:read pix:write balance:read",
    "avista": "pix:read pix:write balance:read",
}
OFFERED_SCOPES: Mapping[str, tuple[str, ...]] = {
    "bs2": tuple(f"{area}.{right}" for area in ("cob", "pix", "webhook", "dict") for right in ("read", "write")),
}
_EXAMPLE_SCOPES: Mapping[str, str] = {"bs2": "cob.read pix.read"}


def scopes_of(provider: Provider) -> str | None:
    """Return the scopes that an example request names, or None if the gateway takes none."""
    if provider.scope != "required":
        return None
    return _EXAMPLE_SCOPES.get(provider.name, "example.read")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a token request holds.

    Args:
        format: where its parameters are.
        required: names of the parameters that must be there.
        optional: names of the parameters that may be there.
        basic: the client authenticates with HTTP Basic; else there is no Authorization header.
        encoded: the halves of Basic are form-encoded (RFC 6749 section 2.3.1), not raw.
        client_id: name of the parameter with the client_id.
        client_secret: name of the parameter with the secret.
    """

    format: Format
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    basic: bool = False
    encoded: bool = False
    client_id: str = "client_id"
    client_secret: str = "client_secret"

    @property
    def content_type(self) -> str | None:
        """The Content-Type that the request must have, or None if any will do."""
        return {"form": FORM, "json": JSON, "empty": JSON, "query": None}[self.format]

    def example(self, provider: Provider, client_id: str, client_secret: str) -> Example:
        """Return a request of this shape with these credentials."""
        values = {
            "grant_type": "client_credentials",
            "scope": scopes_of(provider) or "",
            self.client_id: client_id,
            self.client_secret: client_secret,
            "client_assertion_type": JWT_BEARER,
            "client_assertion": "JWT",
        }
        parameters = {name: values[name] for name in self.required}
        text = json.dumps(parameters) if self.format == "json" else urlencode(parameters, quote_via=quote_plus)
        target = provider.token_endpoint + (f"?{text}" if self.format == "query" else "")
        halves = [quote_plus(half) if self.encoded else half for half in (client_id, client_secret)]
        user = ":".join(halves) if self.basic else None
        return Example(target, self.content_type, user, text if self.format in ("form", "json") else "")


@dataclass(frozen=True, slots=True)
class Example:
    """One token request, ready to be shown.

    Args:
        target: path and query.
        content_type: the value of Content-Type, or None.
        user: client_id and secret for HTTP Basic, joined by a colon, or None.
        body: the body as text.
    """

    target: str
    content_type: str | None
    user: str | None = field(repr=False)
    body: str = field(repr=False)

    def as_text(self) -> str:
        """Return the request as HTTP/1.1 shows it, with the Basic header's halves in words."""
        lines = [f"POST {self.target}"]
        if self.user is not None:
            lines.append("Authorization: Basic base64(client_id:client_secret)")
        if self.content_type is not None:
            lines.append(f"Content-Type: {self.content_type}")
        return "\n".join([*lines, "", self.body]) if self.body else "\n".join([*lines, "", "(no body)"])

    def as_curl(self, origin: str, options: tuple[str, ...] = ()) -> str:
        """Return the command line that sends the request to an origin; `options` are further ones of curl's."""
        words = ["curl", "-X", "POST", origin + self.target, *options]
        if self.user is not None:
            words += ["-u", self.user]
        if self.content_type is not None:
            words += ["-H", f"Content-Type: {self.content_type}"]
        if self.body:
            words += ["-d", self.body]
        return shlex.join(words)


_FUNCTIONS = "baas_auth_plugins.client_auth"
_CLIENT_ID_JSON = Shape("json", ("clientId", "clientSecret"), client_id="clientId", client_secret="clientSecret")


def shape_of(provider: Provider) -> Shape | None:
    """Return the shape that a declaration fixes, or None if a function of its own makes the request."""
    method = method_name(provider.token_endpoint_auth_method)
    if method == "client_secret_json":
        return _CLIENT_ID_JSON
    if method not in _AUTHENTICATION:
        return None
    basic, encoded = method.startswith("client_secret_basic"), method.endswith("_encoded")
    if provider.token_request_format == "empty":
        return Shape("empty", (), basic=basic, encoded=encoded)
    scope = ("scope",) if provider.scope == "required" else ()
    optional: tuple[str, ...] = ("scope",) if provider.scope == "optional" else ()
    if method.endswith("_jwt"):
        optional += ("client_id",)
    required = ("grant_type", *scope, *_AUTHENTICATION[method])
    return Shape(provider.token_request_format, required, optional, basic, encoded)


def method_name(method: ClientAuthMethod) -> str:
    """Return a method's name, also if the declaration has one of the package's building blocks; empty for others."""
    if isinstance(method, str):
        return method
    if type(method).__module__ == _FUNCTIONS:
        return str(getattr(method, "method", ""))
    return method.__name__ if getattr(method, "__module__", "") == _FUNCTIONS else ""
