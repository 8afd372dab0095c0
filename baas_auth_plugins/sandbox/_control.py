"""The sandbox's own paths, for a sandbox that runs as a process of its own; no gateway's traffic."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Protocol

from ._faults import Fault, fault_from_json
from ._messages import Request, Response, json_response

__all__ = ["PREFIX", "control"]

PREFIX = "/_sandbox/"


class _Controlled(Protocol):
    @property
    def max_in_flight(self) -> int: ...
    def inject(self, fault: Fault) -> None: ...
    def clear_faults(self) -> None: ...
    def counts(self) -> Counter[tuple[str | None, str]]: ...


def control(sandbox: _Controlled, request: Request) -> Response:
    """Answer ``POST`` and ``DELETE /_sandbox/faults`` and ``GET /_sandbox/stats``."""
    match request.path.removeprefix(PREFIX), request.method:
        case "faults", "POST":
            return _inject(sandbox, request.body)
        case "faults", "DELETE":
            sandbox.clear_faults()
            return Response(204)
        case "stats", "GET":
            return json_response(200, _stats(sandbox))
        case (("faults" | "stats"), _):
            allowed = "GET" if request.path.endswith("stats") else "POST, DELETE"
            return json_response(405, {"error": f"allowed here: {allowed}"}, (("Allow", allowed),))
    return json_response(404, {"error": "there are /_sandbox/faults and /_sandbox/stats"})


def _inject(sandbox: _Controlled, body: bytes) -> Response:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return json_response(400, {"error": "the body is not JSON"})
    try:
        sandbox.inject(fault_from_json(content))
    except ValueError as error:
        return json_response(400, {"error": str(error)})
    return Response(204)


def _stats(sandbox: _Controlled) -> dict[str, Any]:
    requests: dict[str, dict[str, int]] = {}
    for (provider, kind), number in sandbox.counts().items():
        requests.setdefault(provider or "other", {})[kind] = number
    return {"requests": requests, "max_in_flight": sandbox.max_in_flight}
