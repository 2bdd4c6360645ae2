"""What methods were measured to cost under the optimizers that people have, and so what to refuse, and what instead.

`trials.json` is written by benchmarks/accuracy.py: short trainings at the learning rate, schedule and steps of fp32.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from dtrain.arguments import check_name
from dtrain.compressors.registry import COMPRESSORS

Guard = Literal["refuse", "warn", "off"]
"""What to do about a method that was measured to fail."""

Exchanged = Literal["gradient", "update"]
"""Gradients, as DDP exchanges them; or what the optimizer changed (`dtrain.local`)."""

FAILS, HOLDS = {"accuracy": 2.0, "loss": 5.0}, {"accuracy": 1.0, "loss": 2.0}
"""Points of accuracy, and % of the loss: more than the first is a failure, no more than the second is none."""

_MILDER = ("density", "power_sgd_rank")
"""Options of which more is milder; of the others only those in `_KINDS` make another method."""
_KINDS = ("rounding", "all_reduces")
_OPTIMIZERS = {"sgd": "SGD with momentum", "adamw": "AdamW"}
TRIED_MOMENTUM = 0.9
"""Of SGD in trials; less is milder."""
_SHOWN = 3
_FEWEST = 2
"""Workers that trials have."""
AVERAGE = "average"
"""The outer optimizer of most trials: the mean change is applied as it is."""
IMAGES = ("digits", "cifar10")
"""Tasks of convolutional networks."""


@dataclass(frozen=True)
class Trial:
    """A method under an optimizer, against fp32 in the same recipe.

    `cost` is in points of accuracy, or in % of the validation loss for a language model; None where it diverged.
    `saving` is that of the whole run at its number of workers, None where it was in lockstep and not counted.
    """

    task: str
    optimizer: str
    exchanged: Exchanged
    compressor: str
    options: Mapping[str, Any]
    every: int
    world_size: int
    seeds: int
    cost: float | None
    saving: float | None
    outer: str = AVERAGE

    @property
    def unit(self) -> str:
        """Of the cost."""
        return "loss" if self.task == "gpt" else "accuracy"

    @property
    def fails(self) -> bool:
        """Whether it ruins the training."""
        return self.cost is None or self.cost > FAILS[self.unit]

    @property
    def holds(self) -> bool:
        """Whether it ends about where fp32 ends."""
        return self.cost is not None and self.cost <= HOLDS[self.unit]

    @property
    def method(self) -> tuple[Any, ...]:
        """The same for the same method in another task."""
        return self.exchanged, self.compressor, tuple(sorted(self.options.items())), self.every

    def cost_in_words(self) -> str:
        """For people."""
        where = f"on {self.task} (n={self.world_size})"
        if self.cost is None:
            return f"diverged {where}"
        amount = f"{self.cost:.1f}% of loss" if self.unit == "loss" else f"{self.cost:.1f} points"
        if self.cost > 0:
            return f"cost {amount} {where}"
        return f"cost nothing on {self.task} (n={self.world_size}, {amount})"


@cache
def load_trials() -> tuple[Trial, ...]:
    """All that were measured."""
    text = files("dtrain.compressors").joinpath("trials.json").read_text(encoding="utf-8")
    return tuple(Trial(**entry) for entry in json.loads(text))


def trials_with(compressor: str, options: Mapping[str, Any]) -> tuple[Trial, ...]:
    """Those of exactly this method, under every optimizer, on gradients and on updates."""
    asked = _settings(compressor, options)
    return tuple(
        trial
        for trial in load_trials()
        if trial.compressor == compressor
        and trial.outer == AVERAGE
        and _settings(trial.compressor, trial.options) == asked
    )


def trials_of(
    compressor: str,
    options: Mapping[str, Any],
    *,
    optimizer: str,
    exchanged: Exchanged,
    every: int = 1,
    world_size: int = _FEWEST,
) -> tuple[Trial, ...]:
    """Those of this method under this optimizer ("sgd" with momentum, or "adamw"), or of a milder form of it.

    Of each task those with the most workers, up to `world_size`, and of them those with the most steps between
    exchanges, up to `every`: more are not harder for all (top_k).
    """
    asked = _settings(compressor, options)

    def is_milder(trial: Trial) -> bool:
        tried = _settings(trial.compressor, trial.options)
        return all(tried.get(name) == asked.get(name) for name in _KINDS) and all(
            tried[name] >= asked[name] for name in _MILDER if name in asked
        )

    tried = [
        trial
        for trial in load_trials()
        if (trial.compressor, trial.optimizer, trial.exchanged, trial.outer)
        == (compressor, optimizer, exchanged, AVERAGE)
        and trial.every <= every
        and trial.world_size <= max(world_size, _FEWEST)
        and is_milder(trial)
    ]
    nearest: dict[str, tuple[int, int]] = {}
    for trial in tried:
        nearest[trial.task] = max(nearest.get(trial.task, (0, 0)), (trial.world_size, trial.every))
    return tuple(trial for trial in tried if (trial.world_size, trial.every) == nearest[trial.task])


def that_hold(optimizer: str, world_size: int = _FEWEST) -> list[tuple[Trial, ...]]:
    """The methods that hold wherever they were tried under this optimizer.

    With more than two workers that is with any number, and only methods count that were tried with as many, if any was.
    Those that were tried in most tasks come first, and of them those that save most.
    """
    fitting = [
        t
        for t in load_trials()
        if t.optimizer == optimizer and t.outer == AVERAGE and (t.world_size <= _FEWEST or world_size > _FEWEST)
    ]
    methods: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in fitting:
        methods.setdefault(trial.method, []).append(trial)
    asked = min(world_size, max((trial.world_size for trial in fitting), default=0))
    held = [
        tuple(trials)
        for trials in methods.values()
        if all(trial.holds for trial in trials) and max(trial.world_size for trial in trials) >= asked
    ]
    return sorted(held, key=lambda trials: (-len({trial.task for trial in trials}), -_least_saving(trials)))


def check(
    compressor: str,
    options: Mapping[str, Any],
    *,
    optimizer: str | None,
    exchanged: Exchanged,
    world_size: int,
    every: int = 1,
    outer: str = AVERAGE,
    guard: Guard = "refuse",
    tasks: Collection[str] = (),
) -> None:
    """Raise ValueError, or warn, where this method was measured to fail under this optimizer.

    `optimizer` is "sgd" with a momentum of TRIED_MOMENTUM or more, or "adamw"; None, anything else, was not tried. Nor
    was a start without compression. Where a trial is of one of `tasks`, only those speak; else all do. An outer
    optimizer fails through whichever compressor it was tried. Raises ValueError for a guard that does not exist.
    """
    check_name("guard=", guard, get_args(Guard))
    if optimizer is None or guard == "off" or options.get("start_after"):
        return
    tried = trials_of(compressor, options, optimizer=optimizer, exchanged=exchanged, every=every, world_size=world_size)
    fitting = [trial for trial in tried if trial.task in tasks] or list(tried)
    if outer != AVERAGE:
        fitting += [trial for trial in load_trials() if (trial.optimizer, trial.outer) == (optimizer, outer)]
    failed = [trial for trial in fitting if trial.fails]
    if not failed:
        return
    worst = max(failed, key=lambda trial: float("inf") if trial.cost is None else trial.cost)
    of = "of updates" if exchanged == "update" else "of gradients"
    message = (
        f"{_named(worst)} {of} under {_OPTIMIZERS[optimizer]} {worst.cost_in_words()} against fp32. "
        f"These held: {'; '.join(map(_advice, that_hold(optimizer, world_size)[:_SHOWN])) or 'none'}"
    )
    if guard == "refuse":
        raise ValueError(f"{message}. guard=warn trains all the same")
    warnings.warn(message, stacklevel=3)


def in_words(trials: Iterable[Trial]) -> list[str]:
    """A line for each optimizer, kind of exchange and interval: what it cost where it was tried."""
    groups: dict[tuple[str, Exchanged, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.optimizer, trial.exchanged, trial.every), []).append(trial)
    return [
        f"{exchanged}s{f' of {every} steps' if every > 1 else ''} under {_OPTIMIZERS[optimizer]}: "
        + ", ".join(trial.cost_in_words() + (" (refused)" if trial.fails else "") for trial in of_group)
        for (optimizer, exchanged, every), of_group in groups.items()
    ]


def _settings(compressor: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make a method what it is, with their defaults."""
    known = inspect.signature(COMPRESSORS[compressor]).parameters
    names = [name for name in (*_MILDER, *_KINDS) if name in known]
    return {name: options.get(name, known[name].default) for name in names}


def _named(trial: Trial) -> str:
    every: dict[str, Any] = {"every": trial.every} if trial.every > 1 else {}
    every |= {"outer": trial.outer} if trial.outer != AVERAGE else {}
    return " ".join([trial.compressor, *(f"{name}={value}" for name, value in {**trial.options, **every}.items())])


def _advice(trials: Iterable[Trial]) -> str:
    trials = tuple(trials)
    first = trials[0]
    how = " of updates (dtrain.local, sync=local)" if first.exchanged == "update" else ""
    saving = _least_saving(trials)
    fewer = f"{saving:,.0f}" if saving >= 100 else f"{saving:.3g}"
    return f"{_named(first)}{how}, {fewer}x fewer bytes, {' and '.join(t.cost_in_words() for t in trials)}"


def _least_saving(trials: Iterable[Trial]) -> float:
    return min((trial.saving for trial in trials if trial.saving is not None), default=0.0)
