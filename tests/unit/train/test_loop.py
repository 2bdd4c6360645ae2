"""The loop, in one process: what it sends is told apart by what it is for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from threads import ThreadCommunicator, run_ranks
from torch import Tensor, nn

from dtrain.comm import Communicator
from dtrain.comm.lockstep import lockstep
from dtrain.compressors import NoCompression
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.sync.every_step import EveryStep
from dtrain.sync.fragments import Fragments
from dtrain.sync.local import Local, Method
from dtrain.sync.rounds import Rounds
from dtrain.sync.synchronizer import Synchronizer
from dtrain.train.agreement import DivergedError
from dtrain.train.boundary import Boundary, StopRequest
from dtrain.train.loop import Learner, Loop, Plan
from dtrain.train.progress import Course, Progress


class Images(NamedTuple):
    images: Tensor
    labels: Tensor
    global_size: int


class Loader:
    """Four steps an epoch."""

    num_samples = 8

    def epoch(self, epoch: int, start: int = 0, end: int | None = None) -> Iterator[Images]:
        for _ in range(start, self.num_samples if end is None else end, 2):
            yield Images(torch.ones(2, 6), torch.zeros(2, dtype=torch.int64), 2)


def every_step(model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator, ledger: Ledger) -> Synchronizer:
    return EveryStep(model, NoCompression(), comm, ledger)


def local(*fragments: int) -> Callable[..., Synchronizer]:
    """In rounds of four steps: the end of a run of seven is amidst one."""

    def make(model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator, ledger: Ledger) -> Synchronizer:
        method = Method(Rounds(4), fragments=Fragments(*fragments))
        return Local(model, optimizer, NoCompression(), comm, ledger, method=method)

    return make


EXCHANGES = {"every step": (every_step, 7), "local": (local(), 2), "in turn": (local(2), 5), "beside": (local(2, 1), 5)}
"""Of a run of seven steps, with what an evaluation after four asks for."""


@pytest.mark.parametrize(("make", "exchanges"), EXCHANGES.values(), ids=EXCHANGES.keys())
def test_all_that_keeps_replicas_together_is_training_s_gradients_to_the_end(
    make: Callable[..., Synchronizer], exchanges: int
) -> None:
    """The last round is exchanged when the replicas are checked: what a run saved depends on it."""
    ledger = Ledger()
    (communicator,) = lockstep(1, [ledger])
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    synchronizer = make(model, optimizer, communicator, ledger)
    course = Course(Loader.num_samples, 2)
    loop = Loop(
        learner=Learner(model, optimizer, synchronizer, lambda step: 0.1),
        plan=Plan(log_every=2, eval_every_epochs=1, save_every=3),
        course=course,
        end=course.place(7),
        communicator=communicator,
        ledger=ledger,
        loader=Loader(),
        eval_batches=lambda: Loader().epoch(0),
        save=lambda: None,
        declare=lambda: None,
        observers=(),
        device=torch.device("cpu"),
    )
    assert loop.run()
    synchronizer.close()
    assert ledger.total(purpose=Purpose.GRADIENT).count == exchanges
    assert ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT).count == exchanges


@pytest.mark.parametrize(("make", "saved"), [(every_step, 0), (local(), 1), (local(2, 1), 1)])
def test_a_checkpoint_is_not_made_of_replicas_that_differ_and_should_not(
    make: Callable[..., Synchronizer], saved: int
) -> None:
    """After three steps; amidst a local round replicas may."""
    steps: list[int] = []

    def body(communicator: ThreadCommunicator) -> None:
        ledger = Ledger()
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1 * communicator.rank)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        synchronizer = make(model, optimizer, communicator, ledger)
        course = Course(Loader.num_samples, 2)
        loop = Loop(
            learner=Learner(model, optimizer, synchronizer, lambda step: 0.1),
            plan=Plan(log_every=100, eval_every_epochs=0, save_every=3),
            course=course,
            end=course.place(7),
            communicator=communicator,
            ledger=ledger,
            loader=Loader(),
            eval_batches=lambda: Loader().epoch(0),
            save=lambda: steps.append(loop.progress.step),
            declare=lambda: None,
            observers=(),
            device=torch.device("cpu"),
        )
        loop.run()

    with pytest.raises(DivergedError, match="replicas have diverged by step"):
        run_ranks(2, body)
    assert steps[:2] == [3] * 2 * saved


@pytest.mark.parametrize(
    ("is_written", "expected"),
    [
        (False, ["save 3", "declare 4", "save 6", "declare 7"]),  # before evaluations, of which one is at the end
        (True, ["save 3", "declare 4", "declare 4", "save 6", "declare 7", "declare 7"]),  # by then there is nothing
    ],
)
def test_a_checkpoint_is_declared_once_it_is_written_and_at_the_latest_before_an_evaluation(
    is_written: bool, expected: list[str]
) -> None:
    (communicator,) = lockstep(1, [ledger := Ledger()])
    model, said, progress = nn.Sequential(nn.Linear(6, 3)), list[str](), Progress()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    course = Course(Loader.num_samples, 2)
    loop = Loop(
        learner=Learner(model, optimizer, every_step(model, optimizer, communicator, ledger), lambda step: 0.1),
        plan=Plan(log_every=1, eval_every_epochs=1, save_every=3),
        course=course,
        end=course.place(7),
        communicator=communicator,
        ledger=ledger,
        loader=Loader(),
        eval_batches=lambda: Loader().epoch(0),
        save=lambda: said.append(f"save {progress.step}"),
        declare=lambda: said.append(f"declare {progress.step}"),
        observers=(),
        device=torch.device("cpu"),
        progress=progress,
        boundary=Boundary(is_written=lambda: is_written and said[-1:] in (["save 3"], ["save 6"])),
    )
    assert loop.run()
    loop.learner.synchronizer.close()
    assert said == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (signal.SIGINT, ["declare 4", "1 of 4 batches"]),
        (signal.SIGTERM, ["declare 4", "1 of 4 batches", "save 4"]),
    ],
)
def test_a_request_to_stop_is_heeded_in_the_midst_of_an_evaluation(asked: int, expected: list[str]) -> None:
    (communicator,) = lockstep(1, [ledger := Ledger()])
    model, said, progress, stop = nn.Sequential(nn.Linear(6, 3)), list[str](), Progress(), StopRequest()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    course = Course(Loader.num_samples, 2)

    def eval_batches() -> Iterator[Images]:
        stop.signal = asked
        for number, batch in enumerate(Loader().epoch(0), start=1):
            said.append(f"{number} of 4 batches")
            yield batch

    loop = Loop(
        learner=Learner(model, optimizer, every_step(model, optimizer, communicator, ledger), lambda step: 0.1),
        plan=Plan(log_every=1, eval_every_epochs=1, save_every=0),
        course=course,
        end=course.place(7),
        communicator=communicator,
        ledger=ledger,
        loader=Loader(),
        eval_batches=eval_batches,
        save=lambda: said.append(f"save {progress.step}"),
        declare=lambda: said.append(f"declare {progress.step}"),
        observers=(),
        device=torch.device("cpu"),
        progress=progress,
        boundary=Boundary(stop=stop),
    )
    assert not loop.run()
    assert said == expected
    assert stop.agreed == asked
