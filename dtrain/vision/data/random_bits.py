"""Randomness that is a function of a position, so that neither thread, batch size nor world size can change it.

A stateful generator gives what the order of its calls makes of it. Here draw number `p` of a stream is a hash of the
stream's key and `p`: any rank, worker or resumed run can compute just the draws that it needs, and all agree.
The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
section 4). It uses integers only, so its draws are the same with every numpy version and on every machine.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


class Stream(IntEnum):
    """What a draw is for; two streams with the same seed share nothing."""

    SHUFFLE = 1
    AUGMENT = 2
    SPLIT = 3
    PROTOTYPE = 4
    NOISE = 5


def random_bits(stream: Stream, *key: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for every position (>= 0) of the stream named by `stream` and the integers in `key`.

    The answer has the shape of `positions`. Keys may be any Python integers; 64 bits of each are used.
    """
    state = np.uint64(_stream_key(int(stream), *key))
    bits: NDArray[np.uint64] = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN_GAMMA) + state
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(_MULTIPLIER_1)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(_MULTIPLIER_2)
    bits ^= bits >> np.uint64(31)
    return bits


def _stream_key(*words: int) -> int:
    key = 0
    for word in words:
        key = ((key ^ (word & _MASK)) + _GOLDEN_GAMMA) & _MASK
        key = ((key ^ (key >> 30)) * _MULTIPLIER_1) & _MASK
        key = ((key ^ (key >> 27)) * _MULTIPLIER_2) & _MASK
        key ^= key >> 31
    return key
