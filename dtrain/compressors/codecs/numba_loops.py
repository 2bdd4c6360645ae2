"""What blocks and sparse formats do, as loops that numba compiles, for contiguous float32 on a CPU.

Results are those of the torch code in whose place each is called, bit for bit: products that torch adds without
rounding them first go through `_fma`, and what torch adds up in an order of its own (means, norms) is left to torch. A
kernel that meets NaN or infinity says so and what it wrote is not used: torch does the message again.

Arguments are arrays that share memory with tensors. Numba keeps the machine code on disk: beside this file, or in the
user's cache, or in NUMBA_CACHE_DIR. All is in one file, since numba looks at a kernel's own file alone for changes.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir
from numba import njit, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

Floats: TypeAlias = npt.NDArray[np.float32]
Codes: TypeAlias = npt.NDArray[np.int8]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Integers: TypeAlias = npt.NDArray[np.int32]
Draws: TypeAlias = npt.NDArray[np.int16]
Numbers: TypeAlias = npt.NDArray[np.uint32]
Words: TypeAlias = npt.NDArray[np.uint64]
Indices: TypeAlias = npt.NDArray[np.int64]
Doubles: TypeAlias = npt.NDArray[np.float64]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)
_NAN = np.int32(0x7F800001)
_PEAK_BLOCK = 64
"""Elements that are looked at one by one where their largest magnitude is large."""
_ROUND = np.float32(1.5 * 2.0**23)
_ONE, _TWO = np.float32(1.0), np.float32(2.0)
_NOISE = np.float32(2.0**-16)
TWISTER_NUMBERS = 624
"""In the state of the Mersenne Twister."""
_TWISTER_MIDDLE = 397
_LIMB_BITS = 30
_LIMB = (1 << _LIMB_BITS) - 1

_PROCESSOR = blake2b(f"{binding.get_host_cpu_name()} {get_host_cpu_features()}".encode(), digest_size=4).hexdigest()


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile it when it is first called, without Python's lock, and keep the machine code for this kind of processor.

    Numba looks for machine code by processor, but hosts that share a folder and write at once may give theirs the same
    file name; that is made of `__qualname__`.
    """
    function.__qualname__ += f".{_PROCESSOR}"
    return njit(cache=True, nogil=True)(function)


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
def quantise_at_random(
    values: Floats, draws: Draws, levels: int, smallest: float, block: int, scales: Floats, codes: Codes
) -> bool:
    """`quantise_by_largest`, rounded up with the probability of the fraction."""
    share, least, limit = np.float32(1.0 / levels), np.float32(smallest), np.float32(levels)
    for row in range(scales.size):
        start, stop = row * block, min((row + 1) * block, values.size)
        v, draw, code = values[start:stop], draws[start:stop], codes[start:stop]
        largest = np.int32(0)
        for i in range(v.size):
            largest = max(largest, np.int32(_bits(v[i]) & _MAGNITUDE))
        if largest >= _INFINITY:
            return False
        scale = max(_from_bits(largest), least) * share
        scales[row] = scale
        inverse = _ONE / scale
        for i in range(v.size):
            noise = np.float32(np.int16(draw[i] | np.int16(1))) * _NOISE
            code[i] = _bits((min(max(v[i] * inverse, -limit), limit) + noise) + _ROUND)
    return True


@_compiled
def divide_by_largest(values: Floats, smallest: float, block: int, scales: Floats, out: Floats) -> bool:
    """Of each block scale = max|v| and out = v / scale. False where a value is not finite."""
    least = np.float32(smallest)
    for row in range(scales.size):
        start, stop = row * block, min((row + 1) * block, values.size)
        v, quotient = values[start:stop], out[start:stop]
        largest = np.int32(0)
        for i in range(v.size):
            largest = max(largest, np.int32(_bits(v[i]) & _MAGNITUDE))
        if largest >= _INFINITY:
            return False
        scale = max(_from_bits(largest), least)
        scales[row] = scale
        inverse = _ONE / scale
        for i in range(v.size):
            quotient[i] = v[i] * inverse
    return True


@_compiled
def round_to_ternary_at_random(values: Floats, factors: Floats, draws: Draws, block: int, codes: Codes) -> None:
    """`round_to_ternary`, rounded away from 0 with the probability of the fraction."""
    for row in range(factors.size):
        start, stop = row * block, min((row + 1) * block, values.size)
        v, draw, code, factor = values[start:stop], draws[start:stop], codes[start:stop], factors[row]
        for i in range(v.size):
            noise = np.float32(np.int16(draw[i] | np.int16(1))) * _NOISE
            code[i] = _bits((min(max(v[i] * factor, -_ONE), _ONE) + noise) + _ROUND)


@_compiled
def subtract_difference(values: Floats, minuends: Floats, subtrahends: Floats) -> None:
    """Values become less by minuends - subtrahends, each difference rounded."""
    for i in range(values.size):
        values[i] = values[i] - (minuends[i] - subtrahends[i])


@_compiled
def correct_and_take_magnitudes(values: Floats, before: Floats, left: Floats, magnitudes: Floats) -> None:
    """left = values + before, and its magnitudes."""
    for i in range(values.size):
        both = values[i] + before[i]
        left[i] = both
        magnitudes[i] = abs(both)


@_compiled
def take_magnitudes_and_signs(values: Floats, before: Floats, left: Floats, magnitudes: Floats, signs: Codes) -> None:
    """Magnitudes, and -1 for what is negative, else 0; of left = values + before, unless `before` is empty."""
    if before.size > 0:
        for i in range(values.size):
            both = values[i] + before[i]
            left[i] = both
            magnitudes[i] = abs(both)
            signs[i] = np.int32(_bits(both) >> np.int32(31))
    else:
        for i in range(values.size):
            magnitudes[i] = abs(values[i])
            signs[i] = np.int32(_bits(values[i]) >> np.int32(31))


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
    packed: Codes,
    base: int,
    per_byte: int,
    rest: Floats,
    scales: Floats,
    block: int,
    before: Floats,
    number: float,
    grow: bool,
    values: Floats,
) -> None:
    """Values become codes * scales + x, rounded once. `rest`, as long as `packed`, is used unless codes are bytes.

    x are the values themselves where they `grow`, else `before`, or the `number` where that is empty.
    """
    length, inverse, minus_base = packed.size, np.float32(1.0 / base), np.float32(-base)
    first, onto = np.float32(number), before.size > 0
    if per_byte == 1:
        for row in range(scales.size):
            start, stop = row * block, min((row + 1) * block, values.size)
            bytes_, v, b, scale = packed[start:stop], values[start:stop], before[start:stop], scales[row]
            for i in range(v.size):
                x = v[i] if grow else (b[i] if onto else first)
                v[i] = _fma(np.float32(bytes_[i]), scale, x)
        return
    for i in range(length):
        rest[i] = packed[i]
    for k in range(per_byte):
        begin, end = k * length, min((k + 1) * length, values.size)
        start = begin
        while start < end:
            row = start // block
            stop = min((row + 1) * block, end)
            digits, v, b, scale = (
                rest[start - begin : stop - begin],
                values[start:stop],
                before[start:stop],
                scales[row],
            )
            start = stop
            if k + 1 < per_byte and grow:  # apart, or the loops are no vectors
                for i in range(v.size):
                    following = np.float32(np.rint(digits[i] * inverse))
                    v[i] = _fma(_fma(following, minus_base, digits[i]), scale, v[i])
                    digits[i] = following
            elif k + 1 < per_byte and onto:
                for i in range(v.size):
                    following = np.float32(np.rint(digits[i] * inverse))
                    v[i] = _fma(_fma(following, minus_base, digits[i]), scale, b[i])
                    digits[i] = following
            elif k + 1 < per_byte:
                for i in range(v.size):
                    following = np.float32(np.rint(digits[i] * inverse))
                    v[i] = _fma(_fma(following, minus_base, digits[i]), scale, first)
                    digits[i] = following
            elif grow:
                for i in range(v.size):
                    v[i] = _fma(digits[i], scale, v[i])
            elif onto:
                for i in range(v.size):
                    v[i] = _fma(digits[i], scale, b[i])
            else:
                for i in range(v.size):
                    v[i] = _fma(digits[i], scale, first)


@_compiled
def pack_signs(signs: Codes, packed: Codes) -> None:
    """Bit k of byte i is that of sign k len(packed) + i, which is -1 or 0."""
    packed[:] = 0
    for k in range(-(-signs.size // packed.size)):
        row, bit = signs[k * packed.size : (k + 1) * packed.size], np.int8(-128 if k == 7 else 1 << k)
        for i in range(row.size):
            packed[i] |= np.int8(row[i] & bit)


@_compiled
def unpack_signs(
    packed: Bytes, scales: Floats, block: int, before: Floats, number: float, grow: bool, values: Floats
) -> None:
    """`unpack_digits` of 1 and -1."""
    first, onto = np.float32(number), before.size > 0
    for k in range(-(-values.size // packed.size)):
        begin, end = k * packed.size, min((k + 1) * packed.size, values.size)
        shift = np.uint8(k)
        start = begin
        while start < end:
            row = start // block
            stop = min((row + 1) * block, end)
            signs, v, b, scale = (
                packed[start - begin : stop - begin],
                values[start:stop],
                before[start:stop],
                scales[row],
            )
            start = stop
            for i in range(v.size):
                x = v[i] if grow else (b[i] if onto else first)
                v[i] = _fma(_ONE - _TWO * np.float32((signs[i] >> shift) & np.uint8(1)), scale, x)


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


@_compiled
def encode_logarithms(patterns: Integers, value_bits: int, data: Bytes) -> None:
    """See `log_values`: 8 or 16 bits for each of these bit patterns, then the largest magnitude and the shift."""
    zero = (1 << (value_bits - 1)) - 1
    top, least = np.int64(0), np.int64(_MAGNITUDE)
    for pattern in patterns:
        magnitude = np.int64(pattern & _MAGNITUDE)
        top = max(top, magnitude)
        if magnitude > 0:
            least = min(least, magnitude)
    spread, shift = top - min(least, top), 0
    while (spread >> shift) + 2 > zero:
        shift += 1
    half = (1 << shift) >> 1
    for i in range(patterns.size):
        magnitude = np.int64(patterns[i] & _MAGNITUDE)
        code = zero if magnitude == 0 else (top - magnitude + half) >> shift
        if patterns[i] < 0:
            code |= zero + 1
        if value_bits == 8:
            data[i] = np.uint8(code)
        else:
            data[2 * i], data[2 * i + 1] = np.uint8(code & 255), np.uint8(code >> 8)
    end = patterns.size * value_bits // 8
    for i in range(4):
        data[end + i] = np.uint8((top >> (8 * i)) & 255)
    data[end + 4] = np.uint8(shift)


@_compiled
def decode_logarithms(data: Bytes, value_bits: int, patterns: Integers) -> None:
    """The bit patterns that one row stands for."""
    zero, end = (1 << (value_bits - 1)) - 1, patterns.size * value_bits // 8
    bits = np.int64(0)
    for i in range(4):
        bits |= np.int64(data[end + i]) << (8 * i)
    top, shift = np.int64(np.int32(bits)), np.int64(data[end + 4] & 31)
    for i in range(patterns.size):
        code = np.int64(data[i]) if value_bits == 8 else np.int64(data[2 * i]) | np.int64(data[2 * i + 1]) << 8
        level = code & zero
        magnitude = np.int64(0) if level == zero else max(top - (level << shift), np.int64(0))
        patterns[i] = np.int32(magnitude | ((code >> (value_bits - 1)) << 31))


@_compiled
def choose_in_chunks(values: Floats, chunk: int, k: int, magnitudes: Integers, indices: Indices) -> None:
    """Which k of each chunk are the largest, ascending; -1 in place of the first where that is not certain.

    It is not where there is a NaN, or equal ones of which only some are among the k. `magnitudes` is spare, of the size
    of a chunk.
    """
    for row in range(values.size // chunk):
        v = values[row * chunk : (row + 1) * chunk]
        peak = np.int32(0)
        for i in range(chunk):
            magnitude = np.int32(_bits(v[i]) & _MAGNITUDE)
            magnitudes[i] = magnitude
            peak = max(peak, magnitude)
        low, high = (
            np.int64(0),
            np.int64(np.int64(peak) + 1),
        )  # at least k are `low` or more, and fewer are `high` or more
        count = np.int64(chunk)
        while count != k and high - low > 1:
            middle = (low + high) >> 1
            threshold, at_least = np.int32(middle), np.int32(0)
            for i in range(chunk):
                at_least = np.int32(at_least + np.int32(magnitudes[i] >= threshold))
            if at_least >= k:
                low, count = middle, np.int64(at_least)
            else:
                high = middle
        if count != k or peak > _INFINITY:
            indices[row * k] = -1
            continue
        threshold, found = np.int32(low), row * k
        for i in range(chunk):
            if magnitudes[i] >= threshold:
                indices[found] = i
                found += 1


@_compiled
def encode_combinations(indices: Indices, k: int, limbs: Indices, numel: int, num_limbs: int, data: Bytes) -> None:
    """See `combinations`: a number for each k ascending indices. `limbs` is the table, flat, and `data` the rows."""
    rows = indices.size // k
    size = data.size // rows
    numbers = np.zeros(rows * num_limbs, np.int64)
    for i in range(k):
        for row in range(rows):
            at = (i * numel + indices[row * k + i]) * num_limbs
            for limb in range(num_limbs):
                numbers[row * num_limbs + limb] += limbs[at + limb]
    for row in range(rows):
        held, num_held, over, at = np.int64(0), 0, np.int64(0), row * size
        for limb in range(num_limbs):
            over += numbers[row * num_limbs + limb]
            held |= (over & _LIMB) << num_held
            over >>= _LIMB_BITS
            num_held += _LIMB_BITS
            while num_held >= 8 and at < (row + 1) * size:
                data[at] = np.uint8(held & 255)
                held >>= 8
                num_held -= 8
                at += 1
        if at < (row + 1) * size:
            data[at] = np.uint8(held & 255)


@_compiled
def decode_combinations(
    data: Bytes, k: int, limbs: Indices, rounded: Doubles, numel: int, num_limbs: int, indices: Indices
) -> bool:
    """The reverse. False where a row is not the number of a combination."""
    rows = indices.size // k
    size = data.size // rows
    numbers = np.zeros(rows * num_limbs, np.int64)
    for row in range(rows):
        held, num_held, limb = np.int64(0), 0, row * num_limbs
        for i in range(row * size, (row + 1) * size):
            held |= np.int64(data[i]) << num_held
            num_held += 8
            if num_held >= _LIMB_BITS:
                numbers[limb] = held & _LIMB
                held >>= _LIMB_BITS
                num_held -= _LIMB_BITS
                limb += 1
        numbers[limb] = held
    for i in range(k - 1, -1, -1):
        for row in range(rows):
            number = numbers[row * num_limbs : (row + 1) * num_limbs]
            about = 0.0
            for limb in range(num_limbs - 1, -1, -1):
                about = about * 2.0**_LIMB_BITS + number[limb]
            low, high = 0, numel if i == k - 1 else indices[row * k + i + 1]
            while high - low > 1:
                middle = (low + high) >> 1
                if rounded[i * numel + middle] <= about:
                    low = middle
                else:
                    high = middle
            end = numel if i == k - 1 else indices[row * k + i + 1]
            while low + 1 < end and not _is_less(number, limbs, (i * numel + low + 1) * num_limbs):
                low += 1
            while low > 0 and _is_less(number, limbs, (i * numel + low) * num_limbs):
                low -= 1
            if low >= end:
                return False
            indices[row * k + i] = low
            at, over = (i * numel + low) * num_limbs, np.int64(0)
            for limb in range(num_limbs):
                over += number[limb] - limbs[at + limb]
                number[limb] = over & _LIMB
                over >>= _LIMB_BITS
            if over < 0:
                return False
    return not numbers.any()


@_compiled
def _is_less(number: Indices, limbs: Indices, at: int) -> bool:
    """Whether it is less than the number in the table there."""
    for limb in range(number.size - 1, -1, -1):
        if number[limb] != limbs[at + limb]:
            return bool(number[limb] < limbs[at + limb])
    return False


@_compiled
def seed_twister(seed: np.uint32, state: Numbers) -> None:
    """The state that belongs to a seed."""
    number = np.uint32(seed)
    state[0] = number
    for i in range(1, state.size):
        number = np.uint32(np.uint32(1812433253) * np.uint32(number ^ (number >> np.uint32(30))) + np.uint32(i))
        state[i] = number


@_compiled
def draw_words(state: Numbers, following: Numbers, drawn: Words, used: int, out: Words) -> int:
    """The next words of 64 bits: two numbers each, the first above the second.

    `drawn` holds those made last, of which so many are `used`. `following` is spare. Returns how many are used then.
    """
    done = 0
    while done < out.size:
        if used == drawn.size:
            _twist(state, following)
            numbers = drawn.view(np.uint32)
            for i in range(numbers.size):
                numbers[i] = _tempered(state[i])
            for i in range(drawn.size):
                drawn[i] = (drawn[i] << np.uint64(32)) | (drawn[i] >> np.uint64(32))
            used = 0
        count = min(drawn.size - used, out.size - done)
        words, target = drawn[used : used + count], out[done : done + count]
        for i in range(count):
            target[i] = words[i]
        done += count
        used += count
    return used


@_compiled
def _twist(state: Numbers, following: Numbers) -> None:
    """The state that follows. In pieces that do not depend on themselves, so that they are vectors."""
    n, middle = TWISTER_NUMBERS, _TWISTER_MIDDLE
    rest = n - middle
    _recur(state[:rest], state[1 : rest + 1], state[middle:], following[:rest])
    _recur(state[rest : 2 * rest], state[rest + 1 : 2 * rest + 1], following[:rest], following[rest : 2 * rest])
    _recur(state[2 * rest : n - 1], state[2 * rest + 1 :], following[rest : middle - 1], following[2 * rest : n - 1])
    _recur(state[n - 1 :], following[:1], following[middle - 1 : middle], following[n - 1 :])
    for i in range(n):  # a slice is assigned at a quarter of the speed
        state[i] = following[i]


@_compiled
def _recur(upper: Numbers, lower: Numbers, middle: Numbers, out: Numbers) -> None:
    for i in range(out.size):
        mixed = np.uint32((upper[i] & np.uint32(0x80000000)) | (lower[i] & np.uint32(0x7FFFFFFF)))
        odd = np.uint32(np.uint32(0) - np.uint32(mixed & np.uint32(1)))
        out[i] = middle[i] ^ np.uint32(mixed >> np.uint32(1)) ^ np.uint32(odd & np.uint32(0x9908B0DF))


@_compiled
def _tempered(number: np.uint32) -> np.uint32:
    y = np.uint32(number ^ np.uint32(number >> np.uint32(11)))
    y = np.uint32(y ^ (np.uint32(y << np.uint32(7)) & np.uint32(0x9D2C5680)))
    y = np.uint32(y ^ (np.uint32(y << np.uint32(15)) & np.uint32(0xEFC60000)))
    return np.uint32(y ^ np.uint32(y >> np.uint32(18)))
