"""`OAuth2ClientCredentialsAuth`: one auth object for requests, httpx and httpx2, checked at construction."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import httpx
import requests

from ._client import Client
from ._client_auth import credential, sends_basic
from ._drive import arun, in_thread, run
from ._flow import TokenRequest, TokenResponse
from ._grant import Grant
from ._httpx import HttpxFace
from ._httpx_wire import aclient_transport
from ._origin import AllowedOrigins, parse_origin
from ._provider import Provider
from ._requests import RequestsFace, SessionTransport, spawn
from ._token import SCOPE_TOKEN, Token
from .cache import MemoryTokenCache, TokenCache
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from .events import Event

__all__ = ["OAuth2ClientCredentialsAuth"]

_PROCESS_CACHE = MemoryTokenCache()
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LONGEST = 1e9
_MADE_ANEW = ("_fresh", "_grant", "_origins", "_transport")
_NO_HEADERS: dict[str, str] = {}
_HEADERS_OF_OURS = {"authorization", "content-length", "transfer-encoding"}


class OAuth2ClientCredentialsAuth(RequestsFace, HttpxFace):
    """Authenticates API calls with the OAuth 2.0 client credentials grant (RFC 6749 section 4.4).

    One object may serve any number of requests sessions, httpx clients, threads and event loops at
    once; they share one token. A subclass names the gateway: ``provider = Provider(...)``.

    Args:
        client_id: as the gateway gave it.
        client_secret: likewise; or a callable that returns it, called at first use and at each
            mint, in a worker thread where the code is async.
        scope: the scopes to ask for or, where the gateway assigns them, those required.
        environment: one of the provider's.
        base_url: the gateway's origin, instead of the environment's.
        leeway: seconds before expiry at which a token is renewed; half its lifetime at most.
        timeout: seconds for one token request.
        max_wait: most seconds that one caller spends waiting for a token.
        cache: where tokens are kept; this process's memory by default.
        session: the `requests.Session` that carries token requests made on behalf of requests.
        headers: extra headers for token, introspection and revocation requests. An httpx client that follows
            redirects sends them on, though never the credentials.
        background_renewal: renew in a daemon thread, so that no caller waits or fails while a token lives.
        allowed_origins: further origins that may receive the token.
        on_event: called with each lifecycle event, in the thread where it happens.

    Raises:
        ConfigurationError: a parameter is wrong; the message names it and says what to do.
        InsecureTransportError: a URL is neither https nor on loopback.
    """

    provider: ClassVar[Provider]

    def __init__(
        self,
        client_id: str,
        client_secret: str | Callable[[], str],
        *,
        scope: str | Iterable[str] | None = None,
        environment: str = "production",
        base_url: str | None = None,
        leeway: float = 300.0,
        timeout: float = 10.0,
        max_wait: float = 60.0,
        cache: TokenCache | None = None,
        session: requests.Session | None = None,
        headers: Mapping[str, str] | None = None,
        background_renewal: bool = False,
        allowed_origins: Iterable[str] = (),
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        provider = getattr(type(self), "provider", None)
        if not isinstance(provider, Provider):
            raise ConfigurationError(f"{type(self).__name__} has no `provider`; use a subclass that names its gateway")
        origin_text, origin = parse_origin("base_url", _base_url(provider, environment, base_url))
        if isinstance(allowed_origins, str) or not isinstance(allowed_origins, Iterable):
            raise ConfigurationError("allowed_origins must be a list of origins, such as ['https://api.example.com']")
        self._origins = AllowedOrigins(
            [origin, *(parse_origin("allowed_origins", extra)[1] for extra in allowed_origins)]
        )
        if on_event is not None and (not callable(on_event) or _is_async(on_event)):
            raise ConfigurationError("on_event must be a plain function that takes one event")
        client = Client(
            provider=provider,
            client_id=credential("client_id", client_id, in_basic=sends_basic(provider)),
            base_url=origin_text,
            scope=_scope(provider, scope),
            leeway=_seconds("leeway", leeway, may_be_zero=True),
            timeout=_seconds("timeout", timeout),
            max_wait=_seconds("max_wait", max_wait),
            headers=_headers(headers),
            on_event=on_event,
        )
        if session is not None and not hasattr(session, "get_adapter"):
            raise ConfigurationError(f"session must be a requests.Session, not {type(session).__name__}")
        has_methods = all(callable(getattr(cache, method, None)) for method in ("get", "swap"))
        if cache is not None and (isinstance(cache, type) or not has_methods):
            raise ConfigurationError("cache must be a TokenCache, with get and swap")
        self._transport = SessionTransport(session)
        self._grant = Grant(
            client,
            client_secret if callable(client_secret) else credential("client_secret", client_secret),
            _PROCESS_CACHE if cache is None else cache,
            partial(spawn, send=self._transport) if background_renewal else None,
        )
        if _is_async(client_secret):
            raise ConfigurationError(
                "client_secret must be a plain function, not a coroutine function: it is called in a worker thread"
            )

    @classmethod
    def from_env(cls, prefix: str | None = None, **overrides: Any) -> Self:
        """Make an auth object from environment variables.

        Reads ``{PREFIX}_CLIENT_ID`` and ``{PREFIX}_CLIENT_SECRET`` and, where set, ``_SCOPE``,
        ``_ENVIRONMENT`` and ``_BASE_URL``. Unset and empty are the same.

        Args:
            prefix: instead of the provider's own: ``BAAS`` (Axia), ``NTXPAY``, ``AVISTA`` or ``BS2``.
            overrides: any parameter of the constructor; it wins over its variable.

        Raises:
            ConfigurationError: a variable is missing, and named, or a parameter is wrong.
        """
        prefix = cls.provider.env_prefix if prefix is None else prefix
        names = ("client_id", "client_secret", "scope", "environment", "base_url")
        found = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in names}
        parameters: dict[str, Any] = {name: value for name, value in found.items() if value} | overrides
        missing = [f"{prefix}_{name.upper()}" for name in names[:2] if name not in parameters]
        if missing:
            raise ConfigurationError(f"set the environment variable {' and '.join(missing)}, or pass it as a parameter")
        return cls(**parameters)

    def get_token(self) -> Token:
        """Return a token that may be sent, minting one if need be, over `session` or a private one.

        Raises:
            TokenEndpointError: there is no live token, and none could be had.
        """
        return run(self._grant.acquire(self._transport.headers), self._transport)

    async def aget_token(self) -> Token:
        """Return a token as `get_token` does, blocking no event loop.

        The token request goes through an `httpx.AsyncClient` of its own or, where the auth object was
        given a `session`, through that, in a worker thread.
        """
        return await arun(self._grant.acquire(self._transport.headers), self._asend)

    def invalidate(self) -> None:
        """Drop the cached token: the next call mints. Needed only where the gateway gives no 401.

        Raises:
            BaaSAuthError: the callable that gives the client secret failed.
        """
        run(self._grant.invalidate(), self._transport)

    async def _asend(self, request: TokenRequest) -> TokenResponse:
        if self._transport.session is not None:
            return await in_thread(partial(self._transport, request))
        async with await in_thread(httpx.AsyncClient) as client:  # it reads the CA file
            return await aclient_transport(client)(request)

    def __repr__(self) -> str:
        client = self._grant.client
        return f"{type(self).__name__}(client_id={client.client_id!r}, base_url={client.base_url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # The parameters make the object anew: locks, connections and tokens stay behind.
        client, grant = self._grant.client, self._grant
        parameters = {
            "client_id": client.client_id,
            "client_secret": grant.secret,
            "scope": client.scope,
            "environment": next(iter(self.provider.environments)),
            "base_url": client.base_url,
            "leeway": client.leeway,
            "timeout": client.timeout,
            "max_wait": client.max_wait,
            "cache": None if grant.cache is _PROCESS_CACHE else grant.cache,
            "session": self._transport.session,
            "headers": client.headers,
            "background_renewal": grant.renews_in_background,
            "allowed_origins": self._origins.further,
            "on_event": client.on_event,
        }
        kept = {name: value for name, value in vars(self).items() if name not in _MADE_ANEW}
        return {"_parameters": parameters, **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        OAuth2ClientCredentialsAuth.__init__(self, **state.pop("_parameters"))
        vars(self).update(state)


def _base_url(provider: Provider, environment: object, base_url: str | None) -> object:
    if not isinstance(environment, str) or environment not in provider.environments:
        known = " or ".join(repr(name) for name in provider.environments)
        raise ConfigurationError(f"environment must be {known} for {provider.name}")
    return provider.environments[environment] if base_url is None else base_url


def _scope(provider: Provider, value: object) -> str | None:
    if isinstance(value, str):
        scopes = value.split()
    else:
        try:
            scopes = list(value or ())  # type: ignore[call-overload]  # whatever it is, the except clause tells
        except TypeError:
            raise ConfigurationError("scope must be a str, or an iterable of str") from None
        if isinstance(value, set | frozenset):
            scopes = sorted(scopes, key=str)
    if not all(isinstance(scope, str) and SCOPE_TOKEN.fullmatch(scope) for scope in scopes):
        raise ConfigurationError(
            "scope has an entry that is no scope (RFC 6749 section 3.3): printable ASCII, no spaces"
        )
    if not scopes and provider.scope == "required":
        raise ConfigurationError(
            f"scope is required by {provider.name}: name what you need, such as 'cob.read pix.read'"
        )
    return " ".join(scopes) or None


def _seconds(parameter: str, value: object, *, may_be_zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LONGEST:
        raise ConfigurationError(f"{parameter} must be a finite number of seconds")
    if value < 0 or (value == 0 and not may_be_zero):
        raise ConfigurationError(f"{parameter} must be {'0 or more' if may_be_zero else 'more than 0'} seconds")
    return float(value)


def _headers(value: object) -> Mapping[str, str]:
    if value is None:
        return _NO_HEADERS
    if not isinstance(value, Mapping):
        raise ConfigurationError("headers must be a mapping of str to str")
    for name, content in value.items():
        if not isinstance(name, str) or not isinstance(content, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError("headers must be a mapping of header names to str")
        if name.lower() in _HEADERS_OF_OURS:
            raise ConfigurationError(f"headers must not set {name}: the client authentication does")
        if not (content.isascii() and content.isprintable() and content == content.strip()):
            raise ConfigurationError(
                f"headers: the value of {name} must be printable ASCII without blanks at its ends; percent-encode the rest"
            )
    return dict(value)


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
