"""`baas-auth demo`: its figures are the gateways' own, and it fails where one is not as promised."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from baas_auth_plugins import PROVIDERS, AxiaAuth
from baas_auth_plugins.cli import main
from baas_auth_plugins.cli._demo import demo
from baas_auth_plugins.cli._demo_clients import CLIENTS
from baas_auth_plugins.cli._exit_codes import ExitCode
from baas_auth_plugins.sandbox import Fault, Sandbox

COUNTED = ("calls", "tokens", "renewed", "replays", "cold")


def table(out: str) -> list[dict[str, str]]:
    """Return the demo's table, a row a mapping from column to cell."""
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    titles = next(cells for cells in rows if cells[0] == "gateway")
    return [dict(zip(titles, cells, strict=True)) for cells in rows if len(cells) == len(titles) and cells != titles]


def test_the_demo_keeps_every_promise() -> None:
    """Every gateway through every client: one token request, one renewal, one replay, one token request cold."""
    command = [sys.executable, "-m", "baas_auth_plugins", "demo"]
    result = subprocess.run(command, capture_output=True, check=False, encoding="utf-8", timeout=100)

    assert result.returncode == ExitCode.OK, result.stderr
    rows = table(result.stdout)
    assert [(row["gateway"], row["client"]) for row in rows] == [
        (cls.provider.name, client) for cls in PROVIDERS for client in CLIENTS
    ]
    assert {tuple(row[column] for column in COUNTED) for row in rows} == {("101", "1", "1", "1", "1")}
    assert all(re.fullmatch(r"-?\d+\.\d\d ms", row["added"]) for row in rows)
    assert "every figure as promised" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "your-client-secret" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("fault", "figures", "problems"),
    [
        (
            Fault("expire", "api"),
            {"calls": "102", "tokens": "2", "replays": "1", "cold": "2", "renewed": "2"},
            ["API calls: 102, promised: 101", "token requests: 2, promised: 1", "renewals: 2, promised: 1"],
        ),
        (
            Fault("status", "api", status=503),
            {"calls": "101", "tokens": "1", "replays": "1", "cold": "1", "renewed": "1"},
            ["API answers: [503], promised: [200]", "API answers: [200, 503], promised: [200]"],
        ),
        (
            Fault("status", "token", status=403, times=-1),
            dict.fromkeys([*COUNTED, "added"], "-"),
            ["TokenEndpointError: axia: "],
        ),
    ],
    ids=["rejects a token", "fails once", "gives no token"],
)
def test_the_demo_fails_if_a_figure_is_not_as_promised(
    fault: Fault, figures: Mapping[str, str], problems: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With a gateway that misbehaves the table shows what was counted, stderr names the broken promise, the code is 1."""

    def misbehaving(**options: Any) -> Sandbox:
        sandbox = Sandbox(**options)
        sandbox.inject(fault)
        return sandbox

    assert demo(classes=[AxiaAuth], clients=["requests"], sandbox=misbehaving) == ExitCode.FAILED

    captured = capsys.readouterr()
    (row,) = table(captured.out)
    assert figures.items() <= row.items()
    assert "figures that are not as promised" in captured.out
    for problem in problems:
        assert f"baas-auth: axia, requests: {problem}" in captured.err


def test_the_demo_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With JSON the figures are numbers, a row an object."""
    assert demo(as_json=True, classes=[AxiaAuth], clients=["httpx"]) == ExitCode.OK

    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert (row["provider"], row["client"], row["api_calls"], row["cold_token_requests"]) == ("axia", "httpx", 101, 1)
    assert found["problems"] == []


@pytest.mark.parametrize(("columns", "title"), [("80", "gateway"), ("40", "client")])
def test_the_table_fits_the_terminal(
    columns: str, title: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 40 columns the gateways are lines of their own, and nothing is cut."""
    monkeypatch.setenv("COLUMNS", columns)

    assert demo(classes=[AxiaAuth], clients=["httpx2 async"]) == ExitCode.OK

    out = capsys.readouterr().out
    lines = [line for line in out.partition("API calls: one")[0].splitlines() if line.strip()]
    assert lines[0].split()[0] == title
    assert max(len(line.rstrip()) for line in lines) <= int(columns)
    assert "httpx2 async" in out
    assert "\u2026" not in out


def test_the_command_runs_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code of the command is the demo's, and `--json` reaches it."""
    asked: list[bool] = []

    def stand_in(*, as_json: bool) -> int:
        asked.append(as_json)
        return ExitCode.FAILED

    monkeypatch.setattr("baas_auth_plugins.cli._app.demo", stand_in)

    assert main(["demo", "--json"]) == ExitCode.FAILED
    assert asked == [True]
