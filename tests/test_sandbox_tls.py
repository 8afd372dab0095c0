"""The sandbox serves https with a certificate authority of its own, to clients with a certificate if it shall."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import requests
from sandbox_wire import AXIA

from baas_auth_plugins import AxiaAuth, MemoryTokenCache
from baas_auth_plugins.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(tls=True, hostnames=["sandbox.example", "host.docker.internal:8443"]) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def mutual() -> Iterator[Sandbox]:
    with Sandbox(tls="mutual") as sandbox:
        yield sandbox


def test_clients_trust_the_ca_file(sandbox: Sandbox) -> None:
    """Requests and httpx verify the certificate with ca_file, on each loopback name; without it they refuse it."""
    port = urlsplit(sandbox.url).port
    for name in ("127.0.0.1", "localhost"):
        url = f"https://{name}:{port}{AXIA.target}"
        assert requests.post(url, headers=AXIA.headers, verify=sandbox.ca_file, timeout=10).status_code == 200
        assert httpx.post(url, headers=AXIA.headers, verify=ssl.create_default_context(cafile=sandbox.ca_file))
    with pytest.raises(requests.exceptions.SSLError):
        requests.post(sandbox.url, timeout=10)


def test_environment_names_the_ca_file(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables set, a program needs nothing else, also on an origin of one gateway."""
    for name, value in sandbox.environment("axia").items():
        monkeypatch.setenv(name, value)
    auth = AxiaAuth.from_env(cache=MemoryTokenCache())
    assert requests.get(f"{sandbox.url}/v1/accounts", auth=auth, timeout=10).status_code == 200
    own = AxiaAuth.from_env(cache=MemoryTokenCache(), base_url=sandbox.url_for("axia"))
    assert own.get_token().expires_in > 0


@pytest.mark.parametrize(
    ("name", "fits"), [("sandbox.example", True), ("host.docker.internal", True), ("x.example", False)]
)
def test_certificate_is_for_the_given_names(sandbox: Sandbox, name: str, fits: bool) -> None:
    """A client that reaches the sandbox under a name of hostnames verifies it by that name."""
    context = ssl.create_default_context(cafile=sandbox.ca_file)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    server_in, server_out = outgoing, incoming
    assert sandbox._ssl_context is not None
    server = sandbox._ssl_context.wrap_bio(server_in, server_out, server_side=True)

    def shake() -> None:
        for side in (client, server, client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue

    if fits:
        shake()
        assert client.version() == "TLSv1.3"
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            shake()


def test_mutual_tls_wants_a_client_certificate(mutual: Sandbox) -> None:
    """With the sandbox's client certificate a call works; without one the connection is refused."""
    url = mutual.url + AXIA.target
    with pytest.raises(requests.ConnectionError):
        requests.post(url, headers=AXIA.headers, verify=mutual.ca_file, timeout=10)
    assert mutual.requests == []
    with_certificate = requests.post(
        url, headers=AXIA.headers, verify=mutual.ca_file, cert=mutual.client_cert, timeout=10
    )
    assert with_certificate.status_code == 200
    context = ssl.create_default_context(cafile=mutual.ca_file)
    context.load_cert_chain(*mutual.client_cert)
    assert httpx.post(url, headers=AXIA.headers, verify=context).status_code == 200


def test_certificates_are_private_and_end_with_the_sandbox() -> None:
    """Only this user can read the keys; close deletes them, and a new start has new ones."""
    sandbox = Sandbox(tls=True)
    with pytest.raises(RuntimeError, match="tls=True"):
        _ = sandbox.ca_file
    paths = set()
    for _ in range(2):
        with sandbox:
            path = Path(sandbox.ca_file)
            assert path.parent.stat().st_mode & 0o077 == 0
            assert path.is_file()
        assert not path.exists()
        paths.add(path)
    assert len(paths) == 2
    with Sandbox() as plain, pytest.raises(RuntimeError, match="tls=True"):
        _ = plain.client_cert


def test_tls_and_a_context_exclude_each_other() -> None:
    """Two ways to serve https at once are an error."""
    with pytest.raises(ValueError, match="either tls or ssl_context"):
        Sandbox(tls=True, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
