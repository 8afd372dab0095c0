"""Avista and NTX Pay: two brands of one white-label Pix platform, so one declaration and two hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from .._oauth.provider import Provider
from ..auth import OAuth2ClientCredentialsAuth
from ..client_auth import client_secret_json

__all__ = ["AvistaAuth", "NTXPayAuth"]


class AvistaAuth(OAuth2ClientCredentialsAuth):
    """Authenticates calls to Avista, for requests, httpx and httpx2.

    The gateway assigns scopes to the client, so `scope` names those your code cannot do without.
    The client secret has 8 to 64 characters. Parameters as in `OAuth2ClientCredentialsAuth`.
    """

    provider: ClassVar[Provider] = Provider(
        name="avista",
        env_prefix="AVISTA",
        environments={"production": "https://api.avista.global"},
        token_endpoint="/oauth/token",
        token_endpoint_auth_method=client_secret_json,
        default_expires_in=3600,
    )


class NTXPayAuth(OAuth2ClientCredentialsAuth):
    """Authenticates calls to NTX Pay, for requests, httpx and httpx2; all else is as with `AvistaAuth`."""

    provider: ClassVar[Provider] = replace(
        AvistaAuth.provider,
        name="ntxpay",
        env_prefix="NTXPAY",
        environments={"production": "https://api.ntxpay.com"},
    )
