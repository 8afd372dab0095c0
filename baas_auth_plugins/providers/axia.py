"""Axia BaaS: an OAuth 2.0 gateway with JWTs of one hour, introspection and revocation."""

from __future__ import annotations

from typing import ClassVar

from .._oauth.provider import Provider
from ..introspection import IntrospectionMixin

__all__ = ["AxiaAuth"]


class AxiaAuth(IntrospectionMixin):
    """Authenticates calls to Axia BaaS, for requests, httpx and httpx2.

    Axia assigns scopes to the client, so `scope` names those your code cannot do without: a token
    that lacks one is refused with `InvalidScopeError`. Parameters as in `OAuth2ClientCredentialsAuth`.
    """

    provider: ClassVar[Provider] = Provider(
        name="axia",
        env_prefix="BAAS",
        environments={"production": "https://baas-gtw.axiadigitalsolutions.com"},
        token_endpoint="/v1/authentication/oauth/access-token",
        token_endpoint_auth_method="client_secret_basic",
        token_request_format="empty",
        default_expires_in=3600,
        token_rate_limit=(100, 60),
        introspection_endpoint="/v1/authentication/oauth/introspect",
        revocation_endpoint="/v1/authentication/oauth/revoke",
    )
