"""A gateway as data: where it lives, how its clients authenticate, what it allows.

Nothing here does anything. A fifth gateway is one more `Provider` and three lines of class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .exceptions import ConfigurationError

__all__ = ["ClientAuthMethod", "Provider"]

ClientAuthMethod = str | Callable[[Any, str, str, Any, str], tuple[str, Any, str]]
"""A method's name, or a callable ``(client, method, uri, headers, body)`` as Authlib's `ClientAuth` takes."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What the package knows of one gateway.

    Args:
        name: short lower-case name, as the CLI and events give it.
        env_prefix: what the environment variables of ``from_env`` begin with.
        environments: name to origin; must hold ``"production"``.
        token_endpoint: path of the token endpoint (RFC 6749 section 3.2).
        token_endpoint_auth_method: how the client authenticates there (RFC 6749 section 2.3.1):
            a name Authlib knows, or a callable that Authlib's `ClientAuth` accepts.
        scope: ``"required"`` where the token request must name scopes, ``"assigned"`` where the
            gateway decides and the caller may only check.
        default_expires_in: a token's lifetime in seconds where the response does not state it.
        token_rate_limit: at most this many token requests in this many seconds, or None.
        introspection_endpoint: path (RFC 7662), or None where the gateway has none.
        revocation_endpoint: path (RFC 7009), or None where the gateway has none.

    Raises:
        ConfigurationError: an endpoint is not a path.
    """

    name: str
    env_prefix: str
    environments: Mapping[str, str]
    token_endpoint: str
    token_endpoint_auth_method: ClientAuthMethod = "client_secret_basic"
    scope: Literal["required", "assigned"] = "assigned"
    default_expires_in: float = 3600
    token_rate_limit: tuple[int, float] | None = None
    introspection_endpoint: str | None = None
    revocation_endpoint: str | None = None

    def __post_init__(self) -> None:
        for path in (self.token_endpoint, self.introspection_endpoint, self.revocation_endpoint):
            if path is not None and not path.startswith("/"):  # it would become part of the host's name
                raise ConfigurationError(f"an endpoint must be a path that begins with '/', not {path!r}")
