"""``sandbox``: the gateways on this machine, with the variables that point to them and a log of each request."""

from __future__ import annotations

DEFAULT_PORT = 8765


def sandbox(*a: object, **k: object) -> int:
    return 0
