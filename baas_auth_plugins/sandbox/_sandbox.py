"""`Sandbox`: the gateways, their servers, and what a test uses to control them."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, Self

from .. import providers as registry
from .._oauth.provider import Provider
from ._control import Control, without_port
from ._gateway import Exchange, Gateway, Origin
from ._messages import RecordedRequest, Request
from ._routes import Declared, Routes, declaration
from ._server import Server, Service
from ._shapes import method_name, scopes_of
from ._tls import Authority
from ._tokens import private_key_pem

__all__ = ["Sandbox"]

_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104  # recognised, not bound to
_NOT_RUNNING = "the sandbox is not running: use it in a with statement, or call start()"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Sandbox(Gateway):
    """The gateways on loopback, each as strict as its page.

    Token endpoints accept exactly what the pages and declarations show. Every path that is no endpoint is an API:
    it wants a Bearer token and echoes the request. `client_id`, `client_secret`, `expires_in`,
    `single_active_token` and `enforce_rate_limits` may be assigned to at any time.

    `url` serves all gateways, a page at ``/`` and the control API at ``/_sandbox/``. NTX Pay and Avista have the
    same path and body there, so token requests of both count as ``avista``. `url_for` gives each an origin of its own.

    Args:
        host: address to listen on. With ``"0.0.0.0"`` other machines and containers can reach it.
        port: port to listen on; 0 for any that is free.
        client_id: the one client that is known here.
        client_secret: its secret.
        expires_in: lifetime of new tokens in seconds; None for each gateway's own
            (3600, and 300 at BS2: the pages of Axia, NTX Pay, Avista and BS2).
        single_active_token: a new token revokes the one before it, as BS2's other manuals say.
        enforce_rate_limits: answer 429 beyond a provider's `token_rate_limit`
            (100 in 60 seconds: Axia's page; 10 in 60 seconds: BS2's other manuals).
        providers: the gateways to serve, as auth classes, declarations or names; None for the package's four.
        tls: serve https with a certificate of an authority of its own, whose path is `ca_file`. With ``"mutual"``
            clients must also have a certificate of that authority, such as `client_cert`.
        hostnames: further names under which clients reach it, such as ``"host.docker.internal"``; with a port if
            theirs is another one. The certificate is for them, too, and the page and the control API accept them.
        ssl_context: serve https with this server-side context instead.
        on_request: called with each `RecordedRequest` when its answer is sent, in the thread of its connection.
        clock: returns the gateways' time in epoch seconds.

    Raises:
        ValueError: `providers` is empty or has an unknown name, or both `tls` and `ssl_context` are given.
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
        providers: Iterable[Declared] | None = None,
        tls: bool | Literal["mutual"] = False,
        hostnames: Iterable[str] = (),
        ssl_context: ssl.SSLContext | None = None,
        on_request: Callable[[RecordedRequest], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            client_id=client_id,
            client_secret=client_secret,
            expires_in=expires_in,
            single_active_token=single_active_token,
            enforce_rate_limits=enforce_rate_limits,
            on_request=on_request,
            clock=clock,
        )
        if tls and ssl_context is not None:
            raise ValueError("give either tls or ssl_context")
        self._routes = Routes(map(declaration, registry.PROVIDERS if providers is None else providers))
        if not self._routes.providers:
            raise ValueError("providers is empty: name at least one gateway")
        self._host, self._port = host, port
        self._names = _names(host, hostnames)
        self._tls = tls
        self._ssl_context = ssl_context
        self._authority: Authority | None = None
        self._opening = threading.RLock()
        self._servers: list[Server] = []
        self._own: list[tuple[Provider, str]] = []
        self._url = ""

    # -- where it is

    @property
    def url(self) -> str:
        """The origin of all gateways, such as ``"http://127.0.0.1:8080"``; it stays readable after `close`.

        Raises:
            RuntimeError: the sandbox was never started.
        """
        if not self._url:
            raise RuntimeError(_NOT_RUNNING)
        return self._url

    def url_for(self, gateway: Declared) -> str:
        """Return the origin of one gateway alone, which counts and answers as that gateway only.

        It listens from the first call on. With a fixed `port` the first gateway gets ``port + 1``, the second
        ``port + 2`` and so on; instead of a port that is taken it gets any that is free.

        Args:
            gateway: an auth class, a declaration, or the name of one of the package's; it need not be in `providers`.

        Raises:
            RuntimeError: the sandbox is not running.
            ValueError: no gateway has that name.
        """
        provider = declaration(gateway)
        with self._opening:
            for known, url in self._own:
                if known == provider:
                    return url
            if not self._servers:
                raise RuntimeError(_NOT_RUNNING)
            url = self._open(Origin(self, Routes([provider])), self._port and self._port + 1 + len(self._own))
            self._own.append((provider, url))
            return url

    def origin_of(self, gateway: Declared) -> str:
        """Return `url` if it tells this gateway's requests from all others', else `url_for` of the gateway.

        Args:
            gateway: as for `url_for`.
        """
        provider = declaration(gateway)
        route = self._routes.find(provider.token_endpoint)
        return self.url if route.owners == (provider,) else self.url_for(provider)

    def environment(self, gateway: Declared) -> dict[str, str]:
        """Return the environment variables with which ``from_env()`` of a gateway's class uses this sandbox.

        Args:
            gateway: an auth class, a declaration, or the name of one of the package's.

        Returns:
            The client's credentials, the base URL and, if the gateway requires scopes, two of them. With `tls`,
            ``REQUESTS_CA_BUNDLE`` and ``SSL_CERT_FILE`` name `ca_file`. The base URL is that of `origin_of`.
        """
        provider = declaration(gateway)
        method = method_name(provider.token_endpoint_auth_method)
        values = {"CLIENT_ID": self.client_id, "CLIENT_SECRET": self.client_secret}
        if method == "none":
            del values["CLIENT_SECRET"]
        elif method == "private_key_jwt" and "PRIVATE KEY" not in self.client_secret:
            values["CLIENT_SECRET"] = private_key_pem(getattr(provider.token_endpoint_auth_method, "alg", "RS256"))
        if scope := scopes_of(provider):
            values["SCOPE"] = scope
        values["BASE_URL"] = self.origin_of(provider)
        variables = {f"{provider.env_prefix}_{name}": value for name, value in values.items()}
        if self._tls:
            variables |= {"REQUESTS_CA_BUNDLE": self.ca_file, "SSL_CERT_FILE": self.ca_file}
        return variables

    @property
    def ca_file(self) -> str:
        """The path of the certificate (PEM) that clients must trust; it exists until `close`.

        Raises:
            RuntimeError: the sandbox does not run with `tls`.
        """
        return self._certificates().ca_file

    @property
    def client_cert(self) -> tuple[str, str]:
        """The paths of a client certificate and its key (PEM), as ``requests`` takes them for ``cert``.

        Raises:
            RuntimeError: the sandbox does not run with `tls`.
        """
        return self._certificates().client_cert

    @property
    def providers(self) -> tuple[Provider, ...]:
        """The gateways that `url` serves."""
        return tuple(self._routes.providers)

    # -- its life

    def start(self) -> Self:
        """Listen, if not listening already.

        Raises:
            OSError: the address cannot be bound.
        """
        with self._opening:
            if not self._servers:
                if self._tls:
                    self._authority = Authority(map(without_port, self._names))
                    self._ssl_context = self._authority.server_context(client_certificate=self._tls == "mutual")
                self._url = self._open(Control(self, self._names), self._port)
        return self

    def close(self) -> None:
        """Stop at once and end every connection; what was recorded stays readable."""
        with self._opening:
            servers, self._servers, self._own = self._servers, [], []
            authority, self._authority = self._authority, None
        for server in servers:
            server.close()
        if authority is not None:
            authority.close()

    def begin(self, request: Request) -> Exchange:
        """Compute and record the answer to a request at `url`; `finish` follows when it is sent."""
        return self.answer(request, self._routes)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, service: Service, port: int) -> str:
        try:
            server = Server(service, self._host, port, self._ssl_context)
        except (OSError, OverflowError):  # taken, or beyond the last port
            if not self._servers or not port:
                raise
            server = Server(service, self._host, 0, self._ssl_context)  # an origin of one gateway may be anywhere
        self._servers.append(server)
        scheme = "https" if self._ssl_context else "http"
        return f"{scheme}://{without_port(self._names[0])}:{server.port}"

    @property
    def curl_options(self) -> tuple[str, ...]:
        """What curl needs beside the request: with `tls` the paths of the certificates."""
        if self._authority is None:
            return ()
        certificate, key = self._authority.client_cert
        mutual = ("--cert", certificate, "--key", key) if self._tls == "mutual" else ()
        return ("--cacert", self._authority.ca_file, *mutual)

    def _certificates(self) -> Authority:
        if self._authority is None:
            raise RuntimeError("there are no certificates: start the sandbox with tls=True")
        return self._authority


def _names(host: str, further: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the sandbox as they stand in a URL, first the one for `Sandbox.url`."""
    shown = f"[{host}]" if ":" in host else host
    local = _LOOPBACK if host in _WILDCARDS or shown in _LOOPBACK else ()
    own = () if host in _WILDCARDS else (shown,)
    return tuple(dict.fromkeys(name.lower() for name in (*own, *further, *local)))
