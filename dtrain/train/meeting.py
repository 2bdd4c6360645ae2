"""Meeting the other workers, and saying who is missing when one does not answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dtrain.comm import QUIET_SECONDS, CollectiveError, Communicator, Launch, broadcast, open_communicator
from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.meter.roll_call import RollCall, job_store, name_start
from dtrain.train.config import TrainConfig

START_SECONDS = 600.0
"""How long ranks wait for each other to start: one may have data to fetch first."""


@contextmanager
def meet(config: TrainConfig, launch: Launch, ledger: Ledger) -> Iterator[Communicator]:
    """All workers, with everything that they exchange in the ledger."""
    metered, backend = config.observe.meter, config.backend
    with ExitStack() as stack:
        if metered:
            stack.enter_context(c10d.installed(ledger))
        start = name_start(os.environ, START_SECONDS) if launch.launcher == "torchrun" else None
        stack.enter_context(_naming_the_missing(launch, start))
        yield stack.enter_context(
            open_communicator(
                backend.name,
                launch,
                ledger if metered else None,
                timeout_seconds=backend.timeout_seconds,
                start=start,
            )
        )


@contextmanager
def _naming_the_missing(launch: Launch, start: str | None) -> Iterator[None]:
    """Where torchrun's store is at hand, a collective that fails inside says which rank is missing."""
    store = job_store(os.environ, start=start) if launch.launcher == "torchrun" else None
    if store is None:
        yield
        return
    roll_call = RollCall(store, launch.rank, launch.world_size, c10d.is_idle)
    try:
        roll_call.await_all(START_SECONDS)
        yield
    except CollectiveError as error:
        missing = roll_call.call()
        if not (missing and roll_call.is_first_of_host()):
            time.sleep(QUIET_SECONDS)  # the one that speaks may wait for what is under way before it ends
        raise CollectiveError(f"{missing}: {error}" if missing else str(error)) from error
    finally:
        roll_call.leave()


def share_path(path: Path, communicator: Communicator, ledger: Ledger, device: torch.device) -> Path:
    """Rank 0's path, on every rank."""
    with ledger.scope(purpose=Purpose.CONTROL):
        text: Tensor = torch.frombuffer(bytearray(os.fsencode(path)), dtype=torch.uint8).to(device)
        length = int(broadcast(communicator, torch.tensor([len(text)], device=device)))
        if communicator.rank != 0:
            text = torch.empty(length, dtype=torch.uint8, device=device)
        return Path(os.fsdecode(bytes(broadcast(communicator, text).tolist())))
