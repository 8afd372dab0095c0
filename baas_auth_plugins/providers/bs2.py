"""BS2 Pix Direto: opaque tokens of five to seven minutes, and scopes named by the caller."""

from __future__ import annotations

from typing import ClassVar

from .._oauth.provider import Provider
from ..auth import OAuth2ClientCredentialsAuth

__all__ = ["BS2Auth"]


class BS2Auth(OAuth2ClientCredentialsAuth):
    """Authenticates calls to BS2 Pix Direto, for requests, httpx and httpx2.

    `scope` is required and sent as given, such as ``"cob.read pix.read"``. Besides
    ``"production"`` there is the environment ``"homologation"``. Parameters as in
    `OAuth2ClientCredentialsAuth`.
    """

    provider: ClassVar[Provider] = Provider(
        name="bs2",
        env_prefix="BS2",
        environments={
            "production": "https://api.bs2.com",
            "homologation": "https://apihmz.bancobonsucesso.com.br",
        },
        token_endpoint="/auth/oauth/v2/token",
        token_endpoint_auth_method="client_secret_basic",
        scope="required",
        default_expires_in=300,
        token_rate_limit=(10, 60),
    )
