"""Gradients averaged by the trainer's synchroniser and by stock DDP are the same, bit for bit where they can be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dtrain.comm.lockstep import lockstep
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.compressors import ErrorFeedback, NoCompression, build
from dtrain.exchange import Bucket, Compressor, Context, Exchange, State
from dtrain.meter.c10d import installed
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.sync.every_step import EveryStep
from dtrain.sync.fuse import SMALL_BYTES
from dtrain.sync.parameters import share_parameters
from dtrain.sync.synchronizer import NonFiniteGradientError
from dtrain.train.loop import Learner, Loop, Plan
from dtrain.train.progress import Course
from dtrain.vision import data
from dtrain.vision.models import build as build_model

BUCKET_BYTES = SMALL_BYTES
"""Smaller buckets would travel together."""


def world() -> TorchCommunicator:
    assert dist.group.WORLD is not None
    return TorchCommunicator(dist.group.WORLD)


def chain() -> nn.Sequential:
    """Backward fills its gradients in reverse parameter order, so DDP's rebuilt buckets are ours."""
    torch.manual_seed(0)
    layers = [nn.Linear(128, 128) if i % 2 == 0 else nn.Tanh() for i in range(9)]
    return nn.Sequential(*layers, nn.Linear(128, 5))


def squeezenet() -> nn.Module:
    """Backward reaches the two branches of a Fire module in an order of its own."""
    torch.manual_seed(0)
    return build_model("squeezenet1_1", num_classes=10, dropout=0.0)


def batch(model: nn.Module, rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    shape = (4, 128) if isinstance(model, nn.Sequential) else (2, 3, 32, 32)
    return torch.randn(shape, generator=generator)


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).square().mean()


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def relative(one: Tensor, two: Tensor) -> float:
    return float((one.double() - two.double()).norm() / two.double().norm())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def stock_ddp(model: nn.Module, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, bucket_cap_mb=BUCKET_BYTES / 2**20, **options)


@dataclass
class Run:
    """What training gave: the averaged gradient and the weights after each step."""

    gradients: list[Tensor]
    weights: list[Tensor]


def run_ddp(here: Here, model: nn.Module, num_steps: int, attach_to: Callable[[Any], Any] | None = None) -> Run:
    ddp = stock_ddp(model)
    attached = attach_to(ddp) if attach_to else None
    optimizer, run = sgd(ddp), Run([], [])
    for step in range(num_steps):
        optimizer.zero_grad()
        loss_of(ddp, batch(model, here.rank, step)).backward()
        run.gradients.append(flat_gradient(model))
        optimizer.step()
        run.weights.append(flat_weights(model))
    if attached is not None:
        attached.close()
    return run


def run_every_step(here: Here, model: nn.Module, num_steps: int, *, overlap: bool, first_step: int = 0) -> Run:
    """With the buckets that DDP has under `stock_ddp`."""
    synchronizer = EveryStep(
        model,
        NoCompression(),
        world(),
        Ledger(),
        first_bucket_bytes=BUCKET_BYTES,
        bucket_bytes=BUCKET_BYTES,
        overlap=overlap,
    )
    assert synchronizer.num_buckets >= 3
    optimizer, run = sgd(model), Run([], [])
    for step in range(first_step, num_steps):
        optimizer.zero_grad()
        loss_of(model, batch(model, here.rank, step)).backward()
        synchronizer.before_step()
        run.gradients.append(flat_gradient(model))
        optimizer.step()
        synchronizer.after_step()
        run.weights.append(flat_weights(model))
    synchronizer.close()
    return run


def assert_bitwise(one: list[Tensor], two: list[Tensor]) -> None:
    assert len(one) == len(two) > 0
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        assert torch.equal(a, b), f"step {step}: {int((a != b).sum())} of {a.numel()} differ, {relative(a, b):.1e}"


# The same as stock DDP


@on_ranks(2)
def test_with_2_ranks_it_is_bitwise_ddp_whatever_the_buckets(here: Here) -> None:
    """The sum of two numbers does not depend on the ring's order."""
    for make in (chain, squeezenet):
        reference = run_ddp(here, make(), 3)
        for overlap in (True, False):
            ours = run_every_step(here, make(), 3, overlap=overlap)
            assert_bitwise(ours.gradients, reference.gradients)
            assert_bitwise(ours.weights, reference.weights)


@on_ranks(3, 4)
def test_where_the_buckets_agree_it_is_bitwise_ddp(here: Here) -> None:
    """DDP's first step has one bucket; from the second on its buckets are ours. So start from DDP's weights there."""
    reference = chain()
    ddp, steps = stock_ddp(reference), []
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    starts = []
    for step in range(4):
        optimizer.zero_grad()
        starts.append(flat_weights(reference))
        loss_of(ddp, batch(reference, here.rank, step)).backward()
        steps.append(flat_gradient(reference))
        optimizer.step()
    for overlap in (True, False):
        for step in (1, 2, 3):  # in step 0 they do not
            model = chain()
            nn.utils.vector_to_parameters(starts[step].clone(), model.parameters())
            ours = run_every_step(here, model, step + 1, overlap=overlap, first_step=step)
            assert_bitwise(ours.gradients, [steps[step]])


@on_ranks(3, 4)
def test_where_the_buckets_differ_one_step_is_ddp_s_to_1e_6(here: Here) -> None:
    for make in (chain, squeezenet):
        reference = run_ddp(here, make(), 1)
        for overlap in (True, False):
            ours = run_every_step(here, make(), 1, overlap=overlap)
            assert relative(ours.gradients[0], reference.gradients[0]) <= 1e-6
            assert relative(ours.weights[0], reference.weights[0]) <= 1e-6


@on_ranks(2, 3, 4)
def test_overlapped_and_blocking_are_bitwise_the_same_at_every_step(here: Here) -> None:
    for make in (chain, squeezenet):
        one, two = (run_every_step(here, make(), 3, overlap=overlap) for overlap in (True, False))
        assert_bitwise(one.gradients, two.gradients)
        assert_bitwise(one.weights, two.weights)


@on_ranks(2, 3, 4)
def test_ranks_end_a_step_with_the_same_gradients_and_weights(here: Here) -> None:
    for overlap in (True, False):
        run = run_every_step(here, squeezenet(), 2, overlap=overlap)
        for tensor in (*run.gradients, *run.weights):
            everyone = [torch.empty_like(tensor) for _ in range(here.world_size)]
            dist.all_gather(everyone, tensor)
            assert all(torch.equal(other, tensor) for other in everyone)


@on_ranks(2, 3, 4)
def test_the_gradient_is_the_mean_over_ranks(here: Here) -> None:
    model = chain()
    mean = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for rank in range(here.world_size):
        alone = chain()
        loss_of(alone, batch(alone, rank, 0)).backward()
        mean += flat_gradient(alone).double() / here.world_size
    assert relative(run_every_step(here, model, 1, overlap=True).gradients[0], mean) <= 1e-6


# Accumulation and what some ranks leave out


@on_ranks(3)
def test_no_sync_accumulates_like_ddp_s(here: Here) -> None:
    reference, model = chain(), chain()
    ddp = stock_ddp(reference)
    synchronizer = EveryStep(
        model, NoCompression(), world(), Ledger(), first_bucket_bytes=BUCKET_BYTES, bucket_bytes=BUCKET_BYTES
    )
    for step in range(2):
        for network, no_sync in ((ddp, ddp.no_sync), (model, synchronizer.no_sync)):
            network.zero_grad()
            with no_sync():
                loss_of(network, batch(chain(), here.rank, 10 * step)).backward()
                loss_of(network, batch(chain(), here.rank, 10 * step + 1)).backward()
            loss_of(network, batch(chain(), here.rank, 10 * step + 2)).backward()
        synchronizer.before_step()
        synchronizer.after_step()
        assert relative(flat_gradient(model), flat_gradient(reference)) <= 1e-6
    synchronizer.close()


@on_ranks(3)
def test_accumulating_exchanges_nothing(here: Here) -> None:
    model = chain()
    with installed(Ledger()) as ledger:
        synchronizer = EveryStep(model, NoCompression(), world(), ledger)
        with synchronizer.no_sync():
            loss_of(model, batch(model, here.rank, 0)).backward()
        assert ledger.total().count == 0
        loss_of(model, batch(model, here.rank, 1)).backward()
        synchronizer.before_step()
        assert ledger.total().payload_bytes == 4 * sum(p.numel() for p in model.parameters())
        synchronizer.close()


class Branching(nn.Module):
    """Uses its second branch only when told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, second: bool) -> Tensor:
        hidden = self.one(x)
        return self.head(hidden + self.two(x) if second else hidden)


@on_ranks(3)
def test_a_parameter_that_only_some_ranks_use_counts_as_zeros_on_the_others(here: Here) -> None:
    """In one step rank 0 alone uses the second branch, in the next nobody does."""
    model = Branching()
    synchronizer = EveryStep(model, NoCompression(), world(), Ledger(), first_bucket_bytes=64, bucket_bytes=1100)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(here.rank))
    model(x, here.rank == 0).square().mean().backward()
    own = None if model.two.weight.grad is None else model.two.weight.grad.clone()
    synchronizer.before_step()
    synchronizer.after_step()
    alone = Branching()
    x0 = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    alone(x0, True).square().mean().backward()
    assert own is None  # moved into its bucket
    assert model.two.weight.grad is not None
    assert alone.two.weight.grad is not None
    assert relative(model.two.weight.grad, alone.two.weight.grad / 3) <= 1e-6
    model.zero_grad()
    model(x, False).square().mean().backward()
    synchronizer.before_step()
    assert not model.two.weight.grad.any()
    synchronizer.close()


# Gradients that are not finite


@on_ranks(3)
def test_a_gradient_that_is_not_finite_on_one_rank_is_the_same_error_on_all(here: Here) -> None:
    for overlap in (True, False):
        model = chain()
        synchronizer = EveryStep(model, NoCompression(), world(), Ledger(), overlap=overlap)
        loss_of(model, batch(model, here.rank, 0) * (float("nan") if here.rank == 1 else 1.0)).backward()
        with pytest.raises(NonFiniteGradientError, match=r"gradient of 9\.bias is not finite in step 0"):
            synchronizer.before_step()
        synchronizer.close()


@on_ranks(2)
def test_a_skipped_step_changes_neither_weights_nor_the_compressor_s_state(here: Here) -> None:
    runs = []
    for spoilt in (True, False):
        model = chain()
        synchronizer = EveryStep(model, ErrorFeedback(build("fp16")), world(), Ledger())
        for step in range(4):
            model.zero_grad()
            if step == 2:
                if not spoilt:
                    synchronizer.discard()
                    continue
                (loss_of(model, batch(model, here.rank, 2)) * (1e30 if here.rank == 1 else 1.0)).backward()
                with pytest.raises(NonFiniteGradientError):
                    synchronizer.before_step()
                synchronizer.discard()
                continue
            loss_of(model, batch(model, here.rank, step)).backward()
            synchronizer.before_step()
            synchronizer.after_step()
        runs.append((flat_gradient(model), synchronizer.state_dict()))
        synchronizer.close()
    (one, state), (two, other) = runs
    assert torch.equal(one, two)
    assert state["step"] == other["step"] == 4
    for name, parts in state["parameters"].items():
        assert torch.equal(parts["residual"], other["parameters"][name]["residual"]), name


# Errors


class Failing:
    """Raises in the given step, on the given ranks."""

    def __init__(self, step: int, ranks: tuple[int, ...]) -> None:
        self.step, self.ranks = step, ranks

    def init(self, bucket: Bucket) -> State:
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        if context.step == self.step and context.rank in self.ranks:
            raise ArithmeticError(f"codec of rank {context.rank}")
        return (yield from NoCompression().exchange(bucket, state, context))


@on_ranks(2)
def test_an_error_in_a_compressor_surfaces_and_the_next_step_is_right(here: Here) -> None:
    for overlap in (True, False):
        model = chain()
        synchronizer = EveryStep(
            model, Failing(1, (0, 1)), world(), Ledger(), bucket_bytes=BUCKET_BYTES, overlap=overlap
        )
        for step in range(3):
            model.zero_grad()
            loss_of(model, batch(model, here.rank, step)).backward()
            if step == 1:
                with pytest.raises(ArithmeticError, match=f"codec of rank {here.rank}"):
                    synchronizer.before_step()
                synchronizer.after_step()
                continue
            synchronizer.before_step()
            synchronizer.after_step()
        synchronizer.close()
        assert torch.equal(flat_gradient(model), run_last_gradient(here))


def run_last_gradient(here: Here) -> Tensor:
    """Of step 2 from the initial weights."""
    return run_every_step(here, chain(), 3, overlap=False, first_step=2).gradients[0]


# The trainer on several ranks


def loop_for(
    model: nn.Module,
    communicator: Any,
    ledger: Ledger,
    *,
    compressor: Compressor | None = None,
    num_steps: int,
    batch_size: int,
    overlap: bool = True,
    learning_rate: float = 0.05,
    observers: tuple[Any, ...] = (),
) -> tuple[Loop, EveryStep]:
    rank, world_size = communicator.rank, communicator.world_size
    train_set = data.open_dataset("digits", split="train", image_size=32)
    synchronizer = EveryStep(
        model,
        compressor or NoCompression(),
        communicator.duplicate(),
        ledger,
        first_bucket_bytes=2**18,
        bucket_bytes=2**20,
        overlap=overlap,
    )
    loader = data.train_loader(
        train_set, batch_size=batch_size, rank=rank, world_size=world_size, seed=3, augment=False, num_workers=0
    )
    course = Course(loader.num_samples, loader.global_batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    loop = Loop(
        learner=Learner(model, optimizer, synchronizer, lambda step: learning_rate),
        plan=Plan(log_every=2, eval_every_epochs=0, save_every=0),
        course=course,
        end=course.place(num_steps),
        communicator=communicator,
        ledger=ledger,
        loader=loader,
        eval_batches=lambda: iter(()),
        save=lambda: None,
        declare=lambda: None,
        observers=observers,
        device=torch.device("cpu"),
    )
    loop.evaluate = lambda epoch: None  # type: ignore[method-assign,assignment,return-value]
    loop._check_replicas = lambda: None  # type: ignore[method-assign]
    return loop, synchronizer


@on_ranks(2)
def test_2_ranks_of_16_images_step_like_1_rank_of_32(here: Here) -> None:
    """The first step's gradient; no dropout, no augmentation."""
    gradients = []
    for communicator, batch_size in ((world(), 16), (lockstep(1)[0], 32)):
        model = squeezenet()
        loop, synchronizer = loop_for(model, communicator, Ledger(), num_steps=1, batch_size=batch_size)
        loop.run()
        synchronizer.close()
        gradients.append(flat_gradient(model))
    assert 0 < relative(*gradients) <= 1e-6


@on_ranks(2, 3, 4)
def test_training_with_the_meter_on_and_off_ends_in_bitwise_equal_weights(here: Here) -> None:
    def train(ledger: Ledger) -> Tensor:
        model = squeezenet()
        torch.manual_seed(7 + here.rank)
        share_parameters(model, world(), ledger)
        loop, synchronizer = loop_for(model, world(), ledger, num_steps=4, batch_size=4)
        loop.run()
        synchronizer.close()
        return flat_weights(model)

    unmetered = Ledger()
    off = train(unmetered)
    with installed(Ledger()) as ledger:
        on = train(ledger)
    assert unmetered.total().count == 0
    assert ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT).payload_bytes == 4 * 4 * off.numel()
    assert torch.equal(on, off)
    assert not torch.equal(off, flat_weights(squeezenet()))


@on_ranks(3)
def test_what_the_trainer_sends_is_told_apart_by_phase_and_purpose(here: Here) -> None:
    """SqueezeNet's parameters once from rank 0, since another's differ; gradients every step, metrics every second."""
    model = squeezenet()
    if here.rank == 2:
        nn.init.ones_(next(model.parameters()))
    num_bytes = 4 * sum(p.numel() for p in model.parameters())
    with installed(Ledger()) as ledger:
        share_parameters(model, world(), ledger)
        loop, synchronizer = loop_for(model, world(), ledger, num_steps=4, batch_size=2)
        loop.run()
        synchronizer.close()
    by = {(a, purpose): ledger.total(activity=a, purpose=purpose) for a in Activity for purpose in Purpose}
    parameters = by[Activity.INIT, Purpose.PARAMETERS]
    assert (parameters.payload_bytes, parameters.wire_bytes) == (
        (num_bytes, 2.0 * num_bytes) if here.rank == 0 else (0, 0.0)
    )
    gradients = by[Activity.TRAIN, Purpose.GRADIENT]
    assert gradients.payload_bytes == 4 * num_bytes
    assert gradients.wire_bytes == pytest.approx(4 * num_bytes * 4 / 3)
    assert by[Activity.TRAIN, Purpose.METRICS].count == 2
    assert (by[Activity.INIT, Purpose.CONTROL].count, by[Activity.INIT, Purpose.CONTROL].payload_bytes) == (1, 8)
    looks = by[Activity.TRAIN, Purpose.CONTROL]  # whether one is to stop: by the clock
    assert looks.payload_bytes == 8 * looks.count
    assert ledger.total().count == parameters.count + gradients.count + 3 + looks.count


@on_ranks(3)
def test_what_is_the_same_on_all_ranks_is_not_sent(here: Here) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 3), nn.BatchNorm1d(3))
    model[1].running_mean.fill_(float(here.rank))
    with installed(Ledger()) as ledger:
        share_parameters(model, world(), ledger)
    assert model[1].running_mean.tolist() == [0.0, 0.0, 0.0]
    assert ledger.total(purpose=Purpose.PARAMETERS).count == 0
    assert ledger.total(purpose=Purpose.BUFFERS).payload_bytes == (2 * 3 * 4 if here.rank == 0 else 0)


@on_ranks(3)
def test_rank_0_s_parameters_and_buffers_win(here: Here) -> None:
    torch.manual_seed(here.rank)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, dtype=torch.float64))
    model[1].running_mean.fill_(float(here.rank + 1))
    model[1].num_batches_tracked.fill_(here.rank + 5)
    share_parameters(model, world(), Ledger())
    torch.manual_seed(0)
    expected = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, dtype=torch.float64))
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
    assert model[1].running_mean.tolist() == [1.0, 1.0, 1.0]
    assert model[1].num_batches_tracked.item() == 5


@on_ranks(2)
def test_fp16_and_error_feedback_train_with_half_the_bytes(here: Here) -> None:
    num_bytes = 2 * sum(p.numel() for p in chain().parameters())
    for compressor in (build("fp16"), ErrorFeedback(build("fp16")), build("bf16")):
        model, reference = chain(), chain()
        with installed(Ledger()) as ledger:
            synchronizer = EveryStep(model, compressor, world(), ledger, bucket_bytes=BUCKET_BYTES)
            loss_of(model, batch(model, here.rank, 0)).backward()
            synchronizer.before_step()
            synchronizer.after_step()
            synchronizer.close()
        assert ledger.total(purpose=Purpose.GRADIENT).payload_bytes == num_bytes
        exact = run_ddp(here, reference, 1).gradients[0]
        assert 1e-6 < relative(flat_gradient(model), exact) < 1e-2


@on_ranks(2)
def test_a_request_to_stop_on_one_rank_stops_all_at_the_same_step(here: Here) -> None:
    loop, synchronizer = loop_for(squeezenet(), world(), Ledger(), num_steps=100, batch_size=2)
    if here.rank == 1:
        threading.Timer(0.5, lambda: setattr(loop.boundary.stop, "signal", 2)).start()
    complete = loop.run()
    synchronizer.close()
    assert not complete
    steps = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
    dist.all_gather(steps, torch.tensor([loop.progress.step]))
    assert steps[0] == steps[1]
    assert 0 < loop.progress.step < 100


@on_ranks(2)
def test_waiting_for_a_slow_rank_is_told_apart_from_transfer(here: Here) -> None:
    """Rank 1 is late by 0.3 s in every step: rank 0 waits, and nobody transfers longer."""

    class Late(NoCompression):
        def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
            if context.rank == 1:
                time.sleep(0.3)
            return (yield from super().exchange(bucket, state, context))

    reported: list[Any] = []

    class Watch:
        on_train = staticmethod(reported.append)
        on_eval = staticmethod(lambda metrics: None)

    with installed(Ledger()) as ledger:
        model = chain_for_digits()
        loop, synchronizer = loop_for(
            model, world(), ledger, compressor=Late(), num_steps=2, batch_size=2, observers=(Watch(),)
        )
        loop.run()
        synchronizer.close()
    (metrics,) = reported
    assert metrics.straggler_wait_seconds > 0.1  # 0.3 s on one of two ranks
    assert metrics.transfer_seconds < metrics.straggler_wait_seconds
    on_time, late = metrics.wait_by_rank
    assert late > 0.9 * (on_time + late)


def chain_for_digits() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
