"""A publisher in a thread, servers that lie, and three versions of a model: what tests of shipping share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from packable import trained

from dtrain import ship
from dtrain.pack import pack, to_bytes
from dtrain.ship.offer import Blob, Offer

OLD, NEW, NEWER = (to_bytes(pack(trained(seed, moved), "smallest")) for seed, moved in ((1, 0.0), (1, 0.01), (2, 0.01)))


@contextmanager
def serving(server: HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def published(path: Path, data: bytes = OLD, **options: Any) -> Iterator[str]:
    path.write_bytes(data)
    with serving(ship.open_server(ship.Publisher(path), host="127.0.0.1", port=0, **options)) as url:
        yield url


@contextmanager
def lying(answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A server that answers, to a path and its Range, what it is told to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.path, self.headers.get("Range", ""))
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def offering(
    data: bytes, answer: Callable[[str], tuple[int, dict[str, str], bytes]], way: bytes | None = None
) -> Callable[[str, str], tuple[int, dict[str, str], bytes]]:
    """Offers `data`, and answers to a Range what it is told to."""
    offer = Offer(".dtz", Blob.of(data), None if way is None else Blob.of(way)).to_json()
    return lambda path, asked: answer(asked) if path.startswith("/files/") else (200, {}, offer)


def whole(data: bytes) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Length": str(len(data))}, data


def refused(url: str, target: Path, part: str, **options: Any) -> None:
    """Receiving fails with one line, and the old version stays, alone."""
    target.write_bytes(OLD)
    with pytest.raises((ValueError, OSError), match=part) as raised:
        ship.receive(url, target, **options)
    assert "\n" not in str(raised.value)
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]
