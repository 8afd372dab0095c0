"""Where tokens are kept between requests, and between those who share them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .._token import Token
from .memory import MemoryTokenCache

__all__ = ["MemoryTokenCache", "TokenCache"]


@runtime_checkable
class TokenCache(Protocol):
    """Keeps tokens by key. Keys hold no secret. A cache that fails counts as empty."""

    @property
    def blocking(self) -> bool:
        """Whether the methods do I/O: async code then calls them in a worker thread."""

    def get(self, key: str) -> Token | None:
        """Return the token kept under `key`, or None if there is none that still lives."""

    def set(self, key: str, token: Token) -> None:
        """Keep `token` for the rest of its life."""

    def delete(self, key: str, token: Token) -> None:
        """Drop `token`, unless another one has taken its place."""
