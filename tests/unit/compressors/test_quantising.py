"""What int8, int4, ternary and one_bit have in common, through whole exchanges in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor
from workers import contributions

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import ErrorFeedback, build
from dtrain.compressors.codecs.blocks import Blocks
from dtrain.compressors.codecs.packing import ROUND
from dtrain.compressors.codecs.scales import Float8Scales
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.ternary import NearestTernary
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Bucket, Compressor, Context, Exchanged, Layout, Scratch
from dtrain.meter.ledger import Ledger
from dtrain.sync.buckets import assign, layout_of, trainable
from dtrain.sync.drive import drive_lockstep
from dtrain.vision import models

NEAREST: dict[str, dict[str, Any]] = {"int8": {}, "int4": {}, "ternary": {"rounding": "nearest"}, "one_bit": {}}
STOCHASTIC: dict[str, dict[str, Any]] = {name: {"rounding": "stochastic"} for name in ("int8", "int4", "ternary")}
METHODS = [
    *(pytest.param(build(name, **options), id=name) for name, options in NEAREST.items()),
    *(pytest.param(build(name, **options), id=f"{name} stochastic") for name, options in STOCHASTIC.items()),
]
WORLD_SIZES = [1, 2, 3, 4, 8]
every_method = pytest.mark.parametrize("compressor", METHODS)
every_world_size = pytest.mark.parametrize("world_size", WORLD_SIZES)
with_feedback = pytest.mark.parametrize("name", list(NEAREST))


class Workers:
    """Virtual workers with one bucket, step after step."""

    def __init__(self, compressor: Compressor, numel: int, world_size: int) -> None:
        self.compressor, self.step = compressor, 0
        self.layout = Layout(("weight",), ((numel,),))
        self.scratch = [Scratch() for _ in range(world_size)]
        self.states: list[Any] = [compressor.init(Bucket(torch.zeros(numel), self.layout))] * world_size
        self.contributed = torch.zeros(world_size, numel)

    def exchange(self, values: Sequence[Tensor]) -> list[Exchanged]:
        n = len(values)
        exchanges = [
            self.compressor.exchange(
                Bucket(values[rank] / n, self.layout),
                self.states[rank],
                Context(rank, n, self.step, seed=1, wants_contribution=True, scratch=self.scratch[rank]),
            )
            for rank in range(n)
        ]
        results = drive_lockstep(exchanges, lockstep(n))
        self.states = [result.state for result in results]
        self.contributed = contributions(results, self.layout.numel) * n
        self.step += 1
        return results

    def residuals(self) -> Tensor:
        return torch.stack([state.residual.value for state in self.states])


def once(compressor: Compressor, values: Sequence[Tensor]) -> list[Exchanged]:
    return Workers(compressor, values[0].numel(), len(values)).exchange(values)


def draw(numel: int, world_size: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(numel, generator=generator) for _ in range(world_size)]


def blocks_of(compressor: Compressor) -> Blocks:
    inner = compressor.inner if isinstance(compressor, ErrorFeedback) else compressor
    assert isinstance(inner, TwoPhase)
    assert isinstance(inner.codec, Blocks)
    return inner.codec


def exchange_adding_up(compressor: Compressor, values: Sequence[Tensor]) -> list[Exchanged]:
    workers = Workers(compressor, values[0].numel(), len(values))
    results = workers.exchange(values)
    local = workers.contributed.double()
    assert torch.isfinite(local).all()
    error = (local.sum(0) - len(results) * results[0].mean.double()).abs()
    assert (error <= 1e-6 * local.abs().sum(0)).all()
    return results


# Bytes


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize(
    ("name", "size", "least"),
    [
        ("int8", lambda m: m + 4 * ceil(m / 2048), 3.9),
        ("int4", lambda m: ceil(m / 2) + 4 * ceil(m / 1024), 7.8),
        ("ternary", lambda m: ceil(m / 5) + ceil(m / 640) + 4, 19.5),
        ("one_bit", lambda m: ceil(m / 8) + ceil(m / 256) + 4, 31.0),
        ("rotated_signs", lambda m: 8 + 132 * ceil(m / 1024), 30.4),
    ],
)
def test_squeezenet_saves_what_is_promised_at_every_world_size(
    name: str, size: Callable[[int], int], least: float, world_size: int
) -> None:
    """By the bytes that a ledger records, nothing exempt, which are those of the formula."""
    compressor = build(name)
    buckets = [layout_of(part) for part in assign(trainable(models.build("squeezenet1_0", num_classes=1000)))]
    assert sum(layout.numel for layout in buckets) == 1_248_424
    ledgers = [Ledger() for _ in range(world_size)]
    communicators = lockstep(world_size, ledgers)
    formula = 0
    for layout in buckets:
        bucket = Bucket(torch.ones(layout.numel), layout)
        contexts = [Context(rank, world_size, 0) for rank in range(world_size)]
        drive_lockstep([compressor.exchange(bucket, compressor.init(bucket), c) for c in contexts], communicators)
        formula += 2 * (world_size - 1) * size(ceil(layout.numel / world_size))
    fp32 = 2 * (4 * 1_248_424) * (world_size - 1) / world_size
    for ledger in ledgers:
        sent = sum(entry.wire_bytes for entry in ledger.close().entries)
        assert sent == formula
        assert fp32 / sent >= least


# Values that are hard to scale


@every_method
@every_world_size
@pytest.mark.parametrize("huge", [1e30, -3e38])
def test_one_huge_value_overflows_nowhere(compressor: Compressor, world_size: int, huge: float) -> None:
    values = draw(20_000, world_size)
    for value in values:
        value[4321] = huge
    results = exchange_adding_up(compressor, values)
    assert torch.isfinite(results[0].mean).all()


@every_method
def test_a_block_of_nothing_but_huge_values_overflows_nowhere(compressor: Compressor) -> None:
    results = exchange_adding_up(compressor, [torch.full((5000,), 3e38)] * 2)
    assert torch.isfinite(results[0].mean).all()


@every_method
@every_world_size
def test_zeros_stay_zeros(compressor: Compressor, world_size: int) -> None:
    workers = Workers(compressor, 5000, world_size)
    for result in workers.exchange([torch.zeros(5000)] * world_size):
        assert not result.mean.any()
    assert not workers.contributed.any()


@pytest.mark.parametrize("scale", [0.0, 1e-41, 1e-31, 1.0])
def test_ternary_codes_are_minus_one_to_one_at_every_scale(scale: float) -> None:
    blocks = (draw(640, 1)[0] * scale).unsqueeze(0)
    codes, bucket = torch.empty_like(blocks), Bucket(blocks[0], Layout(("weight",), ((640,),)))
    NearestTernary().quantise(blocks, torch.empty(1), codes, Workspace(Context(0, 1, 0), bucket, 640))
    assert set((codes - ROUND).unique().tolist()) <= {-1.0, 0.0, 1.0}


@every_method
@pytest.mark.parametrize("scale", [1e-45, 1e-41, 1e-36, 1e-29])
def test_what_is_too_small_to_scale_stays_finite_and_small(compressor: Compressor, scale: float) -> None:
    results = exchange_adding_up(compressor, [value * scale for value in draw(5000, 3)])
    assert results[0].mean.abs().max() <= max(1e-29, 5 * scale)


@every_method
@every_world_size
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_on_one_rank_is_not_finite_on_all_and_spoils_only_its_block(
    compressor: Compressor, world_size: int, bad: float
) -> None:
    values = draw(40_000, world_size)
    values[-1][1234] = bad
    means = [result.mean for result in once(compressor, values)]
    for mean in means:
        assert torch.equal(mean.view(torch.int32), means[0].view(torch.int32))
        assert not torch.isfinite(mean[1234])
        assert (~torch.isfinite(mean)).sum() <= blocks_of(compressor).block
        assert torch.isfinite(mean[4000:]).all()


@every_method
@pytest.mark.parametrize("numel", [1, 7, 1_000_003])
def test_lengths_that_divide_nothing(compressor: Compressor, numel: int) -> None:
    values = draw(numel, 3)
    results = exchange_adding_up(compressor, values)
    assert all(torch.equal(result.mean, results[0].mean) for result in results)
    if numel > 7:
        error = (results[0].mean - torch.stack(values).mean(0)).norm() / torch.stack(values).mean(0).norm()
        assert error < 3.5


@every_method
def test_the_chunks_in_which_it_is_computed_change_nothing(
    compressor: Compressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = draw(10_000, 2)
    whole = once(compressor, values)[0].mean
    monkeypatch.setattr("dtrain.compressors.codecs.workspace.CHUNK", 4096)
    torch.testing.assert_close(once(compressor, values)[0].mean, whole, rtol=1e-5, atol=1e-6)


@every_method
def test_the_same_seed_gives_the_same_bits(compressor: Compressor) -> None:
    values = draw(5000, 3)
    one, two = once(compressor, values)[0].mean, once(compressor, values)[0].mean
    assert torch.equal(one.view(torch.int32), two.view(torch.int32))


@pytest.mark.parametrize(("name", "error"), [("int8", 7e-5), ("int4", 0.021), ("ternary", 0.191), ("one_bit", 0.364)])
def test_one_encoding_of_gaussian_values_errs_as_little_as_its_quantiser_can(name: str, error: float) -> None:
    """Relative squared error. One_bit: 1 - 2/pi; ternary: the best of all scales leaves 0.190."""
    value = draw(500_000, 1)[0]
    codec = blocks_of(build(name, **NEAREST[name]))
    bucket = Bucket(value, Layout(("weight",), ((500_000,),)))
    workspace = Workspace(Context(0, 1, 0), bucket, 500_000)
    message, decoded = torch.empty(codec.num_bytes(500_000), dtype=torch.uint8), torch.empty_like(value)
    codec.encode(value, message, workspace)
    codec.decode(message, decoded, workspace)
    assert ((decoded - value).square().sum() / value.square().sum()).item() <= error


# Rounding


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_stochastic_rounding_is_right_on_average(name: str) -> None:
    """Over 600 steps, both phases included, to 5 standard errors. Uniform values: none is clipped by ternary."""
    compressor = build(name, rounding="stochastic")
    values = [torch.rand(300, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in range(2)]
    true = torch.stack(values).mean(0)
    workers = Workers(compressor, 300, 2)
    means = torch.stack([workers.exchange(values)[0].mean.clone() for _ in range(600)])
    standard_error = means.std(0) / 600**0.5
    assert ((means.mean(0) - true).abs() <= 5 * standard_error + 1e-4).all()
    assert (means.std(0) > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_rounding_to_nearest_errs_less_but_the_same_way_each_time(name: str) -> None:
    values = [draw(5000, 1)[0]]
    true = values[0]
    nearest = once(build(name, **NEAREST[name]), values)[0].mean
    stochastic = once(build(name, rounding="stochastic"), values)[0].mean
    assert (nearest - true).norm() < 0.8 * (stochastic - true).norm()


def test_a_method_that_is_biased_is_in_error_feedback_and_one_that_is_not_is_not() -> None:
    assert all(isinstance(build(name, **options), ErrorFeedback) for name, options in NEAREST.items())
    assert all(isinstance(build(name, **options), TwoPhase) for name, options in STOCHASTIC.items())


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_a_rounding_that_does_not_exist_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(ValueError, match="choose one of nearest, stochastic"):
        build(name, rounding="up")


# Error feedback


@with_feedback
@every_world_size
def test_nothing_is_lost_over_many_steps(name: str, world_size: int) -> None:
    """What went in = world_size x what came out + what is left."""
    workers = Workers(build(name, **NEAREST[name]), 3000, world_size)
    given, delivered, size = (torch.zeros(3000, dtype=torch.float64) for _ in range(3))
    for step in range(30):
        values = draw(3000, world_size, seed=step)
        delivered += world_size * workers.exchange(values)[0].mean
        given += torch.stack(values).double().sum(0)
        size += torch.stack(values).abs().sum(0)
    assert ((given - delivered - world_size * workers.residuals().double().sum(0)).abs() <= 1e-5 * size).all()


@with_feedback
def test_the_residual_does_not_grow(name: str) -> None:
    workers = Workers(build(name, **NEAREST[name]), 6000, 4)
    norms = []
    for step in range(120):
        workers.exchange([value + 0.3 for value in draw(6000, 4, seed=step)])
        norms.append(workers.residuals().norm().item())
    assert max(norms[60:]) < 1.1 * max(norms[:60])


@with_feedback
def test_a_small_value_beside_large_ones_arrives_in_time(name: str) -> None:
    """0.004 beside ones: less than any of these methods can say in one step."""
    value = torch.ones(1000)
    value[::2] *= -1
    value[500] = 0.004
    workers = Workers(build(name, **NEAREST[name]), 1000, 2)
    arrived = sum(workers.exchange([value, value])[0].mean[500].item() for _ in range(1000)) / 1000
    assert arrived == pytest.approx(0.004, abs=0.002)


def least_squares(compressor: Compressor, world_size: int = 4) -> float:
    """The excess loss, relative to the first, after 300 steps on data that differ between workers."""
    torch.manual_seed(0)
    scale = torch.logspace(0, -1, 200)  # coordinates of unequal importance
    data = [torch.randn(400, 200) * scale for _ in range(world_size)]
    target = [x @ torch.randn(200) + 0.1 * torch.randn(400) for x in data]
    best = torch.linalg.lstsq(torch.cat(data), torch.cat(target)).solution

    def loss(w: Tensor) -> float:
        return sum(((x @ w - y) ** 2).mean().item() for x, y in zip(data, target, strict=True))

    workers, w, num_steps = Workers(compressor, 200, world_size), torch.zeros(200), 300
    start = loss(w)
    for step in range(num_steps):
        gradients = [x.T @ (x @ w - y) / 400 for x, y in zip(data, target, strict=True)]
        w = w - 0.5 * (1 - step / num_steps) * workers.exchange(gradients)[0].mean
    return (loss(w) - loss(best)) / (start - loss(best))


@with_feedback
def test_training_reaches_the_loss_of_fp32(name: str) -> None:
    fp32, compressed = least_squares(build("none")), least_squares(build(name, **NEAREST[name]))
    assert compressed == pytest.approx(fp32, abs=2e-3)


def test_without_error_feedback_signs_do_not() -> None:
    fp32, compressed = least_squares(build("none")), least_squares(TwoPhase(blocks_of(build("one_bit"))))
    assert compressed > fp32 + 1e-2


# Scales


def test_scales_of_eight_bits_are_within_an_eighth_and_the_largest_is_exact() -> None:
    scales = torch.logspace(-4, 0, 100) * 37.123
    form = Float8Scales()
    packed = torch.empty(form.num_bytes(100), dtype=torch.uint8)
    assert len(packed) == 104
    form.pack(scales, packed)
    back = form.unpack(packed)
    assert ((back / scales - 1).abs() <= 0.125).all()
    assert back[-1] == scales[-1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_spoils_no_other(bad: float) -> None:
    scales = torch.tensor([1.0, bad, 0.5, 1e-9])
    form = Float8Scales()
    packed = torch.empty(form.num_bytes(4), dtype=torch.uint8)
    form.pack(scales, packed)
    back = form.unpack(packed)
    assert back[[0, 2, 3]].tolist() == [1.0, 0.5, 0.0]
    assert not back[1].isfinite()
