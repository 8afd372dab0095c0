"""Where a token may go: origins, normalised so that two spellings of one place compare equal.

A client passes what its own URL parser found, so that there is no second parser to disagree with.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

import idna

from .exceptions import ConfigurationError, InsecureTransportError

__all__ = ["AllowedOrigins", "Origin", "origin", "origin_of_url", "parse_origin"]

Origin = tuple[str, str, int]
"""Scheme, host and port."""

logger = logging.getLogger("baas_auth_plugins")

_DEFAULT_PORTS = {"https": 443, "http": 80}
_MOST_WARNINGS = 1000


@lru_cache(maxsize=1024)
def origin(scheme: str, host: str, port: int | None) -> Origin | None:
    """Return the normalised origin, or None for what is not one that could be compared."""
    scheme, host = scheme.lower(), host.lower()
    if scheme not in _DEFAULT_PORTS:
        return None
    try:
        if ":" in host:
            host = ipaddress.IPv6Address(host.strip("[]")).compressed
        elif not host.isascii():
            host = idna.encode(host, uts46=True).decode("ascii")
    except (ValueError, idna.IDNAError):
        return None
    host = host.removesuffix(".")
    if not host:
        return None
    return scheme, host, _DEFAULT_PORTS[scheme] if port is None else port


def origin_of_url(url: str) -> Origin | None:
    """Return the origin of a URL as `requests` reads it when it connects, or None."""
    try:
        parts = urlsplit(url)
        return origin(parts.scheme, parts.hostname or "", parts.port)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Tell whether a normalised host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_origin(parameter: str, value: object) -> tuple[str, Origin]:
    """Check an origin given by the user, and return it as text and normalised.

    Raises:
        ConfigurationError: it is not an origin: not a str, or with a path, query or userinfo.
        InsecureTransportError: it is not https, and not loopback either.
    """
    cure = f"{parameter} must be an origin such as 'https://api.example.com'"
    if not isinstance(value, str):
        raise ConfigurationError(f"{cure}, not {type(value).__name__}")
    text = value.strip()
    try:
        parts = urlsplit(text)
        found = origin(parts.scheme, parts.hostname or "", parts.port)
    except ValueError:
        found = None
    if found is None or not text.isprintable() or "\\" in text or " " in text:
        raise ConfigurationError(f"{cure}: scheme, host and at most a port")
    if "@" in parts.netloc or parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ConfigurationError(f"{cure}: without userinfo, path, query or fragment")
    scheme, host, port = found
    if scheme != "https" and not is_loopback(host):
        raise InsecureTransportError(f"{parameter} must use https: the client secret and the token travel there")
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + ("" if port == _DEFAULT_PORTS[scheme] else f":{port}"), found


class AllowedOrigins:
    """The origins that may receive the token. Each other one that is asked for is warned of once."""

    def __init__(self, origins: Iterable[Origin]) -> None:
        self._origins = frozenset(origins)
        self._warned: set[Origin | None] = set()

    def __contains__(self, candidate: Origin | None) -> bool:
        return candidate in self._origins

    def admit(self, candidate: Origin | None) -> bool:
        """Tell whether a request to this origin gets the token."""
        if candidate in self._origins:
            return True
        if candidate not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(candidate)
            logger.warning(
                "a request to %s goes out without a token: it is neither base_url nor in allowed_origins",
                "{}://{}:{}".format(*candidate) if candidate else "an unknown origin",
            )
        return False
