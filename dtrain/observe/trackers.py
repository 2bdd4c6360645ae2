"""What training reports, for the programs that people watch runs with: TensorBoard, trackio, Weights & Biases.

Names are those of metrics.jsonl behind the kind of the line, as `train/loss` and `eval/accuracy`; steps are its steps.
None of these packages is needed: which are asked for is checked before a run begins (`require_package`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures

PROJECT = "dtrain"
"""Of trackio and wandb, where runs are listed."""
FOLDER = "tensorboard"
"""In the run directory."""
_FLUSH_SECONDS = 10
_APART = ("step", "wait_by_rank")
"""What is no figure of its own; the second would grow with the number of ranks, and the summary names the worst."""


class Log(Protocol):
    """Where figures go."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self, *, failed: bool) -> None: ...


class Tracker:
    """An observer of the trainer that hands figures to a `Log`."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def on_phase(self, name: str, num_values: int) -> None:
        """Nothing: figures go by step."""

    def on_plan(self, figures: PlanFigures) -> None:
        """Nothing, likewise."""

    def on_packed(self, num_bytes: int) -> None:
        """Nothing, likewise."""

    def on_train(self, figures: TrainFigures) -> None:
        self._write("train", figures)

    def on_eval(self, figures: EvalFigures) -> None:
        self._write("eval", figures)

    def close(self, *, failed: bool = False) -> None:
        """Hand over what is still waiting, and say whether the run failed."""
        self._log.close(failed=failed)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def _write(self, kind: str, figures: TrainFigures | EvalFigures) -> None:
        values = {name: value for name, value in asdict(figures).items() if name not in _APART and value is not None}
        self._log.write({f"{kind}/{name}": value for name, value in values.items()}, figures.step)


class _TensorBoard:
    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / FOLDER), flush_secs=_FLUSH_SECONDS)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    """wandb, and trackio, which has its interface. Where they send figures is in their own environment variables."""

    def __init__(
        self, package: Any, finish: Callable[[bool], object], name: str, facts: Mapping[str, Any], **options: Any
    ) -> None:
        self._package, self._finish = package, finish
        try:
            package.init(name=name, config=dict(facts), **options)
        except Exception as error:
            why, called = " ".join(str(error).split()) or type(error).__name__, package.__name__
            raise ValueError(
                f"observe.{called}=true: {called} does not begin a run ({why}): see its own help"
            ) from None

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._package.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._finish(failed)


def _open_tensorboard(run_dir: Path, facts: Mapping[str, Any]) -> Log:
    return _TensorBoard(run_dir)


def _open_trackio(run_dir: Path, facts: Mapping[str, Any]) -> Log:
    import trackio

    return _Wandb(trackio, lambda failed: trackio.finish(), run_dir.name, facts, project=PROJECT)


def _open_wandb(run_dir: Path, facts: Mapping[str, Any]) -> Log:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)

    def finish(failed: bool) -> None:
        wandb.finish(exit_code=int(failed))

    return _Wandb(wandb, finish, run_dir.name, facts, project=project, dir=str(run_dir))


_OPEN: Mapping[str, Callable[[Path, Mapping[str, Any]], Log]] = {
    "tensorboard": _open_tensorboard,
    "trackio": _open_trackio,
    "wandb": _open_wandb,
}
TRACKERS = tuple(_OPEN)
"""Their names, which are those of the packages and of the settings in `observe`."""


def require_package(name: str) -> None:
    """Raises ValueError, with the cure, where the package of a tracker is not installed."""
    if find_spec(name) is None:
        raise ValueError(f"observe.{name}=true needs the package {name}: pip install {name}, or leave it out")


def open_tracker(name: str, run_dir: Path, facts: Mapping[str, Any]) -> Tracker:
    """Begin to track a run. Raises ValueError where the tracker does not."""
    return Tracker(_OPEN[name](run_dir, facts))
