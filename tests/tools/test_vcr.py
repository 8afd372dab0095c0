"""VCR.py, with requests and with httpx: recording and playing, and its own errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CLIENTS, SECRET, Client
from raw_gateway import RawGateway

from baas_auth_plugins import AvistaAuth, AxiaAuth, MemoryTokenCache

vcr = pytest.importorskip("vcr")
from vcr.errors import CannotOverwriteExistingCassetteException  # noqa: E402

pytestmark = pytest.mark.timeout(60)

RECORDED = [client for client in CLIENTS if client.backend != "trio"]
EACH = pytest.mark.parametrize("client", RECORDED, ids=lambda client: client.name)


@pytest.fixture(params=[AxiaAuth, AvistaAuth], ids=lambda c: c.provider.name)
def gateway(request: pytest.FixtureRequest) -> Iterator[RawGateway]:
    with RawGateway(request.param) as gateway:
        yield gateway


def call(client: Client, gateway: RawGateway) -> tuple[int, bytes]:
    auth = gateway.auth_class("vcr-client", SECRET, base_url=gateway.url, cache=MemoryTokenCache())
    answer = client.call(auth, "GET", gateway.url + "/a")
    return answer.status, answer.content


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@EACH
def test_a_cassette_is_recorded_and_played(client: Client, gateway: RawGateway, tmp_path: Path) -> None:
    """A cold call is recorded, token request included, and played without a gateway."""
    options: dict[str, Any] = {"filter_headers": ["authorization"], "record_mode": "once"}
    with vcr.use_cassette(str(tmp_path / "tape.yaml"), **options) as recorded:
        assert call(client, gateway) == (200, b"ok")
    assert len(recorded) == 2
    assert gateway.count("token") == 1
    with vcr.use_cassette(str(tmp_path / "tape.yaml"), **options) as played:
        assert call(client, gateway) == (200, b"ok")
    assert played.play_count == 2
    assert gateway.count("token") == 1


@EACH
def test_vcrs_own_error_is_not_hidden(client: Client, gateway: RawGateway, tmp_path: Path) -> None:
    """A request that the cassette does not have fails with VCR.py's own error, or has it as its cause."""
    with vcr.use_cassette(str(tmp_path / "empty.yaml"), record_mode="none"), pytest.raises(Exception) as caught:  # noqa: PT011
        call(client, gateway)
    assert any(isinstance(error, CannotOverwriteExistingCassetteException) for error in chain(caught.value))
    assert not any(isinstance(error, AttributeError | TypeError) for error in chain(caught.value))
    assert gateway.exchanges == []


def test_get_token_is_recorded(gateway: RawGateway, tmp_path: Path) -> None:
    """So is a token request of the private session, whose answer is read in pieces."""
    for _ in range(2):
        with vcr.use_cassette(str(tmp_path / "token.yaml")):
            auth = gateway.auth_class("vcr-get", SECRET, base_url=gateway.url, cache=MemoryTokenCache())
            assert auth.get_token().access_token == "token-1"
    assert gateway.count("token") == 1


@EACH
def test_a_401_is_recorded_and_healed(client: Client, gateway: RawGateway, tmp_path: Path) -> None:
    """The 401, its renewal and the replay are played as they were recorded."""
    for play in (False, True):
        with vcr.use_cassette(
            str(tmp_path / "healed.yaml"), record_mode="none" if play else "once", allow_playback_repeats=False
        ):
            auth = gateway.auth_class("vcr-401", SECRET, base_url=gateway.url, cache=MemoryTokenCache())
            with client.open(auth) as send:
                assert send("GET", gateway.url + "/a").status == 200
                gateway.valid.clear()
                assert send("GET", gateway.url + "/a").status == 200
    assert gateway.count("token") == 2
