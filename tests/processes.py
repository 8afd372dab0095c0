"""Processes of a fleet, stepped by hand in one thread: one shared dict, and cache operations that fail as tests say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from by_hand import CLIENT, Steps, answer, issued
from conftest import SECRET, FakeClock
from raw_gateway import SharedStore as Dict

from baas_auth_plugins import TokenCache
from baas_auth_plugins._fleet.codec import Codec, limits_codec, state_codec
from baas_auth_plugins._fleet.coordinator import FleetCoordinator
from baas_auth_plugins._fleet.store import SharedStore
from baas_auth_plugins._http.flow import Answer, AuthParts, SendRequest, authenticate
from baas_auth_plugins._lifecycle.coordinator import Coordinator, LocalCoordinator, LocalState
from baas_auth_plugins._lifecycle.credentials import ClientCredentials
from baas_auth_plugins._lifecycle.effects import Flow, Outcome, ReadResponse, RunInThread, SendTokenRequest, Sleep
from baas_auth_plugins._lifecycle.rate_limit import RateLimiter, RateLimits
from baas_auth_plugins._lifecycle.source import TokenSource
from baas_auth_plugins._lifecycle.state import TokenState
from baas_auth_plugins._oauth.origins import AllowedOrigins
from baas_auth_plugins._oauth.token import now

__all__ = ["Dict", "Faulty", "Gateway", "Process", "Request"]

KEY, LIMITS_KEY, SECRET_KEY = "the key", "the limits", bytes(32)

Fault = Literal["fails", "fails after it was done", "hangs", "hangs and is done later", "is slow"]
FAULTS: tuple[Fault, ...] = ("fails", "fails after it was done", "hangs", "hangs and is done later", "is slow")


class Faulty:
    """One process's way to the shared dict: two methods that are counted, and fail when they are told to."""

    def __init__(self, store: Dict) -> None:
        self._store = store
        self.operations: list[str] = []
        self.failing = 0
        """How many of the next operations fail."""
        self.fails_afterwards = False
        """Whether they are done before they fail."""

    def get(self, key: str) -> tuple[bytes, float] | None:
        self.operations.append("get")
        return self._maybe(lambda: self._store.get(key))

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        self.operations.append("swap")
        return self._maybe(lambda: self._store.swap(key, old, new, ttl))

    def _maybe(self, operation: Callable[[], Any]) -> Any:
        if not self.failing:
            return operation()
        self.failing -= 1
        if self.fails_afterwards:
            operation()
        raise ConnectionError("Connection reset by peer")


assert issubclass(Faulty, TokenCache)


class Request:
    """An API request as the flows see it."""

    is_replayable = True
    user_agent: str | None = "shop/1"
    origin = ("https", "gateway.example", 443)

    def __init__(self) -> None:
        self.authorization: str | None = None
        self.sent: list[str] = []
        self.statuses: list[int] = []

    def authorize(self, access_token: str) -> None:
        self.authorization = f"Bearer {access_token}"


@dataclass
class Gateway:
    """Issues tokens and accepts them until they are revoked.

    Attributes:
        issued: how many tokens it has issued.
        answers: what it answers to the next token requests, instead of a token.
        accepts: the tokens that its API accepts.
        newest_only: whether a new token ends the one before.
    """

    issued: int = 0
    requests: int = 0
    expires_in: float = 300
    newest_only: bool = False
    answers: list[Any] = field(default_factory=list)
    accepts: set[str] = field(default_factory=set)

    def token(self) -> Any:
        """Answer a token request."""
        self.requests += 1
        if self.answers:
            return self.answers.pop(0)
        self.issued += 1
        if self.newest_only:
            self.accepts.clear()
        self.accepts.add(f"token-{self.issued}")
        return issued(f"token-{self.issued}", self.expires_in)

    def api(self, request: Request) -> Answer:
        """Answer an API request."""
        token = str(request.authorization).removeprefix("Bearer ")
        request.sent.append(token)
        request.statuses.append(200 if token in self.accepts else 401)
        return Answer(request.statuses[-1], request)

    def revoke(self) -> None:
        """Revoke every token."""
        self.accepts.clear()

    @staticmethod
    def down() -> Any:
        """Return the answer of a gateway that is down."""
        return answer(503)


class Process:
    """One process: its own state, limiter and coordinator, and the way to a cache that it shares, or none.

    Attributes:
        faults: number of a cache operation, counted from the next one, to what happens at it.
        later: operations that hung, and are done when a test says so.
    """

    def __init__(
        self,
        clock: FakeClock,
        gateway: Gateway,
        store: Dict | None = None,
        *,
        limit: tuple[int, float] | None = None,
        **client: Any,
    ) -> None:
        self.clock, self.gateway = clock, gateway
        provider = replace(CLIENT.provider, token_rate_limit=limit)
        self.client = CLIENT._replace(provider=provider, **client)
        self.limiter = RateLimiter(limit)
        self.local = LocalState(None, KEY)
        self.coordinator: Coordinator
        if store is None:
            self.coordinator = LocalCoordinator(self.local, self.limiter)
        else:
            self.cache = Faulty(store)
            self.store = SharedStore(self.cache)
            self.codec: Codec[TokenState] = state_codec(KEY, SECRET_KEY)
            limits: Codec[RateLimits] = limits_codec(LIMITS_KEY, SECRET_KEY, (limit or (0, 0.0))[1])
            self.coordinator = FleetCoordinator("bs2", self.local, self.limiter, self.store, self.codec, limits)
        self.source = TokenSource("bs2", KEY, self.local, self.coordinator, self.limiter)
        self.events: list[Any] = []
        self.credentials = ClientCredentials(
            self.client, SECRET, lambda _secret: self.source, self._sender, self.events.append, None
        )
        self.parts = AuthParts(self.credentials, AllowedOrigins("bs2", Request.origin, []))
        self.faults: dict[int, Fault] = {}
        self.count = 0
        self.later: list[Callable[[], None]] = []

    @staticmethod
    def _sender(_request: Any) -> Any:
        raise AssertionError("token requests are answered by hand")

    def start(self, request: Request | None = None) -> Steps:
        """Begin an API call, and stop at its first effect."""
        return Steps(authenticate(self.parts, request or Request(), None))

    def call(self, request: Request | None = None) -> int:
        """Call the API, and return the status that the caller sees."""
        request = request or Request()
        self.finish(self.start(request))
        return request.statuses[-1]

    def run(self, flow: Flow[Any]) -> Any:
        """Run a flow to its end."""
        return self.finish(Steps(flow))

    def finish(self, steps: Steps) -> Any:
        """Run a flow that has begun to its end."""
        while not steps.is_over:
            self.step(steps)
        if steps.error is not None:
            raise steps.error
        return steps.value

    def until(self, steps: Steps, kind: type) -> Steps:
        """Run a flow until it yields an effect of this kind."""
        while not steps.is_over and not isinstance(steps.effect, kind):
            self.step(steps)
        assert not steps.is_over, f"it ended without a {kind.__name__}"
        return steps

    def step(self, steps: Steps) -> None:
        """Perform one effect."""
        effect = steps.effect
        if isinstance(effect, RunInThread):
            steps.go(self._run(effect))
        elif isinstance(effect, Sleep):
            self.clock.advance(effect.seconds)
            steps.go()
        elif isinstance(effect, ReadResponse):
            steps.go()
        elif isinstance(effect, SendRequest):
            steps.go(self.gateway.api(effect.request))  # type: ignore[arg-type]  # there are no other requests here
        elif isinstance(effect, SendTokenRequest):
            result = self.gateway.token()
            if isinstance(result, BaseException):
                steps.fail(result)
            else:
                steps.go(result)
        else:
            raise AssertionError(f"a single caller needs no {steps.kind}")  # noqa: TRY004  # the test failed, not a type

    def _run(self, effect: RunInThread[Any]) -> Outcome[Any]:
        fault, self.count = self.faults.get(self.count), self.count + 1
        job = effect.job
        if fault == "fails":
            return Outcome(error=ConnectionError())
        if fault == "hangs":
            self.clock.advance(effect.seconds)
            return Outcome(is_timeout=True)
        if fault == "hangs and is done later":
            self.clock.advance(effect.seconds)
            self.later.append(job._run)
            return Outcome(is_timeout=True)
        if fault == "is slow":
            self.clock.advance(effect.seconds * 0.9)
        job._run()
        if fault == "fails after it was done":
            return Outcome(error=ConnectionError())
        assert job.outcome is not None
        return job.outcome

    def arm(self, number: int, fault: Fault, times: int = 1) -> None:
        """Let the operation of this number, counted from now on, fail; and those after it, `times` in all."""
        self.faults = {self.count + number + each: fault for each in range(times)}

    def do_later(self) -> None:
        """Let the operations that hung come through at last."""
        later, self.later = self.later, []
        for operation in later:
            operation()

    def record(self) -> TokenState | None:
        """Return what is in the cache, as this process reads it."""
        raw, ttl = self.cache._store.get(KEY) or (None, 0.0)
        return self.codec.decrypt(raw, ttl, now())
