"""What the demo measures: one gateway through one client, on sandboxes of its own, held to what is promised.

The figures are the sandbox's own records. Events confirm them. Each row has its own sandboxes, so that no row uses up
another's rate limit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from .. import MemoryTokenCache, OAuth2ClientCredentialsAuth
from ..events import Event, RequestReplayed, TokenMinted
from ..exceptions import BaaSAuthError
from ..sandbox import Fault, Sandbox
from ._demo_clients import CLIENTS, HTTPX, Client

__all__ = ["CACHED_CALLS", "COLD_CALLERS", "SCOPE", "SHORT_LIFE", "Row", "cache_and_replay", "renew", "start_cold"]

SCOPE = "cob.read pix.read"
CACHED_CALLS = 100
COLD_CALLERS = 32
SHORT_LIFE = 2.0  # seconds: such a token is due for renewal after half of them
_SLOW_TOKEN_REQUEST = 0.05  # seconds that the token endpoint takes, so that cold callers meet
_ERRORS = (BaaSAuthError, OSError, *(module.HTTPError for module in HTTPX))  # requests' errors are OSErrors


@dataclass(slots=True)
class Row:
    """The figures of one gateway through one client; None until measured."""

    cls: type[OAuth2ClientCredentialsAuth]
    client: str
    sandbox: Callable[..., Sandbox]
    api_calls: int | None = None
    token_requests: int | None = None
    renewals: int | None = None
    replays: int | None = None
    cold: int | None = None
    added: float | None = None  # seconds
    problems: list[str] = field(default_factory=list)

    def open_sandbox(self, **options: Any) -> Sandbox:
        return self.sandbox(providers=[self.cls.provider], **options)

    def auth(self, gateway: Sandbox, client: Client, events: list[Event]) -> OAuth2ClientCredentialsAuth:
        """Return an auth object that has no token yet."""
        return self.cls(
            gateway.client_id,
            gateway.client_secret,
            scope=SCOPE if self.cls.provider.scope == "required" else None,
            base_url=gateway.url,
            cache=MemoryTokenCache(),
            session=client.session,
            on_event=events.append,
        )

    def attempt(self, part: Callable[[Row], None]) -> None:
        """Do a part of the measurements; what it runs into is a problem of this row."""
        try:
            part(self)
        except _ERRORS as error:
            self.problems.append(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def expect(self, what: str, found: object, promised: object) -> None:
        if found != promised:
            self.problems.append(f"{what}: {found}, promised: {promised}")

    def expect_ok(self, *statuses: int) -> None:
        self.expect("API answers", sorted(set(statuses)), [200])


def cache_and_replay(row: Row) -> None:
    """A first call, many with the cached token, and one after that token was revoked."""
    events: list[Event] = []
    with row.open_sandbox() as gateway, closing(CLIENTS[row.client]()) as client:
        url, auth = f"{gateway.url}/v1/accounts", row.auth(gateway, client, events)
        row.expect_ok(client.call(url, auth=auth)[0])
        ready_made = {"Authorization": gateway.requests[-1].headers.get("authorization", "")}
        cached: list[tuple[int, float]] = []
        plain: list[tuple[int, float]] = []
        for _ in range(CACHED_CALLS):
            cached.append(client.call(url, auth=auth))
            plain.append(client.call(url, headers=ready_made))
        row.expect_ok(*(status for status, _ in cached + plain))
        row.api_calls = gateway.count("api") - len(plain)
        row.token_requests = gateway.count("token")
        row.added = statistics.median(
            with_auth - without for (_, with_auth), (_, without) in zip(cached, plain, strict=True)
        )
        row.expect("API calls", row.api_calls, 1 + CACHED_CALLS)
        row.expect("token requests", row.token_requests, 1)
        row.expect("tokens minted, by event", _number(events, TokenMinted), 1)

        gateway.revoke_all()
        before = gateway.count("api")
        row.expect_ok(client.call(url, auth=auth)[0])
        row.replays = gateway.count("api") - before - 1
        row.expect("replays", row.replays, 1)
        row.expect("replays, by event", _number(events, RequestReplayed), 1)
        row.expect("token requests after a revocation", gateway.count("token") - row.token_requests, 1)


def start_cold(row: Row) -> None:
    """Many callers at once, none of whom has a token."""
    with row.open_sandbox() as gateway, closing(CLIENTS[row.client]()) as client:
        gateway.inject(Fault("delay", "token", delay=_SLOW_TOKEN_REQUEST))
        auth = row.auth(gateway, client, [])
        row.expect_ok(*client.call_together(COLD_CALLERS, f"{gateway.url}/v1/accounts", auth=auth))
        row.cold = gateway.count("token")
        row.expect(f"token requests of {COLD_CALLERS} cold callers", row.cold, 1)


def renew(row: Row) -> None:
    """Calls while a token lives, but not for long."""
    events: list[Event] = []
    with row.open_sandbox(expires_in=SHORT_LIFE) as gateway, closing(CLIENTS[row.client]()) as client:
        url, auth = f"{gateway.url}/v1/accounts", row.auth(gateway, client, events)
        statuses = [client.call(url, auth=auth)[0]]
        gateway.expires_in = None
        time.sleep(SHORT_LIFE * 0.55)
        statuses += [client.call(url, auth=auth)[0] for _ in range(5)]
        row.expect_ok(*statuses)
        row.renewals = gateway.count("token") - 1
        row.expect("renewals", row.renewals, 1)
        row.expect("renewals, by event", _number(events, TokenMinted) - 1, 1)


def _number(events: list[Event], kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in events)
