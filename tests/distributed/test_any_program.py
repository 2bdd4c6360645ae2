"""`dtrain.compress` and `dtrain.local` in programs that skip steps, scale losses, save, copy, close and go on."""

from __future__ import annotations

import copy
import io
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import dtrain
from dtrain.meter.c10d import installed
from dtrain.meter.ledger import Ledger, Purpose

LOSSY = ("int8", "one_bit", "top_k", "dgc", "power_sgd")
OPTIONS: dict[str, dict[str, Any]] = {"top_k": {"density": 0.1}, "dgc": {"density": 0.1, "momentum": 0.0}}


class Classification:
    """Samples of this rank whose labels follow from a matrix that all ranks know."""

    def __init__(self, here: Here) -> None:
        self.generator = torch.Generator().manual_seed(here.rank)
        self.truth = torch.randn(20, 5, generator=torch.Generator().manual_seed(9))

    def batch(self) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(64, 20, generator=self.generator)
        return inputs, (inputs @ self.truth).argmax(1)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))


def attach(name: str, ddp: DistributedDataParallel, **more: Any) -> Any:
    return dtrain.compress(ddp, name, **OPTIONS.get(name, {}), **more) if name != "stock" else None


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def assert_same_on_all(tensor: Tensor) -> None:
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor)
    assert all(torch.equal(tensor, other) for other in everyone)


# What is not finite


@on_ranks(2)
def test_one_loss_that_is_not_finite_costs_one_step_as_without_compression(here: Here) -> None:
    for name in ("stock", *LOSSY):
        ddp = DistributedDataParallel(perceptron())
        synchronizer, task = attach(name, ddp), Classification(here)
        optimizer, skipped = torch.optim.SGD(ddp.parameters(), 0.1), []
        for step in range(30):
            inputs, labels = task.batch()
            loss = cross_entropy(ddp(inputs), labels)
            if step == 5 and here.rank == 1:
                loss = loss * float("inf")
            optimizer.zero_grad()
            loss.backward()
            if nn.utils.clip_grad_norm_(ddp.parameters(), 1.0).isfinite():
                optimizer.step()
            else:
                skipped.append(step)
        assert skipped == [5], name
        if synchronizer is not None:
            synchronizer.close()


@on_ranks(2)
def test_a_scaler_of_losses_trains_as_without_compression(here: Here) -> None:
    final = {}
    for name in ("stock", *LOSSY):
        ddp, scaler = DistributedDataParallel(perceptron()), torch.amp.GradScaler("cpu")
        synchronizer, task = attach(name, ddp, **({} if name == "stock" else {"scaler": scaler})), Classification(here)
        optimizer, skipped = torch.optim.SGD(ddp.parameters(), 0.05), 0
        for step in range(60):
            inputs, labels = task.batch()
            inputs = inputs * 1e4 if step == 5 else inputs  # its gradient overflows float16 at this scale
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = cross_entropy(ddp(inputs).float(), labels)
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < scale
        assert skipped == 1, name
        final[name] = loss.item()
        if synchronizer is not None:
            synchronizer.close()
    assert all(loss < 1.1 * final["stock"] + 0.05 for loss in final.values()), final


@on_ranks(1)
def test_half_the_scale_is_half_of_what_was_not_sent_yet(here: Here) -> None:
    owed = {}
    for follows in (False, True):
        ddp, scaler = DistributedDataParallel(perceptron()), torch.amp.GradScaler("cpu")
        synchronizer, task = dtrain.compress(ddp, "int4", scaler=scaler if follows else None), Classification(here)
        inputs, labels = task.batch()
        scaler.scale(cross_entropy(ddp(inputs), labels)).backward()
        scaler.update(scaler.get_scale() / 2)
        ddp.zero_grad()
        (ddp(inputs).sum() * 0).backward()  # so that only what was left is exchanged
        owed[follows] = torch.cat([p.grad.reshape(-1) for p in ddp.parameters() if p.grad is not None])
        synchronizer.close()
    assert owed[False].any()
    assert torch.equal(owed[True], owed[False] / 2)


@on_ranks(2)
def test_a_scaler_that_leaves_a_step_out_on_one_rank_keeps_nobody_waiting_for_updates(here: Here) -> None:
    model, scaler, task = perceptron(), torch.amp.GradScaler("cpu"), Classification(here)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    synchronizer = dtrain.local(model, optimizer, compressor="int4", scaler=scaler)
    for step in range(20):
        inputs, labels = task.batch()
        inputs = inputs * 1e4 if step == 5 and here.rank == 1 else inputs
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs).float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert math.isfinite(loss.item())
    assert (scaler.get_scale() < 65536) == (here.rank == 1)
    assert_same_on_all(weights(model))
    synchronizer.close()


@on_ranks(2)
def test_a_fused_optimizer_heeds_its_scaler_by_itself_and_another_s_scaler_is_nobody_s(here: Here) -> None:
    model, other, scaler, task = perceptron(), perceptron(), torch.amp.GradScaler("cpu"), Classification(here)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    others = torch.optim.SGD(other.parameters(), 0.1)
    synchronizer = dtrain.local(model, optimizer, compressor="int4", scaler=scaler)
    for step in range(8):
        inputs, labels = task.batch()
        inputs = inputs * 1e4 if step == 3 and here.rank == 1 else inputs
        for some, one in ((model, optimizer), (other, others)):
            one.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = cross_entropy(some(inputs).float(), labels)
            scaler.scale(loss).backward()
            scaler.step(one)
        scaler.update()
    assert synchronizer.state_dict()["step"] == 8
    assert torch.isfinite(weights(model)).all()
    assert_same_on_all(weights(model))
    synchronizer.close()
    assert "step" not in vars(scaler)


# Saved, copied, closed


@on_ranks(2)
def test_a_compressed_model_can_be_pickled_and_copied_as_before(here: Here) -> None:
    ddp, task = DistributedDataParallel(perceptron()), Classification(here)
    synchronizer = dtrain.compress(ddp, "int8")
    for model in (ddp.module, ddp):
        torch.save(model, io.BytesIO())
    average = copy.deepcopy(ddp.module)
    inputs, labels = task.batch()
    cross_entropy(ddp(inputs), labels).backward()
    for model in (ddp.module, average):
        torch.save(model, io.BytesIO())
        assert cross_entropy(model(inputs), labels).isfinite()
    assert not [hook for module in average.modules() for hook in module._forward_pre_hooks]
    synchronizer.close()
    torch.save(ddp.module, io.BytesIO())


@on_ranks(2)
def test_closed_a_model_goes_on_as_stock_ddp(here: Here) -> None:
    def gradient(close: bool) -> Tensor:
        ddp, task = DistributedDataParallel(perceptron()), Classification(here)
        synchronizer = dtrain.compress(ddp, "one_bit")
        for step in range(2):
            inputs, labels = task.batch()
            ddp.zero_grad()
            cross_entropy(ddp(inputs), labels).backward()
            if step == 0 and close:
                synchronizer.close()
                synchronizer.close()
        result = torch.cat([p.grad.reshape(-1) for p in ddp.parameters() if p.grad is not None])
        synchronizer.close()
        return result

    stock, task = DistributedDataParallel(perceptron()), Classification(here)
    for _ in range(2):
        inputs, labels = task.batch()
        stock.zero_grad()
        cross_entropy(stock(inputs), labels).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in stock.parameters() if p.grad is not None])
    assert torch.equal(gradient(close=True), expected)
    assert not torch.equal(gradient(close=False), expected)
    assert not [thread for thread in threading.enumerate() if thread.name == "dtrain-exchange"]


@on_ranks(2)
def test_compressed_after_its_first_backward_a_model_trains_on(here: Here) -> None:
    ddp, task = DistributedDataParallel(perceptron()), Classification(here)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    synchronizer = None
    for step in range(6):
        inputs, labels = task.batch()
        optimizer.zero_grad()
        cross_entropy(ddp(inputs), labels).backward()
        optimizer.step()
        if step == 1:
            synchronizer = dtrain.compress(ddp, "int4")
    assert synchronizer is not None and synchronizer.state_dict()["step"] == 4
    assert_same_on_all(weights(ddp))
    synchronizer.close()


# Models


@on_ranks(1)
def test_what_is_no_ddp_model_is_one_line_with_the_cure(here: Here) -> None:
    from torch.distributed._composable.replicate import replicate
    from torch.distributed.fsdp import fully_shard

    with pytest.raises(
        ValueError, match=r"this is a plain module: wrap it in DistributedDataParallel, or .*dtrain.local"
    ):
        dtrain.compress(perceptron(), "int4")  # type: ignore[arg-type]
    sharded = fully_shard(perceptron())
    optimizer = torch.optim.SGD(sharded.parameters(), 0.1)
    for attach_to in (
        lambda model: dtrain.compress(model, "int4"),
        lambda model: dtrain.local(model, optimizer, compressor="int4"),
    ):
        with pytest.raises(ValueError, match=r"this is sharded \(FSDP\): its gradients are reduced by shard"):
            attach_to(sharded)
        with pytest.raises(ValueError, match=r"this is replicated by replicate\(\): use DistributedDataParallel"):
            attach_to(replicate(perceptron()))


@on_ranks(1)
def test_a_second_hook_is_one_line(here: Here) -> None:
    ddp = DistributedDataParallel(perceptron())
    synchronizer = dtrain.compress(ddp, "int4")
    with pytest.raises(ValueError, match="communication hook dtrain_hook already"):
        dtrain.compress(ddp, "int8")
    with pytest.raises(ValueError, match="communication hook dtrain_hook already"):
        dtrain.local(ddp, torch.optim.SGD(ddp.parameters(), 0.1), compressor="int8")
    synchronizer.close()


@on_ranks(1)
def test_sparse_embeddings_are_named_at_attach(here: Here) -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"0\.weight gets sparse gradients"):
        dtrain.compress(DistributedDataParallel(model), "int4")


@on_ranks(2)
def test_updates_of_sparse_embeddings_are_exchanged_like_any(here: Here) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(10, 4, sparse=True), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    synchronizer = dtrain.local(model, optimizer, compressor="int8")
    before = weights(model)
    optimizer.zero_grad()
    model(torch.tensor([[here.rank, 3]])).square().sum().backward()
    optimizer.step()
    assert_same_on_all(weights(model))
    assert not torch.equal(weights(model), before)
    synchronizer.close()


@on_ranks(2)
def test_momentum_of_what_top_k_sends_of_an_update_is_masked_and_no_other(here: Here) -> None:
    for name, share in (("top_k", 0.1), ("int4", 0.0)):
        model = nn.Linear(20, 50, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        synchronizer = dtrain.local(model, optimizer, compressor=name, guard="off", **OPTIONS.get(name, {}))
        model(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        momentum = optimizer.state[model.weight]["momentum_buffer"]
        assert float((momentum == 0).float().mean()) == pytest.approx(share, abs=1e-3)
        synchronizer.close()


@on_ranks(4)
def test_what_fails_with_as_many_workers_is_refused(here: Here) -> None:
    model = nn.Linear(20, 50)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with pytest.raises(
        ValueError, match=r"top_k density=0\.01 every=4 of updates .* on gpt \(n=4\) .* held: int4, 7.94x"
    ):
        dtrain.local(model, optimizer, every=4, compressor="top_k", density=0.01)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.phase @ (x * self.scale).to(torch.complex64)).abs()


@on_ranks(2)
def test_complex_parameters_are_exchanged_as_their_real_view(here: Here) -> None:
    ddp = DistributedDataParallel(Complex())
    synchronizer = dtrain.compress(ddp, "int8")
    for step in range(3):
        ddp.zero_grad()
        ddp(torch.full((4,), 1.0 + here.rank + step)).sum().backward()
    gradient = ddp.module.phase.grad
    assert gradient is not None and gradient.is_complex()
    assert_same_on_all(torch.view_as_real(gradient))
    state = synchronizer.state_dict()
    assert state["parameters"]["phase"]["residual"].shape == (3, 4, 2)
    synchronizer.load_state_dict(state)
    synchronizer.close()
    model = Complex()
    with pytest.raises(ValueError, match="phase is complex: such are exchanged with DistributedDataParallel"):
        dtrain.local(model, torch.optim.SGD(model.parameters(), 0.1), compressor="int8")


@on_ranks(2)
def test_frozen_between_ddp_and_compress_a_parameter_is_still_ddp_s(here: Here) -> None:
    ddp = DistributedDataParallel(perceptron(), find_unused_parameters=True)
    ddp.module[0].weight.requires_grad_(False)
    synchronizer, task = dtrain.compress(ddp, "int8"), Classification(here)
    for _ in range(3):
        inputs, labels = task.batch()
        ddp.zero_grad()
        cross_entropy(ddp(inputs), labels).backward()
    assert_same_on_all(torch.cat([p.grad.reshape(-1) for p in ddp.parameters() if p.grad is not None]))
    synchronizer.close()


@on_ranks(1)
def test_a_parameter_that_local_does_not_know_is_an_error_and_not_left_alone(here: Here) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    synchronizer = dtrain.local(model, optimizer, compressor="int8")
    model[2] = nn.Linear(64, 5)
    optimizer.add_param_group({"params": model[2].parameters()})
    with pytest.raises(ValueError, match=r"2\.weight was replaced or unfrozen after dtrain\.local"):
        optimizer.step()
    synchronizer.close()
    other = perceptron()
    with pytest.raises(ValueError, match=r"0\.weight is not among the optimizer's parameters"):
        dtrain.local(other, optimizer, compressor="int8")


# Updates


@on_ranks(2, 3)
def test_a_plain_model_becomes_rank_0_s_and_stays_the_same_everywhere(here: Here) -> None:
    torch.manual_seed(here.rank)
    model, task = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5)), Classification(here)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    ledger = Ledger()
    with installed(ledger):
        synchronizer = dtrain.local(model, optimizer, compressor="ternary", rounding="stochastic", every=2)
        assert_same_on_all(weights(model))
        first = None
        for step in range(10):
            inputs, labels = task.batch()
            loss = cross_entropy(model(inputs), labels)
            first = first or loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 2:
                assert_same_on_all(weights(model))
        synchronizer.close()
    assert first is not None and loss.item() < first
    assert not optimizer._optimizer_step_post_hooks


@on_ranks(2)
def test_under_ddp_nothing_but_updates_is_sent(here: Here) -> None:
    def train(model: nn.Module, module: nn.Module) -> tuple[Tensor, float]:
        task, optimizer, ledger = Classification(here), torch.optim.SGD(module.parameters(), 0.1), Ledger()
        synchronizer = dtrain.local(model, optimizer, compressor="int8")
        with installed(ledger):
            for _ in range(4):
                inputs, labels = task.batch()
                optimizer.zero_grad()
                cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        synchronizer.close()
        return weights(module), ledger.total().wire_bytes - ledger.total(purpose=Purpose.UNKNOWN).wire_bytes

    plain = perceptron()
    expected, sent = train(plain, plain)
    ddp = DistributedDataParallel(perceptron(), broadcast_buffers=False)
    got, sent_too = train(ddp, ddp.module)
    assert torch.equal(got, expected)
    assert sent_too == sent  # but for where DDP agrees on its buckets


@on_ranks(2)
def test_a_local_program_resumes_bit_for_bit(here: Here) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = perceptron()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        return model, optimizer, dtrain.local(model, optimizer, compressor="int4")

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, task: Classification, num_steps: int) -> None:
        for _ in range(num_steps):
            inputs, labels = task.batch()
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    task = Classification(here)
    model, optimizer, synchronizer = build()
    train(model, optimizer, task, 5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), synchronizer.state_dict()))
    generator = task.generator.get_state()
    train(model, optimizer, task, 5)
    again, other, resumed = build()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    task.generator.set_state(generator)
    train(again, other, task, 5)
    assert torch.equal(weights(again), weights(model))
    for one in (synchronizer, resumed):
        one.close()


# Momentum and the guard


@on_ranks(2)
def test_dgc_takes_the_momentum_of_sgd_over(here: Here) -> None:
    def train(take_over: bool) -> Tensor:
        ddp, task = DistributedDataParallel(perceptron()), Classification(here)
        settings: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.001}
        if not take_over:
            settings = {"momentum": 0.0, "weight_decay": 0.001 / (1.0 - 0.9)}
        optimizer = torch.optim.SGD(ddp.parameters(), 0.05, **settings)
        momentum: dict[str, Any] = {} if take_over else {"momentum": 0.9}
        synchronizer = dtrain.compress(ddp, "dgc", optimizer=optimizer, density=0.1, **momentum)
        for _ in range(5):
            inputs, labels = task.batch()
            optimizer.zero_grad()
            cross_entropy(ddp(inputs), labels).backward()
            optimizer.step()
        assert optimizer.param_groups[0]["momentum"] == 0.0
        synchronizer.close()
        return weights(ddp)

    assert torch.equal(train(take_over=True), train(take_over=False))


def _refusals() -> list[tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer], str]]:
    sgd = torch.optim.SGD
    return [
        ({"momentum": 0.9}, lambda p: sgd(p, 0.1, momentum=0.9), "momentum is in the optimizer and in dgc"),
        ({}, lambda p: sgd(p, 0.1, momentum=0.9, nesterov=True), "dgc keeps plain momentum"),
    ]


@on_ranks(1)
def test_adam_s_momentum_is_not_taken_over_and_not_doubled(here: Here) -> None:
    ddp = DistributedDataParallel(perceptron())
    with pytest.raises(ValueError, match="dgc keeps the momentum, and Adam's cannot be taken over"):
        dtrain.compress(ddp, "dgc", optimizer=torch.optim.AdamW(ddp.parameters()), guard="off")


@on_ranks(1)
def test_what_was_measured_to_fail_is_refused_before_the_model_is_touched(here: Here) -> None:
    ddp = DistributedDataParallel(perceptron())
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1, momentum=0.9)
    for attach_to in (
        lambda: dtrain.compress(ddp, "one_bit", optimizer=optimizer),
        lambda: dtrain.local(ddp, optimizer, compressor="one_bit"),
        lambda: dtrain.compress_horovod(ddp.module, optimizer, "one_bit"),
    ):
        with pytest.raises(ValueError, match=r"one_bit of .* under SGD with momentum cost .* guard=warn"):
            attach_to()
    optimizer.param_groups[0]["momentum"] = 0.5  # less than was tried
    dtrain.compress(ddp, "one_bit", optimizer=optimizer).close()


@on_ranks(1)
def test_a_momentum_that_cannot_be_taken_over_is_one_line(here: Here) -> None:
    for options, make, message in _refusals():
        ddp = DistributedDataParallel(perceptron())
        with pytest.raises(ValueError, match=message):
            dtrain.compress(ddp, "dgc", optimizer=make(ddp.parameters()), guard="off", **options)
    ddp = DistributedDataParallel(perceptron())
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1, momentum=0.9)
    synchronizer = dtrain.compress(ddp, "dgc", optimizer=optimizer, guard="off")
    optimizer.param_groups[0]["momentum"] = 0.5  # as a schedule of momentum does
    with pytest.raises(ValueError, match="cycle_momentum=False"):
        optimizer.step()
    synchronizer.close()
