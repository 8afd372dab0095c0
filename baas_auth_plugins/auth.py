"""`OAuth2ClientCredentialsAuth`: one auth object for requests, httpx and httpx2, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict, TypeVar, Unpack

import requests

from . import _process
from ._http.calls import acall_with_token, call_with_token
from ._http.drivers import arun, run
from ._http.flow import AuthParts
from ._http.httpx import HttpxAuth
from ._http.requests import RequestsAuth
from ._http.session_sender import SessionSender
from ._lifecycle.call import Call
from ._lifecycle.coordinator import Coordinator, LocalCoordinator, LocalState
from ._lifecycle.credentials import ClientCredentials, Secret
from ._lifecycle.rate_limit import RateLimiter
from ._lifecycle.source import TokenSource
from ._oauth import parameters
from ._oauth.client import OAuthClient, derive_key
from ._oauth.origins import AllowedOrigins
from ._oauth.provider import Provider
from ._oauth.token import Token
from .cache import MemoryTokenCache, TokenCache
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from .events import Event

__all__ = ["OAuth2ClientCredentialsAuth", "Overrides"]

T = TypeVar("T")

_PROCESS_CACHE = MemoryTokenCache()
_MADE_ANEW = ("_cache", "_credentials", "_origins", "_parts", "_sender")


class Overrides(TypedDict, total=False):
    """The constructor's parameters, for `from_env`."""

    client_id: str
    client_secret: str | Callable[[], str]
    scope: str | Iterable[str] | None
    environment: str
    base_url: str | None
    leeway: float
    timeout: float
    max_wait: float
    cache: TokenCache | None
    session: requests.Session | None
    headers: Mapping[str, str] | None
    background_renewal: bool
    allowed_origins: Iterable[str]
    on_event: Callable[[Event], object] | None


class OAuth2ClientCredentialsAuth(RequestsAuth, HttpxAuth):
    """Authenticates API calls with the OAuth 2.0 client credentials grant (RFC 6749 section 4.4).

    One object serves any number of requests sessions, httpx clients, threads and event loops at once, and they share
    one token. A subclass names the gateway: ``provider = Provider(...)``.
    """

    provider: ClassVar[Provider]

    def __init__(
        self,
        client_id: str,
        client_secret: str | Callable[[], str] | None = None,
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
        """Check the parameters. Nothing is sent before the first API request.

        Args:
            client_id: as the gateway gave it.
            client_secret: likewise; or a callable that returns it, such as a vault's. It is called at first use and
                before each token request, in a daemon thread. Left out only where the gateway knows the client by
                its certificate.
            scope: the scopes to request or, where the gateway assigns them, those that must be granted.
            environment: one of the provider's.
            base_url: origin of the token endpoint and of the API, instead of the environment's.
            leeway: seconds before expiry at which a token is renewed; half its lifetime at most.
            timeout: seconds for one token request, and for one call of a callable `client_secret`.
            max_wait: most seconds that one caller waits for a token.
            cache: where tokens are kept; this process's memory by default.
            session: the `requests.Session` that sends every token request, whichever client needs it: with its
                proxies, CA, client certificate and adapters. It is never changed or closed.
            headers: extra headers for token, introspection and revocation requests.
            background_renewal: renew in a daemon thread, so that no caller waits or fails while a token is valid.
            allowed_origins: further origins that may receive the token.
            on_event: called with each event of this object, in the thread where it happens.

        Raises:
            ConfigurationError: a parameter is wrong; the message names it and says what to do.
            InsecureTransportError: a URL is neither https nor on loopback.
        """
        provider = _provider_of(type(self))
        origin_text, origin = parameters.base_url(provider, environment, base_url)
        api_origins = () if base_url is not None else provider.api_origins.get(environment, ())
        further = [
            *parameters.origins("allowed_origins", allowed_origins),
            *parameters.origins("api_origins", api_origins),
        ]
        self._cache = _PROCESS_CACHE if cache is None else cache
        _check(provider, session, self._cache, on_event, background_renewal=background_renewal)
        client = OAuthClient(
            provider=provider,
            client_id=parameters.client_id(provider, client_id),
            base_url=origin_text,
            scope=parameters.scope(provider, scope),
            leeway=parameters.seconds("leeway", leeway, may_be_zero=True),
            timeout=parameters.seconds("timeout", timeout),
            max_wait=parameters.seconds("max_wait", max_wait),
            headers=parameters.headers(headers),
        )
        secret, find_source = _checked_secret(provider, client_secret), _source_finder(client, self._cache)
        self._sender = SessionSender(session)
        renew = run if background_renewal else None
        self._credentials = ClientCredentials(client, secret, find_source, self._sender, on_event, renew)
        self._origins = AllowedOrigins(provider.name, origin, further)
        self._parts = AuthParts(self._credentials, self._origins)

    @classmethod
    def from_env(cls, prefix: str | None = None, **overrides: Unpack[Overrides]) -> Self:
        """Make an auth object from environment variables.

        Reads ``{PREFIX}_CLIENT_ID`` and ``{PREFIX}_CLIENT_SECRET`` and, where set, ``_SCOPE``, ``_ENVIRONMENT`` and
        ``_BASE_URL``. An empty variable counts as unset.

        Args:
            prefix: instead of the provider's own: ``BAAS`` (Axia), ``NTXPAY``, ``AVISTA`` or ``BS2``.
            overrides: parameters of the constructor; each wins over its variable.

        Raises:
            ConfigurationError: variables are missing, and named; or a parameter is wrong.
        """
        provider = _provider_of(cls)
        prefix = provider.env_prefix if prefix is None else prefix
        names = ("client_id", "client_secret", "scope", "environment", "base_url")
        found = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in names}
        arguments: dict[str, Any] = {name: value for name, value in found.items() if value} | dict(overrides)
        needed = ["client_id"]
        needed += [] if provider.token_endpoint_auth_method == "none" else ["client_secret"]
        needed += [] if provider.environments else ["base_url"]
        missing = [f"{prefix}_{name.upper()}" for name in needed if name not in arguments]
        if missing:
            raise ConfigurationError(f"missing environment variables: {', '.join(missing)}")
        return cls(**arguments)

    def get_token(self) -> Token:
        """Return a token that may be sent; request one if there is none. It goes over `session` or a private one.

        Raises:
            TokenEndpointError: there is no valid token, and none could be had.
        """
        return run(self._credentials.acquire(self._call())).token

    async def aget_token(self) -> Token:
        """Do as `get_token`, and block no event loop."""
        return (await arun(self._credentials.acquire(self._call()))).token

    def invalidate(self, token: Token | str | None = None) -> None:
        """Drop a token: the next call requests one. Needed only where a gateway rejects a token without a 401.

        Args:
            token: this very token, never its successor; by default whichever is current.

        Raises:
            TokenEndpointError: the callable that gives the client secret failed.
        """
        run(self._credentials.invalidate(self._call(), token))

    async def ainvalidate(self, token: Token | str | None = None) -> None:
        """Do as `invalidate`, and block no event loop."""
        await arun(self._credentials.invalidate(self._call(), token))

    def call_with_token(self, send: Callable[[Token], T], *, is_rejected: Callable[[T], bool] | None = None) -> T:
        """Call an API through any other client, such as urllib3 or a generated one, and heal one 401.

        Args:
            send: sends the API request with a token, and returns the response. It is called a second time, with
                another token, if the API rejects the first one: so it must send the whole body again.
            is_rejected: returns whether a response says that the token is not accepted. By default a response, or an
                exception, with a ``status_code``, ``status`` or ``code`` of 401 does.

        Raises:
            TokenEndpointError: there is no valid token, and none could be had.
        """
        return call_with_token(self._parts, self._sender, send, is_rejected)

    async def acall_with_token(
        self, send: Callable[[Token], Awaitable[T]], *, is_rejected: Callable[[T], bool] | None = None
    ) -> T:
        """Do as `call_with_token` for a coroutine function, such as one that uses aiohttp."""
        return await acall_with_token(self._parts, self._sender, send, is_rejected)

    def _call(self) -> Call:
        return self._credentials.call(self._sender, self._sender.user_agent)

    def __repr__(self) -> str:
        client = self._credentials.client
        return f"{type(self).__name__}(client_id={client.client_id!r}, base_url={client.base_url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # The parameters make the object anew: locks, connections and tokens stay behind.
        credentials, client = self._credentials, self._credentials.client
        arguments = {
            "client_id": client.client_id,
            "client_secret": credentials.secret or None,
            "scope": client.scope,
            "base_url": client.base_url,
            "leeway": client.leeway,
            "timeout": client.timeout,
            "max_wait": client.max_wait,
            "cache": None if self._cache is _PROCESS_CACHE else self._cache,
            "session": self._sender.session,
            "headers": client.headers,
            "background_renewal": credentials.renews_in_background,
            "allowed_origins": self._origins.further,
            "on_event": credentials.on_event,
        }
        kept = {name: value for name, value in vars(self).items() if name not in _MADE_ANEW}
        return {"_arguments": arguments, **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        OAuth2ClientCredentialsAuth.__init__(self, **state.pop("_arguments"))
        vars(self).update(state)


def _provider_of(cls: type) -> Provider:
    provider = getattr(cls, "provider", None)
    if not isinstance(provider, Provider):
        raise ConfigurationError(f"{cls.__name__} has no `provider`; use a subclass that names its gateway")
    return provider


def _check(provider: Provider, session: object, cache: object, on_event: object, *, background_renewal: object) -> None:
    if session is not None and not hasattr(session, "get_adapter"):
        raise ConfigurationError(f"session must be a requests.Session, not {type(session).__name__}")
    if isinstance(cache, type) or not all(callable(getattr(cache, method, None)) for method in ("get", "swap")):
        raise ConfigurationError("cache must be a TokenCache, with get and swap")
    if provider.token_endpoint_auth_method == "none" and getattr(cache, "blocking", True):
        raise ConfigurationError(
            f"cache: {provider.name} has no client secret, so nothing could encrypt a token in a shared cache"
        )
    if on_event is not None and (not callable(on_event) or parameters.is_async(on_event)):
        raise ConfigurationError("on_event must be a plain function that takes one event")
    if not isinstance(background_renewal, bool):
        raise ConfigurationError(f"background_renewal must be True or False, not {background_renewal!r}")


def _checked_secret(provider: Provider, client_secret: object) -> Secret:
    if not callable(client_secret):
        return parameters.client_secret(provider, client_secret)
    if parameters.is_async(client_secret):
        raise ConfigurationError(
            "client_secret must be a plain function, not a coroutine function: it is called in a thread"
        )
    return client_secret


def _source_finder(client: OAuthClient, cache: TokenCache) -> Callable[[str], TokenSource]:
    """Return the function that finds the source of a client secret's tokens."""
    # Looked up once: the endpoint and the client_id do not change, and the class lives as long as the process.
    limits = (client.base_url, client.provider.token_endpoint, client.client_id)

    def find(secret: str) -> TokenSource:
        key = client.cache_key(secret)
        return _process.shared(cache, key, lambda: make(secret, key))

    def make(secret: str, key: str) -> TokenSource:
        limiter = _process.shared(RateLimiter, limits, lambda: RateLimiter(client.provider.token_rate_limit))
        if isinstance(cache, MemoryTokenCache) and not cache.blocking:
            local = LocalState(cache, key)
            coordinator: Coordinator = LocalCoordinator(local, limiter)
        else:
            local = LocalState(None, key)
            coordinator = _fleet_coordinator(client, cache, secret, local, limiter)
        return TokenSource(client.name, key, local, coordinator, limiter)

    return find


def _fleet_coordinator(
    client: OAuthClient, cache: TokenCache, secret: str, local: LocalState, limiter: RateLimiter
) -> Coordinator:
    from ._fleet.codec import limits_codec, state_codec  # imported lazily: cryptography takes its time
    from ._fleet.coordinator import FleetCoordinator
    from ._fleet.store import SharedStore

    secret_key, window = derive_key(secret, b"token-at-rest"), (limiter.limit or (0, 0.0))[1]
    return FleetCoordinator(
        client.name,
        local,
        limiter,
        _process.shared(cache, SharedStore, lambda: SharedStore(cache)),
        state_codec(client.cache_key(secret), secret_key),
        limits_codec(client.limits_key(secret), secret_key, window),
    )
