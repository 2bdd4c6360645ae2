"""Huffman codes of small integers: what comes out is what went in, at the size that the paper's tables give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.pack import Model, Tensor, from_bytes, pack, to_bytes, unpack
from dtrain.pack.huffman import decode_levels, encode_levels


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 12), max_size=3).map(tuple),
    st.sampled_from([0, 1, 2, 30, 4095]),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_levels_of_any_shape_come_back(shape: tuple[int, ...], largest: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-largest, largest + 1, shape) * (rng.uniform(size=shape) < density)
    values = np.asarray(values, np.int32)
    np.testing.assert_array_equal(decode_levels(shape, encode_levels(values)), values)


@pytest.mark.parametrize("values", [[7] * 50, [0] * 50, [0] * 40 + [-3], [5, 0, 0, 5, 0, 0], [*range(-200, 300)]])
def test_tables_of_one_code_and_of_many_come_back(values: list[int]) -> None:
    levels = np.array(values, np.int32)
    np.testing.assert_array_equal(decode_levels(levels.shape, encode_levels(levels)), levels)


def test_levels_cost_what_a_huffman_code_of_their_counts_does() -> None:
    values = np.repeat([3, 1, -2, -1], [800, 400, 200, 200]).astype(np.int32)  # 1, 2, 3 and 3 bits
    assert len(encode_levels(values)) == 9 + 6 + (800 + 800 + 600 + 600) // 8 + 2  # to whole words


def test_sparse_levels_are_stored_with_gaps_and_fillers() -> None:
    values = np.zeros(10_000, np.int32)
    values[::100] = 1
    values[::200] = -1
    data = encode_levels(values)
    assert data[0] == 1
    stored = int.from_bytes(data[5:9], "little")
    assert stored == 1 + 99 * 7  # gaps of 99: six of 15 and a zero that is stored, one of 3
    np.testing.assert_array_equal(decode_levels(values.shape, data), values)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_bytes_that_no_encoder_wrote_are_levels_or_a_value_error(data: st.DataObject) -> None:
    whole = bytearray(encode_levels(np.array([0, 0, 1, -2, 0, 0, 0, 5] * data.draw(st.integers(1, 40)), np.int32)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    shape = (data.draw(st.integers(0, 400)),)
    for damaged in (bytes(whole), cut):
        try:
            assert decode_levels(shape, damaged).shape == shape
        except ValueError:
            continue


def test_a_table_of_many_levels_in_few_bytes_is_refused() -> None:
    data = encode_levels(np.arange(8, dtype=np.int32).repeat(4))
    claimed = data[:5] + (1 << 31).to_bytes(4, "little") + data[9:]
    with pytest.raises(ValueError, match="fewer codes"):
        decode_levels((1 << 31,), claimed)


def test_a_model_packed_with_huffman_codes_is_the_same_model() -> None:
    weights = np.random.default_rng(0).normal(0, 0.1, (40, 30, 3, 3)).astype("<f4")
    model = Model({"w": Tensor.of(weights), "b": Tensor.of(weights[0, 0, 0])}, {})
    by_contexts, by_huffman = (
        unpack(from_bytes(to_bytes(pack(model, "deep_compression_6bit", coder=coder)))).tensors
        for coder in ("contexts", "huffman")
    )
    assert [t.data.tobytes() for t in by_contexts.values()] == [t.data.tobytes() for t in by_huffman.values()]


def test_an_unknown_coder_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="coder zip does not exist: choose one of contexts, huffman"):
        pack(Model({}, {}), coder="zip")
