"""What went wrong on the network, in a few words without a URL."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator

from .._oauth.messages import NetworkError, TokenRequest

__all__ = ["network_error"]

_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name not found"),
    (http.client.RemoteDisconnected, "connection closed without an answer"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection closed"),
    (TimeoutError, "timeout"),
)
_TIMEOUTS = ("Timeout", "TimedOut")
_CERTIFICATE = ("CERT", "UNKNOWN_CA", "HANDSHAKE_FAILURE")


def network_error(request: TokenRequest, error: Exception) -> NetworkError:
    """Return the error for the flow, with the client's own error as its cause, where that shows no token.

    Args:
        request: the token request. A token in its query would be in the cause's text.
        error: what the HTTP client raised.
    """
    reason, is_certificate = _reason(error)
    found = NetworkError(reason, is_certificate=is_certificate)
    if "?" not in request.url:
        error.request = None  # type: ignore[attr-defined]  # the request has the credentials
        found.__cause__ = error
    return found


def _reason(error: BaseException) -> tuple[str, bool]:
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {one.verify_message}", True
        if isinstance(one, ssl.SSLError):
            name = (one.reason or type(one).__name__).upper()
            return f"TLS failed: {name.replace('_', ' ').lower()}", any(word in name for word in _CERTIFICATE)
    for kind, words in _WORDS:
        if any(isinstance(one, kind) for one in chain):
            return words, False
    if any(word in type(one).__name__ for one in chain for word in _TIMEOUTS):
        return "timeout", False
    return type(error).__name__, False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that caused it, each once: urllib3 keeps causes in `reason` and in `args`."""
    todo: list[object] = [error]
    seen: list[int] = []
    while todo:
        one = todo.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.append(id(one))
        yield one
        todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
