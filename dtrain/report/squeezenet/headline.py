"""The one sentence that a report opens with: the strongest thing that these runs show, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dtrain.report import units
from dtrain.report.runs import Run
from dtrain.report.squeezenet.pairs import Pair, dense, dense_pairs
from dtrain.report.squeezenet.paper import PAPER_CLASSES


@dataclass(frozen=True)
class Headline:
    """A sentence to remember, the figure in it that matters most, and the numbers behind it."""

    title: str
    figure: str
    detail: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """The title before its figure, the figure, and the title after it."""
        return self.title.partition(self.figure) if self.figure else (self.title, "", "")


def headline(runs: Sequence[Run]) -> Headline:
    """The two networks if they can be compared, else the best saving, else what crosses the network."""
    pairs = dense_pairs(runs)
    if pairs:
        return _of_pair(min(pairs, key=_num_incomplete))
    saving = [run for run in runs if (run.saving_vs_fp32 or 0) > 1]
    if saving:
        return _of_saving(max(saving, key=lambda run: (_holds(run, runs), run.saving_vs_fp32)), runs)
    return _of_traffic(runs)


def _of_pair(pair: Pair) -> Headline:
    alexnet, squeezenet = pair
    fewer = (alexnet.wire_bytes_per_step or 0) / (squeezenet.wire_bytes_per_step or 1)
    heads = (
        "" if alexnet.num_classes == PAPER_CLASSES else f" Both have {alexnet.num_classes} classes, not the paper's."
    )
    return Headline(
        f"SqueezeNet exchanges {units.ratio(fewer)} fewer bytes per step than AlexNet",
        units.ratio(fewer),
        f"With {squeezenet.model} each of {squeezenet.world_size} ranks sends "
        f"{units.short_bytes(squeezenet.wire_bytes_per_step)} in a step, with {alexnet.model} "
        f"{units.short_bytes(alexnet.wire_bytes_per_step)} ({squeezenet.backend}, dense fp32). "
        f"Their parameters stand in the ratio {units.ratio(alexnet.num_parameters / squeezenet.num_parameters)}: "
        f"{units.count(squeezenet.num_parameters)} against {units.count(alexnet.num_parameters)}.{heads}",
    )


def _num_incomplete(pair: Pair) -> int:
    return sum(not run.complete for run in pair)


HOLDS_WITHIN = 0.01
"""Of accuracy: a saving that costs more is no saving, and never goes before one that holds."""


def _of_saving(run: Run, runs: Sequence[Run]) -> Headline:
    detail = (
        f"{run.model} on {run.world_size} ranks ({run.backend}), over the whole run, warm-up included; against an fp16 "
        f"all_reduce the saving is {units.ratio(run.saving_vs_fp16)}."
    )
    fp32, ratio = _fp32_of(run, runs), units.ratio(run.saving_vs_fp32)
    if run.accuracy is None:
        return Headline(
            f"{run.exchange} sent {ratio} fewer bytes than dense fp32, at an accuracy not measured", "", detail
        )
    at = f"{run.exchange} ends at {units.percent(run.accuracy)} with {ratio} fewer bytes than dense fp32"
    if fp32 is None or fp32.accuracy is None:
        return Headline(f"{at}, whose accuracy is not here", ratio, f"{detail} Train with compressor=none to compare.")
    points = 100 * (run.accuracy - fp32.accuracy)
    if _holds(run, runs):
        return Headline(f"{at}, which ends at {units.percent(fp32.accuracy)}", ratio, detail)
    cost = f"{-points:.1f} points"
    return Headline(f"{run.exchange} cost {cost} of accuracy, for {ratio} fewer bytes than dense fp32", cost, detail)


def _fp32_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The dense run of the same network, data and number of ranks, if there is one."""
    alike = [other for other in dense(runs) if _trained(other) == _trained(run)]
    return alike[0] if alike else None


def _trained(run: Run) -> tuple[object, ...]:
    return run.model, run.variant, run.data, run.num_classes, run.world_size


def _holds(run: Run, runs: Sequence[Run]) -> bool:
    fp32 = _fp32_of(run, runs)
    if fp32 is None or fp32.accuracy is None or run.accuracy is None:
        return False
    return run.accuracy >= fp32.accuracy - HOLDS_WITHIN


def _of_traffic(runs: Sequence[Run]) -> Headline:
    sent = [run.wire_bytes_per_step for run in runs if run.wire_bytes_per_step is not None]
    who = runs[0].model if len({run.model for run in runs}) == 1 else "Each network"
    if not sent:
        return Headline("No step was finished", "", "Nothing was measured.")
    if max(sent) == 0:
        return Headline(
            "A single worker exchanges nothing",
            "nothing",
            "Train on 2 ranks or more to see what crosses the network.",
        )
    low, high = units.short_bytes(min(sent)), units.short_bytes(max(sent))
    figure = low if low == high else f"{low} to {high}"
    title = f"{who} sends {figure} per step and rank"
    return Headline(title, figure, f"Wire bytes of the gradient exchange, in {_number_of_runs(runs)}.")


def _number_of_runs(runs: Sequence[Run]) -> str:
    return f"one run on {runs[0].world_size} ranks" if len(runs) == 1 else f"{len(runs)} runs"
