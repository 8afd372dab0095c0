"""401 from the API: one new token, one replay with the whole body, and a brake where that does not help."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import httpx
import pytest
import requests
import responses
from conftest import CLIENTS, NO_TLS, SECRET, Auth, Client, FakeClock, api_url, make, sent_tokens
from requests.auth import HTTPDigestAuth

from baas_auth_plugins import AxiaAuth, BS2Auth, InvalidClientError, MemoryTokenCache, RequestReplayed, TokenRejected
from baas_auth_plugins.sandbox import Fault, RecordedRequest, Sandbox

GATEWAY = "https://baas-gtw.axiadigitalsolutions.com"
PAYLOAD = bytes(range(256)) * 40
HTTPX = [client for client in CLIENTS if client.module is not requests]
SYNC_HTTPX = [client for client in HTTPX if not client.backend]

each_httpx = pytest.mark.parametrize("client", HTTPX, ids=lambda client: client.name)
each_sync_httpx = pytest.mark.parametrize("client", SYNC_HTTPX, ids=lambda client: client.name)


def api_requests(sandbox: Sandbox) -> list[RecordedRequest]:
    return [record for record in sandbox.requests if record.kind == "api"]


def statuses(sandbox: Sandbox) -> list[tuple[str, int | None]]:
    return [(record.kind, record.status) for record in sandbox.requests]


HEALED = [("token", 200), ("api", 401), ("token", 200), ("api", 200)]


class Unseekable(io.RawIOBase):
    """A file that is read once, such as a pipe."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(buffer)


def at_offset(file: Any, offset: int) -> Any:
    file.seek(offset)
    return file


# -- which requests are replayed


BODIES: dict[str, tuple[Callable[[], dict[str, Any]], bytes | None]] = {
    "none": (dict, b""),
    "empty": (lambda: {"content": b""}, b""),
    "bytes": (lambda: {"content": PAYLOAD}, PAYLOAD),
    "json": (lambda: {"json": {"valor": "10.00", "nome": "João"}}, None),
    "form": (lambda: {"data": {"chave": "a b", "valor": "1"}}, b"chave=a+b&valor=1"),
    "multipart": (lambda: {"files": {"f": ("a.bin", PAYLOAD)}, "data": {"a": "1"}}, None),
    "multipart with a file": (lambda: {"files": {"f": ("a.bin", io.BytesIO(PAYLOAD))}}, None),
}


@pytest.mark.parametrize("body", BODIES)
def test_rejected_request_is_sent_again_whole(client: Client, sandbox: Sandbox, body: str) -> None:
    """A revoked token costs one more token request, and the very same bytes go out again."""
    build, expected = BODIES[body]
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()
    answer = client.call(auth, "PUT", api_url(AxiaAuth, sandbox) + "?a=1", headers={"X-Id": "7"}, **build())
    assert answer.status == 200
    assert statuses(sandbox) == HEALED
    first, second = api_requests(sandbox)
    assert first.body == second.body
    assert answer.json["body_sha256"] == hashlib.sha256(first.body).hexdigest()
    if expected is not None:
        assert first.body == expected
    assert (second.method, second.query, second.headers["x-id"]) == ("PUT", "a=1", "7")
    old, new = ({k: v for k, v in r.headers.items() if k != "authorization"} for r in (first, second))
    assert old == new
    assert sent_tokens(sandbox)[1] == auth.get_token().access_token != sent_tokens(sandbox)[0]
    if body.startswith("multipart"):
        assert PAYLOAD in first.body


def test_every_gateway_is_healed(client: Client, auth_class: Auth, sandbox: Sandbox) -> None:
    """Revoked at whichever gateway, through whichever client: the caller sees a 200."""
    auth = make(auth_class, sandbox)
    with client.open(auth) as send:
        assert send("GET", api_url(auth_class, sandbox)).status == 200
        sandbox.revoke_all()
        assert send("POST", api_url(auth_class, sandbox), content=PAYLOAD).json["body_length"] == len(PAYLOAD)
    assert statuses(sandbox) == [("token", 200), ("api", 200), *HEALED[1:]]


@pytest.mark.parametrize("offset", [0, 1000, len(PAYLOAD)])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_requests_file_is_rewound_to_where_it_stood(sandbox: Sandbox, tmp_path: Path, offset: int, kind: str) -> None:
    """A file handed over in the middle is sent from there, both times."""
    (tmp_path / "body").write_bytes(PAYLOAD)
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()
    with (tmp_path / "body").open("rb") if kind == "file" else io.BytesIO(PAYLOAD) as file:
        answer = requests.post(api_url(AxiaAuth, sandbox), data=at_offset(file, offset), auth=auth, timeout=5)
    assert answer.json()["body_sha256"] == hashlib.sha256(PAYLOAD[offset:]).hexdigest()
    assert [record.body for record in api_requests(sandbox)] == [PAYLOAD[offset:]] * 2
    assert statuses(sandbox) == HEALED


@pytest.mark.parametrize("offset", [0, 1000])
@each_httpx
def test_httpx_multipart_is_whole(client: Client, sandbox: Sandbox, tmp_path: Path, offset: int) -> None:
    """The files of a httpx form go out whole both times, wherever they stood: httpx rewinds them itself."""
    (tmp_path / "body").write_bytes(PAYLOAD)
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()
    with (tmp_path / "body").open("rb") as file:
        answer = client.call(auth, "POST", api_url(AxiaAuth, sandbox), files={"f": at_offset(file, offset)})
    assert answer.status == 200
    first, second = api_requests(sandbox)
    assert first.body == second.body
    assert PAYLOAD in first.body


def chunks() -> Iterator[bytes]:
    yield PAYLOAD[:5000]
    yield PAYLOAD[5000:]


def check_returned_as_is(client: Client, sandbox: Sandbox, **body: Any) -> None:
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        sandbox.revoke_all()
        answer = send("POST", api_url(AxiaAuth, sandbox), **body)
        assert answer.status == 401
        assert answer.json["message"] == "Invalid token"
        (record,) = api_requests(sandbox)[1:]
        assert PAYLOAD in record.body
        assert sandbox.count("token") == 1
        assert send("POST", api_url(AxiaAuth, sandbox), content=PAYLOAD).status == 200
    assert statuses(sandbox)[2:] == [("api", 401), ("token", 200), ("api", 200)]


def test_generator_is_not_replayed(client: Client, sandbox: Sandbox) -> None:
    """A body that can be read once goes out once: the caller gets the 401, and the next call a new token."""
    check_returned_as_is(client, sandbox, content=chunks())


def test_unseekable_requests_file_is_not_replayed(sandbox: Sandbox) -> None:
    """Nor is a pipe."""
    check_returned_as_is(Client(requests), sandbox, content=Unseekable(PAYLOAD))


@each_sync_httpx
def test_httpx_file_is_not_replayed(client: Client, sandbox: Sandbox, tmp_path: Path) -> None:
    """A file as the content of a httpx request can be read once only, seekable or not."""
    (tmp_path / "body").write_bytes(PAYLOAD)
    with (tmp_path / "body").open("rb") as file:
        check_returned_as_is(client, sandbox, content=file)


@each_httpx
def test_httpx_multipart_with_a_pipe_is_not_replayed(client: Client, sandbox: Sandbox) -> None:
    """One file that cannot be rewound keeps the whole form from being sent again."""
    check_returned_as_is(client, sandbox, files={"f": ("a.bin", Unseekable(PAYLOAD)), "g": ("b.bin", b"x")})


def test_requests_file_that_cannot_be_rewound_after_all(sandbox: Sandbox) -> None:
    """A file whose rewinding fails is not sent again half-read: the 401 stands."""

    class Stuck(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            if self.tell() == len(PAYLOAD) and (offset, whence) == (0, 0):
                raise OSError("it is gone")
            return super().seek(offset, whence)

    class Sized(Stuck):
        def __len__(self) -> int:
            return len(PAYLOAD)

    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()
    answer = requests.post(api_url(AxiaAuth, sandbox), data=Sized(PAYLOAD), auth=auth, timeout=5)
    assert answer.status_code == 401
    assert len(api_requests(sandbox)) == 1


def test_second_rejection_is_the_answer(client: Client, sandbox: Sandbox) -> None:
    """One replay, no more: the second answer is returned, whatever it is."""
    sandbox.inject(Fault("status", "api", times=2, status=401))
    answer = client.call(make(AxiaAuth, sandbox), "GET", api_url(AxiaAuth, sandbox))
    assert answer.status == 401
    assert [status for kind, status in statuses(sandbox) if kind == "api"] == [401, 401]


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_other_errors_are_the_callers(client: Client, sandbox: Sandbox, status: int) -> None:
    """Any status but 401 is returned as it is, for the first request and for the replay."""
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        sandbox.inject(Fault("status", "api", status=status))
        assert send("GET", api_url(AxiaAuth, sandbox)).status == status
        sandbox.inject(Fault("status", "api", status=401))
        sandbox.inject(Fault("status", "api", status=status))
        assert send("GET", api_url(AxiaAuth, sandbox)).status == status
    assert len(api_requests(sandbox)) == 3
    assert sandbox.count("token") == 2


def test_failing_renewal_is_raised(client: Client, sandbox: Sandbox) -> None:
    """If no other token can be had, its error is raised: a 401 would hide the cause."""
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        sandbox.revoke_all()
        sandbox.rotate_secret("changed")
        with pytest.raises(client.error) as caught:
            send("GET", api_url(AxiaAuth, sandbox))
    assert isinstance(caught.value, InvalidClientError)
    assert statuses(sandbox) == [("token", 200), ("api", 200), ("api", 401), ("token", 401)]


def test_own_authorization_is_replaced(client: Client, sandbox: Sandbox) -> None:
    """The token wins over a header that the caller set, as with the clients' own auth classes."""
    auth = make(AxiaAuth, sandbox)
    answer = client.call(auth, "GET", api_url(AxiaAuth, sandbox), headers={"authorization": "Bearer mine"})
    assert answer.status == 200
    assert sent_tokens(sandbox) == [auth.get_token().access_token]


# -- cache first


class SharedCache:
    """A process's own face of a cache that several processes share."""

    blocking: ClassVar[bool] = True

    def __init__(self, store: MemoryTokenCache) -> None:
        self.get, self.swap = store.get, store.swap


def test_cache_is_looked_into_before_minting(client: Client, new_sandbox: Callable[..., Sandbox]) -> None:
    """Where each new token revokes the one before, as at BS2, a process replays with the other process's token."""
    sandbox = new_sandbox(single_active_token=True)
    store = MemoryTokenCache()
    ours, theirs = (make(BS2Auth, sandbox, cache=SharedCache(store)) for _ in range(2))
    with client.open(ours) as send:
        assert send("GET", api_url(BS2Auth, sandbox)).status == 200
        theirs.invalidate()
        theirs.get_token()
        assert send("GET", api_url(BS2Auth, sandbox)).status == 200
    assert statuses(sandbox) == [("token", 200), ("api", 200), ("token", 200), ("api", 401), ("api", 200)]
    assert ours.get_token().access_token == theirs.get_token().access_token


class NoCache:
    """A cache that keeps nothing, so that only what the process itself knows counts."""

    blocking: ClassVar[bool] = False

    def get(self, key: str) -> None:
        return None

    def swap(self, *_: Any) -> bool:
        return True


@pytest.mark.parametrize("cache", [MemoryTokenCache, NoCache])
def test_rejection_does_not_drop_a_newer_token(sandbox: Sandbox, cache: Any) -> None:
    """A late 401 to an old token leaves its successor alone: the replay goes out with that."""
    auth = make(AxiaAuth, sandbox, cache=cache())
    with requests.Session() as session:
        prepared = session.prepare_request(requests.Request("GET", api_url(AxiaAuth, sandbox), auth=auth))
        sandbox.revoke_all()
        auth.invalidate()
        newer = auth.get_token()
        assert session.send(prepared, timeout=5).status_code == 200
    assert sandbox.count("token") == 2
    assert sent_tokens(sandbox)[-1] == newer.access_token == auth.get_token().access_token


@each_sync_httpx
def test_token_minted_while_a_rejection_is_read_is_kept(client: Client) -> None:
    """While one caller reads its 401, another gets a token: the first replays with that one, and drops only its own."""
    minted: list[str] = []
    http = client.module

    def gateway(request: Any) -> Any:
        if request.method == "POST":
            minted.append(f"t{len(minted)}")
            return http.Response(200, json={"access_token": minted[-1], "expires_in": 3600})
        if request.headers["Authorization"] == "Bearer t0":
            return http.Response(401, stream=Meanwhile())
        return http.Response(200)

    class Meanwhile(http.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            assert other.get(GATEWAY + "/v1/accounts").status_code == 200
            yield b"{}"

    auth = AxiaAuth("meanwhile", SECRET, cache=NoCache())
    options = {"auth": auth, "transport": http.MockTransport(gateway), "verify": NO_TLS}
    with http.Client(**options) as one, http.Client(**options) as other:
        assert one.get(GATEWAY + "/v1/accounts").status_code == 200
    assert minted == ["t0", "t1"]
    assert auth.get_token().access_token == "t1"


# -- streams


@pytest.mark.parametrize("revoked", [False, True], ids=["accepted", "after a replay"])
@each_sync_httpx
def test_httpx_stream_stays_unread(client: Client, sandbox: Sandbox, revoked: bool) -> None:
    """The caller's stream is the caller's to read."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    if revoked:
        sandbox.revoke_all()
    with client.module.Client(auth=auth, verify=NO_TLS) as http:
        with http.stream("GET", api_url(AxiaAuth, sandbox)) as response:
            assert response.status_code == 200
            assert not response.is_stream_consumed
            assert not response.is_closed
            assert b'"path": "/v1/accounts"' in b"".join(response.iter_bytes())


@pytest.mark.parametrize("revoked", [False, True], ids=["accepted", "after a replay"])
@pytest.mark.parametrize("client", [c for c in HTTPX if c.backend], ids=lambda client: client.name)
def test_async_httpx_stream_stays_unread(client: Client, sandbox: Sandbox, revoked: bool) -> None:
    """The same in event loops."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    if revoked:
        sandbox.revoke_all()

    async def read() -> bytes:
        async with client.module.AsyncClient(auth=auth, verify=NO_TLS) as http:
            async with http.stream("GET", api_url(AxiaAuth, sandbox)) as response:
                assert response.status_code == 200
                assert not response.is_stream_consumed
                assert not response.is_closed
                return b"".join([chunk async for chunk in response.aiter_bytes()])

    assert b'"path": "/v1/accounts"' in anyio.run(read, backend=client.backend)


@each_sync_httpx
def test_rejected_stream_without_replay_is_readable(client: Client, sandbox: Sandbox) -> None:
    """A 401 that is returned as it is can be read like any other answer."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()
    with client.module.Client(auth=auth, verify=NO_TLS) as http:
        with http.stream("POST", api_url(AxiaAuth, sandbox), content=chunks()) as response:
            assert response.status_code == 401
            assert b"Invalid token" in response.read()


@pytest.mark.parametrize("revoked", [False, True], ids=["accepted", "after a replay"])
def test_requests_stream_stays_unread(sandbox: Sandbox, revoked: bool) -> None:
    """`stream=True` holds for the replay, too."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    if revoked:
        sandbox.revoke_all()
    with requests.get(api_url(AxiaAuth, sandbox), auth=auth, stream=True, timeout=5) as response:
        assert response.status_code == 200
        assert response._content is False  # what requests itself looks at before reading
        assert b'"path": "/v1/accounts"' in b"".join(response.iter_content(16))


# -- redirects


def redirects(sandbox: Sandbox, location: str, status: int = 302) -> None:
    sandbox.inject(Fault("redirect", "api", status=status, headers={"Location": location}))


def test_redirect_within_the_origin_keeps_the_token(client: Client, sandbox: Sandbox) -> None:
    """A redirect to the same origin goes there with the token."""
    redirects(sandbox, "/v1/elsewhere")
    auth = make(AxiaAuth, sandbox)
    with client.open(auth, follow_redirects=True) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).json["path"] == "/v1/elsewhere"
    assert sent_tokens(sandbox) == [auth.get_token().access_token] * 2


def test_rejected_redirect_target_alone_is_sent_again(client: Client, sandbox: Sandbox) -> None:
    """A 401 after a redirect repeats the last hop, not what led there."""
    redirects(sandbox, "/v1/elsewhere")
    sandbox.inject(Fault("expire", "api"))
    with client.open(make(AxiaAuth, sandbox), follow_redirects=True) as send:
        answer = send("GET", api_url(AxiaAuth, sandbox))
    assert answer.json["path"] == "/v1/elsewhere"
    assert [record.path for record in api_requests(sandbox)] == ["/v1/accounts", "/v1/elsewhere", "/v1/elsewhere"]
    assert sandbox.count("token") == 2


def test_post_is_not_repeated_after_a_303(client: Client, sandbox: Sandbox) -> None:
    """A payment that was accepted with a 303 is not sent again because the page it points to answers 401."""
    redirects(sandbox, "/v1/receipt", 303)
    sandbox.inject(Fault("expire", "api"))
    with client.open(make(AxiaAuth, sandbox), follow_redirects=True) as send:
        assert send("POST", api_url(AxiaAuth, sandbox), json={"valor": "10.00"}).status == 200
    assert [(record.method, record.path) for record in api_requests(sandbox)] == [
        ("POST", "/v1/accounts"),
        ("GET", "/v1/receipt"),
        ("GET", "/v1/receipt"),
    ]


@pytest.mark.parametrize("status", [307, 308])
def test_body_survives_redirect_and_replay(client: Client, sandbox: Sandbox, status: int) -> None:
    """A 307 or 308 repeats the body, and so does the replay of its target."""
    redirects(sandbox, "/v1/elsewhere", status)
    sandbox.inject(Fault("expire", "api"))
    with client.open(make(AxiaAuth, sandbox), follow_redirects=True) as send:
        assert send("POST", api_url(AxiaAuth, sandbox), content=PAYLOAD).status == 200
    assert [record.body for record in api_requests(sandbox)] == [PAYLOAD] * 3


@pytest.mark.parametrize("status", [302, 307])
def test_foreign_redirect_target_never_sees_the_token(
    client: Client, sandbox: Sandbox, new_sandbox: Callable[..., Sandbox], status: int
) -> None:
    """A foreign host that answers 401 gets neither the token nor a new one, and costs no token request."""
    foreign = new_sandbox()
    redirects(sandbox, f"{foreign.url}/v1/accounts", status)
    auth = make(AxiaAuth, sandbox)
    with client.open(auth, follow_redirects=True) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 401
    assert sent_tokens(foreign) == [None]
    assert sandbox.count("token") == 1
    assert auth.get_token().access_token == sent_tokens(sandbox)[0]


def test_redirect_back_home_gets_no_second_chance_elsewhere(
    client: Client, sandbox: Sandbox, new_sandbox: Callable[..., Sandbox]
) -> None:
    """After a replay a foreign redirect is followed without the token as well."""
    foreign = new_sandbox()
    sandbox.inject(Fault("expire", "api"))
    redirects(sandbox, f"{foreign.url}/v1/accounts")
    with client.open(make(AxiaAuth, sandbox), follow_redirects=True) as send:
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 401
    assert sent_tokens(foreign) == [None]
    assert sandbox.count("token") == 2


def test_allowed_origin_is_healed_too(client: Client, sandbox: Sandbox, new_sandbox: Callable[..., Sandbox]) -> None:
    """A 401 from one of `allowed_origins` is treated like one from home; any other is left alone."""
    second, third = new_sandbox(), new_sandbox()
    auth = make(AxiaAuth, sandbox, allowed_origins=[second.url])
    with client.open(auth) as send:
        assert send("GET", f"{second.url}/v1/a").status == 401
        assert send("GET", f"{third.url}/v1/a").status == 401
    assert len(set(sent_tokens(second))) == 2
    assert None not in sent_tokens(second)
    assert sent_tokens(third) == [None]
    assert sandbox.count("token") == 2


# -- the brake


def rejects(sandbox: Sandbox) -> None:
    sandbox.inject(Fault("status", "api", times=-1, status=401))


def test_brake_schedule(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """Where every new token is rejected, too, token requests wait 5, 10, 20, 40, then 60 s. The 401 is returned meanwhile."""
    rejects(sandbox)
    minted: list[float] = []
    started = clock.monotonic
    with client.open(make(AxiaAuth, sandbox)) as send:
        for _ in range(52):
            before = sandbox.count("token")
            assert send("GET", api_url(AxiaAuth, sandbox)).status == 401
            minted += [clock.monotonic - started] * (sandbox.count("token") - before)
            clock.advance(5)
    assert minted == [0, 0, 5, 15, 35, 75, 135, 195, 255]


def test_braked_rejection_is_not_replayed_and_keeps_the_token(
    client: Client, clock: FakeClock, sandbox: Sandbox
) -> None:
    """While the back-off runs, a 401 causes no token request, and calls to other paths go on with the same token."""
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        sandbox.inject(Fault("status", "api", times=2, status=401))
        send("GET", api_url(AxiaAuth, sandbox))
        token = auth.get_token()
        clock.advance(4.9)
        sandbox.inject(Fault("status", "api", status=401))
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 401
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
    assert auth.get_token() is token
    assert [status for _, status in statuses(sandbox)[-2:]] == [401, 200]
    assert sandbox.count("token") == 2


@pytest.mark.parametrize("way", ["an accepted replay", "a minute without a rejection"])
def test_brake_is_released(client: Client, clock: FakeClock, sandbox: Sandbox, way: str) -> None:
    """After an accepted replay, or 60 s without a rejection, the schedule starts again at 5 s."""
    url = api_url(AxiaAuth, sandbox)
    with client.open(make(AxiaAuth, sandbox)) as send:
        rejects(sandbox)
        for pause in (0, 5, 10):
            clock.advance(pause)
            send("GET", url)
        assert sandbox.count("token") == 4
        if way == "an accepted replay":
            clock.advance(20)
            sandbox.clear_faults()
            sandbox.revoke_all()
            assert send("GET", url).status == 200
            rejects(sandbox)
        else:
            clock.advance(60.1)
        minted = sandbox.count("token")
        send("GET", url)
        assert sandbox.count("token") == minted + 1
        clock.advance(4.9)
        send("GET", url)
        assert sandbox.count("token") == minted + 1
        clock.advance(0.1)
        send("GET", url)
        assert sandbox.count("token") == minted + 2


def test_revocations_in_a_row_are_all_healed(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """Tokens that are accepted at first and revoked later never start the back-off."""
    with client.open(make(AxiaAuth, sandbox)) as send:
        for _ in range(8):
            assert send("GET", api_url(AxiaAuth, sandbox)).status == 200
            sandbox.revoke_all()
    assert sandbox.count("token") == 8


def test_replacement_that_has_served_starts_no_brake(clock: FakeClock, sandbox: Sandbox) -> None:
    """A rejected replay with another caller's token starts no back-off: that token was accepted before, and is revoked, too."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    with requests.Session() as session:
        late = session.prepare_request(requests.Request("GET", url, auth=auth))
        sandbox.revoke_all()
        assert session.get(url, auth=auth).status_code == 200
        clock.advance(61)
        sandbox.revoke_all()
        assert session.send(late).status_code == 401
        assert session.get(url, auth=auth).status_code == 200
    assert sandbox.count("token") == 3


def test_rate_limited_rejection_is_returned(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """While no token request may be sent, the 401 is returned. It is replayed as soon as one may be sent."""
    auth = make(BS2Auth, sandbox)
    for _ in range(10):
        auth.invalidate()
        token = auth.get_token()
    sandbox.revoke_all()
    with client.open(auth) as send:
        assert send("GET", api_url(BS2Auth, sandbox)).status == 401
        assert auth.get_token() is token
        assert sandbox.count("token") == 10
        clock.advance(60)
        assert send("GET", api_url(BS2Auth, sandbox)).status == 200
    assert clock.slept == []
    assert {record.status for record in sandbox.requests if record.kind == "token"} == {200}


def test_unreplayable_rejection_invalidates_unless_braked(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """A 401 to a generator's body drops the token, unless the back-off runs."""
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        sandbox.inject(Fault("status", "api", status=401))
        assert send("POST", api_url(AxiaAuth, sandbox), content=chunks()).status == 401
        rejects(sandbox)
        assert send("GET", api_url(AxiaAuth, sandbox)).status == 401
        minted, token = sandbox.count("token"), auth.get_token()
        assert send("POST", api_url(AxiaAuth, sandbox), content=chunks()).status == 401
    assert auth.get_token() is token
    assert sandbox.count("token") == minted


def test_rejection_and_replay_are_told(client: Client, clock: FakeClock, sandbox: Sandbox) -> None:
    """Listeners get the rejection, with the token's age, and the replay."""
    events: list[Any] = []
    auth = make(AxiaAuth, sandbox, on_event=events.append)
    with client.open(auth) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        clock.advance(100)
        sandbox.revoke_all()
        send("GET", api_url(AxiaAuth, sandbox))
    (rejected,) = (event for event in events if isinstance(event, TokenRejected))
    (replayed,) = (event for event in events if isinstance(event, RequestReplayed))
    assert (rejected.age, rejected.replaying) == (100, True)
    assert replayed.status_code == 200
    assert rejected.token_digest != replayed.token_digest


# -- as HTTPDigestAuth does


def observe(auth: Any, *, stream: bool, cookie: bool) -> dict[str, Any]:
    """Return what a caller of requests can see of a request that is rejected at first and then accepted."""
    tokens = itertools.count()
    seen: list[Any] = []

    def mint(_: Any) -> Any:
        return 200, {}, f'{{"access_token": "t{next(tokens)}", "expires_in": 3600}}'

    def api(request: Any) -> Any:
        given = request.headers.get("Authorization", "")
        seen.append((request.method, request.url, request.body, request.headers.get("Cookie")))
        if given == "Bearer t1" or given.startswith("Digest "):
            return 200, {"Set-Cookie": "second=2; Path=/"}, '{"ok": true}'
        challenge = 'Digest realm="r", nonce="n", qop="auth"'
        headers = {"Set-Cookie": "first=1; Path=/", "WWW-Authenticate": challenge, "Content-Length": "2"}
        return 401, headers, "{}"

    hooked: list[int] = []
    with responses.RequestsMock() as mock, requests.Session() as session:
        mock.assert_all_requests_are_fired = False
        mock.add_callback("POST", GATEWAY + AxiaAuth.provider.token_endpoint, mint)
        mock.add_callback("PUT", GATEWAY + "/v1/accounts", api)
        session.auth = auth
        if cookie:
            session.cookies.set("own", "0")
        session.hooks["response"].append(lambda response, **_: hooked.append(response.status_code))
        response = session.put(GATEWAY + "/v1/accounts", data=b"body", stream=stream, timeout=1)
        unread = response._content is False
        return {
            "seen": seen,
            "status": response.status_code,
            "history": [(past.status_code, past.url, past.content, past.history) for past in response.history],
            "elapsed": (response.elapsed.total_seconds() > 0, response.history[0].elapsed.total_seconds() > 0),
            "url": response.url,
            "request": (response.request.method, response.request.url, response.request.body),
            "cookies": sorted(session.cookies.items()),
            "response cookies": sorted(response.cookies.items()),
            "hooked": hooked,
            "unread": unread,
            "json": response.json(),
        }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cookie", [False, True])
def test_replay_looks_like_digest_authentication(stream: bool, cookie: bool) -> None:
    """History, hooks, elapsed, the stream and the session's cookies are as with requests' own challenge-response auth.

    One thing is better: a cookie of the 401 goes with the replay even where the first request had cookies.
    """
    digest = observe(HTTPDigestAuth("user", "password"), stream=stream, cookie=cookie)
    ours = observe(AxiaAuth("digest", SECRET, cache=MemoryTokenCache()), stream=stream, cookie=cookie)
    assert digest["status"] == 200
    assert len(digest["history"]) == 1
    cookies = ["own=0", "own=0; first=1"] if cookie else [None, "first=1"]
    assert [sent for *_, sent in ours.pop("seen")] == cookies
    assert [sent for *_, sent in digest.pop("seen")] == [cookies[0], "own=0" if cookie else "first=1"]
    assert ours == digest


# -- prepared requests and hooks of requests


def test_prepared_request_can_be_sent_again(sandbox: Sandbox) -> None:
    """A prepared request keeps its token; once that is rejected, each sending is healed."""
    auth = make(AxiaAuth, sandbox)
    with requests.Session() as session:
        session.auth = auth
        prepared = session.prepare_request(requests.Request("POST", api_url(AxiaAuth, sandbox), data=PAYLOAD))
        assert session.send(prepared, timeout=5).status_code == 200
        sandbox.revoke_all()
        for _ in range(3):
            answer = session.send(prepared, timeout=5)
            assert answer.status_code == 200
            assert answer.json()["body_length"] == len(PAYLOAD)
    assert sandbox.count("token") == 2
    assert len(prepared.hooks["response"]) == 1


def test_replay_can_be_sent_again(sandbox: Sandbox) -> None:
    """The request that a replay was is healed like any other, should it be sent once more."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    auth.get_token()
    with requests.Session() as session:
        sandbox.revoke_all()
        answer = session.get(url, auth=auth)
        for _ in range(2):
            sandbox.revoke_all()
            answer = session.send(answer.request)
            assert answer.status_code == 200
    assert sandbox.count("token") == 4


def test_response_is_pickled_without_token_and_secret(sandbox: Sandbox) -> None:
    """A response, and so the error that it raises, goes to another process as any other; a copy of its request is watched."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    for _ in range(2):  # with a new token, and with one that is fresh
        answer = requests.get(url, auth=auth, timeout=9)
        pickled = pickle.dumps(answer)
        unpickled = pickle.loads(pickled)  # noqa: S301  # our own
        assert unpickled.json() == answer.json()
        assert SECRET.encode() not in pickled
        with requests.Session() as session:
            assert session.send(unpickled.request).status_code == 200
            sandbox.revoke_all()
            assert session.send(copy.deepcopy(answer.request)).status_code == 200
    assert sandbox.count("token") == 3


def test_preparing_again_does_not_pile_up_hooks(sandbox: Sandbox) -> None:
    """One request authenticated many times, or copied, watches its response once; the original stays as it was."""
    auth, calls = make(AxiaAuth, sandbox), []
    original = requests.Request("GET", api_url(AxiaAuth, sandbox)).prepare()
    original.register_hook("response", lambda response, **_: calls.append(response.status_code))
    copy = original.copy()
    for _ in range(5):
        auth(copy)
    assert len(original.hooks["response"]) == 1
    assert len(copy.hooks["response"]) == 2
    sandbox.revoke_all()
    with requests.Session() as session:
        assert session.send(copy, timeout=5).status_code == 200
    assert len(api_requests(sandbox)) == 2
    assert calls == [401]


def test_other_auth_objects_hook_is_kept(sandbox: Sandbox, new_sandbox: Callable[..., Sandbox]) -> None:
    """A request that is prepared anew by a second auth object obeys that one."""
    one = make(AxiaAuth, sandbox)
    other = make(AxiaAuth, sandbox)
    prepared = requests.Request("GET", api_url(AxiaAuth, sandbox)).prepare()
    other(one(prepared))
    sandbox.revoke_all()
    with requests.Session() as session:
        assert session.send(prepared, timeout=5).status_code == 200
    assert sent_tokens(sandbox)[-1] == other.get_token().access_token != one.get_token().access_token


# -- the history of httpx


@each_httpx
def test_httpx_history_holds_the_rejection_and_no_token(client: Client, sandbox: Sandbox) -> None:
    """`response.history` shows the 401; what httpx keeps of token responses there holds no token."""
    auth = make(AxiaAuth, sandbox)
    with client.open(auth) as send:
        send("GET", api_url(AxiaAuth, sandbox))
        sandbox.revoke_all()
        response = send("GET", api_url(AxiaAuth, sandbox)).raw
    of_the_api = [past for past in response.history if past.url == response.url]
    assert [past.status_code for past in of_the_api] == [401]
    token = auth.get_token().access_token
    assert not any(token in past.text for past in response.history)


@each_sync_httpx
def test_event_hooks_of_httpx_see_every_request(client: Client, sandbox: Sandbox) -> None:
    """The client's event hooks are called as for any request, and may read the responses."""
    seen: list[tuple[str, int]] = []

    def note(response: Any) -> None:
        response.read()
        seen.append((response.request.method, response.status_code))

    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke_all()
    with client.module.Client(auth=auth, verify=NO_TLS, event_hooks={"response": [note]}) as http:
        assert http.get(api_url(AxiaAuth, sandbox)).status_code == 200
    assert seen == [("GET", 401), ("POST", 200), ("GET", 200)]


def test_flow_can_be_stepped_by_hand() -> None:
    """The httpx flow is a plain generator: token request, API request, and after a 401 both once more."""
    auth = AxiaAuth("by-hand", SECRET, cache=MemoryTokenCache())
    request = httpx.Request("GET", GATEWAY + "/v1/accounts")
    flow = auth.sync_auth_flow(request)
    token_request = next(flow)
    assert (token_request.method, token_request.url.path) == ("POST", AxiaAuth.provider.token_endpoint)
    assert flow.send(httpx.Response(200, json={"access_token": "one"}, request=token_request)) is request
    assert request.headers["Authorization"] == "Bearer one"
    token_request = flow.send(httpx.Response(401, request=request))
    assert token_request.method == "POST"
    replay = flow.send(httpx.Response(200, json={"access_token": "two"}, request=token_request))
    assert (replay.url, replay.headers["Authorization"]) == (request.url, "Bearer two")
    with pytest.raises(StopIteration):
        flow.send(httpx.Response(401, request=replay))


def test_fresh_token_leaves_the_hooks_of_the_original_alone(sandbox: Sandbox) -> None:
    """A copy that is authenticated with a fresh token watches its response; the request it was copied from does not."""
    auth = make(AxiaAuth, sandbox)
    auth(requests.Request("GET", api_url(AxiaAuth, sandbox)).prepare())
    original = requests.Request("GET", api_url(AxiaAuth, sandbox)).prepare()
    copy = auth(original.copy())
    assert (len(original.hooks["response"]), len(copy.hooks["response"])) == (0, 1)
