"""Counting bytes: what is handed to a collective, what must be sent for it, and what the kernel saw leave."""

from __future__ import annotations

from dtrain.meter.ledger import Ledger, Sink

__all__ = ["Ledger", "install"]


def install(*sinks: Sink) -> Ledger:
    """Record every torch collective of this process from now on, in the ledger returned; `sinks` get closed records.

    Call it before `init_process_group`, so that nothing escapes. Raises RuntimeError if a ledger is installed already.
    """
    from dtrain.meter import c10d  # only now, since it imports torch.distributed

    ledger = Ledger(*sinks)
    c10d.install(ledger)
    return ledger
