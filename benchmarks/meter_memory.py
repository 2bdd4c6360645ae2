"""Whether metering takes more memory the longer a program runs: resident memory over many small all_reduces.

    OMP_NUM_THREADS=1 python benchmarks/meter_memory.py [--quick]

Two ranks on one host, one thread each, gloo over loopback, started without torchrun's agent. Each runs the same program
with nothing, under `python -m dtrain.meter`, and with the ledger of `dtrain.meter.install()`. The program reads its
resident memory from /proc after 1,000 collectives and at ten points on. torch and gloo grow by themselves, once and by
1 MiB: what metering adds is the growth beyond that of the program with nothing, point by point.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RANKS, WARMUP, POINTS = 2, 1_000, 10
LIMIT_BYTES = 1_000_000


def program(num_collectives: int, folder: Path, *, install: bool) -> None:
    """What one rank runs: 4 B all_reduces, and a line of JSON at the end."""
    import torch
    import torch.distributed as dist

    if install:
        import dtrain.meter

        dtrain.meter.install()
    dist.init_process_group("gloo")
    value = torch.zeros(1)
    resident = []
    ends = [0, WARMUP, *(WARMUP + (num_collectives - WARMUP) * k // POINTS for k in range(1, POINTS + 1))]
    for start, end in pairwise(ends):
        for _ in range(start, end):
            dist.all_reduce(value)
        resident.append(_resident_bytes())
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps({"at": ends[1:], "resident": resident}))
    dist.destroy_process_group()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(num_collectives: int, before: Sequence[str], after: Sequence[str]) -> list[dict[str, list[int]]]:
    """Each rank's resident bytes, and after how many collectives."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    job = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    job |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    job["PYTHONPATH"] = str(REPOSITORY)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            *before,
            __file__,
            "--program",
            folder,
            "--collectives",
            str(num_collectives),
            *after,
        ]
        processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(RANKS)
        ]
        said = [process.communicate()[1] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit("".join(said))
        return [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


VARIANTS: Mapping[str, tuple[list[str], list[str]]] = {
    "no meter": ([], []),
    "`python -m dtrain.meter`": (["-m", "dtrain.meter"], []),
    "`dtrain.meter.install()`": ([], ["--install"]),
}


def added(growths: Mapping[str, list[list[int]]], name: str, rank: int) -> int:
    """The most that a rank had grown beyond the same rank without a meter, at any point."""
    return max(ours - bare for ours, bare in zip(growths[name][rank], growths["no meter"][rank], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the collectives, and write no result file")
    parser.add_argument("--collectives", type=int, default=200_000, metavar="N")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--install", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program is not None:
        program(arguments.collectives, arguments.program, install=arguments.install)
        return 0
    from harness import write_result

    count = arguments.collectives // (10 if arguments.quick else 1)
    rows = [
        "| variant | rank | MB resident after 1,000 | KB more at the end | between points | KB beyond no meter |",
        "|---|---|---|---|---|---|",
    ]
    growths: dict[str, list[list[int]]] = {}
    for name, (before, after) in VARIANTS.items():
        seen = [one["resident"] for one in measure(count, before, after)]
        growths[name] = [[resident - first for resident in others] for first, *others in seen]
        for rank, resident in enumerate(seen):
            steps = [b - a for a, b in pairwise(resident)]
            rows.append(
                f"| {name} | {rank} | {resident[0] / 1e6:.1f} | {growths[name][rank][-1] / 1e3:.0f} "
                f"| {min(steps) / 1e3:.0f} to {max(steps) / 1e3:.0f} | {added(growths, name, rank) / 1e3:.0f} |"
            )
            print(rows[-1], flush=True)
    worst = max(added(growths, name, rank) for name in VARIANTS for rank in range(RANKS))
    within = "within" if worst <= LIMIT_BYTES else "ABOVE"
    verdict = f"Most that metering added to the growth, at any point: {worst / 1e3:.0f} KB, {within} 1 MB."
    setup = (
        f"{RANKS} ranks on one host, gloo over loopback; {count:,} all_reduces of 4 B on each; resident memory after "
    )
    setup += f"the first 1,000 and at {POINTS} points on. No random numbers."
    body = "\n".join([setup, "", *rows, "", verdict])
    print(body)
    if not arguments.quick:
        print(write_result("meter_memory", arguments.hardware, "Memory of a metered program, over time", body))
    return 0 if worst <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
