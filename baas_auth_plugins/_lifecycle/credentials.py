"""One auth object's way to tokens: its client, its secret, its source, and its background renewal.

The secret may come from a callable, such as a vault, and may change at any token request. The source follows it: it
belongs to the secret, so that a wrong secret never gets a token that was requested with the right one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._listeners import Listener
from .._oauth import parameters
from .._oauth.client import OAuthClient, basic_value
from .._oauth.messages import NetworkError, TokenRequest, TokenResponse
from .._oauth.token import Token, now
from ..exceptions import (
    BaaSAuthError,
    ConfigurationError,
    InvalidTokenResponseError,
    TokenEndpointError,
    TokenEndpointUnavailableError,
)
from . import reports
from .call import Call, Sender
from .coordinator import LocalState
from .effects import Flow, Job, ReadResponse, RunInThread, Sleep
from .fetch import backoff, refused, send, unreachable
from .source import TokenSource
from .state import TokenState

Secret = str | Callable[[], str]

_TO_INVALIDATE = 4.0  # seconds to read and write a shared cache


class SecretRotatedError(Exception):
    """The callable returned another secret than the one that the source belongs to.

    It concerns this auth object alone. So it is no `BaaSAuthError`: a leader hands over, and its waiters do not get it.
    """

    def __init__(self, successor: TokenSource) -> None:
        super().__init__("client_secret was rotated")
        self.successor = successor


class Acquired(NamedTuple):
    """A token for one API request, and whether that very request had it requested."""

    token: Token
    is_minted: bool


@dataclass(slots=True, eq=False)
class CachedHeader:
    """The header of a token while it is fresh.

    Attributes:
        header: the value of the Authorization header.
        acquired: the token.
        local: where this process keeps the token's state.
        state: the state that it had: with any other, the header is void.
        since: when the token was requested, on the monotonic clock.
        wall: when it is due for renewal, on the wall clock.
        monotonic: likewise, on the monotonic clock.
        hook: the response hook of requests for this token.
    """

    header: str = field(repr=False)
    acquired: Acquired
    local: LocalState
    state: TokenState
    since: float
    wall: float
    monotonic: float
    hook: Callable[..., Any] | None = None


class ClientCredentials:
    """One auth object's way to tokens.

    Args:
        client: what the auth object was configured with.
        secret: the client secret, or a callable that returns it.
        find_source: returns the source for a secret.
        sender: sends token requests over `session` or a private session.
        on_event: the auth object's listener.
        renew: runs a flow in this thread; None where callers renew inline.
    """

    __slots__ = (
        "_cached",
        "_find_source",
        "_job",
        "_renew",
        "_renewal",
        "_source",
        "_successor",
        "client",
        "on_event",
        "secret",
        "sender",
    )

    def __init__(
        self,
        client: OAuthClient,
        secret: Secret,
        find_source: Callable[[str], TokenSource],
        sender: Sender,
        on_event: Listener | None,
        renew: Callable[[Flow[Any]], object] | None,
    ) -> None:
        self.client = client
        self.secret = secret
        self.sender = sender
        self.on_event = on_event
        self._find_source = find_source
        self._renew = renew
        self._renewal: threading.Thread | None = None
        self._source = find_source(secret) if isinstance(secret, str) else None
        self._successor: TokenSource | None = None  # of a secret that was rotated, until it has a token
        self._job: Job[str] | None = None
        self._cached: CachedHeader | None = None

    @property
    def renews_in_background(self) -> bool:
        """Whether no caller waits for a renewal."""
        return self._renew is not None

    def cached_header(self) -> CachedHeader | None:
        """Return the header of the cached token while it is fresh: the whole work of most calls."""
        cached = self._cached
        if (
            cached is not None
            and cached.state is cached.local.value
            and time.time() < cached.wall
            and cached.since <= time.monotonic() < cached.monotonic
        ):
            return cached
        return None

    def call(self, sender: Sender | None, user_agent: str | None, rejected: Token | None = None) -> Call:
        """Return a new call for one API request.

        Args:
            sender: sends its token requests; None for the caller's own httpx client.
            user_agent: of the API request.
            rejected: the token that the API answered 401 to.
        """
        return Call(self.client, sender, user_agent, self.on_event, self, rejected)

    def acquire(self, call: Call, *, in_background: bool = False) -> Flow[Acquired]:
        """Return a token that may be sent.

        Raises:
            TokenEndpointError: there is no valid token, and none could be had.
            ConfigurationError: the callable returned something else than a secret.
        """
        if self._renew is not None and not in_background and call.rejected is None:
            call.starts_renewal = lambda: self._start_renewal(call)
        try:
            source = yield from self._resolve(call)
            try:
                token = yield from source.acquire(call)
            except SecretRotatedError as rotated:
                token = yield from self._acquire_after_rotation(call, source, rotated)
        finally:
            call.flush()
        self._cache_header(token)
        return Acquired(token, call.minted is token)

    def _acquire_after_rotation(self, call: Call, source: TokenSource, rotated: SecretRotatedError) -> Flow[Token]:
        """Move on to the new secret's source, once. Until it has a token, the old valid one is served."""
        call.has_rotated = True
        at, client = now(), self.client
        reports.rotated(client)
        valid = source.local.value.usable(call.rejected, client.leeway, at)
        if valid is not None:
            source.local.apply(lambda state: state.paused(client.timeout, at))
            call.deadline = min(call.deadline, at.monotonic + client.timeout)
        self._successor = rotated.successor
        try:
            token = yield from rotated.successor.acquire(call)
            self._source, self._cached = rotated.successor, None
            return token
        except (TokenEndpointError, SecretRotatedError) as error:
            if valid is not None and valid.is_valid(now(), client.leeway):
                return valid
            if isinstance(error, SecretRotatedError):
                raise ConfigurationError("client_secret: the callable returns another secret at each call") from None
            raise
        finally:
            self._successor = None

    def _cache_header(self, token: Token) -> None:
        source, cached = self._source, self._cached
        if source is None or (
            cached is not None and cached.acquired.token is token and cached.state is source.local.value
        ):
            return
        state, until = source.local.value, token.fresh_until(self.client.leeway)
        if state.token is token:
            header, acquired = f"Bearer {token.access_token}", Acquired(token, is_minted=False)
            self._cached = CachedHeader(header, acquired, source.local, state, token.monotonic, *until)

    def replacement(self, call: Call, rejected: Token, *, is_replayable: bool) -> Flow[Acquired | None]:
        """Return another token, to send a request again that got a 401; None to return the 401.

        Raises:
            TokenEndpointError: no other token could be had.
        """
        call.rejected = rejected
        try:
            source = yield from self._resolve(call)
            if not (yield from source.rejected(call, rejected, is_replayable=is_replayable)):
                return None
        finally:
            call.flush()
        yield from ReadResponse()
        return (yield from self.acquire(call))

    def replayed(self, call: Call, replacement: Acquired, status_code: int, duration: float) -> Flow[None]:
        """The API answered the second request."""
        reports.replayed(self.client.name, replacement.token, status_code, duration)
        call.emit("RequestReplayed", replacement.token, status_code=status_code, duration=duration)
        try:
            source = self._source
            if source is not None and replacement.is_minted and status_code == 401:
                yield from source.replay_rejected(call, replacement.token)
            elif source is not None and replacement.is_minted:
                yield from source.accepted(replacement.token)
        finally:
            call.flush()

    def closed_after_401(self, call: Call, acquired: Acquired, *, is_replay: bool) -> None:
        """The HTTP client closed the flow at a 401, as a response hook that raises makes it do."""
        source = self._source
        if source is not None and not is_replay:
            source.rejected_at_the_end(call, acquired.token)
        elif source is not None and acquired.is_minted:
            source.replay_rejected_at_the_end(acquired.token)
        call.flush()

    def invalidate(self, call: Call, token: Token | str | None) -> Flow[None]:
        """Drop the current token, or this very one if it is current."""
        source = yield from self._resolve(call)
        yield from source.invalidate(token, now().monotonic + _TO_INVALIDATE)

    def current(self, call: Call) -> Flow[Token | None]:
        """Return the token that is cached, if it has not expired."""
        source = yield from self._resolve(call)
        token = yield from source.current(call.deadline)
        return token if token is not None and token.remaining(now()) > 0 else None

    def request_about(self, call: Call, endpoint: str, query: str) -> Flow[tuple[TokenResponse, tuple[str, ...]]]:
        """Send a request to another OAuth endpoint, with retries.

        Returns:
            The answer, and the strings that must not appear in an error.
        """
        failures = 0
        while True:
            secret = yield from self._read_secret(call)
            request: TokenRequest = self.client.request_about(endpoint, query, secret, call.user_agent)
            error: TokenEndpointUnavailableError | None = None
            try:
                response = yield from send(call.sender, request)
            except NetworkError as failure:
                error = unreachable(self.client, failure)
            except InvalidTokenResponseError as problem:
                raise refused(self.client, problem) from None
            else:
                if response.status_code not in (500, 502, 503, 504):
                    return response, (secret, basic_value(self.client, secret))
            failures += 1
            wait = backoff(failures)
            if failures > 3 or now().monotonic + wait > call.deadline or (error is not None and error._is_final):
                if error is not None:
                    raise error
                return response, (secret, basic_value(self.client, secret))
            yield from Sleep(wait)

    def secret_for(self, call: Call) -> Flow[str]:
        """Return the secret for one token request.

        Raises:
            SecretRotatedError: it is not the one of the source.
            TokenEndpointError: the callable raised.
        """
        successor = self._successor or self._source
        if successor is not None and successor.key != call.key and not call.has_rotated:
            raise SecretRotatedError(successor)  # another caller has read it a moment ago
        secret, call.secret = call.secret or (yield from self._read_secret(call)), None
        self._check_rotation(call, secret)
        return secret

    def check_after_refusal(self, call: Call) -> Flow[None]:
        """The gateway refused the client: read the secret again, and raise `SecretRotatedError` if it has changed."""
        if not isinstance(self.secret, str) and not call.has_rotated:
            self._check_rotation(call, (yield from self._read_secret(call)))

    def _check_rotation(self, call: Call, secret: str) -> None:
        if not isinstance(self.secret, str) and (successor := self._find_source(secret)).key != call.key:
            call.secret = secret
            raise SecretRotatedError(successor)

    def _resolve(self, call: Call) -> Flow[TokenSource]:
        """Return the source of the secret in force; read the secret at first use."""
        if self._source is None:
            secret = yield from self._read_secret(call)
            if self._source is None:
                self._source = self._find_source(secret)
                call.secret = secret
        return self._source

    def _read_secret(self, call: Call) -> Flow[str]:
        """Call the callable, or join the call that runs already."""
        if isinstance(self.secret, str):
            return self.secret
        job = self._job
        if job is None or not job.is_running:
            job = self._job = Job(self.secret)
        seconds = min(self.client.timeout, max(call.deadline - now().monotonic, 0.0))
        outcome = yield from RunInThread(job, seconds)
        name = self.client.name
        if outcome.error is None and not outcome.is_timeout:
            return parameters.client_secret(self.client.provider, outcome.value)
        cause = outcome.error or TimeoutError(f"no result within {seconds:g} s")
        kind = TokenEndpointUnavailableError if isinstance(cause, OSError) else TokenEndpointError
        error = kind(f"{name}: the callable client_secret raised {type(cause).__name__}", provider=name)
        error._is_local = True
        raise error from cause

    def _start_renewal(self, call: Call) -> None:
        """Renew in a daemon thread, unless one does already."""
        if self._renewal is not None and self._renewal.is_alive():
            return
        renew, user_agent = self._renew, call.user_agent

        def run() -> None:
            own = self.call(self.sender, user_agent)
            try:
                if renew is not None:
                    renew(self.acquire(own, in_background=True))
            except BaaSAuthError:
                pass  # the source has logged it, and a thread has no caller

        self._renewal = threading.Thread(target=run, name="baas-auth-renewal", daemon=True)
        try:
            self._renewal.start()
        except RuntimeError:  # the interpreter is shutting down, and starts no thread
            self._renewal = None
