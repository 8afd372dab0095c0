"""The client credentials grant (RFC 6749 section 4.4) of one auth object: its flows, without I/O.

Between the faces, which speak requests or httpx, and the source, which knows one token: here the
client secret is read, and with it the source found. A secret from a vault may change at any
mint; the grant then moves on to the source of the new secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple, TypeGuard, TypeVar
from urllib.parse import quote

from ._client import Client, Headers
from ._client_auth import basic_authorization, credential
from ._fleet import Fleet
from ._flight import FULL, SingleFlight
from ._flow import Call, Effect, Exchange, Gate, OutOfTimeError, Release, TokenResponse
from ._fork import locked, process_id
from ._fresh import Fresh
from ._limiter import RateLimiter
from ._origin import Origin
from ._registry import Registry
from ._shared import SharedCache
from ._source import TokenSource
from ._token import Instant, State, Token
from ._turn import Turn
from .cache import TokenCache
from .exceptions import BaaSAuthError, ConfigurationError, InvalidClientError, TokenEndpointError
from .exceptions import TokenEndpointUnavailableError as Unavailable

__all__ = ["Grant", "now"]

T = TypeVar("T")
Secret = str | Callable[[], str]
Spawn = Callable[[Generator[Effect, Any, None]], None]
"""Runs a flow to its end in a daemon thread."""

_MAX_ROTATIONS = 3

_sources: Registry[TokenSource] = Registry()
_limiters: Registry[RateLimiter] = Registry()
_caches: Registry[SharedCache] = Registry()


def now() -> Instant:
    """Return this moment."""
    return Instant(time.time(), time.monotonic())


class SecretRotatedError(BaaSAuthError):
    """The callable gave another client secret than the one this source belongs to."""

    def __init__(self, successor: TokenSource) -> None:
        super().__init__("client_secret has changed")
        self.successor = successor


class Replacement(NamedTuple):
    """The token to replay a rejected request with, and whether that very request had it minted."""

    token: Token
    rejected_at: Instant
    own: bool


class Grant:
    """One auth object's way to tokens."""

    __slots__ = ("_reading", "_renewing", "_source", "_spawn", "cache", "client", "secret")

    def __init__(self, client: Client, secret: Secret, cache: TokenCache, spawn: Spawn | None) -> None:
        self.client = client
        self.secret = secret
        self.cache = cache
        self._spawn = spawn
        self._source: TokenSource | None = None
        self._reading = SingleFlight(client.name, now)
        self._renewing = ""  # in which process a background renewal is under way

    @property
    def renews_in_background(self) -> bool:
        """Whether nobody waits for a renewal while a token lives."""
        return self._spawn is not None

    def fresh(self, token: Token, home: Origin, before: Fresh | None) -> Fresh | None:
        """Return what spares the next requests the long way to this token; what did so before, if it still does."""
        source = self._source
        if source is None or (before is not None and before.token is token and before.known is source.known):
            return before
        return Fresh(token, source.known, self.client.leeway, home)

    def acquire(
        self,
        headers: Headers,
        *,
        background: bool = True,
        minted: list[Token] | None = None,
        deadline: float | None = None,
    ) -> Generator[Effect, Any, Token]:
        """Return a token that may be sent.

        Args:
            headers: of the request that needs it; the token request inherits its ``User-Agent``.
            background: whether a renewal may be left to the background, where the auth object is set so.
            minted: gets the token that this very call minted, if it did.
            deadline: the caller's patience ends at this time on the monotonic clock; `max_wait` from now by default.

        Raises:
            TokenEndpointError: there is no live token, and none could be had.
            ConfigurationError: the client secret's callable gave something else than a secret.
        """
        renew = partial(self._renew_in_background, headers) if background and self._spawn else None
        deadline = now().monotonic + self.client.max_wait if deadline is None else deadline
        source, secret = yield from self._resolve(deadline)
        fallback: Token | None = None
        moved = False
        for _ in range(_MAX_ROTATIONS):
            mint = partial(self._mint, source, secret, headers, [] if minted is None else minted)
            try:
                token = yield from source.acquire(self.client, mint, deadline, renew)
            except SecretRotatedError as rotated:
                if isinstance(self.secret, str):
                    continue  # somebody else's, who had the same until now
                fallback = source.known.token or fallback
                if self._lives(fallback):
                    deadline = min(deadline, now().monotonic + self.client.timeout)
                source, secret, moved = rotated.successor, None, True
            except TokenEndpointError:
                if self._lives(fallback):
                    return fallback
                raise
            else:
                if moved:
                    self._source = source  # only now: until then the old token serves
                return token
        if self._lives(fallback):
            return fallback
        raise ConfigurationError("client_secret: the callable gives another secret at every call")

    def _lives(self, token: Token | None) -> TypeGuard[Token]:
        return token is not None and token.state(now(), self.client.leeway) is not State.DEAD

    def recover(
        self, token: Token, headers: Headers, *, replayable: bool
    ) -> Generator[Effect, Any, Replacement | None]:
        """After the API answered 401 to `token`: return another to replay the request with, or None.

        Raises:
            TokenEndpointError: no other token could be had.
        """
        rejected_at = now()
        deadline = rejected_at.monotonic + self.client.max_wait
        source, _ = yield from self._resolve(deadline)
        yield from source.refresh(self.client, token, deadline)
        replaying, dropped = source.reject(self.client, token, replayable=replayable)
        yield from source.tell_brake()
        if replaying or dropped:
            yield Release()
        if dropped:
            yield from source.forget(token, deadline if replaying else None)
        if not replaying:
            return None
        minted: list[Token] = []
        other = yield from self.acquire(headers, minted=minted, deadline=deadline)
        return Replacement(other, rejected_at, own=other in minted)

    def accepted(self, token: Token) -> Generator[Effect, Any, None]:
        """Take note that the API accepted a token from the very caller that had it minted."""
        source, _ = yield from self._resolve()
        source.accepted(token)
        yield from source.tell_brake()

    def replayed(self, replacement: Replacement, status_code: int) -> Generator[Effect, Any, None]:
        """Take note of what the API answered to the replay."""
        token = replacement.token
        duration = now().since(replacement.rejected_at)
        self.client.tell("RequestReplayed", token, lambda: {"duration": duration, "status_code": status_code})
        if status_code == 401:
            source, _ = yield from self._resolve()
            source.replay_rejected(token)
            yield from source.tell_brake()
        elif replacement.own:
            yield from self.accepted(token)

    def invalidate(self) -> Generator[Effect, Any, None]:
        """Drop the token, here and in the cache."""
        source, _ = yield from self._resolve()
        yield from source.forget()

    def known(self) -> Generator[Effect, Any, Token | None]:
        """Return the token that is cached, if it lives."""
        source, _ = yield from self._resolve()
        token = source.known.token or (yield from source.cached())
        return token if token is not None and token.remaining(now()) > 0 else None

    def forget(self, access_token: str) -> Generator[Effect, Any, None]:
        """Drop the token with this value, if it is the one that is cached."""
        source, _ = yield from self._resolve()
        for token in (source.known.token, (yield from source.cached())):
            if token is not None and token.access_token == access_token:
                yield from source.forget(token)

    def ask(
        self,
        endpoint: str | None,
        access_token: str,
        headers: Headers,
        read: Callable[[str, tuple[str, ...], TokenResponse, Instant], T],
    ) -> Generator[Effect, Any, T]:
        """Put a question about a token to another of the gateway's OAuth endpoints, the token in its query."""
        client = self.client
        if endpoint is None:
            raise ConfigurationError(f"{client.name} has no such endpoint: its `provider` names none")
        deadline = now().monotonic + client.max_wait
        try:
            secret = yield from self._read_secret(deadline)
            secrets = (secret, basic_authorization(client.client_id, secret)[6:], access_token)
            answer: T = yield from self._exchange(RateLimiter(None)).run(
                client.token_request(secret, headers, f"{endpoint}?token={quote(access_token, safe='')}"),
                lambda response, _sent: read(client.name, secrets, response, now()),
                deadline=deadline,
            )
        except OutOfTimeError as late:
            raise late.error from late.error.__cause__
        return answer

    def _resolve(self, deadline: float | None = None) -> Generator[Effect, Any, tuple[TokenSource, str | None]]:
        """Return the source of the secret now in force, and the secret if it was read just now."""
        deadline = now().monotonic + self.client.max_wait if deadline is None else deadline
        secrets: list[str] = []

        def read() -> Generator[Effect, Any, None]:
            if self._source is None:
                secret = yield from self._read_secret(deadline)
                self._source = self._source_of(secret)
                secrets.append(secret)

        if isinstance(self.secret, str):
            self._source = self._source or self._source_of(self.secret)
        while (source := self._source) is None:
            yield from self._reading.run(read, FULL, deadline)
        return source, secrets[0] if secrets else None

    def _read_secret(self, deadline: float) -> Generator[Effect, Any, str]:
        if isinstance(self.secret, str):
            return self.secret
        try:
            secret = yield Call(self.secret, max(deadline - now().monotonic, 0))
        except Exception as error:
            name = self.client.name
            failure = Unavailable(f"{name}: client_secret: the callable raised {type(error).__name__}", provider=name)
            failure.__cause__ = error
            if now().monotonic >= deadline:
                raise OutOfTimeError(failure) from None
            raise failure from error
        return credential("client_secret", secret)

    def _source_of(self, secret: str) -> TokenSource:
        client, key = self.client, self.client.key(secret)
        limiter = _limiters.get(
            (client.base_url, client.provider.token_endpoint, client.client_id),
            partial(RateLimiter, client.provider.token_rate_limit),
        )

        def make() -> TokenSource:
            cache = _caches.get(id(self.cache), partial(SharedCache, self.cache, now))
            seal = client.seal(secret) if cache.blocking else None
            limits_key = client.limits_key(secret) if seal else ""
            fleet = Fleet(cache, key, limits_key, seal, client.provider.token_rate_limit, now)
            return TokenSource(client.name, key, fleet, limiter, now)

        return _sources.get((id(self.cache), key), make)

    def _mint(
        self, source: TokenSource, secret: str | None, headers: Headers, minted: list[Token], turn: Turn
    ) -> Generator[Effect, Any, Token]:
        client = self.client
        if secret is None:
            secret = yield from self._read_secret(turn.deadline)
        self._check_rotation(source, secret)
        try:
            token: Token = yield from self._exchange(source.limiter, turn).run(
                client.token_request(secret, headers),
                partial(client.read_token, secret, now),
                deadline=turn.deadline,
                retry=turn.urgent,
            )
        except InvalidClientError:
            if callable(self.secret):
                self._check_rotation(source, (yield from self._read_secret(turn.deadline)))
            raise
        if turn.found is None:
            minted.append(token)
        return token

    def _exchange(self, limiter: RateLimiter, gate: Gate | None = None) -> Exchange:
        return Exchange(self.client.name, now, limiter, self.client.tell_limited, self.client.timeout, gate)

    def _check_rotation(self, source: TokenSource, secret: str) -> None:
        if self.client.key(secret) != source.key:
            raise SecretRotatedError(self._source_of(secret))

    def _renew_in_background(self, headers: Headers) -> None:
        with locked():
            if self._renewing == process_id() or self._spawn is None:
                return
            self._renewing = process_id()
        try:
            self._spawn(self._background(headers))
        except RuntimeError:  # no thread can be started, as at the interpreter's exit
            self._renewing = ""

    def _background(self, headers: Headers) -> Generator[Effect, Any, None]:
        try:
            yield from self.acquire(headers, background=False)
        finally:
            self._renewing = ""
