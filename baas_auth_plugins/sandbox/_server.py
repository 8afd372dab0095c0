"""A threaded HTTP/1.1 server around a gateway: keep-alive, silent, and quick to close."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import socketserver
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from ._gateway import Gateway
from ._messages import Request, Response

__all__ = ["Server"]

_BACKLOG = 1024  # tests open hundreds of connections at once
_POLL = 0.02  # seconds between looks at whether to stop accepting
_FAREWELL = 1.0  # seconds that connections get to end when the server closes


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves a gateway on one port from daemon threads, one a connection."""

    request_queue_size = _BACKLOG
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share the port
    daemon_threads = True

    def __init__(self, gateway: Gateway, host: str, port: int, ssl_context: ssl.SSLContext | None) -> None:
        self.gateway = gateway
        self.closing = threading.Event()
        self._connections: dict[Any, threading.Thread] = {}
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        if ssl_context is not None:  # the handshake is the connection's thread's to make
            self.socket = ssl_context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._acceptor = threading.Thread(target=self.serve_forever, args=(_POLL,), daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stop accepting, end every connection, idle or busy, and wait a moment for their threads."""
        self.closing.set()
        self.shutdown()
        self._acceptor.join()
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _FAREWELL
        for thread in connections.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection; the thread is this one."""
        with self._lock:
            self._connections[request] = threading.current_thread()
        try:
            if self.closing.is_set():
                self.shutdown_request(request)
            else:
                super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                del self._connections[request]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; anything else is a bug worth a traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def pause(self, connection: socket.socket, seconds: float) -> None:
        """Wait, but no longer than the client and this server do."""
        until = time.monotonic() + seconds
        if not isinstance(connection, ssl.SSLSocket):  # which cannot be peeked into
            connection.settimeout(None if math.isinf(seconds) else seconds)
            try:
                if not connection.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                return
            finally:
                connection.settimeout(None)
        self.closing.wait(None if math.isinf(until) else max(0.0, until - time.monotonic()))


class _Handler(BaseHTTPRequestHandler):
    """Reads requests, hands them to the gateway and sends its answers, well or badly."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "baas-auth-sandbox"
    sys_version = ""
    disable_nagle_algorithm = True

    def log_message(self, *args: object, **kwargs: object) -> None:
        """Log nothing: targets may hold tokens."""

    def _serve(self) -> None:
        try:
            body = self._read_body()
        except ValueError:
            self.send_error(400)  # and the connection ends
            return
        exchange = self.server.gateway.begin(self._request(body))
        try:
            if exchange.response.delay:
                self.server.pause(self.connection, exchange.response.delay)
        finally:
            self.server.gateway.finish(exchange)
        self._send(exchange.response)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815  # http.server's names

    def _request(self, body: bytes) -> Request:
        target = self.path if self.path.startswith("/") else _origin_form(self.path)
        path, _, query = target.partition("?")
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            known = headers.get(name.lower())
            headers[name.lower()] = value if known is None else f"{known}, {value}"
        return Request(self.command, path, query, headers, body)

    def _read_body(self) -> bytes:
        if "transfer-encoding" in self.headers:
            return b"".join(iter(self._read_chunk, b""))
        return self._read(int(self.headers.get("content-length", "0")))

    def _read_chunk(self) -> bytes:
        size = int(self.rfile.readline(1024).partition(b";")[0], 16)
        chunk = self._read(size)
        while self.rfile.readline(65_537).strip() and not size:  # trailers end with an empty line
            pass
        return chunk

    def _read(self, size: int) -> bytes:
        if size < 0:
            raise ValueError("a negative length")
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client went away")
        return data

    def _send(self, response: Response) -> None:
        if response.status is None or self.server.closing.is_set():
            self.close_connection = True
            return
        self.send_response(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        bodiless = response.status in (204, 304)
        if response.repeat > 1 or response.missing:
            self.send_header("Connection", "close")  # which sets close_connection, too
        if response.repeat == 1 and not bodiless:
            self.send_header("Content-Length", str(len(response.body) + response.missing))
        self.end_headers()
        if self.command != "HEAD" and not bodiless:
            for _ in range(response.repeat):
                self.wfile.write(response.body)


def _origin_form(target: str) -> str:
    """Return the path and query of a target in absolute form, as a proxy receives it."""
    parts = urlsplit(target)
    return parts._replace(scheme="", netloc="").geturl() if parts.netloc else target
