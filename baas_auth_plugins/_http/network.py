"""What went wrong on the network, in a few words without a URL."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import TypeGuard

from .._oauth.messages import NetworkError, TokenRequest

_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name not found"),
    (http.client.RemoteDisconnected, "connection closed without an answer"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection closed"),
    (TimeoutError, "timeout"),
)
_TIMEOUTS = ("Timeout", "TimedOut")
_CERTIFICATE = ("CERT", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "PEM", "KEY_VALUES")
_ENCRYPTED = "private key is encrypted"  # urllib3's words
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
        return "Check verify and cert of session=: there is no such file"
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return "If its CA is private, pass a requests.Session with verify as session="
    is_tls = any(_is_tls(one) or _ENCRYPTED in str(one) for one in chain)
    if not is_tls and not (url.startswith("https:") and any(_is_closed(one) for one in chain)):
        return ""
    if has_certificate:
        todo = "Check cert of session=: PEM files of a certificate that the gateway knows and of its key, not encrypted"
        return todo if is_tls else ""
    known = "The token request had no client certificate. " if has_certificate is False else ""
    todo = "If the gateway requires a client certificate (mutual TLS), pass a requests.Session with cert as session="
    return known + todo


def _is_tls(error: BaseException) -> TypeGuard[ssl.SSLError]:
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError)


def _is_closed(error: BaseException) -> bool:
    """Return whether the peer closed the connection: anyio, trio and httpcore have words of their own for that."""
    is_other = type(error).__name__ == "BrokenResourceError" or str(error).startswith("Server disconnected")
    return is_other or isinstance(error, _CLOSED)


def _reason(error: BaseException) -> tuple[str, bool]:
    chain = list(_chain(error))
    if type(error) is OSError:  # of requests: a file of verify or cert is missing; the text names it
        return str(error), True
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {one.verify_message}", True
        if _ENCRYPTED in str(one):
            return f"the {_ENCRYPTED}", True
        if _is_tls(one):
            closed = "CONNECTION_CLOSED" if isinstance(one, ssl.SSLEOFError) else ""
            text = str(one).partition(" (_ssl")[0].removeprefix("[SSL] ")  # a file that is no PEM has no reason
            name = (one.reason or closed or text).upper()
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
