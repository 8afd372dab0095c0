"""A faulty gateway: the token endpoint and the API, on the true time, with a weather of faults."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from baas_auth_plugins._oauth.messages import TokenRequest, TokenResponse

from .world import World

__all__ = ["Climate", "Gateway", "Issued", "Key", "Reply", "key_of"]

Key = tuple[str, str]
"""A client_id and a secret."""

WEATHERS = ("401", "400", "429", "429 bare", "429 tiny", "429 absurd", "500", "503", "302", "garbage", "html", "drop")
_SLOW = ("slow", "drip")


def key_of(request: TokenRequest) -> Key:
    """Return who sends a token request."""
    form = parse_qs(request.body.decode())
    return form["client_id"][0], form["client_secret"][0]


@dataclass(eq=False)
class Issued:
    """A token that the gateway issued."""

    text: str
    key: Key
    at: float
    life: float
    revoked: bool = False


@dataclass
class Reply:
    """What becomes of a token request: `response` is None if the connection drops."""

    kind: str
    response: TokenResponse | None
    issued: Issued | None = None
    retry_after: float = 0.0


@dataclass(frozen=True)
class Climate:
    """How the gateway is. `stormy` is the share of time in which the token endpoint fails."""

    life: float
    stormy: float
    newest_only: bool
    reissues: bool
    api_faults: float


class Gateway:
    """The token endpoint and the API of one gateway."""

    def __init__(self, world: World, climate: Climate, faults: Counter[str]) -> None:
        self.world = world
        self.climate = climate
        self.faults = faults
        self.accepted: set[Key] = set()
        self.tokens: dict[str, Issued] = {}
        self.current: dict[Key, Issued] = {}
        self.failed_at = float("-inf")  # true time of the last fault
        self._weather, self._until, self._number = "fine", 0.0, 0

    def token_request(
        self, request: TokenRequest, arrives: Callable[[], object], answer: Callable[[Reply], object]
    ) -> None:
        """Take a token request: call `arrives` as it arrives, and `answer` as the answer does."""
        world, rng = self.world, self.world.random
        kind = self._kind()
        there, back = rng.choice((0.005, 0.05, 0.3)), rng.choice((0.005, 0.05, 0.3))
        if kind in _SLOW:
            there = rng.uniform(0.1, 25.0)
        if kind != "fine":
            self.failed_at = world.true
            self.faults[f"token endpoint: {kind}"] += 1

        def arrive() -> None:
            arrives()
            reply = self._reply(kind, key_of(request))
            if reply.issued is None:
                self.failed_at = world.true
            world.after(back, lambda: answer(reply))

        world.after(there, arrive)

    def _kind(self) -> str:
        rng, climate = self.world.random, self.climate
        if climate.stormy and self.world.true >= self._until:
            storm = rng.random() < climate.stormy
            self._weather = rng.choice((*WEATHERS, *_SLOW, "mixed", "mixed")) if storm else "fine"
            self._until = self.world.true + rng.choice((2, 20, 200, 1000)) * rng.random()
        return rng.choice((*WEATHERS, *_SLOW, *["fine"] * 8)) if self._weather == "mixed" else self._weather

    def _reply(self, kind: str, key: Key) -> Reply:
        rng = self.world.random
        if key not in self.accepted:
            return _refusal("wrong secret", 401, {"error": "invalid_client"})
        if kind in ("fine", *_SLOW):
            return self._issue(key)
        if kind == "drop":
            if rng.random() < 0.5:
                self._issue(key)  # and the answer is lost
            return Reply(kind, None)
        if kind == "garbage":
            return _refusal(
                kind, 200, rng.choice(({}, {"access_token": "x", "expires_in": 0}, {"error": "invalid_client"}, []))
            )
        if kind == "html":
            return Reply("refusal", TokenResponse(200, {}, b"<html>"))
        if kind in ("401", "400", "302"):
            return _refusal(kind, int(kind), {"error": "unauthorized_client"})
        if kind == "503" or kind.startswith("429"):
            header = {"429": "7", "429 tiny": "0.001", "429 absurd": "1764000000"}.get(kind)
            if kind == "429":
                header = rng.choice(("1", "7", "30", "90"))
            wait = min(float(header or 0), 300.0)
            headers = {"retry-after": header} if header else {}
            return Reply(
                "limited" if kind != "503" else "outage", TokenResponse(int(kind[:3]), headers, b"{}"), None, wait
            )
        return Reply("outage", TokenResponse(int(kind), {}, b"{}"))

    def _issue(self, key: Key) -> Reply:
        true, old = self.world.true, self.current.get(key)
        if self.climate.reissues and old is not None and not old.revoked and old.at + old.life - true > old.life / 4:
            left = old.at + old.life - true
            again = Issued(old.text, key, true, left)
            return Reply("token", _token(old.text, left), again)
        self._number += 1
        issued = Issued(f"token-{self._number}-of-{key[0]}", key, true, self.climate.life)
        if old is not None and self.climate.newest_only:
            old.revoked = True
        self.tokens[issued.text] = self.current[key] = issued
        return Reply("token", _token(issued.text, issued.life), issued)

    def api_status(self, path: str, authorization: str | None) -> int | None:
        """Return the API's answer to a request that arrives now; None if the connection drops."""
        rng = self.world.random
        issued = self.tokens.get((authorization or "").removeprefix("Bearer "))
        if rng.random() < self.climate.api_faults:
            self.faults["API: fault"] += 1
            return rng.choice((500, None))
        good = issued is not None and not issued.revoked and self.world.true < issued.at + issued.life
        return 200 if good and path != "/denied" else 401

    def revoke(self) -> None:
        """Revoke all tokens."""
        for issued in self.tokens.values():
            issued.revoked = True
        self.current.clear()


def _token(text: str, life: float) -> TokenResponse:
    body = {"access_token": text, "token_type": "Bearer", "expires_in": life}
    return TokenResponse(200, {}, json.dumps(body).encode())


def _refusal(kind: str, status: int, body: object) -> Reply:
    return Reply("refusal", TokenResponse(status, {}, json.dumps(body).encode()))
