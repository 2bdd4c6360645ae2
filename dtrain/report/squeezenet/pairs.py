"""Which runs may be compared: AlexNet against SqueezeNet, alike in everything but the network.

A ratio between two runs says something about the networks only if nothing else differs. What differs is then named, so
that a reader knows which run to train.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dtrain.report.runs import Run

Pair = tuple[Run, Run]
"""(AlexNet run, SqueezeNet run)"""


def is_alexnet(run: Run) -> bool:
    """Whether the run trained AlexNet, in either layout."""
    return run.model.startswith("alexnet")


def is_squeezenet(run: Run) -> bool:
    """Whether the run trained a SqueezeNet, of any version."""
    return run.model.startswith("squeezenet")


def network_name(run: Run) -> str:
    """The network with its layout: every comparison names which AlexNet it means."""
    return f"{run.model} [{run.variant}]" if run.variant else run.model


def dense(runs: Iterable[Run]) -> list[Run]:
    """The runs that exchanged plain fp32 gradients between 2 ranks or more in every step, and finished one."""
    return [
        run
        for run in runs
        if run.compressor == "none" and run.world_size > 1 and run.wire_bytes_per_step and not run.has_local_rounds
    ]


def dense_pairs(runs: Iterable[Run]) -> list[Pair]:
    """Every pair of dense runs alike in world size, backend and number of classes, in the order of the runs."""
    candidates = dense(runs)
    return [
        (alexnet, squeezenet)
        for alexnet in filter(is_alexnet, candidates)
        for squeezenet in filter(is_squeezenet, candidates)
        if _setting(alexnet) == _setting(squeezenet)
    ]


def runs_of(pairs: Iterable[Pair]) -> tuple[Run, ...]:
    """The runs in the pairs, each once."""
    return tuple({run.label: run for pair in pairs for run in pair}.values())


def missing_pair(fitting: Sequence[Run], condition: str) -> str:
    """Why there is no pair: which network is lacking among the fitting runs, or in what they differ."""
    networks = (("an AlexNet run", is_alexnet), ("a SqueezeNet run", is_squeezenet))
    lacking = [name for name, belongs in networks if not any(map(belongs, fitting))]
    if lacking:
        return f"Missing: {' and '.join(lacking)} {condition}."
    have = "; ".join(
        f"{run.label}: {run.world_size} ranks, {run.backend}, {run.num_classes} classes" for run in fitting
    )
    return f"Missing: both networks at the same world size, backend and number of classes. There is {have}."


def _setting(run: Run) -> tuple[int, str, int]:
    return run.world_size, run.backend, run.num_classes
