"""How a bucket meets the network: a generator that asks for collectives, and what it is given and returns."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from dtrain.exchange.collective import Request
from dtrain.exchange.contribution import Contribution
from dtrain.exchange.state import Bucket, StateT


class Scratch:
    """Buffers that outlive a step, so that a codec does not pay for fresh memory each time it runs.

    A buffer is valid until the same name is asked for again. One `Scratch` belongs to one bucket.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def empty(self, name: str, like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor of the shape and device of `like`, and of its dtype unless another is given."""
        dtype = dtype or like.dtype
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != dtype or buffer.device != like.device:
            buffer = torch.empty_like(like, dtype=dtype)
            self._buffers[name] = buffer
        return buffer

    def alternate(self, name: str, current: Tensor) -> Tensor:
        """Of two buffers like `current`, one that `current` does not lie in.

        For a state that is written anew in each step: the old one stays as it is until the step is known to count.
        """
        first = self.empty(f"{name} 0", current)
        return first if first.data_ptr() != current.data_ptr() else self.empty(f"{name} 1", current)

    def inner(self, name: str) -> Scratch:
        """Buffers for a compressor inside this one: the same store under a prefix of its own."""
        return _Prefixed(self, name)


class _Prefixed(Scratch):
    def __init__(self, outer: Scratch, prefix: str) -> None:
        self._outer, self._prefix = outer, prefix

    def empty(self, name: str, like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        return self._outer.empty(f"{self._prefix}/{name}", like, dtype=dtype)


@dataclass(frozen=True)
class Context:
    """Where and when an exchange runs.

    `wants_contribution`: whether somebody will ask for `Exchanged.contribution`. Some methods must copy for it.
    """

    rank: int
    world_size: int
    step: int
    seed: int = 0
    wants_contribution: bool = False
    scratch: Scratch = field(default_factory=Scratch, compare=False)


class Exchanged(NamedTuple, Generic[StateT]):
    """What an exchange returns.

    `mean`: the mean over ranks, which every rank applies, bitwise the same on all; it lies in memory that the bucket's
    next exchange overwrites. `contribution`: this rank's part of it, or `NOT_KEPT` where the context did not want it.
    `state`: kept for the next step once this step is known to count.
    """

    mean: Tensor
    contribution: Contribution
    state: StateT


Exchange: TypeAlias = Generator[Request | tuple[Request, ...], Any, Exchanged[StateT]]
"""Yields a request and is sent its answer; or yields a tuple, whose requests go out together, and is sent a tuple."""


class Compressor(Protocol[StateT]):
    """How a bucket meets the network, with a state of a type of its own. A bare `Compressor` may have any."""

    def init(self, bucket: Bucket) -> StateT:
        """The state before the first step. Only the layout, dtype and device of `bucket` count."""
        ...

    def exchange(self, bucket: Bucket, state: StateT, context: Context) -> Exchange[StateT]:
        """Exchange this rank's share of the mean: its gradients divided by the number of workers.

        `bucket.value` is given away: the exchange may overwrite it, and the result may lie in it. But not where the
        context wants the contribution: then the value is left as it was, and may become the residual. `state` is not
        changed.
        """
        ...


def together(*exchanges: Exchange) -> Generator[tuple[Request, ...], tuple[Tensor, ...], tuple[Exchanged, ...]]:
    """Run several exchanges side by side: round by round, the requests of all of them go out in one tuple."""
    results: dict[int, Exchanged] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(exchanges)))
    while answers:
        asked: dict[int, Request | tuple[Request, ...]] = {}
        for i, answer in answers.items():
            try:
                asked[i] = exchanges[i].send(answer)
            except StopIteration as done:
                results[i] = done.value
        if not asked:
            break
        received = iter((yield tuple(r for req in asked.values() for r in (req if isinstance(req, tuple) else (req,)))))
        answers = {
            i: tuple(next(received) for _ in req) if isinstance(req, tuple) else next(received)
            for i, req in asked.items()
        }
    return tuple(results[i] for i in range(len(exchanges)))
