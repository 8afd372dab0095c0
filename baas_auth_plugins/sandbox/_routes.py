"""Which gateway a path belongs to, and which scopes each gateway grants.

Endpoints come from the providers' declarations; API paths and scopes, from the gateways' pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .. import providers as registry
from .._oauth.provider import Provider
from ._dialects import RefusedError
from ._messages import Kind

__all__ = ["Route", "Routes", "grant"]

_API_PREFIXES: Mapping[str, str] = {
    "axia": "/v1/",
    "ntxpay": "/cob/",
    "avista": "/cob/",
    "bs2": "/pix/direto/",
}
_AXIA_AUTHENTICATION = "/v1/authentication/"

_ASSIGNED_SCOPES: Mapping[str, str] = {
    "axia": "accounts:read accounts:write pix:send webhooks:manage",
    "ntxpay": "pix:read pix:write balance:read",
    "avista": "pix:read pix:write balance:read",
}
_OFFERED_SCOPES: Mapping[str, frozenset[str]] = {
    "bs2": frozenset(f"{area}.{right}" for area in ("cob", "pix", "webhook", "dict") for right in ("read", "write")),
}


def grant(provider: Provider, asked: str | None) -> str:
    """Return the scope a token gets: what was asked for, or what the gateway assigns.

    Raises:
        RefusedError: the scope is empty or not on offer (RFC 6749 section 5.2).
    """
    if provider.scope == "assigned":
        return _ASSIGNED_SCOPES.get(provider.name, "")
    scopes = (asked or "").split(" ")
    offered = _OFFERED_SCOPES.get(provider.name)
    if "" in scopes or (offered is not None and not offered.issuperset(scopes)):
        raise RefusedError(400, "invalid_scope", "scope must name one or more of the client's scopes")
    return asked or ""


@dataclass(frozen=True, slots=True)
class Route:
    """What a path leads to.

    Args:
        kind: of endpoint.
        owners: the gateways that serve it, the one it is put down to last; none where any does.
    """

    kind: Kind
    owners: tuple[Provider, ...] = ()


def _endpoints(provider: Provider) -> dict[str, Kind]:
    endpoints: dict[str | None, Kind] = {
        provider.token_endpoint: "token",
        provider.introspection_endpoint: "introspect",
        provider.revocation_endpoint: "revoke",
    }
    return {path: kind for path, kind in endpoints.items() if path is not None}


class Routes:
    """The paths of the gateways served.

    Args:
        served: their names or declarations; None for all that the package declares.

    Raises:
        ValueError: no gateway has that name.
    """

    def __init__(self, served: Iterable[str | Provider] | None) -> None:
        declared = {cls.provider.name: cls.provider for cls in registry.PROVIDERS}
        self.providers = [
            item if isinstance(item, Provider) else _named(item, declared)
            for item in (declared if served is None else served)
        ]
        self._endpoints: dict[str, Route] = {}
        for provider in declared.values():  # not served: found, and refused, rather than an API path
            self._endpoints.update(dict.fromkeys(_endpoints(provider), Route("unknown")))
        for provider in self.providers:  # on a shared path the last one stands for all
            for path, kind in _endpoints(provider).items():
                self._endpoints[path] = Route(kind, (provider,))

    def find(self, path: str) -> Route:
        """Return where the path leads; any that is no endpoint is an API's."""
        if route := self._endpoints.get(path):
            return route
        if path.startswith(_AXIA_AUTHENTICATION) or not path.startswith("/"):
            return Route("unknown")
        owners = (p for p in self.providers if path.startswith(_API_PREFIXES.get(p.name, "//")))
        return Route("api", tuple(owners))


def _named(name: str, declared: Mapping[str, Provider]) -> Provider:
    if name not in declared:
        raise ValueError(f"no gateway is called {name!r}; there are {', '.join(declared)}")
    return declared[name]
