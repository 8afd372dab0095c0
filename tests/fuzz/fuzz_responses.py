"""Whatever a gateway answers, only typed errors come out: a fuzzer for what the package reads from the network.

    python -m pip install . atheris
    python tests/fuzz/fuzz_responses.py -max_total_time=120        # or -runs=100000; a directory keeps the corpus

Each input is one HTTP answer (status, headers, body) to one question: a token request through requests or httpx,
an introspection, a revocation, an API's 401, a token endpoint that stalls, a transport that sends twice. `tests/test_untrusted.py` asks the same of Hypothesis's answers, without atheris.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from baas_auth_plugins import (
    AvistaAuth,
    AxiaAuth,
    BS2Auth,
    Introspection,
    MemoryTokenCache,
    Revocation,
    Token,
    TokenEndpointError,
)

__all__ = ["QUESTIONS", "READERS", "Answer", "check", "main"]

SECRET = "s3cret/of=the+client"
_numbers = itertools.count()


@dataclass(frozen=True)
class Answer:
    """What a gateway sends back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class _Gateway(BaseAdapter):
    """Gives its one answer over requests."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        answer, response = self._answer, requests.Response()
        response.status_code, response.request, response.url = answer.status, request, request.url or ""
        response.headers.update(answer.headers)
        response.raw = HTTPResponse(
            body=io.BytesIO(answer.body), headers=dict(answer.headers), status=answer.status, preload_content=False
        )
        return response

    def close(self) -> None:
        pass


class _Stream(httpx.SyncByteStream):
    """A body that comes from a network, piece by piece."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Any:
        for start in range(0, len(self._body), 65_536):
            yield self._body[start : start + 65_536]


def _session(answer: Answer) -> requests.Session:
    session = requests.Session()
    session.mount("https://", _Gateway(answer))
    return session


def _client(answer: Answer, **options: Any) -> httpx.Client:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(answer.status, headers=list(answer.headers), stream=_Stream(answer.body))

    return httpx.Client(transport=httpx.MockTransport(handle), **options)


def _auth(cls: Any, **parameters: Any) -> Any:
    """Return an auth object that shares nothing with those before it, and waits for nothing."""
    return cls(f"client-{next(_numbers)}", SECRET, cache=MemoryTokenCache(), max_wait=1e-6, timeout=60, **parameters)


def _token_over_requests(answer: Answer) -> Token:
    return _auth(AxiaAuth, session=_session(answer)).get_token()  # type: ignore[no-any-return]


def _token_over_httpx(answer: Answer) -> Token | None:
    auth = _auth(AvistaAuth)
    with _client(answer, auth=auth) as client:
        try:
            client.send(client.build_request("GET", "https://api.avista.global/cob"), stream=True).close()
        except TokenEndpointError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL):
            pass  # httpx's own opinion, such as of a Location, which no auth flow gets to see
    cached = auth._credentials.cached_header()
    return cached and cached.acquired.token


def _token_with_scope(answer: Answer) -> Token:
    return _auth(BS2Auth, scope="cob.read pix.read", session=_session(answer)).get_token()  # type: ignore[no-any-return]


def _introspection(answer: Answer) -> Introspection:
    return _auth(AxiaAuth).introspect("t0ken/x=", client=_session(answer))  # type: ignore[no-any-return]


def _introspection_over_httpx(answer: Answer) -> Introspection:
    with _client(answer) as client:
        return _auth(AxiaAuth).introspect("t0ken/x=", client=client)  # type: ignore[no-any-return]


def _revocation(answer: Answer) -> Revocation:
    return _auth(AxiaAuth).revoke("t0ken/x=", client=_session(answer))  # type: ignore[no-any-return]


GOOD = b'{"access_token": "t0ken-%d", "token_type": "Bearer", "expires_in": 3600}'


class _Api(BaseAdapter):
    """Issues good tokens over requests, and answers the first API request with a 401 like this."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer
        self.tokens, self.calls = 0, 0

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        response = _Gateway(self._next(request.method)).send(request, *args, **kwargs)
        response.connection = self  # what a response hook sends a replay over
        return response

    def close(self) -> None:
        pass

    def _next(self, method: str | None) -> Answer:
        if method == "POST":
            self.tokens += 1
            return Answer(200, (), GOOD % self.tokens)
        self.calls += 1
        return Answer(401, self._answer.headers, self._answer.body) if self.calls == 1 else Answer(200, (), b"")


def _rejected_over_requests(answer: Answer) -> None:
    """Whatever is wrong with the body of a 401, the request is sent once more."""
    api, session = _Api(answer), requests.Session()
    session.mount("https://", api)
    session.auth = _auth(AvistaAuth, session=session)
    session.get("https://api.avista.global/cob", stream=True).close()
    assert (api.tokens, api.calls) == (2, 2)


def _rejected_over_httpx(answer: Answer) -> None:
    """The same over httpx, which decodes bodies by itself."""
    api = _Api(answer)

    def handle(request: httpx.Request) -> httpx.Response:
        found = api._next(request.method)
        return httpx.Response(found.status, headers=list(found.headers), stream=_Stream(found.body))

    with httpx.Client(transport=httpx.MockTransport(handle), auth=_auth(AvistaAuth)) as client:
        request = client.build_request("GET", "https://api.avista.global/cob")
        client.send(request, stream=True).close()
    assert (api.tokens, api.calls) == (2, 2)


class _Stalling(httpx.SyncByteStream):
    """A body that stops in the middle, for longer than anybody waits."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Any:
        yield self._body[: len(self._body) // 2]
        raise httpx.ReadTimeout("stalled")


def _token_that_stalls(answer: Answer) -> Token | None:
    """The token endpoint drips: its headers never end, or its body does not, and the call ends in httpx's own error."""

    def handle(request: httpx.Request) -> httpx.Response:
        if answer.status >= 400:
            raise httpx.ReadTimeout("the headers never end", request=request)
        return httpx.Response(answer.status, headers=list(answer.headers), stream=_Stalling(answer.body))

    with httpx.Client(transport=httpx.MockTransport(handle), auth=_auth(AvistaAuth)) as client:
        try:
            client.get("https://api.avista.global/cob")
        except TokenEndpointError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL):
            pass  # a network error of a yielded token request stays httpx's own
    return None


def _token_that_is_sent_again(answer: Answer) -> Token | None:
    """A transport that sends each request twice, as after a lost connection, reads the same body twice."""
    bodies: list[bytes] = []

    def handle(request: httpx.Request) -> httpx.Response:
        bodies.extend(b"".join(request.stream) for _ in range(2))  # type: ignore[arg-type]  # sync streams
        return httpx.Response(answer.status, headers=list(answer.headers), stream=_Stream(answer.body))

    with httpx.Client(transport=httpx.MockTransport(handle), auth=_auth(AvistaAuth)) as client:
        try:
            client.send(client.build_request("GET", "https://api.avista.global/cob"), stream=True).close()
        finally:
            assert bodies[0] == bodies[1] != b""
    return None


READERS: tuple[Callable[[Answer], Any], ...] = (
    _token_over_requests,
    _token_over_httpx,
    _token_with_scope,
    _introspection,
    _introspection_over_httpx,
    _revocation,
)
QUESTIONS = (
    *READERS,
    _rejected_over_requests,
    _rejected_over_httpx,
    _token_that_stalls,
    _token_that_is_sent_again,
)


def check(question: Callable[[Answer], Any], answer: Answer) -> str:
    """Put a question to a gateway that gives this answer, and say what came of it.

    Raises:
        AssertionError: something came out that the package promises not to let out.
    """
    try:
        result = question(answer)
    except TokenEndpointError as error:
        _check_error(error)
        return type(error).__name__
    match result:
        case Token():
            assert re.fullmatch(r"[A-Za-z0-9\-._~+/]+=*", result.access_token)
            assert 0 < result.expires_in < math.inf
            texts: list[str | None] = [result.token_type, *result.scopes]
        case Introspection():
            assert isinstance(result.active, bool)
            assert all(_is_time(moment) for moment in (result.expires_at, result.issued_at))
            texts = [result.client_id, result.token_type, result.reason, *result.scopes]
        case Revocation():
            assert _is_time(result.revoked_at)
            texts = [result.status, result.token_id]
        case _:
            texts = []
    assert all(text is None or (isinstance(text, str) and text.isprintable()) for text in texts)
    return type(result).__name__


def _check_error(error: TokenEndpointError) -> None:
    text = str(error)
    assert text.isprintable()
    assert len(text) < 400
    assert SECRET not in text
    assert error.provider
    assert error.status_code is None or isinstance(error.status_code, int)
    assert error.retry_after is None or 0 <= error.retry_after <= 86_400
    for said in (error.error, error.error_description):
        assert said is None or (said.isprintable() and len(said) <= 200 and SECRET not in said)


def _is_time(moment: float | None) -> bool:
    return moment is None or (isinstance(moment, float) and math.isfinite(moment))


_STATUSES = (200, 200, 200, 201, 204, 302, 307, 400, 401, 403, 404, 418, 429, 429, 500, 503, 504, 599)
_NAMES = (
    "Retry-After",
    "Retry-After",
    "Date",
    "Content-Type",
    "Content-Encoding",
    "Location",
    "Content-Length",
    "WWW-Authenticate",
)
_TEMPLATES = (
    b"%s",
    b'{"access_token": "%s", "token_type": "Bearer", "expires_in": 3600}',
    b'{"access_token": "t0ken", "token_type": "Bearer", "expires_in": %s}',
    b'{"access_token": "t0ken", "token_type": %s, "expires_in": "3600", "scope": "%s"}',
    b'{"error": "%s", "error_description": "%s"}',
    b'{"code": "%s", "message": "s3cret/of=the+client%s", "retry_after": %s}',
    b'{"active": true, "exp": %s, "iat": "%s", "scope": "%s", "client_id": "%s"}',
    b'{"active": false, "reason": "%s"}',
    b'{"status": "%s", "revoked_at": "%s", "token_id": "%s"}',
)


def _answer(data: Any) -> Answer:
    """Make an answer of a fuzzer's bytes (an `atheris.FuzzedDataProvider`)."""
    status = data.PickValueInList(list(_STATUSES))
    headers = tuple(
        (data.PickValueInList(list(_NAMES)), data.ConsumeUnicodeNoSurrogates(40))
        for _ in range(data.ConsumeIntInRange(0, 3))
    )
    headers = tuple((name, "".join(c for c in value if c.isascii() and c.isprintable())) for name, value in headers)
    body: bytes = data.PickValueInList(list(_TEMPLATES))
    while b"%s" in body:
        body = body.replace(b"%s", data.ConsumeBytes(data.ConsumeIntInRange(0, 200)).replace(b"%s", b""), 1)
    return Answer(status, headers, body)


def main(argv: list[str]) -> None:
    """Run the fuzzer until it is done, or finds something."""
    try:
        import atheris
    except ImportError:
        sys.exit("the fuzzer needs atheris: python -m pip install atheris (tests/test_untrusted.py runs without)")

    def one_input(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        question = provider.PickValueInList(list(QUESTIONS))
        check(question, _answer(provider))

    logging.disable()  # a warning for each refusal
    atheris.instrument_all()
    atheris.Setup([*argv, "-rss_limit_mb=1024", "-timeout=10", "-max_len=2048"], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
