"""What rank 0 shows while it trains, in 80 columns: two live lines in a terminal, and plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures


def _clock(seconds: float) -> str:
    minutes, whole_seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole_seconds:02}"


def _beside(figures: TrainFigures) -> str:
    share = figures.exposed_comm_seconds / figures.step_seconds
    return (
        f"accuracy {figures.accuracy:6.1%}  {figures.images_per_second:,.0f} images/s  "
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
                BarColumn(bar_width=None),
                TextColumn("{task.fields[left]}  {task.fields[learnt]}"),
                console=self._console,
                expand=True,  # the bar has what the rest leaves
            )
            self._task = self._bar.add_task("train", total=num_steps, left="first steps", learnt="")
            self._below = Text()
            self._live = Live(Group(self._bar, self._below), console=self._console)
            self._live.start()

    def on_phase(self, name: str, num_values: int) -> None:
        """Say that a phase begins; a run without phases has one of no name, of which there is nothing to say."""
        if name:
            self._print(f"now phase {name}: {num_values:,} values to exchange a step")

    def on_plan(self, figures: PlanFigures) -> None:
        """Nothing: the plan says itself what it chose, and why."""

    def on_packed(self, num_bytes: int) -> None:
        self._print(f"packed without loss into {num_bytes:,} B")

    def on_train(self, figures: TrainFigures) -> None:
        before = self._last
        steps = figures.step - (before.step if before else 0)
        bytes_per_step = (figures.wire_bytes - (before.wire_bytes if before else 0.0)) / steps
        left = f"{_clock(figures.step_seconds * (self._num_steps - figures.step))} left"
        learnt = f"loss {figures.loss:.4f}  {bytes_per_step / 1e6:,.3f} MB/step"
        self._last = figures
        if self._live is not None:
            self._bar.update(self._task, completed=figures.step, left=left, learnt=learnt)
            self._below.plain = _beside(figures)
        else:
            accuracy = f"accuracy {figures.accuracy:.1%}"
            self._print(f"step {figures.step}/{self._num_steps}  {left}  {learnt}  {accuracy}")

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
