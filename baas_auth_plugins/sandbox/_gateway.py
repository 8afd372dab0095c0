"""The gateways as one function from request to response, with their state: no sockets, no sleeping.

An answer is worked out when its request arrives; what delays it comes after. So an answer that is
late tells how things stood before, as on a slow network.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from .._oauth.provider import Provider
from ._control import PREFIX, control
from ._dialects import RefusedError
from ._endpoints import Endpoints
from ._faults import FIXED, Fault, FaultQueue, fault_from_header
from ._journal import Journal
from ._messages import Kind, Pairs, RecordedRequest, Request, Response
from ._routes import Route, Routes
from ._tokens import public_keys

__all__ = ["Exchange", "Gateway"]

_PROBLEMS = {400: "invalid_request", 403: "access_denied", 404: "not_found", 429: "rate_limit_exceeded"}


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
        providers: Iterable[str | Provider] | None,
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
        self._lock = threading.Lock()
        self._routes = Routes(providers)
        self._faults = FaultQueue()
        self._spent: set[str] = set()
        self._journal = Journal()

    # -- what tests ask and arrange

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request that reached a gateway so far, in order of arrival."""
        with self._lock:
            return self._journal.records()

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

    def rotate_secret(self, new: str) -> None:
        """Accept this client secret from now on and no other; issued tokens go on."""
        self.client_secret = new

    def inject(self, fault: Fault) -> None:
        """Queue a fault behind those already waiting."""
        with self._lock:
            self._faults.add(fault)

    def clear_faults(self) -> None:
        """Forget the faults that have not happened yet."""
        with self._lock:
            self._faults.clear()

    def revoke_all(self) -> None:
        """Revoke every token issued so far: the APIs answer 401 to them."""
        with self._lock:
            self._tokens.revoke()

    def clear(self) -> None:
        """Forget requests, faults, tokens and rate windows."""
        with self._lock:
            self._tokens.clear()
            self._faults.clear()
            self._spent.clear()
            self._journal.clear()
            self._windows.clear()

    @staticmethod
    def jwks() -> dict[str, Any]:
        """Return the JWK set (RFC 7517) that verifies the JWTs; no real gateway publishes one."""
        return public_keys()

    # -- one request

    def begin(self, request: Request) -> Exchange:
        """Work out and record the answer to a request; `finish` is due when it goes out."""
        if request.path.startswith(PREFIX):
            return Exchange(None, control(self, request))
        with self._lock:
            route = self._routes.find(request.path)
            provider = self._provider(request, route)
            response = self._respond(request, route, provider)
            name = provider.name if provider else None
            return Exchange(self._journal.begin(request, route.kind, name, response.status), response)

    def finish(self, exchange: Exchange) -> None:
        """Note that an answer goes out now, or that its client is gone."""
        if exchange.number is not None:
            with self._lock:
                self._journal.finish(exchange.number)

    def _provider(self, request: Request, route: Route) -> Provider | None:
        if route.kind == "api" and (token := self._presented(request)):
            for provider in route.owners or self._routes.providers:
                if provider.name == token.provider:
                    return provider
        return route.owners[-1] if route.owners else None

    def _respond(self, request: Request, route: Route, provider: Provider | None) -> Response:
        try:
            fault = self._fault(request, route.kind)
        except ValueError as error:
            return self._refuse(RefusedError(400, "invalid_request", str(error)), route.kind, provider)
        if fault is None:
            return self._answer(request, route, provider)
        return self._spoil(fault, request, route, provider)

    def _fault(self, request: Request, kind: Kind) -> Fault | None:
        asked = request.headers.get("x-sandbox-fault") if kind == "api" else None
        if asked is None or asked in self._spent:
            return self._faults.take(kind)
        fault = fault_from_header(asked)
        if ";" in asked:
            self._spent.add(asked)
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
            delay=fault.delay or response.delay,
        )

    def _spoilt(self, fault: Fault, request: Request, route: Route, provider: Provider | None) -> Response:
        match fault.kind:
            case "status":
                status = fault.status or 500
                unauthorized = "invalid_token" if route.kind == "api" else "invalid_client"
                problem = {**_PROBLEMS, 401: unauthorized}.get(status, "server_error")
                refusal = RefusedError(status, problem, retry_after=fault.retry_after)
                return self._refuse(refusal, route.kind, provider)
            case "delay" | "expire":
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
