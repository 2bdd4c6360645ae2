"""The range coder: arrays of symbols under given probabilities, in one stream of bytes.

An encoder and a decoder have the same three methods. Each takes the model and, from an encoder's caller, the symbols,
and returns the symbols. So a codec is written once: one function that codes what it is given or finds out what it was.

Decoding must give the same weights on every machine, so a probability may depend only on operations that IEEE 754 fixes
to the last bit: elementwise arithmetic, and sums of integers that a float64 holds exactly. exp, log and BLAS on
fractions are out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

_WORD = np.dtype("<u4")


class Coder(Protocol):
    """What a codec sees of an encoder or a decoder. `known` is None when decoding."""

    def bits(self, probabilities: Floats, known: Ints | None) -> Ints:
        """One bit for each probability of a one."""
        ...

    def symbols(self, counts: NDArray[np.int64], size: int, known: Ints | None) -> Ints:
        """`size` symbols from 0 to len(counts) - 1, each with a probability as its count."""
        ...

    def number(self, num_bits: int, known: int | None) -> int:
        """An integer below 2**num_bits, all of them equally likely."""
        ...


class Encoder:
    """Codes what it is told."""

    def __init__(self) -> None:
        self._coder = _stream().queue.RangeEncoder()

    def bits(self, probabilities: Floats, known: Ints | None) -> Ints:
        assert known is not None
        self._coder.encode(known, _bernoulli(), probabilities)
        return known

    def symbols(self, counts: NDArray[np.int64], size: int, known: Ints | None) -> Ints:
        assert known is not None
        assert len(known) == size
        if len(counts) > 1:
            self._coder.encode(known, _categorical(counts))
        return known

    def number(self, num_bits: int, known: int | None) -> int:
        assert known is not None
        assert 0 <= known < 1 << num_bits
        for shift in range(0, num_bits, 8):
            self.symbols(_flat(num_bits - shift), 1, np.array([known >> shift & 255], np.int32))
        return known

    def finish(self) -> bytes:
        """Everything that was coded: whole 32-bit little-endian words."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype(_WORD).tobytes()


class Decoder:
    """Finds out what was coded. Bytes that no encoder wrote give some symbols, or ValueError."""

    def __init__(self, data: bytes) -> None:
        if len(data) % _WORD.itemsize:
            raise ValueError("a section that is not whole words")
        self._coder = _stream().queue.RangeDecoder(np.frombuffer(data, _WORD).astype(np.uint32))

    def bits(self, probabilities: Floats, known: Ints | None) -> Ints:
        return self._decode(_bernoulli(), probabilities)

    def symbols(self, counts: NDArray[np.int64], size: int, known: Ints | None) -> Ints:
        if len(counts) == 1:
            return np.zeros(size, np.int32)
        return self._decode(_categorical(counts), size)

    def number(self, num_bits: int, known: int | None) -> int:
        return sum(int(self.symbols(_flat(num_bits - shift), 1, None)[0]) << shift for shift in range(0, num_bits, 8))

    def _decode(self, *arguments: Any) -> Ints:
        try:
            symbols: Ints = self._coder.decode(*arguments)
        except AssertionError:
            raise ValueError("a section that no encoder wrote") from None
        return symbols


class HuffmanEncoder:
    """Symbols by the Huffman codes of their probabilities."""

    def __init__(self) -> None:
        self._coder = _symbol().QueueEncoder()

    def symbols(self, probabilities: Floats, known: Sequence[int]) -> None:
        tree = _symbol().huffman.EncoderHuffmanTree(probabilities)
        for symbol in known:
            self._coder.encode_symbol(symbol, tree)

    def finish(self) -> bytes:
        """As `Encoder.finish`."""
        words: NDArray[np.uint32] = self._coder.get_compressed()[0]
        return words.astype(_WORD).tobytes()


class HuffmanDecoder:
    """The same symbols, or ValueError where there are not as many."""

    def __init__(self, data: bytes) -> None:
        if len(data) % _WORD.itemsize:
            raise ValueError("a section that is not whole words")
        self._coder = _symbol().QueueDecoder(np.frombuffer(data, _WORD).astype(np.uint32))

    def symbols(self, probabilities: Floats, size: int) -> NDArray[np.int64]:
        tree = _symbol().huffman.DecoderHuffmanTree(probabilities)
        try:
            return np.fromiter((self._coder.decode_symbol(tree) for _ in range(size)), np.int64, size)
        except ValueError:
            raise ValueError("a section that no encoder wrote") from None


def _stream() -> Any:
    """Imported here, and not above: pruning, and reports of runs without packed models, do without."""
    import constriction

    return constriction.stream


def _symbol() -> Any:
    import constriction

    return constriction.symbol


@cache
def _bernoulli() -> Any:
    return _stream().model.Bernoulli(perfect=False)


def _flat(num_bits: int) -> NDArray[np.int64]:
    return np.ones(1 << min(num_bits, 8), np.int64)


def _categorical(counts: NDArray[np.int64]) -> Any:
    return _stream().model.Categorical(counts.astype(np.float64), perfect=False)
