"""`baas-auth`: what each command prints, its exit code, its one-line errors, and that it keeps secrets to itself."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import logging
import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from baas_auth_plugins import (
    PROVIDERS,
    AxiaAuth,
    OAuth2ClientCredentialsAuth,
    RateLimitError,
    Token,
    TokenEndpointError,
    TokenEndpointUnavailableError,
    cli,
)
from baas_auth_plugins.cli import _check, _output, main
from baas_auth_plugins.cli._exit_codes import ExitCode
from baas_auth_plugins.sandbox import Fault, Sandbox

SECRET = "kept-to-itself-0123456789"
COMMANDS = ["check axia", "check ntxpay", "check avista", "check bs2", "introspect", "revoke"]
_numbers = itertools.count()  # a client_id for each test: tokens and rate limits are kept for the process

each_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def gateways(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """The sandbox, with all variables that point to it in the environment."""
    with Sandbox(client_id=f"client-{next(_numbers)}", client_secret=SECRET) as sandbox:
        for cls in PROVIDERS:
            for name, value in variables(sandbox, cls).items():
                monkeypatch.setenv(name, value)
        yield sandbox


class _Impatient(AxiaAuth):
    """Does not wait between retries."""

    def __init__(self, *args: Any, **parameters: Any) -> None:
        super().__init__(*args, **{"max_wait": 0.1, **parameters})


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see a wait announced only because the machine is busy."""
    monkeypatch.setattr(_output, "PATIENCE", 3600.0)


def variables(sandbox: Sandbox, cls: type[OAuth2ClientCredentialsAuth]) -> dict[str, str]:
    prefix = cls.provider.env_prefix
    values = {"CLIENT_ID": sandbox.client_id, "CLIENT_SECRET": sandbox.client_secret, "BASE_URL": sandbox.url}
    if cls.provider.scope == "required":
        values["SCOPE"] = "cob.read pix.read"
    return {f"{prefix}_{name}": value for name, value in values.items()}


@pytest.fixture
def token(gateways: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Token:
    """A token of Axia's, which is also what standard input holds."""
    token = AxiaAuth.from_env().get_token()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token.access_token}\n"))
    return token


def facts(out: str) -> dict[str, str]:
    return {name.strip(): fact.strip() for name, _, fact in (line.partition(": ") for line in out.splitlines())}


def confidential(gateways: Sandbox) -> list[str]:
    """What must not be printed, other than tokens."""
    return [SECRET, b64encode(f"{gateways.client_id}:{SECRET}".encode()).decode()]


def one_line(error: str) -> str:
    """Return the text of a one-line error."""
    assert re.fullmatch(r"baas-auth: [^\n]+\n", error), error
    return error.removeprefix("baas-auth: ").rstrip("\n")


# -- check


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.provider.name)
def test_check_reports_what_the_token_is_good_for(
    cls: type[OAuth2ClientCredentialsAuth], gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` requests one token; it prints the variables it read, the gateway, lifetime, scopes, latency and clock."""
    assert main(["check", cls.provider.name]) == ExitCode.OK

    captured = capsys.readouterr()
    assert captured.err == ""
    found = facts(captured.out)
    assert captured.out.startswith(f"{cls.provider.name}: ok\n")
    assert set(found.pop("variables").split(", ")) == set(variables(gateways, cls))
    assert found.pop("gateway") == gateways.url
    assert found.pop("lifetime") == f"{cls.provider.default_expires_in:g} s"
    assert found.pop("scopes")
    assert re.fullmatch(r"\d+\.\d{3} s", found.pop("latency"))
    assert found.pop("clock") == "agrees with the gateway's to 2 s"
    assert found.pop("introspection", None) == ("active" if cls is AxiaAuth else None)
    assert list(found.values()) == ["ok"]
    assert gateways.count("token") == 1
    assert gateways.count("introspect") == (1 if cls is AxiaAuth else 0)


def test_check_goes_on_after_a_failure(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With several providers each is checked, and the exit code is that of the first that failed."""
    monkeypatch.setenv("AVISTA_CLIENT_SECRET", "wrong")

    code = main(["check", "axia", "avista", "bs2"])

    captured = capsys.readouterr()
    assert code == ExitCode.INVALID_CLIENT
    assert re.findall(r"^(\w+): (ok|not ok)$", captured.out, re.MULTILINE) == [
        ("axia", "ok"),
        ("avista", "not ok"),
        ("bs2", "ok"),
    ]
    assert one_line(captured.err).startswith("avista: ")


def test_check_prints_json(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check --json` prints an array with an object for each provider, failures included."""
    monkeypatch.setenv("BS2_CLIENT_SECRET", "wrong")

    assert main(["check", "axia", "bs2", "--json"]) == ExitCode.INVALID_CLIENT

    axia, bs2 = json.loads(capsys.readouterr().out)
    assert (axia["provider"], axia["ok"], axia["exit_code"], axia["error"]) == ("axia", True, 0, None)
    assert (axia["expires_in"], axia["attempts"], axia["introspection"]["active"]) == (3600, 1, True)
    assert (bs2["provider"], bs2["ok"], bs2["exit_code"]) == ("bs2", False, ExitCode.INVALID_CLIENT)
    assert (bs2["error"]["type"], bs2["error"]["status_code"]) == ("InvalidClientError", 401)
    assert "BS2_CLIENT_ID" in bs2["error"]["advice"]


@pytest.mark.parametrize(
    ("fault", "code", "advice"),
    [
        (Fault("status", "token", status=401), ExitCode.INVALID_CLIENT, "Check BAAS_CLIENT_ID and BAAS_CLIENT_SECRET"),
        (Fault("status", "token", status=429, retry_after=120), ExitCode.RATE_LIMITED, "Wait 120 s"),
        (Fault("status", "token", status=403), ExitCode.REFUSED, "IP address"),
        (Fault("status", "token", status=404), ExitCode.REFUSED, "Check BAAS_BASE_URL"),
        (Fault("garbage", "token"), ExitCode.REFUSED, "another server may have answered"),
        (Fault("status", "introspect", status=403), ExitCode.REFUSED, "IP address"),
    ],
    ids=["credentials", "rate limit", "forbidden", "not found", "garbage", "introspection"],
)
def test_check_says_what_is_wrong_and_what_to_do(
    fault: Fault, code: ExitCode, advice: str, gateways: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each typed error is one line on stderr that names the provider and the remedy, and has an exit code of its own."""
    gateways.inject(fault)

    assert main(["check", "axia"]) == code

    captured = capfd.readouterr()
    line = one_line(captured.err)
    assert line.startswith("axia: ")
    assert advice in line
    assert captured.out.startswith("axia: not ok\n")


def test_check_explains_a_scope_that_is_not_granted(gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """`--scope` names scopes that must be granted; a missing one is named, with what to do."""
    assert main(["check", "axia", "--scope", "accounts:read loans:write"]) == ExitCode.INVALID_SCOPE

    line = one_line(capsys.readouterr().err)
    assert "loans:write" in line
    assert "--scope and BAAS_SCOPE" in line


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (TokenEndpointUnavailableError("axia: connection refused"), "Check the network"),
        (TokenEndpointUnavailableError("axia: certificate verify failed"), "REQUESTS_CA_BUNDLE"),
        (TokenEndpointUnavailableError("axia: 503", status_code=503), "The fault is the gateway's"),
        (RateLimitError("axia: 429"), "Wait a minute"),
        (TokenEndpointError("axia: 400", status_code=400), "documentation"),
    ],
)
def test_check_explains_errors_that_take_time(
    error: TokenEndpointError,
    advice: str,
    gateways: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A network error, a certificate and a gateway that is down are told apart in what to do."""

    def get_token(_: AxiaAuth) -> Token:
        raise error

    monkeypatch.setattr(AxiaAuth, "get_token", get_token)

    assert main(["check", "axia"]) in {ExitCode.UNAVAILABLE, ExitCode.RATE_LIMITED, ExitCode.REFUSED}
    assert advice in one_line(capsys.readouterr().err)


def test_check_reports_a_new_token_that_is_not_active(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the gateway says that its new token is not active, `check` fails with the code for that."""
    get_token = AxiaAuth.get_token

    def get_revoked_token(auth: AxiaAuth) -> Token:
        found = get_token(auth)
        gateways.revoke_all()
        return found

    monkeypatch.setattr(AxiaAuth, "get_token", get_revoked_token)

    assert main(["check", "axia"]) == ExitCode.INACTIVE

    captured = capsys.readouterr()
    assert facts(captured.out)["introspection"] == "not active"
    assert "not active" in one_line(captured.err)


@pytest.mark.parametrize(
    ("date", "skew", "text"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0, "agrees with the gateway's to 2 s"),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0, "the gateway's is 10 s ahead"),
        ("Sun, 06 Nov 1994 08:44:37 GMT", -300.0, "the gateway's is 300 s behind; set this machine's clock"),
        ("yesterday", None, "unknown, because the answer has no Date"),
        (None, None, "unknown, because the answer has no Date"),
    ],
)
def test_the_clock_is_compared_with_the_gateways_date(date: str | None, skew: float | None, text: str) -> None:
    """The skew is the Date's second against the middle of the exchange."""
    exchange = _check.Exchange(sent_at=784111777.0, latency=1.0, date=date)

    assert exchange.skew == skew
    assert _check._clock(exchange.skew) == text


# -- token


def test_token_prints_the_token_and_nothing_else(gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """`token` prints the access token, as `$(baas-auth token axia)` needs it."""
    assert main(["token", "axia"]) == ExitCode.OK

    captured = capsys.readouterr()
    assert captured.out == f"{AxiaAuth.from_env().get_token().access_token}\n"
    assert captured.err == ""


def test_token_prints_json(gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """`token --json` adds the type, the lifetime and the scopes."""
    assert main(["token", "bs2", "--json"]) == ExitCode.OK

    found = json.loads(capsys.readouterr().out)
    assert (found["token_type"], found["expires_in"], found["scopes"]) == ("Bearer", 300, ["cob.read", "pix.read"])
    assert found["access_token"]
    assert found["expires_at"] > 1e9


# -- introspect and revoke


def test_introspect_reports_an_active_token(
    token: Token, gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """`introspect` asks Axia about the token on standard input, and ends with 0 if it is active."""
    assert main(["introspect"]) == ExitCode.OK

    found = facts(capsys.readouterr().out)
    assert found["active"] == "yes"
    assert found["client_id"] == gateways.client_id
    assert found["scopes"].split() == sorted(token.scopes)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["expires at"])
    assert gateways.count("introspect") == 1


@pytest.mark.parametrize("json_", [False, True], ids=["text", "json"])
def test_an_inactive_token_is_not_0(
    json_: bool, token: Token, gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """A revoked token is reported with the gateway's reason and ends with a code of its own."""
    gateways.revoke_all()

    assert main(["introspect", *(["--json"] if json_ else [])]) == ExitCode.INACTIVE

    captured = capsys.readouterr()
    assert "Token was revoked" in captured.out
    assert json_ is False or json.loads(captured.out)["active"] is False
    assert one_line(captured.err) == "axia: the token is not active. Request a new one."


def test_revoke_revokes_the_token_on_standard_input(
    token: Token, gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """`revoke` ends the token, and prints when, and the gateway's id of it."""
    assert main(["revoke"]) == ExitCode.OK

    assert list(facts(capsys.readouterr().out)) == ["status", "revoked at", "token_id"]
    assert AxiaAuth.from_env().introspect(token).active is False


def test_revoking_twice_is_no_error(token: Token, gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """A token that was revoked before stays so, and the command succeeds."""
    gateways.revoke_all()

    assert main(["revoke", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["status"] == "Token not found or already revoked"


@pytest.mark.parametrize("stdin", [io.StringIO(" \n"), io.StringIO(""), None], ids=["blank", "empty", "closed"])
@pytest.mark.parametrize("command", ["introspect", "revoke"])
def test_no_token_on_standard_input(
    command: str,
    stdin: io.StringIO | None,
    gateways: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a token both commands say how to pass one, before any request."""
    monkeypatch.setattr("sys.stdin", stdin)

    assert main([command]) == ExitCode.USAGE
    assert f"... | baas-auth {command}" in one_line(capsys.readouterr().err)
    assert gateways.requests == []


def test_standard_input_that_is_not_text(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that are not UTF-8 are a one-line error."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert main(["introspect"]) == ExitCode.USAGE
    assert one_line(capsys.readouterr().err) == "standard input is not text"


@pytest.mark.parametrize("command", ["introspect", "revoke"])
def test_a_token_among_the_arguments_is_refused_and_not_shown(
    command: str, gateways: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """Process lists show arguments, so a token there is an error that does not repeat it."""
    assert main([command, "eyJhbGciOi.the-token"]) == ExitCode.USAGE
    line = one_line(capsys.readouterr().err)
    assert "standard input" in line
    assert "eyJ" not in line


def test_only_gateways_with_an_endpoint_introspect(gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """A provider that declares no introspection endpoint is a one-line error."""
    assert main(["introspect", "--provider", "bs2"]) == ExitCode.USAGE
    assert one_line(capsys.readouterr().err) == "bs2 has no endpoint to introspect a token; axia has one"


# -- secrets


@each_command
@pytest.mark.parametrize("more", [[], ["--json"], ["--verbose"]], ids=" ".join)
def test_no_command_prints_a_token_or_a_secret(
    command: str, more: list[str], token: Token, gateways: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither stream of a successful command holds the secret or any token; `--verbose` changes nothing about that."""
    assert main([*command.split(), *more]) == ExitCode.OK

    output = "".join(capfd.readouterr())
    tokens = [token, *(cls.from_env().get_token() for cls in PROVIDERS)]  # which the process has cached
    assert output
    assert not [text for text in [*confidential(gateways), *(t.access_token for t in tokens)] if text in output]


@each_command
@pytest.mark.parametrize("fault", [Fault("status", "*", status=401, times=-1), Fault("garbage", "*", times=-1)])
def test_a_failure_is_one_line_and_an_exit_code(
    command: str, fault: Fault, gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A refusal or garbage is one line on stderr that names the provider: no traceback, no secret."""
    monkeypatch.setattr("sys.stdin", io.StringIO("a-token-from-elsewhere"))
    gateways.inject(fault)

    assert main(command.split()) in {ExitCode.INVALID_CLIENT, ExitCode.REFUSED}

    captured = capfd.readouterr()
    provider = command.partition(" ")[2] if command.startswith("check") else "axia"
    assert one_line(captured.err).startswith(f"{provider}: ")
    assert not [text for text in [*confidential(gateways), "a-token-from-elsewhere"] if text in captured.err]


# -- settings


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["check", "axia"], {"BAAS_CLIENT_ID": ""}, "BAAS_CLIENT_ID"),
        (["token", "bs2"], {"BS2_SCOPE": ""}, "scope"),
        (["check", "avista"], {"AVISTA_BASE_URL": "http://api.example.com"}, "https"),
        (["introspect"], {"BAAS_CLIENT_SECRET": ""}, "BAAS_CLIENT_SECRET"),
        (["check", "bs2", "--environment", "moon"], {}, "environment"),
        (["token", "axia", "--timeout", "0"], {}, "timeout"),
        (["token", "axia", "--timeout", "nan"], {}, "timeout"),
        (["token", "axia", "--base-url", "ftp://x"], {}, "base_url"),
        (["token", "axia", "--env-file", "does-not-exist.env"], {}, "cannot read does-not-exist.env"),
        (["check", "axia", "--cert", "does-not-exist.pem"], {}, "cannot read does-not-exist.pem"),
        (["token", "axia", "--key", "client.key"], {}, "--key needs --cert"),
    ],
)
def test_a_wrong_setting_is_one_line(
    arguments: list[str],
    environment: Mapping[str, str],
    message: str,
    gateways: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A missing variable or a wrong setting is one line that names it, before any request."""
    monkeypatch.setattr("sys.stdin", io.StringIO("a-token"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert main(arguments) == ExitCode.CONFIGURATION
    assert message in one_line(capfd.readouterr().err)
    assert gateways.requests == []


def write_env_file(path: Path, values: Mapping[str, str], encoding: str = "utf-8") -> str:
    lines = [f"export {name}='{value}'  # a comment\n" for name, value in values.items()]
    path.write_text("# credentials\n\n" + "".join(lines), encoding=encoding)
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_an_env_file_is_read_instead_of_the_environment(
    encoding: str,
    gateways: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--env-file` replaces all of the gateway's variables, so two sets are never mixed; the environment stays as it is."""
    file = write_env_file(tmp_path / "axia.env", variables(gateways, AxiaAuth), encoding)
    monkeypatch.setenv("BAAS_CLIENT_SECRET", "another")
    monkeypatch.setenv("BAAS_SCOPE", "loans:write")

    assert main(["check", "axia", "--env-file", file]) == ExitCode.OK
    assert "BAAS_SCOPE" not in facts(capsys.readouterr().out)["variables"]
    assert (os.environ["BAAS_CLIENT_SECRET"], os.environ["BAAS_SCOPE"]) == ("another", "loans:write")


def test_a_value_in_an_env_file_is_taken_as_it_is(
    gateways: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`$NAME` in a value is not replaced: secrets may have a dollar sign."""
    gateways.client_secret = "pa$HOME${HOME}word"
    file = write_env_file(tmp_path / "axia.env", variables(gateways, AxiaAuth))

    assert main(["check", "axia", "--env-file", file]) == ExitCode.OK


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"BAAS_CLIENT_ID=a\nthis is not it\n", "line 2: this is not KEY=value"),
        (b"BAAS_CLIENT_ID=a\n", "BAAS_CLIENT_SECRET"),
        (b"BAAS_CLIENT_ID=a\nBAAS_CLIENT_SECRET=a\0b\n", "line 2: this is not KEY=value"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
    ids=["no assignment", "missing", "NUL", "binary"],
)
def test_a_wrong_env_file_is_one_line(
    content: bytes, message: str, gateways: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the file and what is wrong there, and shows nothing of its content."""
    (tmp_path / "axia.env").write_bytes(content)

    assert main(["token", "axia", "--env-file", str(tmp_path / "axia.env")]) == ExitCode.CONFIGURATION
    line = one_line(capsys.readouterr().err)
    assert "axia.env" in line
    assert message in line
    assert "this is not it" not in line


def test_options_are_stronger_than_variables(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--base-url`, `--scope` and `--user-agent` replace what the environment says."""
    monkeypatch.setenv("BS2_BASE_URL", "https://bs2.invalid")
    monkeypatch.setenv("BS2_SCOPE", "dict.write")
    options = ["--base-url", gateways.url, "--scope", "pix.write", "--user-agent", "ACME/1.0"]

    assert main(["check", "bs2", *options]) == ExitCode.OK
    found = facts(capsys.readouterr().out)
    assert (found["gateway"], found["scopes"]) == (gateways.url, "pix.write")
    assert gateways.requests[0].headers["user-agent"] == "ACME/1.0"


def test_environment_is_stronger_than_a_base_url_in_a_variable(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--environment` chooses the gateway's origin, whatever the variables say of the base URL."""
    urls: list[str] = []

    def send(_: object, request: requests.PreparedRequest, **__: object) -> requests.Response:
        urls.append(request.url or "")
        raise KeyboardInterrupt

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)

    assert main(["token", "bs2", "--environment", "homologation"]) == ExitCode.INTERRUPTED
    assert urls == ["https://apihmz.bancobonsucesso.com.br/auth/oauth/v2/token"]


@pytest.mark.parametrize("options", [True, False], ids=["with a certificate", "without"])
def test_a_client_certificate_is_for_mutual_tls(
    options: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--cert` and `--key` are what a gateway with mutual TLS wants; without them it is out of reach."""
    with Sandbox(tls="mutual", client_id=f"client-{next(_numbers)}") as sandbox:
        for name, value in sandbox.environment(AxiaAuth).items():
            monkeypatch.setenv(name, value)
        cert, key = sandbox.client_cert
        given = ["--cert", cert, "--key", key] if options else ["--timeout", "1"]
        monkeypatch.setattr("baas_auth_plugins.cli._gateways.NAMES", {"axia": _Impatient})

        assert main(["check", "axia", *given]) == (ExitCode.OK if options else ExitCode.UNAVAILABLE)
    assert capsys.readouterr().out.startswith("axia: ok\n" if options else "axia: not ok\n")


# -- declared gateways

DECLARATION = """
from baas_auth_plugins import OAuth2ClientCredentialsAuth, Provider

class FifthAuth(OAuth2ClientCredentialsAuth):
    provider = Provider(
        name="fifth", env_prefix="FIFTH", environments={"production": "https://api.fifth.example"},
        token_endpoint="/oauth2/token", token_endpoint_auth_method="client_secret_post",
    )
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory that declares a gateway."""
    name = f"gateways_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(DECLARATION, encoding="utf-8")
    (tmp_path / f"{name}_broken.py").write_text("raise SystemExit('stop')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_a_declared_gateway_is_module_and_class(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`module:Class` works wherever a provider's name does, for a module in the working directory."""
    monkeypatch.syspath_prepend(".")
    fifth = importlib.import_module(module).FifthAuth
    with Sandbox(providers=[fifth.provider], client_id=f"client-{next(_numbers)}") as sandbox:
        for name, value in variables(sandbox, fifth).items():
            monkeypatch.setenv(name, value)

        assert main(["check", f"{module}:FifthAuth"]) == ExitCode.OK
        assert capsys.readouterr().out.startswith("fifth: ok\n")
        assert main(["token", f"{module}:FifthAuth"]) == ExitCode.OK


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{module}:FithAuth", "Did you mean FifthAuth?"),
        ("{module}:Provider", "has no gateway Provider"),
        ("{module}_broken:FifthAuth", "cannot import"),
        ("not_there_at_all:FifthAuth", "cannot import not_there_at_all: ModuleNotFoundError"),
        ("a secret:with spaces", "module:Class"),
    ],
)
def test_a_wrong_declaration_is_one_line(
    argument: str, message: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module that fails, a class that is not there or is no gateway: one line, and the nearest name."""
    assert main(["check", argument.format(module=module)]) == ExitCode.USAGE
    assert message in one_line(capsys.readouterr().err)


# -- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chekc", "axia"], "Did you mean 'check'?"),
        (["check", "aixa"], "Did you mean axia"),
        (["check", "bs3"], "Did you mean bs2?"),
        (["check", "axia", "--jsno"], "Did you mean --json"),
        (["check"], "axia, ntxpay, avista, bs2, or module:Class"),
        (["token", "axia", "bs2"], "baas-auth token --help"),
        (["check", "axia", "--timeout", "soon"], "--timeout"),
        (["sandbox", "--port", "65536"], "--port"),
        (["sandbox", "--provider", "axai"], "Did you mean axia"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error is one line that suggests what was meant, and exit code 2."""
    assert main(arguments) == ExitCode.USAGE
    assert message in one_line(capsys.readouterr().err)


def test_a_long_word_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """A token in the place of a provider's name is not printed."""
    assert main(["check", "a" * 40]) == ExitCode.USAGE
    assert "aaa" not in capsys.readouterr().err


def test_names_of_providers_have_no_case(gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """`check AXIA` is `check axia`."""
    assert main(["check", "AXIA"]) == ExitCode.OK


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the package's version."""
    from baas_auth_plugins import __version__

    assert main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == f"baas-auth-plugins {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["nothing", "--help", "-h"])
def test_help_lists_commands_and_exit_codes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The help names each command and each exit code."""
    assert main(arguments) == ExitCode.OK

    out = capsys.readouterr().out
    for command in ("check", "token", "introspect", "revoke", "sandbox", "demo"):
        assert re.search(rf"^  {command}  ", out, re.MULTILINE)
    words = " ".join(out.split())
    for code in ExitCode:
        assert f"{code.value} {code.meaning}" in words


def test_the_documents_list_the_exit_codes() -> None:
    """The tables in the module's docstring and in docs/command-line.md are what the program does."""
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    expected = [(str(code.value), code.meaning) for code in ExitCode]

    assert re.findall(r"^(\d+) +(\S.*)$", cli.__doc__ or "", re.MULTILINE) == expected
    assert re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE) == expected


# -- waits and logs


def test_a_wait_is_announced(
    gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that takes longer than a moment says what it waits for, and how long at most."""
    monkeypatch.setattr(_output, "PATIENCE", 0.01)
    gateways.inject(Fault("delay", "token", delay=0.5))

    assert main(["check", "axia", "--timeout", "7"]) == ExitCode.OK
    assert f"waiting for a token from {gateways.url} (at most 7 s for a request, 60 s with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verbose", "waits", "shown"),
    [(False, True, ["info: one"]), (False, False, []), (True, False, ["debug: zero", "info: one", "warning: two"])],
)
def test_log_records_go_to_stderr(
    verbose: bool, waits: bool, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Waits, which are logged at INFO, are shown; `--verbose` shows every record of the package; then all is as before."""
    logger = logging.getLogger("baas_auth_plugins")
    before = (logger.level, list(logger.handlers))
    with _output.logging_to_stderr(verbose=verbose, waits=waits):
        for level, text in ((logging.DEBUG, "zero"), (logging.INFO, "one"), (logging.WARNING, "two")):
            logging.getLogger("baas_auth_plugins.part").log(level, text)

    assert capsys.readouterr().err.splitlines() == shown
    assert (logger.level, logger.handlers) == before


def test_verbose_shows_the_packages_log(gateways: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """`--verbose` shows DEBUG records of the package on stderr; standard output stays for the result."""
    assert main(["token", "axia", "--verbose"]) == ExitCode.OK

    captured = capsys.readouterr()
    assert "debug: " in captured.err
    assert captured.out.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError()], ids=["disk", "pipe"])
def test_output_that_cannot_be_written(
    error: OSError, gateways: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is a one-line error; a closed pipe is silent."""

    class Broken(io.StringIO):
        def write(self, text: str) -> Any:
            raise error

    monkeypatch.setattr("sys.stdout", Broken())
    pipe = isinstance(error, BrokenPipeError)

    assert main(["token", "axia"]) == (ExitCode.CLOSED_PIPE if pipe else ExitCode.FAILED)
    err = capsys.readouterr().err
    assert err == "" if pipe else "No space left on device" in one_line(err)
