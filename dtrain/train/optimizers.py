"""The optimizers by name: what each can be told, and how it is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from dtrain.compressors.trials import TRIED_MOMENTUM
from dtrain.train import schedule as schedules
from dtrain.train.plain_data import require

ScheduleName = Literal["constant", "poly", "cosine", "step"]


@dataclass(frozen=True)
class Optimizer(ABC):
    """What all have in common: a base learning rate and how it changes, decay, and a bound on the gradient."""

    name: str
    learning_rate: float = 0.01
    weight_decay: float = 0.0
    schedule: ScheduleName = "poly"
    power: float = 1.0
    step_size: int | None = None
    gamma: float = 0.1
    warmup_steps: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optimizer.learning_rate must be more than 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay must be 0 or more")
        require(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm must be more than 0, or null")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps must be 0 or more")
        require(self.power >= 0, "optimizer.power must be 0 or more")
        require(self.gamma > 0, "optimizer.gamma must be more than 0")
        if self.schedule == "step":
            require((self.step_size or 0) > 0, "optimizer.schedule=step needs optimizer.step_size, in steps")

    @property
    @abstractmethod
    def has_momentum(self) -> bool:
        """Whether it averages gradients over steps."""

    @property
    @abstractmethod
    def without_momentum(self) -> str:
        """How to turn its momentum off, for people."""

    @property
    @abstractmethod
    def tried_as(self) -> str | None:
        """As trials of compressors know it; None for what was not tried (`compressors/trials.py`)."""

    def hand_over_momentum(self) -> tuple[float, Optimizer]:
        """Its momentum, for a compressor to keep, and the optimizer without. Raises ValueError where it has no such."""
        raise ValueError(
            f"optimizer={self.name} has no momentum that a compressor could keep: add compressor.momentum=0"
        )

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters; whoever trains sets its learning rate step by step."""

    def factors(self, num_steps: int) -> schedules.Schedule:
        """The schedule over a run of `num_steps`."""
        match self.schedule:
            case "constant":
                base = schedules.constant()
            case "poly":
                base = schedules.poly(num_steps, self.power)
            case "cosine":
                base = schedules.cosine(num_steps)
            case "step":
                assert self.step_size is not None
                base = schedules.step_decay(self.step_size, self.gamma)
        return schedules.with_warmup(base, self.warmup_steps)


@dataclass(frozen=True)
class Sgd(Optimizer):
    """torch.optim.SGD."""

    name: Literal["sgd"] = "sgd"
    weight_decay: float = 0.0002
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "optimizer.momentum must be at least 0 and less than 1")
        require(not self.nesterov or self.momentum > 0, "optimizer.nesterov=true needs optimizer.momentum above 0")

    @property
    def has_momentum(self) -> bool:
        """See `Optimizer`."""
        return self.momentum > 0

    @property
    def without_momentum(self) -> str:
        """See `Optimizer`."""
        return "optimizer.momentum=0 (and multiply optimizer.weight_decay by 10, which momentum 0.9 would have done)"

    @property
    def tried_as(self) -> str | None:
        """See `Optimizer`."""
        return self.name if self.momentum >= TRIED_MOMENTUM else None

    def hand_over_momentum(self) -> tuple[float, Optimizer]:
        """See `Optimizer`. Weight decay had acted through the momentum: it is what it had added up to."""
        require(not self.nesterov, "a compressor keeps plain momentum: add optimizer.nesterov=false")
        decay = self.weight_decay / (1.0 - self.momentum)
        return self.momentum, replace(self, momentum=0.0, weight_decay=decay)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """See `Optimizer`."""
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True)
class AdamW(Optimizer):
    """torch.optim.AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019), fused."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = 0.001
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} must be at least 0 and less than 1")
        require(self.eps > 0, "optimizer.eps must be more than 0")

    @property
    def has_momentum(self) -> bool:
        """See `Optimizer`."""
        return self.beta1 > 0

    @property
    def without_momentum(self) -> str:
        """See `Optimizer`."""
        return "optimizer.beta1=0"

    @property
    def tried_as(self) -> str | None:
        """See `Optimizer`."""
        return self.name if self.has_momentum else None

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """See `Optimizer`."""
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )


OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType({"sgd": Sgd, "adamw": AdamW})
