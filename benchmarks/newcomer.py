"""From the README's first line to an answer, in three roles, on fresh clones: minutes and commands, now and before.

    python benchmarks/newcomer.py [--keep FOLDER]      # network; 1.5 GB for each of two clones

The roles are the README's: who wants to know what a program of theirs sends; who asks whether to send less, and what
that does to the loss; who wants the paper's claims. Each types what the README of that commit says, and has a DDP
program of 17 lines. Before, what compressing is worth was found by training over shaped links, once for each answer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from harness import write_result

REPOSITORY = Path(__file__).parents[1]
PROGRAM = """\
import torch
import torch.distributed as dist
import mine_data as data

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(data.network())
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
# COMPRESS
for step in range(200):
    images, labels = data.batch(step, dist.get_rank())
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if dist.get_rank() == 0:
    print("test", data.accuracy(model.module))
"""
DATA = """\
import torch
from sklearn.datasets import load_digits

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)


def network():
    layers = torch.nn.Conv2d(1, 64, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64 * 36, 256)
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(256, 10))


def batch(step, rank):
    chosen = torch.randint(1400, (16,), generator=torch.Generator().manual_seed(2 * step + rank))
    return images[chosen], labels[chosen]


def accuracy(model):
    with torch.no_grad():
        return (model(images[1400:]).argmax(1) == labels[1400:]).float().mean().item()
"""
TORCHRUN = "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2"
ON_NODES = "OMP_NUM_THREADS=1 dtrain cluster run --nodes 2 --rate {} -- torchrun --nproc-per-node=1 {}"
ADD = """sed 's/^# COMPRESS/import dtrain; dtrain.compress(model, "int4"{})/' mine.py > less.py"""
INSTALL = ("make install", ". .venv/bin/activate")


class When(NamedTuple):
    """A commit, and what each role typed there after `INSTALL`; sourcing the environment counts as a command."""

    commit: str
    roles: dict[str, tuple[str, ...]]


NOW = When(
    "HEAD",
    {
        "meter my script": (f"{TORCHRUN} -m dtrain.meter mine.py",),
        "compress my training": (
            f"{TORCHRUN} -m dtrain.meter --steps 20 --trace run.json mine.py",
            "dtrain plan run.json --nodes 2 --link 100mbit",
            "dtrain plan run.json --nodes 2 --link 1gbit",
            ADD.format(", optimizer=optimizer"),
            f"{TORCHRUN} -m dtrain.meter less.py",
        ),
        "the paper's claims": ("make demo",),
    },
)
BEFORE = When(
    "fc4e078~1",
    {
        "meter my script": (f"{TORCHRUN} -m dtrain.meter mine.py",),
        "compress my training": (
            f"{TORCHRUN} -m dtrain.meter mine.py",
            ADD.format(""),
            f"{TORCHRUN} -m dtrain.meter less.py",
            *(ON_NODES.format(rate, program) for rate in ("100mbit", "1gbit") for program in ("mine.py", "less.py")),
        ),
        "the paper's claims": ("make demo",),
    },
)


class Took(NamedTuple):
    """By one command."""

    command: str
    seconds: float
    said: str


def typed(when: When, folder: Path) -> dict[str, list[Took]]:
    """What each role's commands took, `installing` first. Raises RuntimeError with what one said if it fails."""
    clone = folder / when.commit.removesuffix("~1")
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    subprocess.run(["git", "-C", str(clone), "checkout", "--quiet", when.commit], check=True)
    (clone / "mine.py").write_text(PROGRAM)
    (clone / "mine_data.py").write_text(DATA)
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    took = {"installing": [_type(clone, environ, INSTALL[0])]}
    for role, commands in when.roles.items():
        took[role] = [_type(clone, environ, f"{INSTALL[1]}; {command}") for command in commands]
    return took


def _type(clone: Path, environ: dict[str, str], command: str) -> Took:
    begun = time.monotonic()
    done = subprocess.run(["bash", "-c", command], cwd=clone, env=environ, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    shown = command.removeprefix(f"{INSTALL[1]}; ")
    print(f"$ {shown}\n{done.stdout}{done.stderr}[{seconds:.1f} s, exit code {done.returncode}]\n", flush=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: exit code {done.returncode}")
    return Took(shown, seconds, done.stdout + done.stderr)


def main() -> None:
    """Be all three, now and before, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="where the clones are left, to be looked at")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parsed = parser.parse_args()
    with ExitStack() as stack:
        folder = parsed.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        now, before = typed(NOW, folder), typed(BEFORE, folder)
    rows = ["| role | commands now | minutes | of them installing | before | minutes |", "|---|---|---|---|---|---|"]
    installing = [sum(one.seconds for one in took["installing"]) for took in (now, before)]
    for role in NOW.roles:
        minutes = [
            (sum(one.seconds for one in took[role]) + first) / 60
            for took, first in zip((now, before), installing, strict=True)
        ]
        numbers = [len(took[role]) + len(INSTALL) for took in (now, before)]
        rows.append(
            f"| {role} | {numbers[0]} | {minutes[0]:.1f} | {installing[0] / 60:.1f} | {numbers[1]} | {minutes[1]:.1f} |"
        )
    body = [
        "One run each: no spread. Commands count from `make install`. Before: "
        f"{BEFORE.commit.removesuffix('~1')}'s parent.",
        "",
        *rows,
    ]
    for title, took in (("now", now), ("before", before)):
        for role, commands in took.items():
            body += ["", f"## {role}, {title}", ""]
            body += [f"- `{one.command}`: {one.seconds:.1f} s" for one in commands]
    print(write_result("newcomer", parsed.hardware, "From the README's first line to an answer", "\n".join(body)))


if __name__ == "__main__":
    main()
