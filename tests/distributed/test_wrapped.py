"""What libraries make of a program's model, optimizer and step, given to `dtrain.compress` and `dtrain.local`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dtrain
from dtrain.sync import models, momentum
from dtrain.sync.synchronizer import NonFiniteGradientError


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5))


def backward(model: nn.Module, here: Here, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + here.rank)
    loss: Tensor = model(torch.randn(4, 20, generator=generator)).square().mean()
    loss.backward()
    return loss


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def assert_same_on_all(tensor: Tensor) -> None:
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor)
    assert all(torch.equal(tensor, other) for other in everyone)


# Steps


@on_ranks(2)
def test_a_step_with_a_closure_that_is_not_finite_on_one_rank_is_left_out_on_all(here: Here) -> None:
    for as_keyword in (False, True):
        model = perceptron()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        synchronizer = dtrain.local(model, optimizer, compressor="int4")

        def closure(step: int, model: nn.Module = model, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = backward(model, here, step)
            if step == 2 and here.rank == 1:
                model[0].bias.grad[0] = float("nan")
            return loss

        for step in range(5):
            before = weights(model)
            step_closure = partial(closure, step)
            if step == 2:
                with pytest.raises(NonFiniteGradientError, match="in step 2"):
                    optimizer.step(step_closure)
                assert torch.equal(weights(model), before)
                continue
            loss = optimizer.step(closure=step_closure) if as_keyword else optimizer.step(step_closure)
            assert loss is not None and not torch.equal(weights(model), before)
            assert_same_on_all(weights(model))
        moments = [value for state in optimizer.state.values() for value in state.values()]
        assert all(value.isfinite().all() for value in moments)
        synchronizer.close()


# Optimizers


class Wrapped(torch.optim.Optimizer):
    """As accelerate's: an Optimizer without a state, hooks or kind of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)


@on_ranks(2)
def test_the_updates_of_a_wrapped_optimizer_are_exchanged(here: Here) -> None:
    model = perceptron()
    optimizer = Wrapped(Wrapped(torch.optim.AdamW(model.parameters(), 1e-2)))
    synchronizer = dtrain.local(model, optimizer, compressor="int4")
    for step in range(3):
        model.zero_grad()
        backward(model, here, step)
        optimizer.step()
        assert_same_on_all(weights(model))
    assert synchronizer.state_dict()["step"] == 3
    synchronizer.close()


@on_ranks(1)
def test_the_momentum_and_the_kind_of_a_wrapped_optimizer_are_seen(here: Here) -> None:
    ddp = DistributedDataParallel(perceptron())
    sgd = torch.optim.SGD(ddp.parameters(), 0.1, momentum=0.9)
    synchronizer = dtrain.compress(ddp, "dgc", optimizer=Wrapped(sgd), guard="off")
    assert sgd.param_groups[0]["momentum"] == 0.0
    synchronizer.close()
    assert momentum.kind_of(models.unwrapped(Wrapped(torch.optim.AdamW(ddp.parameters())))) == "adamw"
