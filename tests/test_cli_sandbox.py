"""`baas-auth sandbox`: its variables, its log of requests, and how it ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from baas_auth_plugins import PROVIDERS, AxiaAuth
from baas_auth_plugins.cli import _sandbox, main
from baas_auth_plugins.cli._exit_codes import ExitCode
from baas_auth_plugins.sandbox import Fault, RecordedRequest, Sandbox

SCRIPT = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from baas_auth_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
)
unix = pytest.mark.skipif(
    sys.platform == "win32", reason="there, Ctrl-C goes to a whole console, this process included"
)

Start = Callable[..., tuple["subprocess.Popen[str]", dict[str, str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `baas-auth sandbox` as a process, and return it with the variables and the URL that it printed."""
    with ExitStack() as stack:

        def run(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, str], str]:
            command = [sys.executable, "-c", SCRIPT, "sandbox", "--port", "0", *arguments]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            url, variables = "", {}
            while (line := process.stdout.readline()) and not line.startswith("Requests:"):
                if found := re.search(r"https?://\S+", line):
                    url = url or found[0]
                if line.startswith("export "):
                    name, _, value = shlex.split(line)[1].partition("=")
                    variables[name] = value
            return process, variables, url

        yield run


@unix
def test_the_variables_make_every_gateway_usable(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables that it prints each provider's check passes; each request is a line; Ctrl-C ends it with 0."""
    process, variables, _ = start()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert main(["check", *(cls.provider.name for cls in PROVIDERS)]) == ExitCode.OK
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (ExitCode.OK, "")
    for cls in PROVIDERS:
        assert f"{cls.provider.name} POST {cls.provider.token_endpoint} -> 200" in out
    assert variables["BAAS_CLIENT_SECRET"] not in out


@unix
def test_env_only_prints_the_variables_of_the_sandbox_that_runs(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--env-only` prints what `eval` needs and nothing else, of all gateways or of those that are named."""
    _, variables, url = start("--provider", "axia", "--provider", "bs2")
    port = url.rpartition(":")[2]

    assert main(["sandbox", "--env-only", "--port", port]) == ExitCode.OK
    assert capsys.readouterr() == ("\n".join(_sandbox.assignments([variables])) + "\n", "")

    everywhere = ["--host", "0.0.0.0"]  # noqa: S104  # asked on loopback
    assert main(["sandbox", "--env-only", "--port", port, *everywhere, "--provider", "bs2"]) == ExitCode.OK
    assert all(line.startswith("export BS2_") for line in capsys.readouterr().out.splitlines())

    assert main(["sandbox", "--env-only", "--port", port, "--provider", "avista"]) == ExitCode.USAGE
    assert "does not serve avista" in capsys.readouterr().err


@unix
def test_tls_has_a_ca_of_its_own(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--tls` serves https; the CA's path is in the variables that requests and OpenSSL read; SIGTERM deletes its files."""
    process, variables, url = start("--tls", "--provider", "axia")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert url.startswith("https://")
    assert variables["REQUESTS_CA_BUNDLE"] == variables["SSL_CERT_FILE"]
    assert main(["check", "axia"]) == ExitCode.OK
    assert main(["sandbox", "--env-only", "--tls", "--port", url.rpartition(":")[2]]) == ExitCode.OK
    process.terminate()
    process.communicate(timeout=60)

    assert process.returncode == ExitCode.OK
    assert not os.path.exists(variables["SSL_CERT_FILE"])


@unix
def test_it_ends_when_the_reader_of_its_log_has_gone(start: Start) -> None:
    """If the program that reads the log stops, the sandbox stops, without a word."""
    process, _, url = start("--provider", "axia")
    assert process.stdout is not None
    process.stdout.close()
    while process.poll() is None:
        try:
            requests.get(f"{url}/v1/accounts", timeout=10)
        except requests.RequestException:
            process.wait(timeout=60)

    assert process.stderr is not None
    assert (process.returncode, process.stderr.read()) == (ExitCode.CLOSED_PIPE, "")


def test_expires_in_and_providers_reach_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options are those of `Sandbox`."""
    given: dict[str, Any] = {}

    class Recorder(Sandbox):
        def __init__(self, **options: Any) -> None:
            given.update(options)
            raise KeyboardInterrupt

    monkeypatch.setattr(_sandbox, "Sandbox", Recorder)
    options = ["--provider", "axia", "--expires-in", "90", "--hostname", "host.docker.internal", "--host", "::1"]

    assert main(["sandbox", *options]) == ExitCode.INTERRUPTED
    assert given["providers"] == [AxiaAuth]
    assert (given["expires_in"], list(given["hostnames"])) == (90, ["host.docker.internal"])
    assert (given["host"], given["port"], given["tls"]) == ("::1", _sandbox.DEFAULT_PORT, False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "{port}"], ExitCode.FAILED, "in use; name another with --port"),
        (["--host", "256.256.256.256"], ExitCode.FAILED, "cannot listen on 256.256.256.256"),
        (["--expires-in", "0"], ExitCode.USAGE, "more than 0 seconds"),
        (["--hostname", "caf\u00e9"], ExitCode.USAGE, "--hostname must be"),
        (["--env-only", "--port", "0"], ExitCode.USAGE, "--env-only needs the --port"),
    ],
    ids=["port", "host", "expires-in", "hostname", "env-only"],
)
def test_a_mistake_is_one_line(
    arguments: list[str], code: ExitCode, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address that cannot be used, or an impossible option, is one line."""
    with Sandbox() as other:
        port = other.url.rpartition(":")[2]
        assert main(["sandbox", *(argument.format(port=port) for argument in arguments)]) == code

    err = capsys.readouterr().err
    assert re.fullmatch(r"baas-auth: [^\n]+\n", err)
    assert message in err


def test_other_machines_need_tls(capsys: pytest.CaptureFixture[str]) -> None:
    """On an address that others can reach, the sandbox says that they need https."""
    with Sandbox(providers=[AxiaAuth]) as sandbox:
        _sandbox._introduce(sandbox, [AxiaAuth], is_remote=True)
    assert "need --tls" in capsys.readouterr().out


def test_env_only_without_a_sandbox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no sandbox runs, `--env-only` says how to start one."""
    monkeypatch.setattr(_sandbox, "_START", 0.2)
    with Sandbox() as gone:
        port = gone.url.rpartition(":")[2]

    assert main(["sandbox", "--env-only", "--port", port]) == ExitCode.FAILED
    assert "start it in another terminal with: baas-auth sandbox" in capsys.readouterr().err


def test_the_log_says_what_came_what_was_answered_and_what_differed() -> None:
    """A line for the request and its answer, one for what differs from the page, one for a fault; secrets are masked."""
    seen: list[RecordedRequest] = []
    with Sandbox(providers=[AxiaAuth], on_request=seen.append) as sandbox:
        AxiaAuth(sandbox.client_id, sandbox.client_secret, base_url=sandbox.url).get_token()
        url = f"{sandbox.url}{AxiaAuth.provider.token_endpoint}"
        form = {"client_secret": "another-secret"}
        requests.post(url, data=form, auth=("a-client", "another-secret"), timeout=10)
        sandbox.inject(Fault("status", "api", status=503))
        requests.get(f"{sandbox.url}/v1/accounts", headers={"Authorization": "Bearer a-token"}, timeout=10)

    good, bad, fault = ["\n".join(_sandbox.log_lines(request.masked())) for request in seen]
    assert re.match(r"\d\d:\d\d:\d\d axia POST /v1/authentication/oauth/access-token -> 200 in \d+ ms\n", good)
    assert "differs" not in good
    assert "authorization: Basic ***" in good
    assert "differs: " in bad
    assert "client_secret=***" in bad
    assert "-> 503" in fault
    assert "fault: status" in fault
    for secret in (sandbox.client_secret, "another-secret", "a-token"):
        assert secret not in good + bad + fault


@pytest.mark.parametrize(
    ("platform", "msystem", "expected"),
    [
        ("posix", None, ["export A=1", "export B='it'\"'\"'s $x'"]),
        ("nt", None, ["$env:A = '1'", "$env:B = 'it''s $x'"]),
        ("nt", "MINGW64", ["export A=1", "export B='it'\"'\"'s $x'"]),
    ],
    ids=["sh", "PowerShell", "Git Bash"],
)
def test_variables_are_written_for_the_shell(
    platform: str, msystem: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variable is set once, quoted for a POSIX shell or for PowerShell."""
    monkeypatch.setattr(_sandbox.os, "name", platform)
    monkeypatch.delenv("MSYSTEM", raising=False)
    if msystem:
        monkeypatch.setenv("MSYSTEM", msystem)

    assert _sandbox.assignments([{"A": "1"}, {"A": "1", "B": "it's $x"}]) == expected
