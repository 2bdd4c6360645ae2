"""Every synchroniser with every compressor: a cell is one with one, and what it is on a rank.

A new way to keep replicas together is a line in METHODS; a registered compressor is in COMPRESSORS by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtrain.comm import Communicator
from dtrain.compressors import COMPRESSORS, build
from dtrain.compressors.registry import sends_few
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, Layout, State
from dtrain.meter.ledger import Ledger
from dtrain.sync.every_step import EveryStep
from dtrain.sync.fragments import Fragments
from dtrain.sync.local import Local, Method
from dtrain.sync.outer import OUTERS, Outer
from dtrain.sync.rounds import Rounds
from dtrain.sync.synchronizer import Synchronizer

NUM_STEPS, STOP = 7, 4
"""A run is saved after STOP steps: amidst a local round, and with a fragment under way where there is a delay."""
BUCKET_BYTES = 256
"""So that a step's exchange, and a fragment, has several buckets."""

METHODS: Mapping[str, Method | None] = {
    "every step": None,
    "local, each step": Method(Rounds(1)),
    "local, every 3": Method(Rounds(3)),
    "outer sgd": Method(Rounds(3), Outer(0.9, 0.5)),
    "outer nesterov": Method(Rounds(3), OUTERS["nesterov"]),
    "streaming": Method(Rounds(6), fragments=Fragments(2)),
    "streaming, late": Method(Rounds(6), OUTERS["nesterov"], Fragments(2, delay=2, kept=0.25)),
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "top_k": {"density": 0.2},
    "chunked_top_k": {"density": 0.25, "chunk": 16, "decay": 1.0},
    "dgc": {"density": 0.2, "momentum": 0.0},
    "random_k": {"density": 0.2},
    "power_sgd": {"power_sgd_rank": 1},
}
"""So that something happens in a few steps of a small model, and that nothing is forgotten on purpose."""
RESIDUALS = ("residual", "accumulated")


class Cell(NamedTuple):
    """A synchroniser and a compressor, by name."""

    method: str
    compressor: str

    def __str__(self) -> str:
        return f"{self.method} x {self.compressor}"


CELLS = [Cell(*names) for names in product(METHODS, COMPRESSORS)]


def _model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))


MODEL = _model()
"""Made once: the generator is of the whole process, and ranks may be its threads."""


class Noted(NamedTuple):
    """One exchange of a bucket: this rank's share and the mean."""

    layout: Layout
    share: Tensor
    mean: Tensor


class Noting:
    """A compressor, and what it was given and gave."""

    def __init__(self, inner: Compressor) -> None:
        self._inner, self.noted = inner, list[Noted]()

    def init(self, bucket: Bucket) -> State:
        return self._inner.init(bucket)

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        share = bucket.value.clone()
        result: Exchanged = yield from self._inner.exchange(bucket, state, context)
        self.noted.append(Noted(bucket.layout, share, result.mean.clone()))
        return result


class Saved(NamedTuple):
    """What a rank's checkpoint holds; a local synchroniser keeps the optimizer's state itself."""

    model: dict[str, Tensor]
    synchronizer: dict[str, Any]
    optimizer: dict[str, Any] | None


def adamw(parameters: Iterable[Tensor]) -> Optimizer:
    return torch.optim.AdamW(parameters, 1e-2)


def heavy_sgd(parameters: Iterable[Tensor]) -> Optimizer:
    """Whose momentum a local synchroniser masks where few elements are sent."""
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def sgd(parameters: Iterable[Tensor]) -> Optimizer:
    return torch.optim.SGD(parameters, 0.1)


class Worker:
    """One rank of a cell, in training.

    `weights` are its own after each step, and aligned; `common` those that must be every rank's, after each exchange.
    `changed` is what its steps changed and the synchroniser was to exchange, by parameter, where that can be seen.
    """

    def __init__(self, cell: Cell, communicator: Communicator, *, plain_sgd: bool = False) -> None:
        self.method, self.rank, self.world_size = METHODS[cell.method], communicator.rank, communicator.world_size
        few = sends_few(cell.compressor)
        self.model = copy.deepcopy(MODEL)
        self.compressor = Noting(build(cell.compressor, **OPTIONS.get(cell.compressor, {})))
        self._optimizer_of = sgd if plain_sgd else heavy_sgd if few else adamw
        self.optimizer = self._optimizer_of(self.model.parameters())
        sizes = {"first_bucket_bytes": BUCKET_BYTES, "bucket_bytes": BUCKET_BYTES}
        self.synchronizer: Synchronizer
        if self.method is None:
            self.synchronizer = EveryStep(self.model, self.compressor, communicator, Ledger(), **sizes)
        else:
            method = replace(self.method, masks_momentum=few)
            self.synchronizer = Local(
                self.model, self.optimizer, self.compressor, communicator, Ledger(), method=method, **sizes
            )
        self.weights: list[Tensor] = []
        self.common: list[Tensor] = []
        self.changed: dict[str, Tensor] = {}
        self._since = copies(self.model)
        self._num_seen = 0

    def taking_up(self, common: Tensor) -> Optimizer:
        """What makes of a mean the next common weights."""
        return self._optimizer_of([common]) if self.method is None else self.method.outer.optimizer(common)

    def train(self, start: int, end: int) -> None:
        """These steps, and after the last one of all an end to what is under way."""
        for step in range(start, end):
            generator = torch.Generator().manual_seed(100 * step + self.rank)
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 12, generator=generator)).square().mean().backward()
            self.synchronizer.before_step()
            self.optimizer.step()
            stepped = copies(self.model)
            self.synchronizer.after_step()
            self.weights.append(flat(self.model))
            if self.synchronizer.ends_with_step:
                self._look(stepped)
        if end == NUM_STEPS:
            stepped = copies(self.model)
            self.synchronizer.align()
            self.weights.append(flat(self.model))
            self.common.append(flat(self.model))
            if self.synchronizer.ends_with_step:
                self._look(stepped)

    def _look(self, stepped: Mapping[str, Tensor]) -> None:
        """At what was exchanged just now."""
        noted, self._num_seen = self.compressor.noted[self._num_seen :], len(self.compressor.noted)
        exchanged = {name for one in noted for name in one.layout.names}
        for name, value in copies(self.model).items():
            if name in exchanged:
                self.common.append(value.flatten())
                change = (self._since[name] - stepped[name]).double()
                self.changed[name] = self.changed.get(name, torch.zeros_like(change)) + change
                self._since[name] = value

    def save(self) -> Saved:
        optimizer = copy.deepcopy(self.optimizer.state_dict()) if self.method is None else None
        return Saved(copies(self.model), self.synchronizer.state_dict(), optimizer)

    def load(self, saved: Saved) -> None:
        self.model.load_state_dict(saved.model)
        self.synchronizer.load_state_dict(saved.synchronizer)
        if saved.optimizer is not None:
            self.optimizer.load_state_dict(saved.optimizer)

    def to_send(self) -> Tensor:
        """This rank's shares in all: of gradients, or of what its steps changed."""
        if self.method is None or not self.synchronizer.ends_with_step:
            return self.total((noted.layout, noted.share) for noted in self.compressor.noted)
        return torch.cat([self.changed[name].flatten() for name in self._since]) / self.world_size

    def residual(self) -> Tensor:
        """What this rank's compressor has not sent yet of them; zeros where it keeps nothing."""
        parts = self.synchronizer.state_dict()["parameters"]
        return torch.cat([_residual(parts.get(name, {}), p).flatten() for name, p in self._since.items()])

    def total(self, vectors: Iterable[tuple[Layout, Tensor]]) -> Tensor:
        """The sum of vectors of buckets, in the order of the model's parameters."""
        sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in self._since.items()}
        for layout, vector in vectors:
            for name, piece in layout.pieces(vector):
                sums[name] += piece
        return torch.cat([part.flatten() for part in sums.values()])


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Of all weights, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def flat(model: nn.Module) -> Tensor:
    """A copy of all weights."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _residual(parts: Mapping[str, Tensor], parameter: Tensor) -> Tensor:
    found = [parts[path] for path in RESIDUALS if path in parts]
    return found[0] if found else torch.zeros_like(parameter)
