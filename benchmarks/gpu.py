"""What a GPU does with all of it: messages, codecs' speed, training, memory, metering. At most 8 minutes on one GPU.

    python benchmarks/gpu.py --hardware h200          # writes results/gpu_h200_<yyyymm>.md
    python benchmarks/gpu.py --device cpu --quick     # what of it a CPU can do, less of each, and no file

Each part has its seconds; one that fails or takes longer is noted, and the next one runs. Ends with 1 if a part failed.

Tests for a GPU are those of tests/distributed/test_cuda.py; `pytest tests/distributed/test_cuda.py` where one is.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from harness import write_result

SECONDS = {
    "messages": 60,
    "compressors": 60,
    "throughput": 120,
    "training": 90,
    "two ranks": 60,
    "amp": 30,
    "memory": 30,
    "meter": 30,
}
"""Of each part, in the order in which they run: 480 in all."""


def run_parts(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Run every part, in a process that a failure of the device costs alone. Returns names of those that failed."""
    left = list(arguments.only)
    while left:
        command = [sys.executable, __file__, "--parts-into", str(folder), "--device", arguments.device, "--only", *left]
        process = subprocess.Popen([*command, *["--quick"] * arguments.quick], start_new_session=True)
        while left and _ends(process, folder, left[0]):
            left.pop(0)
        if left:
            code = process.poll()
            why = f"stopped after {SECONDS[left[0]]} s" if code is None else f"its process ended with {code}"
            if code is None:
                os.killpg(process.pid, signal.SIGKILL)
            _note(folder, left.pop(0), why)
        process.wait()
    return [name for name in arguments.only if (folder / f"{name}.failed").exists()]


def _ends(process: subprocess.Popen[bytes], folder: Path, name: str) -> bool:
    """Whether a part comes to its end, well or not, within its seconds."""
    until, marks = time.monotonic() + SECONDS[name], [folder / f"{name}.{kind}" for kind in ("done", "failed")]
    while time.monotonic() < until:
        is_over = process.poll() is not None
        if any(mark.exists() for mark in marks):
            return True
        if is_over:
            return False
        time.sleep(0.05)
    return False


def _note(folder: Path, name: str, why: str) -> None:
    with (folder / f"{name}.md").open("a") as file:
        file.write(f"\n**Failed**: {why}\n")
    (folder / f"{name}.failed").touch()


def run_here(arguments: argparse.Namespace, folder: Path) -> None:
    """Parts in this process, a line at a time."""
    from gpu_parts import PARTS, Setting

    torch.set_num_threads(1)
    setting = Setting(torch.device(arguments.device), arguments.quick)
    for name in arguments.only:
        start = time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            with (folder / f"{name}.md").open("w") as file:
                for line in PARTS[name](setting):
                    print(line, file=file, flush=True)
                print(f"\n{time.perf_counter() - start:.1f} s.", file=file)
            (folder / f"{name}.done").touch()
        except Exception as error:
            traceback.print_exc()
            first = next(iter(str(error).splitlines()), "")
            _note(folder, name, f"{type(error).__name__}: {first}")


def device_named(device: torch.device) -> str:
    """Of the device, and what is installed for it."""
    if device.type == "cpu":
        return "On a CPU: nothing of this is about a GPU."
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, capability {properties.major}."
        f"{properties.minor}; CUDA {torch.version.cuda}; NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="less of each part, and no result file")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(SECONDS), default=list(SECONDS), help="parts; no result file"
    )
    parser.add_argument("--hardware", default="gpu", help="the machine's name in the result file")
    parser.add_argument("--parts-into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device: add --device cpu for what of it a CPU can do", file=sys.stderr)
        return 2
    if arguments.parts_into is not None:
        run_here(arguments, arguments.parts_into)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        failed = run_parts(arguments, Path(folder))
        texts = {name: (Path(folder) / f"{name}.md").read_text() for name in arguments.only}
    body = "\n\n".join(
        [
            device_named(torch.device(arguments.device)),
            f"Failed: {', '.join(failed) or 'none'}.",
            *(f"## {name.capitalize()}\n\n{text.strip()}" for name, text in texts.items()),
        ]
    )
    print(body)
    if not arguments.quick and arguments.only == list(SECONDS):
        print(write_result("gpu", arguments.hardware, "What a GPU does with all of it", body))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
