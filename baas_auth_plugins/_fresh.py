"""The hot path: a token that is fresh until a known moment, with all that one more request needs of it.

Made once per token and auth object. While the token is fresh, and still its source's, a request costs two
clocks and a comparison with the one origin that most requests go to; all else takes the long way
round. The faces compare these attributes themselves: a call would cost as much as all the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ._known import Known
from ._origin import Origin, is_default_port, text_of
from ._token import Token

__all__ = ["Fresh"]


class Fresh:
    """A token, until when it is fresh, and for whom.

    Attributes:
        header: what to send.
        hook: what watches the response, once requests has had this token.
        known: what this process knows of the token: once it holds another, this one is not fresh.
        monotonic: the token is fresh until then on the monotonic clock.
        port: of the origin, as httpx tells it.
        prefix: what each URL of the origin begins with.
        raw_host: of the origin, as httpx tells it.
        scheme: of the origin.
        token: the token.
        wall: the token is fresh until then on the wall clock.
    """

    __slots__ = ("header", "hook", "known", "monotonic", "port", "prefix", "raw_host", "scheme", "token", "wall")

    def __init__(self, token: Token, known: Known, leeway: float, origin: Origin) -> None:
        self.token = token
        self.known = known
        self.wall, self.monotonic = token.fresh_until(leeway)
        self.header = f"Bearer {token.access_token}"
        self.hook: Callable[..., Any] | None = None
        self.prefix, self.scheme, self.raw_host, self.port = _as_clients_tell(origin)


@lru_cache(maxsize=1024)
def _as_clients_tell(origin: Origin) -> tuple[str, str, bytes, int | None]:
    """Return what every URL of an origin begins with for requests, and its scheme, host and port as httpx tells them."""
    scheme, host, port = origin
    return f"{text_of(origin)}/", scheme, host.encode("ascii"), None if is_default_port(origin) else port
