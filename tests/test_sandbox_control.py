"""The page and the control API of the sandbox, for people and programs but not for web pages of others."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sandbox_wire import Clock, Sent, bearer, mint, send, status

from baas_auth_plugins.sandbox import Sandbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as sandbox:
        yield sandbox


def test_faults_and_figures_over_http(sandbox: Sandbox) -> None:
    """A sandbox in another process is driven by its own paths, which count as nobody's traffic."""
    fault = {"kind": "body", "target": "api", "times": -1, "body": "{}", "headers": {"X-A": "b"}}
    assert send(sandbox, Sent("/_sandbox/faults", {}, json.dumps(fault).encode())).status == 204
    answer = send(sandbox, bearer(mint(sandbox), "/x"))
    assert (answer.text, answer.headers["X-A"]) == ("{}", "b")
    assert send(sandbox, Sent("/_sandbox/faults", {}, method="DELETE")).status == 204
    assert status(sandbox, "unknown", "/x") == 401
    assert send(sandbox, Sent("/_sandbox/stats", {}, method="GET")).json == {
        "requests": {"axia": {"token": 1, "api": 1}, "other": {"api": 1}},
        "max_in_flight": 1,
    }
    assert len(sandbox.requests) == 3


@pytest.mark.parametrize(
    ("method", "path", "expected", "allow"),
    [
        ("PUT", "/_sandbox/faults", 405, "GET, POST, DELETE"),
        ("POST", "/_sandbox/stats", 405, "GET"),
        ("GET", "/_sandbox/secrets", 404, None),
        ("POST", "/_sandbox/faults", 400, None),
    ],
)
def test_own_paths_are_strict(sandbox: Sandbox, method: str, path: str, expected: int, allow: str | None) -> None:
    """Whatever the sandbox's own paths do not offer is refused."""
    answer = send(sandbox, Sent(path, {}, b"not JSON", method))
    assert (answer.status, answer.headers["Allow"]) == (expected, allow)
