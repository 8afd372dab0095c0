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

__all__ = ["AllowedOrigins", "Origin", "is_default_port", "origin", "origin_of_url", "parse_origin", "text_of"]

Origin = tuple[str, str, int]
"""Scheme, host and port."""

logger = logging.getLogger("baas_auth_plugins")

_DEFAULT_PORTS = {"https": 443, "http": 80}
_MOST_WARNINGS = 1000
_CURE = "must be an origin such as 'https://api.example.com'"


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


def is_default_port(found: Origin) -> bool:
    """Tell whether an origin's URLs need not name its port."""
    scheme, _, port = found
    return port == _DEFAULT_PORTS[scheme]


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
    if not isinstance(value, str):
        raise ConfigurationError(f"{parameter} {_CURE}, not {type(value).__name__}")
    return _parse_origin(parameter, value.strip())


@lru_cache(maxsize=1024)
def _parse_origin(parameter: str, text: str) -> tuple[str, Origin]:
    cure = f"{parameter} {_CURE}"
    try:
        parts = urlsplit(text)
        found = origin(parts.scheme, parts.hostname or "", parts.port)
    except ValueError:
        found = None
    if found is None or not text.isprintable() or "\\" in text or " " in text:
        raise ConfigurationError(f"{cure}: scheme, host and at most a port")
    if "@" in parts.netloc or parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ConfigurationError(f"{cure}: without userinfo, path, query or fragment")
    scheme, host, _ = found
    if scheme != "https" and not is_loopback(host):
        raise InsecureTransportError(f"{parameter} must use https: the client secret and the token travel there")
    return text_of(found), found


def text_of(found: Origin) -> str:
    """Return an origin as text, without a port that goes without saying."""
    scheme, host, port = found
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + ("" if is_default_port(found) else f":{port}")


class AllowedOrigins:
    """The origins that may receive the token. Each other one that is asked for is warned of once.

    Attributes:
        home: the first of them, which most requests go to.
    """

    __slots__ = ("_all", "_warned", "home")

    def __init__(self, origins: Iterable[Origin]) -> None:
        self._all = tuple(origins)
        self.home = self._all[0]
        self._warned: tuple[Origin | None, ...] = ()

    @property
    def further(self) -> list[str]:
        """All of them but `home`, as text."""
        return [text_of(further) for further in self._all[1:]]

    def admit(self, candidate: Origin | None) -> bool:
        """Tell whether a request to this origin gets the token."""
        if candidate in self._all:
            return True
        if candidate not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned += (candidate,)
            logger.warning(
                "a request to %s goes out without a token: it is neither base_url nor in allowed_origins",
                "{}://{}:{}".format(*candidate) if candidate else "an unknown origin",
            )
        return False
