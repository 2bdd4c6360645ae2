"""A server of HTTP that no client can keep: the one way in which dtrain listens.

A connection carries one request and has a deadline for all of it, since a time-out for each read or write never comes
where bytes drip. Only so many are open at once: for a new one the oldest that says nothing makes room.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from ssl import SSLContext
from typing import Any

_STALLED_SECONDS = 5.0
"""So long an answer may not get on, where another client waits for its connection."""

_PAUSE_SECONDS, _CLOSE_SECONDS = 0.02, 2.0


@dataclass
class _Connection:
    thread: threading.Thread
    deadline: float
    since: float
    """When it last got on."""
    answering: bool = False
    cut: bool = False


class BoundedServer(HTTPServer):
    """Answers each connection in a thread of its own. `serve_forever` cuts those whose deadlines have passed.

    Args:
        address: host, by name or number, and port.
        handler: how requests are answered; as in http.server, with HTTP/1.0's one request for each connection.
        max_connections: how many are open at once.
        request_seconds: from its beginning until a connection is cut, unless its handler calls `answering`.
        tls: encrypts, if given.

    Raises OSError or OverflowError where it cannot listen.
    """

    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        *,
        max_connections: int,
        request_seconds: float,
        tls: SSLContext | None = None,
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._max_connections, self._request_seconds = max_connections, request_seconds
        self._lock = threading.Lock()
        self._open: dict[socket.socket, _Connection] = {}
        self._closing = False
        super().__init__(address, handler)
        if tls is not None:  # whoever does not shake hands keeps a thread, and not the loop that accepts
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def answering(self, request: socket.socket, seconds: float | None = None) -> None:
        """Its request is known, and its answer gets on; `seconds` from now, if given, are its deadline."""
        now = time.monotonic()
        with self._lock:
            connection = self._open[request]
            connection.answering, connection.since = True, now
            if seconds is not None:
                connection.deadline = now + seconds

    def service_actions(self) -> None:
        """Cut what is overdue; `serve_forever` calls it again and again."""
        now = time.monotonic()
        with self._lock:
            for request, connection in self._open.items():
                if now >= connection.deadline:
                    _cut(request, connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer it in a thread, once there is room."""
        while not self._closing and not self._has_room():
            self.service_actions()
            time.sleep(_PAUSE_SECONDS)
        thread = threading.Thread(target=self._answer, args=(request, client_address), daemon=True)
        now = time.monotonic()
        with self._lock:
            if self._closing:
                request.close()
                return
            self._open[request] = _Connection(thread, now + self._request_seconds, now)
            thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close it; from here on nobody else touches it."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def shutdown(self) -> None:
        """Make `serve_forever` return, whatever clients do."""
        self._closing = True
        super().shutdown()

    def server_close(self) -> None:
        """Stop listening and cut every connection."""
        super().server_close()
        with self._lock:
            self._closing = True
            for request, connection in self._open.items():
                _cut(request, connection)
            threads = [connection.thread for connection in self._open.values()]
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A line; none for a client that has gone, or was cut."""
        error = sys.exception()
        if not isinstance(error, OSError):
            text = f"{client_address[0]}: {type(error).__name__}: {error}"
            print(f"dtrain: warning: {text}", file=sys.stderr, flush=True)

    def server_bind(self) -> None:
        """As TCPServer's: http.server's looks up the host's name, which can take long."""
        socketserver.TCPServer.server_bind(self)

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def _has_room(self) -> bool:
        """Whether there is room for one more connection, or was made."""
        stalled = time.monotonic() - _STALLED_SECONDS
        with self._lock:
            live = [(request, connection) for request, connection in self._open.items() if not connection.cut]
            if len(live) < self._max_connections:
                return True
            idle = [pair for pair in live if not pair[1].answering or pair[1].since < stalled]
            if idle:
                _cut(*min(idle, key=lambda pair: (pair[1].answering, pair[1].since)))
            return bool(idle)


def _cut(request: socket.socket, connection: _Connection) -> None:
    """Whatever its thread waits for fails."""
    connection.cut = True
    cut(request)


def cut(connection: socket.socket) -> None:
    """End a connection under the hands of whichever thread reads or writes it: that sees it closed.

    An SSLSocket's own `shutdown` would make that thread go on unencrypted.
    """
    with suppress(OSError):  # it has ended
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
