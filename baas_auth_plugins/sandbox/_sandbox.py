"""The sandbox: the gateways, a server, and the handles that tests turn."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from .._oauth.provider import Provider
from ._gateway import Gateway
from ._server import Server

__all__ = ["Sandbox"]


class Sandbox(Gateway):
    """Every gateway on one loopback origin, as strict as its page.

    Token endpoints accept exactly what the pages show; any path that is no endpoint is an API
    that wants a Bearer token and echoes the request. `client_id`, `client_secret`, `expires_in`,
    `single_active_token` and `enforce_rate_limits` may be assigned to at any time.

    Args:
        host: address to listen on.
        port: port to listen on; 0 for any that is free.
        client_id: the one client known here.
        client_secret: its secret.
        expires_in: lifetime of new tokens in seconds; None for each gateway's own
            (3600, and 300 at BS2: the pages of Axia, NTX Pay, Avista and BS2).
        single_active_token: a new token revokes the one before it, as BS2's other manuals have it.
        enforce_rate_limits: answer 429 beyond a provider's `token_rate_limit`
            (100 in 60 seconds: Axia's page; 10 in 60 seconds: BS2's other manuals).
        providers: names, or declarations, of the gateways to serve; None for all. NTX Pay and
            Avista share one path, which counts as Avista's where both are served.
        ssl_context: serve https with this server-side context.
        clock: returns the gateways' epoch time in seconds.

    Raises:
        ValueError: `providers` names one that does not exist.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        client_id: str = "your-client-id",
        client_secret: str = "your-client-secret",  # noqa: S107  # the pages' own sample
        expires_in: float | None = None,
        single_active_token: bool = False,
        enforce_rate_limits: bool = True,
        providers: Iterable[str | Provider] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            client_id=client_id,
            client_secret=client_secret,
            expires_in=expires_in,
            single_active_token=single_active_token,
            enforce_rate_limits=enforce_rate_limits,
            providers=providers,
            clock=clock,
        )
        self._address = (host, port)
        self._ssl_context = ssl_context
        self._server: Server | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The origin, such as ``"http://127.0.0.1:8080"``; it stays readable after `close`.

        Raises:
            RuntimeError: the sandbox was never started.
        """
        if not self._url:
            raise RuntimeError("the sandbox is not running: use it in a with statement, or call start()")
        return self._url

    def start(self) -> Self:
        """Listen, if not listening already.

        Raises:
            OSError: the address cannot be bound.
        """
        if self._server is None:
            host, port = self._address
            self._server = Server(self, host, port, self._ssl_context)
            scheme = "https" if self._ssl_context else "http"
            shown = f"[{host}]" if ":" in host else host
            self._url = f"{scheme}://{shown}:{self._server.server_address[1]}"
        return self

    def close(self) -> None:
        """Stop at once, ending every connection; what was recorded stays readable."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
