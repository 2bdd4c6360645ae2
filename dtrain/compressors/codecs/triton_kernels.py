"""What codecs of blocks do on a GPU, as kernels that Triton compiles: one pass over memory for each.

Results are those of the torch code in whose place each is called, on the same device, bit for bit (ADR 24). Nothing is
contracted but where torch does it: `addcmul` rounds once or twice, which is looked at. Divisions are IEEE's. NaN and
infinity go through the same operations as torch's do; a GPU makes one NaN of all, so its bits are torch's, too, and the
host need not look at a value, which it would have to wait for.

With TRITON_INTERPRET=1, set before triton is imported, kernels run on a CPU, slowly: for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dtrain.compressors.codecs.kernels import Chunk
from dtrain.compressors.codecs.packing import ROUND
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.exchange import Bucket, Context, Layout

INTERPRETED = bool(triton.knobs.runtime.interpret)
TILE = 1024
"""Elements of a program where blocks do not matter."""
OPTIONS = {"enable_fp_fusion": False}
"""Of the compiler: it contracts nothing by itself."""

_ROUND = tl.constexpr(ROUND)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_SIGN = tl.constexpr(-0x80000000)


if INTERPRETED:  # whose fma rounds twice

    @triton.jit
    def _fma(x, y, z):
        """x * y + z, rounded once: in float64 the product is exact, and a sum that is not gets an odd last bit."""
        product, wide = x.to(tl.float64) * y.to(tl.float64), z.to(tl.float64)
        total = product + wide
        part = total - product
        error = (product - (total - part)) + (wide - part)
        bits = total.to(tl.int64, bitcast=True)
        towards_error = tl.where((error > 0) == (total > 0), bits + 1, bits - 1)
        inexact = (error == error) & (error != 0) & ((bits & 1) == 0)
        return tl.where(inexact, towards_error, bits).to(tl.float64, bitcast=True).to(tl.float32)

else:

    @triton.jit
    def _fma(x, y, z):
        """x * y + z, rounded once."""
        return tl.fma(x, y, z)


@triton.jit
def _add_product(z, x, y, FUSED: tl.constexpr):  # noqa: N803 - as Triton's users write what is constant
    """What torch's addcmul gives: z + x * y, rounded once or twice."""
    if FUSED:
        return _fma(x, y, z)
    else:  # noqa: RET505 - Triton compiles one of two branches
        return z + x * y


@triton.jit
def _rounded(x):
    """To the nearest integer, ties to even, zeros with the sign of `x`."""
    bits = ((x + _ROUND) - _ROUND).to(tl.int32, bitcast=True)
    return (bits | (x.to(tl.int32, bitcast=True) & _SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def _quantise_by_largest(
    values,
    residual,
    left,
    scales,
    codes,
    numel,
    share,
    smallest,
    BLOCK: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    CORRECT: tl.constexpr,  # noqa: N803
    SUBTRACT: tl.constexpr,  # noqa: N803
    FUSED: tl.constexpr,  # noqa: N803
):
    """A program for each block; TILE is the power of two at or above BLOCK."""
    row, i = tl.program_id(0), tl.arange(0, TILE)
    at = row * BLOCK + i
    inside = (i < BLOCK) & (at < numel)
    v = tl.load(values + at, mask=inside, other=0.0)
    if CORRECT:
        v = v + tl.load(residual + at, mask=inside, other=0.0)
    # as integers magnitudes keep their order, and NaN wins
    largest = tl.max(v.to(tl.int32, bitcast=True) & _MAGNITUDE, 0).to(tl.float32, bitcast=True)
    scale = tl.where(largest < smallest, smallest, largest) * share
    tl.store(scales + row, scale)
    all_round = tl.full((TILE,), _ROUND, tl.float32)
    rounded = _add_product(all_round, v, tl.div_rn(1.0, scale), FUSED)
    tl.store(codes + at, rounded.to(tl.int32, bitcast=True).to(tl.int8), mask=inside)
    if SUBTRACT:
        v = _add_product(v, rounded - _ROUND, -scale, FUSED)
    if CORRECT or SUBTRACT:
        tl.store(left + at, v, mask=inside)


@triton.jit
def _take_magnitudes(
    values,
    residual,
    left,
    magnitudes,
    signs,
    numel,
    CORRECT: tl.constexpr,  # noqa: N803
    SIGNS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < numel
    v = tl.load(values + at, mask=inside)
    if CORRECT:
        v = v + tl.load(residual + at, mask=inside)
        tl.store(left + at, v, mask=inside)
    tl.store(magnitudes + at, tl.abs(v), mask=inside)
    if SIGNS:
        tl.store(signs + at, (v.to(tl.int32, bitcast=True) >> 31).to(tl.int8), mask=inside)


@triton.jit
def _multiply_blocks(values, factors, out, numel, BLOCK: tl.constexpr, TILE: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < numel
    factor = tl.load(factors + at // BLOCK, mask=inside)
    tl.store(out + at, tl.load(values + at, mask=inside) * factor, mask=inside)


@triton.jit
def _round_to_ternary(
    values,
    factors,
    codes,
    numel,
    BLOCK: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    FUSED: tl.constexpr,  # noqa: N803
):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < numel
    v = tl.load(values + at, mask=inside, other=0.0)
    factor = tl.load(factors + at // BLOCK, mask=inside, other=0.0)
    rounded = _add_product(tl.full((TILE,), _ROUND, tl.float32), v, factor, FUSED)
    low, high = _ROUND - 1.0, _ROUND + 1.0  # a NaN is neither below nor above
    rounded = tl.where(rounded < low, low, tl.where(rounded > high, high, rounded))
    tl.store(codes + at, rounded.to(tl.int32, bitcast=True).to(tl.int8), mask=inside)


@triton.jit
def _pack_digits(
    codes,
    packed,
    numel,
    length,
    BASE: tl.constexpr,  # noqa: N803
    PER_BYTE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < length
    number = tl.zeros((TILE,), tl.int32)
    for k in tl.static_range(PER_BYTE):
        place = (PER_BYTE - 1 - k) * length + at
        number = number * BASE + tl.load(codes + place, mask=inside & (place < numel), other=0).to(tl.int32)
    tl.store(packed + at, number.to(tl.int8), mask=inside)


@triton.jit
def _unpack_digits(
    packed,
    scales,
    addend,
    number,
    values,
    numel,
    length,
    BASE: tl.constexpr,  # noqa: N803
    PER_BYTE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    ADD: tl.constexpr,  # noqa: N803
    FUSED: tl.constexpr,  # noqa: N803
):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < length
    rest = tl.load(packed + at, mask=inside, other=0).to(tl.float32)
    for k in tl.static_range(PER_BYTE):
        place = k * length + at
        ours = inside & (place < numel)
        digit = rest
        if k + 1 < PER_BYTE:
            rest = _rounded(digit * (1.0 / BASE))
            digit = digit - rest * BASE
        scale = tl.load(scales + place // BLOCK, mask=ours, other=0.0)
        v = tl.load(addend + place, mask=ours, other=0.0) if ADD else tl.full((TILE,), number, tl.float32)
        tl.store(values + place, _add_product(v, digit, scale, FUSED), mask=ours)


@triton.jit
def _pack_signs(signs, packed, numel, length, TILE: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < length
    byte = tl.zeros((TILE,), tl.int32)
    for k in tl.static_range(8):
        place = k * length + at
        byte = byte | (tl.load(signs + place, mask=inside & (place < numel), other=0).to(tl.int32) & (1 << k))
    tl.store(packed + at, byte.to(tl.uint8), mask=inside)


@triton.jit
def _subtract_difference(values, minuends, subtrahends, numel, TILE: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < numel
    difference = tl.load(minuends + at, mask=inside) - tl.load(subtrahends + at, mask=inside)
    tl.store(values + at, tl.load(values + at, mask=inside) - difference, mask=inside)


@triton.jit
def _unpack_signs(
    packed,
    scales,
    addend,
    number,
    values,
    numel,
    length,
    BLOCK: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    ADD: tl.constexpr,  # noqa: N803
    FUSED: tl.constexpr,  # noqa: N803
):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < length
    byte = tl.load(packed + at, mask=inside, other=0).to(tl.int32)
    for k in tl.static_range(8):
        place = k * length + at
        ours = inside & (place < numel)
        sign = 1.0 - 2.0 * ((byte >> k) & 1).to(tl.float32)
        scale = tl.load(scales + place // BLOCK, mask=ours, other=0.0)
        v = tl.load(addend + place, mask=ours, other=0.0) if ADD else tl.full((TILE,), number, tl.float32)
        tl.store(values + place, _add_product(v, sign, scale, FUSED), mask=ours)


class TritonKernels:
    """See `Kernels`. For tensors on one device."""

    bears_nonfinite = True
    at_random = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._fused = rounds_once(device)

    def quantise_by_largest(self, chunk: Chunk, levels: int, smallest: float, scales: Tensor, codes: Tensor) -> bool:
        """See `Kernels`."""
        residual = chunk.values if chunk.residual is None else chunk.residual
        self._launch(
            _quantise_by_largest,
            len(scales),
            *(chunk.values, residual, chunk.left, scales, codes),
            *(chunk.values.numel(), 1.0 / levels, smallest),
            BLOCK=chunk.block,
            TILE=triton.next_power_of_2(chunk.block),
            CORRECT=chunk.residual is not None,
            SUBTRACT=chunk.subtract,
            FUSED=self._fused,
        )
        return True

    def take_magnitudes(self, chunk: Chunk, magnitudes: Tensor, signs: Tensor | None = None) -> None:
        """See `Kernels`."""
        numel, residual = chunk.values.numel(), chunk.values if chunk.residual is None else chunk.residual
        tensors = (chunk.values, residual, chunk.left, magnitudes, magnitudes if signs is None else signs)
        how = {"CORRECT": chunk.residual is not None, "SIGNS": signs is not None, "TILE": TILE}
        self._launch(_take_magnitudes, triton.cdiv(numel, TILE), *tensors, numel, **how)

    def multiply_blocks(self, values: Tensor, factors: Tensor, block: int, out: Tensor) -> None:
        """See `Kernels`."""
        numel = values.numel()
        self._launch(_multiply_blocks, triton.cdiv(numel, TILE), values, factors, out, numel, BLOCK=block, TILE=TILE)

    def round_to_ternary(self, values: Tensor, factors: Tensor, block: int, codes: Tensor) -> None:
        """See `Kernels`."""
        numel, how = values.numel(), {"BLOCK": block, "TILE": TILE, "FUSED": self._fused}
        self._launch(_round_to_ternary, triton.cdiv(numel, TILE), values, factors, codes, numel, **how)

    def pack_digits(self, codes: Tensor, base: int, packed: Tensor) -> None:
        """See `Kernels`."""
        length, numel = len(packed), codes.numel()
        how = {"BASE": base, "PER_BYTE": -(-numel // length), "TILE": TILE}
        integers = packed.view(torch.int8)
        self._launch(_pack_digits, triton.cdiv(length, TILE), codes, integers, numel, length, **how)

    def unpack_digits(
        self,
        packed: Tensor,
        base: int,
        per_byte: int,
        scales: Tensor,
        block: int,
        values: Tensor,
        workspace: Workspace,
        *,
        onto: Tensor | float,
    ) -> None:
        """See `Kernels`."""
        sizes, addend = (values.numel(), len(packed)), _as_addend(onto, values)
        how = {"BASE": base, "PER_BYTE": per_byte, "BLOCK": block, **self._sums(onto)}
        tensors = (packed.view(torch.int8), scales, *addend, values)
        self._launch(_unpack_digits, triton.cdiv(len(packed), TILE), *tensors, *sizes, **how)

    def pack_signs(self, signs: Tensor, packed: Tensor) -> None:
        """See `Kernels`."""
        sizes = (signs.numel(), len(packed))
        self._launch(_pack_signs, triton.cdiv(len(packed), TILE), signs, packed, *sizes, TILE=TILE)

    def unpack_signs(self, packed: Tensor, scales: Tensor, block: int, values: Tensor, *, onto: Tensor | float) -> None:
        """See `Kernels`."""
        sizes, addend = (values.numel(), len(packed)), _as_addend(onto, values)
        tensors = (packed, scales, *addend, values)
        self._launch(_unpack_signs, triton.cdiv(len(packed), TILE), *tensors, *sizes, BLOCK=block, **self._sums(onto))

    def subtract_difference(self, values: Tensor, minuends: Tensor, subtrahends: Tensor) -> None:
        """See `Kernels`."""
        numel, tensors = values.numel(), (values, minuends, subtrahends)
        self._launch(_subtract_difference, triton.cdiv(numel, TILE), *tensors, numel, TILE=TILE)

    def _sums(self, onto: Tensor | float) -> dict[str, object]:
        """How a product is added to that."""
        return {"TILE": TILE, "ADD": not isinstance(onto, float), "FUSED": self._fused}

    def _launch(self, kernel: object, programs: int, *arguments: object, **constants: object) -> None:
        """On the stream that torch's operations would take."""
        run = kernel[(programs,)]  # type: ignore[index]
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                run(*arguments, **constants, **OPTIONS)
        else:
            run(*arguments, **constants)


def _as_addend(onto: Tensor | float, values: Tensor) -> tuple[Tensor, float]:
    """A tensor, and a number; whichever it is not is not looked at."""
    return (values, onto) if isinstance(onto, float) else (onto, 0.0)


def rounds_once(device: torch.device) -> bool:
    """Whether torch's addcmul, of float32, rounds its sum alone there, and not its product as well."""
    factor = torch.full((67,), 1.0 + 2.0**-12, device=device)  # some vectors, and a rest
    sums = torch.addcmul(-torch.ones_like(factor), factor, factor)
    return bool((sums == 2.0**-11 + 2.0**-24).all())  # else 2^-11


def differ_from_torch(kernels: TritonKernels, device: torch.device) -> list[str]:
    """Names of kernels that do not say here what torch says of a few thousand values: none, where all is well."""
    block, numel, generator = 640, 3000, torch.Generator().manual_seed(0)
    values, before = torch.randn(2, numel, generator=generator).to(device)
    scales, codes = values.new_empty(-(-numel // block)), values.new_empty(numel, dtype=torch.int8)
    by_value = torch.arange(numel, device=device) // block
    kernels.quantise_by_largest(Chunk(values, before, left := values.clone(), block, False), 7, 1e-30, scales, codes)
    workspace = Workspace(Context(0, 1, 0), Bucket(values, Layout(("values",), ((numel,),))), numel)
    both = values + before
    padded = torch.nn.functional.pad(both, (0, len(scales) * block - numel)).view(-1, block)
    expected_scales = padded.abs().amax(1).mul_(1.0 / 7)
    rounded = torch.addcmul(torch.full_like(both, ROUND), both, expected_scales.reciprocal()[by_value])
    expected_codes = rounded.view(torch.int32).to(torch.int8)
    grown, signed = both.clone(), both.clone()
    packed, signs = (torch.empty(-(-numel // n), dtype=torch.uint8, device=device) for n in (2, 8))
    magnitudes, negative = torch.empty_like(both), torch.empty_like(codes)
    kernels.pack_digits(codes, 16, packed)
    kernels.unpack_digits(packed, 16, 2, scales, block, grown, workspace, onto=grown)
    kernels.take_magnitudes(Chunk(both, None, both, block, False), magnitudes, negative)
    kernels.pack_signs(negative, signs)
    kernels.unpack_signs(signs, scales, block, signed, onto=signed)
    of_values = scales[by_value]
    sign = 1.0 - 2.0 * torch.signbit(both).to(torch.float32)
    pairs = {
        "quantise_by_largest": (torch.cat((left, scales, codes)), torch.cat((both, expected_scales, expected_codes))),
        "unpack_digits": (grown, torch.addcmul(both, codes.to(torch.float32), of_values)),
        "unpack_signs": (signed, torch.addcmul(both, sign, of_values)),
    }
    return [name for name, (found, expected) in pairs.items() if not torch.equal(found, expected)]
