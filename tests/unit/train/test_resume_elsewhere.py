"""A run goes on with another number of workers: no sample is lost or repeated, and nothing that was held back is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from threads import ThreadCommunicator, run_ranks
from torch import Tensor, nn

from dtrain.compressors import COMPRESSORS, build
from dtrain.meter.ledger import Ledger
from dtrain.sync.every_step import EveryStep
from dtrain.train.checkpoint import open_checkpoint
from dtrain.train.loop import Batch, Learner, Loop, Plan
from dtrain.train.optimizers import OPTIMIZERS, Sgd
from dtrain.train.progress import Course, Progress
from dtrain.train.resume import resume
from dtrain.train.saving import Saver
from dtrain.train.schedule import poly
from dtrain.vision.data.sharding import epoch_order, train_share

NUM_SAMPLES, BATCH_SIZE, EPOCHS = 100, 4, 2
CHANGES = [(2, 4), (4, 2), (3, 2)]
CPU = torch.device("cpu")
HELD_BACK = ("residual", "accumulated", "velocity")
"""What a rank keeps of its own, whose sum over ranks is what the run still owes the model."""


torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 5))


@dataclass(frozen=True)
class Images:
    images: Tensor
    labels: Tensor
    global_size: int


@dataclass
class Samples:
    """Noise; `seen` notes which samples of which epoch this rank was given."""

    rank: int
    world_size: int
    seen: list[tuple[int, int]] = field(default_factory=list)
    num_samples: int = NUM_SAMPLES

    def epoch(self, epoch: int, start: int = 0, end: int | None = None) -> Iterator[Batch]:
        end = NUM_SAMPLES if end is None else end
        order = epoch_order(NUM_SAMPLES, seed=0, epoch=epoch)
        size = BATCH_SIZE * self.world_size
        for position in range(start, end, size):
            share = train_share(position, end=end, global_batch_size=size, rank=self.rank, world_size=self.world_size)
            chosen = torch.from_numpy(order[share.start : share.stop])
            self.seen += [(epoch, int(sample)) for sample in chosen]
            images = torch.randn(NUM_SAMPLES, 3, 2, 2, generator=torch.Generator().manual_seed(1))[chosen]
            yield Images(images, chosen % 5, share.global_size)


@dataclass
class Sitting:
    """What one rank did."""

    seen: list[tuple[int, int]]
    rates: list[float]
    state: dict[str, Any]
    progress: Progress
    complete: bool
    weights: Tensor


def sit(
    communicator: ThreadCommunicator, name: str, folder: Path, *, optimizer: str, stop: int | None, go_on: Path | None
) -> Sitting:
    """One rank's part of a run of EPOCHS epochs: up to step `stop`, where it is saved, or from a checkpoint on."""
    rank, world_size = communicator.rank, communicator.world_size
    model, ledger, rates = copy.deepcopy(NETWORK), Ledger(), list[float]()
    momentum = {"momentum": 0.0} if name == "dgc" and optimizer == "sgd" else {}
    settings = OPTIMIZERS[optimizer](learning_rate=0.01, **momentum)
    optimiser = settings.build(model.parameters())
    synchronizer = EveryStep(
        model, build(name), communicator.duplicate(), ledger, overlap=False, first_bucket_bytes=400, bucket_bytes=900
    )
    checkpoint = open_checkpoint(go_on) if go_on is not None else None
    progress, step_samples = Progress(), BATCH_SIZE * world_size
    if checkpoint is not None:
        resume(checkpoint, model, optimiser, synchronizer, communicator)
        progress, step_samples = checkpoint.manifest.progress, checkpoint.manifest.step_samples
    course = Course(NUM_SAMPLES, step_samples)
    before = synchronizer.state_dict()
    factors = poly(EPOCHS * course.steps_per_epoch, 1.0)

    def rate(step: float) -> float:
        rates.append(0.01 * factors(step))
        return rates[-1]

    saver = Saver(folder, communicator, ledger, CPU, {"compressor.name": name})

    def save() -> None:
        saver.save(
            model,
            optimiser,
            synchronizer,
            progress=progress,
            samples_seen=course.samples(progress),
            step_samples=course.step_samples,
            description={},
            constraints={},
            teacher=None,
        )

    loader = Samples(rank, world_size)
    loop = Loop(
        learner=Learner(model, optimiser, synchronizer, rate),
        plan=Plan(log_every=1000, eval_every_epochs=0, save_every=stop or 0),
        course=course,
        end=course.place(stop if stop is not None else EPOCHS * course.steps_per_epoch),
        communicator=communicator,
        ledger=ledger,
        loader=loader,
        eval_batches=lambda: loader.epoch(99, 0, 20) if rank == 0 else iter(()),
        save=save,
        declare=saver.declare,
        observers=(),
        device=CPU,
        progress=progress,
    )
    complete = loop.run()
    saver.finish()
    saver.close()
    seen = [(epoch, sample) for epoch, sample in loader.seen if epoch != 99]
    state = before if checkpoint is not None else synchronizer.state_dict()
    synchronizer.close()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return Sitting(seen, rates, state, progress, complete, weights)


def run(world_size: int, name: str, folder: Path, optimizer: str = "sgd", **options: Any) -> list[Sitting]:
    folder.mkdir(exist_ok=True)
    options = {"stop": None, "go_on": None, **options}
    return run_ranks(world_size, lambda c: sit(c, name, folder, optimizer=optimizer, **options))


def held_back(sittings: list[Sitting]) -> dict[str, Tensor]:
    """By parameter and path, summed over the ranks."""
    sums: dict[str, Tensor] = {}
    for sitting in sittings:
        for parameter, parts in sitting.state["parameters"].items():
            for path, part in parts.items():
                if path.rpartition(".")[2] in HELD_BACK:
                    key = f"{parameter}/{path}"
                    sums[key] = sums.get(key, torch.zeros_like(part, dtype=torch.float64)) + part
    return sums


@pytest.mark.parametrize(("before", "after"), CHANGES)
@pytest.mark.parametrize("name", COMPRESSORS)
def test_in_the_middle_of_an_epoch_nothing_is_lost(tmp_path: Path, name: str, before: int, after: int) -> None:
    stopped = 100 // (BATCH_SIZE * before) + 3  # in the second epoch, and in no step of either at its end
    first = run(before, name, tmp_path, stop=stopped)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    second = run(after, name, tmp_path / "more", go_on=checkpoint)

    seen = [sample for sitting in (*first, *second) for sample in sitting.seen]
    assert sorted(seen) == [(epoch, sample) for epoch in range(EPOCHS) for sample in range(NUM_SAMPLES)]
    assert all(sitting.complete and sitting.seen for sitting in second)
    assert {(s.progress.epoch, s.progress.position) for s in second} == {(EPOCHS, 0)}

    owed, taken_up = held_back(first), held_back(second)
    assert owed.keys() == taken_up.keys()
    assert bool(owed) == (name not in ("none", "fp16", "bf16", "ternary", "rotated_signs"))  # which keep nothing
    for key, total in owed.items():
        assert float((total - taken_up[key]).norm()) <= 1e-6 * float(total.norm()), key
    assert all(torch.equal(sitting.weights, second[0].weights) for sitting in second)


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_the_schedule_goes_by_samples(tmp_path: Path, before: int, after: int) -> None:
    """The rate of a step is that of the samples before it, whoever trained on them."""
    stopped = 100 // (BATCH_SIZE * before) + 3
    (first, *_), checkpoint = run(before, "none", tmp_path, stop=stopped), next((tmp_path / "checkpoints").iterdir())
    second, *_ = run(after, "none", tmp_path / "more", go_on=checkpoint)
    planned = -(-NUM_SAMPLES // (BATCH_SIZE * before))
    assert first.rates == [0.01 * (1 - step / (2 * planned)) for step in range(stopped)]
    made = stopped - planned  # of the second epoch
    expected = [0.01 * (1 - (planned + made + i * after / before) / (2 * planned)) for i in range(len(second.rates))]
    assert second.rates == pytest.approx(expected)
    assert 0 < second.rates[-1] < first.rates[-1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["none", "int8", "top_k", "power_sgd"])
def test_with_as_many_workers_it_goes_on_bit_for_bit(tmp_path: Path, name: str, optimizer: str) -> None:
    whole = run(2, name, tmp_path / "whole", optimizer)
    run(2, name, tmp_path / "part", optimizer, stop=15)
    rest = run(2, name, tmp_path / "rest", optimizer, go_on=tmp_path / "part" / "checkpoints" / "step-000015")
    for one, two in zip(whole, rest, strict=True):
        assert torch.equal(one.weights, two.weights)
        assert one.progress == two.progress
        assert one.rates[15:] == two.rates
    assert isinstance(OPTIMIZERS["sgd"](), Sgd)
