"""What every method costs in accuracy, under the optimizers people have: the recipe of fp32 itself, several seeds.

    python benchmarks/accuracy.py digits gpt                # seed after seed, so that the first is whole early
    python benchmarks/accuracy.py cifar10 --root CIFAR      # a tree of class folders; 4 ranks, 8 epochs
    python benchmarks/accuracy.py digits gpt --only-done --write

Gradients are exchanged every step (compress), or what the optimizer changed (local); savings are of wire bytes over the
whole run. Runs stay in --runs, and those that are there already are not run again; the result says which commits they
are of. --write renews dtrain/compressors/trials.json, from which dtrain knows what to refuse, and docs/compressors.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from harness import commit, write_result

from dtrain.compressors.trials import FAILS

ROOT = Path(__file__).resolve().parents[1]
TRIALS = ROOT / "dtrain" / "compressors" / "trials.json"
DOCS = ROOT / "docs" / "compressors.md"
TABLES = re.compile("(?<=<!-- by benchmarks/accuracy.py -->\\n).*?(?=<!-- end -->)", re.DOTALL)
"""What of the documentation is written here."""
RESULT, COMMIT = "result.json", "commit.txt"
"""In a run's folder: what came of it, and what it was run with."""
HOPELESS = "points, or %% of the loss: what costs more on the first seed is run with no other"


class Method(NamedTuple):
    """What is exchanged how often, and through which compressor. `rounds`: what else is said of local rounds."""

    exchanged: str
    compressor: str
    options: Mapping[str, Any] = MappingProxyType({})
    every: int = 1
    rounds: Mapping[str, Any] = MappingProxyType({})

    @property
    def label(self) -> str:
        """For people, and for a folder."""
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        every = f" every={self.every}" if self.every > 1 else ""
        rounds = "".join(f" {name}={value}" for name, value in self.rounds.items())
        return f"{self.exchanged} {self.compressor}{options}{every}{rounds}"


NEAREST, STOCHASTIC = {"rounding": "nearest"}, {"rounding": "stochastic"}
NONE = Method("gradient", "none")
GRADIENTS = (
    NONE,
    Method("gradient", "fp16"),
    Method("gradient", "bf16"),
    Method("gradient", "int8"),
    Method("gradient", "int4"),
    Method("gradient", "ternary", NEAREST),
    Method("gradient", "ternary", STOCHASTIC),
    Method("gradient", "rotated_signs"),
    Method("gradient", "one_bit"),
    Method("gradient", "top_k", {"density": 0.01}),
    Method("gradient", "top_k", {"density": 0.001}),
    Method("gradient", "chunked_top_k"),
    Method("gradient", "random_k", {"density": 0.1}),
    Method("gradient", "power_sgd", {"power_sgd_rank": 4}),
    Method("gradient", "power_sgd", {"power_sgd_rank": 1}),
    Method("gradient", "power_sgd", {"power_sgd_rank": 1, "all_reduces": 1}),
)
KEEPS_MOMENTUM = (
    Method("gradient", "dgc", {"density": 0.05}),
    Method("gradient", "dgc", {"density": 0.01}),
    Method("gradient", "dgc", {"density": 0.0015}),
    Method("gradient", "dgc", {"density": 0.001}),
)
UPDATES = (
    Method("update", "none"),
    Method("update", "int8"),
    Method("update", "int4"),
    Method("update", "ternary", NEAREST),
    Method("update", "ternary", STOCHASTIC),
    Method("update", "rotated_signs"),
    Method("update", "rotated_signs", every=4),
    Method("update", "rotated_signs", every=8),
    Method("update", "rotated_signs", every=16),
    Method("update", "rotated_signs", every=32),
    Method("update", "one_bit"),
    Method("update", "top_k", {"density": 0.05}),
    Method("update", "top_k", {"density": 0.01}),
    Method("update", "top_k", {"density": 0.001}),
    Method("update", "top_k", {"density": 0.01}, 4),
    Method("update", "top_k", {"density": 0.01}, 8),
    Method("update", "top_k", {"density": 0.001}, 4),
    Method("update", "random_k", {"density": 0.1}),
    Method("update", "power_sgd", {"power_sgd_rank": 4}),
    Method("update", "power_sgd", {"power_sgd_rank": 1}),
    Method("update", "power_sgd", {"power_sgd_rank": 4, "all_reduces": 1}),
    Method("update", "ternary", STOCHASTIC, 4),
    Method("update", "ternary", STOCHASTIC, 5),
    Method("update", "ternary", STOCHASTIC, 51),
    Method("update", "int4", every=16),
    Method("update", "chunked_top_k", every=30),
    Method("update", "chunked_top_k", every=30, rounds={"start_after": 40}),
    Method("update", "rotated_signs", every=16, rounds={"growth": 0.1}),
    Method("update", "rotated_signs", every=16, rounds={"outer": "nesterov"}),
)
METHODS = {"sgd": (*GRADIENTS, *KEEPS_MOMENTUM, *UPDATES), "adamw": (*GRADIENTS, *UPDATES)}
OPTIMIZERS = {"sgd": "SGD, momentum 0.9", "adamw": "AdamW"}


@dataclass(frozen=True)
class Task:
    """A recipe. `figure` is what it is judged by: top-1 accuracy in %, or validation loss."""

    world_size: int
    figure: str
    settings: tuple[str, ...]
    methods: dict[str, tuple[Method, ...]]

    def command(self, method: Method, optimizer: str, seed: int, run_dir: Path) -> list[str]:
        """A rank of a run."""
        options = method.options.items()
        if self.figure == "loss":
            how = {"gradient": "--compress", "update": "--local"}[method.exchanged]
            command = [sys.executable, "examples/gpt.py", f"--optimizer={optimizer}", f"--seed={seed}"]
            command += [f"{how}={method.compressor}"] if method != NONE else []
            command += [f"--every={method.every}"] if method.exchanged == "update" else []
            command += [f"--round={name}={json.dumps(value)}" for name, value in method.rounds.items()]
            return [*command, *(f"--option={name}={json.dumps(value)}" for name, value in options), "--guard=off"]
        sync = ["sync=local", f"sync.every={method.every}"] if method.exchanged == "update" else []
        sync += [f"sync.{name}={value}" for name, value in method.rounds.items()]
        command = [sys.executable, "-m", "dtrain.train", *self.settings, f"optimizer={optimizer}", *sync]
        command += [f"compressor={method.compressor}", *(f"compressor.{name}={value}" for name, value in options)]
        return [*command, "guard=off", f"seed={seed}", f"run_dir={run_dir}", "overwrite=true", "log_every=45"]


DIGITS = Task(2, "accuracy", ("experiment=digits", "model.num_classes=10", "eval_every_epochs=0"), METHODS)
GPT = Task(2, "loss", (), METHODS)
CIFAR10 = Task(
    4,
    "accuracy",
    (
        "experiment=cifar10",
        "data=image_folder",
        "data.image_size=32",
        "data.augment=false",
        "data.mean=[0.4914,0.4822,0.4465]",
        "data.std=[0.247,0.2435,0.2616]",
        "num_epochs=8",
        "batch_size=16",
        "eval_every_epochs=0",
    ),
    {
        "sgd": (
            NONE,
            Method("gradient", "int4"),
            Method("update", "ternary", STOCHASTIC),
            Method("gradient", "dgc", {"density": 0.0015}),
            Method("update", "rotated_signs"),
            Method("update", "rotated_signs", every=32),
            Method("update", "top_k", {"density": 0.01}, 8),
            Method("update", "int4", every=16),
            Method("update", "ternary", STOCHASTIC, 6),
            Method("update", "rotated_signs", every=4),
            Method("update", "chunked_top_k", every=10),
            Method("update", "chunked_top_k", every=30),
            Method("update", "rotated_signs", every=16, rounds={"start_after": 626}),
            Method("update", "chunked_top_k", every=10, rounds={"start_after": 313}),
            Method("update", "rotated_signs", every=4, rounds={"qsr": 0.02}),
        )
    },
)
TASKS = {"digits": DIGITS, "gpt": GPT, "cifar10": CIFAR10}


def run(command: Sequence[str], world_size: int) -> str:
    """What rank 0 printed. Raises RuntimeError where a rank failed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    job = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    job |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"{' '.join(command)} failed:\n{max(outputs, key=len)[-2000:]}")
    return outputs[0]


def result_of(task: Task, method: Method, optimizer: str, seed: int, folder: Path) -> dict[str, Any]:
    """The figure and the saving of a run, done now or before. A figure of None: it diverged."""
    path = folder / RESULT
    if path.is_file():
        return dict(json.loads(path.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        output = run(task.command(method, optimizer, seed, folder / "run"), task.world_size)
    except RuntimeError as error:
        if "is not finite" not in str(error) and "the loss is nan" not in str(error):
            raise
        result: dict[str, Any] = {"figure": None, "saving": None}
    else:
        if task.figure == "loss":
            said = json.loads(output.splitlines()[-1])
            result = {"figure": said["validation_loss"], "saving": said["saving_vs_fp32"]}
        else:
            said = json.loads((folder / "run" / "summary.json").read_text())
            result = {"figure": 100 * said["accuracy"], "saving": said["saving_vs_fp32"]}
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / COMMIT).write_text(commit() + "\n")
    path.write_text(json.dumps(result) + "\n")
    return result


def folder_of(runs: Path, task: str, method: Method, optimizer: str, seed: int) -> Path:
    """Where a run is."""
    return runs / task / optimizer / method.label.translate(str.maketrans(" ", "-", "=,")) / f"seed{seed}"


@dataclass(frozen=True)
class Trial:
    """A method under an optimizer against fp32, over the seeds that both have.

    `cost` is in points of accuracy, or in % of the loss: more is worse. None where a run diverged.
    """

    task: str
    optimizer: str
    method: Method
    seeds: int
    figures: tuple[float | None, ...]
    cost: float | None
    saving: float

    def as_json(self) -> dict[str, Any]:
        """As trials.json has it."""
        method = self.method
        return {
            "task": self.task,
            "optimizer": self.optimizer,
            "exchanged": method.exchanged,
            "compressor": method.compressor,
            "options": dict(method.options),
            "every": method.every,
            "world_size": TASKS[self.task].world_size,
            "seeds": self.seeds,
            "cost": None if self.cost is None else round(self.cost, 2),
            "saving": round(self.saving, 2),
            **method.rounds,
        }

    def cell(self) -> str:
        """Of the tables in the documentation: bold where it fails, as dtrain.compressors.trials has it."""
        if self.cost is None:
            return "**diverged**"
        loss = TASKS[self.task].figure == "loss"
        shown = f"{self.cost:+.1f}%" if loss else f"{0 - self.cost:+.1f}"
        return f"**{shown}**" if self.cost > FAILS["loss" if loss else "accuracy"] else shown

    def row(self) -> str:
        """Of the table."""
        task, method = TASKS[self.task], self.method
        digits = 4 if task.figure == "loss" else 2
        shown = ", ".join("diverged" if f is None else f"{f:.{digits}f}" for f in self.figures)
        cost = (
            "diverged" if self.cost is None else f"{0 - self.cost:+.2f} points" if digits == 2 else f"{self.cost:+.2f}%"
        )
        fp16 = self.saving / 2  # of whole runs: fp16 sends half of what fp32 sends, each step
        return f"| {method.label} | {shown} | {cost} | {self.saving:.2f}x | {fp16:.2f}x |"


def trial(runs: Path, name: str, method: Method, optimizer: str, seeds: Iterable[int]) -> Trial | None:
    """From the runs that are there; None where there is none."""
    task = TASKS[name]
    results = {}
    for seed in seeds:
        paths = [folder_of(runs, name, one, optimizer, seed) / RESULT for one in (method, NONE)]
        if all(path.is_file() for path in paths):
            results[seed] = [json.loads(path.read_text()) for path in paths]
    if not results:
        return None
    figures = tuple(mine["figure"] for mine, _ in results.values())
    cost = None
    if None not in figures:
        sign = 1 if task.figure == "loss" else -1
        differences = [
            sign * (mine["figure"] - base["figure"]) * (100 / base["figure"] if task.figure == "loss" else 1)
            for mine, base in results.values()
        ]
        cost = statistics.mean(differences)
    saving = next((mine["saving"] for mine, _ in results.values() if mine["saving"]), 0.0)
    return Trial(name, optimizer, method, len(results), figures, cost, saving)


def tables(trials: Sequence[Trial]) -> str:
    """One for each task and optimizer."""
    parts = []
    for name, optimizer in dict.fromkeys((t.task, t.optimizer) for t in trials):
        task = TASKS[name]
        what = f"{name}, {OPTIMIZERS[optimizer]}, {task.world_size} ranks"
        figure = "validation loss" if task.figure == "loss" else "accuracy, %"
        parts.append(f"### {what}\n\n| method | {figure}, by seed | against fp32, mean | saving | against fp16 |")
        parts[-1] += "\n|---|---|---|---|---|\n"
        parts[-1] += "\n".join(t.row() for t in trials if (t.task, t.optimizer) == (name, optimizer))
    return "\n\n".join(parts)


def tables_for_docs(trials: Sequence[Trial]) -> str:
    """One for each optimizer: a row for each method, a column for each task and kind of exchange."""
    parts = []
    for optimizer, named in OPTIMIZERS.items():
        of_optimizer = [one for one in trials if one.optimizer == optimizer]
        columns = sorted({(one.task, one.method.exchanged) for one in of_optimizer}, key=str)
        rows: dict[str, dict[tuple[str, str], Trial]] = {}
        for one in sorted(of_optimizer, key=lambda one: one.saving):
            method = one.method.label.partition(" ")[2]
            rows.setdefault(method, {})[one.task, one.method.exchanged] = one
        parts.append(f"Under {named}:\n\n| method | fewer bytes | {' | '.join(f'{t}, {e}s' for t, e in columns)} |")
        parts[-1] += "\n" + "|---" * (2 + len(columns)) + "|\n"
        for method, cells in rows.items():
            saving = max(one.saving for one in cells.values())
            shown = (cells[column].cell() if column in cells else "" for column in columns)
            fewer = f"{saving:,.0f}x" if saving >= 100 else f"{saving:.3g}x"
            parts[-1] += f"| {method} | {fewer} | {' | '.join(shown)} |\n"
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", choices=TASKS, nargs="+", metavar="TASK")
    parser.add_argument("--root", type=Path, help="cifar10: a folder with train/<class>/ and test/<class>/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--optimizers", choices=OPTIMIZERS, nargs="+", default=list(OPTIMIZERS))
    parser.add_argument(
        "--only", default=[""], nargs="+", metavar="TEXT", help="methods whose label holds one, and fp32"
    )
    parser.add_argument("--hopeless", type=float, default=10.0, metavar="COST", help=HOPELESS)
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--only-done", action="store_true", help="report the runs that are there, and run none")
    parser.add_argument("--write", action="store_true", help="write the result file and trials.json")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    if "cifar10" in arguments.tasks and arguments.root is None:
        parser.error("cifar10 needs --root")
    tasks = dict(TASKS)
    tasks["cifar10"] = Task(4, "accuracy", (*CIFAR10.settings, f"data.root={arguments.root}"), CIFAR10.methods)
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    planned = [
        (name, optimizer, method)
        for name in arguments.tasks
        for optimizer, methods in tasks[name].methods.items()
        for method in methods
    ]
    runs = arguments.runs.resolve()
    for seed in arguments.seeds if not arguments.only_done else ():
        for name, optimizer, method in planned:
            wanted = method == NONE or any(text in method.label for text in arguments.only)
            if optimizer in arguments.optimizers and wanted:
                first = trial(runs, name, method, optimizer, arguments.seeds[:1])
                if first is not None and (first.cost is None or first.cost > arguments.hopeless):
                    continue
                folder = folder_of(runs, name, method, optimizer, seed)
                result = result_of(tasks[name], method, optimizer, seed, folder)
                print(seed, name, optimizer, method.label, result, flush=True)
    found = [trial(runs, name, method, optimizer, arguments.seeds) for name, optimizer, method in planned]
    trials = [one for one in found if one is not None]
    commits = sorted({path.read_text().strip() for path in runs.glob(f"*/*/*/*/{COMMIT}")})
    body = (
        "squeezenet1_1 on images (`conf/experiment`), a character GPT of 0.8 M parameters over 400 steps "
        "(`examples/gpt.py`), over gloo on one host, at the learning rate, schedule and steps of fp32. Negative points "
        "and positive % are worse. Savings are of wire bytes over the whole run; fp16's is 2x. "
        f"Commits of the runs: {', '.join(commits) or 'not recorded'}.\n\n{tables(trials)}"
    )
    print(body)
    if arguments.write:
        plain = [one for one in trials if one.method.rounds.keys() <= {"outer"}]
        mine = {(one.task, TASKS[one.task].world_size) for one in plain}
        others = [t for t in json.loads(TRIALS.read_text()) if (t["task"], t["world_size"]) not in mine]
        TRIALS.write_text(json.dumps([one.as_json() for one in plain] + others, indent=1) + "\n")
        DOCS.write_text(TABLES.sub(lambda _: tables_for_docs(trials), DOCS.read_text()))
        print(write_result("accuracy", arguments.hardware, "Accuracy under compression", body))


if __name__ == "__main__":
    main()
