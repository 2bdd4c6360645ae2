"""The trainer's synchroniser with one worker: what needs no network. With several: tests/distributed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import ErrorFeedback, NoCompression, build
from dtrain.exchange import Bucket, Compressor, Context, Exchange, State
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.every_step import EveryStep
from dtrain.sync.synchronizer import NonFiniteGradientError

overlapped_or_not = pytest.mark.parametrize("overlap", [True, False], ids=["overlapped", "blocking"])
EXCHANGE_THREAD = "dtrain-exchange"


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def synchronize(model: nn.Module, compressor: Compressor | None = None, **options) -> EveryStep:
    options = {"first_bucket_bytes": 100, "bucket_bytes": 200, "overlap": True, **options}
    return EveryStep(model, compressor or NoCompression(), lockstep(1)[0], Ledger(), **options)


def images(seed: int) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def backward(model: nn.Module, seed: int = 0) -> None:
    model(images(seed)).square().sum().backward()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def expected_gradients(*seeds: int) -> list[Tensor]:
    model = make_model()
    for seed in seeds:
        backward(model, seed)
    return gradients(model)


def assert_equal(one: list[Tensor], two: list[Tensor]) -> None:
    assert len(one) == len(two)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@overlapped_or_not
def test_with_one_worker_the_gradients_are_those_of_autograd(overlap: bool) -> None:
    model = make_model()
    synchronizer = synchronize(model, overlap=overlap)
    assert synchronizer.num_buckets == 3
    for seed in range(3):
        model.zero_grad(set_to_none=True)
        backward(model, seed)
        synchronizer.before_step()
        synchronizer.after_step()
        assert_equal(gradients(model), expected_gradients(seed))
    synchronizer.close()


def test_a_second_backward_pass_before_the_step_is_an_error() -> None:
    """Its bucket is on the way already: the sum would be lost."""
    model = make_model()
    synchronizer = synchronize(model)
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"second backward pass .*no_sync"):
        backward(model, 1)
    synchronizer.close()


@overlapped_or_not
def test_no_sync_accumulates_and_the_next_backward_exchanges_the_sum(overlap: bool) -> None:
    model, recorded = make_model(), Recording()
    synchronizer = synchronize(model, recorded, overlap=overlap)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        with synchronizer.no_sync():
            backward(model, 0)
            backward(model, 1)
        assert recorded.steps == []
        backward(model, 2)
        synchronizer.before_step()
        synchronizer.after_step()
        assert_equal(gradients(model), expected_gradients(0, 1, 2))
        assert len(recorded.steps) == synchronizer.num_buckets
        recorded.steps.clear()
    synchronizer.close()


def test_a_parameter_without_a_gradient_counts_as_zeros() -> None:
    model = make_model()
    unused = nn.Parameter(torch.ones(3))
    model.register_parameter("unused", unused)
    synchronizer = synchronize(model)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        backward(model)
        synchronizer.before_step()
        synchronizer.after_step()
        assert unused.grad is not None
        assert unused.grad.tolist() == [0.0, 0.0, 0.0]
        assert_equal([p.grad for p in model[0].parameters()], expected_gradients(0)[:2])
    synchronizer.close()


def test_a_parameter_that_gets_no_gradient_any_more_counts_as_zeros_and_not_as_before() -> None:
    model = make_model()
    synchronizer = synchronize(model)
    step(model, synchronizer, 0)
    model.zero_grad(set_to_none=True)
    model[2](torch.ones(1, 8)).sum().backward()
    synchronizer.before_step()
    zero = {name: not p.grad.any() for name, p in model.named_parameters() if p.grad is not None}
    assert zero == {name: not name.startswith("2.") for name, _ in model.named_parameters()}
    synchronizer.close()


def test_a_frozen_parameter_takes_no_part() -> None:
    model = make_model()
    model[0].weight.requires_grad_(False)
    synchronizer = synchronize(model)
    backward(model)
    synchronizer.before_step()
    assert model[0].weight.grad is None
    synchronizer.close()


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        synchronize(nn.ReLU())


@dataclass
class Recording:
    """No compression, noting the context and layout of every exchange."""

    steps: list[tuple[int, int, tuple[str, ...]]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def init(self, bucket: Bucket) -> State:
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        self.steps.append((context.step, context.seed, bucket.layout.names))
        self.threads.add(threading.current_thread().name)
        return (yield from NoCompression().exchange(bucket, state, context))


@overlapped_or_not
def test_buckets_go_out_in_order_with_the_step_and_the_seed(overlap: bool) -> None:
    model, recorded = make_model(), Recording()
    synchronizer = synchronize(model, recorded, seed=9, overlap=overlap)
    for _ in range(2):
        backward(model)
        synchronizer.before_step()
        synchronizer.after_step()
    names = [("4.bias", "4.weight", "2.bias"), ("2.weight",), ("0.bias", "0.weight")]
    assert recorded.steps == [(step, 9, layout) for step in (0, 1) for layout in names]
    assert (EXCHANGE_THREAD in recorded.threads) == overlap
    synchronizer.close()


def test_an_overlapped_exchange_starts_before_backward_ends() -> None:
    started, model = threading.Event(), make_model()

    class Announces(Recording):
        def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
            started.set()
            return super().exchange(bucket, state, context)

    synchronizer = synchronize(model, Announces())
    seen = []
    model[0].weight.register_hook(lambda grad: seen.append(started.wait(20)))  # the last gradient of backward
    backward(model)
    assert seen == [True]
    synchronizer.before_step()
    synchronizer.close()


@overlapped_or_not
def test_a_step_that_is_not_committed_leaves_no_state_behind(overlap: bool) -> None:
    model = make_model()
    synchronizer = synchronize(model, ErrorFeedback(build("fp16")), overlap=overlap)
    backward(model)
    synchronizer.before_step()
    assert synchronizer.state_dict()["step"] == 0
    assert not any(part.any() for parts in synchronizer.state_dict()["parameters"].values() for part in parts.values())
    synchronizer.after_step()
    assert synchronizer.state_dict()["step"] == 1
    assert any(part.any() for parts in synchronizer.state_dict()["parameters"].values() for part in parts.values())
    synchronizer.close()


def test_the_state_is_kept_by_parameter_name_in_the_parameter_s_shape() -> None:
    model = make_model()
    synchronizer = synchronize(model, ErrorFeedback(build("fp16")))
    step(model, synchronizer, 0)
    saved = synchronizer.state_dict()["parameters"]
    assert {name: tuple(parts["residual"].shape) for name, parts in saved.items()} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }
    synchronizer.close()


@pytest.mark.parametrize("bucket_bytes", [200, 10**9])
def test_resume_is_bitwise_also_under_other_buckets(bucket_bytes: int) -> None:
    model = make_model()
    through = synchronize(model, ErrorFeedback(build("fp16")))
    for seed in range(3):
        step(model, through, seed)
    saved = through.state_dict()
    other = make_model()
    resumed = synchronize(other, ErrorFeedback(build("fp16")), bucket_bytes=bucket_bytes)
    resumed.load_state_dict(saved)
    for seed in range(3, 6):
        assert_equal(step(model, through, seed), step(other, resumed, seed))
    assert resumed.state_dict()["step"] == 6
    through.close()
    resumed.close()


def step(model: nn.Module, synchronizer: EveryStep, seed: int) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    backward(model, seed)
    synchronizer.before_step()
    synchronizer.after_step()
    return gradients(model)


def test_a_saved_state_is_a_copy() -> None:
    model = make_model()
    synchronizer = synchronize(model, ErrorFeedback(build("fp16")))
    step(model, synchronizer, 0)
    saved = synchronizer.state_dict()["parameters"]["0.weight"]["residual"].clone()
    synchronizer.state_dict()["parameters"]["0.weight"]["residual"].zero_()
    assert torch.equal(synchronizer.state_dict()["parameters"]["0.weight"]["residual"], saved)
    assert saved.any()
    synchronizer.close()


def test_the_state_of_another_model_is_refused_by_the_parameter_s_name() -> None:
    synchronizer = synchronize(make_model())
    with pytest.raises(ValueError, match=r"'9.weight', which this model does not have"):
        synchronizer.load_state_dict(
            {"step": 1, "rank": 0, "world_size": 1, "parameters": {"9.weight": {"residual": torch.zeros(1)}}}
        )
    synchronizer.close()


@overlapped_or_not
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_parameter_and_the_step(
    overlap: bool, value: float
) -> None:
    model = make_model()
    synchronizer = synchronize(model, overlap=overlap)
    step(model, synchronizer, 0)
    model.zero_grad(set_to_none=True)
    model[2].weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), value))
    backward(model)
    with pytest.raises(NonFiniteGradientError, match=r"gradient of 2\.weight is not finite in step 1") as caught:
        synchronizer.before_step()
    assert (caught.value.parameter, caught.value.step) == ("2.weight", 1)
    synchronizer.close()


def test_finite_gradients_whose_sum_overflows_are_no_error() -> None:
    model = make_model()
    synchronizer = synchronize(model)
    model[2].weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    step(model, synchronizer, 0)
    synchronizer.close()


@overlapped_or_not
def test_a_discarded_step_counts_but_leaves_the_compressor_s_state_as_it_was(overlap: bool) -> None:
    model = make_model()
    synchronizer = synchronize(model, ErrorFeedback(build("fp16")), overlap=overlap)
    step(model, synchronizer, 0)
    before = synchronizer.state_dict()["parameters"]
    model.zero_grad(set_to_none=True)
    (model(images(1)).square().sum() * 1e30).backward()
    with pytest.raises(NonFiniteGradientError):
        synchronizer.before_step()
    synchronizer.discard()
    after = synchronizer.state_dict()
    assert after["step"] == 2
    assert all(torch.equal(after["parameters"][name]["residual"], before[name]["residual"]) for name in before)
    step(model, synchronizer, 2)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model))
    synchronizer.close()


class Failing(Recording):
    """Fails in one step, after its first round."""

    fails_at = 1

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        result = yield from super().exchange(bucket, state, context)
        if context.step == self.fails_at and "2.weight" in bucket.layout.names:
            self.fails_at = -1
            raise ArithmeticError("codec")
        return result


@overlapped_or_not
def test_an_error_in_a_compressor_comes_out_of_finish_as_it_was_and_the_next_step_is_whole(overlap: bool) -> None:
    model = make_model()
    synchronizer = synchronize(model, Failing(), overlap=overlap)
    assert_equal(step(model, synchronizer, 0), expected_gradients(0))
    model.zero_grad(set_to_none=True)
    backward(model, 1)
    with pytest.raises(ArithmeticError, match="codec"):
        synchronizer.before_step()
    for seed in (2, 3):
        assert_equal(step(model, synchronizer, seed), expected_gradients(seed))
    synchronizer.close()


def test_codec_time_and_exposed_time_are_measured() -> None:
    model = make_model()
    synchronizer = synchronize(model, overlap=False)
    backward(model)
    exposed, codec = synchronizer.before_step()
    assert 0 < codec <= exposed
    assert synchronizer.after_step() == (0.0, 0.0)
    synchronizer.close()


@overlapped_or_not
def test_the_exchange_is_recorded_as_gradients_and_nothing_else_is(overlap: bool) -> None:
    ledger, model = Ledger(), make_model()
    synchronizer = EveryStep(model, NoCompression(), lockstep(1, [ledger])[0], ledger, overlap=overlap)
    for seed in range(2):
        step(model, synchronizer, seed)
    num_parameters = sum(p.numel() for p in model.parameters())
    assert ledger.total(purpose=Purpose.GRADIENT).payload_bytes == 2 * 4 * num_parameters
    assert ledger.total().payload_bytes == 2 * 4 * num_parameters
    assert ledger.purpose is None
    synchronizer.close()


def test_close_ends_the_thread_and_lets_go_of_the_model() -> None:
    before = {thread.ident for thread in threading.enumerate()}
    model = make_model()
    synchronizer = synchronize(model)
    synchronizer.close()
    assert {thread.ident for thread in threading.enumerate()} <= before
    backward(model)
    assert_equal(gradients(model), expected_gradients(0))
