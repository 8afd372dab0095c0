"""Exit codes, and for each typed error one sentence that says what to do."""

from __future__ import annotations

from enum import IntEnum

from ..exceptions import (
    BaaSAuthError,
    ConfigurationError,
    InvalidClientError,
    InvalidScopeError,
    InvalidTokenResponseError,
    RateLimitError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)

__all__ = ["ExitCode", "UsageError", "advice", "error_line", "exit_code"]


class UsageError(Exception):
    """The command line is wrong; the message says how."""


class ExitCode(IntEnum):
    """The exit codes of ``baas-auth``; `meaning` is the text of ``--help``."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """Attach the meaning to the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "done"
    FAILED = 1, "failed: a file, a port, or a figure of the demo"
    USAGE = 2, "wrong command line"
    CONFIGURATION = 3, "missing or wrong setting"
    INVALID_CLIENT = 4, "the gateway does not accept the credentials"
    INVALID_SCOPE = 5, "the gateway does not grant the scope"
    RATE_LIMITED = 6, "rate limited: wait, then try again"
    UNAVAILABLE = 7, "the gateway is unavailable, or the network is"
    REFUSED = 8, "the gateway refused the request, or its answer is not usable"
    INACTIVE = 9, "the token is not active"
    INTERRUPTED = 130, "stopped with Ctrl-C"
    CLOSED_PIPE = 141, "the program that reads the output has stopped"


_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (UsageError, ExitCode.USAGE),
    (ConfigurationError, ExitCode.CONFIGURATION),
    (InvalidClientError, ExitCode.INVALID_CLIENT),
    (InvalidScopeError, ExitCode.INVALID_SCOPE),
    (RateLimitError, ExitCode.RATE_LIMITED),
    (TokenEndpointUnavailableError, ExitCode.UNAVAILABLE),
    (TokenEndpointError, ExitCode.REFUSED),
)


def exit_code(error: BaseException) -> ExitCode:
    """Return the exit code for an error.

    Args:
        error: what a command raised.
    """
    return next((code for cls, code in _CODES if isinstance(error, cls)), ExitCode.FAILED)


def advice(error: BaaSAuthError, prefix: str) -> str:
    """Return one sentence that says what to do, or nothing where the message says it.

    Args:
        error: what the gateway or the package said.
        prefix: the prefix of the provider's environment variables, such as ``BAAS``.
    """
    if isinstance(error, InvalidClientError):
        return f"Check {prefix}_CLIENT_ID and {prefix}_CLIENT_SECRET, and that they are for this environment."
    if isinstance(error, InvalidScopeError):
        return f"Check --scope and {prefix}_SCOPE, or let the gateway grant the scope to this client."
    if isinstance(error, RateLimitError):
        wait = "a minute" if error.retry_after is None else f"{error.retry_after:.0f} s"
        return f"Wait {wait}, then try again."
    if isinstance(error, TokenEndpointUnavailableError):
        if error.status_code is not None:
            return "The fault is the gateway's. Try again later."
        if "Check cert of session=" in str(error):
            return "These are the files of --cert and --key."
        if any(word in str(error) for word in ("certificate", "SSL", "TLS")):
            return "Set REQUESTS_CA_BUNDLE if its CA is private. Use --cert if it wants a client certificate."
        return f"Check the network, the proxy variables and {prefix}_BASE_URL."
    if isinstance(error, InvalidTokenResponseError):
        return f"Check {prefix}_BASE_URL: another server may have answered."
    return _advice_on_refusal(error, prefix) if isinstance(error, TokenEndpointError) else ""


def _advice_on_refusal(error: TokenEndpointError, prefix: str) -> str:
    status = error.status_code or 0
    if status == 403:
        return "Have the gateway check that this client and this machine's IP address are allowed."
    if status in {404, 405} or 300 <= status < 400:
        return f"Check {prefix}_BASE_URL."
    return "The gateway's documentation explains its error codes."


def error_line(error: Exception, prefix: str | None = None) -> str:
    """Return the message of an error and what to do.

    Args:
        error: what a command raised.
        prefix: the prefix of the provider's variables; None where the error is not a gateway's.
    """
    message = str(error)
    todo = advice(error, prefix) if prefix and isinstance(error, BaaSAuthError) else ""
    return f"{message.rstrip('.')}. {todo}" if todo else message
