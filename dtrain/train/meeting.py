"""Meeting the other workers, and saying who is missing when one does not answer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dtrain.arguments import say_doing
from dtrain.comm import (
    QUIET_SECONDS,
    CollectiveError,
    Communicator,
    Launch,
    all_gather_bytes,
    broadcast,
    open_communicator,
)
from dtrain.files import short
from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.meter.rendezvous import RendezvousError, join_store
from dtrain.meter.roll_call import RollCall, name_start
from dtrain.train.config import Backend, TrainConfig

START_SECONDS = 600.0
"""How long ranks wait for each other to start, where the user does not say: one may have data to fetch first."""


@contextmanager
def meet(config: TrainConfig, launch: Launch, ledger: Ledger, group: str | None = None) -> Iterator[Communicator]:
    """All workers, with everything that they exchange in the ledger.

    `group`: the name of one of a job whose workers come and go; who is lost is then known without asking.
    """
    metered, backend = config.observe.meter, config.backend
    with ExitStack() as stack:
        if metered:
            stack.enter_context(c10d.installed(ledger))
        start = group or _name_start(backend, launch)
        if group is None:
            stack.enter_context(_naming_the_missing(backend, launch, ledger, start))
        stack.enter_context(_writing_down(ledger, launch))
        yield stack.enter_context(
            open_communicator(
                backend.name,
                launch,
                ledger if metered else None,
                timeout_seconds=backend.timeout_seconds,
                start=start,
            )
        )


def _name_start(backend: Backend, launch: Launch) -> str | None:
    """What this start of the ranks is called where torchrun's agent may have started them before; else None."""
    if launch.launcher != "torchrun" or launch.world_size < 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        store = join_store(os.environ, _join_seconds(backend), "starts")
        return name_start(store, launch.rank, launch.world_size, backend.start_timeout_seconds or START_SECONDS)
    except RendezvousError as error:
        raise CollectiveError(str(error)) from None


def _join_seconds(backend: Backend) -> float:
    return backend.start_timeout_seconds or backend.timeout_seconds


@contextmanager
def _naming_the_missing(backend: Backend, launch: Launch, ledger: Ledger, start: str | None) -> Iterator[None]:
    """Where torchrun's store is at hand, a collective that fails inside says which rank is missing."""
    if launch.launcher != "torchrun" or launch.world_size < 2:
        yield
        return
    say_doing(f"waiting for all {launch.world_size} ranks")
    try:
        store = join_store(os.environ, _join_seconds(backend), start)
    except RendezvousError as error:
        raise CollectiveError(str(error)) from None

    def say_last() -> str:
        ledger.recent.dump(ledger, launch.rank, launch.world_size)  # the rank that others miss leaves one, too
        return ledger.recent.say_last()

    roll_call = RollCall(store, launch.rank, launch.world_size, c10d.is_idle, say_last)
    all_is_well = False
    try:
        roll_call.await_all(backend.start_timeout_seconds or START_SECONDS)
        yield
        all_is_well = True
    except RendezvousError as error:
        if not roll_call.is_first_of_host():
            time.sleep(QUIET_SECONDS)
        raise CollectiveError(str(error)) from None
    except CollectiveError as error:
        missing = roll_call.call()
        if not (missing and roll_call.is_first_of_host()):
            time.sleep(QUIET_SECONDS)  # the one that speaks may wait for what is under way before it ends
        raise CollectiveError(f"{missing}: {error}" if missing else str(error)) from error
    finally:
        roll_call.leave(all_is_well=all_is_well)


@contextmanager
def _writing_down(ledger: Ledger, launch: Launch) -> Iterator[None]:
    """Where a collective fails inside, what this rank did last is written down and said."""
    try:
        yield
    except CollectiveError as error:
        last = ledger.recent.say_last()
        ledger.recent.error = str(error)
        path = ledger.recent.dump(ledger, launch.rank, launch.world_size)
        here = f"; rank {launch.rank} itself: {last}" if last else ""
        cure = f"; see dtrain trace {path.parent}" if path is not None else ""
        raise CollectiveError(f"{error}{here}{cure}") from error


def share_path(path: Path, communicator: Communicator, ledger: Ledger, device: torch.device) -> Path:
    """Rank 0's path, on every rank."""
    with ledger.scope(purpose=Purpose.CONTROL):
        text: Tensor = torch.frombuffer(bytearray(os.fsencode(path)), dtype=torch.uint8).to(device)
        length = int(broadcast(communicator, torch.tensor([len(text)], device=device)))
        if communicator.rank != 0:
            text = torch.empty(length, dtype=torch.uint8, device=device)
        return Path(os.fsdecode(bytes(broadcast(communicator, text).tolist())))


def share_hosts(communicator: Communicator, ledger: Ledger, device: torch.device) -> list[str]:
    """The name of every rank's host."""
    with ledger.scope(purpose=Purpose.CONTROL):
        names = all_gather_bytes(communicator, socket.gethostname().encode() or b"?", device)
    return [short(name.decode(errors="replace").rstrip()) for name in names]
