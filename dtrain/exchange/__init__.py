"""The words everything else is written in: what a compressor may ask of the network, and what it answers.

A gradient compressor asks for collectives and never performs one. It is a generator that yields requests and is sent
their answers, so that one implementation serves every backend and bytes are counted in one place.
"""

from __future__ import annotations

from dtrain.exchange.collective import Op, Request
from dtrain.exchange.compressor import Compressor, Context, Exchange, Exchanged, Scratch, together
from dtrain.exchange.contribution import NOT_KEPT, Contribution, Dense, Sparse
from dtrain.exchange.state import (
    Bucket,
    Layout,
    Parts,
    Replicated,
    State,
    StateT,
    check_parts,
    has_vectors,
    put_together,
    share_out,
    take_apart,
)

__all__ = [
    "NOT_KEPT",
    "Bucket",
    "Compressor",
    "Context",
    "Contribution",
    "Dense",
    "Exchange",
    "Exchanged",
    "Layout",
    "Op",
    "Parts",
    "Replicated",
    "Request",
    "Scratch",
    "Sparse",
    "State",
    "StateT",
    "check_parts",
    "has_vectors",
    "put_together",
    "share_out",
    "take_apart",
    "together",
]
