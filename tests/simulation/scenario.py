"""What one seed means: which gateway, which auth objects, who calls when, and what goes wrong besides."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

from baas_auth_plugins import _grant
from baas_auth_plugins._client import Client
from baas_auth_plugins._client import logger as package_logger
from baas_auth_plugins._grant import Grant
from baas_auth_plugins._provider import Provider
from baas_auth_plugins._registry import Registry
from baas_auth_plugins._token import Token
from baas_auth_plugins.cache import MemoryTokenCache
from baas_auth_plugins.providers import PROVIDERS

from .callers import HOME, Face, Party
from .gateway import Climate, key_of

__all__ = ["Scenario", "Vault", "build_parties", "fresh_process"]

_LIVES = (60, 61.5, 90, 300, 300, 420, 600, 1800, 3600, 3600)
_LEEWAYS = (300.0, 300.0, 300.0, 300.0, 30.0, 3.0, 0.0, 10_000.0)
_TROUBLES = ("revoke", "wall clock step", "sleep", "fork", "freeze", "rotate", "invalidate", "vault")


@dataclass
class Scenario:
    """The knobs, drawn from the seed."""

    seed: int
    provider: Provider
    climate: Climate
    auth_objects: int
    alike: bool
    """Whether all auth objects have the same leeway and patience."""
    callable_secret: bool
    slow_cache: bool
    background: bool
    clients: tuple[str, ...]
    bursts: int
    crowd: int
    impatience: float
    denied: float
    """Share of calls to a path that always answers 401."""
    plain: bool
    """Whether all bodies are bytes."""
    troubles: tuple[str, ...]

    @classmethod
    def draw(cls, seed: int) -> Scenario:
        """Return this seed's scenario: always the same."""
        rng = random.Random(f"scenario {seed}")  # noqa: S311  # a simulation, not cryptography
        provider = rng.choice(PROVIDERS).provider
        steps = rng.choice(("wall clock step", "sleep"))  # never both: back and asleep at once hides time from both
        troubles = [name for name in _TROUBLES if name not in ("wall clock step", "sleep") or name == steps]
        callable_secret = rng.random() < 0.2
        if not callable_secret:
            troubles = [name for name in troubles if name not in ("rotate", "vault")]
        return cls(
            seed=seed,
            provider=provider,
            climate=Climate(
                life=rng.choice(_LIVES),
                stormy=rng.choice((0.0, 0.2, 0.5, 0.8)),
                single_active=rng.random() < 0.25,
                reissues=rng.random() < 0.2,
                api_faults=rng.choice((0.0, 0.0, 0.02, 0.2)),
                slow=rng.random() < 0.1,
                scope="cob.read pix.read" if provider.scope == "assigned" and rng.random() < 0.5 else None,
            ),
            auth_objects=rng.choice((1, 1, 2, 4)),
            alike=rng.random() < 0.7,
            callable_secret=callable_secret,
            slow_cache=rng.random() < 0.15,
            background=rng.random() < 0.2,
            clients=rng.choice((("requests",), ("httpx",), ("requests", "httpx"), ("requests", "httpx", "get_token"))),
            bursts=rng.randint(8, 24),
            crowd=rng.choice((1, 3, 8, 20)),
            impatience=rng.choice((0.0, 0.0, 0.1, 0.5)),
            denied=rng.choice((0.0, 0.0, 0.0, 0.1, 0.6)),
            plain=rng.random() < 0.5,
            troubles=tuple(rng.sample(troubles, rng.choice((0, 0, 1, 2)))),
        )


class Vault:
    """Where a callable secret comes from."""

    version = 1
    sealed = False

    @property
    def secret(self) -> str:
        """The secret now in force."""
        return f"secret number {self.version}"

    def __call__(self) -> str:
        """What the auth object calls."""
        if self.sealed:
            raise OSError("the vault is sealed")
        return self.secret

    def rotate(self) -> None:
        """Put another secret in force."""
        self.version += 1


@dataclass
class SlowCache(MemoryTokenCache):
    """A cache that does I/O, and fails now and then."""

    blocking: ClassVar[bool] = True
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        MemoryTokenCache.__init__(self)

    def get(self, key: str) -> Token | None:
        self._fail()
        return super().get(key)

    def set(self, key: str, token: Token) -> None:
        self._fail()
        super().set(key, token)

    def delete(self, key: str, token: Token) -> None:
        self._fail()
        super().delete(key, token)

    def _fail(self) -> None:
        if self.rng.random() < 0.05:
            raise ConnectionError("the cache is gone")

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def build_parties(
    scenario: Scenario,
    rng: random.Random,
    vault: Vault | None,
    accept: Callable[[Any], None],
    spawn: Callable[[Party], Any],
) -> list[Party]:
    """Return this seed's auth objects: equal credentials, one cache."""
    cache = SlowCache(rng=rng) if scenario.slow_cache else MemoryTokenCache()
    common = (rng.choice(_LEEWAYS), rng.choice((2.0, 10.0)), rng.choice((20.0, 60.0)))
    scope = "cob.read pix.read" if scenario.provider.scope == "required" else scenario.climate.scope
    parties = []
    for number in range(scenario.auth_objects):
        drawn = (rng.choice(_LEEWAYS), rng.choice((2.0, 10.0)), rng.choice((5.0, 20.0, 60.0)))
        leeway, timeout, max_wait = common if scenario.alike else drawn
        client = Client(scenario.provider, "client", HOME, scope, leeway, timeout, max_wait, headers={})
        secret = "a secret that stays"
        key = None if vault else key_of(client.token_request(secret, None)(1.0))
        if key is not None:
            accept(key)
        background = scenario.background and rng.random() < 0.7
        party = Party(f"auth {number}", None, leeway, timeout, max_wait, background, key, vault is not None)  # type: ignore[arg-type]
        party.face = Face(Grant(client, vault or secret, cache, spawn(party) if background else None))
        parties.append(party)
    return parties


@contextmanager
def fresh_process() -> Iterator[None]:
    """Give the production code empty registries and nobody to log to."""
    level = package_logger.level
    package_logger.setLevel(logging.CRITICAL + 1)
    try:
        with patch.object(_grant, "_sources", Registry()), patch.object(_grant, "_limiters", Registry()):
            yield
    finally:
        package_logger.setLevel(level)
