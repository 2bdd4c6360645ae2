"""What a publisher says of its newest version, as JSON: the words that both ends know.

    {"schema": 1, "suffix": ".dtz", "version": 1796000000000, "sha256": "...", "num_bytes": 471261,
     "difference": {"sha256": "...", "num_bytes": 53549}}

`version` rises with each new version of a publisher, also of one that was started again: it is the time when that took
the file in, in milliseconds since 1970. `difference` leads there from the version that the receiver said it has; null
if there is none, or none that is smaller. An offer may be signed (`keys.py`).
The bytes of both are at /files/<sha256>.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from dtrain.files import parse_json

SCHEMA = 1
SUFFIXES = (".dtz", ".safetensors")
MAX_OFFER_BYTES = 4096
FILES = "/files/"
HAVE = "/?have="

_ANSWER_SECONDS = 60.0
_LEAST_BYTES_PER_SECOND = 8192.0


@dataclass(frozen=True)
class Blob:
    """Bytes by their digest, which is also their name."""

    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, data: bytes) -> Blob:
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class Offer:
    """The newest version, and the shorter way to it."""

    suffix: str
    file: Blob
    difference: Blob | None
    version: int | None = None

    def to_json(self) -> bytes:
        """As it is sent."""
        difference = None if self.difference is None else asdict(self.difference)
        offer = {"schema": SCHEMA, "suffix": self.suffix, "version": self.version, **asdict(self.file)}
        return json.dumps({**offer, "difference": difference}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Offer:
        """Raises ValueError for anything that `to_json` does not write."""
        try:
            offer = parse_json(data)
        except ValueError:
            offer = None
        if not isinstance(offer, dict) or "schema" not in offer:
            raise ValueError("what answers there is no `dtrain ship publish`")
        if offer["schema"] != SCHEMA:
            raise ValueError(f"the publisher speaks version {offer['schema']!r:.40}, and this dtrain version {SCHEMA}")
        if offer.get("suffix") not in SUFFIXES:
            raise ValueError("the publisher's offer is of no kind of file that is known here")
        difference, version = offer.get("difference"), offer.get("version")
        if version is not None and not is_version(version):
            raise ValueError("the publisher's offer has a version that is no number")
        return cls(offer["suffix"], _blob(offer), None if difference is None else _blob(difference), version)


def answer_seconds(num_bytes: int) -> float:
    """How long an answer with so many bytes may take in all: for larger ones what a link of 64 kbit/s needs, too."""
    return _ANSWER_SECONDS + num_bytes / _LEAST_BYTES_PER_SECOND


def is_sha256(text: Any) -> bool:
    """Whether it is written as a digest is here."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def is_version(number: Any) -> bool:
    """Whether it is one of those that rise."""
    return type(number) is int and 0 <= number < 1 << 63


def _blob(fields: Any) -> Blob:
    if not isinstance(fields, dict) or not is_sha256(fields.get("sha256")) or type(fields.get("num_bytes")) is not int:
        raise ValueError("the publisher's offer has no digest and size")
    if not 1 <= fields["num_bytes"] < 1 << 63:
        raise ValueError("the publisher's offer is of an empty file, or of one that no disk holds")
    return Blob(fields["sha256"], fields["num_bytes"])
