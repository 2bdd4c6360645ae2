"""Measure the links between hosts: `torchrun ... -m dtrain.plan.probe --write link.json`, as the job is to be started.

It takes a few seconds on each link. `dtrain plan --link link.json` then plans for it.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from dtrain.arguments import FAILED, MISTAKE, Parser, ending, say_error
from dtrain.comm import CollectiveError, Communicator, all_gather, detect_launch, perform
from dtrain.comm.torch_dist import open_default
from dtrain.exchange import Op, Request
from dtrain.files import write_whole
from dtrain.plan.link import TCP_SHARE, Link, passage

SMALL_BYTES, FIRST_BYTES, LARGE_BYTES = 4, 250_000, 25_000_000
REPETITIONS, MOVED = 3, 8
LONG_SECONDS = 0.5
"""What a large message should take about."""


def probe(communicator: Communicator) -> Link:
    """The link of these ranks, the same on every rank. Raises ValueError for a rank alone."""
    if communicator.world_size == 1:
        raise ValueError("a rank alone has no link: start the probe on all hosts, as the job is to be started")
    waits = _seconds(communicator, SMALL_BYTES, 40)
    with _busy():
        busy = _seconds(communicator, SMALL_BYTES, 40)
    first = float(all_gather(communicator, torch.tensor([_seconds(communicator, FIRST_BYTES, 5)])).max())
    size = int(min(LARGE_BYTES, max(FIRST_BYTES, FIRST_BYTES * LONG_SECONDS / first))) // 4 * 4
    cpu = time.process_time()
    large = _seconds(communicator, size, REPETITIONS)
    cpu = time.process_time() - cpu
    gathered = _reached(communicator, Op.ALL_GATHER, size, large)
    exchanged = _reached(communicator, Op.ALL_TO_ALL, size, large)
    way = passage(communicator.backend, Op.ALL_REDUCE, size, communicator.world_size)
    small = passage(communicator.backend, Op.ALL_REDUCE, SMALL_BYTES, communicator.world_size)
    rate = way.sent_bytes / max(large - waits, 1e-6)
    mine = torch.tensor(
        [
            waits / small.messages,
            busy / small.messages,
            rate,
            cpu / ((REPETITIONS + 1) * way.sent_bytes),
            gathered,
            exchanged,
        ],
        dtype=torch.float64,
    )
    slowest = all_gather(communicator, mine)
    return Link(
        bits_per_second=8 * float(slowest[:, 2].median()) / TCP_SHARE,
        latency_seconds=float(slowest[:, 0].median()),
        busy_latency_seconds=float(slowest[:, 1].median()),
        core_seconds_per_byte=float(slowest[:, 3].median()),
        gathered_share=float(slowest[:, 4].mean()),
        exchanged_share=float(slowest[:, 5].mean()),
    )


def _seconds(communicator: Communicator, size_bytes: int, repetitions: int) -> float:
    """The median time of an all_reduce, after a first."""
    payload, times = torch.zeros(size_bytes // 4), []
    for _ in range(repetitions + 1):
        begun = time.perf_counter()
        perform(communicator, Request(Op.ALL_REDUCE, payload))
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _reached(communicator: Communicator, op: Op, size_bytes: int, dense_seconds: float) -> float:
    """The share of an all_reduce's rate that another collective of about the same bytes reaches in the mean.

    Both directions of a link may meet in it otherwise: over shaped links some of these take half as long again.
    """
    n, backend = communicator.world_size, communicator.backend
    wanted = passage(backend, Op.ALL_REDUCE, size_bytes, n).sent_bytes
    payload_bytes = int(size_bytes * wanted / passage(backend, op, size_bytes, n).sent_bytes) // n
    shape = (n, payload_bytes // n) if op is Op.ALL_TO_ALL else (payload_bytes,)
    payload, times = torch.zeros(shape, dtype=torch.uint8), []
    for _ in range(MOVED):
        begun = time.perf_counter()
        perform(communicator, Request(op, payload))
        times.append(time.perf_counter() - begun)
    sent = passage(backend, op, payload.numel(), n).sent_bytes
    return min(1.0, (sent / statistics.mean(times)) / (wanted / dense_seconds))


@contextmanager
def _busy() -> Iterator[None]:
    """This rank computes meanwhile."""
    ended = threading.Event()

    def work() -> None:
        matrix = torch.ones(256, 256)
        while not ended.is_set():
            torch.mm(matrix, matrix)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; every rank measures, rank 0 tells."""
    try:
        _probe_as_asked(arguments)
    except (ValueError, OSError) as error:
        say_error(error)
        return MISTAKE
    except CollectiveError as error:
        say_error(error)
        return FAILED
    return 0


def _probe_as_asked(arguments: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m dtrain.plan.probe", description=__doc__)
    parser.add_argument("--backend", default="gloo", choices=("gloo", "nccl"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="as JSON, for dtrain plan --link FILE")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    communicator = open_default(parsed.backend, detect_launch(os.environ))
    try:
        link = probe(communicator)
        if communicator.rank == 0:
            told = {"host": socket.gethostname(), "ranks": communicator.world_size, "link": asdict(link)}
            if parsed.write is not None:
                write_whole(parsed.write, json.dumps(told, indent=1).encode())
            busy = link.busy_latency_seconds or link.latency_seconds
            print(
                f"{link.bits_per_second / 1e6:,.0f} Mbit/s, {link.latency_seconds * 1e3:.3f} ms a message, "
                f"{busy * 1e3:.3f} ms where cores are busy, "
                f"{link.core_seconds_per_byte * 1e9:.2f} ns of a core for a byte"
            )
    finally:
        communicator.close()


if __name__ == "__main__":
    with ending("python -m dtrain.plan.probe"):
        sys.exit(main())
