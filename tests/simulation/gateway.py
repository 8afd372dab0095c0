"""The gateway: token endpoint and API on their own true time, under a weather of faults.

It shares nothing with the package but the messages of its flows. What it did is returned as a
`Reply`, which tells the referee in plain words what the caller was told in HTTP.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from baas_auth_plugins._flow import TokenRequest, TokenResponse

from .world import World

__all__ = ["Climate", "Exchange", "Gateway", "Issued", "Key", "Reply", "key_of"]

Key = tuple[str, str, bytes]
"""Who asks for what: the token endpoint, the Basic header, the body."""

STORM = ("refused", "reset", "hang", "5xx", "429", "garbage", "refusal")
_PHASES = {  # seconds that each kind of weather lasts
    "fine": (30, 3000),
    "slow": (10, 200),
    "flaky": (10, 300),
    "refused": (5, 600),
    "reset": (5, 300),
    "hang": (5, 300),
    "5xx": (5, 600),
    "429": (5, 120),
    "garbage": (5, 120),
    "refusal": (5, 180),
}
_GARBAGE: tuple[tuple[int, bytes], ...] = (
    (200, b""),
    (200, b"<html>WAF</html>"),
    (200, b"[]"),
    (200, b'{"access_token": "", "expires_in": 60}'),
    (200, b'{"access_token": "t", "expires_in": 0}'),
    (200, b'{"access_token": "t", "expires_in": NaN}'),
    (200, b'{"access_token": "t", "expires_in": true}'),
    (200, b'{"access_token": "t", "token_type": "mac", "expires_in": 60}'),
    (200, b'{"access_token": "two words", "expires_in": 60}'),
    (307, b""),
)


def key_of(request: TokenRequest) -> Key:
    """Return whose token request this is, as the gateway can tell."""
    return request.url, request.headers.get("Authorization", ""), request.body


@dataclass
class Issued:
    """A token as the gateway knows it."""

    access_token: str
    expiry: float
    dead: bool = False


@dataclass
class Reply:
    """What came of a token request; `response` is None where the network failed."""

    kind: str
    response: TokenResponse | None = None
    retry_after: float | None = None
    """Seconds from the reading of the response."""
    retry_at: float | None = None
    """Or a date without the gateway's own to compare it with: a reading of the wall clock."""
    issued: Issued | None = None
    life: float = 0.0


@dataclass
class Climate:
    """What this seed's gateway does: how often it fails, and by which rules it issues tokens."""

    life: float
    stormy: float
    """Share of time in which something is wrong with the token endpoint."""
    single_active: bool = False
    reissues: bool = False
    api_faults: float = 0.0
    scope: str | None = None
    slow: bool = False
    """Whether it is slow even in fine weather."""


class Exchange:
    """One request on its way: it has one outcome, and never arrives once it is abandoned."""

    def __init__(self) -> None:
        self.over = False


@dataclass
class Gateway:
    """Issues tokens and checks them."""

    world: World
    climate: Climate
    faults: Counter[str]
    accepted: set[Key] = field(default_factory=set)
    tokens: dict[str, Issued] = field(default_factory=dict)
    current: dict[Key, Issued] = field(default_factory=dict)
    _weather: str = "fine"
    _until: float = 0.0

    def token_request(
        self, request: TokenRequest, answer: Callable[[Reply], None], arrived: Callable[[], None]
    ) -> Exchange:
        """Carry a token request there and its answer back; call `answer` once, or never."""
        world, exchange = self.world, Exchange()
        weather = self._fault()
        out, back = self._latency(weather), self._latency(weather)

        def settle(reply: Reply) -> None:
            if not exchange.over:
                exchange.over = True
                answer(reply)

        def arrive() -> None:
            if exchange.over:
                return
            arrived()
            if weather == "hang" and world.random.random() < 0.5:
                return
            reply = self._answer(key_of(request), weather)
            if weather == "reset":
                reply = Reply("network")
            if weather != "hang":
                world.at(world.true + back, lambda: settle(reply))

        if weather == "refused":
            world.at(world.true + out, lambda: settle(Reply("network")))
        else:
            world.at(world.true + out, arrive)
        world.after(request.timeout, lambda: settle(Reply("network")))
        return exchange

    def api_request(self, path: str, authorization: str | None, answer: Callable[[int | None], None]) -> Exchange:
        """Carry an API request there, and its status back; None where the network failed."""
        world, exchange = self.world, Exchange()

        def settle(status: int | None) -> None:
            if not exchange.over:
                exchange.over = True
                answer(status)

        def arrive() -> None:
            status = self._api_status(path, authorization)
            world.at(world.true + self._latency("fine"), lambda: settle(status))

        world.at(world.true + self._latency("fine"), arrive)
        return exchange

    def revoke(self) -> None:
        """Kill every token that is out."""
        for issued in self.current.values():
            issued.dead = True

    def _latency(self, weather: str) -> float:
        if weather == "slow":
            return self.world.random.uniform(0.5, 4.0)
        return self.world.random.choice((0.002, 0.02, 0.05, 0.2))

    def _fault(self) -> str:
        """Return what is wrong just now; the weather changes only while somebody looks."""
        rng = self.world.random
        if self.world.true >= self._until:
            self._weather = "slow" if self.climate.slow else "fine"
            if rng.random() < self.climate.stormy:
                self._weather = rng.choice([name for name in _PHASES if name != "fine"])
            self._until = self.world.true + rng.uniform(*_PHASES[self._weather])
        found = self._weather
        if found == "flaky":
            found = rng.choice((*STORM, "fine", "fine"))
        if found != "fine":
            self.faults[f"token endpoint: {found}"] += 1
        return found

    def _answer(self, key: Key, weather: str) -> Reply:
        rng = self.world.random
        if weather == "5xx":
            return self._unavailable(rng.choice((500, 502, 503, 504)), rng.choice((None, None, None, 3, 20)))
        if weather == "429":
            return self._too_many()
        if weather == "garbage":
            status, body = rng.choice(_GARBAGE)
            return Reply("garbage", TokenResponse.of(status, {}, body))
        if weather == "refusal" or key not in self.accepted:
            status, error = rng.choice(((401, "invalid_client"), (400, "invalid_client"), (400, "invalid_scope")))
            if key not in self.accepted:
                status, error = 401, "invalid_client"
            return Reply("refusal", TokenResponse.of(status, {}, json.dumps({"error": error}).encode()))
        return self._issue(key)

    def _unavailable(self, status: int, retry_after: int | None) -> Reply:
        headers = {"Retry-After": str(retry_after)} if retry_after else {}
        return Reply("5xx", TokenResponse.of(status, headers, b"down"), retry_after)

    def _too_many(self) -> Reply:
        rng = self.world.random
        seconds = rng.choice((1, 5, 30, 90))
        form = rng.choice(("bare", "seconds", "date", "date beside Date", "body"))
        headers: dict[str, str] = {}
        body: dict[str, Any] = {"error": "too_many_requests"}
        reply = Reply("429")
        if form == "seconds":
            headers["Retry-After"], reply.retry_after = str(seconds), seconds
        elif form == "body":
            body["retry_after"] = reply.retry_after = seconds
        elif form != "bare":
            # Dates are whole seconds. The gateway's clock is right; the machine's may be stepped.
            date = int(1_750_000_000 + self.world.true)
            headers["Retry-After"] = formatdate(date + seconds, usegmt=True)
            if form == "date":
                reply.retry_at = date + seconds
            else:
                headers["Date"], reply.retry_after = formatdate(date, usegmt=True), seconds
        self.faults[f"429 with Retry-After: {form}"] += 1
        reply.response = TokenResponse.of(429, headers, json.dumps(body).encode())
        return reply

    def _issue(self, key: Key) -> Reply:
        rng, true = self.world.random, self.world.true
        issued = self.current.get(key)
        again = self.climate.reissues and issued is not None and not issued.dead and issued.expiry - true >= 2
        if issued is None or not again:
            if issued is not None and self.climate.single_active:
                self.faults["a new token killed its predecessor"] += not issued.dead and issued.expiry > true
                issued.dead = True
            issued = Issued(f"token-{len(self.tokens)}", true + self.climate.life)
            self.tokens[issued.access_token] = self.current[key] = issued
        else:
            self.faults["the same token was issued again"] += 1
        life = int(issued.expiry - true + 1e-6)
        payload: Mapping[str, Any] = {
            "access_token": issued.access_token,
            "token_type": rng.choice(("Bearer", "bearer")),
            "expires_in": rng.choice((life, float(life), str(life))),
            **({"scope": self.climate.scope} if self.climate.scope else {}),
        }
        response = TokenResponse.of(200, {}, json.dumps(payload).encode())
        return Reply("good", response, issued=issued, life=float(life))

    def _api_status(self, path: str, authorization: str | None) -> int | None:
        roll = self.world.random.random()
        if path == "/denied":
            self.faults["API: a path that always answers 401"] += 1
            return 401
        if roll < self.climate.api_faults:
            kind, status = self.world.random.choice((("401", 401), ("503", 503), ("dropped", None)))
            self.faults[f"API: {kind}"] += 1
            return status
        issued = self.tokens.get((authorization or "").removeprefix("Bearer "))
        return 200 if issued is not None and not issued.dead and self.world.true < issued.expiry else 401
