"""What listens is kept by no client, however it drips, stalls or crowds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from dtrain import server as serving
from dtrain.server import BoundedServer

LONG = 120.0
"""Seconds: no test waits so long, so what ends did not end by this."""


class Handler(BaseHTTPRequestHandler):
    """Answers /long for ever, as far as it is read."""

    server: BoundedServer

    def do_GET(self) -> None:
        self.server.answering(self.connection, LONG)
        self.send_response(200)
        self.end_headers()
        while self.path == "/long":
            self.wfile.write(b"x" * 65536)


@contextmanager
def running(max_connections: int = 4, request_seconds: float = LONG) -> Iterator[tuple[str, int]]:
    server = BoundedServer(("127.0.0.1", 0), Handler, max_connections=max_connections, request_seconds=request_seconds)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield "127.0.0.1", server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        assert not server._open


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "log_message", lambda *arguments: None)


def opened(address: tuple[str, int], said: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, timeout=LONG / 2)
    connection.sendall(said)
    return connection


def is_answered(address: tuple[str, int]) -> bool:
    """Waits until the server has closed the connection, too: then there is room for another."""
    with opened(address, b"GET / HTTP/1.0\r\n\r\n") as connection, connection.makefile("rb") as answer:
        return answer.read().startswith(b"HTTP/1.0 200")


def is_cut(connection: socket.socket) -> bool:
    """Waits until it is."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_request_that_drips_is_cut_at_its_deadline() -> None:
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        try:
            while not over.wait(0.02):
                connection.sendall(b"x")
        except OSError:
            pass

    with running(request_seconds=0.3) as address, opened(address) as connection:
        thread = threading.Thread(target=drip, args=(connection,))
        thread.start()
        assert is_cut(connection)
        over.set()
        thread.join()
        assert is_answered(address)


def test_it_ends_at_once_whatever_clients_do() -> None:
    start = time.monotonic()
    with running() as address:
        clients = [opened(address, said) for said in (b"", b"GET /", b"GET /long HTTP/1.0\r\n\r\n")]
        assert is_answered(address)
    assert time.monotonic() - start < LONG / 4
    for client in clients:
        client.close()


def test_for_a_new_client_the_oldest_that_says_nothing_makes_room() -> None:
    with running() as address, ExitStack() as stack:
        clients = [stack.enter_context(opened(address)) for _ in range(4)]
        assert is_answered(address)
        assert is_cut(clients[0])
        assert is_answered(address)  # in the room of the one that was answered
        clients[1].settimeout(0.05)
        with pytest.raises(TimeoutError):
            clients[1].recv(1)


def test_answers_that_do_not_get_on_make_room_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as address:
        clients = [opened(address, b"GET /long HTTP/1.0\r\n\r\n") for _ in range(4)]
        assert all(client.recv(1) for client in clients)
        waiting = opened(address, b"GET / HTTP/1.0\r\n\r\n")
        waiting.settimeout(0.2)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        monkeypatch.setattr(serving, "_STALLED_SECONDS", 0.1)
        waiting.settimeout(LONG / 2)
        assert waiting.recv(12) == b"HTTP/1.0 200"
        for client in (*clients, waiting):
            client.close()
