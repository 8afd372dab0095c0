"""``GET /v1/accounts``."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from generated_client.client import AuthenticatedClient, Client


@dataclass
class Response:
    """What the operation answered."""

    status_code: HTTPStatus
    content: bytes
    parsed: Any


def _build_response(response: httpx.Response) -> Response:
    return Response(HTTPStatus(response.status_code), response.content, response.json())


def sync_detailed(*, client: AuthenticatedClient | Client) -> Response:
    """List the accounts."""
    return _build_response(client.get_httpx_client().request("get", "/v1/accounts"))


async def asyncio_detailed(*, client: AuthenticatedClient | Client) -> Response:
    """List the accounts."""
    return _build_response(await client.get_async_httpx_client().request("get", "/v1/accounts"))
