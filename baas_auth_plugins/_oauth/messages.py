"""A token request and its answer, independent of HTTP libraries."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

from ..exceptions import InvalidTokenResponseError

MAX_RESPONSE_BYTES = 1 << 20
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # zlib recognises which of the two it is


class TokenRequest(NamedTuple):
    """A POST with the client's credentials: a token request, or one to introspect or revoke a token.

    Attributes:
        url: where to; a token can be in its query.
        headers: all that the gateway needs.
        body: the encoded parameters.
        timeout: seconds in total where the package sends it, else for each phase.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    timeout: float

    def __repr__(self) -> str:
        return f"TokenRequest(timeout={self.timeout})"


class TokenResponse(NamedTuple):
    """The gateway's answer, its body decoded; header names are in lower case."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"TokenResponse(status_code={self.status_code})"

    @classmethod
    def from_raw(cls, status_code: int, headers: Mapping[str, str], raw: bytes) -> TokenResponse:
        """Return the answer from its body as it was transferred.

        Raises:
            InvalidTokenResponseError: the body cannot be decoded, or is longer than 1 MiB when decoded.
        """
        lower = {name.lower(): value for name, value in headers.items()}
        coding = lower.get("content-encoding", "identity").strip().lower()
        try:
            if coding in ("gzip", "x-gzip", "deflate"):
                raw = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(raw, MAX_RESPONSE_BYTES + 1)
            elif coding not in ("identity", ""):
                raise InvalidTokenResponseError("content coding not requested", status_code=status_code)
        except zlib.error:
            raise InvalidTokenResponseError("cannot be decompressed", status_code=status_code) from None
        if len(raw) > MAX_RESPONSE_BYTES:
            raise InvalidTokenResponseError("longer than 1 MiB", status_code=status_code)
        return cls(status_code, lower, raw)


class NetworkError(Exception):
    """A request failed before its answer was read.

    Attributes:
        reason: what happened, in words without a URL, such as ``"connection refused"``.
        is_certificate: whether TLS refused a certificate: another attempt would fail, too.
        advice: what to do, or an empty str.
    """

    def __init__(self, reason: str, *, is_certificate: bool = False, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_certificate = is_certificate
        self.advice = advice
