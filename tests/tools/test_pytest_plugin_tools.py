"""The pytest plugin beside pytest-asyncio, pytest-httpx, respx, freezegun and time-machine, in runs of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.timeout(120)]

ASYNCIO = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
RESET = ASYNCIO + "baas_auth_reset = true\n"

# Nine tests in the common style: five files, each with the provider's mocks, and no thought of tokens that outlive a test.
COMMON_STYLE = {
    "test_accounts": """
        import pytest
        import requests
        import responses
        from baas_auth_plugins import AxiaAuth

        GATEWAY = "https://baas-gtw.axiadigitalsolutions.com"
        TOKEN = GATEWAY + "/v1/authentication/oauth/access-token"

        def accounts():
            auth = AxiaAuth("your-client-id", "your-client-secret")
            return requests.get(GATEWAY + "/v1/accounts", auth=auth, timeout=5).json()

        @responses.activate
        def test_lists_accounts():
            responses.post(TOKEN, json={"access_token": "one", "token_type": "Bearer", "expires_in": 3600})
            responses.get(GATEWAY + "/v1/accounts", json=["a"])
            assert accounts() == ["a"]
            assert responses.calls[1].request.headers["Authorization"] == "Bearer one"

        @responses.activate
        def test_sends_the_token_that_it_gets():
            responses.post(TOKEN, json={"access_token": "two", "token_type": "Bearer", "expires_in": 3600})
            responses.get(GATEWAY + "/v1/accounts", json=[])
            accounts()
            assert responses.calls[1].request.headers["Authorization"] == "Bearer two"
    """,
    "test_credentials": """
        import pytest
        import requests
        import responses
        from baas_auth_plugins import AxiaAuth, InvalidClientError

        GATEWAY = "https://baas-gtw.axiadigitalsolutions.com"
        TOKEN = GATEWAY + "/v1/authentication/oauth/access-token"

        @responses.activate
        def test_wrong_credentials():
            responses.post(TOKEN, status=401, json={"error": "E00101", "message": "Invalid client credentials"})
            with pytest.raises(InvalidClientError):
                AxiaAuth("your-client-id", "your-client-secret").get_token()

        @responses.activate
        def test_right_credentials():
            responses.post(TOKEN, json={"access_token": "three", "token_type": "Bearer", "expires_in": 3600})
            assert AxiaAuth("your-client-id", "your-client-secret").get_token().access_token == "three"
    """,
    "test_charges": """
        import httpx
        import respx
        from baas_auth_plugins import NTXPayAuth

        def charge():
            auth = NTXPayAuth("your-client-id", "your-client-secret")
            with httpx.Client(auth=auth, base_url="https://api.ntxpay.com") as client:
                return client.get("/cob/1")

        def test_charge(respx_mock):
            respx_mock.post("https://api.ntxpay.com/oauth/token").respond(
                json={"access_token": "four", "token_type": "Bearer", "expires_in": 3600})
            api = respx_mock.get("https://api.ntxpay.com/cob/1").respond(json={"txid": "1"})
            assert charge().json() == {"txid": "1"}
            assert api.calls.last.request.headers["Authorization"] == "Bearer four"

        def test_charge_that_is_unknown(respx_mock):
            respx_mock.post("https://api.ntxpay.com/oauth/token").respond(
                json={"access_token": "five", "token_type": "Bearer", "expires_in": 3600})
            respx_mock.get("https://api.ntxpay.com/cob/1").respond(404)
            assert charge().status_code == 404
    """,
    "test_pix": """
        import httpx
        import pytest
        from baas_auth_plugins import BS2Auth

        TOKEN = {"access_token": "six", "token_type": "Bearer", "expires_in": 300, "scope": "pix.read"}

        @pytest.fixture
        async def client():
            async with httpx.AsyncClient(auth=BS2Auth("your-client-id", "your-client-secret", scope="pix.read")) as client:
                yield client

        async def test_pix(client, httpx_mock):
            httpx_mock.add_response(url="https://api.bs2.com/auth/oauth/v2/token", json=TOKEN)
            httpx_mock.add_response(url="https://api.bs2.com/pix/1", json={"valor": "1.00"})
            assert (await client.get("https://api.bs2.com/pix/1")).json() == {"valor": "1.00"}

        async def test_token_request(client, httpx_mock):
            httpx_mock.add_response(url="https://api.bs2.com/auth/oauth/v2/token", json=TOKEN)
            httpx_mock.add_response(url="https://api.bs2.com/pix/1", json={})
            await client.get("https://api.bs2.com/pix/1")
            assert httpx_mock.get_requests()[0].method == "POST"
    """,
    "test_refunds": """
        import pytest
        import requests
        import responses
        from baas_auth_plugins import AvistaAuth, RateLimitError

        def test_rate_limit():
            with responses.RequestsMock() as mock:
                mock.post("https://api.avista.global/oauth/token", status=429, headers={"Retry-After": "200"})
                with pytest.raises(RateLimitError):
                    AvistaAuth("your-client-id", "your-client-secret").get_token()
    """,
}

AFTER_THE_RATE_LIMIT = """
    import responses
    from baas_auth_plugins import AvistaAuth, testing

    def test_refund():
        with responses.RequestsMock() as mock:
            testing.stub_token(mock, AvistaAuth)
            AvistaAuth("your-client-id", "your-client-secret").get_token()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project, whose runs are not part of this one."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_", "BAAS_", "BS2_", "AVISTA_", "NTXPAY_", "COV_")):
            monkeypatch.delenv(name)
    return pytester


def run(project: pytest.Pytester, *options: str) -> dict[str, int]:
    result = project.runpytest_subprocess("-p", "no:cacheprovider", *options)
    return {name: count for name, count in result.parseoutcomes().items() if name != "warnings"}


def test_the_nine_tests_fail_without_a_reset(project: pytest.Pytester) -> None:
    """In the common style tokens, refusals and limits of one test reach the next: most of nine tests fail."""
    project.makeini(ASYNCIO)
    project.makepyfile(**COMMON_STYLE)
    outcomes = run(project)
    assert outcomes["passed"] <= 6
    assert outcomes["failed"] >= 3


@pytest.mark.parametrize(
    "options", [(), ("-n", "2"), ("-p", "no:randomly", "--import-mode=importlib")], ids=["alone", "xdist", "importlib"]
)
def test_the_nine_tests_pass_with_one_line(project: pytest.Pytester, options: tuple[str, ...]) -> None:
    """With `baas_auth_reset = true` in pytest.ini all nine pass, as they are."""
    project.makeini(RESET)
    project.makepyfile(**COMMON_STYLE)
    assert run(project, *options) == {"passed": 9}


def test_a_rate_limit_does_not_reach_the_next_test(project: pytest.Pytester) -> None:
    """A 429 with a long Retry-After holds up no test after it."""
    project.makeini(RESET)
    project.makepyfile(test_1=COMMON_STYLE["test_refunds"], test_2=AFTER_THE_RATE_LIMIT)
    assert run(project) == {"passed": 2}


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_pytest_asyncio(project: pytest.Pytester, mode: str) -> None:
    """Both fixtures work in pytest-asyncio's tests, in either mode, with a client of a wider loop as well."""
    project.makeini(RESET)
    project.makepyfile(
        """
        import os
        import ssl

        import httpx
        import pytest
        import pytest_asyncio
        from baas_auth_plugins import AxiaAuth

        pytestmark = pytest.mark.asyncio(loop_scope="session")

        @pytest_asyncio.fixture(loop_scope="session", scope="session")
        async def client():
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # quicker than the real CA file
            async with httpx.AsyncClient(verify=tls) as client:
                yield client

        @pytest.mark.parametrize("number", range(3))
        async def test_one(client, baas_sandbox, baas_auth_reset, number):
            auth = AxiaAuth.from_env()
            assert (await client.get(os.environ["BAAS_BASE_URL"] + "/v1/a", auth=auth)).status_code == 200
            baas_auth_reset()
            assert (await client.get(os.environ["BAAS_BASE_URL"] + "/v1/a", auth=auth)).status_code == 200
            assert baas_sandbox.count("token") == 2
        """
    )
    assert run(project, "--asyncio-mode", mode) == {"passed": 3}


def test_freezegun_and_time_machine(project: pytest.Pytester) -> None:
    """In a test that freezes and moves time the sandbox's clock moves along: tokens expire when the test says so."""
    project.makeini(RESET)
    project.makepyfile(
        """
        import os

        import freezegun
        import pytest
        import requests
        import time_machine
        from baas_auth_plugins import AxiaAuth, BS2Auth

        def check(sandbox, move):
            auth, url = AxiaAuth.from_env(), os.environ["BAAS_BASE_URL"] + "/v1/a"
            for seconds, tokens in ((0, 1), (3200, 1), (200, 2), (4000, 3)):
                move(seconds)
                assert requests.get(url, auth=auth, timeout=5).status_code == 200
                assert sandbox.count("token") == tokens
            move(3601)
            stale = sandbox.count("api")
            assert sandbox.tokens == []

        @pytest.mark.parametrize("year", [2012, 2096])
        def test_freezegun(baas_sandbox, year):
            with freezegun.freeze_time(f"{year}-01-01") as clock:
                check(baas_sandbox, clock.tick)

        @pytest.mark.parametrize("year", [2012, 2096])
        def test_time_machine(baas_sandbox, year):
            with time_machine.travel(f"{year}-01-01T00:00Z", tick=False) as clock:
                check(baas_sandbox, clock.shift)

        @freezegun.freeze_time("2012-01-01")
        def test_a_decorated_test(baas_sandbox):
            assert BS2Auth.from_env().get_token().issued_at == pytest.approx(1325376000)

        def test_after_them(baas_sandbox):
            assert BS2Auth.from_env().get_token().issued_at > 1325376000 + 3600
        """
    )
    assert run(project) == {"passed": 6}


def test_freezegun_with_a_stub(project: pytest.Pytester) -> None:
    """A stub issues tokens by the frozen clock, and what a frozen test leaves is forgotten."""
    project.makeini(RESET)
    project.makepyfile(
        """
        import freezegun
        import httpx
        import pytest
        from baas_auth_plugins import AxiaAuth, RateLimitError, testing

        API = "https://baas-gtw.axiadigitalsolutions.com/v1/a"
        AUTH = AxiaAuth("your-client-id", "your-client-secret")

        @pytest.mark.parametrize("day", ["2012-03-16", "2096-01-01"])
        def test_frozen(httpx_mock, day):
            stub = testing.stub_token(httpx_mock, AxiaAuth)
            httpx_mock.add_response(url=API, is_reusable=True)
            with freezegun.freeze_time(day) as clock:
                httpx.get(API, auth=AUTH)
                clock.tick(3500)
                httpx.get(API, auth=AUTH)
            assert stub.requests == 2

        def test_limited(httpx_mock):
            testing.stub_token(httpx_mock, AxiaAuth, status=429, retry_after=200)
            with freezegun.freeze_time("2096-01-01"), pytest.raises(RateLimitError):
                httpx.get(API, auth=AUTH)

        def test_not_frozen(httpx_mock):
            testing.stub_token(httpx_mock, AxiaAuth)
            httpx_mock.add_response(url=API)
            assert httpx.get(API, auth=AUTH).status_code == 200
        """
    )
    assert run(project) == {"passed": 4}


def test_the_examples_of_the_page_run(project: pytest.Pytester) -> None:
    """Every example of docs/how-to/testing.md passes as it stands, with the page's own pytest.ini."""
    page = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "testing.md").read_text()
    (ini,) = re.findall(r"^```ini\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    project.makeini(ini)
    project.makepyfile(**{f"test_{number}": code for number, code in enumerate(examples)})
    assert run(project, "-p", "no:asyncio") == {"passed": 6}
