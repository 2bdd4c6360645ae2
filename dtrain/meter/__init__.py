"""Counting bytes: what is handed to a collective, what must be sent for it, and what the kernel saw leave."""

from __future__ import annotations

from dtrain.meter.ledger import CLOSE_EVERY, Ledger, Sink

__all__ = ["Ledger", "install"]


def install(*sinks: Sink, close_every: int | None = CLOSE_EVERY) -> Ledger:
    """Record every torch collective of this process from now on, in the ledger returned; `sinks` get closed records.

    Call it before `init_process_group`, so that nothing escapes. `ledger.total()` and `ledger.totals` know all that was
    recorded, and sinks get all of it, the rest with `ledger.close()` at the end. Its entries are not kept, so that a
    program may run for weeks: whenever `close_every` collectives wait, the older half is closed. To have the entries of
    a part of the program in one record, close at its beginning and its end, with `close_every=None`: then entries are
    kept until you close.

    A program that `python -m dtrain.meter` runs is given that command's ledger, with its sinks added; it closes by
    itself, so with `close_every=None` there is none to be had.

    Raises RuntimeError if a ledger is installed already.
    """
    from dtrain.meter import c10d  # only now, since it imports torch.distributed

    shared = c10d.shared_ledger()
    if shared is not None and close_every is not None:
        shared.sinks.extend(sinks)
        return shared
    ledger = Ledger(*sinks, close_every=close_every)
    c10d.install(ledger)
    return ledger
