"""Everything the package raises, as one tree.

    BaaSAuthError
    ├── ConfigurationError(ValueError)            a wrong parameter, a missing environment variable
    │   └── InsecureTransportError                http:// to anything but loopback
    └── TokenEndpointError                        the gateway gave no token
        ├── InvalidClientError                    401, or invalid_client
        ├── InvalidScopeError                     invalid_scope, or a required scope was not granted
        ├── RateLimitError                        429, or the provider's limit kept on this side
        ├── TokenEndpointUnavailableError         5xx or the network, after the retries
        └── InvalidTokenResponseError             not JSON, no token, a nonsense lifetime

A `TokenEndpointError` is also a `requests.RequestException`, an `httpx.HTTPError` and, where httpx2 is installed, an
`httpx2.HTTPError`: the `except` clause that a script already has catches it. A `TokenEndpointUnavailableError` is also
their `ConnectionError` or `TransportError`: a retry predicate sees that it may pass. No message holds a secret, a
token, a response body or a URL with a query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import httpx
import requests

__all__ = [
    "BaaSAuthError",
    "ConfigurationError",
    "InsecureTransportError",
    "InvalidClientError",
    "InvalidScopeError",
    "InvalidTokenResponseError",
    "RateLimitError",
    "TokenEndpointError",
    "TokenEndpointUnavailableError",
]

if TYPE_CHECKING:

    class _ClientError(requests.RequestException, httpx.HTTPError):  # type: ignore[misc]  # both define `request`; ours shadows them
        pass

    class _TransportError(requests.ConnectionError, httpx.TransportError):  # type: ignore[misc]  # likewise
        pass
else:
    try:
        import httpx2
    except ImportError:
        _packages = [httpx]
    else:
        _packages = [httpx, httpx2]

    class _ClientError(requests.RequestException, *(package.HTTPError for package in _packages)):
        """What an `except` clause of any client's user catches."""

    class _TransportError(requests.ConnectionError, *(package.TransportError for package in _packages)):
        """What any client's user retries as a passing fault of the network."""


class BaaSAuthError(Exception):
    """Base class of everything this package raises."""

    def own_copy(self) -> Self:
        """Return an equal exception with a traceback of its own, for one more caller to raise."""
        copied: Self = _restore(type(self), self.args, self._fields())
        copied.__cause__ = self.__cause__
        return copied

    def _fields(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self._fields())


def _restore(cls: type[Any], args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigurationError(BaaSAuthError, ValueError):
    """A parameter or an environment variable is missing or wrong; the message says which and the cure."""


class InsecureTransportError(ConfigurationError):
    """A plain http:// URL that is not on this machine's loopback interface."""


class TokenEndpointError(BaaSAuthError, _ClientError):
    """The token endpoint refused, failed or could not be reached (RFC 6749 section 5.2).

    Attributes:
        provider: the provider's name, such as ``"axia"``.
        status_code: HTTP status of the gateway's answer, or None where there was none.
        error: the gateway's error code, such as ``"invalid_client"`` or ``"E00101"``.
        error_description: the gateway's text, shortened, with credentials and tokens redacted.
        retry_after: seconds after which a token request may be sent again, or None.
        request: always None, for handlers that were written for requests and httpx.
        response: always None, likewise.
    """

    # About the client secret, not about the gateway: other callers try again.
    _is_local = False
    # Another attempt would fail, too, as for a certificate that TLS refuses.
    _is_final = False
    # Read-only: httpx would set `request` to the request that holds the credentials.
    request: Any = property(lambda _self: None, lambda _self, _value: None)
    response: Any = request

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        status_code: int | None = None,
        error: str | None = None,
        error_description: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status_code = status_code
        self.error = error
        self.error_description = error_description
        self.retry_after = retry_after


class InvalidClientError(TokenEndpointError):
    """The gateway does not accept these credentials (401, or RFC 6749 ``invalid_client``)."""


class InvalidScopeError(TokenEndpointError):
    """The scope was refused, or a required scope was not granted.

    Attributes:
        missing_scopes: the required scopes that the token lacks; empty where the gateway refused.
    """

    missing_scopes: frozenset[str] = frozenset()


class RateLimitError(TokenEndpointError):
    """The token endpoint's rate limit; ``retry_after`` says how many seconds to wait."""


class TokenEndpointUnavailableError(TokenEndpointError, _TransportError):
    """The token endpoint answers 5xx or cannot be reached, after the retries."""


class InvalidTokenResponseError(TokenEndpointError):
    """The token endpoint answered 2xx with something that is not a usable Bearer token."""
