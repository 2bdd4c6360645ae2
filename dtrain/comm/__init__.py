"""Communicators: each runs the collectives that a compressor or the trainer asks for, on one backend.

Backends are imported when opened, so that a missing one costs nothing until it is asked for.
"""

from __future__ import annotations

from dtrain.comm.communicator import (
    CollectiveError,
    Communicator,
    Handle,
    all_gather,
    all_gather_bytes,
    broadcast,
    perform,
)
from dtrain.comm.failing import QUIET_SECONDS, fail_together
from dtrain.comm.launcher import Launch, detect_launch, threads_per_rank, usable_cores
from dtrain.comm.opening import BACKENDS, join_step, open_communicator

__all__ = [
    "BACKENDS",
    "QUIET_SECONDS",
    "CollectiveError",
    "Communicator",
    "Handle",
    "Launch",
    "all_gather",
    "all_gather_bytes",
    "broadcast",
    "detect_launch",
    "fail_together",
    "join_step",
    "open_communicator",
    "perform",
    "threads_per_rank",
    "usable_cores",
]
