"""responses, requests-mock and pypac."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from conftest import CLIENTS, SECRET, Client
from raw_gateway import RawGateway

from baas_auth_plugins import AxiaAuth, MemoryTokenCache, TokenEndpointUnavailableError

responses = pytest.importorskip("responses")
requests_mock = pytest.importorskip("requests_mock")
pypac = pytest.importorskip("pypac")
from pypac.parser import PACFile  # noqa: E402

pytestmark = pytest.mark.timeout(60)

HOST = "https://baas-gtw.axiadigitalsolutions.com"
TOKEN_URL = HOST + AxiaAuth.provider.token_endpoint


def auth_for(name: str, **parameters: Any) -> AxiaAuth:
    return AxiaAuth(f"requests-tools-{name}", SECRET, **({"cache": MemoryTokenCache()} | parameters))


def test_responses_stands_in_for_the_gateway() -> None:
    """With `responses` a cold call, a 401 and its replay work, and both token requests are recorded."""
    with responses.RequestsMock() as mocked:
        for token in ("one", "two"):
            mocked.post(TOKEN_URL, json={"access_token": token, "token_type": "Bearer", "expires_in": 3600})
        for status in (200, 401, 200):
            mocked.get(HOST + "/a", status=status)
        auth = auth_for("responses")
        assert [requests.get(HOST + "/a", auth=auth, timeout=5).status_code for _ in range(2)] == [200, 200]
        assert [call.request.method for call in mocked.calls] == ["POST", "GET", "GET", "POST", "GET"]


def test_requests_mock_stands_in_for_the_gateway() -> None:
    """So does requests-mock, installed for all sessions."""
    with requests_mock.Mocker() as mocked:
        mocked.post(TOKEN_URL, json={"access_token": "one", "token_type": "Bearer", "expires_in": 3600})
        mocked.get(HOST + "/a", [{"status_code": 401}, {"status_code": 401, "text": "no"}])
        auth = auth_for("requests-mock")
        assert auth.get_token().access_token == "one"
        assert requests.get(HOST + "/a", auth=auth, timeout=5).status_code == 401


def test_an_adapter_of_requests_mock_on_a_session() -> None:
    """An adapter that is mounted on `session=` answers the token requests, of httpx callers as well."""
    with requests.Session() as session:
        adapter = requests_mock.Adapter()
        adapter.register_uri(
            "POST", TOKEN_URL, json={"access_token": "one", "token_type": "Bearer", "expires_in": 3600}
        )
        session.mount("https://", adapter)
        assert auth_for("adapter", session=session).get_token().access_token == "one"
        assert adapter.call_count == 1


def test_a_mocked_network_error_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that a mock raises for the token request is a TokenEndpointUnavailableError with that cause."""
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with responses.RequestsMock() as mocked:
        mocked.post(TOKEN_URL, body=requests.ConnectionError("mocked"))
        with pytest.raises(TokenEndpointUnavailableError) as caught:
            auth_for("mocked-error", max_wait=3).get_token()
    assert isinstance(caught.value.__cause__, requests.ConnectionError)


# -- pypac


@pytest.fixture
def gateway() -> Iterator[RawGateway]:
    with RawGateway() as gateway:
        yield gateway


@pytest.fixture
def proxy(gateway: RawGateway) -> Iterator[RawGateway]:
    with RawGateway() as proxy:
        proxy.valid = gateway.valid
        yield proxy


@pytest.mark.parametrize("client", [CLIENTS[0], CLIENTS[1], CLIENTS[2]], ids=lambda client: client.name)
def test_a_pac_session_sends_token_requests_through_its_proxy(
    client: Client, gateway: RawGateway, proxy: RawGateway
) -> None:
    """A PACSession as `session=` chooses the proxy of token requests, whichever client needs them."""
    address = proxy.url.removeprefix("http://")
    pac = PACFile(f"function FindProxyForURL(url, host) {{ return 'PROXY {address}'; }}")
    gateway.valid.update(f"token-{number}" for number in range(1, 5))
    with pypac.PACSession(pac=pac) as session:
        auth = auth_for(f"pac-{client.name}", base_url=gateway.url, session=session)
        assert client.call(auth, "GET", gateway.url + "/a").status == 200
        auth.invalidate()
        assert auth.get_token().access_token == "token-2"
    assert proxy.count("token") == 2
    assert gateway.count("token") == 0


def test_a_pac_session_that_says_direct_sends_directly(gateway: RawGateway, proxy: RawGateway) -> None:
    """Where the PAC file says DIRECT, no proxy is used."""
    pac = PACFile("function FindProxyForURL(url, host) { return 'DIRECT'; }")
    with pypac.PACSession(pac=pac) as session:
        assert auth_for("direct", base_url=gateway.url, session=session).get_token().access_token == "token-1"
    assert proxy.exchanges == []
