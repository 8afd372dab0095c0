"""What went wrong on the network, in a few words without a URL."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator

from .._oauth.messages import NetworkError, TokenRequest

__all__ = ["network_error", "tls_advice"]

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
_CLOSED = (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)


def network_error(request: TokenRequest, error: Exception, *, has_certificate: bool | None = None) -> NetworkError:
    """Return the error for the flow, with the client's own error as its cause, where that shows no token.

    Args:
        request: the token request. A token in its query would be in the cause's text.
        error: what the HTTP client raised.
        has_certificate: whether the request had a client certificate; None where the client does not show that.
    """
    reason, is_certificate = _reason(error)
    advice = tls_advice(request.url, error, has_certificate=has_certificate)
    found = NetworkError(reason, is_certificate=is_certificate, advice=advice)
    if "?" not in request.url:
        error.request = None  # type: ignore[attr-defined]  # the request has the credentials
        found.__cause__ = error
    return found


def tls_advice(url: str, error: BaseException, *, has_certificate: bool | None = None) -> str:
    """Return what to do about a TLS error, or an empty str.

    A gateway that requires a client certificate sends an alert, or closes the connection. The alert can get lost: the
    client is still sending its request then.

    Args:
        url: of the token request.
        error: what the HTTP client raised.
        has_certificate: whether the request had a client certificate; None where the client does not show that.
    """
    chain = list(_chain(error))
    if type(error) is OSError:
        return "Check verify and cert of session="
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return "If its CA is private, pass a requests.Session with verify as session="
    is_tls = any(isinstance(one, ssl.SSLError) for one in chain)
    if not is_tls and not (url.startswith("https:") and any(isinstance(one, _CLOSED) for one in chain)):
        return ""
    if has_certificate:
        return "Check the client certificate of session=" if is_tls else ""
    known = "The token request had no client certificate. " if has_certificate is False else ""
    todo = "If the gateway requires a client certificate (mutual TLS), pass a requests.Session with cert as session="
    return known + todo


def _reason(error: BaseException) -> tuple[str, bool]:
    chain = list(_chain(error))
    if type(error) is OSError:  # of requests: a file of verify or cert is missing; the text names it
        return str(error), True
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {one.verify_message}", True
        if isinstance(one, ssl.SSLError):
            closed = "CONNECTION_CLOSED" if isinstance(one, ssl.SSLEOFError) else ""
            name = (one.reason or closed or type(one).__name__).upper()
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
