"""Faults on request: what a gateway, its WAF or the network may do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ._messages import Pairs, Response

__all__ = ["FIXED", "Fault", "FaultQueue", "fault_from_header", "fault_from_json"]

FaultKind = Literal[
    "status", "delay", "drip", "drop", "truncate", "garbage", "empty", "huge", "body", "redirect", "hang", "expire"
]
Target = Literal["token", "api", "introspect", "revoke", "*"]

_WAF_PAGE = b"<!DOCTYPE html><html><body><h1>Request blocked</h1><p>Support ID: 0000</p></body></html>"
_JSON: Pairs = (("Content-Type", "application/json"),)

FIXED: Mapping[str, Response] = {
    "drop": Response(None),
    "hang": Response(None, delay=math.inf),
    "garbage": Response(200, (("Content-Type", "text/html"),), _WAF_PAGE),
    "empty": Response(200, _JSON),
    "body": Response(200, _JSON),
    "huge": Response(200, _JSON, b"A" * 65_536, repeat=800),  # 50 MiB
}
"""The answers that depend on nothing but the fault's kind (``"body"`` brings its own)."""

MOST_SECONDS = 86_400.0  # a day: longer than any test, and short enough for every clock
_MOST_WAITING = 1000
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FRAMING = {"content-length", "transfer-encoding", "connection"}

_ASKABLE = ("drop", "hang", "garbage", "empty", "huge", "truncate", "expire", "delay", "drip")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, for the next `times` requests to `target`.

    Args:
        kind: ``"status"`` answers `status` with that gateway's error body; ``"delay"`` answers
            normally, late; ``"drip"`` answers normally, one byte every `delay` seconds; ``"drop"`` closes the connection without an answer; ``"truncate"``
            announces more bytes than it sends; ``"garbage"`` is a WAF's HTML, ``"empty"`` no
            body, ``"huge"`` 50 MiB and ``"body"`` the given `body`, each as a 200;
            ``"redirect"`` is a 307 to the ``Location`` in `headers`; ``"hang"`` never answers;
            ``"expire"`` (API only) treats the presented token as expired.
        target: ``"token"``, ``"api"``, ``"introspect"``, ``"revoke"`` or ``"*"``.
        times: requests it applies to; -1 for ever.
        status: HTTP status; required for ``"status"``, elsewhere in place of 200 or 307.
        retry_after: value of the Retry-After header, sent as given.
        delay: seconds before the answer, or for ``"drip"`` between its bytes; for ``"hang"``, before the connection is closed (0: never). At most a day.
        headers: further response headers, as pairs or a mapping; not those that frame the body.
        body: the body of ``"body"``, or of ``"status"`` in place of the gateway's own.
        provider: name of the only gateway that it applies to; None for all.

    Raises:
        ValueError: a field is wrong; the message names it.
    """

    kind: FaultKind
    target: Target = "token"
    times: int = 1
    status: int | None = None
    retry_after: str | float | None = None
    delay: float = 0.0
    headers: Pairs = ()
    body: bytes | None = field(default=None, repr=False)
    provider: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", _pairs(self.headers))
        for problem, found in {
            f"kind must be one of {', '.join(get_args(FaultKind))}": self.kind not in get_args(FaultKind),
            f"target must be one of {', '.join(get_args(Target))}": self.target not in get_args(Target),
            "times must be a positive integer, or -1 for ever": not _is_count(self.times),
            "status must be an integer from 200 to 599": not _is_status(self.status),
            "delay must be a number of seconds from 0 to 86400": not _is_seconds(self.delay),
            "retry_after must be printable latin-1 text or a number": not _is_header(self.retry_after),
            "provider must be the name of a gateway": not isinstance(self.provider, str | None),
            "body must be bytes": not isinstance(self.body, bytes | None),
            "kind 'status' needs a status": self.kind == "status" and self.status is None,
            "kind 'body' needs a body": self.kind == "body" and self.body is None,
            "kind 'redirect' needs a Location header": self.kind == "redirect" and not self._location(),
            "kind 'expire' is for target 'api'": self.kind == "expire" and self.target != "api",
        }.items():
            if found:
                raise ValueError(problem)

    def _location(self) -> bool:
        return any(name.lower() == "location" for name, _ in self.headers)


def _is_count(value: object) -> bool:
    return type(value) is int and (value > 0 or value == -1)


def _is_status(value: object) -> bool:
    return value is None or (type(value) is int and 200 <= value <= 599)


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= MOST_SECONDS  # type: ignore[operator]  # the type is checked


def _is_header(value: object) -> bool:
    return value is None or type(value) in (int, float) or (isinstance(value, str) and _is_text(value))


def _is_text(value: str) -> bool:
    return all(" " <= character <= "\xff" and character != "\x7f" for character in value) and value == value.strip()


def _pairs(headers: Any) -> Pairs:
    items: Iterable[Any] = headers.items() if isinstance(headers, Mapping) else headers
    try:
        pairs = tuple((name, value) for name, value in items)
    except (TypeError, ValueError):
        raise ValueError("headers must be pairs or an object") from None
    if not all(isinstance(text, str) and _is_text(text) for pair in pairs for text in pair):
        raise ValueError("headers must be printable latin-1 text")
    if not all(_HEADER_NAME.fullmatch(name) and name.lower() not in _FRAMING for name, _ in pairs):
        raise ValueError("headers must have valid names, and not Content-Length, Transfer-Encoding or Connection")
    return pairs


def fault_from_json(content: object) -> Fault:
    """Return the fault that a JSON object describes; its `body` is text there.

    Raises:
        ValueError: not an object, an unknown field or a wrong one.
    """
    if not isinstance(content, dict) or "kind" not in content:
        raise ValueError("a fault is a JSON object with a kind")
    if unknown := content.keys() - {f.name for f in fields(Fault)}:
        raise ValueError(f"unknown field: {', '.join(sorted(unknown))}")
    if isinstance(body := content.get("body"), str):
        content = {**content, "body": body.encode()}
    return Fault(**content)


def fault_from_header(value: str) -> Fault:
    """Return the fault that an ``X-Sandbox-Fault`` header asks for, such as ``401`` or ``delay=0.2``.

    What follows a ``;`` is for the gateway: such a value counts once only, so that a client's
    replay of the same request goes through.

    Raises:
        ValueError: it asks for nothing the sandbox knows.
    """
    kind, _, seconds = value.partition(";")[0].strip().partition("=")
    if kind.isdecimal() and not seconds:
        return Fault("status", "api", status=int(kind))
    if kind in _ASKABLE:
        return Fault(kind, "api", delay=float(seconds or 0))  # type: ignore[arg-type]  # one of the kinds
    raise ValueError(f"X-Sandbox-Fault is a status, {', '.join(_ASKABLE)}=SECONDS")


class FaultQueue:
    """The faults that wait for their requests, in the order in which they were injected. Not thread-safe by itself."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Queue a fault behind the others.

        Raises:
            ValueError: 1,000 faults are waiting already.
        """
        if len(self._waiting) >= _MOST_WAITING:
            raise ValueError(f"{_MOST_WAITING} faults are waiting already; clear them first")
        self._waiting.append(fault)

    def take(self, kind: str, provider: str | None) -> Fault | None:
        """Return the first fault for this kind of request at this gateway, and count it down by one."""
        for position, fault in enumerate(self._waiting):
            if fault.target in (kind, "*") and fault.provider in (provider, None):
                if fault.times == 1:
                    del self._waiting[position]
                elif fault.times > 0:
                    self._waiting[position] = replace(fault, times=fault.times - 1)
                return fault
        return None

    def waiting(self) -> list[Fault]:
        """Return the faults that have not happened yet; `times` is what remains."""
        return list(self._waiting)

    def clear(self) -> None:
        """Forget all faults."""
        self._waiting.clear()
