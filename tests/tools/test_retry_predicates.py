"""tenacity and stamina: retry predicates of users' code see an outage of the token endpoint as transient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
from conftest import CLIENTS, Client, FakeClock, api_url, make

from baas_auth_plugins import AxiaAuth, InvalidClientError
from baas_auth_plugins.sandbox import Fault, Sandbox

tenacity = pytest.importorskip("tenacity")
stamina = pytest.importorskip("stamina")

pytestmark = pytest.mark.timeout(60)

SYNC = pytest.mark.parametrize("client", CLIENTS[:3], ids=lambda client: client.name)


def transient(client: Client) -> type[Exception]:
    kind: type[Exception] = requests.ConnectionError if client.module is requests else httpx.TransportError
    return kind


@SYNC
def test_tenacity_retries_an_outage(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A call under tenacity that retries on the client's network errors survives an outage of the token endpoint."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=503, times=4))

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(transient(client)),
        wait=tenacity.wait_fixed(6),
        stop=tenacity.stop_after_attempt(3),
        sleep=clock.advance,
    )
    def call() -> int:
        return client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status

    assert call() == 200
    assert sandbox.count("token") == 5


@SYNC
def test_tenacity_does_not_retry_a_refusal(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A wrong secret is not transient: the predicate lets it through at once."""
    auth = make(AxiaAuth, sandbox, client_secret="wrong-secret")
    attempts: list[int] = []

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(transient(client)), stop=tenacity.stop_after_attempt(3), reraise=True
    )
    def call() -> Any:
        attempts.append(1)
        return client.call(auth, "GET", api_url(AxiaAuth, sandbox))

    with pytest.raises(InvalidClientError):
        call()
    assert attempts == [1]


@pytest.fixture
def testing() -> Iterator[None]:
    """Have stamina retry without a wait."""
    with stamina.set_testing(True, attempts=3):
        yield


@SYNC
@pytest.mark.usefixtures("testing")
def test_stamina_retries_an_outage(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """The same with stamina, whose attempts see the error from the cache until its pause is over."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=503, times=4))
    attempts: list[int] = []

    @stamina.retry(on=transient(client), attempts=3)
    def call() -> int:
        attempts.append(1)
        if len(attempts) > 1:
            clock.advance(6)
        return client.call(auth, "GET", api_url(AxiaAuth, sandbox)).status

    assert call() == 200
    assert len(attempts) == 2
