"""The publisher: an HTTP server of one file's newest version, and of differences to it from the versions before.

It reads the file again whenever that has changed. A file that is no whole model is not served: the last good one is.
"""

from __future__ import annotations

import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtrain.pack import from_bytes, make_difference, read_safetensors
from dtrain.ship.metered import PIECE_BYTES, counted
from dtrain.ship.offer import FILES, HAVE, SUFFIXES, Blob, Offer, is_sha256

if TYPE_CHECKING:
    from dtrain.meter.ledger import Ledger

_KEPT_VERSIONS = 4
_MAX_CONNECTIONS = 64
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Sent:
    """One answer with a file's bytes. `seconds` until the kernel had taken all of them."""

    receiver: str
    kind: Literal["file", "difference"]
    sha256: str
    num_bytes: int
    seconds: float
    whole: bool


class Publisher:
    """The versions of one file, oldest first, and the differences between them and the newest. For many threads."""

    def __init__(self, path: Path, bases: Sequence[Path] = ()) -> None:
        """`bases`: files of earlier versions. Raises ValueError or FileNotFoundError, naming the cure."""
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: give a {' or '.join(SUFFIXES)} file")
        if len(bases) >= _KEPT_VERSIONS:
            raise ValueError(f"{len(bases)} earlier versions: give {_KEPT_VERSIONS - 1} at most")
        self._path = path
        self._lock = threading.Lock()
        self._versions = {blob.sha256: data for blob, data in map(_read, bases)}
        self._differences: dict[tuple[str, str], tuple[Blob, bytes] | None] = {}
        """From one version to another; None: not worth it, or not possible."""
        self._seen: object = None
        self._newest = self._take_in()

    @property
    def newest(self) -> Blob:
        """The version that is served."""
        return self._newest

    def offer(self, have: str | None) -> Offer:
        """For a receiver that has that version."""
        with self._lock:
            self._look()
            way = self._difference_from(have)
            return Offer(self._path.suffix, self._newest, None if way is None else way[0])

    def find(self, sha256: str) -> tuple[Literal["file", "difference"], bytes] | None:
        """The bytes with that digest, if they are still kept."""
        with self._lock:
            if sha256 in self._versions:
                return "file", self._versions[sha256]
            for way in self._differences.values():
                if way is not None and way[0].sha256 == sha256:
                    return "difference", way[1]
            return None

    def _look(self) -> None:
        """Take in a new version, if there is one."""
        try:
            if _state(self._path) != self._seen:
                self._newest = self._take_in()
        except (ValueError, OSError) as error:
            _warn(f"{error}; still serving {self._newest.sha256[:12]}")

    def _take_in(self) -> Blob:
        self._seen = _state(self._path)
        blob, data = _read(self._path)
        self._versions.pop(blob.sha256, None)
        self._versions[blob.sha256] = data
        while len(self._versions) > (_KEPT_VERSIONS if self._path.suffix == ".dtz" else 1):
            del self._versions[next(iter(self._versions))]
        self._differences = {pair: way for pair, way in self._differences.items() if set(pair) <= self._versions.keys()}
        return blob

    def _difference_from(self, have: str | None) -> tuple[Blob, bytes] | None:
        newest = self._newest.sha256
        if have is None or have not in self._versions or have == newest or self._path.suffix != ".dtz":
            return None
        if (have, newest) not in self._differences:
            self._differences[have, newest] = self._make_difference(have)
        return self._differences[have, newest]

    def _make_difference(self, have: str) -> tuple[Blob, bytes] | None:
        try:
            way = make_difference(self._versions[have], self._versions[self._newest.sha256])
        except ValueError as error:
            _warn(f"no difference from {have[:12]} can be made ({error}); sending the whole file")
            return None
        return (Blob.of(way), way) if len(way) < self._newest.num_bytes else None


def _warn(text: str) -> None:
    print(f"dtrain: warning: {text}", file=sys.stderr, flush=True)


def _state(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: check the path")
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[Blob, bytes]:
    _state(path)
    data = path.read_bytes()
    if path.suffix == ".dtz":
        try:
            from_bytes(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; give a whole .dtz file of dtrain pack") from None
    else:
        read_safetensors(path)
    return Blob.of(data), data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()  # the others wait to be accepted
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a receiver that has gone is no news
            _warn(f"{client_address[0]}: {type(error).__name__}: {error}")

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # http.server's looks up the host's name, which can take long


def open_server(
    publisher: Publisher,
    *,
    host: str,
    port: int,
    ledger: Ledger | None = None,
    on_sent: Callable[[Sent], None] = lambda sent: None,
) -> ThreadingHTTPServer:
    """A server that listens (`server_address`; port 0 takes a free one) and answers in `serve_forever()`.

    `on_sent` is called after each file, from the thread that sent it. Raises ValueError where it cannot listen.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_SECONDS
        server_version, sys_version = "dtrain", ""

        def do_GET(self) -> None:
            have = self.path.removeprefix(HAVE) if self.path.startswith(HAVE) else None
            if self.path == "/" or is_sha256(have):
                self._answer(publisher.offer(have).to_json(), "application/json")
            elif self.path.startswith(FILES) and (found := publisher.find(self.path.removeprefix(FILES))):
                self._send_file(self.path.removeprefix(FILES), *found)
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _send_file(self, sha256: str, kind: Literal["file", "difference"], data: bytes) -> None:
            asked = re.fullmatch(r"bytes=(\d{1,15})-", self.headers.get("Range", ""))
            first = int(asked[1]) if asked and int(asked[1]) < len(data) else 0
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            start, sent = time.perf_counter(), first
            try:
                while sent < len(data):
                    piece = memoryview(data)[sent : sent + PIECE_BYTES]
                    with counted(ledger, "send", len(piece)):
                        self.wfile.write(piece)
                    sent += len(piece)
            finally:
                seconds = time.perf_counter() - start
                if ledger is not None:
                    ledger.close()
                on_sent(Sent(self.client_address[0], kind, sha256, sent - first, seconds, sent == len(data)))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        return _Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}:{port} ({error}): give another --host or --port") from None
