"""``baas-auth``: check credentials, get a token, ask about it, revoke it, and run the gateways on this machine.

Commands: ``check``, ``token``, ``introspect``, ``revoke``, ``sandbox``, ``demo``. Credentials come from the environment,
as `from_env` reads them, or from ``--env-file``. A token to introspect or revoke comes from standard input, because
process lists show command lines. Only ``token`` prints a token. No command prints a secret.

An error is one line on standard error that says what is wrong and what to do, and one of these exit codes:

====  ==================================================================
code  meaning
====  ==================================================================
0     done
1     failed: a file, a port, or a figure of the demo
2     wrong command line
3     missing or wrong setting
4     the gateway does not accept the credentials
5     the gateway does not grant the scope
6     rate limited: wait, then try again
7     the gateway is unavailable, or the network is
8     the gateway refused the request, or its answer is not usable
9     the token is not active
130   stopped with Ctrl-C
141   the program that reads the output has stopped
====  ==================================================================

``check`` with several providers ends with the code of the first that failed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = {"dotenv", "rich", "typer"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments. Default: those of the process.

    Returns:
        The exit code; the module's docstring lists them.
    """
    try:
        from ._app import run
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        print(
            f"baas-auth: {error.name} is not installed; run: pip install 'baas-auth-plugins[cli]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:] if argv is None else argv)
