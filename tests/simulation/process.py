"""One process: its own registries, clocks and auth objects, while the cache and the gateway are common to all."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from baas_auth_plugins import _process
from baas_auth_plugins._http.flow import AuthParts
from baas_auth_plugins._lifecycle.call import Sender
from baas_auth_plugins._lifecycle.credentials import ClientCredentials
from baas_auth_plugins._lifecycle.effects import Flow
from baas_auth_plugins._oauth.client import OAuthClient
from baas_auth_plugins._oauth.origins import AllowedOrigins
from baas_auth_plugins._oauth.provider import Provider
from baas_auth_plugins.auth import _source_finder
from baas_auth_plugins.cache import MemoryTokenCache

from .callers import HOME
from .gateway import Key
from .store import Blocked, Cache, Store
from .world import Host, World

__all__ = ["Party", "Process", "Vault", "build_parties", "provider"]


def provider(limit: tuple[int, float] | None) -> Provider:
    """Return a gateway like the real ones."""
    return Provider(
        name="gateway",
        env_prefix="GATEWAY",
        environments={"production": "https://gateway.example"},
        token_endpoint="/token",  # a path
        token_endpoint_auth_method="client_secret_post",
        token_rate_limit=limit,
    )


@dataclass(eq=False)
class Process:
    """A process. `enter` makes the code under test see it."""

    number: int
    host: Host
    id: str
    registries: dict[int, Any] = field(default_factory=dict)
    parties: list[Party] = field(default_factory=list)
    referee: Any = None
    job_function: Any = None
    is_gone: bool = False

    def enter(self) -> None:
        """Show this process's globals."""
        _process._by_owner = self.registries
        _process._process_id = self.id


@dataclass(eq=False)
class Party:
    """One auth object. `key` is whose tokens it gets: with a vault, as far as was seen."""

    name: str
    process: Process
    client: OAuthClient
    key: Key
    is_background: bool
    has_session: bool
    vault: Vault | None
    sender: Sender
    credentials: ClientCredentials = field(init=False)
    parts: AuthParts = field(init=False)
    is_resolved: bool = False  # whether it has read its secret


class Vault:
    """Where a callable secret comes from. It may hang, and it may raise."""

    def __init__(self, world: World, client_id: str) -> None:
        self.world = world
        self.client_id = client_id
        self.version = 1
        self.state = "fine"
        self.failed_at = self.rotated_at = float("-inf")

    @property
    def key(self) -> Key:
        """The client_id, and the secret in force."""
        return self.client_id, f"secret {self.version}"

    def __call__(self) -> str:
        """What the auth object calls: the secret comes some time later."""
        raise Blocked(self._begin)

    def _begin(self, finish: Callable[[Callable[[], Any]], None]) -> None:
        rng = self.world.random
        if self.state != "fine":
            self.failed_at = self.world.true
        seconds = rng.uniform(3, 60) if self.state == "hangs" else rng.choice((0.001, 0.01, 0.3))
        self.world.after(seconds, lambda: finish(self._read))

    def _read(self) -> str:
        if self.state != "fine":
            self.failed_at = self.world.true
        if self.state == "raises":
            raise self.world.random.choice((OSError, KeyError))("vault")
        return self.key[1]


def build_parties(
    process: Process,
    rng: random.Random,
    scenario: Any,
    store: Store | None,
    vault: Vault | None,
    sender: Sender,
    renew: Callable[[Flow[Any]], object],
) -> None:
    """Make a process's auth objects, over one cache."""
    cache: Any = Cache(store, process) if store is not None else MemoryTokenCache()
    declared = provider(scenario.limit)
    for number in range(scenario.parties):
        other = scenario.has_tenants and number % 2 == 1
        client_id = "other" if other else "client"
        key = (client_id, "another secret") if other or vault is None else vault.key
        client = OAuthClient(
            declared,
            client_id,
            "https://gateway.example",
            None,
            scenario.leeway,
            scenario.timeout,
            scenario.max_wait,
            {},
        )
        is_background = scenario.background and rng.random() < 0.7
        party = Party(
            f"auth {number} of process {process.number}",
            process,
            client,
            key,
            is_background,
            rng.random() < 0.2,
            None if other else vault,
            sender,
        )
        party.credentials = ClientCredentials(
            client, party.vault or key[1], _source_finder(client, cache), sender, None, renew if is_background else None
        )
        party.parts = AuthParts(party.credentials, AllowedOrigins("gateway", HOME, ()))
        process.parties.append(party)
