"""Neither end waits for ever: not for bytes that drip, and not for those who take up all connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from shippable import NEW, OLD, published, refused

from dtrain import ship
from dtrain.ship import client as asking
from dtrain.ship import publisher as publishing
from dtrain.ship.offer import Blob, Offer

OFFER = Offer(".dtz", Blob.of(NEW), None).to_json()
LONG = 120.0


@contextmanager
def answering(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server that does to each connection, whose request it has read, what it is told to."""

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):  # the receiver has had enough
                answer(connection, connection.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def drip(connection: socket.socket, data: bytes) -> None:
    for _ in range(int(LONG / 0.02)):
        connection.sendall(data)
        time.sleep(0.02)


def nothing(connection: socket.socket, asked: bytes) -> None:
    connection.recv(1)


def slow_head(connection: socket.socket, asked: bytes) -> None:
    connection.sendall(b"HTTP/1.0 200 OK\r\nX: ")
    drip(connection, b"x")


def continues(connection: socket.socket, asked: bytes) -> None:
    drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n")


def slow_offer(connection: socket.socket, asked: bytes) -> None:
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    drip(connection, b" ")


def head(first: int) -> bytes:
    status = b"206 Partial Content" if first else b"200 OK"
    return b"HTTP/1.0 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(NEW) - first)


def first_of(asked: bytes) -> int:
    return int(asked.partition(b"bytes=")[2].partition(b"-")[0] or 0)


def offered(send: Callable[[socket.socket, int], None]) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, asked: bytes) -> None:
        if b" /files/" in asked:
            send(connection, first_of(asked))
        else:
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + OFFER)

    return answer


def slow_file(connection: socket.socket, first: int) -> None:
    connection.sendall(head(first))
    drip(connection, b"x")


def a_byte_a_connection(connection: socket.socket, first: int) -> None:
    connection.sendall(head(first) + NEW[first : first + 1])


@pytest.mark.parametrize("answer", [nothing, slow_head, continues, slow_offer])
def test_an_offer_that_does_not_come_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[socket.socket, bytes], None]
) -> None:
    monkeypatch.setattr(asking, "answer_seconds", lambda num_bytes: 0.3)
    with answering(answer) as url:
        refused(url, tmp_path / "r.dtz", r"no publisher answers at .* \(no whole answer in 0 s\)")


@pytest.mark.parametrize("send", [slow_file, a_byte_a_connection])
def test_a_file_that_does_not_get_on_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: Callable[[socket.socket, int], None]
) -> None:
    monkeypatch.setattr(asking, "answer_seconds", lambda num_bytes: 0.3 if num_bytes else LONG)
    monkeypatch.setattr(asking, "_PAUSE_SECONDS", 0.01)
    with answering(offered(send)) as url:
        refused(url, tmp_path / "r.dtz", r"the publisher sent [1-9][\d]* of .* bytes in 0 s")


def test_those_who_ask_nothing_keep_no_receiver_waiting(tmp_path: Path) -> None:
    with published(tmp_path / "m.dtz") as url, ExitStack() as idle:
        start = time.monotonic()
        for _ in range(2 * publishing._MAX_CONNECTIONS):
            idle.enter_context(socket.create_connection(ship.check_url(url), timeout=LONG))
        assert ship.receive(url, tmp_path / "r.dtz").kind == "file"
        assert time.monotonic() - start < publishing._REQUEST_SECONDS


def test_a_request_that_drips_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_REQUEST_SECONDS", 0.3)
    with (
        published(tmp_path / "m.dtz") as url,
        socket.create_connection(ship.check_url(url)) as client,
        pytest.raises(OSError),
    ):
        drip(client, b"x")


def test_a_file_that_is_not_read_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "answer_seconds", lambda num_bytes: 0.3 if num_bytes else LONG)
    sent: list[ship.Sent] = []
    over = threading.Event()

    def on_sent(one: ship.Sent) -> None:
        sent.append(one)
        over.set()

    with published(tmp_path / "m.dtz", on_sent=on_sent) as url, socket.socket() as client:
        monkeypatch.setattr(publishing.Publisher, "find", lambda *arguments: ("file", bytes(1 << 25)))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(ship.check_url(url))
        client.sendall(b"GET /files/%s HTTP/1.0\r\n\r\n" % Blob.of(OLD).sha256.encode())
        assert over.wait(LONG)
    assert [one.whole for one in sent] == [False]
