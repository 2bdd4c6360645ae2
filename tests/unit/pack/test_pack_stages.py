"""Stages of packing: what each makes of a tensor, and that it says what it cannot do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dtrain.pack.low_rank import LowRank
from dtrain.pack.prune import Prune, Sparse
from dtrain.pack.share import INITIALISATIONS, Distinct, KMeans
from dtrain.pack.stage import Stage
from dtrain.pack.tensor import Tensor
from dtrain.pack.uniform import Uniform

WEIGHTS = np.random.default_rng(0).normal(0, 0.1, (64, 32, 3, 3)).astype("<f4")


def through(stage: Stage, weights: np.ndarray) -> np.ndarray:
    tensor = Tensor.of(weights)
    split = stage.encode("w", tensor)
    assert split is not None
    assert tuple(split.parts) == stage.part_names
    decoded = stage.decode(tensor.dtype, tensor.shape, split.parameters, split.parts)
    assert (decoded.dtype, decoded.shape) == (tensor.dtype, tensor.shape)
    return decoded.floats


def relative_error(weights: np.ndarray) -> float:
    return float(np.linalg.norm(weights - WEIGHTS) / np.linalg.norm(WEIGHTS))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_distinct_values_keep_every_bit_signed_zeros_and_nan_too(dtype: str) -> None:
    values = np.array([-np.inf, -1.5, -0.0, 0.0, 2.5, np.nan], dtype)
    weights = values[np.random.default_rng(0).integers(0, 6, (30, 40))]
    assert through(Distinct(), weights).tobytes() == weights.tobytes()


def test_distinct_leaves_tensors_of_many_values_alone() -> None:
    assert Distinct().encode("w", Tensor.of(WEIGHTS)) is None


def test_distinct_codebooks_without_zero_come_back() -> None:
    for values in ([1.0, 2.0], [-2.0, -1.0], [-3.0, 5.0], [4.0]):
        weights = np.array(values, "<f4")[np.arange(400) % len(values)].reshape(20, 20)
        assert through(Distinct(), weights).tobytes() == weights.tobytes()


def test_pruning_keeps_the_greatest() -> None:
    pruned = through(Prune(0.25), WEIGHTS)
    kept = pruned != 0
    assert kept.sum() == WEIGHTS.size // 4
    assert (pruned[kept] == WEIGHTS[kept]).all()
    assert np.abs(WEIGHTS[kept]).min() >= np.abs(WEIGHTS[~kept]).max()


def test_pruning_by_name_leaves_the_others_whole() -> None:
    stage = Prune({"w": 0.5})
    assert stage.encode("w", Tensor.of(WEIGHTS)) is not None
    assert stage.encode("v", Tensor.of(WEIGHTS)) is None


def test_sparse_tensors_keep_every_bit() -> None:
    pruned = through(Prune(0.25), WEIGHTS)
    pruned[0, 0] = -0.0
    assert through(Sparse(), pruned).tobytes() == pruned.tobytes()
    assert Sparse().encode("w", Tensor.of(WEIGHTS)) is None


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_k_means_shares_few_values_and_keeps_pruned_weights_pruned(initialisation: str) -> None:
    pruned = through(Prune(0.5), WEIGHTS)
    shared = through(KMeans(4, initialisation), pruned)
    assert len(np.unique(shared)) <= 16
    assert ((shared == 0) == (pruned == 0)).all()
    assert np.linalg.norm(shared - pruned) / np.linalg.norm(pruned) < 0.2


def test_k_means_with_more_bits_errs_less() -> None:
    errors = [relative_error(through(KMeans(bits), WEIGHTS)) for bits in (2, 4, 6)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_k_means_of_zeros_is_zeros() -> None:
    assert not through(KMeans(4), np.zeros((30, 30), "<f4")).any()


def test_uniform_without_a_trade_rounds_to_the_nearest() -> None:
    stage = Uniform(0.25, trade=0.0, cancel=False)
    assert np.abs(through(stage, WEIGHTS) - WEIGHTS).max() <= step_of(stage) / 2 * (1 + 1e-5)


def step_of(stage: Uniform) -> float:
    split = stage.encode("w", Tensor.of(WEIGHTS))
    assert split is not None
    return float(split.parameters["step"])


def test_errors_of_uniform_quantization_cancel_in_filters_and_nearly_in_kernels() -> None:
    plain, cancelled = Uniform(0.5, trade=0.0, cancel=False), Uniform(0.5, trade=0.0)
    step = step_of(plain)
    for axes, most in (((1, 2, 3), 0.5), ((2, 3), 3)):
        sums = np.abs((through(cancelled, WEIGHTS) - WEIGHTS).sum(axis=axes)) / step
        assert sums.max() <= most + 1e-3
        assert sums.mean() < 0.5 * np.abs((through(plain, WEIGHTS) - WEIGHTS).sum(axis=axes)).mean() / step
    assert np.abs(through(cancelled, WEIGHTS) - WEIGHTS).max() < 1.5 * step


@pytest.mark.parametrize("name", ["fc.bias", "conv1|b"])
def test_biases_have_fine_steps_and_other_vectors_none(name: str) -> None:
    biases = WEIGHTS[0].reshape(-1)
    stage = Uniform(0.2)
    split = stage.encode(name, Tensor.of(biases))
    assert split is not None
    decoded = stage.decode("F32", biases.shape, split.parameters, split.parts).floats
    assert 0 < np.abs(decoded - biases).max() < 0.02 * np.sqrt((biases**2).mean())
    assert stage.encode("norm.running_var", Tensor.of(biases)) is None


def test_large_tensors_have_larger_steps() -> None:
    steps = []
    for copies in (1, 8):
        split = Uniform(0.5).encode("w", Tensor.of(np.concatenate([WEIGHTS] * copies)))
        assert split is not None
        steps.append(split.parameters["step"])
    assert steps[1] == pytest.approx(2 * steps[0])


def test_uniform_trades_error_for_entropy() -> None:
    def entropy(weights: np.ndarray) -> float:
        _, counts = np.unique(weights, return_counts=True)
        return float((counts / counts.sum() * np.log2(counts.sum() / counts)).sum())

    plain, traded = (through(Uniform(0.5, trade=trade, cancel=False), WEIGHTS) for trade in (0.0, 0.15))
    finer = through(Uniform(0.42, trade=0.15, cancel=False), WEIGHTS)
    assert entropy(traded) < entropy(plain)
    assert entropy(finer) < entropy(plain) or relative_error(finer) < relative_error(plain)


def test_low_rank_finds_the_rank_of_a_product() -> None:
    rng = np.random.default_rng(0)
    product = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 80))).astype("<f4")
    split = LowRank(0.9999).encode("w", Tensor.of(product))
    assert split is not None
    assert split.parts["left"].shape == (60, 5)
    np.testing.assert_allclose(through(LowRank(0.9999), product), product, atol=2e-3)


def test_low_rank_leaves_matrices_of_full_rank_alone() -> None:
    assert LowRank(0.999).encode("w", Tensor.of(WEIGHTS)) is None


@pytest.mark.parametrize("stage", [Prune(0.5), KMeans(4), Uniform(0.1), LowRank(0.9)], ids=lambda stage: stage.name)
def test_stages_that_lose_something_leave_vectors_and_integers_alone(stage: Stage) -> None:
    for array in (WEIGHTS.reshape(-1), np.arange(1000).reshape(10, 100), np.zeros((0, 4), "<f4")):
        assert stage.encode("w", Tensor.of(array)) is None


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
@pytest.mark.parametrize("stage", [Prune(0.5), KMeans(4), Uniform(0.1), LowRank(0.9)], ids=lambda stage: stage.name)
def test_stages_change_weights_of_every_type_alike(stage: Stage, dtype: str) -> None:
    tensor = Tensor.of_floats(dtype, WEIGHTS)
    split = stage.encode("w", tensor)
    assert split is not None
    decoded = stage.decode(dtype, tensor.shape, split.parameters, split.parts)
    assert (decoded.dtype, decoded.shape, len(decoded.data)) == (dtype, tensor.shape, len(tensor.data))
    assert relative_error(decoded.floats - through(stage, WEIGHTS) + WEIGHTS) < 0.05


def test_bfloat16_is_rounded_to_the_nearest_as_torch_does() -> None:
    values = np.concatenate([WEIGHTS.reshape(-1), np.array([0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-40], "<f4")])
    rounded = torch.from_numpy(values).to(torch.bfloat16)
    tensor = Tensor.of_floats("BF16", values)
    assert tensor.data.tobytes() == rounded.view(torch.int16).numpy().tobytes()
    np.testing.assert_array_equal(tensor.floats, rounded.float().numpy())


@pytest.mark.parametrize("stage", [Uniform(0.1), LowRank(0.9), KMeans(4)], ids=lambda stage: stage.name)
def test_weights_that_are_not_finite_are_refused_by_name(stage: Stage) -> None:
    weights = WEIGHTS.copy()
    weights[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="w has weights that are not finite"):
        stage.encode("w", Tensor.of(weights))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Prune(0.0), "fraction kept"),
        (lambda: Prune({"w": 1.5}), "fraction kept"),
        (lambda: KMeans(13), "from 1 to 12"),
        (lambda: KMeans(4, "best"), "linear, density, random"),
        (lambda: Uniform(0.0), "positive"),
        (lambda: Uniform(0.1, -1.0), "negative"),
        (lambda: LowRank(1.0), "between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(make, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        make()
