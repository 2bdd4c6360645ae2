"""Paired measurements: variants run in turn, block by block, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

C = TypeVar("C", bound=tuple[Any, ...])
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Paired:
    """Seconds per step of each variant in each repetition; the first variant is the yardstick."""

    seconds: Mapping[str, Sequence[float]]

    def ratios(self, variant: str) -> list[float]:
        """This variant over the yardstick, repetition by repetition."""
        base = self.seconds[next(iter(self.seconds))]
        return [ours / theirs for ours, theirs in zip(self.seconds[variant], base, strict=True)]

    def rows(self) -> list[str]:
        """Markdown table rows: variant, median ms, its quartiles, median ratio, its quartiles."""
        rows = []
        for variant, seconds in self.seconds.items():
            ms = [1000 * s for s in seconds]
            low, middle, high = quartiles(ms)
            ratio_low, ratio, ratio_high = quartiles(self.ratios(variant))
            rows.append(
                f"| {variant} | {middle:.2f} | {low:.2f} to {high:.2f} "
                f"| {ratio:.4f} | {ratio_low:.4f} to {ratio_high:.4f} |"
            )
        return rows


HEADER = (
    "| variant | ms per step, median | quartiles | ratio to the first, median of pairs | quartiles |\n"
    "|---|---|---|---|---|"
)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def paired(
    variants: Mapping[str, Callable[[int], None]],
    *,
    repetitions: int,
    steps: int,
    warmup: int,
    meet: Callable[[], None],
) -> Paired:
    """Run `steps` steps of each variant in turn, `repetitions` times, in alternating order.

    `meet` lets all ranks start a block together.
    """
    for run in variants.values():
        run(warmup)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions):
        order = list(variants)
        for name in order if repetition % 2 == 0 else reversed(order):
            meet()
            start = time.perf_counter()
            variants[name](steps)
            seconds[name].append((time.perf_counter() - start) / steps)
    return Paired(seconds)


def read_cells(path: Path, cell: Callable[..., C]) -> dict[C, dict[str, Any]]:
    """What `keep_cell` wrote there, if anything."""
    entries = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return {cell(*entry.pop("cell")): entry for entry in entries}


def keep_cell(path: Path, cell: tuple[Any, ...], found: Mapping[str, Any]) -> None:
    """Add what was measured of a cell, a line of JSON, and show it."""
    with path.open("a") as file:
        file.write(json.dumps({"cell": cell, **found}) + "\n")
    print(cell, found, flush=True)


def write_result(name: str, hardware: str, title: str, body: str) -> Path:
    """Write results/<name>_<hardware>_<yyyymm>.md with what the figures depend on."""
    now = datetime.now(UTC)
    path = RESULTS / f"{name}_{hardware}_{now:%Y%m}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# {title}\n\n{setting(now)}\n\n{body}\n", encoding="utf-8")
    return path


def setting(now: datetime) -> str:
    """Command, date, hardware and versions, as a Markdown list."""
    command = os.environ.get("BENCHMARK_COMMAND") or " ".join(["python", *sys.argv])
    return "\n".join(
        [
            f"- command: `{command}`",
            f"- date: {now:%Y-%m-%d}; commit: {commit()}",
            f"- hardware: {_cpu_model()}, {os.cpu_count()} cores, shared with other tenants; {platform.platform()}",
            f"- versions: Python {platform.python_version()}, torch {torch.__version__}; "
            f"threads per rank: {torch.get_num_threads()}",
        ]
    )


def commit() -> str:
    """What is checked out, and whether it was changed."""
    git = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    return done.stdout.strip() or "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
