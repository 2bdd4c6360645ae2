"""What becomes of the mean change of a local round: the step of an outer optimizer on the weights that all share.

Wang et al., SlowMo (ICLR 2020); Reddi et al., Adaptive Federated Optimization (ICLR 2021); Douillard et al., DiLoCo
(2023), Algorithm 1, whose outer Nesterov has a rate of 0.7 and a momentum of 0.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from dtrain.arguments import check_name


@dataclass(frozen=True)
class Outer:
    """Plain averaging, unless told otherwise: the mean change is applied as it is.

    Raises ValueError for values out of range.

    Args:
        rate: the mean change is multiplied by it, above 0.
        momentum: of mean changes, from 0 to below 1.
        nesterov: looks ahead by the momentum.
    """

    rate: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"outer_rate={self.rate} must be above 0: the mean change is multiplied by it")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"outer_momentum={self.momentum} must be from 0 to below 1")
        if self.nesterov and not self.momentum:
            raise ValueError("outer=nesterov needs outer_momentum above 0")

    def optimizer(self, common: Tensor) -> torch.optim.SGD:
        """Of a flat vector of common weights, whose gradient is the mean change with the other sign."""
        return torch.optim.SGD([common], self.rate, self.momentum, nesterov=self.nesterov)


OUTERS: Mapping[str, Outer] = MappingProxyType(
    {"average": Outer(), "sgd": Outer(), "nesterov": Outer(0.7, 0.9, nesterov=True)}
)


def tried_as(name: str, rate: float | None, momentum: float | None) -> str:
    """As trials know it: by its name where it has its own values; others were not tried."""
    return name if rate is None and momentum is None and OUTERS.get(name) != Outer() else "average"


def outer_named(name: str, rate: float | None = None, momentum: float | None = None) -> Outer:
    """The outer optimizer of that name, with another rate or momentum than its own where they are given.

    Raises ValueError for a name that does not exist, a momentum for `average`, or values out of range.
    """
    check_name("outer=", name, OUTERS)
    known = OUTERS[name]
    if name == "average" and not (rate in (None, 1.0) and not momentum):
        raise ValueError("outer=average has neither rate nor momentum: take outer=sgd")
    return Outer(known.rate if rate is None else rate, known.momentum if momentum is None else momentum, known.nesterov)
