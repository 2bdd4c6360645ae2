"""A model to another machine over a slow link: in fp32, packed, and as the difference to the version before.

    python benchmarks/ship.py          # root; trains squeezenet1_0 on digits first, unless --run has done so

Checkpoints one epoch apart, early and late in the run, are packed; a publisher on one node of a cluster ships them to a
receiver on the other. The ideal is the body's bytes at the link's rate, with no headers and no latency.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import quartiles, write_result

from dtrain import ship
from dtrain.cluster import parse_rate
from dtrain.meter.nic import read_counters
from dtrain.pack import apply_difference, from_bytes, make_difference, pack, read_safetensors, to_bytes, unpack

SAVE_EVERY = 90  # an epoch
PAIRS = {"early": (180, 270), "late": (1980, 2070)}  # steps of 2160
PRESETS = ("lossless", "smallest", "deep_compression_6bit")
FIRST_PORT = 9000
ROOT = Path(__file__).resolve().parents[1]
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Case:
    """What is shipped: `file`, to a receiver that holds `held` or nothing."""

    name: str
    file: str
    held: str | None = None

    @property
    def suffix(self) -> str:
        return Path(self.file).suffix


def train(run: Path) -> None:
    """The run whose checkpoints are shipped, on one rank."""
    settings = ["model=squeezenet1_0", "experiment=digits", f"save_every={SAVE_EVERY}", f"run_dir={run}"]
    subprocess.run([sys.executable, "-m", "dtrain.train", *settings], env=ENVIRON, check=True)


def prepare(run: Path, folder: Path) -> tuple[list[Case], list[str]]:
    """The files that are shipped, in `folder`, the cases, and what packing and differences cost in processor time."""
    packed_cases, difference_cases, costs = [], [], []
    for pair, steps in PAIRS.items():
        models = [read_safetensors(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors") for step in steps]
        if pair == "late":
            source = run / "checkpoints" / f"step-{steps[1]:06d}" / "model.safetensors"
            (folder / "fp32.safetensors").write_bytes(source.read_bytes())
        for preset in PRESETS:
            names = [f"{pair}_{preset}_{step}.dtz" for step in steps]
            times = [time.process_time()]
            packed = [to_bytes(pack(model, preset)) for model in models]
            times.append(time.process_time())
            unpack(from_bytes(packed[1]))
            times.append(time.process_time())
            way = make_difference(*packed)
            times.append(time.process_time())
            apply_difference(packed[0], way)
            times.append(time.process_time())
            for name, data in zip(names, packed, strict=True):
                (folder / name).write_bytes(data)
            if pair == "late":
                packed_cases.append(Case(f"packed, {preset}", names[1]))
                spent = [after - before for before, after in itertools.pairwise(times)]
                spent[0] /= 2
                costs.append(f"| {preset} | " + " | ".join(f"{seconds:.2f}" for seconds in spent) + " |")
            name = f"difference, {preset}, {pair} (step {steps[0]} to {steps[1]})"
            difference_cases.append(Case(name, names[1], names[0]))
    return [Case("fp32", "fp32.safetensors"), *packed_cases, *difference_cases], costs


def serve(folder: Path, cases: Sequence[Case]) -> None:
    """Node 0: a publisher for each case, with its difference made, until the receiver is done."""
    for number, case in enumerate(cases):
        publisher = ship.Publisher(folder / case.file, [folder / case.held] if case.held else [])
        if case.held:
            held = ship.Publisher(folder / case.held).newest.sha256
            assert publisher.offer(held).difference is not None, case.name
        server = ship.open_server(publisher, host="0.0.0.0", port=FIRST_PORT + number)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    (folder / "serving").touch()
    _wait_for(folder / "received.json")


def fetch(folder: Path, cases: Sequence[Case], repetitions: int) -> None:
    """Node 1: receive each case, in turn."""
    _wait_for(folder / "serving")
    host = os.environ["MASTER_ADDR"]
    measured: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(repetitions):
        for number, case in enumerate(cases):
            target = folder / f"target{case.suffix}"
            target.unlink(missing_ok=True)
            if case.held:
                target.write_bytes((folder / case.held).read_bytes())
            before, start = read_counters()["eth0"].received_bytes, time.process_time()
            received = ship.receive(f"http://{host}:{FIRST_PORT + number}", target)
            processor = time.process_time() - start
            assert received.kind == ("difference" if case.held else "file")
            assert target.read_bytes() == (folder / case.file).read_bytes()
            nic = read_counters()["eth0"].received_bytes - before
            measured[number].append(
                {
                    "bytes": received.transferred_bytes,
                    "nic": nic,
                    "transfer": received.transfer_seconds,
                    "all": received.seconds,
                    "processor": processor,
                }
            )
    partial = folder / "received.partial"
    partial.write_text(json.dumps(measured))
    partial.replace(folder / "received.json")


def measure(folder: Path, cases: Sequence[Case], rate: str, repetitions: int) -> list[list[dict[str, float]]]:
    """Ship all cases between two nodes whose links have that rate."""
    (folder / "cases.json").write_text(json.dumps([[case.name, case.file, case.held] for case in cases]))
    command = [sys.executable, "-m", "dtrain.cli", "cluster", "run", "--nodes", "2", "--rate", rate, "--"]
    command += [sys.executable, str(Path(__file__).resolve()), "--worker", str(folder)]
    command += ["--repetitions", str(repetitions)]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    measured: list[list[dict[str, float]]] = json.loads((folder / "received.json").read_text())
    return measured


def table(cases: Sequence[Case], measured: Sequence[Sequence[dict[str, float]]], rate: str) -> str:
    rows = [
        "| what is shipped | bytes | fewer than fp32 | ideal, s | transfer, s | quartiles | transfer / ideal "
        "| in place, s | receiver's processor, s | received by the interface / bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    fp32 = measured[0][0]["bytes"]
    for case, times in zip(cases, measured, strict=True):
        size = times[0]["bytes"]
        ideal = size * 8 / parse_rate(rate)
        low, middle, high = quartiles([one["transfer"] for one in times])
        _, everything, _ = quartiles([one["all"] for one in times])
        _, processor, _ = quartiles([one["processor"] for one in times])
        _, nic, _ = quartiles([one["nic"] / size for one in times])
        rows.append(
            f"| {case.name} | {size:,} | {fp32 / size:.2f}x | {ideal:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} "
            f"| {middle / ideal:.3f} | {everything:.3f} | {processor:.2f} | {nic:.3f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/ship"), help="the training run (default: runs/ship)")
    parser.add_argument("--rate", default="10mbit", help="of the link (default: 10mbit)")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        cases = [Case(*fields) for fields in json.loads((options.worker / "cases.json").read_text())]
        if os.environ["RANK"] == "0":
            serve(options.worker, cases)
        else:
            fetch(options.worker, cases, options.repetitions)
        return
    torch.set_num_threads(1)  # as in the run: the result file states it
    if not (options.run / "checkpoints").is_dir():
        train(options.run.resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases, costs = prepare(options.run, folder)
        measured = measure(folder, cases, options.rate, options.repetitions)
    body = "\n\n".join(
        [
            "squeezenet1_0 with 1000 classes (4,993,696 B of weights), trained on digits for 24 epochs by one rank, "
            f"learning rate falling linearly to 0, seed 0; link of {options.rate} each way; {options.repetitions} "
            "repetitions, medians. Transfer: from the request for the body to its last byte; it can be shorter than "
            "the ideal, since a link lets 32 KiB through at once. In place: from the first request until the "
            "receiver's file is the new version, verified and on disk, on a busy machine; the receiver's processor: "
            "what it computed for that. The publisher had made its differences before.",
            table(cases, measured, options.rate),
            "Seconds of the processor, late checkpoints, one thread:",
            "\n".join(
                [
                    "| preset | pack | unpack | make and try the difference | take it in |",
                    "|---|---|---|---|---|",
                    *costs,
                ]
            ),
        ]
    )
    print(body)
    print(write_result("ship", options.hardware, "A model over a slow link: fp32, packed, difference", body))


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)


if __name__ == "__main__":
    main()
