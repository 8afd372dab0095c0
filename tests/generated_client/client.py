"""`Client` and `AuthenticatedClient`, as openapi-python-client's template has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import httpx


@dataclass
class Client:
    """Keeps the arguments of an httpx client that it makes at its first call."""

    base_url: str
    headers: dict[str, str] = field(default_factory=dict, kw_only=True)
    httpx_args: dict[str, Any] = field(default_factory=dict, kw_only=True)
    _client: httpx.Client | None = field(default=None, init=False)
    _async_client: httpx.AsyncClient | None = field(default=None, init=False)

    def set_httpx_client(self, client: httpx.Client) -> Self:
        """Use this client: it overrides every other setting."""
        self._client = client
        return self

    def set_async_httpx_client(self, async_client: httpx.AsyncClient) -> Self:
        """Use this client: it overrides every other setting."""
        self._async_client = async_client
        return self

    def get_httpx_client(self) -> httpx.Client:
        """Return the client; make it at the first call."""
        if self._client is None:
            self._client = httpx.Client(base_url=self.base_url, headers=self.headers, **self.httpx_args)
        return self._client

    def get_async_httpx_client(self) -> httpx.AsyncClient:
        """Return the client; make it at the first call."""
        if self._async_client is None:
            self._async_client = httpx.AsyncClient(base_url=self.base_url, headers=self.headers, **self.httpx_args)
        return self._async_client

    def __enter__(self) -> Self:
        self.get_httpx_client().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.get_httpx_client().__exit__(*args)

    async def __aenter__(self) -> Self:
        await self.get_async_httpx_client().__aenter__()
        return self

    async def __aexit__(self, *args: Any) -> None:
        await self.get_async_httpx_client().__aexit__(*args)


@dataclass
class AuthenticatedClient(Client):
    """A client with a token, which it puts into the headers when it makes its httpx client."""

    token: str = field(repr=False)
    prefix: str = "Bearer"
    auth_header_name: str = "Authorization"

    def get_httpx_client(self) -> httpx.Client:
        """Return the client; make it at the first call."""
        self._authorize(self._client)
        return super().get_httpx_client()

    def get_async_httpx_client(self) -> httpx.AsyncClient:
        """Return the client; make it at the first call."""
        self._authorize(self._async_client)
        return super().get_async_httpx_client()

    def _authorize(self, client: object) -> None:
        if client is None:
            self.headers[self.auth_header_name] = f"{self.prefix} {self.token}" if self.prefix else self.token
