"""Which gateway a path belongs to on one origin, and which scopes each gateway grants.

Endpoints come from the providers' declarations; API paths and scopes come from the gateways' pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from .. import providers as registry
from .._oauth.provider import Provider
from ._messages import Kind
from ._refusal import RefusedError
from ._shapes import ASSIGNED_SCOPES, OFFERED_SCOPES, shape_of

__all__ = ["Declared", "Route", "Routes", "declaration", "grant"]

_API_PREFIXES: Mapping[str, str] = {
    "axia": "/v1/",
    "ntxpay": "/cob/",
    "avista": "/cob/",
    "bs2": "/pix/direto/",
}
_AXIA_AUTHENTICATION = "/v1/authentication/"


class _Declares(Protocol):
    provider: ClassVar[Provider]


Declared = str | Provider | type[_Declares]
"""A gateway: by the name of one of the package's, as a declaration, or as the auth class that has it."""


def declaration(gateway: Declared) -> Provider:
    """Return the declaration of a gateway.

    Raises:
        ValueError: the package declares no gateway of that name.
    """
    if isinstance(gateway, Provider):
        return gateway
    if not isinstance(gateway, str):
        return gateway.provider
    declared = {cls.provider.name: cls.provider for cls in registry.PROVIDERS}
    if gateway not in declared:
        raise ValueError(f"no gateway is called {gateway!r}; there are {', '.join(declared)}")
    return declared[gateway]


def grant(provider: Provider, requested: str | None) -> str:
    """Return the scope that a token gets: the requested one, or the one that the gateway assigns.

    Raises:
        RefusedError: the scope is empty or not on offer (RFC 6749 section 5.2).
    """
    if provider.scope == "assigned":
        return ASSIGNED_SCOPES.get(provider.name, "")
    if requested is None and (provider.scope != "required" or shape_of(provider) is None):
        return ""
    scopes = (requested or "").split(" ")
    offered = OFFERED_SCOPES.get(provider.name)
    if "" in scopes or (offered is not None and not set(offered).issuperset(scopes)):
        raise RefusedError(400, "invalid_scope", "scope must name one or more of the client's scopes")
    return requested or ""


@dataclass(frozen=True, slots=True)
class Route:
    """What a path leads to.

    Args:
        kind: of endpoint.
        owners: the gateways that serve it, last the one that it counts for; empty if all do.
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
    """The paths of the gateways that one origin serves.

    Args:
        served: their declarations. If two have the same path, it counts for the later one.
    """

    def __init__(self, served: Iterable[Provider]) -> None:
        self.providers: list[Provider] = list(served)
        self._endpoints: dict[str, Route] = {}
        for cls in registry.PROVIDERS:  # An endpoint that is not served here is refused. It is not an API path.
            self._endpoints.update(dict.fromkeys(_endpoints(cls.provider), Route("unknown")))
        for provider in self.providers:
            for path, kind in _endpoints(provider).items():
                self._endpoints[path] = Route(kind, (provider,))

    def find(self, path: str) -> Route:
        """Return where the path leads; every path that is no endpoint is an API's."""
        if route := self._endpoints.get(path):
            return route
        if path.startswith(_AXIA_AUTHENTICATION) or not path.startswith("/"):
            return Route("unknown")
        if len(self.providers) == 1:
            return Route("api", tuple(self.providers))
        return Route("api", tuple(p for p in self.providers if path.startswith(_API_PREFIXES.get(p.name, "//"))))
