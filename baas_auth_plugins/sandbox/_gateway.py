"""The gateways as one function from request to response, with their state: no sockets, no sleeping.

An answer is computed when its request arrives. A delay comes after that, so a late answer shows the state
before the delay, as on a slow network.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any

from .._oauth.provider import Provider
from ._endpoints import Endpoints
from ._faults import FIXED, Fault, FaultQueue, fault_from_header
from ._journal import Journal
from ._messages import Kind, Pairs, RecordedRequest, Request, Response
from ._refusal import RefusedError
from ._routes import Route, Routes
from ._tokens import IssuedToken, public_keys

__all__ = ["Exchange", "Gateway", "Origin"]

_PROBLEMS = {400: "invalid_request", 403: "access_denied", 404: "not_found", 429: "rate_limit_exceeded"}
_MOST_SPENT = 10_000

logger = logging.getLogger("baas_auth_plugins.sandbox")


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answer to be sent, and the number under which its request is recorded, if it is."""

    number: int | None
    response: Response


class Gateway(Endpoints):
    """The endpoints behind one lock, with faults and a record; `Sandbox` documents the parameters."""

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: str,
        expires_in: float | None,
        single_active_token: bool,
        enforce_rate_limits: bool,
        on_request: Callable[[RecordedRequest], object] | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(
            client_id=client_id,
            client_secret=client_secret,
            expires_in=expires_in,
            single_active_token=single_active_token,
            enforce_rate_limits=enforce_rate_limits,
            clock=clock,
        )
        self._on_request = on_request
        self._lock = threading.Lock()
        self._faults = FaultQueue()
        self._spent: OrderedDict[str, None] = OrderedDict()
        self._journal = Journal()

    # -- what a test reads and arranges

    @property
    def requests(self) -> list[RecordedRequest]:
        """The latest 10,000 requests that reached a gateway, in order of arrival."""
        return self.requests_after(0)[2]

    def requests_after(self, number: int) -> tuple[int, int, list[RecordedRequest]]:
        """Return the first number that is kept, the last one, and the requests above `number` in order of arrival."""
        with self._lock:
            return self._journal.first, self._journal.last, self._journal.records(number)

    @property
    def max_in_flight(self) -> int:
        """The most token requests that were being answered at the same moment."""
        return self._journal.max_in_flight

    def counts(self) -> Counter[tuple[str | None, str]]:
        """Return how many requests each (provider, kind) has had."""
        with self._lock:
            return self._journal.counts()

    def count(self, kind: str, provider: str | None = None) -> int:
        """Return how many requests of a kind arrived, at one gateway or at all."""
        return sum(n for (name, k), n in self.counts().items() if k == kind and provider in (None, name))

    @property
    def faults(self) -> list[Fault]:
        """The faults that have not happened yet."""
        with self._lock:
            return self._faults.waiting()

    @property
    def tokens(self) -> list[IssuedToken]:
        """The valid tokens, oldest first."""
        with self._lock:
            return self._tokens.valid(self._clock())

    def now(self) -> float:
        """Return the gateways' time in epoch seconds."""
        return self._clock()

    def rotate_secret(self, new: str) -> None:
        """Accept this client secret from now on and no other; issued tokens stay valid."""
        self.client_secret = new

    def inject(self, fault: Fault) -> None:
        """Queue a fault behind those that are waiting.

        Raises:
            ValueError: 1,000 faults are waiting already.
        """
        with self._lock:
            self._faults.add(fault)

    def clear_faults(self) -> None:
        """Forget the faults that have not happened yet."""
        with self._lock:
            self._faults.clear()

    def revoke(self, digest: str | None = None, *, provider: str | None = None) -> int:
        """Revoke valid tokens: the APIs answer 401 to them.

        Args:
            digest: of the only token to revoke: the first 8 hex digits of its SHA-256.
            provider: name of the only gateway whose tokens are revoked.

        Returns:
            How many tokens were revoked.
        """
        with self._lock:
            tokens = self._tokens.valid(self._clock(), digest=digest, provider=provider)
            for token in tokens:
                token.revoked = True
        return len(tokens)

    def expire(self, digest: str | None = None, *, provider: str | None = None) -> int:
        """Let valid tokens expire now, before their time; arguments and result are those of `revoke`."""
        with self._lock:
            tokens = self._tokens.valid(self._clock(), digest=digest, provider=provider)
            for token in tokens:
                token.expires_in = self._clock() - token.issued_at
        return len(tokens)

    def revoke_all(self) -> None:
        """Revoke every token issued so far: the APIs answer 401 to them."""
        self.revoke()

    def clear(self) -> None:
        """Forget requests, faults, tokens and rate windows."""
        with self._lock:
            self._tokens.clear()
            self._faults.clear()
            self._spent.clear()
            self._journal.clear()
            self._windows.clear()

    def clear_requests(self) -> None:
        """Forget the requests so far, and their counts."""
        with self._lock:
            self._journal.clear()

    @staticmethod
    def jwks() -> dict[str, Any]:
        """Return the JWK set (RFC 7517) that verifies the JWTs; no real gateway publishes one."""
        return public_keys()

    # -- one request

    def answer(self, request: Request, routes: Routes) -> Exchange:
        """Compute and record the answer to a request at the origin with these routes; call `finish` when it is sent."""
        with self._lock:
            route = routes.find(request.path)
            provider = self._provider(request, route, routes)
            response = self._respond(request, route, provider)
            if not any(name.lower() == "date" for name, _ in response.headers):
                response = replace(response, headers=(("Date", _date(self._clock())), *response.headers))
            name = provider.name if provider else None
            number = self._journal.begin(request, route.kind, name, response, self._clock())
            return Exchange(number, response)

    def finish(self, exchange: Exchange) -> None:
        """Note that an answer is sent now, or that its client is gone."""
        if exchange.number is None:
            return
        with self._lock:
            record = self._journal.finish(exchange.number)
        if self._on_request is not None and record is not None:
            try:
                self._on_request(record)
            except Exception:
                logger.exception("on_request raised an exception")

    def _provider(self, request: Request, route: Route, routes: Routes) -> Provider | None:
        if route.kind == "api" and (token := self._presented(request)):
            for provider in route.owners or routes.providers:
                if provider.name == token.provider:
                    return provider
        return route.owners[-1] if route.owners else None

    def _respond(self, request: Request, route: Route, provider: Provider | None) -> Response:
        try:
            fault = self._fault(request, route.kind, provider.name if provider else None)
        except ValueError as error:
            return self._refuse(RefusedError(400, "invalid_request", str(error)), route.kind, provider)
        if fault is None:
            return self._answer(request, route, provider)
        return self._spoil(fault, request, route, provider)

    def _fault(self, request: Request, kind: Kind, provider: str | None) -> Fault | None:
        wanted = request.headers.get("x-sandbox-fault") if kind == "api" else None
        if wanted is None or wanted in self._spent:
            return self._faults.take(kind, provider)
        fault = fault_from_header(wanted)
        if ";" in wanted:
            self._spent[wanted] = None
            if len(self._spent) > _MOST_SPENT:
                self._spent.popitem(last=False)
        return fault

    def _spoil(self, fault: Fault, request: Request, route: Route, provider: Provider | None) -> Response:
        response = self._spoilt(fault, request, route, provider)
        extra: Pairs = fault.headers
        if fault.retry_after is not None and fault.kind != "status":  # which has sent it already
            extra += (("Retry-After", str(fault.retry_after)),)
        replaced = {name.lower() for name, _ in extra}
        return replace(
            response,
            headers=(*(pair for pair in response.headers if pair[0].lower() not in replaced), *extra),
            body=response.body if fault.body is None else fault.body,
            delay=0.0 if fault.kind == "drip" else fault.delay or response.delay,
            drip=fault.delay if fault.kind == "drip" else 0.0,
            fault=fault.kind,
            problem="" if fault.kind == "status" else response.problem,
        )

    def _spoilt(self, fault: Fault, request: Request, route: Route, provider: Provider | None) -> Response:
        match fault.kind:
            case "status":
                status = fault.status or 500
                unauthorized = "invalid_token" if route.kind == "api" else "invalid_client"
                problem = {**_PROBLEMS, 401: unauthorized}.get(status, "server_error")
                refusal = RefusedError(status, problem, retry_after=fault.retry_after)
                return self._refuse(refusal, route.kind, provider)
            case "delay" | "drip" | "expire":
                return self._answer(request, route, provider, expired=fault.kind == "expire")
            case "truncate":
                whole = self._answer(request, route, provider)
                kept = len(whole.body) // 2
                return replace(whole, body=whole.body[:kept], missing=len(whole.body) - kept)
            case "redirect":
                return Response(fault.status or 307)
            case kind:
                response = FIXED[kind]
                return replace(response, status=response.status and (fault.status or response.status))


class Origin:
    """The gateways behind one origin: which of them answers there is up to its routes."""

    def __init__(self, gateway: Gateway, routes: Routes) -> None:
        self._gateway = gateway
        self._routes = routes

    def begin(self, request: Request) -> Exchange:
        """Compute and record the answer to a request."""
        return self._gateway.answer(request, self._routes)

    def finish(self, exchange: Exchange) -> None:
        """Note that an answer is sent now, or that its client is gone."""
        self._gateway.finish(exchange)


def _date(seconds: float) -> str:
    try:
        return formatdate(seconds, usegmt=True)
    except (ValueError, OverflowError, OSError):
        return formatdate(0, usegmt=True)
