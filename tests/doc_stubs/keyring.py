"""A stand-in for keyring: one password."""

from __future__ import annotations


def get_password(service: str, username: str) -> str | None:
    """Return the sandbox's secret."""
    return "your-client-secret" if (service, username) == ("axia", "client_secret") else None
