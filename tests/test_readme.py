"""README.md holds: its examples run, its commands are two, and its table is the providers' own data."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_servers import LOOPBACK, RedisServer

from baas_auth_plugins import PROVIDERS, OAuth2ClientCredentialsAuth, exceptions
from baas_auth_plugins.sandbox import Fault, Sandbox

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
EXAMPLES = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
SELF_SERVED = [code for code in EXAMPLES if "Sandbox(" in code]
FLEET = next(code for code in EXAMPLES if "RedisTokenCache(" in code)
SERVED = [code for code in EXAMPLES if code not in SELF_SERVED and code != FLEET]
BEFORE = next(code for code in EXAMPLES if "class BaaSClient" in code)
AFTER = EXAMPLES[EXAMPLES.index(BEFORE) + 1]
ERRORS = next(code for code in EXAMPLES if "except InvalidClientError" in code)


def title(code: str) -> str:
    lines = [line for line in code.splitlines() if "auth=" in line or "Auth." in line or line.startswith("class")]
    return re.sub(r"\W+", "-", lines[0]).strip("-")[:48]


@pytest.fixture
def gateways() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def run(code: str, gateways: Sandbox, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a script of its own, the production hosts in it and in its environment being the sandbox."""
    variables = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    for cls in PROVIDERS:
        prefix = cls.provider.env_prefix
        variables[f"{prefix}_CLIENT_ID"] = gateways.client_id
        variables[f"{prefix}_CLIENT_SECRET"] = gateways.client_secret
        variables[f"{prefix}_BASE_URL"] = gateways.url
        code = code.replace(cls.provider.environments["production"], gateways.url)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=variables | {"PYTHONIOENCODING": "utf-8"} | environment,
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )


@pytest.mark.parametrize("code", SERVED, ids=title)
def test_each_example_makes_its_calls_with_one_token_request(code: str, gateways: Sandbox) -> None:
    """Run as it stands, an example is silent on stderr, and the gateway answers every request of it with 200."""
    result = run(code, gateways)

    assert (result.stderr, result.returncode) == ("", 0)
    assert {request.status for request in gateways.requests} == {200}
    assert gateways.count("token") == 1
    assert gateways.count("api") or gateways.count("revoke")


@pytest.mark.parametrize("code", SELF_SERVED, ids=title)
def test_an_example_with_a_sandbox_needs_nothing_else(code: str, gateways: Sandbox) -> None:
    """An example that brings its sandbox runs, asserts what it asserts, and asks no gateway."""
    result = run(code, gateways)

    assert (result.stderr, result.returncode) == ("", 0)
    assert gateways.requests == []


def test_the_fleet_example_shares_its_token(gateways: Sandbox, tmp_path: Path) -> None:
    """Two processes that run the example, one after the other, make one token request."""
    server = RedisServer(tmp_path).start()
    try:
        results = [run(FLEET, gateways, REDIS_URL=f"redis://{LOOPBACK}:{server.port}") for _ in range(2)]
    finally:
        server.kill()

    assert [(result.stderr, result.returncode) for result in results] == [("", 0)] * 2
    assert [request.kind for request in gateways.requests] == ["token", "api", "api"]


def test_the_figures_are_those_of_one_run() -> None:
    """The table of peers is made of the results that lie beside it, and of nothing else."""
    benchmarks = Path(__file__).parent.parent / "benchmarks"
    summary = runpy.run_path(str(benchmarks / "summary.py"))["summary"]
    results = json.loads((benchmarks / "results" / "results.json").read_text(encoding="utf-8"))

    assert summary(results) in README


def test_before_and_after_fetch_the_same(gateways: Sandbox) -> None:
    """Axia's BaaSClient and the one `session.auth` line get the same accounts from the gateway."""
    before, after = (ast.literal_eval(run(code, gateways).stdout) for code in (BEFORE, AFTER))

    assert before.pop("content_type") == "application/json"  # which the page's client sends with a GET
    assert after.pop("content_type") is None
    assert before == after
    assert before["path"] == "/v1/accounts"
    assert AFTER.count("session.auth = ") == 1


def test_the_error_example_tells_wrong_credentials_from_the_rest(gateways: Sandbox) -> None:
    """The `except` clauses of the example are taken: the first by wrong credentials, the second by all else."""
    refused = run(ERRORS, gateways, BAAS_CLIENT_SECRET="another-secret")
    gateways.inject(Fault("status", "token", status=403))
    failed = run(ERRORS, gateways)

    assert refused.stdout == "The gateway does not know these credentials: 401 E00101\n"
    assert failed.stdout.startswith("Not this time: axia: the token endpoint answered 403")
    assert refused.returncode == failed.returncode == 0


def test_there_are_exactly_two_set_up_and_run_commands() -> None:
    """A fresh clone needs one command for the demo or one for the tests, and nothing but python3."""
    assert len(COMMANDS) == 2
    for command, end in zip(COMMANDS, (".venv/bin/baas-auth demo", ".venv/bin/python -m pytest"), strict=True):
        set_up, install, go = command.split(" && ")
        assert set_up == "python3 -m venv .venv"
        assert install.startswith(".venv/bin/pip install ")
        assert go == end


def table() -> dict[str, list[str]]:
    section = README.partition("\n## The gateways\n")[2].partition("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if line.startswith("| ")]
    return {cells[1].strip("`"): cells for cells in rows[1:]}


def test_the_table_lists_every_gateway() -> None:
    """Every class of PROVIDERS has a row in the table, in that order."""
    assert list(table()) == [cls.__name__ for cls in PROVIDERS]


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.provider.name)
def test_the_table_says_what_the_provider_declares(cls: type[OAuth2ClientCredentialsAuth]) -> None:
    """Prefix, origins, token endpoint, scope, lifetime and limit in the table are the provider's."""
    provider = cls.provider
    _, _, prefix, origins, endpoint, method, scope, lifetime, limit = table()[cls.__name__]
    declared = provider.token_endpoint_auth_method
    words = {
        "client_secret_basic": "Basic and form",
        "client_secret_basic_without_body": "Basic, no body",
        "client_secret_json": "JSON body",
    }

    assert prefix == f"`{provider.env_prefix}_`"
    assert re.findall(r"`(.*?)`", origins) == list(provider.environments.values())
    assert endpoint == f"`{provider.token_endpoint}`"
    assert method == words[declared if isinstance(declared, str) else declared.__name__]
    assert scope == provider.scope
    assert lifetime == f"{provider.default_expires_in} s"
    assert limit == (
        "no stated limit" if provider.token_rate_limit is None else "{} in {} s".format(*provider.token_rate_limit)
    )


def test_the_error_tree_is_the_packages() -> None:
    """The README draws every exception of the package, and none besides."""
    drawn = next(text for language, text in BLOCKS if not language)

    assert set(re.findall(r"\b\w+Error\b", drawn)) - {"ValueError"} == set(exceptions.__all__)


def test_the_fifth_gateway_is_a_declaration_of_under_40_lines() -> None:
    """The example of a custom gateway is short, and is a class with nothing but a `Provider`."""
    (code,) = (code for code in EXAMPLES if "class FifthAuth" in code)
    (declaration,) = (node for node in ast.parse(code).body if isinstance(node, ast.ClassDef))

    assert len(code.splitlines()) < 40
    assert [type(node) for node in declaration.body] == [ast.Expr, ast.Assign]
