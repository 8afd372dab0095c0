"""A gate before a sandbox that holds back a token request until a test opens it."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Gate"]

_LONGEST = 30.0  # seconds


class Gate:
    """Passes on everything, but after `shut` holds the next POST.

    Args:
        url: the origin of the sandbox behind it.
    """

    def __init__(self, url: str) -> None:
        behind = urlsplit(url)
        self._behind = (behind.hostname, behind.port)
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._is_shut = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.held = threading.Event()
        """Set when a request has arrived as a whole and is held."""
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def shut(self) -> None:
        """Hold the next POST; those after it pass."""
        with self._lock:
            self._is_shut = True

    def open(self) -> None:
        """Pass on the request that is held."""
        self._open.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._behind) as server:
            threading.Thread(target=_answer, args=(server, client), daemon=True).start()
            while data := client.recv(65_536):
                if data.startswith(b"POST") and self._is_to_be_held():
                    data = _whole(data, client)
                    self.held.set()
                    self._open.wait(_LONGEST)
                server.sendall(data)

    def _is_to_be_held(self) -> bool:
        with self._lock:
            shut, self._is_shut = self._is_shut, False
        return shut


def _whole(data: bytes, client: socket.socket) -> bytes:
    """Return a request with the rest of its body, which may come later than its headers."""
    while b"\r\n\r\n" not in data and (more := client.recv(65_536)):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while length is not None and len(body) < int(length[1]) and (more := client.recv(65_536)):
        body += more
    return head + b"\r\n\r\n" + body


def _answer(server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):
        while data := server.recv(65_536):
            client.sendall(data)
        client.shutdown(socket.SHUT_RDWR)
