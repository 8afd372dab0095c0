"""`baas-auth` as a process: narrow and ASCII terminals, pipes, Ctrl-C, completion, and no extra installed."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from baas_auth_plugins import AxiaAuth
from baas_auth_plugins.cli._exit_codes import ExitCode
from baas_auth_plugins.sandbox import Fault, Sandbox

unix = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals and no such signals")
COMMAND = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from baas_auth_plugins.cli import main; sys.exit(main())",
]


@pytest.fixture
def gateway() -> Iterator[Sandbox]:
    with Sandbox(providers=[AxiaAuth]) as sandbox:
        yield sandbox


@pytest.fixture
def variables(gateway: Sandbox) -> dict[str, str]:
    """The environment of a process, with the gateway's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "GITHUB_ACTIONS"):
        kept.pop(name, None)
    return kept | gateway.environment(AxiaAuth) | {"PYTHONIOENCODING": "utf-8", "TERM": "xterm"}


def run(*arguments: str, env: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=env, input=stdin, capture_output=True, encoding="utf-8", check=False, timeout=60
    )


def on_terminal(*arguments: str, env: Mapping[str, str], columns: int, typed: str = "") -> tuple[int, str]:
    """Run a command on a terminal of this width; return its exit code and what the terminal showed."""
    import fcntl
    import pty
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=env,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    try:
        while select.select([controller], [], [], 60)[0]:
            try:
                read = os.read(controller, 65_536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not read:
                break
            shown += read
            if typed and b"Token: " in shown:
                os.write(controller, typed.encode())
                typed = ""
        return process.wait(timeout=60), shown.decode().replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def widest(shown: str) -> int:
    return max(len(line.rstrip()) for line in shown.splitlines())


@unix
@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], ExitCode.OK),
        (["check", "--help"], ExitCode.OK),
        (["sandbox", "--help"], ExitCode.OK),
        (["check", "axia"], ExitCode.OK),
        (["check", "aixa"], ExitCode.USAGE),
        (["check", "axia", "--scope", "loans:write"], ExitCode.INVALID_SCOPE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_output_fits_the_terminal(
    arguments: list[str], code: ExitCode, columns: int, variables: Mapping[str, str]
) -> None:
    """At 40 and 80 columns lines break between words, and no word is lost."""
    ended, shown = on_terminal(*arguments, env=variables, columns=columns)

    assert ended == code
    assert widest(shown) <= columns
    wide = run(*arguments, env=variables | {"COLUMNS": "80"})
    unfolded = re.sub(r"\d\.\d{3} s", "", " ".join((wide.stdout + wide.stderr).split()))
    assert re.sub(r"\d\.\d{3} s", "", " ".join(shown.split())) == unfolded


@unix
def test_a_terminal_does_not_show_the_token(gateway: Sandbox, variables: Mapping[str, str]) -> None:
    """On a terminal `introspect` asks for the token, and does not echo it."""
    token = AxiaAuth(gateway.client_id, gateway.client_secret, base_url=gateway.url).get_token().access_token

    code, shown = on_terminal("introspect", env=variables, columns=80, typed=f"{token}\n")

    assert code == ExitCode.OK
    assert "active:" in shown
    assert token not in shown


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_survives_an_encoding(encoding: str, gateway: Sandbox, variables: Mapping[str, str]) -> None:
    """A character that the streams cannot write becomes its escape, and the exit code is that of the error."""
    body = '{"error": "invalid_client", "error_description": "n\u00e3o \u2713"}'.encode()
    gateway.inject(Fault("status", "token", status=401, body=body))
    env = variables | {"LC_ALL": "C", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    done = subprocess.run([*COMMAND, "check", "axia"], env=env, capture_output=True, check=False, timeout=60)

    assert done.returncode == ExitCode.INVALID_CLIENT
    assert rb"\u2713" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert ("n\u00e3o".encode(encoding, "backslashreplace")) in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["check", "axia"], ["token", "axia"]], ids=" ".join)
def test_a_reader_that_has_gone(arguments: list[str], variables: Mapping[str, str]) -> None:
    """If the program that reads the output has stopped, there is no message and a code of its own."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], env=variables, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60
        )
    finally:
        os.close(writer)

    assert (done.returncode, done.stderr) == (ExitCode.CLOSED_PIPE, b"")


@unix
def test_ctrl_c_ends_a_wait(gateway: Sandbox, variables: Mapping[str, str]) -> None:
    """A wait says what it waits for, and Ctrl-C ends it with code 130 and no traceback."""
    gateway.inject(Fault("hang", "token"))
    with subprocess.Popen(
        [*COMMAND, "token", "axia", "--timeout", "60"],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        announced = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert announced.startswith(f"waiting for a token from {gateway.url} (at most 60 s")
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("baas-auth ", {"check", "token", "introspect", "revoke", "sandbox", "demo"}),
        ("baas-auth check a", {"axia", "avista"}),
        ("baas-auth check axia b", {"bs2"}),
        ("baas-auth sandbox --provider n", {"ntxpay"}),
        ("baas-auth token --en", {"--env-file", "--environment"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str], variables: Mapping[str, str]) -> None:
    """Commands, providers and options complete, as bash asks for it."""
    count = str(len(words.split(" ")) - 1)
    env = variables | {"_BAAS_AUTH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}

    done = run(env=env)

    assert done.returncode == ExitCode.OK
    assert set(done.stdout.split()) == expected


def test_without_the_extra_one_line_says_what_to_install() -> None:
    """The entry point needs no typer: it says what to install, and fails."""
    code = (
        "import sys; sys.modules['typer'] = None;"
        "from baas_auth_plugins.cli import main; sys.exit(main(['check', 'axia']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
    assert done.stderr == "baas-auth: typer is not installed; run: pip install 'baas-auth-plugins[cli]'\n"


def test_importing_the_entry_point_imports_nothing_of_the_extra() -> None:
    """The package imports no CLI, and the entry point is one module until it runs."""
    code = (
        "import sys, baas_auth_plugins; before = set(sys.modules);"
        "import baas_auth_plugins.cli; print(*sorted(sys.modules.keys() - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["baas_auth_plugins.cli"]


def test_the_module_runs_as_the_command_does(variables: Mapping[str, str]) -> None:
    """`python -m baas_auth_plugins` is `baas-auth`."""
    command = [sys.executable, "-m", "baas_auth_plugins", "check"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("baas-auth: Missing argument 'PROVIDER': axia, ")
