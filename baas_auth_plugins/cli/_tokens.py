"""``token``, ``introspect`` and ``revoke``: one token, printed or read from standard input."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from typing import Any

from .. import Introspection, Revocation
from ._check import session, waits_for
from ._exit_codes import ExitCode, UsageError
from ._gateways import AuthClass, Settings
from ._output import as_json as json_value
from ._output import fail, moment, print_facts, print_json, waiting

__all__ = ["introspect", "revoke", "token"]

_INTROSPECTION = ("active", "client_id", "token_type", "scopes", "expires_at", "issued_at", "reason")
_REVOCATION = ("status", "revoked_at", "token_id")
_LONGEST_INPUT = 65_536  # characters; no token is that long


def token(cls: AuthClass, settings: Settings, *, as_json: bool) -> int:
    """Print an access token.

    Args:
        cls: the gateway.
        settings: of the command line.
        as_json: print the token with its lifetime and scopes, as JSON.
    """
    with session(settings) as over, waiting(waits_for(cls, settings)):
        found = settings.auth(cls, session=over).get_token()
    if as_json:
        print_json(
            {
                "access_token": found.access_token,
                "token_type": found.token_type,
                "expires_in": found.expires_in,
                "expires_at": found.expires_at,
                "scopes": sorted(found.scopes),
            }
        )
    else:
        print(found.access_token, flush=True)
    return ExitCode.OK


def introspect(cls: AuthClass, settings: Settings, *, as_json: bool) -> int:
    """Ask the gateway about the token on standard input, and print the answer.

    Args:
        cls: the gateway.
        settings: of the command line.
        as_json: print JSON.

    Returns:
        0 only if the token is active.
    """
    answer: Introspection = _ask("introspect", cls, settings)
    if as_json:
        print_json({name: json_value(getattr(answer, name)) for name in _INTROSPECTION})
    else:
        print_facts(
            {
                "active": "yes" if answer.active else "no",
                "reason": answer.reason,
                "client_id": answer.client_id,
                "scopes": " ".join(sorted(answer.scopes)) or None,
                "issued at": moment(answer.issued_at),
                "expires at": moment(answer.expires_at),
            }
        )
    if answer.active:
        return ExitCode.OK
    fail(f"{cls.provider.name}: the token is not active. Request a new one.")
    return ExitCode.INACTIVE


def revoke(cls: AuthClass, settings: Settings, *, as_json: bool) -> int:
    """Revoke the token on standard input, and print the answer.

    Args:
        cls: the gateway.
        settings: of the command line.
        as_json: print JSON.
    """
    answer: Revocation = _ask("revoke", cls, settings)
    if as_json:
        print_json({name: getattr(answer, name) for name in _REVOCATION})
    else:
        print_facts({"status": answer.status, "revoked at": moment(answer.revoked_at), "token_id": answer.token_id})
    return ExitCode.OK


def _ask(method: str, cls: AuthClass, settings: Settings) -> Any:
    """Call a method of the auth object with the token on standard input."""
    with session(settings) as over:
        auth = settings.auth(cls, session=over)
        call: Callable[[str], Any] | None = getattr(auth, method, None)
        if call is None:
            raise UsageError(f"{cls.provider.name} has no endpoint to {method} a token; axia has one")
        value = _read_token(method)
        with waiting(f"{settings.origin(cls)} to {method} the token"):
            return call(value)


def _read_token(method: str) -> str:
    """Return the token on standard input; a terminal does not show it."""
    value = ""
    try:
        if sys.stdin is not None and sys.stdin.isatty():
            value = getpass.getpass("Token: ")
        elif sys.stdin is not None:
            with waiting("a token on standard input"):
                value = sys.stdin.read(_LONGEST_INPUT)
    except UnicodeDecodeError:
        raise UsageError("standard input is not text") from None
    except EOFError:
        value = ""
    if not value.strip():
        raise UsageError(f"no token on standard input; pipe one: ... | baas-auth {method}")
    return value.strip()
