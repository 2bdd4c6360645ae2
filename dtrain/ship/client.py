"""What a receiver asks a publisher, over HTTP: an offer, and the bytes with a digest.

Each request has a deadline for the whole of it, whatever comes and however it drips: then its connection is cut.
"""

from __future__ import annotations

import hashlib
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dtrain.server import cut
from dtrain.ship.keys import SIGNATURE
from dtrain.ship.metered import PIECE_BYTES, counted
from dtrain.ship.offer import FILES, HAVE, MAX_OFFER_BYTES, Blob, answer_seconds

if TYPE_CHECKING:
    from dtrain.meter.ledger import Ledger

_TRIES, _PAUSE_SECONDS = 4, 0.5


def check_url(url: str) -> tuple[str, int]:
    """Host and port of a publisher's address. Raises ValueError for what is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = None, None, None
    schemes = ("http", "https")
    if parts is None or parts.scheme not in schemes or not host or parts.path not in ("", "/") or parts.query:
        raise ValueError(f"{_shown(url)}: give a publisher's address as it prints it, such as http://127.0.0.1:8470")
    if parts.username is not None:
        raise ValueError(f"{_shown(url)}: a publisher asks for no user and no password: leave them out")
    return host, port or (443 if parts.scheme == "https" else 80)


def _shown(url: str) -> str:
    from dtrain.meter.command_line import url_without_secrets  # with torch, which a receiver does without

    return url_without_secrets(url)


class Source:
    """A publisher at an address. `tls`: of an https address; for None, this machine's trust.

    Raises ValueError for what is no address.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._host, self._port = check_url(url)
        self._url = url.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if urlsplit(url).scheme == "https" else None

    def ask(self, have: str | None) -> tuple[bytes, str | None]:
        """The offer to a receiver that has that version, and its signature. Raises OSError, or ValueError."""
        ends = time.monotonic() + answer_seconds(0)
        try:
            with self._got("/" if have is None else HAVE + have, ends) as answer:
                body = answer.read(MAX_OFFER_BYTES + 1)
            if time.monotonic() >= ends:  # what was cut may look as if it were all
                raise TimeoutError
        except ssl.SSLCertVerificationError as error:
            raise ConnectionError(
                f"{self._url}: its certificate is not trusted here ({plain(error.verify_message)}): give --ca, the "
                "certificate of whoever signed it"
            ) from None
        except (OSError, HTTPException) as error:
            late = f"no whole answer in {answer_seconds(0):.0f} s" if time.monotonic() >= ends else _words(error)
            raise ConnectionError(
                f"no publisher answers at {self._url} ({late}): check the address, and that `dtrain ship publish` runs "
                "there"
            ) from None
        if answer.status != 200 or len(body) > MAX_OFFER_BYTES:
            raise ValueError(f"{self._url}: what answers there is no `dtrain ship publish`")
        return body, answer.getheader(SIGNATURE)

    def fetch(self, blob: Blob, ledger: Ledger | None) -> bytes:
        """The bytes with that digest. What breaks off is gone on with, as long as some come at each of a few tries."""
        body = bytearray()
        tries = 0
        ends = time.monotonic() + answer_seconds(blob.num_bytes)
        try:
            while len(body) < blob.num_bytes:
                before = len(body)
                try:
                    self._fetch_rest(blob, body, ledger, ends)
                except (OSError, HTTPException) as error:
                    came = f"{len(body):,} of {blob.num_bytes:,} bytes"
                    if time.monotonic() >= ends:
                        raise TimeoutError(
                            f"the publisher sent {came} in {answer_seconds(blob.num_bytes):.0f} s: try again over a "
                            "faster link"
                        ) from None
                    tries = 1 if len(body) > before else tries + 1
                    if tries == _TRIES:
                        raise ConnectionError(
                            f"the publisher broke off {_TRIES} times, after {came} ({_words(error)}): try again when "
                            "it is back"
                        ) from None
                    time.sleep(_PAUSE_SECONDS)
        finally:
            if ledger is not None:
                ledger.close()
        if hashlib.sha256(body).hexdigest() != blob.sha256:
            raise ValueError("what came was altered on the way (its SHA-256 is not the one offered): fetch it again")
        return bytes(body)

    def _fetch_rest(self, blob: Blob, body: bytearray, ledger: Ledger | None, ends: float) -> None:
        with self._got(FILES + blob.sha256, ends, {"Range": f"bytes={len(body)}-"} if body else {}) as answer:
            if answer.status == 404:
                raise ValueError("the publisher has gone on to another version meanwhile: fetch it again")
            if answer.status == 200:
                body.clear()
            elif answer.status != 206:
                raise ValueError(f"the publisher answers {answer.status} {plain(answer.reason)}")
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
    def _got(self, path: str, ends: float, headers: Mapping[str, str] | None = None) -> Iterator[HTTPResponse]:
        """The answer to a GET, cut when `ends` has come and closed after use."""
        left = max(0.001, ends - time.monotonic())
        if self._tls is None:
            connection = HTTPConnection(self._host, self._port, timeout=left)
        else:
            connection = HTTPSConnection(self._host, self._port, timeout=left, context=self._tls)
        with closing(connection):
            connection.connect()
            timer = threading.Timer(max(0.0, ends - time.monotonic()), cut, [connection.sock])
            timer.daemon = True
            timer.start()
            try:
                connection.request("GET", path, headers=headers or {})
                with closing(connection.getresponse()) as answer:
                    yield answer
            finally:
                timer.cancel()


def plain(text: object) -> str:
    """In one line, and with nothing that would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """What somebody else made can only be refused, in whichever way a decoder fails on it: ValueError, that says what.

    ValueError and OSError are let through.
    """
    try:
        yield
    except (ValueError, OSError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what panics in Rust is no Exception
        raise ValueError(f"{what} ({type(error).__name__}: {plain(error):.200})") from None


def _words(error: Exception) -> str:
    return plain((error.strerror if isinstance(error, OSError) else None) or error) or type(error).__name__
