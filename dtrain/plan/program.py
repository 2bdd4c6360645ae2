"""What one rank does in a step, or in a round of steps, as two lanes of work: what is computed, and what is exchanged.

The order of a lane never depends on timing (`sync.engine`), so a program recorded once holds over any link: it says
what waits for what, and what each piece of work takes of a core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from dtrain.exchange import Op

Event: TypeAlias = tuple[str, int]
"""What one lane waits for and another brings about: ("ready", bucket), ("finished", count), ("collective", index)."""


@dataclass(frozen=True, slots=True)
class Work:
    """So many seconds of one core. `whole_step` stands for a step of training apart from what is exchanged of it."""

    seconds: float
    whole_step: bool = False


@dataclass(frozen=True, slots=True)
class Signal:
    """From here on the event has happened."""

    event: Event


@dataclass(frozen=True, slots=True)
class Await:
    """Goes on once the event has happened."""

    event: Event


@dataclass(frozen=True, slots=True)
class Start:
    """A collective begins; its event happens when it ends."""

    event: Event
    op: Op
    payload_bytes: int


Instruction: TypeAlias = Work | Signal | Await | Start
Lane: TypeAlias = tuple[Instruction, ...]


@dataclass(frozen=True)
class Program:
    """What a rank does, and how many steps of training that is."""

    compute: Lane
    exchange: Lane
    steps: int = 1

    @property
    def collectives(self) -> tuple[Start, ...]:
        """In the order of their start."""
        return tuple(one for one in self.exchange if isinstance(one, Start))

    @property
    def compute_seconds(self) -> float:
        """Of one core, over all steps."""
        return sum(one.seconds for one in self.compute if isinstance(one, Work))

    @property
    def codec_seconds(self) -> float:
        """Of one core, over all steps."""
        return sum(one.seconds for one in self.exchange if isinstance(one, Work))


def combined(lanes: Sequence[Lane], of: Callable[[Sequence[float]], float]) -> Lane:
    """One lane of several with the same order: of each piece of work, and of each payload, what `of` makes of them.

    Raises ValueError where their order differs.
    """
    first = lanes[0]
    if any(len(lane) != len(first) for lane in lanes):
        raise ValueError(f"recordings of {sorted({len(lane) for lane in lanes})} instructions are not of the same work")
    made: list[Instruction] = []
    for alike in zip(*lanes, strict=True):
        if len({type(one) for one in alike}) > 1:
            raise ValueError("recordings in another order are not of the same work")
        match alike[0]:
            case Work() as one:
                made.append(replace(one, seconds=max(0.0, of([each.seconds for each in alike]))))
            case Start() as one:
                made.append(replace(one, payload_bytes=round(of([each.payload_bytes for each in alike]))))
            case one:
                made.append(one)
    return tuple(made)


def with_steps(lane: Lane, seconds: float) -> Lane:
    """The lane with steps of training that take so long of a core."""
    return tuple(replace(one, seconds=seconds) if isinstance(one, Work) and one.whole_step else one for one in lane)


def as_json(lane: Lane) -> list[list[object]]:
    """A lane as plain JSON data: see `from_json`."""
    told: list[list[object]] = []
    for one in lane:
        match one:
            case Work(seconds, whole_step):
                told.append(["step" if whole_step else "work", seconds])
            case Signal(event):
                told.append(["signal", *event])
            case Await(event):
                told.append(["await", *event])
            case Start(event, op, payload_bytes):
                told.append(["start", *event, op, payload_bytes])
    return told


def from_json(told: Iterable[Sequence[Any]]) -> Lane:
    """A lane of what `as_json` made. Raises ValueError for anything else."""
    lane: list[Instruction] = []
    for one in told:
        match one:
            case ["work" | "step" as kind, float() | int() as seconds] if math.isfinite(seconds) and seconds >= 0:
                lane.append(Work(float(seconds), kind == "step"))
            case ["signal", str() as kind, int() as number]:
                lane.append(Signal((kind, number)))
            case ["await", str() as kind, int() as number]:
                lane.append(Await((kind, number)))
            case ["start", str() as kind, int() as number, str() as op, int() as payload_bytes] if (
                0 <= payload_bytes < 1 << 53
            ):
                lane.append(Start((kind, number), Op(op), payload_bytes))
            case _:
                raise ValueError(f"{one!r:.80} is no instruction: measure again")
    return tuple(lane)
