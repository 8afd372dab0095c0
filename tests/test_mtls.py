"""Mutual TLS: the certificate of `session=` serves every client's token requests, and a missing one is named."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import requests
from conftest import Auth, Client, FakeClock
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from cryptography.x509 import load_pem_x509_certificate
from requests.adapters import HTTPAdapter

from baas_auth_plugins import (
    AxiaAuth,
    MemoryTokenCache,
    OAuth2ClientCredentialsAuth,
    Provider,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

HOW_TO = (Path(__file__).parent.parent / "docs" / "how-to" / "mtls.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", HOW_TO, re.DOTALL | re.MULTILINE)
FIVE_YEARS = 5 * 365 * 86_400  # later than urllib3 believes the fake clock to be
MISSING = "The token request had no client certificate"


class CertificateAuth(OAuth2ClientCredentialsAuth):
    """A gateway that knows the client by its certificate (RFC 8705), as Sicoob and Cora do."""

    provider = Provider(
        name="certificate",
        env_prefix="CERTIFICATE",
        environments={},
        token_endpoint="/token",
        token_endpoint_auth_method="none",
    )


@pytest.fixture(params=[AxiaAuth, CertificateAuth], ids=["secret", "none"])
def cls(request: pytest.FixtureRequest) -> Auth:
    """A gateway with a client secret, and one without."""
    found: Auth = request.param
    return found


@pytest.fixture
def mutual(clock: FakeClock, new_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A sandbox that requires a client certificate; waiting takes no time."""
    clock.step_wall(FIVE_YEARS)
    return new_sandbox(tls="mutual")


class Counter(HTTPAdapter):
    """Counts what goes over a session."""

    sent = 0

    def send(self, *args: Any, **options: Any) -> requests.Response:
        type(self).sent += 1
        return super().send(*args, **options)


@contextmanager
def a_session(sandbox: Sandbox, *, cert: Any = None) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.verify, session.cert = sandbox.ca_file, cert
        yield session


def an_auth(cls: Auth, sandbox: Sandbox, **options: Any) -> OAuth2ClientCredentialsAuth:
    secret = () if cls is CertificateAuth else (sandbox.client_secret,)
    options = {"base_url": sandbox.url_for(cls), "cache": MemoryTokenCache()} | options
    return cls(sandbox.client_id, *secret, **options)


def context_of(sandbox: Sandbox, *, cert: tuple[str, str] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=sandbox.ca_file)
    if cert is not None:
        context.load_cert_chain(*cert)
    return context


# -- with a certificate


def test_the_sessions_certificate_serves_every_client(client: Client, cls: Auth, mutual: Sandbox) -> None:
    """With `session=`, token requests go over that session, whichever client makes the API call."""
    counter = type("OwnCounter", (Counter,), {})()
    with a_session(mutual, cert=mutual.client_cert) as session:
        session.mount("https://", counter)
        auth = an_auth(cls, mutual, session=session)
        url = f"{mutual.url_for(cls)}/payments"
        if client.module is requests:
            with a_session(mutual, cert=mutual.client_cert) as caller:
                assert caller.get(url, auth=auth, timeout=10).status_code == 200
        else:
            with client.open(auth, verify=context_of(mutual, cert=mutual.client_cert)) as send:
                assert send("GET", url).status == 200
    assert [record.kind for record in mutual.requests] == ["token", "api"]
    assert counter.sent == 1


def test_one_session_serves_calls_and_tokens(cls: Auth, mutual: Sandbox) -> None:
    """The session whose `auth` it is may be the `session=` as well."""
    with a_session(mutual, cert=mutual.client_cert) as session:
        session.auth = an_auth(cls, mutual, session=session)
        assert session.get(f"{mutual.url_for(cls)}/payments", timeout=10).status_code == 200
    assert [record.kind for record in mutual.requests] == ["token", "api"]


def test_an_httpx_clients_own_certificate_serves_its_token_requests(client: Client, cls: Auth, mutual: Sandbox) -> None:
    """Without `session=`, the SSL context of an httpx client is used for its token requests."""
    if client.module is requests:
        pytest.skip("an auth object does not see the session that makes the call")
    with client.open(an_auth(cls, mutual), verify=context_of(mutual, cert=mutual.client_cert)) as send:
        assert send("GET", f"{mutual.url_for(cls)}/payments").status == 200
    assert [record.kind for record in mutual.requests] == ["token", "api"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_get_token_goes_over_the_session(backend: str, cls: Auth, mutual: Sandbox) -> None:
    """`get_token` and `aget_token` have the session's certificate, too."""
    with a_session(mutual, cert=mutual.client_cert) as session:
        auth = an_auth(cls, mutual, session=session)
        token = anyio.run(auth.aget_token, backend=backend)
        assert auth.get_token() is token


# -- without


def test_a_missing_certificate_is_named(client: Client, cls: Auth, mutual: Sandbox) -> None:
    """The error says that the token request had no client certificate, and names `session=`."""
    context = context_of(mutual, cert=mutual.client_cert)
    options = {} if client.module is requests else {"verify": context}
    with a_session(mutual) as session, client.open(an_auth(cls, mutual, session=session), **options) as send:
        with pytest.raises(TokenEndpointUnavailableError, match="session=") as caught:
            send("GET", f"{mutual.url_for(cls)}/payments")
    assert MISSING in str(caught.value)
    assert mutual.requests == []


def test_the_certificate_of_the_calling_session_is_not_enough(
    cls: Auth, mutual: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller whose session has the certificate learns that `session=` must have it, too."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", mutual.ca_file)
    with a_session(mutual, cert=mutual.client_cert) as caller:
        with pytest.raises(TokenEndpointUnavailableError, match=MISSING):
            caller.get(f"{mutual.url_for(cls)}/payments", auth=an_auth(cls, mutual), timeout=10)


def test_httpx_errors_have_a_note(client: Client, cls: Auth, mutual: Sandbox) -> None:
    """The error of a token request through an httpx client stays the client's own; a note names `session=`."""
    if client.module is requests:
        pytest.skip("for httpx")
    with client.open(an_auth(cls, mutual), verify=context_of(mutual, cert=None)) as send:
        with pytest.raises((client.error, ssl.SSLError)) as caught:  # asyncio lets OpenSSL's own error through
            send("GET", f"{mutual.url_for(cls)}/payments")
    assert not isinstance(caught.value, TokenEndpointError)
    (note,) = caught.value.__notes__
    assert note.startswith(f"{cls.provider.name}: If the gateway requires a client certificate")
    assert "session=" in note


def test_another_authoritys_certificate_is_named(
    cls: Auth, mutual: Sandbox, new_sandbox: Callable[..., Sandbox]
) -> None:
    """Where the gateway does not accept the certificate, the error does not say that there was none."""
    with a_session(mutual, cert=new_sandbox(tls=True).client_cert) as session:
        with pytest.raises(TokenEndpointUnavailableError) as caught:
            an_auth(cls, mutual, session=session).get_token()
    assert "Check cert of session=" in str(caught.value)
    assert MISSING not in str(caught.value)
    assert mutual.requests == []


def test_a_missing_file_is_named_at_once(cls: Auth, mutual: Sandbox, clock: FakeClock) -> None:
    """A path of `cert` without a file is in the error; nothing is retried."""
    with a_session(mutual, cert="no-such-certificate.pem") as session:
        with pytest.raises(TokenEndpointUnavailableError, match=r"no-such-certificate\.pem.+session=") as caught:
            an_auth(cls, mutual, session=session).get_token()
    assert MISSING not in str(caught.value)
    assert clock.slept == []


@pytest.mark.parametrize("kind", ["p12", "encrypted", "without its key", "of another key"])
def test_a_file_that_cannot_be_used_is_named_at_once(
    kind: str, cls: Auth, mutual: Sandbox, new_sandbox: Callable[..., Sandbox], clock: FakeClock, tmp_path: Path
) -> None:
    """What requests cannot read as a certificate and its key is not retried; the error says what `cert` must be."""
    certificate, key = map(Path, mutual.client_cert)
    private, path = load_pem_private_key(key.read_bytes(), None), tmp_path / "file"
    secret = BestAvailableEncryption(b"passphrase")
    cert: Any = (str(certificate), str(path))
    match kind:
        case "p12":
            content = serialize_key_and_certificates(
                b"client", private, load_pem_x509_certificate(certificate.read_bytes()), None, secret
            )
            cert = str(path)
        case "encrypted":
            content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)
        case "without its key":
            content, cert = certificate.read_bytes(), str(path)
        case _:
            content = Path(new_sandbox(tls=True).client_cert[1]).read_bytes()
    path.write_bytes(content)
    with a_session(mutual, cert=cert) as session:
        with pytest.raises(TokenEndpointUnavailableError, match="Check cert of session=: PEM files") as caught:
            an_auth(cls, mutual, session=session).get_token()
    assert ("the private key is encrypted" in str(caught.value)) == (kind == "encrypted")
    assert clock.slept == []


def test_a_context_of_an_adapter_counts_as_a_certificate(cls: Auth, mutual: Sandbox) -> None:
    """Nobody can see whether an adapter's SSL context has a certificate: the error does not say that it has none."""

    class ContextAdapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options, ssl_context=context_of(mutual, cert=None))

    with a_session(mutual) as session:
        session.mount("https://", ContextAdapter())
        with pytest.raises(TokenEndpointUnavailableError, match="session=") as caught:
            an_auth(cls, mutual, session=session).get_token()
    assert MISSING not in str(caught.value)


def test_an_answer_that_wants_a_certificate_is_named(new_sandbox: Callable[..., Sandbox]) -> None:
    """A server that accepts the connection and answers 400, as nginx does, gets the same advice."""
    page = b"<html><head><title>400 No required SSL certificate was sent</title></head></html>"
    sandbox = new_sandbox()
    auth = an_auth(CertificateAuth, sandbox)
    sandbox.inject(Fault("body", "token", status=400, body=page))
    with pytest.raises(TokenEndpointError, match=r"answered 400 .*client certificate.*session=") as caught:
        auth.get_token()
    assert caught.value.status_code == 400


def test_plain_http_has_no_such_advice(clock: FakeClock, new_sandbox: Callable[..., Sandbox]) -> None:
    """A connection without TLS that is lost says nothing of certificates."""
    sandbox = new_sandbox()
    sandbox.inject(Fault("drop", "token", times=-1))
    with pytest.raises(TokenEndpointUnavailableError) as caught:
        an_auth(AxiaAuth, sandbox).get_token()
    assert "certificate" not in str(caught.value)


def test_the_how_to_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of docs/how-to/mtls.md run, one after the other."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    names: dict[str, Any] = {"__name__": "how_to"}
    try:
        for code in EXAMPLES:
            exec(compile(code, "mtls.md", "exec"), names)  # noqa: S102  # our own page
        assert {record.status for record in names["sandbox"].requests} == {200}
    finally:
        names["session"].close()
        names["sandbox"].close()
    assert len(EXAMPLES) == 6
