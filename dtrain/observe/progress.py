"""What rank 0 shows while it trains: two live lines in a terminal, which fit 80 columns, and plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from dtrain.observe.figures import EvalFigures, TrainFigures


def _learnt(figures: TrainFigures) -> str:
    return f"loss {figures.loss:.4f}  accuracy {figures.accuracy:6.1%}"


def _spent(figures: TrainFigures, bytes_per_step: float) -> str:
    share = figures.exposed_comm_seconds / figures.step_seconds
    return (
        f"{figures.images_per_second:,.0f} images/s  {bytes_per_step / 1e6:,.3f} MB/step sent  "
        f"{share:.0%} of the time communicating"
    )


class ShowProgress:
    """An observer that prints. `num_steps` is the plan's."""

    def __init__(self, num_steps: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._num_steps = num_steps
        self._last: TrainFigures | None = None
        self._live: Live | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.fields[learnt]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=num_steps, learnt="")
            self._below = Text()
            self._live = Live(Group(self._bar, self._below), console=self._console)
            self._live.start()

    def on_phase(self, name: str, num_values: int) -> None:
        """Say that a phase begins; a run without phases has one of no name, of which there is nothing to say."""
        if name:
            self._print(f"now phase {name}: {num_values:,} values to exchange a step")

    def on_packed(self, num_bytes: int) -> None:
        self._print(f"packed without loss into {num_bytes:,} B")

    def on_train(self, figures: TrainFigures) -> None:
        before = self._last
        steps = figures.step - (before.step if before else 0)
        learnt = _learnt(figures)
        spent = _spent(figures, (figures.wire_bytes - (before.wire_bytes if before else 0.0)) / steps)
        self._last = figures
        if self._live is not None:
            self._bar.update(self._task, completed=figures.step, learnt=learnt)
            self._below.plain = spent
        else:
            self._print(f"step {figures.step}/{self._num_steps}  {learnt}  {spent}")

    def on_eval(self, figures: EvalFigures) -> None:
        self._print(
            f"test after step {figures.step}: loss {figures.loss:.4f}  accuracy {figures.accuracy:.2%} "
            f"of {figures.num_images:,} images"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
