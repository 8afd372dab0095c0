"""What goes in and out of the sandbox's gateways: frozen messages, no sockets.

Bodies, queries and headers may hold credentials, so no repr shows them.
`RecordedRequest.masked` is the form that logs, the page and the control API show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ._masking import masked_body, masked_headers, masked_query

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
    """One answer, and how the server must spoil it.

    Args:
        status: HTTP status, or None to close the connection without an answer.
        headers: all headers but those that frame the body; the server adds these.
        body: the bytes to send.
        delay: seconds to wait before the first byte; ``inf`` waits until the sandbox closes.
        repeat: how many times the body is sent; more than once goes out without a length.
        missing: bytes that are announced but never sent.
        drip: seconds between two bytes; 0 sends them at once.
        problem: the rule of the gateway's page that the request broke. It is recorded, not sent.
        fault: the kind of the fault that made this answer. It is recorded, not sent.
    """

    status: int | None
    headers: Pairs = ()
    body: bytes = field(default=b"", repr=False)
    delay: float = 0.0
    repeat: int = 1
    missing: int = 0
    drip: float = 0.0
    problem: str = ""
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that reached a gateway, and its answer.

    Args:
        method: as sent.
        path: the target without its query.
        query: the query, as sent.
        headers: lower-case name to value.
        body: the bytes.
        kind: which endpoint it reached.
        provider: the gateway's name, or None if the path belongs to none.
        status: the HTTP status, or None if the connection was closed without an answer.
        started: `time.monotonic` seconds when the request had been read.
        finished: the same clock when the answer was about to be sent; None until then.
        number: counts up from 1 in the order of arrival.
        at: epoch seconds of arrival, by the gateways' clock.
        problem: how the request differed from the gateway's page; empty if it did not.
        fault: the kind of the injected fault that made the answer, or None.
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
    number: int = 0
    at: float = 0.0
    problem: str = ""
    fault: str | None = None

    def masked(self) -> dict[str, Any]:
        """Return the request as JSON for a log.

        Returns:
            The fields of this class, but with `headers`, `query` and `body` as a log may show them. Credentials,
            tokens and values of unknown names are replaced. `duration` is in seconds, or None until the answer is sent.
        """
        duration = None if self.finished is None else round(self.finished - self.started, 6)
        return {
            "number": self.number,
            "at": self.at,
            "duration": duration,
            "provider": self.provider,
            "kind": self.kind,
            "method": self.method,
            "path": self.path,
            "query": masked_query(self.query),
            "headers": masked_headers(self.headers),
            "body": masked_body(self.headers.get("content-type", ""), self.body),
            "status": self.status,
            "problem": self.problem,
            "fault": self.fault,
        }


def json_response(status: int, content: Mapping[str, Any], headers: Pairs = ()) -> Response:
    """Return a JSON answer."""
    return Response(status, (("Content-Type", "application/json"), *headers), json.dumps(content).encode())
