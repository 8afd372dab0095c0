"""What one seed means: which gateway, who calls, and what goes wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .gateway import Climate
from .store import TROUBLES as STORE_TROUBLES

__all__ = ["Scenario"]


@dataclass(frozen=True)
class Scenario:
    """The settings that are drawn from a seed."""

    climate: Climate
    limit: tuple[int, float] | None
    leeway: float
    timeout: float
    max_wait: float
    processes: int
    parties: int
    has_tenants: bool
    is_shared: bool
    background: bool
    has_vault: bool
    skews: tuple[float, ...]
    kinds: tuple[str, ...]
    bursts: int
    crowd: int
    impatience: float
    denied: float
    unreplayable: float
    hooks: float
    cache_stormy: float
    troubles: tuple[str, ...]

    @classmethod
    def draw(cls, seed: int) -> Scenario:
        """Return a seed's scenario: always the same."""
        rng = random.Random(f"scenario {seed}")  # noqa: S311  # not cryptography
        choice = rng.choice
        processes = choice((1, 1, 1, 2, 2, 3))
        is_shared = processes > 1 or rng.random() < 0.15
        has_vault = rng.random() < 0.15
        troubles = ["revoke", "revoke", "step", "suspend", "fork", "crash", "hang", "invalidate", "revoke twice"]
        troubles += ["rotate", "vault raises", "vault hangs", "vault is fine"] if has_vault else []
        troubles += STORE_TROUBLES if is_shared else []
        is_calm = rng.random() < 0.2  # few faults, strict rules
        return cls(
            climate=Climate(
                life=choice((60.0, 90.0, 300.0, 420.0, 600.0, 1800.0, 3600.0, 3600.0)),
                stormy=0.0 if is_calm else choice((0.0, 0.2, 0.5, 0.8)),
                newest_only=rng.random() < 0.25,
                reissues=rng.random() < 0.15,
                api_faults=choice((0.0, 0.0, 0.02, 0.2)),
            ),
            limit=choice((None, None, (10, 60.0))),
            leeway=choice((300.0, 300.0, 300.0, 30.0, 0.0, 10_000.0)),
            timeout=choice((2.0, 10.0, 10.0)),
            max_wait=choice((5.0, 20.0, 60.0, 60.0)),
            processes=processes,
            parties=choice((1, 1, 2, 3)),
            has_tenants=rng.random() < 0.2,
            is_shared=is_shared,
            background=rng.random() < 0.25,
            has_vault=has_vault,
            skews=tuple(choice((0.0, 0.0, -2.0, 3.0, 90.0)) for _ in range(processes)),
            kinds=choice((("requests",), ("httpx",), ("requests", "httpx"), ("requests", "httpx", "get_token"))),
            bursts=rng.randint(6, 18),
            crowd=choice((1, 2, 4, 8)),
            impatience=choice((0.0, 0.0, 0.1, 0.3)),
            denied=choice((0.0, 0.0, 0.0, 0.1, 0.4)),
            unreplayable=choice((0.0, 0.0, 0.2)),
            hooks=choice((0.0, 0.0, 0.0, 0.3)),
            cache_stormy=0.0 if is_calm else choice((0.0, 0.2, 0.5, 0.9)),
            troubles=("revoke",) if is_calm else tuple(rng.sample(troubles, rng.randint(0, min(5, len(troubles))))),
        )
