"""Where a token may go: origins, normalised so that two spellings of one origin compare equal.

Each HTTP client passes what its own URL parser found: a second parser could disagree with it.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import idna

from ..exceptions import ConfigurationError, InsecureTransportError

Origin = tuple[str, str, int]
"""Scheme, host and port."""

logger = logging.getLogger("baas_auth_plugins")

_DEFAULT_PORTS = {"https": 443, "http": 80}
_MOST_WARNINGS = 1000
_CURE = "must be an origin such as 'https://api.example.com'"
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")


@lru_cache(maxsize=1024)
def origin(scheme: str, host: str, port: int | None) -> Origin | None:
    """Return the normalised origin; None if it cannot be compared with others."""
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
    """Return the origin of a URL, read as requests reads it when it connects; None if there is none."""
    try:
        parts = urlsplit(url)
        return origin(parts.scheme, parts.hostname or "", parts.port)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether a normalised host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_origin(parameter: str, value: object) -> tuple[str, Origin]:
    """Check an origin that the user gave, and return it as text and normalised.

    Args:
        parameter: its name, for errors.
        value: the origin.

    Raises:
        ConfigurationError: it is not a str, or it has a path, a query, userinfo or a wildcard.
        InsecureTransportError: it is neither https nor on loopback.
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
    if not _HOST.fullmatch(found[1]):
        raise ConfigurationError(f"{cure}: an exact host, without wildcards")
    if "@" in parts.netloc or parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ConfigurationError(f"{cure}: without userinfo, path, query or fragment")
    scheme, host, _ = found
    if scheme != "https" and not is_loopback(host):
        raise InsecureTransportError(f"{parameter} must use https: the client secret and the token travel there")
    return text_of(found), found


def text_of(found: Origin) -> str:
    """Return an origin as text, without its scheme's default port."""
    scheme, host, port = found
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + ("" if port == _DEFAULT_PORTS[scheme] else f":{port}")


class AllowedOrigins:
    """The origins that may receive one auth object's token.

    Args:
        provider: the provider's name, for the warning.
        home: the origin of the token endpoint, which most API requests go to.
        further: the others.
    """

    __slots__ = ("_all", "_home", "_port", "_prefix", "_provider", "_raw_host", "_scheme", "_warned")

    def __init__(self, provider: str, home: Origin, further: Iterable[Origin]) -> None:
        self._provider = provider
        self._home = home
        self._all = frozenset({home, *further})
        self._prefix = f"{text_of(home)}/"
        self._scheme, host, port = home
        self._raw_host, self._port = host.encode("ascii"), None if port == _DEFAULT_PORTS[self._scheme] else port
        self._warned: frozenset[Origin | None] = frozenset()

    @property
    def home(self) -> Origin:
        """The token endpoint's origin."""
        return self._home

    @property
    def further(self) -> list[str]:
        """All but the token endpoint's origin, as text."""
        return sorted(text_of(one) for one in self._all if one != self._home)

    def is_home(self, url: str) -> bool:
        """Return whether a URL surely begins with the token endpoint's origin: a comparison, for the cached call."""
        return url.startswith(self._prefix)

    def is_home_url(self, url: Any) -> bool:
        """Do as `is_home`, for a URL object of httpx."""
        matches: bool = url.raw_host == self._raw_host and url.port == self._port and url.scheme == self._scheme
        return matches

    def allow(self, candidate: Origin | None) -> bool:
        """Return whether a request to this origin gets the token; log a warning at the first request that does not."""
        if candidate in self._all:
            return True
        if candidate not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned |= {candidate}
            logger.warning(
                "%s: no token sent to %s; this auth object is for %s. Fix base_url, or add it to allowed_origins",
                self._provider,
                text_of(candidate) if candidate else "an unknown origin",
                text_of(self._home),
            )
        return False
