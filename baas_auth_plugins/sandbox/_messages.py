"""What goes in and out of the sandbox's gateways: frozen messages, no sockets.

Bodies, queries and headers may hold credentials, so no repr shows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Kind", "Pairs", "RecordedRequest", "Request", "Response", "json_response"]

Kind = Literal["token", "introspect", "revoke", "api", "unknown"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, read to its end.

    Args:
        method: as sent, such as ``"POST"``.
        path: the target without its query, as sent (not percent-decoded).
        query: what follows the first ``?``, as sent.
        headers: lower-case name to value; repeated ones joined with ``", "``.
        body: the bytes, whichever way they were framed.
    """

    method: str
    path: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, and how the server is to spoil it.

    Args:
        status: HTTP status, or None to close the connection without an answer.
        headers: beyond the framing, which is the server's.
        body: the bytes to send.
        delay: seconds to wait before the first byte; ``inf`` until the sandbox closes.
        repeat: how many times the body is sent; more than once goes out without a length.
        missing: bytes that are announced but never sent.
    """

    status: int | None
    headers: Pairs = ()
    body: bytes = field(default=b"", repr=False)
    delay: float = 0.0
    repeat: int = 1
    missing: int = 0


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that reached a gateway, and what became of it.

    Args:
        method: as sent.
        path: the target without its query.
        query: the query, as sent.
        headers: lower-case name to value.
        body: the bytes.
        kind: which endpoint it reached.
        provider: the gateway's name, or None where none can be told.
        status: the HTTP status, or None where the connection was closed without an answer.
        started: `time.monotonic` seconds when the request had been read.
        finished: the same clock when the answer was about to be sent; None until then.
    """

    method: str
    path: str
    query: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    kind: Kind
    provider: str | None
    status: int | None
    started: float
    finished: float | None = None


def json_response(status: int, content: Mapping[str, Any], headers: Pairs = ()) -> Response:
    """Return a JSON answer."""
    return Response(status, (("Content-Type", "application/json"), *headers), json.dumps(content).encode())
