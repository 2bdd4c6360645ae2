"""Our compressors beside other people's: bytes by the ledger and by the kernel, and seconds per step, in one run.

    git clone https://github.com/sands-lab/grace; git clone https://github.com/epfml/powersgd
    DTRAIN_GRACE=grace DTRAIN_POWERSGD=powersgd python benchmarks/peers.py             # root; about 4 minutes

Without the variables the rows of those two say what is missing. squeezenet1_0 trains on synthetic images in a network
namespace where nothing else lives. Each peer is driven as its own example does it: torch's hooks and ours under DDP,
GRACE parameter by parameter and PowerSGD's authors' code on all gradients, both after backward and without DDP.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bytes_on_lo import SET_UP
from harness import Paired, paired, quartiles, write_result
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

import dtrain
from dtrain.comm import detect_launch
from dtrain.comm.torch_dist import open_default
from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger
from dtrain.meter.nic import LOOPBACK, read_counters
from dtrain.vision import models

SEED = 0
LEARNING_RATE = 1e-4
WARM_UP_STEPS, SHORT_STEPS, LONG_STEPS = 4, 6, 26  # even: epfml/powersgd sends P and Q in turn
STEPS_PER_BLOCK = 4
GRACE, POWERSGD = "DTRAIN_GRACE", "DTRAIN_POWERSGD"
ONE_BIT_NOTE = "means are wrong: it decodes by `~` of a uint8 mask, which is 254 or 255, not 0 or 1"
POWER_SGD_NOTE = "sums where it should average: its helper does not tell the compressor the number of ranks"
Step = Callable[[], None]


class Bench:
    """One rank's images, and training steps on models of their own that start alike."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED + dist.get_rank())
        self.images = torch.randn(8, 3, 64, 64, generator=generator)
        self.labels = torch.randint(1000, (8,), generator=generator)

    def model(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(SEED)  # GRACE's PowerSGD needs the same global generator on every rank
        model = models.build("squeezenet1_0", num_classes=1000)
        return model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def backward(self, model: nn.Module) -> None:
        cross_entropy(model(self.images), self.labels).backward()


@dataclass(frozen=True)
class Row:
    """A way to exchange gradients. `make` returns a training step and its model."""

    label: str
    make: Callable[[Bench], tuple[Step, nn.Module]]
    is_peer: bool = False
    """Whether it may fail, and why it did is its result."""
    checkout: str | None = None
    """The environment variable that says where its code is."""
    note: str = ""
    """What a reader of its figures must know."""


@dataclass(frozen=True)
class Outcome:
    """A row measured: bytes per step and rank, seconds per step in each repetition; or why there are none."""

    wire_bytes: float = 0.0
    kernel_bytes: float = 0.0
    seconds: tuple[float, ...] = ()
    remark: str = ""


def under_ddp(label: str, attach: Callable[[DistributedDataParallel], object], **ddp_options: Any) -> Row:
    def make(bench: Bench) -> tuple[Step, nn.Module]:
        model, optimizer = bench.model()
        wrapped = DistributedDataParallel(model, **ddp_options)
        attach(wrapped)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            bench.backward(wrapped)
            optimizer.step()

        return step, model

    return Row(label, make)


def ours(compressor: str, **options: Any) -> Row:
    label = " ".join(["dtrain", compressor, *(f"{key}={value}" for key, value in options.items())])
    return under_ddp(label, lambda ddp: dtrain.compress(ddp, compressor, seed=SEED, **options))


def hook(function: Callable[..., Any]) -> Row:
    row = under_ddp(f"torch {function.__name__}", lambda ddp: ddp.register_comm_hook(None, function))
    return replace(row, is_peer=True)


def power_sgd_hook() -> Row:
    """In one bucket. With two under way it starts collectives from the callbacks of gloo's threads.

    These run in any order, so what one rank starts for one bucket meets what another starts for the other.
    """

    def attach(ddp: DistributedDataParallel) -> None:
        ddp.register_comm_hook(PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2), powerSGD_hook)

    row = under_ddp("torch powerSGD_hook rank=1", attach, bucket_cap_mb=25)
    note = "one bucket; in DDP's default two, four of four runs aborted within 20 steps: gloo, collective mismatch"
    return replace(row, is_peer=True, note=note)


def grace(label: str, note: str = "", **params: Any) -> Row:
    """As in GRACE's examples/dist: `step` on each gradient after backward."""

    def make(bench: Bench) -> tuple[Step, nn.Module]:
        helper = importlib.import_module("grace_dl.dist.helper")
        exchange = helper.grace_from_params({**params, "world_size": dist.get_world_size()})
        model, optimizer = bench.model()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            bench.backward(model)
            for name, parameter in model.named_parameters():
                gradient = parameter.grad
                assert gradient is not None
                gradient.copy_(exchange.step(gradient, name))
            optimizer.step()

        return step, model

    return Row(f"GRACE {label}", make, is_peer=True, checkout=GRACE, note=note)


def powersgd(num_iters_per_step: int) -> Row:
    """As in its README: no zero_grad, since it leaves its error in the gradients."""

    def make(bench: Bench) -> tuple[Step, nn.Module]:
        package = importlib.import_module("powersgd")
        model, optimizer = bench.model()
        config = package.Config(rank=1, num_iters_per_step=num_iters_per_step, start_compressing_after_num_steps=0)
        aggregator = package.PowerSGD(list(model.parameters()), config=config)

        def step() -> None:
            bench.backward(model)
            package.optimizer_step(optimizer, aggregator)

        return step, model

    return Row(f"epfml/powersgd rank=1 num_iters_per_step={num_iters_per_step}", make, is_peer=True, checkout=POWERSGD)


ROWS = (
    under_ddp("torch DDP, no hook (fp32)", lambda ddp: None),
    hook(default_hooks.fp16_compress_hook),
    hook(default_hooks.bf16_compress_hook),
    ours("fp16"),
    ours("bf16"),
    grace("qsgd, allgather", compressor="qsgd", communicator="allgather"),
    grace("qsgd, alltoall", compressor="qsgd", communicator="alltoall"),
    ours("int8"),
    ours("int4"),
    grace("terngrad, allgather", compressor="terngrad", communicator="allgather"),
    grace("terngrad, alltoall", compressor="terngrad", communicator="alltoall"),
    ours("ternary"),
    grace("signsgd", compressor="signsgd", communicator="allgather"),
    grace("efsignsgd", compressor="efsignsgd", memory="efsignsgd", communicator="allgather", lr=LEARNING_RATE),
    grace("onebit", ONE_BIT_NOTE, compressor="onebit", memory="residual", communicator="allgather"),
    ours("one_bit"),
    grace("topk 0.001", compressor="topk", memory="residual", communicator="allgather", compress_ratio=0.001),
    ours("top_k", density=0.001),
    ours("top_k", density=0.001, exchange="split"),
    power_sgd_hook(),
    powersgd(num_iters_per_step=1),
    powersgd(num_iters_per_step=2),
    grace("powersgd rank=1", POWER_SGD_NOTE, compressor="powersgd", memory="powersgd", communicator="allreduce"),
    ours("power_sgd", power_sgd_rank=1),
)


def repeat(step: Step) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def meet() -> None:
    dist.all_reduce(torch.zeros(1))


def start(row: Row, bench: Bench) -> tuple[Step, nn.Module] | str:
    """The row's step and model after a few steps; or why there are none, which must be the same on every rank."""
    if row.checkout and not os.environ.get(row.checkout):
        return f"not installed: set {row.checkout} to a checkout"
    try:
        step, model = row.make(bench)
        repeat(step)(WARM_UP_STEPS)
    except Exception as error:
        if not row.is_peer:
            raise
        return f"does not run here: {type(error).__name__}: {str(error).partition(chr(10))[0]}".replace("|", "/")
    return step, model


def count(run: Callable[[int], None], ledger: Ledger) -> tuple[float, float]:
    """(wire bytes, bytes that lo transmitted) per step and rank: a longer run's less a shorter run's."""

    def total(steps: int) -> torch.Tensor:
        meet()  # everybody is here
        kernel = read_counters()[LOOPBACK].transmitted_bytes
        meet()  # nobody has gone on
        wire = ledger.total().wire_bytes
        run(steps)
        wire = ledger.total().wire_bytes - wire
        meet()
        kernel = read_counters()[LOOPBACK].transmitted_bytes - kernel
        meet()
        all_ranks = torch.tensor(wire, dtype=torch.float64)
        dist.all_reduce(all_ranks)
        return torch.stack([all_ranks, torch.tensor(kernel, dtype=torch.float64)])

    short, long = total(SHORT_STEPS), total(LONG_STEPS)
    wire, kernel = ((long - short) / (LONG_STEPS - SHORT_STEPS) / dist.get_world_size()).tolist()
    return wire, kernel


def trouble(model: nn.Module) -> str:
    """What is wrong with the parameters after all these steps, if anything is."""
    parameters = parameters_to_vector(model.parameters()).detach()
    ranks = [torch.empty_like(parameters) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, parameters)
    if not all(other.isfinite().all() for other in ranks):
        return "parameters became infinite or NaN"
    return "" if all(other.equal(parameters) for other in ranks) else "ranks' parameters differ"


def measure(repetitions: int) -> dict[str, Outcome]:
    bench, ledger = Bench(), Ledger()
    remarks: dict[str, str] = {}
    running: dict[str, tuple[Step, nn.Module]] = {}
    counted: dict[str, tuple[float, float]] = {}
    with c10d.installed(ledger):
        for row in ROWS:
            started = start(row, bench)
            if isinstance(started, str):
                remarks[row.label] = started
            else:
                running[row.label] = started
                counted[row.label] = count(repeat(started[0]), ledger)
    # without the meter, whose cost grows with the number of collectives
    timed = paired(
        {label: repeat(step) for label, (step, _) in running.items()},
        repetitions=repetitions,
        steps=STEPS_PER_BLOCK,
        warmup=1,
        meet=meet,
    )
    outcomes = {label: Outcome(remark=remark) for label, remark in remarks.items()}
    notes = {row.label: row.note for row in ROWS}
    for label, (_, model) in running.items():
        remark = "; ".join(filter(None, (notes[label], trouble(model))))
        outcomes[label] = Outcome(*counted[label], tuple(timed.seconds[label]), remark)
    return outcomes


def ranks(repetitions: int) -> None:
    """What torchrun starts: measure all rows, and print them as JSON on rank 0."""
    for variable in (GRACE, POWERSGD):
        if path := os.environ.get(variable):
            sys.path.append(path)
    communicator = open_default("gloo", detect_launch(os.environ), timeout_seconds=120)
    outcomes = measure(repetitions)
    if communicator.rank == 0:
        print("OUTCOMES " + json.dumps({label: asdict(outcome) for label, outcome in outcomes.items()}))
    communicator.close()


def in_namespace(world_size: int, repetitions: int) -> dict[str, Outcome]:
    """Run this file under torchrun in a network namespace of its own."""
    torchrun = Path(sys.executable).with_name("torchrun")
    command = f"{torchrun} --standalone --nproc-per-node={world_size} {__file__} --ranks --repetitions={repetitions}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"set -e\n{SET_UP}exec {command}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("OUTCOMES ")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{world_size} ranks failed:\n{done.stdout}\n{done.stderr}")
    outcomes = json.loads(lines[0].removeprefix("OUTCOMES "))
    return {row.label: Outcome(**outcomes[row.label]) for row in ROWS}


def table(outcomes: dict[str, Outcome]) -> str:
    lines = [
        "| exchange | wire, B | kernel, B | saving by wire | by kernel "
        "| ms per step, median | quartiles | ratio to DDP, median of pairs | quartiles | remark |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = next(iter(outcomes.values()))
    timed = Paired({label: outcome.seconds for label, outcome in outcomes.items() if outcome.seconds})
    for label, outcome in outcomes.items():
        if not outcome.seconds:
            lines.append(f"| {label} |{' |' * 8} {outcome.remark} |")
            continue
        low, middle, high = quartiles([1000 * seconds for seconds in outcome.seconds])
        ratio_low, ratio, ratio_high = quartiles(timed.ratios(label))
        lines.append(
            f"| {label} | {outcome.wire_bytes:,.0f} | {outcome.kernel_bytes:,.0f} "
            f"| {base.wire_bytes / outcome.wire_bytes:.2f}x | {base.kernel_bytes / outcome.kernel_bytes:.2f}x "
            f"| {middle:.1f} | {low:.1f} to {high:.1f} | {ratio:.3f} | {ratio_low:.3f} to {ratio_high:.3f} "
            f"| {outcome.remark} |"
        )
    return "\n".join(lines)


def version(variable: str) -> str:
    """Which commit a peer's checkout is at."""
    path = os.environ.get(variable)
    if not path:
        return f"{variable}: not set"
    git = ["git", "-C", path, "log", "-1", "--format=commit %h of %cs"]
    done = subprocess.run(git, capture_output=True, text=True, check=False) if (Path(path) / ".git").exists() else None
    return f"{variable}: {(done.stdout.strip() if done else '') or 'commit unknown'}"


def setting(repetitions: int) -> str:
    return (
        f"squeezenet1_0 at 64x64, batch 8 per rank, 1000 classes, 1,248,424 parameters; seed {SEED}; gloo "
        "over unshaped loopback in a network namespace of its own, TCP's tail-loss probes off. "
        f"{version(GRACE)}; {version(POWERSGD)}.\n\n"
        f"Bytes are per step and rank: {LONG_STEPS} steps less {SHORT_STEPS} steps; wire by the ledger, all purposes, "
        "kernel what lo transmitted, headers and acknowledgements included. Savings are against DDP's fp32. "
        f"Times are without the meter, {repetitions} rounds of {STEPS_PER_BLOCK} steps of every row in turn, in "
        "alternating order. A remark says where, after all steps, parameters were not finite or not the same on all "
        "ranks; it does not judge accuracy.\n\n"
        "torch's hooks and dtrain run under DDP; GRACE and epfml/powersgd as in their examples, after backward and "
        "without DDP. GRACE: its helper's defaults but for what the row names; topk and onebit with memory `residual`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[2])
    parser.add_argument("--repetitions", type=int, default=11, help="rounds of timed steps")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    if arguments.ranks:
        ranks(arguments.repetitions)
        return
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    sections = [setting(arguments.repetitions)]
    for world_size in arguments.world_sizes:
        outcomes = in_namespace(world_size, arguments.repetitions)
        sections.append(f"## {world_size} ranks\n\n{table(outcomes)}")
    body = "\n\n".join(sections)
    print(body)
    print(write_result("peers", arguments.hardware, "Bytes and step time beside other people's compressors", body))


if __name__ == "__main__":
    main()
