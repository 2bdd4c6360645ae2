"""Whether the verdict on somebody's program is right: traced on this host, planned for links, then run over each.

    python benchmarks/verdict.py          # root; clusters of 2 nodes on this machine's cores, examples/gpt.py

The program is traced by `python -m dtrain.meter --trace` over an unshaped link and planned by `dtrain plan`, as a user
would. Then it runs over each link with every method of the plan that exchanges gradients, in turn, --rounds times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import quartiles, write_result
from plan_error import on_cluster

from dtrain.plan.candidates import parse

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = str(ROOT / "examples" / "gpt.py")
RATES = ("10mbit", "100mbit", "1gbit")
METHODS = ("none", "fp16", "int8", "int4", "ternary rounding=stochastic")
STEPS, LEFT_OUT = 40, 5
NODES = 2


def traced(folder: Path, rate: str | None, method: str) -> Path:
    """The trace of some steps over this link."""
    path = folder / "run.json"
    candidate = parse(method)
    options = ["--compress", candidate.compressor] if method != "none" else []
    options += [f"--option={name}={json.dumps(value)}" for name, value in candidate.options.items()]
    shaping = [] if rate is None else ["--rate", rate]
    meter = [sys.executable, "-m", "dtrain.meter", "--trace", str(path), "--steps", str(STEPS)]
    on_cluster(["--nodes", str(NODES), *shaping, "--", *meter, PROGRAM, "--steps", str(STEPS + 5), *options])
    return path


def planned(trace: Path, rate: str) -> dict[str, Any]:
    """What `dtrain plan` says of it."""
    command = [sys.executable, "-m", "dtrain.cli", "plan", str(trace), "--nodes", str(NODES), "--link", rate, "--json"]
    command += ["--cores", "1", "--threads", "1", "--methods", *METHODS]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def seconds_of(trace: Path) -> float:
    """A step's, the median."""
    steps = json.loads(trace.read_text())["steps"][LEFT_OUT:]
    return statistics.median(step["seconds"] for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    lines = ["| link | verdict | method | planned, ms | run, ms | quartiles |", "|---|---|---|---|---|---|"]
    with TemporaryDirectory() as folder:
        trace = traced(Path(folder), None, "none").rename(Path(folder) / "first.json")
        for rate in RATES:
            told = planned(trace, rate)
            expected = {row["candidate"]["label"]: row["seconds"] for row in told["rows"]}
            runs: dict[str, list[float]] = {method: [] for method in METHODS}
            for round_ in range(arguments.rounds):
                for method in METHODS if round_ % 2 == 0 else METHODS[::-1]:
                    runs[method].append(seconds_of(traced(Path(folder), rate, method)))
                    print(rate, method, f"{runs[method][-1]:.4f}", f"planned {expected[method]:.4f}", flush=True)
            best = min(METHODS, key=lambda method: statistics.median(runs[method]))
            regret = statistics.median(a / b for a, b in zip(runs[told["best"]], runs[best], strict=True)) - 1
            lines.append(f"| {rate} | {told['verdict']} Fastest as run: {best}; regret {regret:.1%} | | | | |")
            for method in METHODS:
                low, middle, high = (1000 * value for value in quartiles(runs[method]))
                lines.append(
                    f"| | | {method} | {1000 * expected[method]:.1f} | {middle:.1f} | {low:.1f} to {high:.1f} |"
                )
    body = (
        f"examples/gpt.py under AdamW, {NODES} nodes of one rank each on this machine's cores, over gloo; medians of "
        f"{STEPS - LEFT_OUT} steps, then over {arguments.rounds} runs in turn.\n\n" + "\n".join(lines)
    )
    print(body)
    print(write_result("verdict", arguments.hardware, "The verdict on a program, and the program", body))


if __name__ == "__main__":
    main()
