"""Packed models and differences that were made to do harm: read, or refused in one line, soon and in little memory.

A short run of benchmarks/fuzz.py, and what it and others found, by name.
"""

from __future__ import annotations

import bz2
import json
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packable import small_model

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from hostile import attempt, attempts
from hostile_packed import DIFFERENCE_PREFIX, formats, sealed

from dtrain.pack import Model, Tensor, apply_difference, from_bytes, make_difference, pack, to_bytes, unpack
from dtrain.pack.container import MAGIC
from dtrain.pack.entropy import CODECS
from dtrain.pack.presets import STAGES
from dtrain.pack.uniform import Uniform

ALL_FORMATS = formats()
BASE = to_bytes(pack(small_model()))


@pytest.fixture(autouse=True)
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize(("name", "inputs"), [("container", 200), ("difference", 40)])
def test_hostile_inputs_are_read_or_refused_in_one_line_soon_and_in_little_memory(name: str, inputs: int) -> None:
    outcomes = list(attempts(ALL_FORMATS[name], inputs, seed=1))
    assert not [(seed, outcome) for seed, outcome in outcomes if outcome.is_fault]
    assert {outcome.kind for _, outcome in outcomes} >= {"refused"}


def with_tensor(node: dict[str, Any], section: bytes = b"U" * 64, name: str = "w") -> bytes:
    """A container of one tensor, whose sections are the bytes given."""
    header = {"preset": "lossless", "metadata": {}, "padding": 0, "tensors": {name: node}}
    return sealed(bz2.compress(json.dumps(header).encode()), section, MAGIC + b"\1")


def array(codec: str, shape: list[int], dtype: str = "I32", num_bytes: int = 64) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "codec": codec, "bytes": num_bytes}


def the_refusal(read: Any) -> str:
    """Of what takes no memory worth the name."""
    outcome = attempt(read, b"")
    assert outcome.kind in ("read", "refused"), outcome
    assert outcome.peak_bytes < 20_000_000  # bzip2 takes some
    try:
        read(b"")
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("shape", [[1 << 28, 0], [0, 1 << 28], [1 << 28, 0, 3, 3], [1, 1 << 38, 0]])
@pytest.mark.parametrize("codec", CODECS)
def test_a_shape_with_a_zero_takes_no_memory_for_its_other_dimensions(codec: str, shape: list[int]) -> None:
    hostile = with_tensor(array(codec, shape))
    assert len(hostile) < 300
    refusal = the_refusal(lambda _: unpack(from_bytes(hostile)))
    assert codec == "planes" or "fewer elements" in refusal


@pytest.mark.parametrize("shape", [[1 << 28, 0], [0, 1 << 28]])
@pytest.mark.parametrize("stage", STAGES)
def test_nor_does_a_stage_of_such_a_shape(stage: str, shape: list[int]) -> None:
    shapes = {"codebook": [0], "values": [0], "left": [shape[0], 0], "right": [0, shape[1]]}
    types = {"levels": "I32", "mask": "I32", "left": "I16", "right": "I16"}
    parts = {
        part: array("planes", shapes.get(part, shape), types.get(part, "F32"), 4) for part in STAGES[stage].part_names
    }
    parameters = {"step": 1.0, "unit": 1.0}
    node = {"dtype": "F32", "shape": shape, "stage": stage, "parameters": parameters, "parts": parts}
    the_refusal(lambda _: unpack(from_bytes(with_tensor(node, bytes(4 * len(parts))))))


@pytest.mark.parametrize("codec", CODECS)
def test_nor_does_a_difference_with_one(codec: str) -> None:
    way = make_difference(BASE, BASE)
    start = way[:5] + (64).to_bytes(4, "little") + bytes(4) + way[13:DIFFERENCE_PREFIX] + b"U" * 64
    hostile = start + with_tensor(array(codec, [1 << 28, 0]))
    the_refusal(lambda _: apply_difference(BASE, hostile))


@pytest.mark.parametrize("sizes", [[1 << 39, 1 << 39, 0], [1] * 17, [1 << 41, 0]])
def test_a_shape_that_numpy_could_not_hold_is_refused_though_it_has_no_elements(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="a shape that no tensor has"):
        from_bytes(with_tensor(array("planes", sizes)))


def test_values_of_a_codebook_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values that do not ascend|no encoder"):
        unpack(from_bytes(with_tensor(array("ascending", [40], "U8"))))
    with pytest.raises(ValueError, match="a codebook of 257 values of type U8"):
        unpack(from_bytes(with_tensor(array("ascending", [257], "U8"))))


@pytest.mark.parametrize("dtype", ["F4", "C64"])
def test_a_codebook_whose_elements_are_no_words_is_refused(dtype: str) -> None:
    """What came of it had another number of bytes than its tensor."""
    parts = {"levels": array("planes", [4], num_bytes=4), "codebook": array("planes", [4], dtype, 4)}
    node = {"dtype": dtype, "shape": [4], "stage": "distinct", "parameters": {}, "parts": parts}
    with pytest.raises(ValueError, match="do not fit their tensor"):
        unpack(from_bytes(with_tensor(node, bytes(8))))


# what could not be unpacked is not packed


def test_a_tensor_of_more_dimensions_than_are_unpacked_is_not_packed() -> None:
    Tensor.of(np.zeros((1,) * 16, "<f4"))
    with pytest.raises(ValueError, match="a shape that no tensor has: at most 16 dimensions"):
        Tensor.of(np.zeros((1,) * 21, "<f4"))


@pytest.mark.parametrize(
    ("name", "metadata", "part"),
    [("__metadata__", {}, "keeps for itself"), ("\ud800", {}, "no text"), ("w", {"a": "\udfff"}, "no text")],
)
def test_names_that_safetensors_cannot_hold_are_neither_packed_nor_read(
    name: str, metadata: dict[str, str], part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        to_bytes(pack(Model({name: Tensor.of(np.zeros(3, "<f4"))}, metadata)))
    if not metadata:
        with pytest.raises(ValueError, match=part):
            from_bytes(with_tensor(array("planes", [4]), name=name))


@pytest.mark.parametrize("name", ["w", "bias"])
def test_weights_whose_stage_could_not_be_undone_are_not_packed(name: str) -> None:
    """Squares of such weights are beyond what a float64 holds, and so is the step."""
    weights = np.linspace(1e200, 2e200, 64).reshape((64,) if name == "bias" else (8, 8))
    with pytest.raises(ValueError, match=r"makes of .* that is not a positive number: only lossless packs it"):
        pack(Model({name: Tensor.of(weights)}, {}), (Uniform(0.2),))
