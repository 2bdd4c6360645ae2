"""Updates and gradients exchanged by 2 to 16 workers in lockstep: which compressors bear how many workers.

    python benchmarks/updates.py                       # the character GPT of examples/gpt.py, AdamW, 400 steps
    python benchmarks/updates.py --workers 4 8 --only-done --write

Virtual workers in one process take the steps that real ones would, each with its own batches and its own AdamW; the
same compressors, states and rounds. Lines are kept in --done, and those that are there are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import write_result
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dtrain import compressors
from dtrain.comm.lockstep import lockstep
from dtrain.exchange import Bucket
from dtrain.meter.ledger import Ledger
from dtrain.sync.buckets import layout_of, trainable
from dtrain.sync.drive import drive_lockstep
from dtrain.sync.states import States

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from gpt import BATCH_SIZE, Gpt, Text, validate

STEPS = 400
TRIALS = Path(__file__).resolve().parents[1] / "dtrain" / "compressors" / "trials.json"


class Case(NamedTuple):
    """A compressor with options, and steps from one exchange to the next, of updates unless gradients are said.

    Every `average_every` steps the optimizers' states become their mean; 0: never.
    """

    compressor: str
    options: dict[str, Any]
    average_every: int = 0
    every: int = 1
    of_gradients: bool = False

    @property
    def label(self) -> str:
        """For people."""
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        averaged = f", AdamW's states averaged every {self.average_every} steps" if self.average_every else ""
        every = f" every={self.every}" if self.every > 1 else ""
        return f"{'gradients, ' if self.of_gradients else ''}{self.compressor}{options}{every}{averaged}"


NEAREST, STOCHASTIC = {"rounding": "nearest"}, {"rounding": "stochastic"}
GRADIENTS = Case("fp32", {}, of_gradients=True)
CASES = (
    GRADIENTS,
    Case("int4", NEAREST, of_gradients=True),
    Case("ternary", STOCHASTIC, of_gradients=True),
    Case("rotated_signs", {}, of_gradients=True),
    Case("none", {}),
    Case("int4", NEAREST),
    Case("int4", STOCHASTIC),
    Case("ternary", NEAREST),
    Case("ternary", STOCHASTIC),
    Case("rotated_signs", {}),
    Case("ternary", STOCHASTIC, 50),
    Case("none", {}, every=4),
    Case("ternary", STOCHASTIC, every=4),
    Case("rotated_signs", {}, every=4),
    Case("top_k", {"density": 0.01}, every=4),
    Case("top_k", {"density": 0.01}),
)


def train(case: Case, num_workers: int, seed: int, text: Text) -> float:
    """The validation loss at the end."""
    torch.manual_seed(seed)
    model = Gpt(text.vocabulary)
    replicas = [copy.deepcopy(model) for _ in range(num_workers)]
    optimizers = [torch.optim.AdamW(replica.parameters(), 1e-3, fused=True) for replica in replicas]
    generators = [torch.Generator().manual_seed(1000 + 77 * seed + rank) for rank in range(num_workers)]
    exchange = Exchange(case, replicas, num_workers) if case != GRADIENTS else None
    for step in range(STEPS):
        for replica, optimizer, generator in zip(replicas, optimizers, generators, strict=True):
            inputs, targets = text.batch(text.training, BATCH_SIZE, generator)
            optimizer.zero_grad()
            cross_entropy(replica(inputs).flatten(0, 1), targets.flatten()).backward()
        if exchange is None:
            for same in zip(*(replica.parameters() for replica in replicas), strict=True):
                mean = torch.stack([p.grad for p in same if p.grad is not None]).mean(0)
                for parameter in same:
                    parameter.grad = mean
        elif case.of_gradients:
            exchange.run_gradients()
        for replica, optimizer in zip(replicas, optimizers, strict=True):
            nn.utils.clip_grad_norm_(replica.parameters(), 1.0)
            optimizer.step()
        if exchange is not None and not case.of_gradients and (step + 1) % case.every == 0:
            exchange.run()
        if case.average_every and (step + 1) % case.average_every == 0:
            average_states(optimizers)
    return validate(replicas[0], text)


class Exchange:
    """By all virtual workers."""

    def __init__(self, case: Case, replicas: list[Gpt], num_workers: int) -> None:
        compressor = compressors.build(case.compressor, **case.options)
        self.replicas, self.layout = replicas, layout_of(trainable(replicas[0]))
        parameters = trainable(replicas[0])
        self.states = [States(compressor, parameters, rank=rank, world_size=num_workers) for rank in range(num_workers)]
        self.ledgers = [Ledger() for _ in range(num_workers)]
        self.communicators = lockstep(num_workers, self.ledgers)
        self.common = self._flat(replicas[0])

    def run(self) -> None:
        """Of what the steps since the last time changed. The replicas are equal afterwards."""
        self.common -= self._mean([self.common - self._flat(replica) for replica in self.replicas])
        for replica in self.replicas:
            for (_, parameter), (_, piece) in zip(trainable(replica), self.layout.pieces(self.common), strict=True):
                parameter.data.copy_(piece)

    def run_gradients(self) -> None:
        """Every replica then has the mean gradient."""
        grads = [[p.grad.reshape(-1) for _, p in trainable(r) if p.grad is not None] for r in self.replicas]
        mean = self._mean([torch.cat(of_replica) for of_replica in grads])
        for replica in self.replicas:
            for (_, parameter), (_, piece) in zip(trainable(replica), self.layout.pieces(mean.clone()), strict=True):
                parameter.grad = piece.view_as(parameter)

    def _mean(self, of_each: list[Tensor]) -> Tensor:
        share = 1.0 / len(self.replicas)
        buckets = [Bucket(value * share, self.layout) for value in of_each]
        exchanges = [states.exchange(bucket) for states, bucket in zip(self.states, buckets, strict=True)]
        results = drive_lockstep(exchanges, self.communicators)
        for states, result, ledger in zip(self.states, results, self.ledgers, strict=True):
            states.stage(self.layout, result)
            states.commit()
            ledger.close()
        return results[0].mean

    def _flat(self, replica: Gpt) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for _, p in trainable(replica)])


def average_states(optimizers: list[torch.optim.Optimizer]) -> None:
    """The means of both moments over workers become everybody's."""
    for states in zip(*(optimizer.state.values() for optimizer in optimizers), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            mean = torch.stack([state[key] for state in states]).mean(0)
            for state in states:
                state[key].copy_(mean)


def rows(done: Path, workers: list[int], seeds: list[int], only: list[str], *, only_done: bool) -> Iterator[str]:
    """A line per case; differences are against fp32 gradients with as many workers and the same seed."""
    known: dict[str, float] = json.loads(done.read_text()) if done.is_file() else {}
    text = Text()
    for seed in seeds:
        for num_workers in workers:
            for case in CASES:
                key = f"{case.label} | {num_workers} | {seed}"
                wanted = case == GRADIENTS or any(part in case.label for part in only)
                if key not in known and wanted and not only_done:
                    known[key] = train(case, num_workers, seed, text)
                    done.write_text(json.dumps(known, indent=1))
                    print(key, known[key], flush=True)
    yield "| exchanged | " + " | ".join(f"{n} workers" for n in workers) + " |"
    yield "|---|" + "---|" * len(workers)
    for case in CASES:
        cells = []
        for num_workers in workers:
            keys = [[f"{one.label} | {num_workers} | {seed}" for one in (case, GRADIENTS)] for seed in seeds]
            pairs = [(known[mine], known[base]) for mine, base in keys if mine in known and base in known]
            if not pairs:
                cells.append("")
                continue
            cost = statistics.mean(100 * (loss / fp32 - 1) for loss, fp32 in pairs)
            cells.append(f"{statistics.mean(loss for loss, _ in pairs):.3f} ({cost:+.1f}%)")
        yield f"| {case.label} | " + " | ".join(cells) + " |"


def write_trials(done: Path, workers: list[int], seeds: list[int]) -> None:
    """Renew those of so many workers in dtrain's trials: see benchmarks/accuracy.py."""
    known: dict[str, float] = json.loads(done.read_text())
    kept = [t for t in json.loads(TRIALS.read_text()) if t["task"] != "gpt" or t["world_size"] not in workers]
    for num_workers in workers:
        for case in CASES:
            keys = [[f"{one.label} | {num_workers} | {seed}" for one in (case, GRADIENTS)] for seed in seeds]
            costs = [100 * (known[mine] / known[base] - 1) for mine, base in keys if mine in known and base in known]
            if costs and not case.average_every and case != GRADIENTS:
                kept.append(
                    {
                        "task": "gpt",
                        "optimizer": "adamw",
                        "exchanged": "gradient" if case.of_gradients else "update",
                        "compressor": case.compressor,
                        "options": case.options if case.compressor != "int4" or case.options != NEAREST else {},
                        "every": case.every,
                        "world_size": num_workers,
                        "seeds": len(costs),
                        "cost": round(statistics.mean(costs), 2),
                        "saving": None,
                    }
                )
    TRIALS.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default=[""], nargs="+", metavar="TEXT", help="cases whose label holds one, and fp32")
    parser.add_argument("--only-done", action="store_true", help="report the runs that are there, and run none")
    parser.add_argument("--write", action="store_true", help="write the result file and, of 3 workers or more, trials")
    parser.add_argument("--done", type=Path, default=Path("runs/updates.json"))
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.done.parent.mkdir(parents=True, exist_ok=True)
    table = "\n".join(
        rows(arguments.done, arguments.workers, arguments.seeds, arguments.only, only_done=arguments.only_done)
    )
    body = (
        f"Character GPT of 0.8 M parameters, AdamW at 0.001, {STEPS} steps, batches of {BATCH_SIZE} a worker; "
        f"validation loss, mean over seeds {', '.join(map(str, arguments.seeds))}, against the exchange of gradients "
        f"in fp32 by as many workers. nearest: in error feedback; stochastic: unbiased, without.\n\n{table}"
    )
    print(body)
    if arguments.write:
        write_trials(arguments.done, [n for n in arguments.workers if n > 2], arguments.seeds)
        print(write_result("updates", arguments.hardware, "Updates exchanged, by the number of workers", body))


if __name__ == "__main__":
    main()
