"""The least that does what the package does on its hot path: a snapshot, two clocks, an origin check, a 401 hook.

What a careful author would write for one gateway, for comparison: no retries, no limits, no renewal ahead of
time that somebody else does not wait for, and its renewal may fail while the token lives.
"""

from __future__ import annotations

import asyncio
import threading
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Generator
from typing import Any, NamedTuple

import httpx
import requests

__all__ = ["ByHand", "ByHandAsync"]

MARGIN = 300


class Snapshot(NamedTuple):
    """A header, and until when it serves, on both clocks."""

    header: str
    wall: float
    monotonic: float


_NOTHING = Snapshot("", 0, 0)


class ByHand(requests.auth.AuthBase, httpx.Auth):
    """For requests and sync httpx clients."""

    def __init__(self, origin: str, token_url: str, client_id: str, client_secret: str) -> None:
        self._prefix = origin + "/"
        self._origin = httpx.URL(origin)
        self._place = (self._origin.scheme, self._origin.host, self._origin.port)
        self._token_url = token_url
        self._basic = "Basic " + b64encode(f"{client_id}:{client_secret}".encode()).decode()
        self._session = requests.Session()
        self._session.trust_env = False
        self._snapshot = _NOTHING
        self._lock = threading.Lock()

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Authenticate one request of a session."""
        snapshot = self._snapshot
        if time.time() >= snapshot.wall or time.monotonic() >= snapshot.monotonic:
            snapshot = self._renewed(snapshot)
        if (r.url or "").startswith(self._prefix):
            r.headers["Authorization"] = snapshot.header
            r.register_hook("response", self._on_response)
        return r

    def _renewed(self, seen: Snapshot) -> Snapshot:
        with self._lock:
            if self._snapshot is seen:
                now = time.time(), time.monotonic()
                headers = {"Authorization": self._basic}
                data = {"grant_type": "client_credentials"}
                response = self._session.post(self._token_url, headers=headers, data=data, timeout=10)
                response.raise_for_status()
                self._snapshot = _snapshot(response.json(), now)
            return self._snapshot

    def _on_response(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        snapshot = self._snapshot
        request = response.request
        if response.status_code != 401 or not (request.url or "").startswith(self._prefix):
            return response
        response.content  # noqa: B018  # it gives the connection back
        if request.headers.get("Authorization") == snapshot.header:
            snapshot = self._renewed(snapshot)
        replay = request.copy()
        replay.headers["Authorization"] = snapshot.header
        answer: requests.Response = response.connection.send(replay, **kwargs)  # type: ignore[attr-defined]
        answer.history.append(response)
        return answer

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Authenticate one request of a sync client."""
        snapshot = self._snapshot
        if time.time() >= snapshot.wall or time.monotonic() >= snapshot.monotonic:
            snapshot = yield from self._mint(snapshot)
        url = request.url
        if (url.scheme, url.host, url.port) != self._place:
            yield request
            return
        request.headers["Authorization"] = snapshot.header
        response = yield request
        if response.status_code == 401:
            response.read()  # it gives the connection back
            if self._snapshot is snapshot:
                yield from self._mint(snapshot)
            request.headers["Authorization"] = self._snapshot.header
            yield request

    def _mint(self, seen: Snapshot) -> Generator[httpx.Request, httpx.Response, Snapshot]:
        with self._lock:
            if self._snapshot is seen:
                now = time.time(), time.monotonic()
                response = yield _token_request(self._token_url, self._basic)
                response.read()
                self._snapshot = _snapshot(response.raise_for_status().json(), now)
            return self._snapshot


class ByHandAsync(httpx.Auth):
    """For async httpx clients under asyncio."""

    def __init__(self, origin: str, token_url: str, client_id: str, client_secret: str) -> None:
        place = httpx.URL(origin)
        self._place = (place.scheme, place.host, place.port)
        self._token_url = token_url
        self._basic = "Basic " + b64encode(f"{client_id}:{client_secret}".encode()).decode()
        self._snapshot = _NOTHING
        self._lock = asyncio.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Authenticate one request of an async client."""
        snapshot = self._snapshot
        if time.time() >= snapshot.wall or time.monotonic() >= snapshot.monotonic:
            async with self._lock:
                if self._snapshot is snapshot:
                    now = time.time(), time.monotonic()
                    response = yield _token_request(self._token_url, self._basic)
                    await response.aread()
                    self._snapshot = _snapshot(response.raise_for_status().json(), now)
            snapshot = self._snapshot
        url = request.url
        if (url.scheme, url.host, url.port) != self._place:
            yield request
            return
        request.headers["Authorization"] = snapshot.header
        response = yield request
        if response.status_code == 401:
            await response.aread()
            async with self._lock:
                if self._snapshot is snapshot:
                    now = time.time(), time.monotonic()
                    response = yield _token_request(self._token_url, self._basic)
                    await response.aread()
                    self._snapshot = _snapshot(response.raise_for_status().json(), now)
            request.headers["Authorization"] = self._snapshot.header
            yield request


def _token_request(url: str, basic: str) -> httpx.Request:
    timeout = {"timeout": httpx.Timeout(10).as_dict()}
    data = {"grant_type": "client_credentials"}
    return httpx.Request("POST", url, headers={"Authorization": basic}, data=data, extensions=timeout)


def _snapshot(payload: dict[str, Any], sent: tuple[float, float]) -> Snapshot:
    life = payload["expires_in"]
    lead = min(MARGIN, life / 2)
    wall, monotonic = sent
    return Snapshot(f"Bearer {payload['access_token']}", wall + life - lead, monotonic + life - lead)
