"""The pytest plugin `baas_auth_pytest`, in runs of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.timeout(120)]

RESET = "[pytest]\nbaas_auth_reset = true\n"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """A user's project, whose runs are not part of this one."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_", "BAAS_", "BS2_", "AVISTA_", "NTXPAY_", "COV_")):
            monkeypatch.delenv(name)
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error", *options)


# -- what it costs


@pytest.mark.parametrize("ini", ["[pytest]\n", RESET], ids=["unused", "reset for all tests"])
def test_a_run_that_does_not_use_it_imports_nothing(project: pytest.Pytester, ini: str) -> None:
    """The plugin alone imports no module of the package, with the ini option, too."""
    project.makeini(ini)
    project.makepyfile(
        """
        import sys

        def test_nothing_is_imported():
            assert "baas_auth_pytest" in sys.modules
            assert not [name for name in sys.modules if name.partition(".")[0] in ("baas_auth_plugins", "authlib")]
        """
    )
    run(project).assert_outcomes(passed=1)


def test_it_explains_itself(project: pytest.Pytester) -> None:
    """`pytest --fixtures` and `pytest --help` show the fixtures and the option with a sentence each."""
    shown = run(project, "--fixtures").stdout.str()
    assert "baas_sandbox" in shown
    assert "Run a sandbox for this test alone" in shown
    assert "baas_auth_reset" in shown
    assert "baas_auth_reset (bool):" in run(project, "--help").stdout.str()


# -- baas_sandbox


SANDBOX = """
    import os

    import pytest
    import requests

    from baas_auth_plugins import PROVIDERS

    @pytest.mark.parametrize("auth_class", PROVIDERS)
    def test_from_env_works(baas_sandbox, auth_class):
        auth = auth_class.from_env()
        url = os.environ[auth_class.provider.env_prefix + "_BASE_URL"]
        path = {"axia": "/v1/accounts", "bs2": "/pix/direto/a"}.get(auth_class.provider.name, "/cob/a")
        assert requests.get(url + path, auth=auth, timeout=10).json()["provider"] == auth_class.provider.name
        assert baas_sandbox.count("token", auth_class.provider.name) == 1
"""


def test_from_env_works_for_each_provider(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `baas_sandbox` every class's `from_env()` uses the sandbox, whatever the developer's own variables say."""
    monkeypatch.setenv("BAAS_SCOPE", "a scope that no sandbox grants")
    monkeypatch.setenv("BS2_ENVIRONMENT", "nowhere")
    project.makepyfile(SANDBOX)
    run(project).assert_outcomes(passed=4)


def test_each_test_has_a_sandbox_of_its_own(project: pytest.Pytester) -> None:
    """Requests, tokens and variables of one test are gone in the next, and the variables after the last."""
    project.makepyfile(
        """
        import os

        import pytest
        from baas_auth_plugins import BS2Auth

        seen = []

        @pytest.mark.parametrize("number", range(12))
        def test_one(baas_sandbox, number):  # 12 token requests, of which BS2 allows 10 in 60 s
            assert baas_sandbox.requests == []
            assert BS2Auth.from_env().get_token().access_token not in seen
            seen.append(BS2Auth.from_env().get_token().access_token)
            assert baas_sandbox.count("token") == 1

        def test_after():
            assert "BS2_CLIENT_ID" not in os.environ
        """
    )
    run(project).assert_outcomes(passed=13)


def test_it_can_be_arranged_before_and_within_a_test(project: pytest.Pytester) -> None:
    """A fixture of the project can build on it, and a test can inject faults."""
    project.makepyfile(
        """
        import pytest
        from baas_auth_plugins import AxiaAuth, InvalidClientError
        from baas_auth_plugins.sandbox import Fault

        @pytest.fixture
        def auth(baas_sandbox):
            return AxiaAuth.from_env(leeway=10)

        def test_refused(auth, baas_sandbox):
            baas_sandbox.inject(Fault("status", status=401))
            with pytest.raises(InvalidClientError):
                auth.get_token()

        def test_not_refused(auth):
            assert auth.get_token().expires_in == 3600
        """
    )
    run(project).assert_outcomes(passed=2)


# -- baas_auth_reset


TWO_TESTS = """
    import responses
    from baas_auth_plugins import AxiaAuth, testing

    AUTH = AxiaAuth("your-client-id", "your-client-secret")

    @responses.activate
    def test_one({fixture}):
        stub = testing.stub_token(responses, AxiaAuth)
        AUTH.get_token()
        assert stub.requests == 1

    @responses.activate
    def test_two({fixture}):
        stub = testing.stub_token(responses, AxiaAuth)
        AUTH.get_token()
        assert stub.requests == 1
"""


def test_without_a_reset_a_token_outlives_its_test(project: pytest.Pytester) -> None:
    """This is the problem: the second test uses the first one's token."""
    project.makepyfile(TWO_TESTS.format(fixture=""))
    run(project).assert_outcomes(passed=1, failed=1)


def test_the_fixture_resets_one_test(project: pytest.Pytester) -> None:
    """`baas_auth_reset` as an argument is enough for a test."""
    project.makepyfile(TWO_TESTS.format(fixture="baas_auth_reset"))
    run(project).assert_outcomes(passed=2)


def test_the_fixture_is_a_function(project: pytest.Pytester) -> None:
    """Its value resets within a test."""
    project.makepyfile(
        """
        from baas_auth_plugins import AxiaAuth

        def test_two_tokens(baas_sandbox, baas_auth_reset):
            auth = AxiaAuth.from_env()
            auth.get_token()
            baas_auth_reset()
            auth.get_token()
            assert baas_sandbox.count("token") == 2
        """
    )
    run(project).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "options", [(), ("-n", "2"), ("-n", "2", "--dist", "loadfile")], ids=["alone", "xdist", "loadfile"]
)
def test_the_ini_option_resets_all_tests(project: pytest.Pytester, options: tuple[str, ...]) -> None:
    """One line in pytest.ini is enough for all tests, under pytest-xdist as well."""
    project.makeini(RESET)
    project.makepyfile(test_a=TWO_TESTS.format(fixture=""), test_b=TWO_TESTS.format(fixture=""), test_c=SANDBOX)
    run(project, *options).assert_outcomes(passed=8)


def test_the_ini_option_in_pyproject(project: pytest.Pytester) -> None:
    """pyproject.toml works as well, and so do unittest's test cases and doctests."""
    project.makepyprojecttoml("[tool.pytest.ini_options]\nbaas_auth_reset = true\n")
    project.makepyfile(
        """
        import unittest
        import responses
        from baas_auth_plugins import AxiaAuth, testing

        AUTH = AxiaAuth("your-client-id", "your-client-secret")

        def call():
            '''
            >>> call()
            1
            '''
            with responses.RequestsMock() as mock:
                stub = testing.stub_token(mock, AxiaAuth)
                AUTH.get_token()
            return stub.requests

        class TestCase(unittest.TestCase):
            def test_one(self):
                self.assertEqual(call(), 1)

            def test_two(self):
                self.assertEqual(call(), 1)
        """
    )
    run(project, "--doctest-modules").assert_outcomes(passed=3)


def test_subscribers_of_a_session_stay(project: pytest.Pytester) -> None:
    """A session-wide subscriber hears the events of all tests."""
    project.makeini(RESET)
    project.makepyfile(
        """
        import pytest
        from baas_auth_plugins import AxiaAuth, events

        @pytest.fixture(scope="session")
        def heard():
            heard = []
            unsubscribe = events.subscribe(heard.append)
            yield heard
            unsubscribe()

        @pytest.mark.parametrize("number", [1, 2])
        def test_one(heard, baas_sandbox, number):
            AxiaAuth.from_env().get_token()
            assert len(heard) == number
        """
    )
    run(project).assert_outcomes(passed=2)


def test_anyio(project: pytest.Pytester) -> None:
    """Async tests of anyio's plugin use both fixtures, in asyncio and trio."""
    project.makeini(RESET)
    project.makepyfile(
        """
        import os
        import ssl

        import httpx
        import pytest
        from baas_auth_plugins import BS2Auth

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        async def client(baas_sandbox):
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # quicker than the real CA file
            async with httpx.AsyncClient(auth=BS2Auth.from_env(), base_url=os.environ["BS2_BASE_URL"], verify=tls) as client:
                yield client

        @pytest.mark.parametrize("number", range(6))
        async def test_one(client, baas_sandbox, number):
            assert (await client.get("/pix/direto/a")).status_code == 200
            assert baas_sandbox.count("token") == 1
        """
    )
    run(project).assert_outcomes(passed=12)
