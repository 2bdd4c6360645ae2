"""The .dtz file: what was packed comes back, and anything else is one clear error in bounded memory."""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packable import small_model

from dtrain.pack import PRESETS, Container, Model, Tensor, from_bytes, pack, to_bytes, unpack
from dtrain.pack.container import MAGIC
from dtrain.pack.low_rank import LowRank

PACKED = to_bytes(pack(small_model()))


def assert_equal_models(one: Model, other: Model) -> None:
    assert list(one.tensors) == list(other.tensors)
    assert one.metadata == other.metadata
    for name, tensor in one.tensors.items():
        assert (tensor.dtype, tensor.shape) == (other.tensors[name].dtype, other.tensors[name].shape)
        assert tensor.data.tobytes() == other.tensors[name].data.tobytes(), name


def opened(data: bytes) -> Model:
    return unpack(from_bytes(data))


def with_header(change: Callable[[dict[str, Any]], object], sections: bytes | None = None) -> bytes:
    """PACKED with another header and a digest that is right."""
    (header_bytes,) = struct.unpack_from("<I", PACKED, 5)
    header = json.loads(bz2.decompress(PACKED[41 : 41 + header_bytes]))
    change(header)
    return sealed(
        bz2.compress(json.dumps(header).encode()), PACKED[41 + header_bytes :] if sections is None else sections
    )


def sealed(header: bytes, sections: bytes, *, header_bytes: int | None = None) -> bytes:
    start = MAGIC + struct.pack("<BI", 1, len(header) if header_bytes is None else header_bytes)
    return start + hashlib.sha256(start + header + sections).digest() + header + sections


def test_lossless_gives_back_every_bit_in_fewer_bytes() -> None:
    assert_equal_models(opened(PACKED), small_model())
    assert len(PACKED) < small_model().num_bytes


def test_the_same_model_is_the_same_bytes() -> None:
    assert to_bytes(pack(small_model())) == PACKED


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_back_the_same_tensors_each_time_and_no_other_names(preset: str) -> None:
    data = to_bytes(pack(small_model(), preset))
    model = opened(data)
    assert_equal_models(model, opened(data))
    assert [(n, t.dtype, t.shape) for n, t in model.tensors.items()] == [
        (n, t.dtype, t.shape) for n, t in small_model().tensors.items()
    ]
    for exact in ("steps", "nothing") if preset == "smallest" else ("conv.bias", "steps", "nothing"):
        assert model.tensors[exact].data.tobytes() == small_model().tensors[exact].data.tobytes()


def test_an_unknown_preset_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="preset tiny does not exist: choose one of lossless, "):
        pack(small_model(), "tiny")


def test_a_tensor_of_one_value_is_padded_to_what_may_be_unpacked() -> None:
    zeros = Model({"zeros": Tensor.of(np.zeros((1000, 1000), "<f4"))}, {})
    data = to_bytes(pack(zeros))
    assert len(data) < 40_000
    assert_equal_models(opened(data), zeros)


# what is refused


def test_every_truncation_is_refused() -> None:
    for size in range(0, len(PACKED), 37):
        with pytest.raises(ValueError, match=r"truncated|not a packed model"):
            from_bytes(PACKED[:size])


def test_every_changed_byte_is_refused() -> None:
    for place in range(0, len(PACKED), 11):
        with pytest.raises(ValueError, match=r"."):
            from_bytes(PACKED[:place] + bytes([PACKED[place] ^ 1]) + PACKED[place + 1 :])


def test_a_later_version_is_named() -> None:
    with pytest.raises(ValueError, match="version 2 of the format, and this dtrain reads version 1"):
        from_bytes(PACKED[:4] + b"\2" + PACKED[5:])


def test_bytes_after_the_end_are_refused_even_under_a_right_digest() -> None:
    with pytest.raises(ValueError, match="truncated or altered"):
        from_bytes(PACKED + b"\0")
    (header_bytes,) = struct.unpack_from("<I", PACKED, 5)
    longer = sealed(PACKED[41 : 41 + header_bytes], PACKED[41 + header_bytes :] + b"\0")
    with pytest.raises(ValueError, match="1 bytes after its end"):
        from_bytes(longer)


def tensor(header: dict[str, Any], name: str = "shared") -> dict[str, Any]:
    entry: dict[str, Any] = header["tensors"][name]
    return entry


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda h: h.pop("tensors"), "no tensors"),
        (lambda h: h.update(padding="1"), "no padding"),
        (lambda h: h.update(padding=-1), "longer than the file"),
        (lambda h: h.update(padding=1 << 40), "longer than the file"),
        (lambda h: h.update(metadata={"a": 1}), "not one of this version"),
        (lambda h: h.update(tensors={str(k): {} for k in range((1 << 16) + 1)}), "not one of this version"),
        (lambda h: h["tensors"].update(shared=3), "not one of this version"),
        (lambda h: tensor(h).update(shape=[1 << 20, 1 << 19]), "more than 256 times"),
        (lambda h: tensor(h).update(shape=[1 << 39, 1 << 39]), "a shape that no tensor has"),
        (lambda h: tensor(h).update(shape=[1 << 41]), "a shape that no tensor has"),
        (lambda h: tensor(h).update(shape=[-1]), "a shape that no tensor has"),
        (lambda h: tensor(h).update(shape=[True]), "a shape that no tensor has"),
        (lambda h: tensor(h).update(shape=[1] * 17), "a shape that no tensor has"),
        (lambda h: tensor(h).update(shape=[2.0]), "a shape that no tensor has"),
        (lambda h: tensor(h).update(shape=[600]), "do not fit"),
        (lambda h: tensor(h).update(dtype="F33"), "unknown type 'F33'"),
        (lambda h: tensor(h).update(dtype="F64"), "do not fit"),
        (lambda h: tensor(h).update(dtype="F4", shape=[3]), "whole number of bytes"),
        (lambda h: tensor(h).update(stage="os.system"), "unknown stage 'os.system'"),
        (lambda h: tensor(h).update(stage="uniform"), "without its parts"),
        (lambda h: tensor(h)["parts"].pop("codebook"), "without its parts"),
        (lambda h: tensor(h).update(parameters={"a": []}), "parameters of another kind"),
        (lambda h: tensor(h)["parts"]["levels"].update(codec="zip"), "unknown codec 'zip'"),
        (lambda h: tensor(h)["parts"]["levels"].update(bytes=-4), "longer than the file"),
        (lambda h: tensor(h)["parts"]["levels"].update(bytes=1 << 62), "longer than the file"),
        (lambda h: tensor(h)["parts"]["codebook"].update(shape=[0]), "do not fit|."),
        (lambda h: tensor(h, "steps").update(codec="levels"), "levels of type I64"),
        (lambda h: tensor(h, "conv.bias").update(bytes=tensor(h, "conv.bias")["bytes"] - 1), "after its end"),
    ],
)
def test_a_header_that_lies_is_refused(change: Callable[[dict[str, Any]], object], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        opened(with_header(change))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (b"", "cannot be read|too long"),
        (b"{}", "cannot be read"),
        (bz2.compress(b"{"), "cannot be read"),
        (bz2.compress(b"[]"), "not one of this version"),
        (bz2.compress(b"[" * 200_000), "cannot be read"),
        (bz2.compress(b"1" * 10_000), "cannot be read"),
        (bz2.compress(b"{}") + b"x", "does not end where it should"),
        (bz2.compress(b" " * (1 << 25)), "too long"),
    ],
    ids=["empty", "plain", "cut", "list", "nested", "long number", "more", "bomb"],
)
def test_a_header_that_is_none_is_refused(header: bytes, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        from_bytes(sealed(header, b""))


def test_a_header_that_grows_out_of_proportion_is_refused_before_it_is_parsed() -> None:
    nested = bz2.compress(b'{"tensors":[' + b"[]," * 2_000_000 + b"[]]}")
    hostile = sealed(nested, b"")
    assert len(hostile) < 2_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="too long"):
            from_bytes(hostile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("names", "metadata"),
    [(1, {"text": "x" * 20_000_000}), ((1 << 16) + 1, {})],
    ids=["metadata", "tensors"],
)
def test_what_could_not_be_read_again_is_not_written(names: int, metadata: dict[str, str]) -> None:
    node = pack(small_model()).tensors["steps"]
    with pytest.raises(ValueError, match="more than a packed model holds"):
        to_bytes(Container("lossless", {str(index): node for index in range(names)}, metadata))


def test_factors_that_save_nothing_are_refused() -> None:
    """As their product takes more time than a file of their size may."""
    square = Tensor.of(np.ones((60, 60), "<i2"))
    with pytest.raises(ValueError, match="not smaller"):
        LowRank.decode("F32", (60, 60), {"unit": 1.0}, {"left": square, "right": square})


def test_a_header_longer_than_the_file_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than the file"):
        from_bytes(sealed(b"x", b"", header_bytes=1 << 31))


def test_a_small_file_that_claims_much_takes_little_memory() -> None:
    def claim(header: dict[str, Any]) -> None:
        for part in (tensor(header), *tensor(header)["parts"].values()):
            part["shape"] = [60_000, 60_000]

    hostile = with_header(claim)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 256 times its own size"):
            opened(hostile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        opened(MAGIC + data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 45) | st.floats() | st.sampled_from(["F32", "I32", "levels", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_header_changed_anywhere_is_a_model_or_one_error(data: st.DataObject) -> None:
    def change(header: dict[str, Any]) -> None:
        place: Any = header
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                place[key] = data.draw(JSON)
                return
            place = place[key]

    with contextlib.suppress(ValueError):
        opened(with_header(change))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_other_sections_under_a_right_digest_are_a_model_or_one_error(place: int, replaced: bytes) -> None:
    (header_bytes,) = struct.unpack_from("<I", PACKED, 5)
    sections = PACKED[41 + header_bytes :]
    place %= len(sections) - len(replaced)
    sections = sections[:place] + replaced + sections[place + len(replaced) :]
    with contextlib.suppress(ValueError):
        opened(with_header(lambda header: None, sections))
