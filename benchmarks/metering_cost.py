"""What metering costs: time per collective, and its share of a training step of stock DDP with SqueezeNet.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2 benchmarks/metering_cost.py [--quick]

Metering is switched on and off between short blocks that alternate, so that whatever else the machine does meets both.
A step's share is measured so, and computed too: the cost per collective times the collectives of a step, over the step.
A difference of a part in a thousand drowns in the first figure's noise on a busy machine; the second bears it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import Paired, paired, quartiles, write_result
from step_time import SEED, Bench, repeat, together
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger
from dtrain.meter.tally import Tally
from dtrain.meter.trace import MAX_STEPS
from dtrain.meter.tracer import Tracer

Run = Callable[[int], None]
OFF, ON, TRACED = "meter off", "meter on", "meter with --trace"


def metered(run: Run) -> Run:
    """The same with everything on that `python -m dtrain.meter` does: recording, closing, adding up."""
    ledger = Ledger(close_every=512)
    ledger.sinks.append(Tally(ledger))

    def with_meter(count: int) -> None:
        with c10d.installed(ledger):
            run(count)

    return with_meter


def traced(run: Run) -> Run:
    """The same with what `--trace` does besides: two hooks a step of the optimizer, and collectives kept."""

    def with_trace(count: int) -> None:
        ledger, tracer = Ledger(close_every=512), Tracer(MAX_STEPS)
        ledger.sinks += [Tally(ledger), tracer]
        hooks = [
            register_optimizer_step_pre_hook(lambda optimizer, *_: tracer.on_begin(optimizer)),
            register_optimizer_step_post_hook(lambda optimizer, *_: tracer.on_step(optimizer)),
        ]
        with c10d.installed(ledger):
            run(count)
        for hook in hooks:
            hook.remove()

    return with_trace


def all_reduces(group: dist.ProcessGroup) -> Run:
    value = torch.zeros(1)

    def run(count: int) -> None:
        for _ in range(count):
            dist.all_reduce(value, group=group)

    return run


def differences(result: Paired) -> list[float]:
    """Seconds per step that metering added, pair by pair."""
    return [on - off for off, on in zip(result.seconds[OFF], result.seconds[ON], strict=True)]


def collectives_per_step(step: Callable[[], None], steps: int = 5) -> float:
    with c10d.installed(Ledger()) as ledger:
        for _ in range(steps):
            step()
    return ledger.total().count / steps


def microseconds(values: list[float]) -> str:
    low, middle, high = (1e6 * value for value in quartiles(values))
    return f"{middle:.1f} | {low:.1f} to {high:.1f}"


def spread(ratios: list[float]) -> str:
    """Median, quartiles, and the error of the mean without a tenth of the ratios at each end: others use the cores."""
    low, middle, high = quartiles(ratios)
    inner = sorted(ratios)[len(ratios) // 10 : len(ratios) - len(ratios) // 10]
    error = statistics.stdev(inner) / len(inner) ** 0.5
    return (
        f"{middle:.4f}, quartiles {low:.4f} to {high:.4f}; mean without a tenth at each end "
        f"{statistics.mean(inner):.4f}, standard error {error:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the repetitions, and write no result file")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    part = 20 if arguments.quick else 1
    with together() as communicator:
        alone = [dist.new_group([rank]) for rank in range(communicator.world_size)][communicator.rank]
        world = dist.group.WORLD
        assert world is not None
        rows = [
            "| all_reduce of 4 B | us, meter off | quartiles | us more with it | quartiles |",
            "|---|---|---|---|---|",
        ]
        costs = {}
        for ranks, group in ((1, alone), (communicator.world_size, world)):
            run = all_reduces(group)
            result = paired(
                {OFF: run, ON: metered(run)}, repetitions=100 // part, steps=200, warmup=200, meet=dist.barrier
            )
            added = differences(result)
            costs[ranks] = statistics.median(added)
            label = f"{ranks} rank{'s' * (ranks > 1)}"
            rows.append(f"| {label} | {microseconds(list(result.seconds[OFF]))} | {microseconds(added)} |")
        bench = Bench(communicator, image_size=64, batch_size=32)
        step = bench.ddp("squeezenet1_1")
        result = paired(
            {OFF: repeat(step), ON: metered(repeat(step)), TRACED: traced(repeat(step))},
            repetitions=300 // part,
            steps=3,
            warmup=6,
            meet=dist.barrier,
        )
        per_step = collectives_per_step(step)
        if communicator.rank != 0:
            return
        step_seconds = statistics.median(result.seconds[OFF])
        computed = costs[communicator.world_size] * per_step / step_seconds
        body = "\n".join(
            [
                f"seed {SEED}; {communicator.world_size} ranks on one host, gloo over loopback; "
                f"{100 // part} pairs of blocks of 200 collectives, {300 // part} rounds of blocks of 3 steps.",
                "",
                *rows,
                "",
                "## A step of stock DDP, squeezenet1_1 at 64x64, batch 32 per rank",
                "",
                f"- {1000 * step_seconds:.2f} ms, {per_step:g} collectives",
                f"- computed share of metering: {computed:.3%} (the cost per collective at "
                f"{communicator.world_size} ranks, times collectives, over the step)",
                f"- measured, on over off: {spread(result.ratios(ON))}",
                f"- with --trace over off: {spread(result.ratios(TRACED))}",
            ]
        )
        print(body)
        if not arguments.quick:
            print(write_result("metering_cost", arguments.hardware, "What metering costs", body))


if __name__ == "__main__":
    main()
