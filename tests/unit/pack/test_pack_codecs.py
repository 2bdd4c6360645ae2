"""The codecs of packed models: what comes out is what went in, and in how many bytes."""

from __future__ import annotations

import base64
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.pack import levels
from dtrain.pack.ascending import is_ascending
from dtrain.pack.entropy import decode, encode
from dtrain.pack.tensor import BITS, Tensor, ascending_keys, words_of_keys

SHAPES = st.lists(st.integers(0, 7), max_size=5).map(tuple)


def assert_same(one: Tensor, other: Tensor) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.data.tobytes() == other.data.tobytes()


def round_trip(tensor: Tensor, codec: str) -> int:
    """The size in bytes."""
    name, data = encode(tensor)
    assert name == codec
    assert_same(decode(name, tensor.dtype, tensor.shape, data), tensor)
    return len(data)


def order_0_bytes(values: np.ndarray) -> float:
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(BITS)), st.integers(0, 300), st.randoms(use_true_random=False))
def test_planes_hold_any_bytes_of_any_type(dtype: str, numel: int, random) -> None:
    numel -= numel * BITS[dtype] % 8 and numel % 4  # whole bytes
    data = bytes(random.choice((0, 7, random.randrange(256))) for _ in range(numel * BITS[dtype] // 8))
    tensor = Tensor(dtype, (1, numel), np.frombuffer(data, np.uint8))
    if dtype == "I32" and numel > 1:
        tensor = Tensor("U32", (1, numel), tensor.data)
    round_trip(tensor, "planes")


@pytest.mark.parametrize(("dtype", "bits"), [("<f4", 24.5), ("<f2", 12.5), ("<f8", 53.5)])
def test_planes_save_the_exponents_of_weights(dtype: str, bits: float) -> None:
    weights = np.random.default_rng(0).normal(0, 0.05, (50, 400)).astype(dtype)
    assert 8 * round_trip(Tensor.of(weights), "planes") / weights.size < bits + 3


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(dtype for dtype, bits in BITS.items() if bits >= 8 and dtype != "C64")),
    st.sets(st.integers(0, 2**64 - 1), min_size=2, max_size=50),
)
def test_codebooks_of_any_type_come_back(dtype: str, words: set[int]) -> None:
    width = BITS[dtype] // 8
    unsigned = np.array(sorted(word >> (64 - 8 * width) for word in words), f"<u{width}")
    keys = np.unique(ascending_keys(dtype, unsigned))
    if len(keys) < 2 or dtype == "I32":
        return
    tensor = Tensor(dtype, (len(keys),), words_of_keys(dtype, keys, like=unsigned).view(np.uint8))
    assert is_ascending(tensor)
    round_trip(tensor, "ascending")


def test_keys_ascend_with_the_values_that_words_stand_for() -> None:
    for values in (
        np.array([-np.inf, -3.5, -1e-30, -0.0, 0.0, 1e-30, 2, np.inf], "<f4"),
        np.array([-300, -1, 0, 1, 300], "<i2"),
        np.array([0, 1, 40000, 65535], "<u2"),
    ):
        tensor = Tensor.of(values)
        keys = ascending_keys(tensor.dtype, tensor.words)
        assert (keys[1:] > keys[:-1]).all()


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from([0, 1, 2, 30, levels.MAX_LEVEL]), st.integers(0, 2**32 - 1))
def test_levels_of_any_shape_come_back(shape: tuple[int, ...], largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.integers(-largest, largest + 1, shape) * rng.integers(0, 2, shape)).astype(np.int32)
    round_trip(Tensor.of(values), "levels" if values.size > 1 else "planes")


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (1, 1, 70), (600, 3), (5, 4, 3), (3, 1100, 1, 1)])
def test_levels_of_long_kernels_vectors_and_wide_matrices_come_back(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(-9, 10, shape, dtype=np.int32)
    round_trip(Tensor.of(values), "levels")


def test_a_tensor_in_several_passes_for_its_size_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtrain.pack.contexts._PASS_SIZE", 500)
    values = np.random.default_rng(1).integers(-2, 3, (90, 100), dtype=np.int32)
    round_trip(Tensor.of(values), "levels")


def test_levels_without_any_pattern_cost_their_entropy() -> None:
    values = np.random.default_rng(0).binomial(16, 0.5, (100, 300)).astype(np.int32) - 8
    assert round_trip(Tensor.of(values), "levels") < 1.01 * order_0_bytes(values) + 250


def test_sparse_rows_and_columns_cost_less_than_their_entropy() -> None:
    rng = np.random.default_rng(0)
    density = rng.uniform(0, 1, (80, 1)) * rng.uniform(0, 1, (1, 300))
    values = ((rng.uniform(size=density.shape) < density) * rng.integers(1, 4, density.shape)).astype(np.int32)
    assert round_trip(Tensor.of(values), "levels") < 0.9 * order_0_bytes(values)


def test_kernels_of_one_sign_cost_less_than_their_entropy() -> None:
    rng = np.random.default_rng(0)
    values = (rng.choice((-1, 1), (40, 50, 1, 1)) * rng.integers(0, 4, (40, 50, 3, 3))).astype(np.int32)
    assert round_trip(Tensor.of(values), "levels") < 0.85 * order_0_bytes(values)


def test_filters_like_the_one_before_cost_less_than_their_entropy() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.integers(-3, 4, (20, 300)), 4, axis=0).astype(np.int32)
    assert round_trip(Tensor.of(values), "levels") < 0.8 * order_0_bytes(values)


def test_a_tensor_of_zeros_costs_nothing() -> None:
    assert round_trip(Tensor.of(np.zeros((300, 400), np.int32)), "levels") <= 8


def test_a_stream_is_decoded_to_the_same_levels_on_every_machine() -> None:
    """Pinned: a change here means that files packed before no longer unpack."""
    place = np.arange(16 * 20 * 9)
    signs = 2 * (place // 9 % 5 < 2) - 1
    values = signs * (place % 7 < 2) * (1 + place % 3 + 5 * (place // 9 % 11 == 0))
    levels_before = Tensor.of(values.reshape(16, 20, 3, 3).astype(np.int32))
    assert_same(decode("levels", "I32", (16, 20, 3, 3), base64.b85decode(PINNED)), levels_before)
    assert hashlib.sha256(levels._TABLE.tobytes()).hexdigest()[:16] == PINNED_TABLE


PINNED = (
    r"00uySe-DR$NgGUmA$dPmC#y_@Itdw&I*6VPc~M<95jrY00bs>kUNw46fHT<e3(+RKv(IaCQmWDim9y$ZhTTA@g<pJ%jQB8!^{&|2"
    r")o82M%x5M@$}wX@YvkeL7oN0)z08~0hz`9TyADDD5?uc1xOK9Zv}`jgTRlNkEO;;Nc9P{Le%xOMmSe>P9^pWQn^>vQY@ygb?hFj>"
    r"Orr)6<1}6AuO5nQ++8*B#n~g1lJe0y8j{b@`?V_&QLb?5X!t7j6rul?949K-zG)$49Sc%W>(=V)K(wP0Fm5mb9#MDv*nK|0yqwgt"
    r"1T5fPB|(qU@PqcQl5sp`1s2nY+zXQ{9YiMxhVK6HOetP)V)kE8oQWZ*zM<kd8UUN5y7=mctXDNlqhFCHLF({QZ0sN+AeR?9CSZsH"
    r"hvXfCuiV;kvBf?WzsDYxW#OUBk^!ZXxh}b%#hK<w*)@>H9A^-K?iM^+ty_LkkJVuk)X3!XQ$lZrV5TN}Kk-fC`C1M`Asga$DC`uc"
    r"7N>1y&`isM>_t*NjH`5(lcuOUz3mdywqSGk"
)
PINNED_TABLE = "7696a628dbad2930"


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["levels", "ascending", "planes"]),
    st.sampled_from(["I32", "F32", "BF16", "U8", "F4"]),
    SHAPES,
    st.binary(max_size=120),
)
def test_bytes_that_no_encoder_wrote_are_a_tensor_or_a_value_error(
    codec: str, dtype: str, shape: tuple[int, ...], data: bytes
) -> None:
    try:
        tensor = decode(codec, dtype, shape, data)
    except ValueError:
        return
    assert (tensor.dtype, tensor.shape) == (dtype, shape)
    assert len(tensor.data) * 8 == BITS[dtype] * tensor.numel
