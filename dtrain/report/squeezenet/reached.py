"""Bytes until an accuracy is first reached: SqueezeNet by any exchange against AlexNet in fp32."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.report import units
from dtrain.report.runs import Run
from dtrain.report.squeezenet.pairs import Pair, dense, is_alexnet, is_squeezenet, missing_pair, runs_of
from dtrain.report.squeezenet.verdicts import Finding, Verdict

TIMES_FEWER = 10_000

RISEN, PAST_GUESSING = 0.05, 0.5
"""Of accuracy, from AlexNet's first test to its best, or its best: below both it has not trained, and is no target."""


def bytes_to_accuracy(runs: Sequence[Run]) -> Finding:
    """Of every pair that trained on the same images: the best accuracy of AlexNet, and what both had sent by then."""
    tested = [run for run in runs if run.evaluation and run.world_size > 1]
    alexnets = [run for run in dense(tested) if is_alexnet(run)]
    squeezenets = [run for run in tested if is_squeezenet(run) and run not in dense(tested)]
    pairs = [(a, s) for a in alexnets for s in squeezenets if _task(a) == _task(s)]
    if not pairs:
        return Finding(
            Verdict.NOT_MEASURED,
            missing_pair(
                [*alexnets, *squeezenets],
                "on 2 ranks or more, tested as it trains: AlexNet in fp32, SqueezeNet compressed",
            ),
        )
    trained = [pair for pair in pairs if _best(pair[0]) >= min(PAST_GUESSING, _first(pair[0]) + RISEN)]
    if not trained:
        untrained = dict.fromkeys(f"{a.label} {units.percent(_best(a))}, {a.num_steps:,} steps" for a, _ in pairs)
        return Finding(
            Verdict.NOT_MEASURED,
            "Missing: an AlexNet that has trained. Its accuracy is low and has not risen between tests "
            f"({'; '.join(untrained)}).",
            runs_of(pairs),
        )
    numbers, sentences = {}, []
    for pair in trained:
        ratio, sentence = _compare(pair)
        sentences.append(sentence)
        if ratio is not None:
            numbers[f"{pair[0].label} / {pair[1].label}"] = ratio
    holds = any(ratio >= TIMES_FEWER for ratio in numbers.values())
    return Finding(Verdict.HOLDS if holds else Verdict.DOES_NOT_HOLD, " ".join(sentences), runs_of(trained), numbers)


def _compare(pair: Pair) -> tuple[float | None, str]:
    """How many times fewer bytes, None where the accuracy is not reached; and both in words."""
    alexnet, squeezenet = pair
    target = _best(alexnet)
    dense_bytes, own = _bytes_to(alexnet, target), _bytes_to(squeezenet, target)
    what = f"{squeezenet.label} ({squeezenet.exchange})"
    if dense_bytes is None or own is None:
        best = units.percent(_best(squeezenet))
        return None, f"{what} does not reach the {units.percent(target)} of {alexnet.label}: its best is {best}."
    return dense_bytes / own, (
        f"{what} reaches the {units.percent(target)} of {alexnet.label} after {units.short_bytes(own)}, which takes "
        f"{units.short_bytes(dense_bytes)}: {units.ratio(dense_bytes / own)} fewer."
    )


def _first(run: Run) -> float:
    return run.evaluation[0].accuracy or 0.0


def _best(run: Run) -> float:
    return max(point.accuracy or 0.0 for point in run.evaluation)


def _bytes_to(run: Run, target: float) -> float | None:
    """What all ranks had sent at the first logging point after the test that reached it first, else at the last."""
    step = next((point.step for point in run.evaluation if (point.accuracy or 0.0) >= target), None)
    if step is None:
        return None
    sent = [(p.step, p.total_wire_bytes) for p in run.training if p.total_wire_bytes]
    return next((total for at, total in sent if at > step), sent[-1][1] if sent else None)


def _task(run: Run) -> tuple[object, ...]:
    return run.data, run.image_size, run.num_classes, run.world_size, run.backend
