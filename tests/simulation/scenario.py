"""What one seed means: which gateway, which auth objects, who calls when, and what goes wrong besides."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baas_auth_plugins._client import Client
from baas_auth_plugins._grant import Grant
from baas_auth_plugins._provider import Provider
from baas_auth_plugins.cache import TokenCache
from baas_auth_plugins.providers import PROVIDERS

from .callers import HOME, Face, Party
from .gateway import Climate, key_of
from .process import Process
from .store import LYING
from .store import TROUBLES as STORE_TROUBLES

__all__ = ["SECRET", "Scenario", "Vault", "build_parties"]

_LIVES = (60, 61.5, 90, 300, 300, 420, 600, 1800, 3600, 3600)
_LEEWAYS = (300.0, 300.0, 300.0, 300.0, 30.0, 3.0, 0.0, 10_000.0)
SECRET = "a secret that stays"
_FLEETS = 0.25  # share of seeds in which there is more than one process
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
    shared_cache: bool
    """Whether the cache does I/O, and so may fail."""
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
    processes: int = 1
    skews: tuple[float, ...] = (0.0,)
    """Seconds by which each process's wall clock is off."""
    cache_stormy: float = 0.0
    """Share of time in which something is wrong with a shared cache."""

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
        scenario = cls(
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
            shared_cache=rng.random() < 0.15,
            background=rng.random() < 0.2,
            clients=rng.choice((("requests",), ("httpx",), ("requests", "httpx"), ("requests", "httpx", "get_token"))),
            bursts=rng.randint(8, 24),
            crowd=rng.choice((1, 3, 8, 20)),
            impatience=rng.choice((0.0, 0.0, 0.1, 0.5)),
            denied=rng.choice((0.0, 0.0, 0.0, 0.1, 0.6)),
            plain=rng.random() < 0.5,
            troubles=tuple(rng.sample(troubles, rng.choice((0, 0, 1, 2)))),
        )
        scenario._draw_fleet()
        return scenario

    def _draw_fleet(self) -> None:
        """Draw what is shared with other processes, and how that fails."""
        rng = random.Random(f"fleet {self.seed}")  # noqa: S311  # a simulation, not cryptography
        if rng.random() < _FLEETS:
            self.shared_cache, self.processes = True, rng.randint(2, 8)
            self.crowd += rng.choice((0, self.processes))
            self.bursts = min(self.bursts, 12)
            if rng.random() < 0.3:
                self.troubles += ("kill",)
            if rng.random() < 0.3:
                skew = rng.choice((0.1, 3.0, 600.0, 40_000.0))
                self.skews = tuple(rng.uniform(-skew, skew) for _ in range(self.processes))
        if self.shared_cache:
            self.cache_stormy = rng.choice((0.0, 0.0, 0.0, 0.2, 0.5))
            if rng.random() < 0.3:
                honest = len(self.skews) == 1 and not {"wall clock step", "sleep"}.intersection(self.troubles)
                kinds = [kind for kind in STORE_TROUBLES if honest or kind not in LYING]
                self.troubles += tuple(rng.sample(kinds, rng.choice((1, 2))))


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


def build_parties(
    scenario: Scenario,
    rng: random.Random,
    vault: Vault | None,
    process: Process,
    cache: TokenCache,
    accept: Callable[[Any], None],
    spawn: Callable[[Party], Any],
) -> list[Party]:
    """Return a process's auth objects: equal credentials, one cache."""
    common = (rng.choice(_LEEWAYS), rng.choice((2.0, 10.0)), rng.choice((20.0, 60.0)))
    scope = "cob.read pix.read" if scenario.provider.scope == "required" else scenario.climate.scope
    parties = []
    for number in range(scenario.auth_objects):
        drawn = (rng.choice(_LEEWAYS), rng.choice((2.0, 10.0)), rng.choice((5.0, 20.0, 60.0)))
        leeway, timeout, max_wait = common if scenario.alike else drawn
        client = Client(scenario.provider, "client", HOME, scope, leeway, timeout, max_wait, headers={})
        key = None if vault else key_of(client.token_request(SECRET, {})(1.0))
        if key is not None:
            accept(key)
        background = scenario.background and rng.random() < 0.7
        name = f"auth {number}" + (f" in process {process.number}" if scenario.processes > 1 else "")
        party = Party(name, process, None, leeway, timeout, max_wait, background, key, vault is not None)  # type: ignore[arg-type]
        party.face = Face(Grant(client, vault or SECRET, cache, spawn(party) if background else None))
        parties.append(party)
    return parties
