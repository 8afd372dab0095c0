"""A stand-in for a client that openapi-python-client has generated: the parts that a caller sees."""

from .client import AuthenticatedClient, Client

__all__ = ["AuthenticatedClient", "Client"]
