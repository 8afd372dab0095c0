"""Checking what the user passes to an auth object: each mistake is a `ConfigurationError` that says what to do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

from ..client_auth import client_secret_basic
from ..exceptions import ConfigurationError
from .origins import Origin, parse_origin
from .provider import Provider
from .token import SCOPE_TOKEN

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADERS_OF_OURS = {"authorization", "content-length", "transfer-encoding"}
_LONGEST = 1e9
_BASIC = ("client_secret_basic", client_secret_basic)
_MAY_SIGN = ("private_key_jwt", "client_secret_jwt")


def client_id(provider: Provider, value: object) -> str:
    """Return a client_id that can be sent."""
    checked = _credential("client_id", value)
    if ":" in checked and provider.token_endpoint_auth_method in _BASIC:
        raise ConfigurationError("client_id must not have a colon: it ends there in a Basic header (RFC 7617)")
    return checked


def client_secret(provider: Provider, value: object) -> str:
    """Return a client secret that can be sent or, where the provider's method signs, a key."""
    method = provider.token_endpoint_auth_method
    if value is None and method == "none":
        return ""
    if value is None:
        raise ConfigurationError(f"client_secret is required by {provider.name}")
    is_key = method in _MAY_SIGN or (callable(method) and not inspect.isfunction(method))
    return _credential("client_secret", value, may_be_pem=is_key)


def _credential(parameter: str, value: object, *, may_be_pem: bool = False) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{parameter} must be a non-empty str, not {type(value).__name__}")
    if not value.strip():
        raise ConfigurationError(f"{parameter} must be a non-empty str; pass the value that the gateway gave you")
    if _CONTROL.search(value) and not may_be_pem:
        raise ConfigurationError(f"{parameter} has a control character, such as a line break at its end: strip it")
    # Checked by hand: a UnicodeEncodeError would contain the secret.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigurationError(f"{parameter} has characters that UTF-8 cannot encode")
    return value


def base_url(provider: Provider, environment: object, value: str | None) -> tuple[str, Origin]:
    """Return the origin of the token endpoint, as text and normalised."""
    if value is not None and (environment in provider.environments or environment == "production"):
        return parse_origin("base_url", value)
    if not provider.environments:
        raise ConfigurationError(f"base_url is required by {provider.name}: pass the origin that the gateway gave you")
    if not isinstance(environment, str) or environment not in provider.environments:
        known = " or ".join(repr(name) for name in provider.environments)
        # The value is not quoted: a misplaced secret would be in the message.
        raise ConfigurationError(f"environment must be {known} for {provider.name}")
    return parse_origin("base_url", provider.environments[environment])


def origins(parameter: str, value: object) -> list[Origin]:
    """Return further origins, normalised."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{parameter} must be a list of origins, such as ['https://api.example.com']")
    return [parse_origin(parameter, one)[1] for one in value]


def scope(provider: Provider, value: object) -> str | None:
    """Return the scopes, separated by blanks; None for none."""
    if isinstance(value, str):
        scopes = value.split()
    else:
        try:
            scopes = list(value or ())  # type: ignore[call-overload]  # the except clause reports what cannot be iterated
        except TypeError:
            raise ConfigurationError("scope must be a str, or an iterable of str") from None
        if isinstance(value, set | frozenset):
            scopes = sorted(scopes, key=str)
    if not all(isinstance(scope, str) and SCOPE_TOKEN.fullmatch(scope) for scope in scopes):
        raise ConfigurationError(
            "scope has an entry that is no scope (RFC 6749 section 3.3): printable ASCII, no spaces"
        )
    if not scopes and provider.scope == "required":
        raise ConfigurationError(
            f"scope is required by {provider.name}: name what you need, such as 'cob.read pix.read'"
        )
    return " ".join(scopes) or None


def seconds(parameter: str, value: object, *, may_be_zero: bool = False) -> float:
    """Return a finite number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LONGEST:
        raise ConfigurationError(f"{parameter} must be a finite number of seconds")
    if value < 0 or (value == 0 and not may_be_zero):
        raise ConfigurationError(f"{parameter} must be {'0 or more' if may_be_zero else 'more than 0'} seconds")
    return float(value)


def headers(value: object) -> Mapping[str, str]:
    """Return extra headers as a dict of our own."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError("headers must be a mapping of str to str")
    for name, content in value.items():
        if not isinstance(name, str) or not isinstance(content, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError("headers must be a mapping of header names to str")
        if name.lower() in _HEADERS_OF_OURS:
            raise ConfigurationError(f"headers must not set {name}: the client authentication does")
        if not (content.isascii() and content.isprintable() and content == content.strip()):
            raise ConfigurationError(
                f"headers: the value of {name} must be printable ASCII without blanks at its ends; percent-encode the rest"
            )
    return dict(value)


def is_async(function: object) -> bool:
    """Return whether calling a function gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
