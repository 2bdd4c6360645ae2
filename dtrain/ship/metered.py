"""What is shipped, in the ledger: phase export, purpose parameters, counted at the sender as everywhere.

An entry is a piece of a file, so that a transfer that breaks is not counted whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dtrain.meter.ledger import Ledger

PIECE_BYTES = 1 << 18


@contextmanager
def open_ledger(path: Path | None) -> Iterator[Ledger | None]:
    """A ledger that writes JSON lines to `path`, one for each transfer; None for None."""
    if path is None:
        yield None
        return
    from dtrain.meter.ledger import Activity, Ledger  # here and below, since it takes torch
    from dtrain.observe.jsonl import LedgerFile

    with closing(LedgerFile(path)) as lines:
        ledger = Ledger(lines)
        ledger.activity = Activity.EXPORT
        yield ledger


@contextmanager
def counted(ledger: Ledger | None, op: Literal["send", "recv"], num_bytes: int) -> Iterator[None]:
    """Record the piece that is sent or received inside."""
    if ledger is None:
        yield
        return
    from dtrain.exchange import Op
    from dtrain.meter.ledger import Purpose
    from dtrain.meter.wire import wire_bytes

    wire = wire_bytes("http", Op(op), num_bytes, 2)
    pending = ledger.record(Op(op), num_bytes, wire, world_size=2, group="ship", purpose=Purpose.PARAMETERS)
    yield
    pending.complete()
