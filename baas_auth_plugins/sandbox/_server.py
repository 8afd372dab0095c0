"""A threaded HTTP/1.1 server: h11 parses, one daemon thread serves one connection, and closing is quick.

Malformed requests get a 4xx and the end of their connection. No request makes the server print or keep much.
"""

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
from http.client import responses
from typing import Any, Protocol
from urllib.parse import urlsplit

import h11

from ._gateway import Exchange
from ._messages import Request, Response, json_response

__all__ = ["Server", "Service"]

_BACKLOG = 1024  # tests open hundreds of connections at once
_POLL = 0.02  # seconds between checks whether to stop accepting
_FAREWELL = 1.0  # seconds that connections get to end when the server closes
_LINGER = 1.0  # seconds in which a client may notice that its request was refused before it was read
_MOST_HEADERS = 262_144  # bytes of a request line and headers
_MOST_BODY = 16 << 20  # bytes
_CHUNK = 65_536


class Service(Protocol):
    """Answers requests: `begin` computes the answer, and `finish` is called when it is sent."""

    def begin(self, request: Request, /) -> Exchange: ...
    def finish(self, exchange: Exchange, /) -> None: ...


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves one origin.

    Args:
        service: answers the requests.
        host: address to listen on.
        port: port to listen on; 0 for any that is free.
        ssl_context: serve https with this server-side context.

    Raises:
        OSError: the address cannot be bound.
    """

    request_queue_size = _BACKLOG
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share the port
    daemon_threads = True

    def __init__(self, service: Service, host: str, port: int, ssl_context: ssl.SSLContext | None) -> None:
        self.service = service
        self.closing = threading.Event()
        self._connections: dict[Any, threading.Thread] = {}
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        if ssl_context is not None:  # the connection's own thread makes the handshake
            self.socket = ssl_context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._acceptor = threading.Thread(target=self.serve_forever, args=(_POLL,), daemon=True)
        self._acceptor.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stop accepting, end every connection, idle or busy, and wait at most a second for their threads."""
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
        """Ignore clients that went away; print the traceback of anything else, which is a bug."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def pause(self, connection: socket.socket, seconds: float) -> None:
        """Wait, but not longer than the client and this server do."""
        until = time.monotonic() + seconds
        if not isinstance(connection, ssl.SSLSocket):  # which cannot peek
            connection.settimeout(None if math.isinf(seconds) else seconds)
            try:
                if not connection.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                return
            finally:
                connection.settimeout(None)
        self.closing.wait(None if math.isinf(until) else max(0.0, until - time.monotonic()))


class _Handler(socketserver.BaseRequestHandler):
    """Reads the requests of one connection, hands them to the service and sends the answers, well or badly."""

    server: Server
    request: socket.socket  # the connection, as socketserver names it

    def setup(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEADERS)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        try:
            while self._serve_one():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            self._turn_away(error.error_status_hint, "the request is not valid HTTP/1.1")

    def _serve_one(self) -> bool:
        """Serve one request, and return whether another one may follow."""
        event = self._next_event()
        if not isinstance(event, h11.Request):
            return False
        if event.http_version not in (b"1.0", b"1.1"):
            self._turn_away(505, "the request is not HTTP/1.1")
            return False
        length = int(dict(event.headers).get(b"content-length", b"0"))
        body = self._read_body() if length <= _MOST_BODY else None
        if body is None:
            self._turn_away(413, f"the body is longer than {_MOST_BODY >> 20} MiB")
            return False
        exchange = self.server.service.begin(_request(event, body))
        try:
            if exchange.response.delay:
                self.server.pause(self.request, exchange.response.delay)
        finally:
            self.server.service.finish(exchange)
        self._send(exchange.response, bodiless=event.method == b"HEAD")
        return self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._transmit(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(self.request.recv(_CHUNK))
        return event

    def _read_body(self) -> bytes | None:
        """Return the body, or None if it is too long; then the rest of it is not read."""
        body = bytearray()
        while isinstance(event := self._next_event(), h11.Data):
            body += event.data
            if len(body) > _MOST_BODY:
                return None
        return bytes(body)

    def _turn_away(self, status: int, problem: str) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(json_response(status, {"error": problem}, (("Connection", "close"),)), bodiless=False)
        self.request.shutdown(socket.SHUT_WR)  # a close would discard the answer while the client still sends
        self.request.settimeout(_LINGER)
        until = time.monotonic() + _LINGER
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < until and self.request.recv(_CHUNK):
                pass

    def _send(self, response: Response, *, bodiless: bool) -> None:
        if response.status is None or self.server.closing.is_set():
            return
        bodiless = bodiless or response.status in (204, 304)
        headers = [(name.encode(), value.encode("latin-1")) for name, value in response.headers]
        headers.append((b"Server", b"baas-auth-sandbox"))
        if response.repeat > 1:
            headers.append((b"Connection", b"close"))
        elif response.status not in (204, 304):
            headers.append((b"Content-Length", str(len(response.body) + response.missing).encode()))
        reason = responses.get(response.status, "").encode()
        head = h11.Response(status_code=response.status, headers=headers, reason=reason)
        self._transmit(head, *([] if bodiless else [h11.Data(data=response.body)]), drip=response.drip)
        for _ in range(0 if bodiless else response.repeat - 1):
            self._transmit(h11.Data(data=response.body))
        if not response.missing:
            self._transmit(h11.EndOfMessage())

    def _transmit(self, *events: Any, drip: float = 0.0) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        for start in range(len(data) if drip else 0):
            self.request.sendall(data[start : start + 1])
            if self.server.closing.wait(drip):
                return
        if not drip:
            self.request.sendall(data)


def _request(event: h11.Request, body: bytes) -> Request:
    target = event.target.decode("ascii")
    if not target.startswith("/"):
        target = _origin_form(target)
    path, _, query = target.partition("?")
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(event.method.decode("ascii"), path, query, headers, body)


def _origin_form(target: str) -> str:
    """Return the path and query of a target in absolute form, which a proxy receives."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return target
    return parts._replace(scheme="", netloc="").geturl() if parts.netloc else target
