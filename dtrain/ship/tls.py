"""TLS of both ends, by the standard library's own choice of versions and ciphers."""

from __future__ import annotations

import ssl
from pathlib import Path

from dtrain.files import open_file


def server_context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    """A publisher's, which shows that certificate (PEM, with those that lead to its authority's).

    Raises ValueError where the two cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        for path in (certificate, private_key):
            open_file(path).close()  # openssl would wait at a named pipe
        context.load_cert_chain(certificate, private_key, password=lambda: "")  # never asks at the terminal
    except OSError as error:
        raise ValueError(
            f"--certificate {certificate} and --private-key {private_key} cannot be used ({_reason(error)}): give a "
            "certificate and its key, both in PEM, the key without a password"
        ) from None
    return context


def client_context(authority: Path | None) -> ssl.SSLContext:
    """A receiver's, which trusts that authority's certificate (PEM) alone, or for None those that this machine trusts.

    Raises ValueError where it cannot be used.
    """
    try:
        if authority is not None:
            open_file(authority).close()
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise ValueError(f"--ca {authority} cannot be used ({_reason(error)}): give a certificate in PEM") from None


def _reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or str(error)
