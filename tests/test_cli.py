"""`baas-auth`: each command, its status, its one-line errors, and that it keeps secrets to itself."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import requests

from baas_auth_plugins import PROVIDERS, AxiaAuth, OAuth2ClientCredentialsAuth, Token
from baas_auth_plugins._demo import CLIENTS, demo
from baas_auth_plugins.cli import main
from baas_auth_plugins.sandbox import Fault, Sandbox

SECRET = "kept-to-itself-0123456789"
COMMANDS = ["check axia", "check ntxpay", "check avista", "check bs2", "introspect", "revoke --token-stdin"]
_numbers = itertools.count()  # a client_id for each test: tokens and rate limits are kept for the process

each_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def gateways(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """The sandbox, with what it takes to use it in the environment."""
    with Sandbox(client_id=f"client-{next(_numbers)}", client_secret=SECRET) as sandbox:
        for cls in PROVIDERS:
            for name, value in {
                "CLIENT_ID": sandbox.client_id,
                "CLIENT_SECRET": SECRET,
                "BASE_URL": sandbox.url,
            }.items():
                monkeypatch.setenv(f"{cls.provider.env_prefix}_{name}", value)
        monkeypatch.setenv("BS2_SCOPE", "cob.read pix.read")
        yield sandbox


@pytest.fixture
def token(gateways: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Token:
    """A token of Axia's, which is also what standard input holds."""
    token = AxiaAuth.from_env().get_token()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token.access_token}\n"))
    return token


def facts(out: str) -> dict[str, str]:
    return {name: fact.strip() for name, _, fact in (line.partition(":") for line in out.splitlines())}


def confidential(gateways: Sandbox) -> list[str]:
    """What must not be printed, other than tokens."""
    return [SECRET, b64encode(f"{gateways.client_id}:{SECRET}".encode()).decode()]


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.provider.name)
def test_check_says_what_the_token_is_good_for(
    cls: type[OAuth2ClientCredentialsAuth], gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` gets one token and prints the provider, the base URL, the granted scopes and the lifetime."""
    scopes = {"axia": "accounts:read accounts:write pix:send webhooks:manage", "bs2": "cob.read pix.read"}

    assert main(["check", cls.provider.name]) == 0
    assert facts(capsys.readouterr().out) == {
        "provider": cls.provider.name,
        "base URL": gateways.url,
        "scopes": scopes.get(cls.provider.name, "balance:read pix:read pix:write"),
        "lifetime": f"{cls.provider.default_expires_in:g} s",
    }
    assert gateways.count("token") == len(gateways.requests) == 1


@pytest.mark.parametrize("given", [["--token-stdin"], []], ids=["given", "new"])
def test_introspect_tells_of_an_active_token(
    given: list[str], token: Token, gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """`introspect` asks Axia about the token on standard input, or without one about a token of its own."""
    assert main(["introspect", *given]) == 0

    told = facts(capsys.readouterr().out)
    assert told["active"] == "yes"
    assert told["client_id"] == gateways.client_id
    assert told["scopes"].split() == sorted(token.scopes)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["expires at"])
    assert gateways.count("introspect") == 1


def test_introspect_tells_why_a_token_is_not_active(
    token: Token, gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """A revoked token is reported as such, which is an answer and no failure."""
    gateways.revoke_all()

    assert main(["introspect", "--token-stdin"]) == 0
    assert facts(capsys.readouterr().out) == {"active": "no", "reason": "Token was revoked"}


def test_revoke_revokes_the_token_on_standard_input(
    token: Token, gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """`revoke` makes the token useless, and says when, and which it was by its id."""
    assert main(["revoke", "--token-stdin"]) == 0

    told = facts(capsys.readouterr().out)
    assert list(told) == ["status", "revoked at", "token_id"]
    assert AxiaAuth.from_env().introspect(token).active is False


def test_revoking_twice_is_no_error(
    token: Token, gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is revoked already stays so, and the command succeeds."""
    gateways.revoke_all()

    assert main(["revoke", "--token-stdin"]) == 0
    assert facts(capsys.readouterr().out) == {"status": "Token not found or already revoked"}


@each_command
def test_no_command_prints_a_token_or_a_secret(
    command: str, token: Token, gateways: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither stream of a successful command holds the secret or any token."""
    assert main(command.split()) == 0

    output = "".join(capfd.readouterr())
    tokens = [token, *(cls.from_env().get_token() for cls in PROVIDERS)]  # which the process has cached
    assert output
    assert not [text for text in [*confidential(gateways), *(t.access_token for t in tokens)] if text in output]


@each_command
@pytest.mark.parametrize("fault", [Fault("status", "*", status=401, times=-1), Fault("garbage", "*", times=-1)])
def test_a_failure_is_one_line_and_a_status(
    command: str, fault: Fault, gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the gateway refuses or garbles is told in one line on stderr that names the provider: no traceback, no secret."""
    monkeypatch.setattr("sys.stdin", io.StringIO("a-token-from-elsewhere"))
    gateways.inject(fault)

    assert main(command.split()) == 1

    captured = capfd.readouterr()
    provider = command.partition(" ")[2] if command.startswith("check") else "axia"
    assert captured.out == ""
    assert re.fullmatch(rf"baas-auth: {provider}: [^\n]+\n", captured.err)
    assert not [text for text in [*confidential(gateways), "a-token-from-elsewhere"] if text in captured.err]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["check", "axia"], {"BAAS_CLIENT_ID": ""}, "BAAS_CLIENT_ID"),
        (["check", "bs2"], {"BS2_SCOPE": ""}, "scope is required"),
        (["check", "avista"], {"AVISTA_BASE_URL": "http://api.example.com"}, "https"),
        (["introspect"], {"BAAS_CLIENT_SECRET": ""}, "BAAS_CLIENT_SECRET"),
        (["introspect", "--token-stdin"], {}, "no token on standard input"),
        (["revoke"], {}, "none in the cache"),
        (["sandbox", "--host", "256.256.256.256"], {}, ""),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    arguments: list[str],
    environment: Mapping[str, str],
    message: str,
    gateways: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A missing variable, a wrong one or an impossible address is told in one line that names it, before any request."""
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert main(arguments) == 1

    error = capfd.readouterr().err
    assert error.startswith("baas-auth: ")
    assert error.count("\n") == 1
    assert message in error
    assert gateways.requests == []


def test_standard_input_that_is_closed(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No standard input at all is told like one that is empty."""
    monkeypatch.setattr("sys.stdin", None)
    assert main(["introspect", "--token-stdin"]) == 1
    assert capfd.readouterr().err == "baas-auth: --token-stdin: there is no token on standard input\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["check"], ["check", "itau"], ["introspect", "a-token"], ["sandbox", "--port", "65536"]],
    ids=" ".join,
)
def test_wrong_arguments_are_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments that make no sense, a token among them, are told in one line, and status 2 as is usual."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)

    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_port_in_use_is_one_line(gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """`sandbox` on a port that is taken says so and ends."""
    assert main(["sandbox", "--port", gateways.url.rpartition(":")[2]]) == 1
    assert re.fullmatch(r"baas-auth: [^\n]*in use[^\n]*\n", capsys.readouterr().err)


@pytest.fixture
def sandbox_process() -> Iterator[subprocess.Popen[str]]:
    """`baas-auth sandbox` as a process, which Ctrl-C reaches even where this one ignores it."""
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from baas_auth_plugins.cli import main; sys.exit(main(['sandbox', '--port', '0']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="there, Ctrl-C goes to a whole console, this process included")
def test_the_sandbox_runs_until_interrupted(
    sandbox_process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `sandbox` prints makes every gateway usable and a token request fail; Ctrl-C ends it with status 0."""
    assert sandbox_process.stdout is not None
    shown: list[list[str]] = []
    while not (line := sandbox_process.stdout.readline()).startswith("An API request"):
        shown += [shlex.split(line)] if line.startswith(("export", "curl")) else []
    for variable in (word for words in shown if words[0] == "export" for word in words[1:]):
        monkeypatch.setenv(*variable.split("="))
    inject, call_off, stats = (words[1:] for words in shown if words[0] == "curl")

    assert requests.post(inject[2], data=inject[1], timeout=10).status_code == 204
    for cls in PROVIDERS:
        assert main(["check", cls.provider.name]) == 0
    assert requests.delete(call_off[2], timeout=10).status_code == 204
    told = requests.get(stats[0], timeout=10).json()
    sandbox_process.send_signal(signal.SIGINT)

    assert told["requests"]["axia"]["token"] == 1 + json.loads(inject[1])["times"]
    assert sandbox_process.communicate(timeout=30) == ("", "")
    assert sandbox_process.returncode == 0


def table(out: str) -> list[dict[str, str]]:
    """Return the demo's table, a row a mapping from column to cell."""
    lines = [re.split(r"  +", line.strip()) for line in out.partition("\n\n")[0].splitlines()]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[1:]]


def test_the_demo_keeps_every_promise_within_30_seconds() -> None:
    """Every gateway through every client: one token request, one renewal, one replay, one token request cold."""
    command = [sys.executable, "-m", "baas_auth_plugins", "demo"]
    result = subprocess.run(command, capture_output=True, check=False, encoding="utf-8", timeout=30)

    assert result.returncode == 0, result.stderr
    rows = table(result.stdout)
    assert [(row["gateway"], row["client"]) for row in rows] == [
        (cls.provider.name, client) for cls in PROVIDERS for client in CLIENTS
    ]
    counted = ("API calls", "token requests", "renewals", "replays", "cold start")
    assert {tuple(row[column] for column in counted) for row in rows} == {("101", "1", "1", "1", "1")}
    assert all(re.fullmatch(r"-?\d+\.\d{3} ms", row["added per call"]) for row in rows)
    assert "every figure as promised" in result.stdout
    assert all(cls.provider.name in result.stderr for cls in PROVIDERS)
    assert "your-client-secret" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("fault", "figures", "problems"),
    [
        (
            Fault("expire", "api"),
            {"API calls": "102", "token requests": "2", "replays": "1", "cold start": "2", "renewals": "2"},
            ["API calls: 102, promised: 101", "token requests: 2, promised: 1", "renewals: 2, promised: 1"],
        ),
        (
            Fault("status", "api", status=503),
            {"API calls": "101", "token requests": "1", "replays": "1", "cold start": "1", "renewals": "1"},
            ["API answers: [503], promised: [200]", "API answers: [200, 503], promised: [200]"],
        ),
        (
            Fault("status", "token", status=403, times=-1),
            dict.fromkeys(["API calls", "token requests", "replays", "cold start", "renewals", "added per call"], "-"),
            ["TokenEndpointError: axia: the token endpoint answered 403"],
        ),
    ],
    ids=["rejects a token", "fails once", "gives no token"],
)
def test_the_demo_fails_when_a_figure_is_not_as_promised(
    fault: Fault, figures: Mapping[str, str], problems: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With gateways that misbehave the table shows what was counted, stderr says which promise broke, and the status is 1."""

    def misbehaving(**options: Any) -> Sandbox:
        sandbox = Sandbox(**options)
        sandbox.inject(fault)
        return sandbox

    assert demo(classes=[AxiaAuth], clients=["requests"], sandbox=misbehaving) == 1

    captured = capsys.readouterr()
    (row,) = table(captured.out)
    assert figures.items() <= row.items()
    assert "not what is promised" in captured.out
    for problem in problems:
        assert f"axia, requests: {problem}" in captured.err
