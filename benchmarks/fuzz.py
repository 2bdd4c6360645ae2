"""Hostile inputs, made of sound ones: what reads them may refuse with one line, quickly and in little memory, or read.

    python benchmarks/fuzz.py --inputs 20000 --seed 1
    python benchmarks/fuzz.py --hours 1 --log fuzz.log --output benchmarks/results/fuzz_cpu2_202611.md

To add a format: a function that gives one hostile input, and its line in `formats` of a `hostile_*.py`. A short run is
among the unit tests (tests/unit/test_hostile_inputs.py).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import resource
import shlex
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import hostile_files
import hostile_packed
import hostile_payloads
import hostile_texts
from hostile import MOST_BYTES, MOST_SECONDS, Format, Outcome, attempts

TURN_SECONDS = 5.0
"""So long each format has its turn in a run of so many hours."""


def formats() -> dict[str, Format]:
    """By name."""
    return {
        **hostile_packed.formats(),
        **hostile_texts.formats(),
        **hostile_files.formats(),
        **hostile_payloads.formats(),
    }


@dataclass
class Tally:
    """Of one format: inputs by what came of them, and the most that one took, with its seed."""

    kinds: Counter[str] = field(default_factory=Counter)
    seconds: tuple[float, int] = (0.0, 0)
    peak_bytes: tuple[int, int] = (0, 0)
    faults: list[int] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """How many there were."""
        return sum(self.kinds.values())

    def add(self, seed: int, outcome: Outcome) -> None:
        """Count one."""
        self.kinds[outcome.kind] += 1
        self.seconds = max(self.seconds, (outcome.seconds, seed))
        self.peak_bytes = max(self.peak_bytes, (outcome.peak_bytes, seed))
        if outcome.is_fault:
            self.faults.append(seed)

    def row(self, name: str) -> str:
        """Of the table."""
        return (
            f"| {name} | {self.inputs:,} | {self.kinds['read']:,} | {self.kinds['refused']:,} | {len(self.faults)} | "
            f"{self.seconds[0]:.2f} (seed {self.seconds[1]}) | {self.peak_bytes[0] / 1e6:.1f} "
            f"(seed {self.peak_bytes[1]}) |"
        )


def main() -> None:
    """Print, for each format, inputs by what came of them, and the most that one took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=1000, help="of each format")
    parser.add_argument("--hours", type=float, help="go on for so long, each format in turn, in place of --inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", action="append", help="only this one (repeatable)")
    parser.add_argument(
        "--untraced",
        action="store_true",
        help="faster: what is asked for and not touched is then bounded by 1 GB in all",
    )
    parser.add_argument("--log", type=Path, help="write counts there as it goes")
    parser.add_argument("--output", type=Path, help="write the table there")
    parsed = parser.parse_args()
    known = formats()
    if unknown := sorted(set(parsed.format or ()) - set(known)):
        parser.error(f"no format {unknown[0]!r}: there are {', '.join(known)}")
    chosen = {name: known[name] for name in parsed.format or known}
    if parsed.untraced:
        _bound_memory()
    else:
        tracemalloc.start()
    tallies = {name: Tally() for name in chosen}
    ends = None if parsed.hours is None else time.monotonic() + 3600 * parsed.hours
    while True:
        for name, one in chosen.items():
            _turn(name, one, tallies[name], parsed.seed, parsed.inputs if ends is None else None, ends)
            if parsed.log is not None:
                parsed.log.write_text(_report(tallies, parsed.seed))
        if ends is None or time.monotonic() >= ends:
            break
    text = _report(tallies, parsed.seed)
    print(text)
    if parsed.output is not None:
        parsed.output.write_text(text)
    raise SystemExit(any(tally.faults for tally in tallies.values()))


def _bound_memory() -> None:
    """From now on 1 GB more can be had, touched or not; beyond it is a MemoryError, which is a fault."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MOST_BYTES, resource.RLIM_INFINITY))


def _turn(name: str, chosen: Format, tally: Tally, seed: int, inputs: int | None, ends: float | None) -> None:
    """So many inputs, or some seconds' worth, after those that the tally has."""
    if not tally.kinds:  # what is imported by the first takes its time, and is no fault of it
        list(attempts(chosen, 20, seed))
    until = time.monotonic() + TURN_SECONDS if ends is None else min(ends, time.monotonic() + TURN_SECONDS)
    for one, outcome in attempts(chosen, inputs or 1 << 62, seed + tally.inputs):
        tally.add(one, outcome)
        if outcome.is_fault and len(tally.faults) <= 20:
            print(f"{name} {one}: {outcome}", flush=True)
        if inputs is None and time.monotonic() >= until:
            break


def _report(tallies: dict[str, Tally], seed: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "safetensors", "constriction")
    )
    command = shlex.join(["python", *sys.argv])
    faults = sum(len(tally.faults) for tally in tallies.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    lines = [
        "# Hostile inputs",
        "",
        f"`{command}`, commit {commit.strip()}, Python {platform.python_version()}, {versions}, {platform.machine()}.",
        f"Seeds from {seed} on, of each format. A fault: anything but reading and a refusal in one line, more than "
        f"{MOST_SECONDS:g} s of processor, more than {MOST_BYTES / 1e6:.0f} MB.",
        "",
        f"{sum(tally.inputs for tally in tallies.values()):,} inputs, {faults} faults; "
        f"the process had {peak:.0f} MB at most.",
        "",
        "| format | inputs | read | refused | faults | most seconds | most MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(tally.row(name) for name, tally in tallies.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
