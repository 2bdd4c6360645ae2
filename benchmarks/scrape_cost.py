"""What being scraped costs: the step time of real training while its endpoints are asked 20 times a second, and not.

    python benchmarks/scrape_cost.py [--pairs 30]

Scraping is switched on and off in blocks of five seconds within one run, so that whatever else the machine does meets
both. The scraper runs on the same two cores as the two ranks, which a Prometheus elsewhere would not.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import quartiles, write_result

BLOCK_SECONDS, SCRAPES_PER_SECOND, PORT = 5.0, 20, 9400
SETTINGS = (
    "model=squeezenet1_1",
    "data=synthetic",
    "data.image_size=64",
    "batch_size=32",
    "num_steps=1000000",
    "eval_every_epochs=0",
    "compressor=int8",
    "observe.progress=false",
    "observe.prometheus.enabled=true",
    f"observe.prometheus.port={PORT}",
)


def scrape(rank: int) -> int:
    """Ask a rank; the bytes of its answer. By a bare socket, since what asking costs is not the rank's to bear.

    Raises OSError where it does not answer.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", PORT + rank), timeout=5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        while part := connection.recv(1 << 16):
            answer += part
    if not answer.startswith(b"HTTP/1.0 200 "):
        raise OSError(f"rank {rank} answered {answer[:80]!r}")
    return len(answer.partition(b"\r\n\r\n")[2])


def wait_until_it_trains(run: subprocess.Popen[bytes], ledger: Path) -> None:
    for _ in range(600):
        if run.poll() is not None:
            raise RuntimeError("training ended: see above")
        if ledger.is_file() and ledger.read_text().count('"step": ') > 30:
            return
        time.sleep(0.2)
    raise RuntimeError("training did not begin within two minutes")


def scraped_block() -> tuple[int, list[float]]:
    """Scrape for the length of a block, ranks in turn. Returns bytes of all answers, and seconds of each."""
    begun, size, seconds = time.perf_counter(), 0, []
    for number in range(int(BLOCK_SECONDS * SCRAPES_PER_SECOND)):
        time.sleep(max(0.0, begun + number / SCRAPES_PER_SECOND - time.perf_counter()))
        start = time.perf_counter()
        size += scrape(number % 2)
        seconds.append(time.perf_counter() - start)
    time.sleep(max(0.0, begun + BLOCK_SECONDS - time.perf_counter()))
    return size, seconds


def steps_of(ledger: Path) -> list[tuple[float, float]]:
    """(when its first collective started, seconds) of each training step; the clock is the machine's."""
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    return [(r["entries"][0]["start"], r["times"]["step"]) for r in records if r["times"] and r["entries"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="of blocks, with scrapes and without")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--quick", action="store_true", help="write no result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "run" / "ledger" / "rank0.jsonl"
        torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
        command = [*torchrun, "-m", "dtrain.train", *SETTINGS, f"run_dir={ledger.parents[1]}"]
        run = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            wait_until_it_trains(run, ledger)
            blocks: list[tuple[bool, float, float]] = []
            size, seconds = 0, []
            for pair in range(arguments.pairs):
                for on in (True, False) if pair % 2 else (False, True):
                    start = time.perf_counter()
                    if on:
                        more, each = scraped_block()
                        size, seconds = size + more, seconds + each
                    else:
                        time.sleep(BLOCK_SECONDS)
                    blocks.append((on, start, time.perf_counter()))
            steps = steps_of(ledger)
        finally:
            run.terminate()
            run.wait(60)
    medians = [
        (on, statistics.median(seconds for at, seconds in steps if start <= at < end)) for on, start, end in blocks
    ]
    pairs = [dict(medians[i : i + 2]) for i in range(0, len(medians), 2)]
    ratios = [pair[True] / pair[False] for pair in pairs]
    low, middle, high = quartiles(ratios)
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    off = statistics.median(pair[False] for pair in pairs)
    body = "\n".join(
        [
            f"squeezenet1_1 at 64x64, batch 32, 2 ranks over gloo on one host, seed 0; settings "
            f"`{' '.join(SETTINGS)}`. {arguments.pairs} pairs of blocks of {BLOCK_SECONDS:g} s in one run, in "
            "alternating order.",
            "",
            f"- {len(seconds)} scrapes at {SCRAPES_PER_SECOND} a second, ranks in turn, no error; "
            f"{size / len(seconds):,.0f} bytes and {1000 * statistics.median(seconds):.1f} ms each",
            f"- step without: {1000 * off:.2f} ms (median of blocks' medians)",
            f"- with over without, median of pairs: {middle:.4f}, quartiles {low:.4f} to {high:.4f}, standard error of "
            f"the mean {error:.4f}",
        ]
    )
    print(body)
    if not arguments.quick:
        print(write_result("scrape_cost", arguments.hardware, "What being scraped costs", body))


if __name__ == "__main__":
    main()
