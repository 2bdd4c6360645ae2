"""The publisher: an HTTP server of one file's newest version, and of differences to it from the versions before.

It reads the file again whenever that has changed. A file that is no whole model is not served: the last good one is.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Literal

from dtrain.files import read_file
from dtrain.pack import from_bytes, make_difference, parse_safetensors
from dtrain.server import BoundedServer
from dtrain.ship.client import refusing
from dtrain.ship.keys import SIGNATURE, Sign
from dtrain.ship.metered import PIECE_BYTES, counted
from dtrain.ship.offer import FILES, HAVE, SUFFIXES, Blob, Offer, answer_seconds, is_sha256

if TYPE_CHECKING:
    from dtrain.meter.ledger import Ledger

_KEPT_VERSIONS = 4
_MAX_CONNECTIONS = 64
_REQUEST_SECONDS = 10.0
"""Until a receiver has said what it wants, its handshake with TLS included."""


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
        self._version = 0
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
            return Offer(self._path.suffix, self._newest, None if way is None else way[0], self._version)

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
        self._version = max(self._version + 1, time.time_ns() // 1_000_000)
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
            with refusing("a difference cannot be made"):
                way = make_difference(self._versions[have], self._versions[self._newest.sha256])
        except ValueError as error:
            _warn(f"no difference from {have[:12]} can be made ({error}); sending the whole file")
            return None
        return (Blob.of(way), way) if len(way) < self._newest.num_bytes else None


def _warn(text: str) -> None:
    print(f"dtrain: warning: {text}", file=sys.stderr, flush=True)


def _state(path: Path) -> object:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file at {path}: check the path") from None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[Blob, bytes]:
    data = read_file(path)
    with refusing(f"{path} cannot be read"):
        if path.suffix == ".dtz":
            try:
                from_bytes(data)
            except ValueError as error:
                raise ValueError(f"{path}: {error}; give a whole .dtz file of dtrain pack") from None
        else:
            parse_safetensors(data, path)
    return Blob.of(data), data


def open_server(
    publisher: Publisher,
    *,
    host: str,
    port: int,
    ledger: Ledger | None = None,
    on_sent: Callable[[Sent], None] = lambda sent: None,
    sign: Sign | None = None,
    tls: SSLContext | None = None,
) -> BoundedServer:
    """A server that listens (`server_address`; port 0 takes a free one) and answers in `serve_forever()`.

    `on_sent` is called after each file, from the thread that sent it. `sign`: each offer, with a key
    (`read_signing_key`). `tls`: encrypts. Raises ValueError where it cannot listen.
    """

    class Handler(BaseHTTPRequestHandler):
        server: BoundedServer
        server_version, sys_version = "dtrain", ""

        def do_GET(self) -> None:
            self.server.answering(self.connection, answer_seconds(0))
            have = self.path.removeprefix(HAVE) if self.path.startswith(HAVE) else None
            if self.path == "/" or is_sha256(have):
                self._send_offer(publisher.offer(have).to_json())
            elif self.path.startswith(FILES) and (found := publisher.find(self.path.removeprefix(FILES))):
                self._send_file(self.path.removeprefix(FILES), *found)
            else:
                self.send_error(404)

        def _send_offer(self, offer: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(offer)))
            if sign is not None:
                self.send_header(SIGNATURE, sign(offer))
            self.end_headers()
            self.wfile.write(offer)

        def _send_file(self, sha256: str, kind: Literal["file", "difference"], data: bytes) -> None:
            asked = re.fullmatch(r"bytes=(\d{1,15})-", self.headers.get("Range", ""))
            first = int(asked[1]) if asked and int(asked[1]) < len(data) else 0
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            self.server.answering(self.connection, answer_seconds(len(data) - first))
            start, sent = time.perf_counter(), first
            try:
                while sent < len(data):
                    piece = memoryview(data)[sent : sent + PIECE_BYTES]
                    with counted(ledger, "send", len(piece)):
                        self.wfile.write(piece)
                    self.server.answering(self.connection)
                    sent += len(piece)
            finally:
                seconds = time.perf_counter() - start
                if ledger is not None:
                    ledger.close()
                on_sent(Sent(self.client_address[0], kind, sha256, sent - first, seconds, sent == len(data)))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        return BoundedServer(
            (host, port), Handler, max_connections=_MAX_CONNECTIONS, request_seconds=_REQUEST_SECONDS, tls=tls
        )
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}:{port} ({error}): give another --host or --port") from None
