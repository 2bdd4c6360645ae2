"""A bucket of one worker's model beside the weights that all workers have in common, and what is exchanged of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from dtrain.exchange import Bucket, Contribution
from dtrain.sync.buckets import NamedParameter, held, layout_of
from dtrain.sync.outer import Outer


class Slot:
    """Its parameters, the weights that all workers have in common as a flat vector, and their outer optimizer."""

    def __init__(self, parameters: list[NamedParameter], world_size: int, outer: Outer) -> None:
        self.share = 1.0 / world_size
        self.names = [name for name, _ in parameters]
        self._parameters = [p for _, p in parameters]
        self.layout = layout_of(parameters)
        first = self._parameters[0]
        self.common = torch.empty(self.layout.numel, dtype=first.dtype, device=first.device)
        self.commons = [view for _, view in self.layout.pieces(self.common)]
        self.bucket = Bucket(torch.empty_like(self.common), self.layout)
        self.changes = [view for _, view in self.layout.pieces(self.bucket.value)]
        self.outer = outer.optimizer(self.common)
        self.mean: Tensor | None = None
        self.sent: Tensor | None = None  # minus what this rank contributed to it, where that is asked for
        self.take_common()

    @property
    def values(self) -> list[Tensor]:
        """Of the parameters, this rank's own."""
        with torch.no_grad():
            return [held(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def take_common(self) -> None:
        """The parameters as they are now are what all workers have in common."""
        for common, value in zip(self.commons, self.values, strict=True):
            common.copy_(value)

    @torch.no_grad()
    def fill(self) -> None:
        """This rank's share of the mean change. As a gradient: what is to be subtracted."""
        for change, common, value in zip(self.changes, self.commons, self.values, strict=True):
            torch.sub(common, value, out=change)
        self.bucket.value.mul_(self.share)

    def spoil(self, name: str) -> None:
        """Make the mean change of a parameter NaN on every rank."""
        self.changes[self.names.index(name)].view(-1)[0] = float("nan")

    @torch.no_grad()
    def step(self) -> None:
        """The outer optimizer makes of the mean change the common one."""
        assert self.mean is not None
        self.common.grad = self.mean
        self.outer.step()
        self.common.grad = None

    @torch.no_grad()
    def put_back(self, kept: float = 0.0) -> None:
        """The parameters become what all workers have in common, but for the fraction of this worker's that is kept."""
        for common, value in zip(self.commons, self.values, strict=True):
            value.lerp_(common, 1.0 - kept) if kept else value.copy_(common)

    @torch.no_grad()
    def note_sent(self, contribution: Contribution) -> None:
        """Keep what this rank contributed, which lies in memory that the next exchange writes to."""
        self.sent = torch.zeros_like(self.common, dtype=torch.float32) if self.sent is None else self.sent.zero_()
        contribution.subtract_from(self.sent)

    @torch.no_grad()
    def mask_momentum(self, optimizer: Optimizer) -> None:
        """Momentum of elements that this rank sent becomes zero, but for parameters that it sent whole."""
        assert self.sent is not None
        for parameter, (_, sent) in zip(self._parameters, self.layout.pieces(self.sent != 0), strict=True):
            momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                held(momentum).masked_fill_(sent & ~sent.all(), 0.0)
