"""What httpx keeps of a token request: nothing that holds the secret, the Basic header or the token."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
import requests
from conftest import CLIENTS, Auth, Client, FakeClock, api_url, make

from baas_auth_plugins import AvistaAuth, AxiaAuth, BS2Auth, TokenEndpointError
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

HTTPX = [client for client in CLIENTS if client.module is not requests]
each_httpx = pytest.mark.parametrize("client", HTTPX, ids=lambda client: client.name)


def kept(message: Any) -> Iterator[bytes]:
    """Return all bytes that a request or a response of httpx holds, and those of the messages that it leads to."""
    if message is None:
        return
    yield str(message.url).encode()
    for name, value in message.headers.multi_items():
        yield f"{name}: {value}".encode()
    yield repr(message).encode()
    yield repr(vars(message)).encode()
    for holder in (message, getattr(message, "stream", None)):
        for value in list(getattr(holder, "__dict__", {}).values()):
            if isinstance(value, bytes | bytearray):
                yield bytes(value)
            elif isinstance(value, str):
                yield value.encode()
    try:
        yield message.content
    except Exception as error:
        yield repr(error).encode()
    for inner in getattr(message, "history", ()):
        yield from kept(inner)
    if hasattr(message, "history"):
        yield from kept(message.request)


def secrets_of(sandbox: Sandbox, *tokens: str) -> list[bytes]:
    """Return what must not be found."""
    pair = f"{sandbox.client_id}:{sandbox.client_secret}".encode()
    return [
        sandbox.client_secret.encode(),
        base64.b64encode(pair),
        base64.b64encode(sandbox.client_secret.encode()),
        *(token.encode() for token in tokens),
    ]


def found(messages: Any, secrets: list[bytes]) -> list[bytes]:
    return [secret for message in messages for piece in kept(message) for secret in secrets if secret in piece]


@each_httpx
def test_history_of_a_cold_call_holds_no_secret(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """After a cold call nothing in `response.history` holds the secret, the Basic header or the token."""
    auth = make(auth_class, sandbox)
    response = client.call(auth, "GET", api_url(auth_class, sandbox)).raw
    secrets = secrets_of(sandbox, auth.get_token().access_token)
    assert found(response.history, secrets) == []
    assert found([response], secrets[:3]) == []


@each_httpx
def test_history_of_a_replay_holds_no_secret(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """The same after a 401: the token request of the replay leaves nothing."""
    auth = make(auth_class, sandbox)
    with client.open(auth) as send:
        send("GET", api_url(auth_class, sandbox))
        sandbox.revoke_all()
        response = send("GET", api_url(auth_class, sandbox)).raw
    assert response.status_code == 200
    assert found([response, *response.history], secrets_of(sandbox)) == []


@each_httpx
def test_history_of_retries_holds_no_secret(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """Each of several attempts leaves nothing, answered or not by what a gateway echoes."""
    sandbox.inject(Fault("status", status=503, times=2))
    response = client.call(make(AvistaAuth, sandbox), "GET", api_url(AvistaAuth, sandbox)).raw
    assert found([response, *response.history], secrets_of(sandbox)) == []


@each_httpx
def test_pickle_of_a_response_holds_no_secret(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """A response that goes into a pickle, as HTTP caches and task queues make them, takes no secret along."""
    auth = make(auth_class, sandbox)
    response = client.call(auth, "GET", api_url(auth_class, sandbox)).raw
    pickled = pickle.dumps(response)
    assert [secret for secret in secrets_of(sandbox) if secret in pickled] == []


@each_httpx
@pytest.mark.parametrize("fault", ["drop", "hang", "truncate"])
def test_request_of_a_network_error_holds_no_secret(
    client: Client, auth_class: Auth, fault: Any, sandbox: Sandbox
) -> None:
    """`error.request` of a token request that failed holds no secret: error trackers keep it."""
    sandbox.inject(Fault(fault, times=-1))
    auth = make(auth_class, sandbox, timeout=0.3)
    with pytest.raises(client.module.HTTPError) as caught:
        client.call(auth, "GET", api_url(auth_class, sandbox))
    error: BaseException | None = caught.value
    requests_kept = []
    while error is not None:
        requests_kept.append(getattr(error, "_request", None))
        error = error.__cause__ or error.__context__
    assert found(requests_kept, secrets_of(sandbox)) == []


@each_httpx
def test_request_of_a_refused_connection_holds_no_secret(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """The same where nobody listens."""
    sandbox.close()
    with pytest.raises(client.module.TransportError) as caught:
        client.call(make(auth_class, sandbox), "GET", api_url(auth_class, sandbox))
    assert found([caught.value.request], secrets_of(sandbox)) == []


@each_httpx
def test_error_of_the_gateway_holds_no_secret(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """Our own errors keep no request and no response, nor do the errors that they come from."""
    sandbox.inject(Fault("status", status=400, times=-1))
    with pytest.raises(TokenEndpointError) as caught:
        client.call(make(auth_class, sandbox), "GET", api_url(auth_class, sandbox))
    assert (caught.value.request, caught.value.response) == (None, None)
    error: BaseException | None = caught.value
    while error is not None:
        text = repr(error) + repr(vars(error))
        assert not [secret for secret in secrets_of(sandbox) if secret.decode() in text]
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("auth_class", [AxiaAuth, AvistaAuth, BS2Auth], ids=lambda c: c.provider.name)
@pytest.mark.parametrize("how", ["requests", "get_token"])
def test_cause_of_an_outage_holds_no_secret(auth_class: Auth, how: str, clock: FakeClock, sandbox: Sandbox) -> None:
    """The requests library's own exceptions keep the prepared request: a cause that callers see holds no secret."""
    sandbox.inject(Fault("drop", times=-1))
    auth = make(auth_class, sandbox)
    call = auth.get_token if how == "get_token" else partial(requests.get, api_url(auth_class, sandbox), auth=auth)
    with pytest.raises(TokenEndpointError) as caught:
        call()
    error: BaseException | None = caught.value
    texts = []
    while error is not None:
        request = getattr(error, "request", None)
        if request is not None:
            texts.append(f"{request.headers} {request.body!r} {request.url}")
        error = error.__cause__ or error.__context__
    assert [s for s in secrets_of(sandbox) for text in texts if s.decode() in text] == []


@each_httpx
def test_a_retained_token_request_still_says_where_it_went(client: Client, sandbox: Sandbox) -> None:
    """What is left of the token request in the history is of use: its method, its URL and the answer's status."""
    auth = make(AxiaAuth, sandbox)
    response = client.call(auth, "GET", api_url(AxiaAuth, sandbox)).raw
    for entry in response.history:
        assert entry.status_code == 200
        assert entry.request.method == "POST"
        assert entry.request.url.path == AxiaAuth.provider.token_endpoint
    assert response.request.url == api_url(AxiaAuth, sandbox)


def test_the_token_request_itself_went_out_whole(sandbox: Sandbox) -> None:
    """What is taken away afterwards was sent: the gateway saw the body with the secret."""
    with httpx.Client(auth=make(AvistaAuth, sandbox), trust_env=False) as opened:
        assert opened.get(api_url(AvistaAuth, sandbox)).status_code == 200
    (token_request,) = [r for r in sandbox.requests if r.kind == "token"]
    assert sandbox.client_secret.encode() in token_request.body
