"""What only Triton's interpreter can show of kernels for a GPU: run by test_triton.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dtrain.compressors import build
from dtrain.compressors.codecs import compiled
from dtrain.compressors.codecs.triton_kernels import TritonKernels, differ_from_torch, rounds_once
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Bucket, Context, Layout, Scratch

CPU = torch.device("cpu")


def test_a_sum_that_torch_rounds_once_is_rounded_once_here() -> None:
    """65 x scale is 2^-24 + 2^-54: with 1 a sum just above a tie, which float64 would take for one."""
    values, scales = torch.ones(100), torch.full((100,), 16519105 * 2.0**-54)
    packed = torch.full((100,), 65, dtype=torch.uint8)
    assert rounds_once(CPU)
    expected = torch.addcmul(values, packed.to(torch.float32), scales)
    TritonKernels(CPU).unpack_digits(packed, 256, 1, scales, 1, values, workspace(100), onto=values)
    assert (values == 1 + 2.0**-23).all()
    assert torch.equal(values, expected)


def test_kernels_are_compared_with_torch_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = TritonKernels(CPU)
    assert differ_from_torch(kernels, CPU) == []
    monkeypatch.setattr(kernels, "_fused", False)
    assert differ_from_torch(kernels, CPU) == ["unpack_digits"]
    monkeypatch.setattr(kernels, "_fused", True)
    monkeypatch.setattr(kernels, "pack_signs", lambda signs, packed: packed.zero_())
    assert differ_from_torch(kernels, CPU) == ["unpack_signs"]


def test_every_byte_is_unpacked_as_torch_unpacks_it_zeros_of_either_sign_too() -> None:
    """Those that no sender packs as well: what arrives is not to be trusted."""
    compiled.choose("triton")
    for name in ("int4", "ternary"):
        codec = build(name, rounding="nearest").inner.codec
        numel = 256 * codec.packing.per_byte
        message = torch.zeros(codec.num_bytes(numel), dtype=torch.uint8)
        message[-256:] = torch.arange(256)
        codec.scales.pack(torch.ones(-(-numel // codec.block)), message[:-256])
        found = []
        for chosen in ("triton", "torch"):
            compiled.choose(chosen)
            values = torch.full((numel,), 7.0)
            codec.decode(message, values, workspace(numel))
            found.append(values.view(torch.int32))
        assert torch.equal(*found)


@pytest.mark.parametrize("name", ["int8", "ternary"])
def test_random_rounding_is_torch_s_to_do_and_decoding_the_kernels(name: str) -> None:
    compressor = build(name, rounding="stochastic")
    bucket = Bucket(torch.randn(3000), Layout(("weight",), ((3000,),)))
    compiled.choose("triton")
    assert compiled.kernels_for(bucket.value) is not None
    assert not compressor.corrects(bucket)
    found = []
    for chosen in ("triton", "torch"):
        compiled.choose(chosen)
        message, decoded = torch.empty(compressor.codec.num_bytes(3000), dtype=torch.uint8), torch.empty(3000)
        compressor.codec.encode(bucket.value, message, workspace(3000))
        compressor.codec.decode(message, decoded, workspace(3000))
        found.append(torch.cat((message, decoded.view(torch.uint8))))
    assert torch.equal(*found)


def workspace(numel: int) -> Any:
    from dtrain.compressors.codecs.workspace import Workspace

    return Workspace(Context(0, 1, 0), Bucket(torch.zeros(numel), Layout(("values",), ((numel,),))), numel)


class Unseen(TorchDispatchMode):
    """Refuses what tells the host a value: on a GPU it would wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seeing = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim")
        assert function.overloadpacket.__name__ not in seeing, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["int8", "int4", "one_bit", "ternary"])
def test_an_exchange_by_kernels_shows_the_host_no_value(name: str) -> None:
    compiled.choose("triton")
    compressor = build(name, **({} if name == "one_bit" else {"rounding": "nearest"}))
    assert isinstance(compressor.inner, TwoPhase)
    bucket = Bucket(torch.randn(5000), Layout(("weight",), ((5000,),)))
    compiled.kernels_for(bucket.value)  # compiles, and compares with torch
    context = Context(0, 2, 0, scratch=Scratch())
    with Unseen():
        exchange = compressor.exchange(bucket, compressor.init(bucket), context)
        outgoing = next(exchange).payload
        message: Tensor = exchange.send(outgoing).payload
        with pytest.raises(StopIteration):
            exchange.send(message.expand(2, *message.shape))
