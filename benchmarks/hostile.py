"""What a fuzzing run is made of: inputs that were made to do harm, what came of each, and ways to make them."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.exchange import Op
from dtrain.meter.ledger import Purpose
from dtrain.pack.entropy import CODECS
from dtrain.pack.presets import STAGES
from dtrain.pack.tensor import BITS

MOST_SECONDS, MOST_BYTES = 2.0, 256_000_000
"""Of processor and of memory, for one input."""
MOST_LETTERS = 2000
"""Of a refusal, which is one line."""

WORDS = (*BITS, *CODECS, *STAGES, *Op, *Purpose, "", "\ud800", "__metadata__", "a\nb", "\x1b[2J", "x" * 5000, "../x")
"""Some that formats know, so that one stands where another should."""


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
    """`hostile` gives an input, and `read` reads it or raises one of `refusals`, as it is documented to."""

    hostile: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (ValueError,)


def attempt(
    read: Callable[[bytes], object], data: bytes, refusals: tuple[type[Exception], ...] = (ValueError,)
) -> Outcome:
    """Read it once. Memory is what was touched and, where tracemalloc is tracing, what Python and numpy asked for."""
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
    Path("/proc/self/clear_refs").write_text("5")  # the process' peak is what it has now
    traced, resident, start = tracemalloc.get_traced_memory()[0], _status("VmRSS"), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(data)
        kind = "read"
    except refusals as error:
        kind = (
            "refused"
            if len(str(error)) < MOST_LETTERS and str(error).isprintable()
            else "a message that is not one line"
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        kind = f"{type(error).__name__}: {str(error)[:60]}"
    seconds = time.process_time() - start
    return Outcome(kind, seconds, max(tracemalloc.get_traced_memory()[1] - traced, _status("VmHWM") - resident))


def _status(name: str) -> int:
    """Of this process' memory, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(text.partition(f"{name}:")[2].split(None, 1)[0])


def attempts(chosen: Format, inputs: int, seed: int) -> Iterator[tuple[int, Outcome]]:
    """Of inputs with the seeds from `seed` on, by which each can be made again."""
    for one in range(seed, seed + inputs):
        yield one, attempt(chosen.read, chosen.hostile(random.Random(one)), chosen.refusals)


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


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or mapping in a tree, with a key of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def change_anywhere(rng: random.Random, header: Any) -> None:
    found = list(places(header))
    if found:
        there, key = rng.choice(found)
        if isinstance(there, dict) and rng.random() < 0.2:
            there[str(any_value(rng, key))] = there.pop(key)
        elif rng.random() < 0.3:  # what stands elsewhere
            other, of = rng.choice(found)
            there[key] = json.loads(json.dumps(other[of]))
        else:
            there[key] = any_value(rng, there[key])


def any_value(rng: random.Random, old: Any) -> Any:
    if isinstance(old, str) and rng.random() < 0.8:
        return rng.choice(WORDS)
    numbers = (0, 1, -1, 2, 3, 127, 255, 4096, 1 << 16, 1 << 28, 1 << 31, 1 << 39, 1 << 63, 1 << 64, 10**400)
    floats = (0.0, -1.0, 1e-320, 1e308, float("nan"), float("inf"), 0.5)
    return rng.choice((rng.choice(numbers), rng.choice(floats), True, None, "", [], {}, [[]], {"": []}, any_shape(rng)))


def any_shape(rng: random.Random) -> list[int]:
    sizes = [rng.choice((0, 1, 2, 7, 64, 256, 1 << 12, 1 << 17, 1 << 28, 1 << 39)) for _ in range(rng.randrange(6))]
    return [*sizes, 0] if rng.random() < 0.3 else sizes
