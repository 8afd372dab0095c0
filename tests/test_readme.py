"""README.md holds: its examples run, its commands are two, and its table is the providers' own data."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator

import pytest
from doc_examples import ROOT, Page, page, run_script

from baas_auth_plugins import PROVIDERS, OAuth2ClientCredentialsAuth, exceptions
from baas_auth_plugins.sandbox import Fault, Sandbox

README = page(ROOT / "README.md")
PORTUGUESE = page(ROOT / "README.pt-BR.md")
EXAMPLES = [block.code for block in README.examples]
COMMANDS = [line for block in README.blocks if block.language == "sh" for line in block.code.splitlines()]
SELF_SERVED = [code for code in EXAMPLES if "Sandbox(" in code]
SERVED = [code for code in EXAMPLES if code not in SELF_SERVED]
ERRORS = next(code for code in EXAMPLES if "except InvalidClientError" in code)
BOTH = pytest.mark.parametrize("readme", [README, PORTUGUESE], ids=lambda readme: readme.name)


def title(code: str) -> str:
    lines = [line for line in code.splitlines() if "auth=" in line or "Auth." in line or line.startswith("class")]
    return re.sub(r"\W+", "-", lines[0]).strip("-")[:48]


@pytest.fixture
def gateways() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize("code", SERVED, ids=title)
def test_each_example_makes_its_calls_with_one_token_request(code: str, gateways: Sandbox) -> None:
    """Run as it stands, an example is silent on stderr, and the gateway answers every request of it with 200."""
    result = run_script(code, gateways)

    assert (result.stderr, result.returncode) == ("", 0)
    assert {request.status for request in gateways.requests} == {200}
    assert gateways.count("token") == 1
    assert gateways.count("api")


@pytest.mark.parametrize("code", SELF_SERVED, ids=title)
def test_an_example_with_a_sandbox_needs_nothing_else(code: str, gateways: Sandbox) -> None:
    """An example that brings its sandbox runs, asserts what it asserts, and calls no gateway."""
    result = run_script(code, gateways)

    assert (result.stderr, result.returncode) == ("", 0)
    assert gateways.requests == []


@BOTH
def test_the_figures_are_those_of_one_run(readme: Page) -> None:
    """The table of peers is made of the results that lie beside it, and of nothing else."""
    summary = runpy.run_path(str(ROOT / "benchmarks" / "summary.py"))["summary"]
    results = json.loads((ROOT / "benchmarks" / "results" / "results.json").read_text(encoding="utf-8"))

    assert summary(results) in README.text
    assert ("<!-- benchmarks -->" in readme.text) == (readme is README)


def test_the_error_example_tells_wrong_credentials_from_the_rest(gateways: Sandbox) -> None:
    """The `except` clauses of the example are taken: the first by wrong credentials, the second by all else."""
    refused = run_script(ERRORS, gateways, BAAS_CLIENT_SECRET="another-secret")
    gateways.inject(Fault("status", "token", status=403))
    failed = run_script(ERRORS, gateways)

    assert refused.stdout == "The gateway does not know these credentials: 401 E00101\n"
    assert failed.stdout.startswith("The call failed: axia: ")
    assert "403" in failed.stdout
    assert refused.returncode == failed.returncode == 0


def test_there_are_exactly_two_set_up_and_run_commands() -> None:
    """A fresh clone needs one command for the demo or one for the tests, and nothing but python3."""
    assert len(COMMANDS) == 2
    for command, end in zip(COMMANDS, (".venv/bin/baas-auth demo", ".venv/bin/python -m pytest"), strict=True):
        set_up, install, go = command.split(" && ")
        assert set_up == "python3 -m venv .venv"
        assert install.startswith(".venv/bin/pip install ")
        assert go == end


def test_nothing_in_it_breaks_on_a_package_index() -> None:
    """README.md becomes the long description, where neither relative links nor relative images work."""
    targets = re.findall(r"\]\((.*?)\)", README.text) + re.findall(r"(?:src|href)=\"(.*?)\"", README.text)

    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


@BOTH
def test_the_pages_that_it_names_exist(readme: Page) -> None:
    """Every file and folder in backticks is there."""
    named = set(re.findall(r"`((?:docs/|benchmarks/)[\w./-]*|[\w.-]+\.md)`", readme.text))

    assert "docs/tutorial.md" in named or "docs/pt-BR/tutorial.md" in named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def table(readme: Page) -> dict[str, list[str]]:
    lines = [line for line in readme.text.splitlines() if line.startswith("| ") and "Auth`" in line]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines]
    return {cells[1].strip("`"): cells for cells in rows}


@BOTH
def test_the_table_lists_every_gateway(readme: Page) -> None:
    """Every class of PROVIDERS has a row in the table, in that order."""
    assert list(table(readme)) == [cls.__name__ for cls in PROVIDERS]


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.provider.name)
def test_the_table_says_what_the_provider_declares(cls: type[OAuth2ClientCredentialsAuth]) -> None:
    """Prefix, origins, token endpoint, scope, lifetime and limit in the table are the provider's."""
    provider = cls.provider
    _, _, prefix, origins, endpoint, method, scope, lifetime, limit = table(README)[cls.__name__]
    declared = provider.token_endpoint_auth_method
    words = {
        ("client_secret_basic", "form"): "Basic and form",
        ("client_secret_basic", "empty"): "Basic, no body",
        ("client_secret_json", "form"): "JSON body",
    }
    name = declared if isinstance(declared, str) else declared.__name__

    assert prefix == f"`{provider.env_prefix}_`"
    assert re.findall(r"`(.*?)`", origins) == list(provider.environments.values())
    assert endpoint == f"`{provider.token_endpoint}`"
    assert method == words[name, provider.token_request_format]
    assert scope == provider.scope
    assert lifetime == f"{provider.default_expires_in} s"
    assert limit == (
        "no stated limit" if provider.token_rate_limit is None else "{} in {} s".format(*provider.token_rate_limit)
    )


@BOTH
def test_the_error_tree_is_the_packages(readme: Page) -> None:
    """The README draws every exception of the package, and none besides."""
    drawn = next(block.code for block in readme.blocks if not block.language)

    assert set(re.findall(r"\b\w+Error\b", drawn)) - {"ValueError"} == set(exceptions.__all__)
