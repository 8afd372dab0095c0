"""The pytest plugin of baas-auth-plugins: fixtures `baas_sandbox` and `baas_auth_reset`, ini option `baas_auth_reset`.

It lies outside the package, and imports it where a test uses it. So other runs import nothing of the package.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from baas_auth_plugins.sandbox import Sandbox

__all__ = ["baas_auth_reset", "baas_sandbox"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option."""
    parser.addini("baas_auth_reset", "forget all tokens before and after each test", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Let every test use `baas_auth_reset`, if the ini option says so."""
    if config.getini("baas_auth_reset"):
        config.pluginmanager.register(_ResetForAllTests(), "baas-auth-reset")


class _ResetForAllTests:
    """A plugin with the one fixture that is autouse."""

    @pytest.fixture(autouse=True)
    def _baas_auth_reset_for_all(self, baas_auth_reset: object) -> None:
        """Use `baas_auth_reset`."""


@pytest.fixture
def baas_auth_reset() -> Iterator[Callable[[], None]]:
    """Forget all tokens, refusals, pauses and rate limits before and after the test.

    The value is the function that does so, for use within the test.
    """
    _reset()
    yield _reset
    _reset()


def _reset() -> None:
    if "baas_auth_plugins" in sys.modules:  # else there is nothing to forget
        from baas_auth_plugins import testing

        testing.reset()


@pytest.fixture
def baas_sandbox(baas_auth_reset: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Run a sandbox for this test alone, with which ``from_env()`` of every provider's class works."""
    from baas_auth_plugins import PROVIDERS
    from baas_auth_plugins.sandbox import Sandbox

    with Sandbox(clock=lambda: time.time()) as sandbox:  # noqa: PLW0108  # a test may freeze time later
        for auth_class in PROVIDERS:
            prefix = auth_class.provider.env_prefix
            for name in ("SCOPE", "ENVIRONMENT"):
                monkeypatch.delenv(f"{prefix}_{name}", raising=False)  # a developer's own
            for name, value in sandbox.environment(auth_class).items():
                monkeypatch.setenv(name, value)
        yield sandbox
