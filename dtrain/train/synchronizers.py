"""The synchronisers of the trainer by name: what each can be told, and how it is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from dtrain.comm import Communicator
from dtrain.compressors.trials import AVERAGE, Exchanged
from dtrain.exchange import Compressor
from dtrain.meter.ledger import Ledger
from dtrain.sync.every_step import EveryStep
from dtrain.sync.fragments import Fragments
from dtrain.sync.local import Local, Method
from dtrain.sync.outer import outer_named, tried_as
from dtrain.sync.rounds import Rounds
from dtrain.sync.synchronizer import Reversible

AUTO = "auto"
"""As a compressor, and as a synchroniser: what is chosen by measurement (`train.auto`)."""


@dataclass(frozen=True)
class Exchanging:
    """What a synchroniser is built of, besides model and optimizer. `communicator` is for its exchanges alone."""

    compressor: Compressor
    sends_few: bool
    communicator: Communicator
    ledger: Ledger
    seed: int
    first_bucket_bytes: int
    bucket_bytes: int
    overlap: bool
    check_finite: bool


@dataclass(frozen=True)
class Sync(ABC):
    """How replicas are kept together."""

    name: str

    @property
    def exchanged(self) -> Exchanged:
        """What goes through the compressor."""
        return "gradient"

    @property
    def steps_per_exchange(self) -> int:
        """From one exchange to the next."""
        return 1

    @property
    def tried_outer(self) -> str:
        """The outer optimizer as trials know it."""
        return AVERAGE

    @abstractmethod
    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Exchanging) -> Reversible:
        """The synchroniser of this model, which `optimizer` trains."""


@dataclass(frozen=True)
class EveryStepSync(Sync):
    """See `EveryStep`."""

    name: Literal["every_step"] = "every_step"

    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Exchanging) -> Reversible:
        """See `Sync`."""
        return EveryStep(
            model,
            parts.compressor,
            parts.communicator,
            parts.ledger,
            seed=parts.seed,
            first_bucket_bytes=parts.first_bucket_bytes,
            bucket_bytes=parts.bucket_bytes,
            overlap=parts.overlap,
            check_finite=parts.check_finite,
        )


@dataclass(frozen=True)
class LocalSync(Sync):
    """See `Local`, `Rounds` and `Outer`."""

    name: Literal["local"] = "local"
    every: int = 1
    start_after: int = 0
    growth: float = 0.0
    qsr: float = 0.0
    outer: str = "average"
    outer_rate: float | None = None
    outer_momentum: float | None = None

    @property
    def exchanged(self) -> Exchanged:
        """See `Sync`."""
        return "update"

    @property
    def steps_per_exchange(self) -> int:
        """See `Sync`."""
        return self.every

    @property
    def tried_outer(self) -> str:
        """See `Sync`."""
        return tried_as(self.outer, self.outer_rate, self.outer_momentum)

    def __post_init__(self) -> None:
        self._method(masks_momentum=False)

    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Exchanging) -> Reversible:
        """See `Sync`."""
        return Local(
            model,
            optimizer,
            parts.compressor,
            parts.communicator,
            parts.ledger,
            method=self._method(masks_momentum=parts.sends_few),
            seed=parts.seed,
            first_bucket_bytes=parts.first_bucket_bytes,
            bucket_bytes=parts.bucket_bytes,
            check_finite=parts.check_finite,
        )

    def _method(self, *, masks_momentum: bool) -> Method:
        """Raises ValueError for values out of range."""
        return Method(
            Rounds(self.every, self.start_after, self.growth, self.qsr),
            outer_named(self.outer, self.outer_rate, self.outer_momentum),
            self._fragments(),
            masks_momentum,
        )

    def _fragments(self) -> Fragments:
        return Fragments()


@dataclass(frozen=True)
class StreamingSync(LocalSync):
    """See `Fragments`."""

    name: Literal["streaming"] = "streaming"  # type: ignore[assignment]
    every: int = 32
    fragments: int = 4
    delay: int = 4
    kept: float = 0.0

    def _fragments(self) -> Fragments:
        return Fragments(self.fragments, self.delay, self.kept)


@dataclass(frozen=True)
class AutoSync(Sync):
    """Of compressor=auto alone, which then chooses also how often to exchange: see `train.auto`."""

    name: Literal["auto"] = "auto"

    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Exchanging) -> Reversible:
        """There is nothing to build before the choice."""
        raise ValueError("sync=auto is chosen with the compressor: add compressor=auto")


SYNCS: Mapping[str, type[Sync]] = MappingProxyType(
    {"every_step": EveryStepSync, "local": LocalSync, "streaming": StreamingSync, "auto": AutoSync}
)
