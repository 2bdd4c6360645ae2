"""The receiver: from a publisher's offer to a file that is replaced at once, or left as it was.

What comes is held to what was offered: no more bytes than that are read, and none are used before their SHA-256 is
right. The new file is written beside the old one, is on the disk before it takes its place, and takes it by a rename.
So whoever opens the file, at any time and after any kill, finds a whole version. With a public key, nothing is fetched
that its owner did not sign, and no version that is older than one that was accepted before.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError, deserialize

from dtrain.pack import apply_difference, from_bytes
from dtrain.ship import target as files
from dtrain.ship.client import Source, plain, refusing
from dtrain.ship.keys import Check
from dtrain.ship.offer import Blob, Offer

if TYPE_CHECKING:
    from dtrain.meter.ledger import Ledger

MAX_BYTES = 1 << 28
"""Of a file, unless told otherwise: AlexNet in fp32 fits. Taking in a difference may need 256 times its own size."""


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


def receive(
    url: str,
    target: Path,
    *,
    max_bytes: int = MAX_BYTES,
    ledger: Ledger | None = None,
    check: Check | None = None,
    tls: ssl.SSLContext | None = None,
) -> Received:
    """Make `target` the newest version of the publisher at `url`; on any error it stays what it was.

    `check`: of a public key (`read_public_key`), whose owner must have signed the offer. `tls`: what an https address
    is trusted by. Raises ValueError or OSError, in words for people, whatever comes.
    """
    source = Source(url, tls)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} into: make it first")
    start = time.perf_counter()
    with files.alone(target) as partial, refusing("what the publisher sent cannot be used"):
        held = files.read_held(target, max_bytes)
        have = None if held is None else hashlib.sha256(held).hexdigest()
        offer = _take_offer(source, have, target, max_bytes, check)
        if offer.file.sha256 == have:
            return Received("nothing new", have, offer.file.num_bytes, 0, 0.0, time.perf_counter() - start)
        files.check_space(target, offer.file.num_bytes)
        asked = time.perf_counter()
        if offer.difference is not None and held is not None and offer.difference.num_bytes <= offer.file.num_bytes:
            kind: Literal["file", "difference"] = "difference"
            came = source.fetch(offer.difference, ledger)
            arrived = time.perf_counter()
            new = _applied(held, came, offer.file)
        else:
            kind = "file"
            new = came = source.fetch(offer.file, ledger)
            arrived = time.perf_counter()
        _check_model(new, target.suffix)
        files.replace(target, partial, new)
    took = time.perf_counter() - start
    return Received(kind, offer.file.sha256, offer.file.num_bytes, len(came), arrived - asked, took)


def _take_offer(source: Source, have: str | None, target: Path, max_bytes: int, check: Check | None) -> Offer:
    said, signature = source.ask(have)
    if check is not None:
        check(said, signature)
    offer = Offer.from_json(said)
    if offer.suffix != target.suffix:
        raise ValueError(f"{target}: the publisher serves a {offer.suffix} file, so the name must end in that")
    if offer.file.num_bytes > max_bytes:
        raise ValueError(f"the new version has {offer.file.num_bytes:,} bytes, and --max-bytes is {max_bytes:,}")
    if check is not None:
        _accept(target, offer)
    return offer


def _accept(target: Path, offer: Offer) -> None:
    """Of a signed offer: its version must rise, or be the last one once more."""
    if offer.version is None:
        raise ValueError("the publisher's offer has no version")
    last, this = files.read_accepted(target), files.Accepted(offer.version, offer.file.sha256)
    if last is not None and this != last and this.version <= last.version:
        raise ValueError(
            f"the publisher offers version {this.version}, and {last.version} was accepted before: an old offer is "
            "sent again, or the publisher's clock was set back"
        )
    if this != last:
        files.write_accepted(target, this)


def _applied(held: bytes, came: bytes, file: Blob) -> bytes:
    try:
        new = apply_difference(held, came)
    except ValueError as error:
        raise ValueError(f"the publisher sent {plain(error)}") from None
    if Blob.of(new) != file:
        raise ValueError("the publisher sent a difference that leads to another file than it offered")
    return new


def _check_model(data: bytes, suffix: str) -> None:
    try:
        from_bytes(data) if suffix == ".dtz" else deserialize(data)  # type: ignore[no-untyped-call]
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"what the publisher sent is no whole model: {plain(error)}") from None
