"""HTTPie plugins: ``http -A axia https://...`` authenticates as `AxiaAuth` does, and so for the other gateways.

Credentials come from the environment, as `from_env` reads them, or from ``-a id:secret``. HTTPie finds the plugins by
the entry points in ``httpie.plugins.auth.v1``. Only HTTPie imports this module.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from . import AvistaAuth, AxiaAuth, BS2Auth, NTXPayAuth, OAuth2ClientCredentialsAuth
from .exceptions import ConfigurationError

if TYPE_CHECKING:  # HTTPie has no types

    class AuthPlugin:
        """The base of HTTPie's auth plugins."""
else:
    from httpie.plugins import AuthPlugin

__all__ = ["AvistaPlugin", "AxiaPlugin", "BS2Plugin", "NTXPayPlugin"]


class _Plugin(AuthPlugin):
    """What the plugins have in common."""

    auth_require = False
    auth_class: ClassVar[type[OAuth2ClientCredentialsAuth]]

    def get_auth(self, username: str | None = None, password: str | None = None) -> OAuth2ClientCredentialsAuth:
        """Return the auth object.

        Args:
            username: the client_id of ``-a``; None reads the environment.
            password: the client_secret of ``-a``.

        Raises:
            SystemExit: a setting is missing or wrong. HTTPie would show a traceback for any other exception.
        """
        given: dict[str, Any] = {} if username is None else {"client_id": username, "client_secret": password}
        try:
            return self.auth_class.from_env(**given)
        except ConfigurationError as error:
            print(f"http: error: {error}", file=sys.stderr)  # noqa: T201  # HTTPie shows no message of a SystemExit
            raise SystemExit(1) from error


class AxiaPlugin(_Plugin):
    """``-A axia``."""

    name = "Axia BaaS (OAuth 2.0 client credentials)"
    auth_type = "axia"
    description = "BAAS_CLIENT_ID and BAAS_CLIENT_SECRET, or -a id:secret"
    auth_class: ClassVar[type[OAuth2ClientCredentialsAuth]] = AxiaAuth


class NTXPayPlugin(_Plugin):
    """``-A ntxpay``."""

    name = "NTX Pay (OAuth 2.0 client credentials)"
    auth_type = "ntxpay"
    description = "NTXPAY_CLIENT_ID and NTXPAY_CLIENT_SECRET, or -a id:secret"
    auth_class: ClassVar[type[OAuth2ClientCredentialsAuth]] = NTXPayAuth


class AvistaPlugin(_Plugin):
    """``-A avista``."""

    name = "Avista (OAuth 2.0 client credentials)"
    auth_type = "avista"
    description = "AVISTA_CLIENT_ID and AVISTA_CLIENT_SECRET, or -a id:secret"
    auth_class: ClassVar[type[OAuth2ClientCredentialsAuth]] = AvistaAuth


class BS2Plugin(_Plugin):
    """``-A bs2``."""

    name = "BS2 Pix Direto (OAuth 2.0 client credentials)"
    auth_type = "bs2"
    description = "BS2_CLIENT_ID, BS2_CLIENT_SECRET and BS2_SCOPE, or -a id:secret and BS2_SCOPE"
    auth_class: ClassVar[type[OAuth2ClientCredentialsAuth]] = BS2Auth
