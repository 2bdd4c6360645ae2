"""A request in the ledger, for the backends whose collectives do not pass torch's dispatcher."""

from __future__ import annotations

from typing import Protocol

from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger, Pending
from dtrain.meter.wire import hands_over, wire_bytes


class Worker(Protocol):
    """What is known of the rank that asks; every communicator is one."""

    @property
    def backend(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...


def record(ledger: Ledger, request: Request, worker: Worker, group: str) -> Pending:
    """Record what this rank hands over and must send for a request; rank 0 is the root of a broadcast."""
    world_size, is_root = worker.world_size, request.op is Op.BROADCAST and worker.rank == 0
    payload = request.payload_bytes if hands_over(request.op, is_root=is_root) else 0
    wire = wire_bytes(worker.backend, request.op, payload, world_size, is_root=is_root)
    return ledger.record(request.op, payload, wire, world_size=world_size, group=group)
