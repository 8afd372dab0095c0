"""Sealing what leaves this process: AES-256-GCM, under a key that only the client secret gives.

The cache key is authenticated with the content, so a value that was copied to another key does not open.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["Seal"]

_NONCE = 12


class Seal:
    """Seals and opens values.

    Args:
        key: 32 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, name: str, content: bytes) -> bytes:
        """Return `content`, sealed, to be kept under `name`."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, content, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """Return what was sealed under `name`, or None for anything else."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], name.encode())
        except (InvalidTag, ValueError):
            return None
