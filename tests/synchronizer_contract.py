"""What every synchroniser must do with every compressor (synchronizer_cells.py), on any communicator."""

from __future__ import annotations

from contextlib import closing

import torch
from synchronizer_cells import MODEL, NUM_STEPS, STOP, Cell, Saved, Worker, copies, flat
from torch import Tensor
from torch.optim import Optimizer

from dtrain.comm import Communicator, all_gather
from dtrain.exchange import Layout

ROUNDING = {"fp16": 2**-10, "bf16": 2**-7}
FORGETS = ("ternary", "rotated_signs")
"""Without a residual: what they leave out is made up for on average only."""


def trained_weights(cell: Cell, communicator: Communicator) -> Tensor:
    """What `check_cell` returns, without its checks."""
    return torch.cat(_trained(cell, communicator)[0].weights)


def _trained(cell: Cell, communicator: Communicator) -> tuple[Worker, Saved, Tensor]:
    """A worker at the end, what it saved on the way, and its residual."""
    worker = Worker(cell, communicator)
    with closing(worker.synchronizer):
        worker.train(0, STOP)
        saved = worker.save()
        worker.train(STOP, NUM_STEPS)
        return worker, saved, worker.residual()


def check_cell(cell: Cell, communicator: Communicator) -> Tensor:
    """Fail unless the contract holds; every rank calls it. Returns this rank's weights after each step, and aligned.

    Ranks are equal after each exchange; resumed, they go on bit for bit; nothing is lost, and nothing taken up twice.
    """
    whole, saved, left = _trained(cell, communicator)
    resumed = Worker(cell, communicator)
    with closing(resumed.synchronizer):
        resumed.load(saved)
        resumed.train(STOP, NUM_STEPS)
    for step, (one, two) in enumerate(zip(whole.weights[STOP:], resumed.weights, strict=True), start=STOP):
        assert torch.equal(one, two), f"{cell}: resumed, other weights after step {step}"
    everyone = all_gather(communicator, torch.cat(whole.common))
    assert torch.equal(everyone, everyone[:1].expand_as(everyone)), f"{cell}: ranks differ after an exchange"
    assert not torch.equal(whole.weights[-1], flat(MODEL)), f"{cell}: nothing was learnt"
    _check_nothing_is_lost(cell, whole, left, communicator)
    _check_weights_follow_the_means(cell, whole)
    return torch.cat(whole.weights)


def _check_nothing_is_lost(cell: Cell, worker: Worker, left: Tensor, communicator: Communicator) -> None:
    """Over all ranks and steps, what was to be sent = what arrived + what is left."""
    if cell.compressor in FORGETS:
        return
    noted = worker.compressor.noted
    sizes = worker.total((n.layout, n.share.abs()) for n in noted)
    means = worker.total((n.layout, n.mean) for n in noted)
    wanted, size, kept = all_gather(communicator, torch.stack((worker.to_send(), sizes, left.double()))).sum(0)
    error = float((wanted - means - kept).norm() / size.norm())
    assert error <= ROUNDING.get(cell.compressor, 1e-6), f"{cell}: {error:.1e} of what was to be sent is lost"


def _check_weights_follow_the_means(cell: Cell, worker: Worker) -> None:
    """Every mean was taken up once, in its order: by the optimizer, or by the outer one of a local synchroniser."""
    commons: dict[Layout, tuple[Tensor, Optimizer]] = {}
    start = copies(MODEL)
    for layout, _, mean in worker.compressor.noted:
        if layout not in commons:
            common = torch.cat([start[name].flatten() for name in layout.names])
            commons[layout] = common, worker.taking_up(common)
        common, optimizer = commons[layout]
        common.grad = mean
        optimizer.step()
    pieces = {name: piece for layout, (common, _) in commons.items() for name, piece in layout.pieces(common)}
    for name, parameter in worker.model.named_parameters():
        error = float((parameter.detach() - pieces[name]).abs().max())
        assert error <= 1e-6, f"{cell}: {name} is {error:.1e} from what the means make of it"


def check_a_round_of_one_step_is_every_step(communicator: Communicator) -> None:
    """Fail unless plain averaging after each step of SGD without momentum is the step of the mean gradient."""
    ended = []
    for method in ("every step", "local, each step"):
        worker = Worker(Cell(method, "none"), communicator, plain_sgd=True)
        with closing(worker.synchronizer):
            worker.train(0, NUM_STEPS)
        ended.append(worker.weights[-1])
    error = float((ended[0] - ended[1]).abs().max())
    assert error <= 1e-6, f"{error:.1e} from the step of the mean gradient"
