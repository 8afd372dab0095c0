"""`http -A axia ...`: the HTTPie plugins, through the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("httpie")

from baas_auth_plugins import PROVIDERS, AxiaAuth, OAuth2ClientCredentialsAuth
from baas_auth_plugins.sandbox import Sandbox

NAMES = [cls.provider.name for cls in PROVIDERS]

each_provider = pytest.mark.parametrize("cls", PROVIDERS, ids=NAMES)


@pytest.fixture
def cls() -> type[OAuth2ClientCredentialsAuth]:
    """The provider of a test that is not about each of them."""
    return AxiaAuth


@pytest.fixture
def gateways(cls: type[OAuth2ClientCredentialsAuth]) -> Iterator[Sandbox]:
    with Sandbox(providers=[cls.provider]) as sandbox:
        yield sandbox


@pytest.fixture
def variables(gateways: Sandbox, tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has set every provider's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    kept |= {"HTTPIE_CONFIG_DIR": str(tmp_path), "BS2_SCOPE": "cob.read pix.read"}
    for cls in PROVIDERS:
        prefix = cls.provider.env_prefix
        kept[f"{prefix}_CLIENT_ID"] = gateways.client_id
        kept[f"{prefix}_CLIENT_SECRET"] = gateways.client_secret
        kept[f"{prefix}_BASE_URL"] = gateways.url
    return kept


def http(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "httpie", "--ignore-stdin", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@each_provider
def test_credentials_come_from_the_environment(
    cls: type[OAuth2ClientCredentialsAuth], gateways: Sandbox, variables: Mapping[str, str]
) -> None:
    """`http -A PROVIDER URL` requests one token and sends it to the API."""
    done = http("-A", cls.provider.name, "--check-status", f"{gateways.url}/v1/accounts", env=variables)

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)
    assert (gateways.count("token"), gateways.count("api")) == (1, 1)
    assert gateways.requests[-1].headers["authorization"].startswith("Bearer ")


@each_provider
def test_credentials_come_from_the_command_line(
    cls: type[OAuth2ClientCredentialsAuth], gateways: Sandbox, variables: Mapping[str, str]
) -> None:
    """`-a id:secret` is stronger than the variables; the other variables still count."""
    prefix = cls.provider.env_prefix
    other = {**variables, f"{prefix}_CLIENT_ID": "other", f"{prefix}_CLIENT_SECRET": "other"}
    given = f"{gateways.client_id}:{gateways.client_secret}"
    done = http("-A", cls.provider.name, "-a", given, "--check-status", f"{gateways.url}/v1/accounts", env=other)

    assert (done.returncode, done.stderr) == (0, "")
    assert gateways.count("api") == 1


@each_provider
def test_a_missing_variable_is_one_line(
    cls: type[OAuth2ClientCredentialsAuth], gateways: Sandbox, variables: Mapping[str, str]
) -> None:
    """Without credentials HTTPie ends with a line that names the variables, and with no traceback."""
    without = {name: value for name, value in variables.items() if not name.endswith("_CLIENT_SECRET")}
    done = http("-A", cls.provider.name, f"{gateways.url}/v1/accounts", env=without)

    assert done.returncode == 1
    assert done.stderr.startswith("http: error: ")
    assert f"{cls.provider.env_prefix}_CLIENT_SECRET" in done.stderr
    assert "Traceback" not in done.stderr
    assert gateways.requests == []


def test_a_refusal_is_one_error(gateways: Sandbox, variables: Mapping[str, str]) -> None:
    """Wrong credentials are HTTPie's error with the gateway's text, without the secret and without a traceback."""
    wrong = "a-wrong-secret-0123456789"
    done = http("-A", "axia", "-a", f"{gateways.client_id}:{wrong}", f"{gateways.url}/v1/accounts", env=variables)

    assert done.returncode == 1
    assert "InvalidClientError: axia: " in done.stderr
    assert wrong not in done.stderr
    assert "Traceback" not in done.stderr
    assert gateways.count("api") == 0


def test_a_token_goes_to_its_gateway_only(gateways: Sandbox, variables: Mapping[str, str]) -> None:
    """A request to another origin goes out without a token, and a line on stderr says so."""
    with Sandbox() as other:
        done = http("-A", "axia", f"{other.url}/v1/accounts", env=variables)

    assert "authorization" not in other.requests[-1].headers
    assert gateways.url in done.stderr or "base_url" in done.stderr


def test_the_help_lists_the_plugins(variables: Mapping[str, str]) -> None:
    """`http --help` names every provider's plugin."""
    text = http("--help", env=variables).stdout
    for name in NAMES:
        assert f'"{name}": ' in text
