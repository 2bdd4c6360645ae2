"""Hostile files, made of sound ones: what reads them may refuse with one line, quickly and in little memory, or read.

    python benchmarks/fuzz.py --inputs 20000 --seed 1

Digests are repaired, so that it is not they that refuse. To add a format: a function that gives one hostile input, and
its line in `formats`. A short run is among the unit tests (tests/unit/pack/test_pack_hostile.py).
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import json
import random
import resource
import struct
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dtrain.pack import (
    PRESETS,
    Model,
    Tensor,
    apply_difference,
    from_bytes,
    make_difference,
    pack,
    to_bytes,
    unpack,
)
from dtrain.pack.entropy import CODECS
from dtrain.pack.presets import STAGES
from dtrain.pack.tensor import BITS

MOST_SECONDS, MOST_BYTES = 2.0, 256_000_000
"""Of processor and of memory, for one input."""
CONTAINER_SHA256, CONTAINER_HEADER = slice(9, 41), 41
DIFFERENCE_BASE_SHA256, DIFFERENCE_PREFIX = slice(13, 45), 77


@dataclass(frozen=True)
class Outcome:
    """What came of one input: "read", "refused", or a fault in words."""

    kind: str
    seconds: float
    peak_bytes: int

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("read", "refused") or self.seconds > MOST_SECONDS or self.peak_bytes > MOST_BYTES


@dataclass(frozen=True)
class Format:
    """`hostile` gives an input, and `read` reads it or raises ValueError."""

    hostile: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]


def formats() -> dict[str, Format]:
    """By name."""
    files = [to_bytes(pack(_model(1), preset, coder=coder)) for preset in PRESETS for coder in ("contexts", "huffman")]
    base, *others = (
        to_bytes(pack(_model(seed), preset)) for seed, preset in ((1, "smallest"), (2, "smallest"), (2, "lossless"))
    )
    ways = [make_difference(base, other) for other in others]
    return {
        "container": Format(
            lambda rng: hostile_container(rng, rng.choice(files)), lambda data: unpack(from_bytes(data))
        ),
        "difference": Format(
            lambda rng: hostile_difference(rng, rng.choice(ways)), lambda data: apply_difference(base, data)
        ),
    }


def attempt(read: Callable[[bytes], object], data: bytes) -> Outcome:
    """Read it once. Memory is numpy's and Python's; tracemalloc must be tracing."""
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(data)
        kind = "read"
    except ValueError as error:
        kind = "refused" if len(str(error)) < 500 and str(error).isprintable() else "a message that is not one line"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        kind = f"{type(error).__name__}: {str(error)[:60]}"
    return Outcome(kind, time.process_time() - start, tracemalloc.get_traced_memory()[1] - before)


def attempts(chosen: Format, inputs: int, seed: int) -> Iterator[tuple[int, Outcome]]:
    """Of inputs with the seeds from `seed` on, by which each can be made again."""
    for one in range(seed, seed + inputs):
        yield one, attempt(chosen.read, chosen.hostile(random.Random(one)))


# bytes


def hostile_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bits, a cut, a part put elsewhere, or a part of equal bytes."""
    if not data:
        return rng.randbytes(rng.randrange(40))
    place, other = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    to = rng.randrange(len(data))
    return rng.choice(
        (
            lambda: data[:to] + bytes([data[to] ^ 1 << rng.randrange(8)]) + data[to + 1 :],
            lambda: data[:place] + rng.randbytes(rng.randrange(8)) + data[place:],
            lambda: data[:place] + rng.randbytes(other - place) + data[other:],
            lambda: data[:place] + bytes([rng.choice((0, 1, 85, 127, 255))]) * (other - place) + data[other:],
            lambda: data[:place] + data[other:],
            lambda: data[:to] + data[place:other] + data[to:],
            lambda: data[:place],
        )
    )()


# containers


def sealed(header: bytes, sections: bytes, start: bytes) -> bytes:
    """A container, its digest right."""
    start += struct.pack("<I", len(header))
    return start + hashlib.sha256(start + header + sections).digest() + header + sections


def hostile_container(rng: random.Random, data: bytes) -> bytes:
    """Another header, other sections, or more padding, under a digest that is right."""
    (header_bytes,) = struct.unpack_from("<I", data, 5)
    header = json.loads(bz2.decompress(data[CONTAINER_HEADER:][:header_bytes]))
    arrays = [there for there, key in _places(header) if key == "codec"]
    ends = np.cumsum([CONTAINER_HEADER + header_bytes] + [array["bytes"] for array in arrays]).tolist()
    sections = [data[start:end] for start, end in pairwise(ends)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        change = rng.choice((_change_anywhere, _change_shapes, _change_types, None))
        if change is not None:
            change(rng, header)
            continue
        one = rng.randrange(len(sections))
        sections[one] = in_words(rng, hostile_bytes(rng, sections[one]))
        arrays[one]["bytes"] = len(sections[one])
    if rng.random() < 0.3:  # more may be claimed, and what was claimed before is again
        header["padding"] = rng.choice((1 << 10, 1 << 13, 1 << 14))
    padding = header.get("padding")
    sections.append(bytes(padding if type(padding) is int and 0 <= padding < 1 << 15 else 0))
    packed = bz2.compress(json.dumps(header).encode())
    return sealed(hostile_bytes(rng, packed) if rng.random() < 0.05 else packed, b"".join(sections), data[:5])


def in_words(rng: random.Random, section: bytes) -> bytes:
    """Mostly as many bytes as coded sections have, so that it is not this which is refused."""
    return section[: len(section) // 4 * 4] if rng.random() < 0.9 else section


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or mapping in a tree, with a key of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _change_anywhere(rng: random.Random, header: Any) -> None:
    places = list(_places(header))
    if places:
        there, key = rng.choice(places)
        if isinstance(there, dict) and rng.random() < 0.2:
            there[str(_value(rng, key))] = there.pop(key)
        elif rng.random() < 0.3:  # what stands elsewhere
            other, of = rng.choice(places)
            there[key] = json.loads(json.dumps(other[of]))
        else:
            there[key] = _value(rng, there[key])


def _value(rng: random.Random, old: Any) -> Any:
    if isinstance(old, str) and rng.random() < 0.8:
        words = (*BITS, *CODECS, *STAGES, "", "\ud800", "__metadata__", "a\nb", "x" * 5000, "../x")
        return rng.choice(words)
    numbers = (0, 1, -1, 2, 3, 127, 255, 4096, 1 << 16, 1 << 28, 1 << 31, 1 << 39, 1 << 63, 1 << 64, 10**400)
    floats = (0.0, -1.0, 1e-320, 1e308, float("nan"), float("inf"), 0.5)
    return rng.choice((rng.choice(numbers), rng.choice(floats), True, None, "", [], {}, [[]], {"": []}, _shape(rng)))


def _shape(rng: random.Random) -> list[int]:
    sizes = [rng.choice((0, 1, 2, 7, 64, 256, 1 << 12, 1 << 17, 1 << 28, 1 << 39)) for _ in range(rng.randrange(6))]
    return [*sizes, 0] if rng.random() < 0.3 else sizes


def _change_shapes(rng: random.Random, header: Any) -> None:
    """One shape to another wherever it stands, so that parts fit their tensor."""
    _change_all(rng, header, "shape", _shape(rng))


def _change_types(rng: random.Random, header: Any) -> None:
    _change_all(rng, header, "dtype", rng.choice(list(BITS)))


def _change_all(rng: random.Random, header: Any, key: str, new: Any) -> None:
    nodes = [there for there, at in _places(header) if at == key]
    if nodes:
        old = rng.choice(nodes)[key]
        for node in nodes:
            if node[key] == old:
                node[key] = new


# differences


def hostile_difference(rng: random.Random, data: bytes) -> bytes:
    """Another container in it, other coefficients, or another count of zeros, from the same base."""
    _, _, fits_bytes, zeros = struct.unpack_from("<4sBII", data)
    fits, inner = data[DIFFERENCE_PREFIX:][:fits_bytes], data[DIFFERENCE_PREFIX + fits_bytes :] + bytes(zeros)
    match rng.randrange(10):
        case 0 | 1 | 2:
            fits = in_words(rng, hostile_bytes(rng, fits))
        case 3:
            inner = hostile_bytes(rng, inner)
        case _:
            inner = hostile_container(rng, inner)
    stripped = inner.rstrip(b"\0")
    counts = struct.pack("<II", len(fits), len(inner) - len(stripped))
    return data[:5] + counts + data[DIFFERENCE_BASE_SHA256.start : DIFFERENCE_PREFIX] + fits + stripped


def _model(seed: int) -> Model:
    """Small, and with every kind of tensor that some stage or codec is for."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(0, 0.1, (8, 8, 3, 3)).astype("<f4")
    low_rank = rng.normal(size=(24, 2)) @ rng.normal(size=(2, 40))
    return Model(
        {
            "conv.weight": Tensor.of(dense),
            "conv.bias": Tensor.of(dense[0, 0, 0]),
            "low_rank": Tensor.of(low_rank.astype("<f4")),
            "shared": Tensor.of(rng.choice(np.array([-0.5, 0, 0.25], "<f2"), (20, 30))),
            "sparse": Tensor.of((dense.reshape(8, 72) * (rng.uniform(size=(8, 72)) < 0.3)).astype("<f8")),
            "counts": Tensor.of(rng.integers(-9, 9, (6, 7)).astype("<i4")),
            "steps": Tensor.of(np.array(7, "<i8")),
            "ascending": Tensor.of(np.sort(rng.normal(size=20).astype("<f4"))),
            "nothing": Tensor.of(np.zeros((0, 3), "<f2")),
        },
        {"dtrain": "{}"},
    )


def main() -> None:
    """Print, for each format, inputs by what came of them, and the most that one took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=20_000, help="of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=list(formats()), help="only this one")
    parsed = parser.parse_args()
    tracemalloc.start()
    faults = 0
    for name, chosen in formats().items():
        if parsed.format not in (None, name):
            continue
        kinds: Counter[str] = Counter()
        worst = {"seconds": (0.0, 0), "peak_bytes": (0, 0)}
        for seed, outcome in attempts(chosen, parsed.inputs, parsed.seed):
            kinds[outcome.kind] += 1
            for what, (most, _) in worst.items():
                if getattr(outcome, what) > most:
                    worst[what] = (getattr(outcome, what), seed)
            if outcome.is_fault:
                faults += 1
                print(f"{name} {seed}: {outcome}", flush=True)
        print(
            f"{name}: {sum(kinds.values()):,} inputs: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
        )
        print(
            f"  at most {worst['seconds'][0]:.2f} s of processor (seed {worst['seconds'][1]}), "
            f"{worst['peak_bytes'][0] / 1e6:.1f} MB (seed {worst['peak_bytes'][1]})"
        )
    print(f"{faults} faults; peak of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
