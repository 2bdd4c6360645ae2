"""The verdict that a report opens with: the strongest thing that these runs show, and no more.

A saving stands there with the accuracy that it ends at, with fp32's, and with what is left of it against fp16; runs of
different length with their steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dtrain.report import units
from dtrain.report.runs import HOLDS_WITHIN, Run, result_of
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
    """The best saving that holds its accuracy, else the two networks, else another saving, else what is sent."""
    pairs = sorted(dense_pairs(runs), key=_num_incomplete)
    saving = [run for run in runs if (run.saving_vs_fp32 or 0) > 1]
    holding = [run for run in saving if _holds(run, runs)]
    if holding:
        best = _of_saving(max(holding, key=_saving), runs)
        if not pairs:
            return best
        networks = _of_pair(pairs[0])
        return Headline(best.title, best.figure, f"{best.detail} {networks.title}.")
    if pairs:
        return _of_pair(pairs[0])
    return _of_saving(max(saving, key=_saving), runs) if saving else _of_traffic(runs)


def _of_pair(pair: Pair) -> Headline:
    alexnet, squeezenet = pair
    fewer = units.ratio((alexnet.wire_bytes_per_step or 0) / (squeezenet.wire_bytes_per_step or 1))
    heads = (
        "" if alexnet.num_classes == PAPER_CLASSES else f" Both have {alexnet.num_classes} classes, not the paper's."
    )
    if squeezenet.accuracy is None or alexnet.accuracy is None:
        ends = "at an accuracy not measured"
    else:
        ends = f"and ends at {result_of(squeezenet, pair)}, AlexNet at {result_of(alexnet, pair)}"
    return Headline(
        f"SqueezeNet exchanges {fewer} fewer bytes per step than AlexNet, {ends}",
        fewer,
        f"With {squeezenet.model} each of {squeezenet.world_size} ranks sends "
        f"{units.short_bytes(squeezenet.wire_bytes_per_step)} in a step, with {alexnet.model} "
        f"{units.short_bytes(alexnet.wire_bytes_per_step)} ({squeezenet.backend}, dense fp32; fp16 would halve both). "
        f"Their parameters stand in the ratio {units.ratio(alexnet.num_parameters / squeezenet.num_parameters)}: "
        f"{units.count(squeezenet.num_parameters)} against {units.count(alexnet.num_parameters)}.{heads}",
    )


def _num_incomplete(pair: Pair) -> int:
    return sum(not run.complete for run in pair)


def _saving(run: Run) -> float:
    return run.saving_vs_fp32 or 0.0


def _of_saving(run: Run, runs: Sequence[Run]) -> Headline:
    detail = (
        f"{run.model} on {run.world_size} ranks ({run.backend}), wire bytes of the whole run, warm-up included. "
        f"A rank sends {units.short_bytes(run.wire_bytes_per_step)} in a step on average."
    )
    fp32, ratio = _fp32_of(run, runs), units.ratio(run.saving_vs_fp32)
    fewer = f"{ratio} fewer bytes than fp32 and {_against_fp16(run)}"
    if run.accuracy is None:
        return Headline(f"{run.exchange} sent {fewer}, at an accuracy not measured", "", detail)
    if fp32 is None or fp32.accuracy is None:
        title = f"{run.exchange} sends {fewer}, and ends at {units.percent(run.accuracy)}; fp32's accuracy is not here"
        return Headline(title, ratio, f"{detail} Train with compressor=none to compare.")
    ends, dense_ends = (result_of(one, (run, fp32)) for one in (run, fp32))
    if _holds(run, runs):
        return Headline(f"{run.exchange} sends {fewer}, and ends at {ends}, fp32 at {dense_ends}", ratio, detail)
    cost = f"{100 * (fp32.accuracy - run.accuracy):.1f} points"
    return Headline(f"{run.exchange} cost {cost} of accuracy ({ends}, fp32 {dense_ends}), for {fewer}", cost, detail)


def _against_fp16(run: Run) -> str:
    if run.saving_vs_fp16 is None:
        return "how many against fp16 is not known"
    ratio = units.ratio(run.saving_vs_fp16)
    if ratio == units.ratio(1):
        return "as many as fp16"
    return f"{ratio} fewer than fp16" if run.saving_vs_fp16 > 1 else f"more than fp16 ({ratio} its saving)"


def _fp32_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The dense run of the same network, data and number of ranks, of the same length if there is one."""
    alike = [other for other in dense(runs) if _trained(other) == _trained(run)]
    return min(alike, key=lambda other: abs(other.num_steps - run.num_steps), default=None)


def _trained(run: Run) -> tuple[object, ...]:
    return run.model, run.variant, run.data, run.image_size, run.num_classes, run.world_size


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
