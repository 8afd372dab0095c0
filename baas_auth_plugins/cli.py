"""``baas-auth``: the demo, the sandbox, and a look at one's own credentials.

Credentials and base URL come from the environment, as `from_env` reads them, and a token from
standard input: command lines show in process lists. No command prints a token or a secret of
yours. What goes wrong is one line on standard error, and a status that is not 0.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NoReturn

from ._demo import DEMO_SCOPE, demo
from .exceptions import BaaSAuthError, ConfigurationError
from .providers import PROVIDERS, AxiaAuth
from .sandbox import Sandbox

__all__ = ["main"]

_PROVIDERS = {cls.provider.name: cls for cls in PROVIDERS}
_DEFAULT_PORT = 8765
_QUIET = logging.NullHandler()  # what the package would warn of is in the one line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status.

    Raises:
        SystemExit: the arguments are wrong, or ask for help.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    logging.getLogger(__package__).addHandler(_QUIET)
    try:
        return command(arguments)
    except (BaaSAuthError, OSError) as error:
        print(f"baas-auth: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="baas-auth", description="OAuth 2.0 client credentials for BaaS and Pix gateways.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    add("demo", lambda _: demo(), "Take every gateway through every client on loopback, and show the figures.")
    sandbox = add("sandbox", _sandbox, "Run the gateways on this machine until Ctrl-C.")
    sandbox.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    sandbox.add_argument("--port", type=_port, default=_DEFAULT_PORT, help="0 for any (default: %(default)s)")
    check = add("check", _check, "Get a token with the credentials in the environment, and say what it is good for.")
    check.add_argument("provider", metavar="PROVIDER", choices=_PROVIDERS, help=" or ".join(_PROVIDERS))
    for name, command, text in (
        ("introspect", _introspect, "Ask Axia whether a token is active: the one given, or a new one."),
        ("revoke", _revoke, "Revoke a token at Axia, and with it all associated grants."),
    ):
        added = add(name, command, text)
        added.add_argument("--token-stdin", action="store_true", help="read the token from standard input")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


def _sandbox(arguments: argparse.Namespace) -> int:
    with suppress(KeyboardInterrupt), Sandbox(host=arguments.host, port=arguments.port) as gateways:
        url = gateways.url
        print(f"The gateways are on {url} until Ctrl-C. Their clients' environment:\n")
        for cls in PROVIDERS:
            variables = {"CLIENT_ID": gateways.client_id, "CLIENT_SECRET": gateways.client_secret, "BASE_URL": url}
            if cls.provider.scope == "required":
                variables["SCOPE"] = DEMO_SCOPE
            prefix = cls.provider.env_prefix
            print("export", *(f"{prefix}_{name}={shlex.quote(value)}" for name, value in variables.items()))
        fault = '{"kind": "status", "status": 503, "target": "token", "times": 2}'
        print("\nTo make the next two token requests fail, to call that off, and to see what was asked for:\n")
        print(f"curl -d '{fault}' {url}/_sandbox/faults")
        print(f"curl -X DELETE {url}/_sandbox/faults")
        print(f"curl {url}/_sandbox/stats")
        print("\nAn API request may ask for a fault by itself: X-Sandbox-Fault: 503, or drop, or delay=2", flush=True)
        while True:
            time.sleep(3600)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    auth = _PROVIDERS[arguments.provider].from_env()
    token = auth.get_token()
    _print_facts(
        {
            "provider": arguments.provider,
            "base URL": auth._grant.client.base_url,
            "scopes": _scopes(token.scopes),
            "lifetime": f"{token.expires_in:g} s",
        }
    )
    return 0


def _introspect(arguments: argparse.Namespace) -> int:
    introspection = AxiaAuth.from_env().introspect(_token(arguments))
    _print_facts(
        {
            "active": "yes" if introspection.active else "no",
            "reason": introspection.reason,
            "client_id": introspection.client_id,
            "scopes": _scopes(introspection.scopes) if introspection.active else None,
            "issued at": _moment(introspection.issued_at),
            "expires at": _moment(introspection.expires_at),
        }
    )
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    revocation = AxiaAuth.from_env().revoke(_token(arguments))
    _print_facts(
        {
            "status": revocation.status,
            "revoked at": _moment(revocation.revoked_at),
            "token_id": revocation.token_id,
        }
    )
    return 0


def _token(arguments: argparse.Namespace) -> str | None:
    """Return the token on standard input, if there is said to be one; a terminal does not show it."""
    if not arguments.token_stdin:
        return None
    token = ""
    if sys.stdin is not None:  # as it is where it was closed
        token = (getpass.getpass("Token: ") if sys.stdin.isatty() else sys.stdin.read()).strip()
    if not token:
        raise ConfigurationError("--token-stdin: there is no token on standard input")
    return token


def _scopes(scopes: frozenset[str]) -> str:
    return " ".join(sorted(scopes)) or "not told"


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"


def _print_facts(facts: Mapping[str, str | None]) -> None:
    for name, fact in facts.items():
        if fact is not None:
            print(f"{name + ':':12}{fact}")
