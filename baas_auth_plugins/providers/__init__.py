"""The gateways, one declaration each, and the one list that the CLI, the sandbox and the tests read."""

from __future__ import annotations

from ..auth import OAuth2ClientCredentialsAuth
from .avista import AvistaAuth, NTXPayAuth
from .axia import AxiaAuth
from .bs2 import BS2Auth

__all__ = ["PROVIDERS", "AvistaAuth", "AxiaAuth", "BS2Auth", "NTXPayAuth"]

PROVIDERS: tuple[type[OAuth2ClientCredentialsAuth], ...] = (AxiaAuth, NTXPayAuth, AvistaAuth, BS2Auth)
