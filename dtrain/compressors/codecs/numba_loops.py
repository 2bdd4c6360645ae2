"""What blocks and sparse formats do, as loops that numba compiles, for contiguous float32 on a CPU.

Results are those of the torch code in whose place each is called, bit for bit: products that torch adds without
rounding them first go through `_fma`, and what torch adds up in an order of its own (means, norms) is left to torch. A
kernel that meets NaN or infinity says so and what it wrote is not used: torch does the message again.

Arguments are arrays that share memory with tensors. Numba keeps the machine code on disk: beside this file, or in the
user's cache, or in NUMBA_CACHE_DIR. All is in one file, since numba looks at a kernel's own file alone for changes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Floats: TypeAlias = npt.NDArray[np.float32]
Codes: TypeAlias = npt.NDArray[np.int8]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Integers: TypeAlias = npt.NDArray[np.int32]
Indices: TypeAlias = npt.NDArray[np.int64]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)
_NAN = np.int32(0x7F800001)
_PEAK_BLOCK = 64
"""Elements that are looked at one by one where their largest magnitude is large."""
_ROUND = np.float32(1.5 * 2.0**23)
_ONE, _TWO = np.float32(1.0), np.float32(2.0)

_compiled = njit(cache=True, nogil=True)


def _bitcast(to: Any, from_: Any, llvm: ir.Type) -> Any:
    @intrinsic
    def bitcast(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm)

        return to(from_), generate

    return bitcast


_bits = _bitcast(types.int32, types.float32, ir.IntType(32))
_from_bits = _bitcast(types.float32, types.int32, ir.FloatType())


@intrinsic
def _fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z of float32, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        single = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.fma", (single,), ir.FunctionType(single, [single] * 3))
        return builder.call(function, arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@_compiled
def quantise_by_largest(
    values: Floats, levels: int, smallest: float, block: int, scales: Floats, codes: Codes, subtract: bool
) -> bool:
    """Of each block scale = max|v| / levels and codes = v / scale, to the nearest. False where a value is not finite.

    `subtract`: from the values what their codes stand for.
    """
    share, least = np.float32(1.0 / levels), np.float32(smallest)
    for row in range(scales.size):
        start, stop = row * block, min((row + 1) * block, values.size)
        v, code = values[start:stop], codes[start:stop]
        largest = np.int32(0)
        for i in range(v.size):
            largest = max(largest, np.int32(_bits(v[i]) & _MAGNITUDE))
        if largest >= _INFINITY:
            return False
        scale = max(_from_bits(largest), least) * share
        inverse, minus = _ONE / scale, -scale
        scales[row] = scale
        if subtract:
            for i in range(v.size):
                rounded = _fma(v[i], inverse, _ROUND)
                code[i] = _bits(rounded)
                v[i] = _fma(rounded - _ROUND, minus, v[i])
        else:
            for i in range(v.size):
                code[i] = _bits(_fma(v[i], inverse, _ROUND))
    return True


@_compiled
def correct_and_quantise(
    values: Floats,
    before: Floats,
    left: Floats,
    levels: int,
    smallest: float,
    block: int,
    scales: Floats,
    codes: Codes,
    subtract: bool,
) -> bool:
    """`quantise_by_largest` of left = values + before."""
    for row in range(scales.size):
        start, stop = row * block, min((row + 1) * block, values.size)
        now, old, both = values[start:stop], before[start:stop], left[start:stop]
        for i in range(both.size):
            both[i] = now[i] + old[i]
        if not quantise_by_largest(both, levels, smallest, block, scales[row : row + 1], codes[start:stop], subtract):
            return False
    return True


@_compiled
def correct_and_take_magnitudes(values: Floats, before: Floats, left: Floats, magnitudes: Floats) -> None:
    """left = values + before, and its magnitudes."""
    for i in range(values.size):
        both = values[i] + before[i]
        left[i] = both
        magnitudes[i] = abs(both)


@_compiled
def multiply_blocks(values: Floats, factors: Floats, block: int, out: Floats) -> None:
    """Each block by a factor of its own."""
    for row in range(factors.size):
        start, stop = row * block, min((row + 1) * block, values.size)
        v, product, factor = values[start:stop], out[start:stop], factors[row]
        for i in range(v.size):
            product[i] = v[i] * factor


@_compiled
def round_to_ternary(values: Floats, factors: Floats, block: int, codes: Codes) -> None:
    """Codes are each block's values by a factor of its own, to the nearest of -1, 0 and 1."""
    low, high = _ROUND - _ONE, _ROUND + _ONE
    for row in range(factors.size):
        start, stop = row * block, min((row + 1) * block, values.size)
        v, code, factor = values[start:stop], codes[start:stop], factors[row]
        for i in range(v.size):
            code[i] = _bits(min(max(_fma(v[i], factor, _ROUND), low), high))


@_compiled
def pack_digits(codes: Codes, base: int, packed: Codes) -> None:
    """Byte i = sum over k of code[k len(packed) + i] base^k; codes may end before the last digits do, which are 0."""
    per_byte, factor = -(-codes.size // packed.size), np.int8(base)
    packed[:] = 0
    for k in range(per_byte - 1, -1, -1):
        row = codes[k * packed.size : (k + 1) * packed.size]
        for i in range(row.size):
            packed[i] = np.int8(packed[i] * factor) + row[i]
        for i in range(row.size, packed.size):
            packed[i] = np.int8(packed[i] * factor)


@_compiled
def unpack_digits(
    packed: Codes, base: int, per_byte: int, rest: Floats, scales: Floats, block: int, values: Floats, add: bool
) -> None:
    """Values become codes * scales, or grow by them. `rest`, as long as `packed`, is used unless codes are bytes."""
    length, inverse, minus_base = packed.size, np.float32(1.0 / base), np.float32(-base)
    if per_byte == 1:
        for row in range(scales.size):
            start, stop = row * block, min((row + 1) * block, values.size)
            bytes_, v, scale = packed[start:stop], values[start:stop], scales[row]
            if add:
                for i in range(v.size):
                    v[i] = _fma(np.float32(bytes_[i]), scale, v[i])
            else:
                for i in range(v.size):
                    v[i] = np.float32(bytes_[i]) * scale
        return
    for i in range(length):
        rest[i] = packed[i]
    for k in range(per_byte):
        first, end = k * length, min((k + 1) * length, values.size)
        start = first
        while start < end:
            row = start // block
            stop = min((row + 1) * block, end)
            digits, v, scale = rest[start - first : stop - first], values[start:stop], scales[row]
            start = stop
            if k + 1 < per_byte:
                if add:
                    for i in range(v.size):
                        following = np.float32(np.rint(digits[i] * inverse))
                        v[i] = _fma(_fma(following, minus_base, digits[i]), scale, v[i])
                        digits[i] = following
                else:
                    for i in range(v.size):
                        following = np.float32(np.rint(digits[i] * inverse))
                        v[i] = _fma(following, minus_base, digits[i]) * scale
                        digits[i] = following
            elif add:
                for i in range(v.size):
                    v[i] = _fma(digits[i], scale, v[i])
            else:
                for i in range(v.size):
                    v[i] = digits[i] * scale


@_compiled
def pack_signs(values: Floats, packed: Bytes) -> None:
    """Bit k of byte i is the sign of value k len(packed) + i."""
    packed[:] = 0
    for k in range(-(-values.size // packed.size)):
        row, bit = values[k * packed.size : (k + 1) * packed.size], np.int32(1 << k)
        for i in range(row.size):
            packed[i] |= np.uint8(np.int32(_bits(row[i]) >> np.int32(31)) & bit)


@_compiled
def unpack_signs(packed: Bytes, scales: Floats, block: int, values: Floats, add: bool) -> None:
    """Values become 1 or -1 times their block's scale, or grow by it."""
    for k in range(-(-values.size // packed.size)):
        first, end = k * packed.size, min((k + 1) * packed.size, values.size)
        shift = np.uint8(k)
        start = first
        while start < end:
            row = start // block
            stop = min((row + 1) * block, end)
            signs, v, scale = packed[start - first : stop - first], values[start:stop], scales[row]
            start = stop
            if add:
                for i in range(v.size):
                    v[i] = _fma(_ONE - _TWO * np.float32((signs[i] >> shift) & np.uint8(1)), scale, v[i])
            else:
                for i in range(v.size):
                    v[i] = (_ONE - _TWO * np.float32((signs[i] >> shift) & np.uint8(1))) * scale


@_compiled
def collect_large(values: Floats, least: int, indices: Indices, magnitudes: Integers) -> int:
    """Where magnitudes, as integers, are at least `least`, and what they are. Returns how many; -1: no room for all."""
    threshold, count = np.int32(least), 0
    for start in range(0, values.size, _PEAK_BLOCK):
        v = values[start : start + _PEAK_BLOCK]
        peak = np.int32(0)
        for i in range(v.size):
            peak = max(peak, np.int32(_bits(v[i]) & _MAGNITUDE))
        if peak < threshold:
            continue
        if count + _PEAK_BLOCK > indices.size:
            return -1
        for i in range(v.size):
            magnitude = min(np.int32(_bits(v[i]) & _MAGNITUDE), _NAN)
            indices[count] = start + i
            magnitudes[count] = magnitude
            count += int(magnitude >= threshold)
    return count


@_compiled
def encode_elias_fano(indices: Indices, low_bits: int, data: Bytes) -> None:
    """See `elias_fano`."""
    data[:] = 0
    at, held, num_held = 0, np.uint64(0), np.uint64(0)
    mask = (np.uint64(1) << np.uint64(low_bits)) - np.uint64(1)
    for index in indices:
        held |= (np.uint64(index) & mask) << num_held
        num_held += np.uint64(low_bits)
        while num_held >= np.uint64(8):
            data[at] = np.uint8(held & np.uint64(255))
            held >>= np.uint64(8)
            num_held -= np.uint64(8)
            at += 1
    if num_held > np.uint64(0):
        data[at] = np.uint8(held)
    first = indices.size * low_bits
    for i in range(indices.size):
        place = first + (indices[i] >> low_bits) + i
        data[place >> 3] |= np.uint8(1 << (place & 7))


@_compiled
def decode_elias_fano(data: Bytes, low_bits: int, high_bits: int, numel: int, indices: Indices) -> bool:
    """One row. False where it does not hold indices.size ascending indices below `numel`, and no more."""
    k = indices.size
    first, count = k * low_bits, 0
    for place in range(first, first + high_bits):
        if data[place >> 3] >> (place & 7) & 1:
            if count == k:
                return False
            indices[count] = (place - first - count) << low_bits
            count += 1
    if count < k:
        return False
    at, held, num_held = 0, np.uint64(0), np.uint64(0)
    mask = (np.uint64(1) << np.uint64(low_bits)) - np.uint64(1)
    before = -1
    for i in range(k):
        while num_held < np.uint64(low_bits):
            held |= np.uint64(data[at]) << num_held
            num_held += np.uint64(8)
            at += 1
        index = indices[i] + np.int64(held & mask)
        held >>= np.uint64(low_bits)
        num_held -= np.uint64(low_bits)
        if index <= before or index >= numel:
            return False
        indices[i] = before = index
    return True
