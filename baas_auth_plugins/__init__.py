"""Auth plugins for requests, httpx and httpx2: OAuth 2.0 client credentials for Brazilian BaaS and Pix gateways.

session.auth = BS2Auth(client_id, client_secret, scope="cob.read pix.read")
httpx.Client(auth=AxiaAuth(client_id, client_secret))
"""

from __future__ import annotations

from ._provider import Provider
from ._token import Token
from .auth import OAuth2ClientCredentialsAuth
from .cache import MemoryTokenCache, TokenCache
from .events import (
    Event,
    RateLimited,
    RenewalFailed,
    RequestReplayed,
    TokenMinted,
    TokenRejected,
    TokenServedStale,
)
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
