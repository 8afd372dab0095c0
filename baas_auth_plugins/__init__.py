"""Auth plugins for requests, httpx and httpx2: OAuth 2.0 client credentials for Brazilian BaaS and Pix gateways.

session.auth = BS2Auth(client_id, client_secret, scope="cob.read pix.read")
httpx.Client(auth=AxiaAuth(client_id, client_secret))
"""

from __future__ import annotations

import typing

from ._oauth.provider import Provider
from ._oauth.token import Token
from .auth import OAuth2ClientCredentialsAuth
from .cache import MemoryTokenCache, TokenCache
from .exceptions import (
    BaaSAuthError,
    ConfigurationError,
    InsecureTransportError,
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from .introspection import Introspection, Revocation
from .providers import PROVIDERS, AvistaAuth, AxiaAuth, BS2Auth, NTXPayAuth

if typing.TYPE_CHECKING:
    from .events import (
        Event,
        RateLimited,
        RenewalFailed,
        RequestReplayed,
        TokenMinted,
        TokenRejected,
        TokenServedStale,
    )

__all__ = [
    "PROVIDERS",
    "AvistaAuth",
    "AxiaAuth",
    "BS2Auth",
    "BaaSAuthError",
    "ConfigurationError",
    "Event",
    "InsecureTransportError",
    "Introspection",
    "InvalidClientError",
    "InvalidScopeError",
    "InvalidTokenResponseError",
    "MemoryTokenCache",
    "NTXPayAuth",
    "OAuth2ClientCredentialsAuth",
    "Provider",
    "RateLimitError",
    "RateLimited",
    "RenewalFailed",
    "RequestReplayed",
    "Revocation",
    "Token",
    "TokenCache",
    "TokenEndpointError",
    "TokenEndpointUnavailableError",
    "TokenMinted",
    "TokenRejected",
    "TokenServedStale",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the events at first use: the dataclasses take 3 ms to make."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import events

    return getattr(events, name)


def __dir__() -> list[str]:
    """Return all names, imported or not."""
    return sorted({*globals(), *__all__})
