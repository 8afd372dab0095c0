"""A stand-in for hvac: one secret in the key-value store, version 2."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Client:
    """A client with `secrets.kv.v2.read_secret_version`."""

    def __init__(self) -> None:
        self.secrets = SimpleNamespace(kv=SimpleNamespace(v2=self))

    def read_secret_version(self, path: str, *, raise_on_deleted_version: bool) -> dict[str, Any]:
        """Return the sandbox's secret."""
        assert (path, raise_on_deleted_version) == ("axia", True)
        return {"data": {"data": {"client_secret": "your-client-secret"}, "metadata": {"version": 1}}}
