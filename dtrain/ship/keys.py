"""Who may publish: offers are signed with an Ed25519 key (RFC 8032), and checked with its public half.

A signature is over an offer's bytes as they are sent, after a prefix that keeps it from meaning anything elsewhere.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from dtrain.files import open_file

SIGNATURE = "Dtrain-Signature"
"""The header of an answer that has it, in hexadecimal digits."""

Sign: TypeAlias = Callable[[bytes], str]
Check: TypeAlias = Callable[[bytes, str | None], None]
"""Takes an offer and its signature; raises ValueError where that is missing or wrong."""

_CONTEXT = b"dtrain ship offer 1\0"
_MAX_KEY_BYTES = 4096


def make_keys(path: Path) -> Path:
    """Write a new private key to `path`, and its public half beside it, whose path is returned; both in PEM, mode 0600.

    Raises OSError where they cannot be written, FileExistsError where there is a file of either name: none is replaced.
    """
    from cryptography.hazmat.primitives import serialization as form  # here and below: unsigned offers do without
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    public_path = path.with_name(path.name + ".pub")
    _write_new(path, private)
    try:
        _write_new(public_path, public)
    except BaseException:
        path.unlink()
        raise
    return public_path


def read_signing_key(path: Path) -> Sign:
    """What signs with the private key in that file. Raises ValueError for another file, OSError for none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(path)
    try:
        key = load_pem_private_key(content, password=None)
    except Exception:  # ValueError, and TypeError of an encrypted one, or whatever OpenSSL says of a damaged one
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path}: give a private key that `dtrain ship keygen` wrote")
    return lambda offer: key.sign(_CONTEXT + offer).hex()


def read_public_key(path: Path) -> Check:
    """What checks with the public key in that file. Raises ValueError for another file, OSError for none."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(path)
    try:
        key = load_pem_public_key(content)
    except Exception:  # ValueError, or whatever OpenSSL says of a damaged one
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{path}: give a public key that `dtrain ship keygen` wrote, whose name ends in .pub")

    def check(offer: bytes, signature: str | None) -> None:
        if signature is None:
            raise ValueError("the publisher's offer is not signed: have it run with --key")
        try:
            if len(signature) != 128 or not set(signature) <= set(string.hexdigits):
                raise InvalidSignature
            key.verify(bytes.fromhex(signature), _CONTEXT + offer)
        except InvalidSignature:
            raise ValueError(f"the publisher's offer is not signed by the key of {path}: it is refused") from None

    return check


def _read(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(_MAX_KEY_BYTES)


def _write_new(path: Path, content: bytes) -> None:
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise FileExistsError(f"{path} exists, and a key is never replaced: give another name") from None
    try:
        with os.fdopen(opened, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise
