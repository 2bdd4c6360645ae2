"""Other people's models: any compressor under stock DistributedDataParallel, whatever the model does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from test_synchronizers import (
    BUCKET_BYTES,
    Branching,
    Failing,
    assert_bitwise,
    batch,
    chain,
    flat_gradient,
    flat_weights,
    loss_of,
    relative,
    run_ddp,
    sgd,
    squeezenet,
    stock_ddp,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dtrain
from dtrain.compressors import ErrorFeedback, NoCompression, Only, build
from dtrain.compressors.policies.only import at_least
from dtrain.exchange import Bucket, Compressor, Context, Exchange, State
from dtrain.meter.c10d import installed
from dtrain.meter.ledger import Activity, Entry, Ledger, Purpose
from dtrain.sync.ddp import DdpSynchronizer, attach


@contextmanager
def attached(ddp: DistributedDataParallel, compressor: Compressor, ledger: Ledger | None = None) -> Iterator[Any]:
    synchronizer = attach(ddp, compressor, ledger or Ledger())
    try:
        yield synchronizer
    finally:
        synchronizer.close()


def bare(ddp: DistributedDataParallel) -> Iterator[None]:
    return attached(ddp, NoCompression())  # type: ignore[return-value]


def train(
    ddp: DistributedDataParallel, inputs: Callable[[int], Tensor], num_steps: int = 3
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients and weights after each step."""
    optimizer, gradients, weights = sgd(ddp), [], []
    for step in range(num_steps):
        optimizer.zero_grad()
        ddp(inputs(step)).square().mean().backward()
        gradients.append(flat_gradient(ddp))
        optimizer.step()
        weights.append(flat_weights(ddp))
    return gradients, weights


# The same as without the hook


@on_ranks(2, 3, 4)
def test_none_through_the_hook_is_bitwise_stock_ddp_with_several_buckets(here: Here) -> None:
    for make, num_buckets in ((chain, 5), (squeezenet, 8)):
        reference = run_ddp(here, make(), 4)
        counting = Counting()
        ours = run_ddp(here, make(), 4, attach_to=lambda ddp, c=counting: attach(ddp, c, Ledger()))
        assert_bitwise(ours.gradients, reference.gradients)
        assert_bitwise(ours.weights, reference.weights)
        assert [len(counting.steps[step]) for step in range(4)] == [1] + [len(counting.steps[1])] * 3
        assert len(counting.steps[1]) >= num_buckets


class Counting:
    """No compression, noting the layouts of each step."""

    def __init__(self) -> None:
        self.steps: dict[int, list[tuple[str, ...]]] = {}

    def init(self, bucket: Bucket) -> State:
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        self.steps.setdefault(context.step, []).append(bucket.layout.names)
        return (yield from NoCompression().exchange(bucket, state, context))


@on_ranks(2)
def test_parameters_are_known_by_the_names_of_the_model_inside(here: Here) -> None:
    counting = Counting()
    run_ddp(here, chain(), 2, attach_to=lambda ddp: attach(ddp, counting, Ledger()))
    for layouts in counting.steps.values():
        assert sorted(name for names in layouts for name in names) == sorted(n for n, _ in chain().named_parameters())


@on_ranks(2, 3)
def test_small_buckets_that_travel_together_come_back_to_their_places(here: Here) -> None:
    """DDP reads a hook's answer from the start of its storage, whatever view it is handed."""
    results = []
    for hooked in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(6)])
        ddp = DistributedDataParallel(model, bucket_cap_mb=600 / 2**20)
        counting = Counting()
        synchronizer = attach(ddp, counting, Ledger()) if hooked else None
        inputs = [torch.randn(4, 16, generator=torch.Generator().manual_seed(9 * s + here.rank)) for s in range(3)]
        results.append(train(ddp, inputs.__getitem__))
        if synchronizer:
            synchronizer.close()
            assert len(counting.steps[1]) == 6
    for one, two in zip(results[0][0], results[1][0], strict=True):
        assert relative(two, one) <= 1e-6


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.Linear(128, 128), nn.BatchNorm1d(128))


@on_ranks(2, 3)
def test_batch_norm_keeps_rank_0_s_statistics_as_without_the_hook(here: Here) -> None:
    results = []
    for hooked in (False, True):
        model = with_batch_norm()
        ddp = stock_ddp(model)
        synchronizer = attach(ddp, NoCompression(), Ledger()) if hooked else None
        gradients, weights = train(ddp, lambda step, model=model: batch(model, here.rank, step))
        results.append((gradients, weights, [b.clone().double().flatten() for b in model.buffers()]))
        if synchronizer:
            synchronizer.close()
    for one, two in zip(*results, strict=True):
        assert_bitwise(one, two)


@on_ranks(2)
def test_synchronised_batch_norm_uses_ddp_s_group_in_backward_meanwhile(here: Here) -> None:
    """On CPU torch's SyncBatchNorm refuses to run, so a layer that sums in backward stands in for it."""

    class SumInBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            total = gradient.contiguous().clone()
            dist.all_reduce(total)
            return total / dist.get_world_size()

    class Summing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return SumInBackward.apply(x)

    results = []
    for hooked in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(128, 128), Summing())])
        ddp = stock_ddp(model)
        synchronizer = attach(ddp, NoCompression(), Ledger()) if hooked else None
        results.append(train(ddp, lambda step, model=model: batch(model, here.rank, step)))
        if synchronizer:
            synchronizer.close()
    assert_bitwise(results[0][1], results[1][1])


@on_ranks(2, 3)
def test_a_parameter_that_is_never_used_or_only_sometimes(here: Here) -> None:
    """With find_unused_parameters; in the second step rank 0 alone uses the second branch."""
    results = []
    for hooked in (False, True):
        model = Branching()
        ddp = DistributedDataParallel(model, bucket_cap_mb=600 / 2**20, find_unused_parameters=True)
        synchronizer = attach(ddp, NoCompression(), Ledger()) if hooked else None
        gradients = []
        for step in range(3):
            ddp.zero_grad()
            x = torch.randn(4, 16, generator=torch.Generator().manual_seed(10 * step + here.rank))
            ddp(x, step == 1 and here.rank == 0).square().mean().backward()
            gradients.append(flat_gradient(model))
        results.append(gradients)
        if synchronizer:
            synchronizer.close()
    for step, (one, two) in enumerate(zip(*results, strict=True)):
        assert relative(two, one) <= 1e-6, f"step {step}: {relative(two, one):.1e}"
    assert results[0][1].count_nonzero() > results[0][0].count_nonzero()


@on_ranks(2, 3)
def test_no_sync_accumulates_and_exchanges_once(here: Here) -> None:
    results, ledgers = [], [Ledger(), Ledger()]
    for hooked, ledger in zip((False, True), ledgers, strict=True):
        with installed(ledger):
            model = chain()
            ddp = stock_ddp(model)
            synchronizer = attach(ddp, NoCompression(), ledger) if hooked else None
            gradients = []
            for step in range(3):
                ddp.zero_grad()
                with ddp.no_sync():
                    loss_of(ddp, batch(model, here.rank, 10 * step)).backward()
                    loss_of(ddp, batch(model, here.rank, 10 * step + 1)).backward()
                loss_of(ddp, batch(model, here.rank, 10 * step + 2)).backward()
                gradients.append(flat_gradient(model))
            results.append(gradients)
            if synchronizer:
                assert synchronizer.state_dict()["step"] == 3
                synchronizer.close()
    assert_bitwise(results[0], results[1])
    num_bytes = 4 * results[0][0].numel()
    assert [ledger.total(purpose=Purpose.GRADIENT).payload_bytes for ledger in ledgers] == [3 * num_bytes] * 2


@on_ranks(2)
def test_gradients_as_views_of_buckets_and_a_static_graph(here: Here) -> None:
    for options in ({"gradient_as_bucket_view": True}, {"static_graph": True}):
        results = []
        for hooked in (False, True):
            model = chain()
            ddp = stock_ddp(model, **options)
            synchronizer = attach(ddp, NoCompression(), Ledger()) if hooked else None
            results.append(train(ddp, lambda step, model=model: batch(model, here.rank, step)))
            if synchronizer:
                synchronizer.close()
        assert_bitwise(results[0][0], results[1][0])
        assert_bitwise(results[0][1], results[1][1])


@on_ranks(3)
def test_a_model_on_some_of_the_ranks(here: Here) -> None:
    group = dist.new_group([0, 2])
    if here.rank == 1:
        dist.barrier()
        return
    model = chain()
    ddp = DistributedDataParallel(model, process_group=group, bucket_cap_mb=BUCKET_BYTES / 2**20)
    with attached(ddp, NoCompression()):
        gradients, _ = train(ddp, lambda step: batch(model, here.rank, step), 2)
    expected = [chain() for _ in (0, 2)]
    for rank, alone in zip((0, 2), expected, strict=True):
        loss_of(alone, batch(alone, rank, 0)).backward()
    assert relative(gradients[0], (flat_gradient(expected[0]) + flat_gradient(expected[1])) / 2) <= 1e-6
    dist.barrier()


# Compressors


@on_ranks(2, 3)
def test_fp16_sends_half_and_is_near(here: Here) -> None:
    reference = run_ddp(here, chain(), 3)
    with installed(Ledger()) as ledger:
        ours = run_ddp(here, chain(), 3, attach_to=lambda ddp: attach(ddp, build("fp16"), ledger))
    assert ledger.total(purpose=Purpose.GRADIENT).payload_bytes == 3 * 2 * reference.weights[0].numel()
    assert 1e-6 < relative(ours.gradients[0], reference.gradients[0]) < 2e-3
    assert_same_on_all_ranks(here, ours.weights[-1])


def assert_same_on_all_ranks(here: Here, tensor: Tensor) -> None:
    everyone = [torch.empty_like(tensor) for _ in range(here.world_size)]
    dist.all_gather(everyone, tensor)
    assert all(torch.equal(other, tensor) for other in everyone)


@on_ranks(2, 3)
def test_the_residual_survives_the_rebuilding_of_ddp_s_buckets(here: Here) -> None:
    """Step by step the residual, by parameter name, is what error feedback computed by hand says."""
    model = chain()
    ddp = stock_ddp(model)
    counting = CountingFeedback(ErrorFeedback(build("fp16")))
    residual = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    n = here.world_size
    with attached(ddp, counting) as synchronizer:
        for step in range(4):
            alone = chain()
            alone.load_state_dict(model.state_dict())
            loss_of(alone, batch(alone, here.rank, step)).backward()
            ddp.zero_grad()
            loss_of(ddp, batch(model, here.rank, step)).backward()
            saved = synchronizer.state_dict()
            assert saved["step"] == step + 1
            assert saved["parameters"].keys() == residual.keys()
            for name, parameter in alone.named_parameters():
                assert parameter.grad is not None
                corrected = torch.mul(parameter.grad, 1.0 / n) + residual[name]
                residual[name] = corrected - corrected.half().float()
                assert torch.equal(saved["parameters"][name]["residual"], residual[name]), f"step {step}, {name}"
            assert any(r.any() for r in residual.values())
    assert len(counting.layouts[0]) == 1  # all in one bucket, and from step 1 on in several
    assert len(counting.layouts[1]) > 2


@on_ranks(2)
def test_what_compress_returns_can_be_saved_and_resumed_bit_for_bit(here: Here) -> None:
    """By a program of somebody's own, with methods that do not ask in which order parameters stand in a bucket.

    DDP's first step after a start has another order than later ones, so blocks of int8 would be others.
    """

    def steps(ddp: DistributedDataParallel, numbers: range) -> Tensor:
        for step in numbers:
            ddp.zero_grad()
            loss_of(ddp, batch(ddp.module, here.rank, step)).backward()
            with torch.no_grad():
                for parameter in ddp.parameters():
                    parameter.sub_(parameter.grad, alpha=0.01)
        return torch.cat([p.detach().flatten() for p in ddp.parameters()])

    for name in ("power_sgd", "dgc"):
        ddp = DistributedDataParallel(chain())
        through = dtrain.compress(ddp, name, seed=1)
        steps(ddp, range(3))
        saved = through.state_dict()
        model = {key: value.clone() for key, value in ddp.module.state_dict().items()}
        whole = steps(ddp, range(3, 6))
        other = DistributedDataParallel(chain())
        other.module.load_state_dict(model)
        resumed = dtrain.compress(other, name, seed=1)
        with pytest.raises(ValueError, match="with another compressor or other options"):
            resumed.load_state_dict({**saved, "parameters": {"0.weight": {"other": torch.zeros(1)}}})
        resumed.load_state_dict(saved)
        assert torch.equal(whole, steps(other, range(3, 6))), name
        one, two = through.state_dict(), resumed.state_dict()
        assert one["step"] == two["step"] == 6
        for parameter, parts in one["parameters"].items():
            assert all(torch.equal(part, two["parameters"][parameter][path]) for path, part in parts.items())
        through.close()
        resumed.close()


@on_ranks(2)
def test_a_step_that_is_discarded_leaves_the_residual_as_it_was(here: Here) -> None:
    ddp = stock_ddp(chain())
    synchronizer = dtrain.compress(ddp, "int8")
    for step in range(2):
        ddp.zero_grad()
        loss_of(ddp, batch(ddp.module, here.rank, step)).backward()
    before = synchronizer.state_dict()
    ddp.zero_grad()
    loss_of(ddp, batch(ddp.module, here.rank, 2)).backward()
    synchronizer.before_step()
    synchronizer.discard()
    after = synchronizer.state_dict()
    assert after["step"] == before["step"] + 1
    for name, parts in before["parameters"].items():
        assert torch.equal(after["parameters"][name]["residual"], parts["residual"]), name
    ddp.zero_grad()
    loss_of(ddp, batch(ddp.module, here.rank, 2)).backward()
    assert not torch.equal(
        synchronizer.state_dict()["parameters"]["0.weight"]["residual"], after["parameters"]["0.weight"]["residual"]
    )
    synchronizer.close()


class CountingFeedback:
    def __init__(self, inner: Compressor) -> None:
        self.inner = inner
        self.layouts: dict[int, list[tuple[str, ...]]] = {}

    def init(self, bucket: Bucket) -> State:
        return self.inner.init(bucket)

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        self.layouts.setdefault(context.step, []).append(bucket.layout.names)
        return (yield from self.inner.exchange(bucket, state, context))


@on_ranks(2)
def test_small_parameters_apart(here: Here) -> None:
    compressor = Only(ErrorFeedback(build("fp16")), at_least(1000))
    reference = run_ddp(here, chain(), 3)
    ours = run_ddp(here, chain(), 3, attach_to=lambda ddp: attach(ddp, compressor, Ledger()))
    assert relative(ours.weights[-1], reference.weights[-1]) < 1e-3
    assert_same_on_all_ranks(here, ours.weights[-1])


@on_ranks(2)
def test_in_one_line_by_name_on_somebody_s_own_model(here: Here) -> None:
    model = chain()
    with installed(Ledger()) as ledger:
        ddp = stock_ddp(model)
        synchronizer = dtrain.compress(ddp, "fp16")
        train(ddp, lambda step: batch(model, here.rank, step), 2)
        assert isinstance(synchronizer, DdpSynchronizer)
        synchronizer.close()
        num_bytes = 2 * sum(p.numel() for p in model.parameters())
        assert ledger.total(purpose=Purpose.GRADIENT).payload_bytes == 2 * num_bytes
    with pytest.raises(ValueError, match="compressor gzip does not exist"):
        dtrain.compress(ddp, "gzip")


@on_ranks(2, joined=False)
def test_in_a_process_group_with_a_backend_for_each_device(here: Here) -> None:
    """As a program that leaves the choice to torch gets it, here without CUDA."""
    dist.init_process_group("cpu:gloo", store=here.store, rank=here.rank, world_size=here.world_size)
    reference = run_ddp(here, chain(), 2)
    with installed(Ledger()) as ledger:
        ours = run_ddp(here, chain(), 2, attach_to=lambda ddp: attach(ddp, NoCompression(), ledger))
    assert_bitwise(ours.weights, reference.weights)
    assert ledger.total(purpose=Purpose.GRADIENT).wire_bytes == 2 * 4 * ours.weights[0].numel()


# Errors


@on_ranks(2)
def test_an_error_in_a_compressor_surfaces_at_once_and_the_original_is_kept(here: Here) -> None:
    for failing_step in (0, 1):  # with one bucket, and with several
        model = chain()
        ddp = stock_ddp(model)
        with attached(ddp, Failing(failing_step, (0, 1))) as synchronizer:
            dist.barrier()  # a rank that fails at once closes connections that the other is still making
            start = time.monotonic()
            with pytest.raises(RuntimeError):
                train(ddp, lambda step, model=model: batch(model, here.rank, step), failing_step + 1)
            assert time.monotonic() - start < 20
            assert isinstance(synchronizer.error, ArithmeticError)
            assert str(synchronizer.error) == f"codec of rank {here.rank}"


@on_ranks(2, joined=False)
def test_an_error_on_one_rank_surfaces_there_and_the_other_does_not_wait_for_ever(here: Here) -> None:
    here.join(timedelta(seconds=5))
    ddp = stock_ddp(chain())
    with attached(ddp, Failing(1, (1,))) as synchronizer:
        start = time.monotonic()
        with pytest.raises(RuntimeError):
            train(ddp, lambda step: batch(chain(), here.rank, step), 2)
        assert time.monotonic() - start < 30
        assert isinstance(synchronizer.error, ArithmeticError if here.rank == 1 else RuntimeError)


@on_ranks(2)
def test_nothing_of_a_failed_step_is_kept(here: Here) -> None:
    class FailsLate(Failing):
        """After its rounds, in the bucket that comes last."""

        def __init__(self) -> None:
            super().__init__(1, ())
            self.feedback = ErrorFeedback(build("fp16"))

        def init(self, bucket: Bucket) -> State:
            return self.feedback.init(bucket)

        def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
            result = yield from self.feedback.exchange(bucket, state, context)
            if context.step == 1 and "0.weight" in bucket.layout.names:
                raise ArithmeticError("late")
            return result

    ddp = stock_ddp(chain())
    with attached(ddp, FailsLate()) as synchronizer:
        train(ddp, lambda step: batch(chain(), here.rank, step), 1)
        before = synchronizer.state_dict()["parameters"]
        with pytest.raises(RuntimeError):
            ddp.zero_grad()
            loss_of(ddp, batch(chain(), here.rank, 1)).backward()
        after = synchronizer.state_dict()["parameters"]
    assert str(synchronizer.error) == "late"
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name]["residual"], after[name]["residual"]) for name in before)


# What DDP itself sends


def by_purpose(entries: tuple[Entry, ...]) -> dict[Purpose, int]:
    sums: dict[Purpose, int] = {}
    for entry in entries:
        sums[entry.purpose] = sums.get(entry.purpose, 0) + entry.payload_bytes
    return sums


@on_ranks(3)
def test_the_broadcast_at_construction_is_recorded(here: Here) -> None:
    model = with_batch_norm()
    num_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with installed(Ledger()) as ledger:
        with ledger.scope(purpose=Purpose.PARAMETERS):
            ddp = stock_ddp(model)
        entries = ledger.close().entries
    broadcasts = [e for e in entries if e.op == "broadcast"]
    metadata = 2 * 8 * (4 + 2 + 2 + 2)  # first the sizes and strides of each parameter, to compare
    sent = [e.payload_bytes for e in broadcasts]
    assert sum(sent) == (num_bytes + metadata if here.rank == 0 else 0), sent
    assert [e.wire_bytes for e in broadcasts] == [2.0 * payload for payload in sent]
    assert all(e.purpose is Purpose.PARAMETERS and e.activity is Activity.INIT for e in entries)
    del ddp


@on_ranks(3)
def test_without_a_hook_ddp_s_gradients_are_recorded_as_such(here: Here) -> None:
    model = chain()
    num_bytes = 4 * sum(p.numel() for p in model.parameters())
    with installed(Ledger()) as ledger:
        ddp = stock_ddp(model)
        ledger.close()
        steps = []
        for step in range(3):
            loss_of(ddp, batch(model, here.rank, step)).backward()
            steps.append(ledger.close().entries)
    for entries in steps:
        gradients = [e for e in entries if e.purpose is Purpose.GRADIENT]
        assert sum(e.payload_bytes for e in gradients) == num_bytes
        assert sum(e.wire_bytes for e in gradients) == pytest.approx(num_bytes * 4 / 3)
    assert len(steps[0]) == 1
    assert by_purpose(steps[2]) == {Purpose.GRADIENT: num_bytes}


@on_ranks(3)
def test_under_a_hook_gradients_buffers_and_the_rebuilding_of_buckets_are_told_apart(here: Here) -> None:
    model = with_batch_norm()
    num_bytes = 4 * sum(p.numel() for p in model.parameters())
    buffer_bytes = sum(b.numel() * b.element_size() for b in model.buffers())
    with installed(Ledger()) as ledger:
        ddp = stock_ddp(model)
        with attached(ddp, build("fp16"), ledger):
            ledger.close()
            steps = []
            for step in range(3):
                ddp(batch(model, here.rank, step)).square().mean().backward()
                steps.append(ledger.close().entries)
    expected = {Purpose.GRADIENT: num_bytes // 2, Purpose.BUFFERS: buffer_bytes if here.rank == 0 else 0}
    assert by_purpose(steps[0]) == expected, by_purpose(steps[0])
    assert by_purpose(steps[2]) == expected, by_purpose(steps[2])
    rebuilt = by_purpose(steps[1])
    assert rebuilt.keys() == {*expected, Purpose.CONTROL}, rebuilt
    assert {p: rebuilt[p] for p in expected} == expected, rebuilt
    assert ledger.purpose is None


@on_ranks(2)
def test_under_a_hook_the_map_of_unused_parameters_is_not_a_gradient(here: Here) -> None:
    model = Branching()
    num_bytes = 4 * sum(p.numel() for p in model.parameters())
    with installed(Ledger()) as ledger:
        ddp = DistributedDataParallel(model, bucket_cap_mb=600 / 2**20, find_unused_parameters=True)
        with attached(ddp, NoCompression(), ledger):
            ledger.close()
            for step in range(3):
                x = torch.randn(4, 16, generator=torch.Generator().manual_seed(10 * step + here.rank))
                ddp(x, step == 1).square().mean().backward()
                sent = by_purpose(ledger.close().entries)
                assert sent[Purpose.GRADIENT] == num_bytes, sent


@on_ranks(2)
def test_scopes_around_a_step_are_left_as_they_were(here: Here) -> None:
    model = with_batch_norm()
    with installed(Ledger()) as ledger, attached(stock_ddp(model), NoCompression(), ledger) as synchronizer:
        assert synchronizer.error is None
    with installed(Ledger()) as ledger:
        ddp = stock_ddp(model)
        with attached(ddp, NoCompression(), ledger), ledger.scope(activity=Activity.TRAIN, purpose=Purpose.UNKNOWN):
            loss = ddp(batch(model, here.rank, 0)).square().mean()
            assert (ledger.activity, ledger.purpose) == (Activity.TRAIN, Purpose.UNKNOWN)
            loss.backward()
            assert (ledger.activity, ledger.purpose) == (Activity.TRAIN, Purpose.UNKNOWN)


@on_ranks(2)
def test_two_models_under_two_hooks_at_once(here: Here) -> None:
    """As in a GAN: each has its own exchange, its own group and its own step count."""
    references = [run_ddp(here, make(), 3) for make in (chain, squeezenet)]
    models = [chain(), squeezenet()]
    ddps = [stock_ddp(model) for model in models]
    synchronizers = [attach(ddp, NoCompression(), Ledger()) for ddp in ddps]
    optimizers = [sgd(ddp) for ddp in ddps]
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = [loss_of(ddp, batch(model, here.rank, step)) for ddp, model in zip(ddps, models, strict=True)]
        for loss in losses:
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for model, reference in zip(models, references, strict=True):
            assert torch.equal(flat_weights(model), reference.weights[step])
    for synchronizer in synchronizers:
        synchronizer.close()
