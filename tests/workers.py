"""N virtual workers with one bucket, step by step in lockstep: what tests of single compressors share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dtrain.comm.lockstep import lockstep
from dtrain.exchange import Bucket, Compressor, Context, Exchanged, Layout, Op, Scratch, State, put_together, take_apart
from dtrain.meter.ledger import Ledger
from dtrain.meter.wire import wire_bytes
from dtrain.sync.buckets import assign, layout_of, trainable
from dtrain.sync.drive import drive_lockstep
from dtrain.vision import models


class Workers:
    """`world_size` workers that exchange a bucket of `layout` through `compressor`."""

    def __init__(self, compressor: Compressor, layout: Layout, world_size: int, *, seed: int = 0) -> None:
        self.compressor, self.layout, self.world_size, self.seed = compressor, layout, world_size, seed
        empty = Bucket(torch.zeros(layout.numel), layout)
        self.states: list[State] = [compressor.init(empty) for _ in range(world_size)]
        self.scratch = [Scratch() for _ in range(world_size)]
        self.ledgers = [Ledger() for _ in range(world_size)]
        self.communicators = lockstep(world_size, self.ledgers)
        self.step = 0
        self.contributed = torch.zeros(world_size, layout.numel)

    def exchange(self, values: Sequence[Tensor], *, commit: bool = True) -> list[Exchanged]:
        """One step. Results may lie in scratch memory that the next step overwrites.

        `values` are whole gradients. `contributed`, of shape (world_size, numel), is then what each rank contributed:
        its sum over ranks is world_size times the mean.
        """
        exchanges = []
        for rank, (value, state) in enumerate(zip(values, self.states, strict=True)):
            context = Context(
                rank, self.world_size, self.step, self.seed, wants_contribution=True, scratch=self.scratch[rank]
            )
            exchanges.append(self.compressor.exchange(Bucket(value / self.world_size, self.layout), state, context))
        results = drive_lockstep(exchanges, self.communicators)
        self.contributed = contributions(results, self.layout.numel) * self.world_size
        if commit:
            self.states = [result.state for result in results]
            self.step += 1
        return results

    def random(self) -> list[Tensor]:
        """Another normal vector for every rank and step."""
        generator = torch.Generator().manual_seed(self.step)
        return [torch.randn(self.layout.numel, generator=generator) for _ in range(self.world_size)]

    def traffic(self) -> list[tuple[Op, int]]:
        """What every rank handed over since the last call; ranks must agree."""
        ranks = [[(e.op, e.payload_bytes) for e in ledger.close().entries] for ledger in self.ledgers]
        assert all(rank == ranks[0] for rank in ranks)
        return ranks[0]

    def resumed(self) -> Workers:
        """Workers that take up a copy of this state from parameter names, with nothing else in common."""
        other = Workers(self.compressor, self.layout, self.world_size, seed=self.seed)
        for rank, state in enumerate(self.states):
            saved = {name: {p: t.clone() for p, t in parts.items()} for name, parts in take_apart(state).items()}
            other.states[rank] = put_together(other.states[rank], saved)
        other.step = self.step
        return other


def contributions(results: Sequence[Exchanged], numel: int) -> Tensor:
    """What each rank contributed to the mean, of shape (world_size, numel)."""
    residuals = torch.zeros(len(results), numel)
    for residual, result in zip(residuals, results, strict=True):
        result.contribution.subtract_from(residual)
    return -residuals


def flat(numel: int) -> Layout:
    """One parameter."""
    return Layout(("weight",), ((numel,),))


def check_mass(workers: Workers, results: Sequence[Exchanged]) -> None:
    """Fail unless the contributions of all ranks add up to world_size times the mean, which is the same on all."""
    assert all(torch.equal(result.mean, results[0].mean) for result in results)
    local = workers.contributed.double()
    error = local.sum(0) - len(results) * results[0].mean.double()
    denormals = len(results) ** 2 * 2.0**-149 * len(error) ** 0.5  # a last place of each share
    assert error.norm() <= 1e-6 * local.abs().sum(0).norm() + denormals


def check_resume(compressor: Compressor, layout: Layout, world_size: int) -> None:
    """Fail unless two more steps after a resume are bitwise those without one."""
    one = Workers(compressor, layout, world_size)
    for _ in range(3):
        one.exchange(one.random())
    two = one.resumed()
    for _ in range(2):
        values = one.random()
        for a, b in zip(one.exchange(values), two.exchange(values), strict=True):
            assert torch.equal(a.mean, b.mean)
    for a, b in zip(one.states, two.states, strict=True):
        before, after = take_apart(a), take_apart(b)
        assert all(torch.equal(t, after[name][path]) for name, parts in before.items() for path, t in parts.items())


def bucket_layouts(model_name: str) -> list[Layout]:
    """The trainer's buckets of a model with 1000 classes."""
    with torch.device("meta"):
        model = models.build(model_name, num_classes=1000)
    return [layout_of(bucket) for bucket in assign(trainable(model))]


def saving(traffic: Sequence[tuple[Op, int]], layouts: Sequence[Layout], world_size: int) -> float:
    """Wire bytes of a dense float32 all_reduce over those of `traffic`."""
    dense = sum(wire_bytes("gloo", Op.ALL_REDUCE, 4 * layout.numel, world_size) for layout in layouts)
    return dense / sum(wire_bytes("gloo", op, payload, world_size) for op, payload in traffic)


def final_loss(compressor: Compressor, *, momentum: float = 0.0, steps: int = 100, world_size: int = 4) -> float:
    """Of a linear regression with 20 x 30 weights and 20 biases, trained by SGD; a perfect fit has 0, no fit over 1."""
    layout = Layout(("weight", "bias"), ((20, 30), (20,)))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(world_size, 64, 30, generator=generator)
    truth = torch.randn(20, 30, generator=generator) / 30**0.5
    targets = inputs @ truth.t() + torch.randn(20, generator=generator)
    parameters = torch.zeros(layout.numel, requires_grad=True)
    optimizer = torch.optim.SGD([parameters], lr=0.02, momentum=momentum)
    workers = Workers(compressor, layout, world_size)

    def loss(rank: int) -> Tensor:
        (_, weight), (_, bias) = layout.pieces(parameters)
        return (inputs[rank] @ weight.t() + bias - targets[rank]).square().sum(1).mean() / 20

    for _ in range(steps):
        gradients = [torch.autograd.grad(20 * loss(rank), parameters)[0] for rank in range(world_size)]
        parameters.grad = workers.exchange(gradients)[0].mean
        optimizer.step()
    with torch.no_grad():
        return float(torch.stack([loss(rank) for rank in range(world_size)]).mean())
