"""Models from where they are made to where they are used: one publisher, any number of receivers, over HTTP.

A version of a model is the SHA-256 of its file. A receiver says which version it holds, and fetches either the file of
the newest or, if the publisher knows the version that it holds, the difference (`dtrain.pack.make_difference`). It
replaces its file by the new one at once, and only when that is whole and verified. Offers can be signed and checked,
and all of it encrypted. Needs no torch, unless a ledger is kept.
"""

from dtrain.ship.client import check_url
from dtrain.ship.keys import make_keys, read_public_key, read_signing_key
from dtrain.ship.metered import open_ledger
from dtrain.ship.publisher import Publisher, Sent, open_server
from dtrain.ship.receiver import MAX_BYTES, Received, receive
from dtrain.ship.tls import client_context, server_context

__all__ = [
    "MAX_BYTES",
    "Publisher",
    "Received",
    "Sent",
    "check_url",
    "client_context",
    "make_keys",
    "open_ledger",
    "open_server",
    "read_public_key",
    "read_signing_key",
    "receive",
    "server_context",
]
