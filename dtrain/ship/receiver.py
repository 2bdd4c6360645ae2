"""The receiver: from a publisher's offer to a file that is replaced at once, or left as it was.

What comes is held to what was offered: no more bytes than that are read, and none are used before their SHA-256 is
right. The new file is written beside the old one, is on the disk before it takes its place, and takes it by a rename.
So whoever opens the file, at any time and after any kill, finds a whole version.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal
from urllib.parse import urlsplit

from safetensors import SafetensorError, deserialize

from dtrain.pack import apply_difference, from_bytes
from dtrain.ship.metered import PIECE_BYTES, counted
from dtrain.ship.offer import FILES, HAVE, MAX_OFFER_BYTES, Blob, Offer

if TYPE_CHECKING:
    from dtrain.meter.ledger import Ledger

MAX_BYTES = 1 << 28
"""Of a file, unless told otherwise: AlexNet in fp32 fits. Taking in a difference may need 256 times its own size."""

_TIMEOUT_SECONDS = 60.0
_TRIES, _PAUSE_SECONDS = 4, 0.5


@dataclass(frozen=True)
class Received:
    """What became of a file.

    `transferred_bytes` are those of the body; `transfer_seconds` from asking for it to its last byte. `seconds` holds
    the offer too, making the file of a difference, verifying, and writing to disk.
    """

    kind: Literal["file", "difference", "nothing new"]
    sha256: str
    num_bytes: int
    transferred_bytes: int
    transfer_seconds: float
    seconds: float


def check_url(url: str) -> tuple[str, int]:
    """Host and port of a publisher's address. Raises ValueError for what is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = None, None, None
    if parts is None or parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query:
        raise ValueError(f"{url}: give a publisher's address as it prints it, such as http://127.0.0.1:8470")
    return host, port or 80


def receive(url: str, target: Path, *, max_bytes: int = MAX_BYTES, ledger: Ledger | None = None) -> Received:
    """Make `target` the newest version of the publisher at `url`; on any error it stays what it was.

    Raises ValueError or OSError, in words for people.
    """
    address = check_url(url)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} into: make it first")
    start = time.perf_counter()
    with _alone(target) as partial:
        held = _held(target, max_bytes)
        have = None if held is None else hashlib.sha256(held).hexdigest()
        offer = Offer.from_json(_ask(address, "/" if have is None else HAVE + have))
        if offer.suffix != target.suffix:
            raise ValueError(f"{target}: the publisher serves a {offer.suffix} file, so the name must end in that")
        if offer.file.num_bytes > max_bytes:
            raise ValueError(f"the new version has {offer.file.num_bytes:,} bytes, and --max-bytes is {max_bytes:,}")
        if offer.file.sha256 == have:
            return Received("nothing new", have, offer.file.num_bytes, 0, 0.0, time.perf_counter() - start)
        _check_space(target, offer.file.num_bytes)
        asked = time.perf_counter()
        if offer.difference is not None and held is not None and offer.difference.num_bytes <= offer.file.num_bytes:
            kind: Literal["file", "difference"] = "difference"
            came = _fetch(address, offer.difference, ledger)
            arrived = time.perf_counter()
            new = _applied(held, came, offer.file)
        else:
            kind = "file"
            new = came = _fetch(address, offer.file, ledger)
            arrived = time.perf_counter()
        _check_model(new, target.suffix)
        _replace(target, partial, new)
    took = time.perf_counter() - start
    return Received(kind, offer.file.sha256, offer.file.num_bytes, len(came), arrived - asked, took)


@contextmanager
def _alone(target: Path) -> Iterator[BinaryIO]:
    """The file beside `target` that becomes it, in which only one receiver writes at a time."""
    path = target.with_name(target.name + ".partial")
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another receiver is writing {target}: give each a file of its own") from None
        try:
            yield file
        finally:
            path.unlink(missing_ok=True)


def _held(target: Path, max_bytes: int) -> bytes | None:
    if not target.exists():
        return None
    if not target.is_file():
        raise ValueError(f"{target} is not a file: give another name")
    if target.stat().st_size > max_bytes:
        raise ValueError(f"{target} has {target.stat().st_size:,} bytes, and --max-bytes is {max_bytes:,}")
    return target.read_bytes()


def _check_space(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise ValueError(f"{target.parent} has {free:,} bytes free, and the new version takes {num_bytes:,}")


def _applied(held: bytes, came: bytes, file: Blob) -> bytes:
    try:
        new = apply_difference(held, came)
    except ValueError as error:
        raise ValueError(f"the publisher sent {error}") from None
    if Blob.of(new) != file:
        raise ValueError("the publisher sent a difference that leads to another file than it offered")
    return new


def _check_model(data: bytes, suffix: str) -> None:
    try:
        from_bytes(data) if suffix == ".dtz" else deserialize(data)  # type: ignore[no-untyped-call]
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"what the publisher sent is no whole model: {error}") from None


def _replace(target: Path, partial: BinaryIO, data: bytes) -> None:
    try:
        partial.truncate(0)  # a receiver that was killed leaves it
        partial.write(data)
        partial.flush()
        os.fsync(partial.fileno())
        Path(partial.name).replace(target)
    except OSError as error:
        raise OSError(f"cannot write {target} ({_words(error)}); it is as it was") from None
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# HTTP


def _ask(address: tuple[str, int], path: str) -> bytes:
    with _trouble(address), _got(address, path) as answer:
        body = answer.read(MAX_OFFER_BYTES + 1)
    if answer.status != 200 or len(body) > MAX_OFFER_BYTES:
        raise ValueError(f"http://{address[0]}:{address[1]}: what answers there is no `dtrain ship publish`")
    return body


def _fetch(address: tuple[str, int], blob: Blob, ledger: Ledger | None) -> bytes:
    """The bytes with that digest. What breaks off is gone on with, as long as some come at each of a few tries."""
    body = bytearray()
    tries = 0
    try:
        while len(body) < blob.num_bytes:
            before = len(body)
            try:
                _fetch_rest(address, blob, body, ledger)
            except (OSError, HTTPException) as error:
                tries = 1 if len(body) > before else tries + 1
                if tries == _TRIES:
                    raise ConnectionError(
                        f"the publisher broke off {_TRIES} times, after {len(body):,} of {blob.num_bytes:,} bytes "
                        f"({_words(error)}): try again when it is back"
                    ) from None
                time.sleep(_PAUSE_SECONDS)
    finally:
        if ledger is not None:
            ledger.close()
    if hashlib.sha256(body).hexdigest() != blob.sha256:
        raise ValueError("what came was altered on the way (its SHA-256 is not the one offered): fetch it again")
    return bytes(body)


def _fetch_rest(address: tuple[str, int], blob: Blob, body: bytearray, ledger: Ledger | None) -> None:
    with _got(address, FILES + blob.sha256, {"Range": f"bytes={len(body)}-"} if body else {}) as answer:
        if answer.status == 404:
            raise ValueError("the publisher has gone on to another version meanwhile: fetch it again")
        if answer.status == 200:
            body.clear()
        elif answer.status != 206:
            raise ValueError(f"the publisher answers {answer.status} {answer.reason}")
        if answer.length != blob.num_bytes - len(body):
            raise ValueError(
                f"the publisher sends {answer.length} bytes where {blob.num_bytes - len(body)} were offered"
            )
        while len(body) < blob.num_bytes:
            size = min(PIECE_BYTES, blob.num_bytes - len(body))
            with counted(ledger, "recv", size):
                piece = answer.read(size)
            body += piece
            if len(piece) < size:
                raise ConnectionError("the connection was closed")


@contextmanager
def _got(address: tuple[str, int], path: str, headers: Mapping[str, str] | None = None) -> Iterator[HTTPResponse]:
    """The answer to a GET, closed after use."""
    with closing(HTTPConnection(*address, timeout=_TIMEOUT_SECONDS)) as connection:
        connection.request("GET", path, headers=headers or {})
        with closing(connection.getresponse()) as answer:
            yield answer


@contextmanager
def _trouble(address: tuple[str, int]) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException) as error:
        host, port = address
        raise ConnectionError(
            f"no publisher answers at http://{host}:{port} ({_words(error)}): check the address, and that "
            "`dtrain ship publish` runs there"
        ) from None


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
