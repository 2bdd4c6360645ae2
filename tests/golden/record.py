"""A record of what training computes and sends, bit for bit, to hold a rebuilt dtrain against.

    python tests/golden/record.py write tests/golden/record.json    # on the code that is right
    python tests/golden/record.py check tests/golden/record.json    # on the code that must be the same

Every case is a short run of `python -m dtrain.train` in processes of its own, so that nothing but the command line has
to stay as it is. Recorded are the losses, the ledger's totals, a hash of the weights, of the optimizer's and of each
rank's compressor state, and the bytes of the packed model. Bits hold on one kind of processor only: the record names
it. Messages with the purpose control are left out: ranks use them to agree on things, of which there may be more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = ["model=squeezenet1_1", "data=digits", "batch_size=8", "log_every=1", "observe.progress=false", "threads=1"]
SETTINGS += ["guard=off"]  # what is recorded is arithmetic, and 12 steps ruin nothing
SETTINGS += ["first_bucket_bytes=300000", "bucket_bytes=1000000"]  # several buckets, small messages among them
STEPS = ["num_steps=6", "save_every=6", "eval_every_epochs=0"]
PHASES = ["save_every=9", "+phases.dense={num_steps: 3}", "+phases.prune={density: 0.33, num_steps: 3}"]
PHASES += ["+phases.share={bits: 5, num_steps: 3, learning_rate: 0.1}", "optimizer.learning_rate=0.005"]
MOMENTUM_INSIDE = ["optimizer.momentum=0", "compressor.momentum=0.9"]


class Case(NamedTuple):
    """One run."""

    name: str
    ranks: int
    settings: list[str]
    backend: str = "gloo"


def cases() -> list[Case]:
    compressors = {name: [] for name in ("none", "fp16", "bf16", "int8", "int4", "ternary", "one_bit")}
    compressors["ternary"] = ["compressor.rounding=nearest"]
    compressors |= {"top_k": [], "random_k": [], "power_sgd": [], "dgc": MOMENTUM_INSIDE}
    variants = {
        "int8 stochastic": ["compressor=int8", "compressor.rounding=stochastic"],
        "ternary stochastic": ["compressor=ternary", "compressor.rounding=stochastic"],
        "top_k split": ["compressor=top_k", "compressor.exchange=split", "compressor.density=0.01"],
        "dgc split clipped": [
            "compressor=dgc",
            "compressor.exchange=split",
            "compressor.clip_norm=1",
            *MOMENTUM_INSIDE,
        ],
        "int4 but for biases": ["compressor=int4", "compressor.exempt_below=1000"],
        "one_bit after 2 steps": ["compressor=one_bit", "compressor.start_after=2"],
        "power_sgd 2 blocking": ["compressor=power_sgd", "compressor.power_sgd_rank=2", "overlap=false"],
        "none in parts clipped": ["micro_batches=2", "optimizer.clip_norm=1", "optimizer.schedule=cosine"],
    }
    found = []
    for ranks in (2, 4):
        for name, extra in compressors.items():
            found.append(Case(name, ranks, [f"compressor={name}", *STEPS, *extra]))
        found += [Case(name, ranks, [*settings, *STEPS]) for name, settings in variants.items()]
        found += [Case(f"phases {name}", ranks, [f"compressor={name}", *PHASES]) for name in ("none", "int8", "top_k")]
    mpi = ("int8", "top_k", "power_sgd")
    found += [Case(f"mpi {name}", 2, [f"compressor={name}", *STEPS, "backend=mpi"], "mpi") for name in mpi]
    return found


def run(case: Case, folder: Path) -> Path:
    """The run directory of the finished case."""
    run_dir = folder / "run"
    program = [sys.executable, "-m", "dtrain.train", *SETTINGS, *case.settings, f"run_dir={run_dir}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environ.setdefault("PYTHONPATH", str(REPOSITORY))
    if case.backend == "mpi":
        commands = [[str(Path(sys.executable).with_name("mpiexec")), "-n", str(case.ranks), *program]]
        environs = [environ]
    else:
        commands = [program] * case.ranks
        job = {"WORLD_SIZE": str(case.ranks), "LOCAL_WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1"}
        job["MASTER_PORT"] = str(_free_port())
        environs = [{**environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(case.ranks)]
    ranks = [
        subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command, env in zip(commands, environs, strict=True)
    ]
    said = [process.communicate(timeout=600)[1] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit(f"{case.name} at {case.ranks} ranks failed:\n{''.join(said)}")
    return run_dir


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def figures(run_dir: Path) -> dict[str, Any]:
    """What is recorded of a run."""
    reported = _lines(run_dir / "metrics.jsonl")
    totals: dict[str, list[float]] = {}
    for record in _lines(run_dir / "ledger" / "rank0.jsonl"):
        for entry in record["entries"]:
            if entry["purpose"] != "control":
                total = totals.setdefault(f"{entry['phase']} {entry['purpose']} {entry['op']}", [0, 0, 0.0])
                total[0] += 1
                total[1] += entry["payload_bytes"]
                total[2] += entry["wire_bytes"]
    checkpoint = max((run_dir / "checkpoints").iterdir())
    states = {path.stem: _hash(path) for path in sorted(checkpoint.glob("rank*.safetensors"))}
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "losses": [line["loss"] for line in reported if line["kind"] == "train"],
        "test_losses": [line["loss"] for line in reported if line["kind"] == "eval"],
        "totals": totals,
        "model": _hash(run_dir / "model.safetensors"),
        "optimizer": _hash(*checkpoint.glob("optimizer*.safetensors")),
        "states": states,
        "phases": summary["phases"],
        "packed_bytes": summary["packed_bytes"],
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _hash(*paths: Path) -> str:
    """Of the tensors by name, in one file or several; the metadata may change."""
    digest, tensors = hashlib.sha256(), {name: tensor for path in paths for name, tensor in load_file(path).items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Where two records differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in dict.fromkeys((*before, *after)):
            lines += differences(before.get(key), after.get(key), f"{path}/{key}")
        return lines
    return [] if before == after else [f"{path}: {before} before, {after} now"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("write", "check"))
    parser.add_argument("record", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    known = json.loads(arguments.record.read_text()) if arguments.verb == "check" else {"cases": {}}
    machine = {"processor": _processor(), "torch": torch.__version__, "python": platform.python_version()}
    if arguments.verb == "check" and known["machine"] != machine:
        print(f"the record is of another machine, so bits may differ: {known['machine']} and not {machine}")
    known["machine"] = machine
    failed = 0
    for case in cases():
        if arguments.only not in case.name:
            continue
        key = f"{case.name}, {case.ranks} ranks"
        with tempfile.TemporaryDirectory(prefix="dtrain-record-") as folder:
            now = json.loads(json.dumps(figures(run(case, Path(folder)))))
        if arguments.verb == "write":
            known["cases"][key] = now
            print(f"{key}: {now['losses'][-1]:.6f}", flush=True)
            arguments.record.write_text(json.dumps(known, indent=1) + "\n")
            continue
        lines = differences(known["cases"][key], now)
        failed += bool(lines)
        print(f"{key}: {'the same' if not lines else 'DIFFERENT'}", *lines, sep="\n  ", flush=True)
    return 1 if failed else 0


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    sys.exit(main())
