"""Whether dtrain became slower or faster than an older checkout of it: short trainings, and codecs, in turn.

    python benchmarks/against.py --before ../old [--quick]

Both are run by their command line in processes of their own, which only PYTHONPATH tells apart: whatever moved in the
source, the same words start the same training. Blocks of the old and the new one alternate, and each block of the new
one is compared with its neighbour of the old one, so that a drift of the machine meets both.

Training: 2 ranks without torchrun's agent, one thread each; the seconds of each step are those of rank 0's ledger, the
first steps left out. Codecs: encode + decode, and a step of one rank of two, of benchmarks/codec_throughput.py, as each
checkout has it.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import quartiles, write_result

AFTER = Path(__file__).resolve().parents[1]
RANKS, WARMUP_STEPS = 2, 3
MODELS, COMPRESSORS = ("squeezenet1_1", "alexnet"), ("none", "int4", "top_k")
CODECS = ("int8", "int4", "one_bit", "ternary", "top_k 0.001", "power_sgd r=1")
SETTINGS = ("data=synthetic", "data.image_size=64", "log_every=1000000", "eval_every_epochs=0", "save_every=0")
SETTINGS += ("observe.progress=false", "threads=1", "seed=0")

CODEC_PROGRAM = """
import json, sys, time
sys.path.insert(0, "benchmarks")
import torch
import codec_throughput as bench

torch.set_num_threads(1)
torch.manual_seed(0)
shape = bench.layout()
bucket = bench.Bucket(torch.randn(shape.numel), shape)
name, options = bench.CASES[sys.argv[1]]
compressor = bench.build(name, **options)
seconds = []
for run in (bench.codec_of(compressor, bucket), bench.Step(compressor, bucket, 2)):
    run()
    run()
    took = []
    for _ in range(int(sys.argv[2])):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    seconds.append(took)
print(json.dumps(seconds))
"""


def environment(checkout: Path) -> dict[str, str]:
    """That of a process which imports dtrain from there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI_", "HOROVOD_"))}
    return {**kept, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def train(checkout: Path, model: str, compressor: str, num_steps: int) -> float:
    """Median seconds of a step, of a training by that checkout."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    job = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    environs = [
        {**environment(checkout), **job, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(RANKS)
    ]
    batch_size = 8 if model == "alexnet" else 32
    with tempfile.TemporaryDirectory(prefix="dtrain-against-") as folder:
        command = [sys.executable, "-m", "dtrain.train", f"model={model}", f"compressor={compressor}", *SETTINGS]
        command += [f"batch_size={batch_size}", f"num_steps={WARMUP_STEPS + num_steps}", f"run_dir={folder}/run"]
        started = [
            subprocess.Popen(command, env=one, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for one in environs
        ]
        said = [process.communicate(timeout=900)[1] for process in started]
        if any(process.returncode for process in started):
            raise SystemExit(f"{' '.join(command)}\nof {checkout} failed:\n{''.join(said)}")
        lines = (Path(folder) / "run" / "ledger" / "rank0.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["step"] is not None]
    seconds = [record["times"]["step"] for record in records[WARMUP_STEPS:]]
    assert len(seconds) == num_steps, f"{len(seconds)} steps in the ledger instead of {num_steps}"
    return statistics.median(seconds)


def codec(checkout: Path, case: str, runs: int) -> tuple[float, float]:
    """Median seconds of encode + decode, and of a step, of 25 MB."""
    command = [sys.executable, "-c", CODEC_PROGRAM, case, str(runs)]
    done = subprocess.run(command, env=environment(checkout), cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} of {checkout} failed:\n{done.stderr}")
    bare, step = json.loads(done.stdout)
    return statistics.median(bare), statistics.median(step)


def in_turn(
    block: Callable[[Path], Sequence[float]], before: Path, pairs: int
) -> list[tuple[list[float], list[float]]]:
    """For each figure of a block, those of the old and of the new checkout, pair by pair; who begins alternates."""
    olds, news = [], []
    for pair in range(pairs):
        if pair % 2 == 0:
            olds.append(block(before))
            news.append(block(AFTER))
        else:
            news.append(block(AFTER))
            olds.append(block(before))
    return list(zip(map(list, zip(*olds, strict=True)), map(list, zip(*news, strict=True)), strict=True))


def row(label: str, old: Sequence[float], new: Sequence[float]) -> str:
    """A line of the table; the ratio is below 1 where the new one is faster."""
    low, ratio, high = quartiles([b / a for a, b in zip(old, new, strict=True)])
    olds, news = 1e3 * statistics.median(old), 1e3 * statistics.median(new)
    return f"| {label} | {olds:.1f} | {news:.1f} | {ratio:.3f} | {low:.3f} to {high:.3f} |"


HEADER = "| what | before, ms | after, ms | after / before, median of pairs | quartiles |\n|---|---|---|---|---|"


def rows(before: Path, pairs: int, steps: int, runs: int, only: str) -> Iterator[str]:
    """The table's lines whose label holds `only`, each as soon as it is measured."""
    for model in MODELS:
        for compressor in COMPRESSORS:
            if only not in f"step of {model}, {compressor}":
                continue

            def training(checkout: Path, model: str = model, compressor: str = compressor) -> Sequence[float]:
                return (train(checkout, model, compressor, steps),)

            ((old, new),) = in_turn(training, before, pairs)
            yield row(f"step of {model}, {compressor}", old, new)
    for case in CODECS:
        if only not in f"{case}, 25 MB":
            continue

        def coding(checkout: Path, case: str = case) -> Sequence[float]:
            return codec(checkout, case, runs)

        bare, step = in_turn(coding, before, pairs)
        yield row(f"{case}, 25 MB: encode + decode", *bare)
        yield row(f"{case}, 25 MB: a step of one rank of 2", *step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT", help="the older source, whole")
    parser.add_argument("--pairs", type=int, default=9, help="of blocks, for each line")
    parser.add_argument("--quick", action="store_true", help="2 pairs of few steps, and write no result file")
    parser.add_argument("--only", default="", metavar="TEXT", help="lines that hold it, and write no result file")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    before = arguments.before.resolve()
    if not (before / "dtrain").is_dir():
        parser.error(f"--before {before} holds no dtrain: give the root of a checkout")
    pairs, steps, runs = (2, 3, 2) if arguments.quick else (arguments.pairs, 20, 10)
    lines = []
    print(HEADER, flush=True)
    for line in rows(before, pairs, steps, runs, arguments.only):
        lines.append(line)
        print(line, flush=True)
    setup = f"Before: {describe(before)}. {RANKS} ranks, gloo over loopback, images of 64x64, "
    setup += f"32 on each rank (AlexNet: 8), seed 0. {pairs} pairs of blocks for each line, of {steps} steps or "
    setup += f"{runs} runs; a block counts as its median."
    body = "\n".join([setup, "", HEADER, *lines])
    if not arguments.quick and not arguments.only:
        print(write_result("against", arguments.hardware, "Against an older checkout", body))


def describe(checkout: Path) -> str:
    """Its commit, where it is one."""
    git = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False, cwd=checkout)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else str(checkout)


if __name__ == "__main__":
    main()
