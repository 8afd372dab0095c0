"""For tests of code that uses this package: `reset` between tests, and `stub_token` for tools that mock HTTP.

The pytest plugin `baas_auth_pytest` calls `reset` before and after each test, and offers the sandbox as a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

from . import _process
from ._oauth.parameters import base_url as checked_base_url
from ._oauth.provider import Provider
from .auth import OAuth2ClientCredentialsAuth
from .exceptions import ConfigurationError

__all__ = ["TokenStub", "reset", "stub_token"]


def reset() -> None:
    """Forget everything that this process knows: tokens, refusals, pauses, rate limits and private connections.

    Auth objects go on working, and request a token at their next call. Subscribers stay, and so does what is in a
    shared cache. A token request that is under way ends for its caller, and its result is dropped.
    """
    _process.reset()


@dataclass(slots=True)
class TokenStub:
    """A token endpoint that a tool for mocking HTTP answers for.

    Attributes:
        url: of the token endpoint.
        requests: how many token requests it has answered.
        access_tokens: the tokens that it has issued, oldest first.
    """

    url: str
    requests: int = 0
    access_tokens: list[str] = field(default_factory=list, repr=False)


def stub_token(
    mock: Any,
    gateway: type[OAuth2ClientCredentialsAuth] | Provider,
    *,
    environment: str = "production",
    base_url: str | None = None,
    scope: str | None = None,
    expires_in: float | None = None,
    status: int = 200,
    retry_after: float | None = None,
) -> TokenStub:
    """Let a tool for mocking HTTP answer token requests as the gateway's page does, any number of times.

    Each answer has a new token. Any client credentials are accepted.

    Args:
        mock: ``responses`` or a ``RequestsMock``, ``respx`` or a ``MockRouter``, pytest-httpx's ``httpx_mock``, or a
            ``Mocker`` or an ``Adapter`` of requests-mock.
        gateway: the auth class, or a declaration.
        environment: one of the provider's.
        base_url: origin of the token endpoint, instead of the environment's.
        scope: the scopes that tokens get; by default the requested ones or, where the gateway assigns them, those of
            its page.
        expires_in: lifetime of tokens in seconds; by default the gateway's own.
        status: HTTP status of the answer. With 400 or above the body is the gateway's error.
        retry_after: seconds in the ``Retry-After`` header of a failure.

    Returns:
        The stub, which counts the token requests.

    Raises:
        ConfigurationError: `mock` is of no such tool, or a parameter is wrong.
    """
    provider = gateway if isinstance(gateway, Provider) else gateway.provider
    origin, _ = checked_base_url(provider, environment, base_url)
    register = _TOOLS.get(_tool_of(mock))
    if register is None:
        raise ConfigurationError(
            "mock must come from responses, respx, pytest-httpx or requests-mock, such as the fixture httpx_mock;"
            f" not {type(mock).__name__}"
        )
    stub = TokenStub(origin + provider.token_endpoint)

    def answer(body: bytes) -> _Answer:
        from .sandbox._answers import error_answer, token_answer  # imported lazily: most runs stub nothing

        stub.requests += 1
        if status >= 400:
            response = error_answer(provider, status, retry_after)
        else:
            response, access_token = token_answer(provider, body, scope, expires_in)
            stub.access_tokens.append(access_token)
        return _Answer(status, dict(response.headers), response.body)

    register(mock, stub.url, answer)
    return stub


class _Answer(NamedTuple):
    """One answer to a token request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


_Answers = Callable[[bytes], _Answer]


def _tool_of(mock: object) -> str:
    """Return the package that an object comes from, though it be of a subclass."""
    if isinstance(mock, ModuleType):
        return mock.__name__
    packages = (cls.__module__.partition(".")[0] for cls in type(mock).__mro__)
    return next((package for package in packages if package in _TOOLS), "")


def _stub_responses(mock: Any, url: str, answer: _Answers) -> None:
    def callback(request: Any) -> tuple[int, Mapping[str, str], bytes]:
        return tuple(answer(_as_bytes(request.body)))  # type: ignore[return-value]  # the fields in that order

    mock.add_callback("POST", url, callback, content_type=None)


def _stub_requests_mock(mock: Any, url: str, answer: _Answers) -> None:
    def content(request: Any, context: Any) -> bytes:
        context.status_code, headers, body = answer(_as_bytes(request.body))
        context.headers.update(headers)
        return body

    mock.register_uri("POST", url, content=content)


def _stub_respx(mock: Any, url: str, answer: _Answers) -> None:
    mock.post(url).mock(side_effect=lambda request: _httpx_response(answer(request.content)))


def _stub_pytest_httpx(mock: Any, url: str, answer: _Answers) -> None:
    mock.add_callback(
        lambda request: _httpx_response(answer(request.content)),
        method="POST",
        url=url,
        is_optional=True,
        is_reusable=True,
    )


def _httpx_response(answer: _Answer) -> Any:
    import httpx  # the package's own dependency, which imports it already

    return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.body)


def _as_bytes(body: object) -> bytes:
    return body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else b""


_TOOLS: Mapping[str, Callable[[Any, str, _Answers], None]] = {
    "pytest_httpx": _stub_pytest_httpx,
    "requests_mock": _stub_requests_mock,
    "responses": _stub_responses,
    "respx": _stub_respx,
}
