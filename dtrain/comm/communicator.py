"""The protocol of a communicator, and collectives run to their end."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dtrain.exchange import Op, Request

MAX_TEXT_BYTES = 1 << 20
"""Of what a rank tells the others in words."""


class CollectiveError(RuntimeError):
    """A collective that did not come to its end: another rank is missing, or the network is."""


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> Tensor:
        """The answer. On CUDA it is ready for work on the current stream; the host does not wait.

        Raises CollectiveError once it is known to have failed, at the latest after the communicator's time-out.
        """
        ...


class Communicator(Protocol):
    """One rank's side of a group of workers. Every rank starts the same requests in the same order."""

    @property
    def backend(self) -> str:
        """The backend's name, as the wire model knows it."""
        ...

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def start(self, request: Request) -> Handle:
        """Start a collective without waiting for it."""
        ...

    def duplicate(self) -> Communicator:
        """A communicator of the same workers whose collectives may interleave with this one's in any order."""
        ...

    def close(self) -> None:
        """Leave the group. Collectives under way must have been waited for."""
        ...


def perform(communicator: Communicator, request: Request) -> Tensor:
    """Run one collective to its end."""
    return communicator.start(request).wait()


def broadcast(communicator: Communicator, tensor: Tensor) -> Tensor:
    """Rank 0's `tensor`, on every rank; shape and dtype must be the same everywhere. Written into `tensor`."""
    return perform(communicator, Request(Op.BROADCAST, tensor))


def all_gather(communicator: Communicator, tensor: Tensor) -> Tensor:
    """Every rank's `tensor`, as (world_size, *tensor.shape)."""
    return perform(communicator, Request(Op.ALL_GATHER, tensor))


def all_gather_bytes(
    communicator: Communicator, data: bytes, device: torch.device | None = None, *, limit: int = MAX_TEXT_BYTES
) -> list[bytes]:
    """Every rank's `data`, by rank; they may be of different lengths.

    Raises ValueError, on every rank alike, for more than `limit` bytes of one, before there is memory for them.
    """
    lengths = all_gather(communicator, torch.tensor([len(data)], device=device)).view(-1).tolist()
    if not all(0 <= length <= limit for length in lengths):
        raise ValueError(f"{lengths} bytes of a rank, of at most {limit}: what ranks say is damaged, or not ours")
    padded = torch.frombuffer(bytearray(data.ljust(max(1, *lengths))), dtype=torch.uint8).to(device)
    rows = all_gather(communicator, padded).cpu()
    return [bytes(row[:length].tolist()) for row, length in zip(rows, lengths, strict=True)]
