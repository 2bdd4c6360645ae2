"""What libraries make of a program's model, optimizer and step, given to `dtrain.compress` and `dtrain.local`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from test_any_program import assert_same_on_all, weights
from torch import Tensor, nn
from torch.distributed._composable import replicate, replicate_with_fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
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


# Models


def _sharded_layers() -> nn.Module:
    model = perceptron()
    fully_shard(model[0])
    return model


def _hybrid() -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    model = perceptron()
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _tensor_parallel() -> nn.Module:
    return parallelize_module(perceptron(), init_device_mesh("cpu", (2,)), {"0": ColwiseParallel()})


def _with_ddp_inside() -> nn.Module:
    return nn.Sequential(DistributedDataParallel(perceptron()))


def _fsdp1() -> nn.Module:
    return FullyShardedDataParallel(perceptron(), device_id=torch.device("cpu"))


def _replicated_by_fsdp() -> nn.Module:
    return replicate_with_fsdp.replicate(perceptron(), mesh=init_device_mesh("cpu", (2,)))


@on_ranks(2)
def test_what_keeps_a_model_together_already_is_named_with_what_to_do(here: Here) -> None:
    for make, message in (
        (lambda: torch.compile(fully_shard(perceptron()), backend="eager"), r"this is sharded \(FSDP\): its gradients"),
        (_hybrid, r"this is sharded \(FSDP\): its gradients are reduced by shard, which is not compressed"),
        (_fsdp1, r"this is sharded \(FSDP\): its gradients"),
        (_sharded_layers, r"this is a module whose 0 is sharded \(FSDP\): its gradients"),
        (_tensor_parallel, r"this is sharded \(its parameters are DTensors\): its gradients"),
        (lambda: replicate(perceptron()), r"this is replicated by replicate\(\): use Distributed"),
        (_replicated_by_fsdp, r"this is replicated by replicate\(\): use DistributedDataParallel in place of"),
        (_with_ddp_inside, r"this is a module whose 0 is a DistributedDataParallel model: give that"),
    ):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(ValueError, match=r"dtrain\.compress takes a DistributedDataParallel model, and " + message):
            dtrain.compress(model, "int4")
        with pytest.raises(ValueError, match=r"dtrain\.local takes a plain module or a DDP model, and " + message):
            dtrain.local(model, optimizer, compressor="int4")


@on_ranks(2)
def test_updates_of_a_model_that_only_some_ranks_have_in_common_is_one_line(here: Here) -> None:
    alone = [dist.new_group([rank]) for rank in range(2)][here.rank]
    ddp = DistributedDataParallel(perceptron(), process_group=alone)
    message = f"kept together by ranks {here.rank} of 2, and dtrain exchanges updates among all"
    with pytest.raises(ValueError, match=message):
        dtrain.local(ddp, torch.optim.SGD(ddp.parameters(), 0.1), compressor="int4")


@on_ranks(2)
def test_refused_a_ddp_model_goes_on_as_before(here: Here) -> None:
    ddp, other = DistributedDataParallel(perceptron()), perceptron()
    with pytest.raises(ValueError, match="is not among the optimizer's parameters"):
        dtrain.local(ddp, torch.optim.SGD(other.parameters(), 0.1), compressor="int4")
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    backward(ddp, here)
    optimizer.step()
    assert_same_on_all(weights(ddp))
    dtrain.local(ddp, optimizer, compressor="int4").close()
