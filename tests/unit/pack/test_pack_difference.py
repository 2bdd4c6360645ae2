"""The difference between two packed models leads from the one file to the other, bit for bit, or is refused."""

from __future__ import annotations

import contextlib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packable import small_model, trained

from dtrain.pack import PRESETS, Model, Tensor, apply_difference, from_bytes, make_difference, pack, to_bytes
from dtrain.pack.container import Array, Container
from dtrain.pack.tensor import BITS
from dtrain.pack.uniform import Uniform


@pytest.mark.parametrize("preset", PRESETS)
def test_a_difference_leads_to_the_file_bit_for_bit_in_fewer_bytes(preset: str) -> None:
    base, new = (to_bytes(pack(trained(1, moved), preset)) for moved in (0.0, 0.02))
    way = make_difference(base, new)
    assert apply_difference(base, way) == new
    assert len(way) < MOST_OF_NEW.get(preset, 0.6) * len(new)


MOST_OF_NEW = {"lossless": 0.85, "svd": 0.85, "pruned": 1.0}
"""Fractions are random bits; and where other weights were pruned, values do not stand where they stood."""


def test_a_fixed_mask_costs_nothing_again() -> None:
    model = trained(1, 0.0)
    masked = {name: t.floats * (np.abs(t.floats) > 0.05) for name, t in model.tensors.items()}
    base, new = (
        to_bytes(pack(Model({n: Tensor.of((w * np.float32(s)).astype("<f4")) for n, w in masked.items()}, {})))
        for s in (1.0, 1.001)
    )
    assert len(make_difference(base, new)) < 0.75 * len(new)


def test_weights_that_did_not_move_cost_next_to_nothing() -> None:
    file = to_bytes(pack(trained(1, 0.0), "smallest"))
    moved = trained(1, 0.0)
    bias = moved.tensors["fc.bias"].floats + np.float32(0.01)
    other = to_bytes(pack(Model({**moved.tensors, "fc.bias": Tensor.of(bias)}, {}), "smallest"))
    assert len(make_difference(file, other)) < 0.06 * len(file)


@pytest.mark.parametrize("preset", ["lossless", "smallest", "deep_compression_6bit"])
def test_models_with_other_tensors_types_and_stages_have_a_difference_too(preset: str) -> None:
    base, new = to_bytes(pack(small_model(), preset)), to_bytes(pack(trained(1, 0.0), (Uniform(0.5),)))
    assert apply_difference(base, make_difference(base, new)) == new
    assert apply_difference(new, make_difference(new, base)) == base


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(BITS)), st.binary(min_size=24, max_size=24), st.binary(min_size=24, max_size=24))
def test_any_bits_of_any_type_have_a_difference(dtype: str, before: bytes, after: bytes) -> None:
    shape = (24 * 8 // BITS[dtype],)
    base, new = (
        to_bytes(pack(Model({"x": Tensor(dtype, shape, np.frombuffer(data, np.uint8))}, {}), ()))
        for data in (before, after)
    )
    assert apply_difference(base, make_difference(base, new)) == new


BASE, NEW = (to_bytes(pack(trained(1, moved), "smallest")) for moved in (0.0, 0.02))
WAY = make_difference(BASE, NEW)
PREFIX_BYTES = 77


def test_taking_it_in_fits_nothing_which_could_differ_between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(grid: object, levels: object) -> None:
        raise AssertionError("fitted anew")

    monkeypatch.setattr("dtrain.pack.levels._fit", fit)
    assert apply_difference(BASE, WAY) == NEW


def test_it_names_the_file_that_it_starts_from() -> None:
    with pytest.raises(ValueError, match=r"a difference from .*, and this file is"):
        apply_difference(NEW, WAY)


def test_every_truncation_and_every_changed_byte_is_refused() -> None:
    for place in range(0, len(WAY), 17):
        with pytest.raises(ValueError, match=r"."):
            apply_difference(BASE, WAY[:place])
        with pytest.raises(ValueError, match=r"."):
            apply_difference(BASE, WAY[:place] + bytes([WAY[place] ^ 1]) + WAY[place + 1 :])
    with pytest.raises(ValueError, match=r"."):
        apply_difference(BASE, WAY + b"\0")


def test_more_zeros_than_the_base_is_long_are_refused() -> None:
    with pytest.raises(ValueError, match="more zeros left off"):
        apply_difference(BASE, WAY[:9] + b"\xff\xff\xff\xff" + WAY[13:])


def test_a_later_version_is_named() -> None:
    with pytest.raises(ValueError, match="in version 2 of the format, and this dtrain reads version 1"):
        apply_difference(BASE, WAY[:4] + b"\2" + WAY[5:])


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_bytes_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        apply_difference(BASE, data)
    with pytest.raises(ValueError, match=r"."):
        apply_difference(BASE, WAY[:PREFIX_BYTES] + data)
    with contextlib.suppress(ValueError):
        make_difference(BASE, data)


def test_a_container_that_is_not_packed_as_here_has_no_difference() -> None:
    """Its levels are coded as bytes, which no `pack` does: made again, they would be other bytes."""
    levels = Tensor.of(np.arange(40, dtype=np.int32).reshape(4, 10))
    from dtrain.pack.coder import Encoder
    from dtrain.pack.planes import code_planes

    encoder = Encoder()
    code_planes(encoder, "I32", levels.shape, levels)
    other = to_bytes(Container("lossless", {"x": Array("I32", levels.shape, "planes", encoder.finish())}, {}))
    with pytest.raises(ValueError, match="questions for smaller levels"):
        make_difference(BASE, other)


def test_a_small_difference_that_claims_much_takes_little_memory() -> None:
    """Though zeros may be left off, and what a container claims is held to its size with them."""
    start = WAY[: PREFIX_BYTES + int.from_bytes(WAY[5:9], "little")]
    inner = from_bytes(WAY[len(start) :] + bytes(int.from_bytes(WAY[9:13], "little")))
    name, node = next(iter(inner.tensors.items()))
    hostile = start + to_bytes(replace(inner, tensors={name: replace(node, shape=(60_000, 60_000))}))[: len(WAY)]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"."):
            apply_difference(BASE, hostile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
